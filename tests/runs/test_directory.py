"""A sweep on disk: states, whole results, and what may be added to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flops_fit.errors import DataError, PlanError, RunError
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.runs import directory
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory, beating_elsewhere
from flops_fit.runs.files import CsvLog, exclusive, is_locked, read_json, write_json

BASIS: dict[str, Any] = {"model": "net:Net 0123", "module": {"lr": 0.1, "schedule": "linear"}, "batch_size": 64}


def experiment(budget: float = 1e18, size: int = 64) -> Experiment:
    return Experiment(
        experiment_id=f"C{budget:g}_width{size}_s0",
        compute_budget=budget,
        size_param_value=size,
        num_params=size * 1000,
        num_tokens=round(budget / (6000 * size)),
        flops_per_token=6000 * size,
    )


def plan(*experiments: Experiment) -> dict[str, Any]:
    budgets = sorted({e.compute_budget for e in experiments})
    return SweepPlan(
        experiments=list(experiments),
        size_param="width",
        model_cls_name="Net",
        model_kwargs={},
        compute_budgets=budgets,
    ).to_dict()


def finish(run: RunDirectory, loss: float = 2.5, num_tokens: int = 128) -> None:
    run.create()
    log = CsvLog(run.metrics, ("step", "train_loss", "val_loss"))
    log.append({"step": 1, "train_loss": 3.0})
    log.append({"step": 2, "train_loss": 2.75})
    log.append({"step": 2, "val_loss": loss})
    facts = {"num_tokens": num_tokens, "flops": 1e6, "unique_tokens": 100, "metrics": {"accuracy": 0.5}}
    run.finish(facts | {"loss": loss})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "r1")
    run.create()
    return run


def test_a_run_walks_through_its_states(run: RunDirectory) -> None:
    assert run.state() is RunState.PENDING
    assert run.details() == {}
    run.set_state(RunState.RUNNING, step=7)
    with exclusive(run.lock, "the run"):
        assert run.state() is RunState.RUNNING
    assert run.details()["step"] == 7
    run.set_state(RunState.FAILED, error="boom")
    assert run.state() is RunState.FAILED
    finish(run)
    assert run.state() is RunState.COMPLETED
    assert run.result()["loss"] == 2.5
    assert run.run_id == "r1"


def test_only_a_result_means_completed(run: RunDirectory) -> None:
    finish(run)
    (run.path / "result.json").unlink()
    assert run.state() is RunState.INTERRUPTED
    run.set_state(RunState.FAILED)
    finish(run)
    (run.path / "state.json").unlink()
    assert run.state() is RunState.COMPLETED


def running(run: RunDirectory, **owner: object) -> None:
    here = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
    write_json(run.path / "state.json", {"state": "running"} | here | owner)


def test_a_run_whose_process_is_gone_is_interrupted(run: RunDirectory) -> None:
    running(run)
    with exclusive(run.lock, "the run"):
        assert run.state() is RunState.RUNNING
    assert run.state() is RunState.INTERRUPTED


def test_a_killed_process_that_nobody_took_note_of_does_not_run(run: RunDirectory) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flops_fit.runs.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'the run'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    running(run, pid=process.pid)
    assert run.state() is RunState.RUNNING
    process.kill()
    while run.state() is RunState.RUNNING:  # the system releases the lock in its own time
        time.sleep(0.01)
    os.kill(process.pid, 0)  # not waited for, it keeps its number
    assert run.state() is RunState.INTERRUPTED
    process.communicate()


def test_on_another_machine_the_heartbeat_decides(run: RunDirectory) -> None:
    running(run, host="elsewhere")
    assert run.state() is RunState.RUNNING
    running(run, host="elsewhere", heartbeat=time.time() - 3600)
    assert run.state() is RunState.INTERRUPTED


def test_the_loss_is_the_last_evaluation_in_the_metrics(run: RunDirectory) -> None:
    finish(run, loss=1 / 3)
    values = read_json(run.path / "result.json")
    write_json(run.path / "result.json", values | {"loss": 9.0})
    assert run.result()["loss"] == 1 / 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-10], r"metrics\.csv is cut short"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "is not the file that its result.json was written"),
        (lambda text: text.replace("2.5", "1.5"), "is not the file that its result.json was written"),
        (lambda text: "", r"metrics\.csv is cut short"),
    ],
)
def test_damaged_metrics_are_told_and_never_read(run: RunDirectory, damage: Any, message: str) -> None:
    finish(run)
    run.metrics.write_text(damage(run.metrics.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        run.result()
    assert f"delete {run.path} and run the sweep again: only this run is trained" in str(caught.value)


def test_missing_metrics_are_told(run: RunDirectory) -> None:
    finish(run)
    run.metrics.unlink()
    with pytest.raises(DataError, match=r"metrics\.csv cannot be read"):
        run.result()


def test_a_sweep_is_opened_again_and_extended_by_new_experiments(tmp_path: Path) -> None:
    sweep = SweepDirectory(tmp_path / "out")
    first, second = plan(experiment(), experiment(size=128)), plan(experiment(), experiment(3e18))
    sweep.open(first, BASIS)
    assert sweep.experiments() == [experiment(), experiment(size=128)]
    sweep.open(first, BASIS)
    assert len(sweep.experiments()) == 2
    sweep.open(second, BASIS)
    assert sweep.experiments() == [experiment(), experiment(size=128), experiment(3e18)]
    assert SweepDirectory(sweep.path).plan == sweep.plan
    assert sweep.plan["compute_budgets"] == [1e18, 3e18]
    assert sweep.plan["num_experiments"] == 3
    assert sweep.plan["total_flops"] == pytest.approx(5e18)
    assert sorted(p.name for p in sweep.path.iterdir()) == ["plan.json", "runs"]


def test_another_basis_is_refused_with_what_changed_and_nothing_is_written(tmp_path: Path) -> None:
    sweep = SweepDirectory(tmp_path / "out")
    sweep.open(plan(experiment()), BASIS)
    before = sweep.plan_file.read_bytes()
    changed = BASIS | {"module": {"lr": 0.2, "schedule": "linear"}, "precision": "bf16", "model": "x" * 100}
    with pytest.raises(PlanError, match="holds another sweep") as caught:
        sweep.open(plan(experiment(3e18)), changed)
    message = str(caught.value)
    assert "module.lr: 0.1 -> 0.2" in message
    assert "precision: None -> 'bf16'" in message
    assert "schedule" not in message
    assert "..." in message
    assert "x" * 70 not in message
    assert "choose another output_dir" in message
    assert str(sweep.path) in message
    assert sweep.plan_file.read_bytes() == before


def test_a_plan_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    sweep = SweepDirectory(tmp_path)
    sweep.plan_file.write_text("{")
    with pytest.raises(DataError, match=r"plan\.json cannot be read"):
        sweep.open(plan(experiment()), BASIS)
    assert sweep.plan_file.read_text() == "{"


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(PlanError, match=f"output_dir {folder} cannot be written") as caught:
            SweepDirectory(folder).open(plan(experiment()), BASIS)
        assert "choose another output_dir" in str(caught.value)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PlanError, match="cannot be written: Permission denied"):
        SweepDirectory(tmp_path / "out").open(plan(experiment()), BASIS)


def test_a_folder_that_is_no_sweep_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a sweep directory: it has no plan\.json") as caught:
        SweepDirectory(tmp_path).experiments()
    assert "flops-fit fit --config" in str(caught.value)


def test_names_of_runs_are_safe_in_a_shell_and_on_every_file_system(tmp_path: Path) -> None:
    path = SweepDirectory(tmp_path).run(replace(experiment(), experiment_id="C1e+18_width64_s0_abc").experiment_id)
    assert path.path == tmp_path / "runs" / "C1e+18_width64_s0_abc"
    assert path.checkpoint == path.path / "checkpoints" / "last.ckpt"
    assert json.dumps(str(path.path))


def test_a_state_emptied_by_a_power_cut_is_an_interruption(run: RunDirectory) -> None:
    for content in (b"", b"\0" * 200, b'{"state": "run', b"[]", b'{"state": "resting"}'):
        (run.path / "state.json").write_bytes(content)
        assert run.state() is RunState.INTERRUPTED
        assert "state.json" in run.details()["error"]


def test_a_clock_that_has_jumped_keeps_no_dead_run_alive(run: RunDirectory) -> None:
    for jump in (3600, 1e9, -3600, -1e9):
        running(run, host="elsewhere", heartbeat=time.time() + jump)
        assert run.state() is RunState.INTERRUPTED
    running(run, host="elsewhere", heartbeat="yesterday")
    assert run.state() is RunState.INTERRUPTED
    for jump in (1e9, -1e9):  # on this machine the lock tells
        running(run, heartbeat=time.time() + jump)
        assert run.state() is RunState.INTERRUPTED
        with exclusive(run.lock, "the run"):
            assert run.state() is RunState.RUNNING


@pytest.fixture
def quick_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(directory, "_STALE_SECONDS", 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_hearts")
@pytest.mark.parametrize("jump", [0, 3600, -3600])
def test_a_heart_that_beats_elsewhere_is_seen_by_any_clock(run: RunDirectory, jump: float) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flops_fit.runs.files import write_json\n"
        "print('beating', flush=True)\n"
        "while True:\n"
        f"    beat = {{'state': 'running', 'pid': 7, 'host': 'elsewhere', 'heartbeat': time.time() + {jump}}}\n"
        "    write_json(Path(sys.argv[1]), beat); time.sleep(0.05)\n"
    )
    running(run, host="elsewhere", pid=7, heartbeat=time.time() + jump)
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path / "state.json")], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"beating\n"
        with pytest.raises(RunError, match=r"in use by process 7 on elsewhere"), run.claimed():
            pass
        process.kill()
    with run.claimed():  # and one that has stopped is not waited for
        pass


@pytest.mark.usefixtures("quick_hearts")
def test_many_dead_runs_are_watched_together(tmp_path: Path) -> None:
    runs = [RunDirectory(tmp_path / f"r{i}") for i in range(20)]
    for run in runs:
        run.create()
        running(run, host="elsewhere", heartbeat=time.time() + 3600)
    assert beating_elsewhere(runs) == set()  # one by one it would take ten seconds


def test_what_is_noted_of_a_run_is_in_its_result(run: RunDirectory) -> None:
    run.set_state(RunState.RUNNING, step=3)
    run.note("went on from the previous checkpoint")
    assert run.details()["step"] == 3
    run.set_state(RunState.RUNNING, step=4)
    run.note("and again")
    run.end(RunState.INTERRUPTED, error="stopped")
    finish(run)
    assert run.result()["notes"] == ["went on from the previous checkpoint", "and again"]


def test_a_claim_clears_what_a_killed_writer_left(run: RunDirectory) -> None:
    leftovers = [run.path / ".state.json.123.tmp", run.checkpoint.parent / ".last.ckpt.123.tmp"]
    for file in leftovers:
        file.write_text("half")
    run.previous_checkpoint.write_text("old")
    with run.claimed():
        assert not any(file.exists() for file in leftovers)
        finish(run)
    assert not run.previous_checkpoint.exists()


def test_one_orchestrator_a_sweep(tmp_path: Path) -> None:
    sweep = SweepDirectory(tmp_path / "out")
    refusal = pytest.raises(RunError, match=rf"sweep {sweep.path} is in use by process {os.getpid()} on")
    with sweep.claimed(), refusal, sweep.claimed():
        pass
    with sweep.claimed():
        pass


def test_a_forked_process_does_not_keep_the_lock_of_one_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from flops_fit.runs.files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'the run'):\n"
        "    if os.fork() == 0: time.sleep(20); os._exit(0)\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert is_locked(lock)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10  # its child lets go of it when it first runs, which may be a moment later
        while is_locked(lock) and time.monotonic() < deadline:
            time.sleep(0.01)
        still_locked = is_locked(lock)
        os.killpg(process.pid, signal.SIGKILL)
    assert not still_locked
