"""The runs table says what is on disk, and never a number that is not whole."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from test_directory import BASIS, experiment, finish, plan

from flops_fit.errors import DataError
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.foreign import read_table
from flops_fit.runs.table import COLUMNS, read_runs, write_runs


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDirectory:
    sweep = SweepDirectory(tmp_path)
    sweep.open(plan(*(experiment(size=size) for size in (16, 32, 64, 128))), BASIS)
    return sweep


def run_of(sweep: SweepDirectory, size: int):
    return sweep.run(experiment(size=size).experiment_id)


def test_every_planned_run_has_a_row_and_only_completed_ones_a_loss(sweep: SweepDirectory) -> None:
    finish(run_of(sweep, 16), loss=2.25)
    run_of(sweep, 32).create()
    run_of(sweep, 32).set_state(RunState.DIVERGED, error="nan", loss=1.0)
    run_of(sweep, 64).create()
    run_of(sweep, 64).set_state(RunState.RUNNING)
    table = read_runs(sweep)
    assert list(table.columns) == [*COLUMNS, "accuracy", "schema_version"]
    assert list(table["state"]) == ["completed", "diverged", "interrupted", "pending"]
    assert table["loss"].tolist()[0] == 2.25
    assert table["loss"].isna().tolist() == [False, True, True, True]
    # What was trained, where it was; what was planned, where it was not.
    assert table["num_tokens"].tolist()[:2] == [128, experiment(size=32).num_tokens]
    assert table["unique_tokens"].tolist()[0] == 100
    assert table["accuracy"].tolist()[0] == 0.5
    assert set(table["loss_unit"]) == {"nats/token"}


def test_all_damaged_runs_are_named_at_once(sweep: SweepDirectory) -> None:
    for size in (16, 32, 64):
        finish(run_of(sweep, size))
    for size in (16, 64):
        metrics = run_of(sweep, size).metrics
        metrics.write_text(metrics.read_text()[:-5])
    with pytest.raises(DataError) as caught:
        read_runs(sweep)
    message = str(caught.value)
    assert all(str(run_of(sweep, size).metrics) in message for size in (16, 64))
    assert str(run_of(sweep, 32).metrics) not in message
    assert "only this run is trained" in message


def test_a_sweep_without_a_completed_run_has_a_table_too(sweep: SweepDirectory) -> None:
    table = read_runs(sweep)
    assert list(table["state"]) == ["pending"] * 4
    assert table["loss"].isna().all()


def test_the_written_table_reads_back_exactly_and_as_anybodys_table(tmp_path: Path) -> None:
    sweep = SweepDirectory(tmp_path)
    experiments = [experiment(budget, size) for budget in (1e18, 3e18) for size in (16, 32, 64)]
    sweep.open(plan(*experiments), BASIS)
    for i, e in enumerate(experiments):
        finish(sweep.run(e.experiment_id), loss=2 + 1 / (3 + i), num_tokens=e.num_tokens)
    table = read_runs(sweep)
    write_runs(sweep, table)
    again = pd.read_csv(sweep.path / "runs.csv", dtype=str)
    assert [float(text) for text in again["loss"]] == table["loss"].tolist()
    assert again["run_id"].tolist() == table["run_id"].tolist()
    foreign = read_table(sweep.path / "runs.csv").frame
    assert foreign["loss"].tolist() == pytest.approx(table["loss"].tolist(), rel=1e-15)
    assert foreign["num_params"].tolist() == table["num_params"].tolist()
