"""Files are whole or absent, whenever the writer is stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disks import fill, mount, small_disk

from flops_fit.errors import DataError, RunError
from flops_fit.runs.files import (
    CsvLog,
    exclusive,
    last_value,
    read_json,
    read_metrics,
    sha256,
    write_atomic,
    write_json,
)


@pytest.mark.parametrize("stopped_at", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    file = tmp_path / "state.json"
    write_atomic(file, "old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, stopped_at, stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(file, "new" * 10_000)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_writes_take_text_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "µ-muP\r\n")
    write_atomic(tmp_path / "b", "µ-muP\r\n".encode())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"\xc2\xb5-muP\r\n"
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_json_carries_its_schema_version(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"loss": 2.5})
    assert read_json(file) == {"schema_version": 1, "loss": 2.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1', "cannot be read"),
        ("", "cannot be read"),
        ("\xff\xfe", "cannot be read"),
        ("[1]", "holds list, not a JSON object"),
        ('{"schema_version": 99}', "written by a newer flops-fit"),
    ],
)
def test_json_that_cannot_be_used_is_told_with_its_path(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=message) as caught:
        read_json(file)
    assert str(file) in str(caught.value)


def test_json_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_json(tmp_path / "plan.json")


def log(folder: Path, steps: int = 4) -> CsvLog:
    log = CsvLog(folder / "metrics.csv", ("step", "train_loss", "val_loss"))
    for step in range(1, steps + 1):
        log.append({"step": step, "train_loss": 1 / step})
    return log


def test_a_log_has_one_header_and_leaves_missing_values_empty(tmp_path: Path) -> None:
    log(tmp_path, 1).append({"step": 1, "val_loss": 0.1 + 0.2})
    text = (tmp_path / "metrics.csv").read_bytes().decode()
    assert text == "step,train_loss,val_loss,schema_version\n1,1.0,,1\n1,,0.30000000000000004,1\n"
    assert float(read_metrics(tmp_path / "metrics.csv")[-1]["val_loss"]) == 0.1 + 0.2


def test_a_rewound_log_that_goes_on_has_the_bytes_of_one_never_stopped(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = log(tmp_path / "whole", 6)
    broken = log(tmp_path, 6)
    with open(broken.path, "a") as file:
        file.write("7,0.1")  # the process was killed in mid-line
    broken.rewind(4)
    for step in (5, 6):
        broken.append({"step": step, "train_loss": 1 / step})
    assert broken.path.read_bytes() == whole.path.read_bytes()


def test_rewinding_cuts_rows_after_the_step_and_half_lines(tmp_path: Path) -> None:
    metrics = log(tmp_path)
    with open(metrics.path, "a") as file:
        file.write("5,0.2,,1\n6,0.")
    metrics.rewind(9)
    assert [row["step"] for row in read_metrics(metrics.path)] == ["1", "2", "3", "4", "5"]
    metrics.rewind(2)
    assert [row["step"] for row in read_metrics(metrics.path)] == ["1", "2"]
    metrics.rewind(0)
    assert metrics.path.read_text() == "step,train_loss,val_loss,schema_version\n"


def test_rewinding_can_ask_for_a_column(tmp_path: Path) -> None:
    metrics = log(tmp_path)
    metrics.append({"step": 4, "val_loss": 0.5})
    metrics.rewind(4, required="train_loss")
    assert [row["train_loss"] for row in read_metrics(metrics.path)][-1] == "0.25"
    assert len(read_metrics(metrics.path)) == 4


@pytest.mark.parametrize("content", ["", "step,tr"])
def test_a_log_killed_within_its_header_starts_again(tmp_path: Path, content: str) -> None:
    metrics = log(tmp_path, 0)
    metrics.path.write_text(content)
    metrics.rewind(3)
    metrics.append({"step": 1, "train_loss": 1.0})
    assert metrics.path.read_text() == "step,train_loss,val_loss,schema_version\n1,1.0,,1\n"


def test_rewinding_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    log(tmp_path, 0).rewind(3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 30, 45, 60])
def test_metrics_cut_short_anywhere_are_told(tmp_path: Path, keep: int) -> None:
    metrics = log(tmp_path)
    metrics.path.write_bytes(metrics.path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"metrics\.csv is cut short") as caught:
        read_metrics(metrics.path)
    assert f"delete {tmp_path}" in str(caught.value)
    assert "only this run is trained" in str(caught.value)


def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom flops_fit.runs.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'run r1'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=rf"run r1 is in use by process {other.pid} on .+ since 20"),
            exclusive(lock, "run r1"),
        ):
            pass
        other.kill()
        other.wait()
    with exclusive(lock, "run r1"):
        pass


def test_numbers_in_json_keep_every_digit(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"loss": 1 / 3, "flops": 1e300, "steps": 2**60})
    values = json.loads((tmp_path / "x.json").read_text())
    assert (values["loss"], values["flops"], values["steps"]) == (1 / 3, 1e300, 2**60)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk with nothing left on it, and two files of before."""
    with small_disk(tmp_path / "disk", "1M") as disk:
        log(disk, 100)
        write_json(disk / "state.json", {"state": "running"})
        fill(disk)
        yield disk


def test_a_full_disk_leaves_the_old_json(full: Path) -> None:
    with pytest.raises(RunError, match=r"state\.json cannot be written: No space left on device") as caught:
        write_json(full / "state.json", {"state": "failed", "traceback": "x" * 9000})
    assert "make room on the disk" in str(caught.value)
    assert read_json(full / "state.json")["state"] == "running"
    assert not list(full.glob("*.tmp"))


def test_a_row_that_a_full_disk_tears_is_taken_back(full: Path) -> None:
    file = log(full, 0)
    rows = len(read_metrics(file.path))
    with suppress(RunError):
        while True:  # until the page it is in is full
            file.append({"step": rows, "train_loss": 1 / 3})
            rows += 1
    assert len(read_metrics(file.path)) == rows
    with pytest.raises(RunError, match=r"metrics\.csv cannot be written: No space left on device"):
        file.append({"step": rows, "train_loss": 1 / 3})
    assert len(read_metrics(file.path)) == rows
    (full / "ballast").unlink()
    file.append({"step": rows, "train_loss": 1 / 3})
    assert len(read_metrics(file.path)) == rows + 1


def test_a_disk_that_cannot_be_written_cannot_be_locked(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1M") as disk:
        mount("-o", "remount,ro", disk)
        refusal = pytest.raises(RunError, match="lock cannot be written: Read-only file system")
        with refusal, exclusive(disk / "lock", "run r1"):
            pass


@pytest.mark.parametrize("text", ["", "step,num_tokens", "step,loss\n1,2\n", "step,num_tokens\n1,\n"])
def test_a_log_without_a_number_has_no_last_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(DataError, match="has no num_tokens"):
        last_value(tmp_path / "metrics.csv", "num_tokens")


def test_the_last_value_is_that_of_the_last_whole_row_that_has_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,num_tokens,val_loss\n1,16,\n2,32,0.5\n3,48,\n4,6")
    assert last_value(tmp_path / "metrics.csv", "num_tokens") == 48
    assert last_value(tmp_path / "metrics.csv", "val_loss") == 0.5
