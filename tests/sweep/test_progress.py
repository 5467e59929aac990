"""How far a sweep is can be told from its files alone: speed, time left, and what is wrong with single runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from on_disk import METRICS, STEPS, TIMING, complete, experiments, fail, train, write_sweep

from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import CsvLog, exclusive
from flops_fit.sweep.progress import Meter, progress


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDirectory:
    return write_sweep(tmp_path)


def test_a_running_run_has_a_speed_and_an_end(sweep: SweepDirectory) -> None:
    planned = sweep.experiments()
    e = planned[0]
    run = sweep.run(e.experiment_id)
    train(run, e, 0.4, seconds=0.5)
    with exclusive(run.lock, "the run"):
        run.set_state(RunState.RUNNING)
        now = progress(sweep, planned)
    told = now.runs[0]
    assert told.state is RunState.RUNNING
    assert told.done_flops / e.flops == pytest.approx(0.4, rel=1e-3)
    assert told.tokens_per_second == pytest.approx(e.num_tokens / STEPS / 0.5, rel=0.01)
    assert told.seconds_left == pytest.approx(0.6 * STEPS * 0.5, rel=0.01)
    assert told.loss == pytest.approx(3.0 + 1 / 40)
    # One run at a time, at this run's speed in FLOPs.
    left = now.total_flops - now.done_flops
    assert now.seconds_left == pytest.approx(left / (told.tokens_per_second * e.flops_per_token), rel=1e-6)


def test_the_clock_of_a_resumed_run_starts_anew(sweep: SweepDirectory) -> None:
    e = sweep.experiments()[0]
    run = sweep.run(e.experiment_id)
    train(run, e, 0.1, seconds=50.0)  # slow before, on another machine
    metrics, timing = CsvLog(run.metrics, METRICS), CsvLog(run.timing, TIMING)
    for step in range(11, 16):
        tokens = round(e.num_tokens * step / STEPS)
        metrics.append({"step": step, "num_tokens": tokens, "lr": 0.1, "train_loss": 2.0})
        timing.append({"step": step, "unix_time": 2e9, "seconds": 0.1 * (step - 10)})
    with exclusive(run.lock, "the run"):
        run.set_state(RunState.RUNNING)
        told = progress(sweep, [e]).runs[0]
    assert told.tokens_per_second == pytest.approx(e.num_tokens / STEPS / 0.1, rel=0.01)


def test_of_a_long_log_the_end_is_enough(sweep: SweepDirectory) -> None:
    e = sweep.experiments()[0]
    run = sweep.run(e.experiment_id)
    run.create()
    rows = [{"step": i, "num_tokens": i, "lr": 0.1, "train_loss": 2.0} for i in range(1, 5001)]
    CsvLog(run.metrics, METRICS).append(*rows)
    CsvLog(run.timing, TIMING).append(*({"step": r["step"], "unix_time": 1, "seconds": r["step"] / 10} for r in rows))
    with open(run.metrics, "ab") as file:
        file.write(b"5001,50")  # a row that is being written
    with exclusive(run.lock, "the run"):
        run.set_state(RunState.RUNNING)
        told = progress(sweep, [e]).runs[0]
    assert told.done_flops == pytest.approx(min(5000, e.num_tokens) * e.flops_per_token)
    assert told.tokens_per_second == pytest.approx(10)


def test_one_run_with_damaged_files_does_not_hide_the_others(sweep: SweepDirectory) -> None:
    planned = sweep.experiments()
    for e in planned[:3]:
        complete(sweep.run(e.experiment_id), e)
    metrics = sweep.run(planned[1].experiment_id).metrics
    metrics.write_bytes(metrics.read_bytes()[:-4])
    fail(sweep.run(planned[3].experiment_id), "RuntimeError: no")
    (sweep.run(planned[4].experiment_id)).create()
    sweep.run(planned[4].experiment_id).metrics.write_bytes(b"\xff\xfe not, a log\n")
    sweep.run(planned[4].experiment_id).end(RunState.INTERRUPTED, error="stopped")
    now = progress(sweep, planned)
    assert [r.state.value for r in now.runs[:6]] == ["completed"] * 3 + ["failed", "interrupted", "pending"]
    assert "cut short" in now.runs[1].note
    assert [r.loss is None for r in now.runs[:3]] == [False, True, False]
    assert now.runs[0].tokens_per_second == 5000.0
    assert "RuntimeError: no" in now.runs[3].note
    assert now.seconds_left is None  # nothing runs, and nothing was seen to


def test_time_left_counts_what_lies_between_runs_once_one_has_ended(sweep: SweepDirectory) -> None:
    planned = experiments()
    meter = Meter(sweep, planned)
    assert meter.read().seconds_left is None
    complete(sweep.run(planned[0].experiment_id), planned[0])
    now = meter.read()
    assert now.seconds_left is not None
    assert now.seconds_left > 0
