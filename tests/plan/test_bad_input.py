"""What cannot be planned ends with a message and exit code 2."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import numpy as np
import pytest
from toy import Net

from flops_fit.cli.main import main

CONFIG = Path(__file__).parents[2] / "configs" / "smoke.yaml"


class Downloads(Net):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        urllib.request.urlopen("http://127.0.0.1:9/weights.pt", timeout=1)


class Allocates(Net):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.table = np.zeros((width, 10**15))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--sweep.sizes", "[7, 9, 11]"],
            ["no size can be trained at any of the budgets", "size 7 cannot be built: ValueError: d_model=7 must be"],
        ),
        (
            ["--sweep.compute_budgets", "[1e19]", "--sweep.size_multiple", "1024"],
            ["epochs: it asks for more data than exists (repeated at most 16 times)"],
        ),
        (
            ["--model.init_args.net", f"{__name__}.Downloads", "--sweep.size_param", "width"],
            ["the model's constructor failed at size", "URLError", "read no file and no network"],
        ),
        pytest.param(
            ["--model.init_args.net", f"{__name__}.Allocates", "--sweep.size_param", "width"],
            ["no size from 1 to 1024 can be built; size 8 cannot be built:", "MemoryError: Unable to allocate"],
            marks=pytest.mark.slow,
        ),
        (
            ["--sweep.sizes", "[{d_model: 8}, {n_layer: 2}]"],
            ["sizes[1]={'n_layer': 2}: a table of sizes has the same arguments in every row"],
        ),
        (
            ["--sweep.width", "{param: d_model}"],
            ["width.param='d_model' follows d_model"],
        ),
    ],
)
def test_the_message_says_what_and_where(
    words: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", str(CONFIG), *words]) == 2
    said = capsys.readouterr().err
    assert all(message in said for message in messages), said
    assert "Traceback" not in said
