"""Coordinate checks: who passes, who fails, and who cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from test_cli import told, write
from torch import Tensor, nn

from flops_fit import CoordinateCheck, DataError, PlanError, coordinate_check
from flops_fit.cli import BAD_INPUT, GOOD, SOME_FAILED
from flops_fit.examples import GPT, StdlibText, next_token_loss
from flops_fit.report import coordinate_table, plot_coordinates
from flops_fit.transfer import slope_of, why_no_widths, width_ratio


class MupNet(toy.Net):
    """The toy's MLP with the maximal update's rates and a small start of its head."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        nn.init.normal_(self.head.weight, std=1 / width)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        first, _, _, second, _ = self.layers
        wide = [second.weight, self.head.weight]
        rest = [*first.parameters(), second.bias, self.head.bias]
        return [{"params": wide, "lr": 8 * lr / self.head.in_features}, {"params": rest, "lr": lr}]


class FastMupNet(MupNet):
    """It says that its rates follow the width, and has one of them wrong."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        wide, rest = super().param_groups(lr)
        return [wide | {"lr": wide["lr"] * self.head.in_features}, rest | {"lr": lr * self.head.in_features**-0.5}]


class Deep(nn.Module):
    """Its size is its depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(toy.FEATURES, toy.FEATURES) for _ in range(depth))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x.sum(dim=1)


def checked(model_cls: Any, size_param: str = "width", **changes: Any) -> CoordinateCheck:
    arguments = {"sizes": [8, 16, 32, 64], "dataset": toy.regression(), "loss_fn": toy.squared_error, "lr": 0.01}
    return coordinate_check(model_cls, size_param, **arguments | changes)


def slopes(check: CoordinateCheck) -> dict[str, float]:
    return {c.name: c.slope for c in check.coordinates}


def test_rates_by_width_pass_and_one_rate_fails() -> None:
    mup, standard = checked(MupNet), checked(toy.Net)
    assert (mup.passed, mup.has_own_rates) == (True, True), coordinate_table(mup)
    assert (standard.passed, standard.has_own_rates) == (False, False), coordinate_table(standard)
    assert [c.name for c in mup.coordinates] == ["layers.0", "layers.3", "head", "output"]
    assert [c.is_input for c in mup.coordinates] == [True, False, False, False]
    assert slopes(standard)["output"] > 0.3
    assert standard.failing[0].slope == max(slopes(standard).values())
    assert "one learning rate does not serve all" in standard.verdict


def test_the_same_seeds_give_the_same_check_and_draw_from_nobody() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = checked(MupNet, seeds=[3])
    assert torch.equal(torch.get_rng_state(), state)
    assert first == checked(MupNet, seeds=[3])
    assert json.loads(json.dumps(first.to_dict()))["passed"] is True


@pytest.mark.slow
def test_the_example_gpt_passes_and_in_the_standard_parametrisation_fails() -> None:
    data = {"dataset": StdlibText(seq_len=64, batch_size=4), "loss_fn": next_token_loss, "sizes": [16, 32, 64, 128]}
    check = checked(GPT, "d_model", **data | {"lr": 0.7})
    found = slopes(check)
    assert check.passed, coordinate_table(check)
    assert found.pop("embedding") == pytest.approx(-0.5, abs=0.1)
    assert found.pop("head") == pytest.approx(1, abs=0.15), "the logits are divided by the width afterwards"
    assert all(abs(slope) < 0.15 for slope in found.values()), found
    check = checked(toy.StandardGPT, "d_model", **data | {"lr": 0.008})
    assert not check.passed
    assert {"blocks.*.out", "blocks.*.down", "blocks.*", "output"} <= {c.name for c in check.failing}


def test_what_is_no_width_is_not_judged() -> None:
    check = checked(Deep, "depth", sizes=[2, 4, 8, 16])
    assert check.passed is None
    assert "not applicable: the sizes differ in depth" in check.verdict
    assert coordinate_table(check) == check.verdict
    assert "it takes 4 widths, and there are 2" in checked(MupNet, sizes=[8, 16]).verdict
    assert "does not make the layers wider" in checked(MupNet, "dropped", sizes=[{"width": 8}] * 4).verdict


def test_widths_are_told_by_the_weights() -> None:
    small, large = {"w": (8, 4), "b": (8,), "x": (4, 3)}, {"w": (32, 16), "b": (32,), "x": (16, 3), "more": (9,)}
    assert width_ratio(small, large) == pytest.approx(4)
    assert width_ratio(small, small) == 1
    assert "only some have more" in (why_no_widths([small, large]) or "")
    assert slope_of([1, 2, 4], [3, 6, 12]) == pytest.approx(1)


def test_bad_input_is_told() -> None:
    for changes, error, message in (
        ({"loss_fn": toy.unreduced_error}, PlanError, "coordinate check of width 8 to 64: RuntimeError: grad can"),
        ({"model_cls": toy.Failing}, PlanError, "this model always fails"),
        ({"size_param": "depth"}, PlanError, "Net does not take depth"),
        ({"dataset": 3}, DataError, "int, not a data set"),
        ({"tolerance": 0}, PlanError, "tolerance=0"),
        ({"lr": 0}, PlanError, "lr=0 must be positive"),
    ):
        with pytest.raises(error, match=message):
            checked(**{"model_cls": toy.Net} | changes)


def test_the_figure_shows_every_part() -> None:
    ax = plot_coordinates(checked(toy.Net))
    labels = ax.get_legend_handles_labels()[1]
    assert [label.split(":")[0] for label in labels] == ["layers.0", "layers.3", "head", "output"]
    assert "fails" in labels[-1]
    assert "not judged" in labels[2]
    assert ax.get_title(loc="left") == "Coordinate check: failed"


def test_check_compares_widths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "check", "--config", write(tmp_path), "--figure", tmp_path / "widths.png")
    assert code == GOOD, "a model that promises nothing breaks no promise"
    assert "coordinate check (4 steps, width 3 to 16, 3 seeds, lr 0.01): failed" in out
    assert "let lr: auto find a rate for each size" in out
    assert (tmp_path / "widths.png").stat().st_size > 10_000
    changes = {"model.init_args.net.class_path": "test_coordinates.FastMupNet"}
    code, out, _ = told(capsys, "check", "--config", write(tmp_path, changes), "--json")
    assert code == SOME_FAILED
    answer = json.loads(out)["coordinates"]
    assert answer["has_own_rates"] is True
    assert answer["passed"] is False
    code, out, _ = told(capsys, "check", "--config", write(tmp_path), "--no-coordinates")
    assert "coordinate check" not in out
    assert "not checked: the 2 sizes in between; whether the learning rate suits every size" in out
    for path, message in (("nowhere/x.png", "cannot be written"), ("x.docx", "docx")):
        code, _, err = told(capsys, "check", "--config", write(tmp_path), "--figure", tmp_path / path)
        assert code == BAD_INPUT
        assert message in err
