"""Every run has loggers of its own, named after it; a resumed run goes on in them, and none of them costs a run."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from flops_fit.errors import PlanError, RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import CsvLog
from flops_fit.train.loggers import build_loggers, check_loggers, close_loggers, log_row

EXPERIMENT = Experiment(
    experiment_id="C1e+06_width8_s0_abcd",
    compute_budget=1e6,
    size_param_value=8,
    num_params=1200,
    num_tokens=640,
    flops_per_token=6.0,
    steps=10,
)


class Plain(Logger):
    """A stranger: takes a name, a group and tags, keeps what it is told."""

    def __init__(
        self, name: str = "", group: str = "", tags: dict[str, str] | None = None, broken_at: int = -1
    ) -> None:
        super().__init__()
        self._name, self.group, self.tags, self.broken_at = name, group, tags, broken_at
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.values: dict[str, Any] = {}
        self.status = ""

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step == self.broken_at:
            raise ConnectionError("the server is away")
        self.rows.append((step, metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.values = dict(params)

    def finalize(self, status: str) -> None:
        self.status = status


class Unwilling(Plain):
    """Cannot be started."""

    def __init__(self) -> None:
        raise ConnectionError("no API key")


PLAIN = f"{__name__}.Plain"


def run_in(folder: Path) -> RunDirectory:
    run = RunDirectory(folder / "runs" / EXPERIMENT.experiment_id)
    run.create()
    return run


def build(run: RunDirectory, *specs: dict[str, Any]) -> list[Any]:
    check_loggers(specs)
    return build_loggers(specs, run, EXPERIMENT, "my_sweep")


def train(run: RunDirectory, loggers: list[Any], steps: range) -> None:
    """Rows as the engine writes them."""
    log = CsvLog(run.metrics, ("step", "num_tokens", "train_loss", "val_loss"))
    for step in steps:
        row = {"step": step, "num_tokens": 64 * step, "train_loss": 1 / step}
        log.append(row)
        log_row(loggers, row, step)


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_stranger_is_told_what_its_constructor_takes(tmp_path: Path) -> None:
    (made,) = build(run_in(tmp_path), {"class_path": PLAIN})
    assert (made.name, made.group) == (EXPERIMENT.experiment_id, "my_sweep")
    assert made.tags == {"C": "1e+06", "N": "1.2k", "seed": "0"}
    assert made.values == EXPERIMENT.to_dict()


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    arguments = {"name": "mine", "tags": {"a": "b"}, "group": None}
    (made,) = build(run_in(tmp_path), {"class_path": PLAIN, "init_args": arguments})
    assert (made.name, made.tags, made.group) == ("mine", {"a": "b"}, "my_sweep")


def test_rows_reach_every_logger_without_what_is_missing(tmp_path: Path) -> None:
    loggers = build(run_in(tmp_path), {"class_path": PLAIN}, {"class_path": PLAIN})
    log_row(loggers, {"step": 3, "num_tokens": 192, "train_loss": 0.5, "val_loss": None, "lr": ""}, 3)
    for each in loggers:
        assert each.rows == [(3, {"num_tokens": 192.0, "train_loss": 0.5})]
    close_loggers(loggers, "success")
    assert [each.status for each in loggers] == ["success"] * 2


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = {"class_path": PLAIN, "init_args": {"broken_at": 2}}
    loggers = build(run_in(tmp_path), broken, {"class_path": PLAIN})
    failing, healthy = loggers
    train(run_in(tmp_path), loggers, range(1, 5))
    assert [step for step, _ in failing.rows] == [1]
    assert [step for step, _ in healthy.rows] == [1, 2, 3, 4]
    assert loggers == [healthy]
    assert "Plain is left out from step 2 on: ConnectionError: the server is away" in caplog.text
    failing.finalize = None
    close_loggers([failing], "success")
    assert "could not be closed" in caplog.text


def test_a_logger_that_cannot_be_started_is_told_at_once(tmp_path: Path) -> None:
    specs = [{"class_path": PLAIN}, {"class_path": f"{__name__}.Unwilling"}]
    with pytest.raises(RunError, match="the logger Unwilling cannot be started: ConnectionError: no API key"):
        build_loggers(specs, run_in(tmp_path), EXPERIMENT, "my_sweep")


def test_csv_files_lie_in_the_run_and_a_resumed_run_appends(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    loggers = build(run, {"class_path": "CSVLogger"})
    train(run, loggers, range(1, 6))
    del loggers  # killed: nothing was closed
    CsvLog(run.metrics, ("step", "num_tokens", "train_loss", "val_loss")).rewind(3)
    again = build(run, {"class_path": "CSVLogger"})
    train(run, again, range(4, 8))
    log_row(again, {"step": 7, "val_loss": 0.25}, 7)
    close_loggers(again, "success")
    rows = rows_of(run.path / "loggers" / "CSVLogger" / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6", "7", "7"]
    assert [float(row["train_loss"]) for row in rows[:7]] == [1 / step for step in range(1, 8)]
    assert rows[-1]["val_loss"] == "0.25"
    assert len(rows_of(run.metrics)) == 7, "the run's own file is another"


def test_a_folder_of_the_users_own_has_one_for_every_run(tmp_path: Path) -> None:
    loggers = build(run_in(tmp_path), {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}})
    train(run_in(tmp_path), loggers, range(1, 3))
    assert (tmp_path / "logs" / "my_sweep" / EXPERIMENT.experiment_id / "metrics.csv").is_file()


def test_two_of_a_kind_do_not_share_a_folder(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    first, second = build(run, {"class_path": "CSVLogger"}, {"class_path": "CSVLogger"})
    assert first.log_dir != second.log_dir
    assert Path(second.log_dir).parent.name.startswith("CSVLogger-2") or "CSVLogger-2" in second.log_dir


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("CSVLogger", "loggers is str, not a list"),
        ({"class_path": "CSVLogger"}, "loggers is dict, not a list"),
        (["CSVLogger"], "loggers[0] is 'CSVLogger', not a mapping with class_path"),
        ([{"class_path": "CSVLogger", "args": {}}], "loggers[0] has the key 'args'\n\nhint: did you mean init_args?"),
        ([{"class_path": "CSVLoger"}], "has no CSVLoger\n\nhint: did you mean CSVLogger?"),
        ([{"class_path": "no_such_package.Logger"}], "no_such_package.Logger cannot be imported"),
        ([{"class_path": "torch.nn.ReLU"}], "torch.nn.ReLU is not a Logger"),
        (
            [{"class_path": "CSVLogger", "init_args": {"prefx": "a"}}],
            "hint: did you mean prefix?",
        ),
        ([{"class_path": "WandbLogger", "init_args": {"projct": "a"}}], "hint: did you mean project?"),
        (
            [{"class_path": "CSVLogger", "init_args": ["a"]}],
            "loggers[0]: init_args is ['a'], not a mapping",
        ),
        ([{"class_path": "CSVLogger", "init_args": {"prefix": Path}}], "loggers[0]: init_args must be plain values"),
        (
            [{"class_path": "CSVLogger", "init_args": {"save_dir": "a", "version": "b"}}],
            "would give all runs one folder",
        ),
        ([{"class_path": "MLFlowLogger", "init_args": {"run_id": "a"}}], "run_id would give all runs one record"),
        ([{"class_path": "WandbLogger", "init_args": {"id": "a"}}], "id would give all runs one record"),
    ],
)
def test_what_cannot_be_a_logger_is_told_before_training(
    specs: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit.train.loggers.find_spec", lambda package: object())
    with pytest.raises(PlanError) as caught:
        check_loggers(specs)
    assert message in str(caught.value)


def test_an_instance_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlanError, match="is an instance of CSVLogger, and every run needs one of its own"):
        check_loggers([CSVLogger(tmp_path)])
    monkeypatch.setattr("flops_fit.train.loggers.find_spec", lambda package: None)
    with pytest.raises(PlanError, match="WandbLogger needs the package wandb, which is not installed") as caught:
        check_loggers([{"class_path": "lightning.pytorch.loggers.WandbLogger"}])
    assert "pip install wandb" in str(caught.value)


def test_none_is_none(tmp_path: Path) -> None:
    check_loggers(None)
    assert build_loggers(None, run_in(tmp_path), EXPERIMENT, "my_sweep") == []
    assert not (run_in(tmp_path).path / "loggers").exists()


def test_no_version_is_ever_chosen_by_listing_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    run = run_in(tmp_path)
    for _ in range(2):
        (made,) = build(run, {"class_path": "CSVLogger"})
        assert made.version == ""
        assert Path(made.log_dir) == run.path / "loggers" / "CSVLogger"


# Those of other houses, each in a process of its own: they change the process they run in ----------------------------

_PROGRAM = """
import json, sys
from pathlib import Path
from test_loggers import build, run_in, train, close_loggers, CsvLog
folder, spec = Path(sys.argv[1]), json.loads(sys.argv[2])
run = run_in(folder)
for part, status in enumerate(("interrupted", "success")):
    loggers = build(run, spec)
    train(run, loggers, range(1 + 3 * part, 6 + 3 * part))
    close_loggers(loggers, status)
    if not part:
        CsvLog(run.metrics, ("step", "num_tokens", "train_loss", "val_loss")).rewind(3)
