"""What everybody gets wrong sooner or later, and the message it gets: two lines, what is wrong and what to do.

``cli_mistakes.txt`` holds the tables and is meant to be read.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import CONFIG, told

from flops_fit.cli import BAD_INPUT

TABLES = Path(__file__).with_name("cli_mistakes.txt")


def rows(mark: str) -> list[Any]:
    """The mistakes of one kind, each with its message."""
    found = []
    for block in TABLES.read_text().split("\n\n"):
        lines = block.strip().split("\n")
        given = [line[2:] for line in lines if line.startswith(f"{mark} ")]
        if given:
            found.append(pytest.param("\n".join(given), "\n".join(lines[len(given) :]), id=given[0]))
    return found


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; None removes it."""
    *path, last = key.split(".")
    for part in path:
        config = config.setdefault(part, {})
    if value is None:
        config.pop(last)
    else:
        config[last] = value


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sound sweep.yaml, a picture, and a file that nobody may read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    (tmp_path / "secret.yaml").write_text("sweep: {}\n")
    (tmp_path / "secret.yaml").chmod(0)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], place: Path, *words: str) -> str:
    """All that is printed for a mistake."""
    before = sorted(place.iterdir())
    code, out, err = told(capsys, *words)
    assert (code, out) == (BAD_INPUT, "")
    assert sorted(place.iterdir()) == before
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    return err.rstrip("\n")


def about_the_config(message: str) -> str:
    """Without the verb, and with FILE for the config."""
    return message.partition(": error: ")[2].replace("sweep.yaml, line ", "FILE:").replace("sweep.yaml", "FILE")


@pytest.mark.parametrize(("mistake", "message"), rows(">"))
def test_a_key_of_a_config(place: Path, capsys: pytest.CaptureFixture[str], mistake: str, message: str) -> None:
    config = json.loads(json.dumps(CONFIG))
    key, _, value = mistake.partition(": ")
    set_key(config, key, json.loads(value))
    (place / "sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert about_the_config(said(capsys, place, "fit", "--config", "sweep.yaml")) == message


@pytest.mark.parametrize(("text", "message"), rows("|"))
def test_a_file_that_is_no_config(place: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (place / "sweep.yaml").write_text(text.replace("\\t", "\t") + "\n")
    assert about_the_config(said(capsys, place, "plan", "--config", "sweep.yaml")) == message


@pytest.mark.parametrize(("command", "message"), rows("$"))
def test_a_command(place: Path, capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    if "secret" in command and os.access(place / "secret.yaml", os.R_OK):
        pytest.skip("this user may read everything")
    assert said(capsys, place, *shlex.split(command)[1:]) == message