"""


def interrupted_and_resumed(folder: Path, spec: dict[str, Any]) -> Path:
    """Where the files of a logger lie whose run was interrupted after step 5, saved at 3, and resumed to 8."""
    command = [sys.executable, "-c", _PROGRAM, str(folder), json.dumps(spec)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run_in(folder).path / "loggers"


@pytest.mark.slow
def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    where = interrupted_and_resumed(tmp_path, {"class_path": "TensorBoardLogger"})
    program = (
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator as E; import sys;"
        "e = E(sys.argv[1]); e.Reload(); print([s.step for s in e.Scalars('train_loss')])"
    )
    command = [sys.executable, "-c", program, str(where / "TensorBoardLogger")]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == str(list(range(1, 9)))


@pytest.mark.slow
def test_wandb_gets_one_record_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    where = interrupted_and_resumed(tmp_path, {"class_path": "WandbLogger", "init_args": {"offline": True}})
    identity = json.loads((where / "WandbLogger" / "identity.json").read_text())["id"]
    parts = sorted((where / "WandbLogger" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert all(part.name.endswith(identity) for part in parts)
    written = (parts[0] / f"run-{identity}.wandb").read_bytes()
    assert EXPERIMENT.experiment_id.encode() in written
    assert b"my_sweep" in written
    assert b"C=1e+06" in written


@pytest.mark.slow
def test_mlflow_gets_one_run_with_its_parent_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    arguments = {"tracking_uri": f"file:{tmp_path / 'ml'}", "tags": {"mlflow.parentRunId": "parent", "seed": "mine"}}
    where = interrupted_and_resumed(tmp_path, {"class_path": "MLFlowLogger", "init_args": arguments})
    identity = json.loads((where / "MLFlowLogger" / "identity.json").read_text())["id"]
    (record,) = [file.parent for file in (tmp_path / "ml").glob("*/*/meta.yaml")]
    assert record.name == identity
    tags = {file.name: file.read_text() for file in (record / "tags").iterdir()}
    expected = {"mlflow.parentRunId": "parent", "mlflow.runName": EXPERIMENT.experiment_id, "sweep": "my_sweep"}
    assert expected | {"seed": "mine", "C": "1e+06"} == {k: tags[k] for k in (*expected, "seed", "C")}
    steps = [int(line.split()[-1]) for line in (record / "metrics" / "train_loss").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 9))
    assert (record / "params" / "num_params").read_text() == "1200"
