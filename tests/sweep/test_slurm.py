"""Slurm, a real one on loopback: time limits, cancelling, tasks that outlive whoever submitted them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from launching import ODD, SLOW, launched, prepared, same_bytes, watched
from test_sweep import study

from flops_fit.errors import PlanError, RunError
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.study import train_study
from flops_fit.sweep.config import SlurmOptions
from flops_fit.sweep.launchers import Job
from flops_fit.sweep.launchers.slurm import SlurmLauncher
from flops_fit.sweep.launchers.slurm_script import batch_script, sbatch_options


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def queue() -> list[list[str]]:
    """Job id and state of every task."""
    return [line.split() for line in asked("squeue", "-h", "-r", "-o", "%A %T").splitlines()]


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> None:
    """Wait for tasks of the test before: a run is complete a moment before its task is."""
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm")
        while queue():
            time.sleep(0.1)


def launched_in_two_attempts(launcher: SlurmLauncher, job: Job) -> dict[str, float]:
    """Run a job whose time is up in its middle; the tasks that were queued again, and when."""
    ended: list[str] = []
    requeued: dict[str, float] = {}

    def poll() -> None:
        for task, state in queue() if met else []:
            if state == "PENDING" and time.monotonic() - requeued.setdefault(task, time.monotonic()) > 3:
                # Slurm lets it wait two minutes, and a node refuses what comes back in the same second.
                subprocess.run(["scontrol", "update", f"jobid={task}", "StartTime=now"], check=False)

    with watched(job.run, lambda pid: asked("scancel", "--signal=USR1", "--batch", queue()[0][0])) as met:
        launcher.run([job], lambda job: bool(ended.append(job.run.run_id)), poll)
    assert met, "the run ended before its time was up"
    assert ended == [job.run.run_id]
    assert job.run.state() is RunState.COMPLETED, job.run.log.read_text()
    return requeued


def submissions(folder: Path) -> int:
    return len(list((folder / "slurm").glob("*/run.sh")))


# --- what sbatch is given


def test_options_become_flags_and_the_users_own_come_last() -> None:
    options = SlurmOptions(
        partition="gpu", time_limit="2h", cpus=4, memory="16G", extra=["--account=lab", "--nodes=3"], setup=["x"]
    )
    assert sbatch_options(options, devices=2, num_nodes=1, gpus=2) == [
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=8",
        "--gres=gpu:2",
        "--partition=gpu",
        "--time=120:00",
        "--mem=16G",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@90",
        "--account=lab",
        "--nodes=3",
    ]


def test_a_run_on_several_nodes_has_a_task_a_device() -> None:
    options = SlurmOptions(cpus=4)
    flags = sbatch_options(options, devices=2, num_nodes=3, gpus=0)
    assert flags[:3] == ["--nodes=3", "--ntasks-per-node=2", "--cpus-per-task=4"]
    paths = {"runs_file": Path("/a"), "working_directory": Path("/b")}
    assert "srun " in batch_script(**paths, submitted_as="", options=options, num_nodes=3)
    assert "srun " not in batch_script(**paths, submitted_as="", options=options, num_nodes=1)


def test_the_script_is_a_script_whatever_the_names(tmp_path: Path) -> None:
    odd = Path("/tmp") / ODD
    script = batch_script(
        runs_file=odd / "runs.txt",
        working_directory=odd,
        submitted_as="sbatch 'two\nlines'",
        options=SlurmOptions(setup=["module load cuda", "export A=1"]),
        num_nodes=1,
    )
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "\nmodule load cuda\nexport A=1\n" in script


def test_a_line_break_in_a_path_is_refused(slurm: Path, tmp_path: Path) -> None:
    jobs = prepared(tmp_path / "two\nlines", budgets=[1e6], sizes=[4])
    with pytest.raises(PlanError, match="line break"):
        launched(SlurmLauncher(SlurmOptions(), tmp_path / "slurm"), jobs)


# --- the cluster


@pytest.mark.slow
@pytest.mark.slurm
def test_what_sbatch_refuses_is_said_in_its_words(slurm: Path, tmp_path: Path) -> None:
    jobs = prepared(tmp_path, budgets=[1e6], sizes=[4])
    with pytest.raises(RunError, match=r"sbatch refused: .*invalid partition specified: nowhere"):
        launched(SlurmLauncher(SlurmOptions(partition="nowhere"), tmp_path / "slurm"), jobs)
    assert queue() == []


@pytest.mark.slow
@pytest.mark.slurm
def test_a_run_whose_time_is_up_is_queued_again_and_goes_on_to_the_same_bytes(
    slurm: Path, undisturbed: Path, tmp_path: Path
) -> None:
    jobs = prepared(tmp_path / ODD, **SLOW)
    requeued = launched_in_two_attempts(SlurmLauncher(SlurmOptions(), tmp_path / ODD / "slurm"), jobs[0])
    assert requeued
    assert jobs[0].run.state() is RunState.COMPLETED
    assert submissions(tmp_path / ODD) == 1
    assert same_bytes([jobs[0].run], undisturbed)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_run_that_is_cancelled_saves_and_is_not_queued_again(slurm: Path, tmp_path: Path) -> None:
    jobs = prepared(tmp_path, **SLOW)
    with watched(jobs[0].run, lambda pid: asked("scancel", queue()[0][0])) as met:
        assert launched(SlurmLauncher(SlurmOptions(), tmp_path / "slurm"), jobs) == [jobs[0].run.run_id]
    assert met
    assert queue() == []
    assert jobs[0].run.details()["state"] == "interrupted"
    assert "stopped at step" in jobs[0].run.details()["error"]


@pytest.mark.slow
@pytest.mark.slurm
def test_an_interrupt_leaves_the_tasks_in_the_queue_and_says_so(
    slurm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = prepared(tmp_path, **SLOW | {"budgets": [1e6], "sizes": [4, 12]})
    launcher = SlurmLauncher(SlurmOptions(), tmp_path / "slurm", 1)

    def interrupt() -> None:
        if len(queue()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.run(jobs, lambda _: False, interrupt)
    assert "2 runs stay in Slurm's queue and go on" in caplog.text
    assert SlurmLauncher(SlurmOptions(), tmp_path / "slurm", 1).going_on() == {job.run.run_id for job in jobs}
    cancel = caplog.text.partition("`")[2].partition("`")[0]
    asked(*cancel.split())
    while queue():
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.slurm
def test_the_same_call_after_a_kill_waits_for_its_tasks_and_submits_only_what_is_missing(
    slurm: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    planned = {"budgets": [1e6], "sizes": [8, 12], "model_cls": toy.Slow, "launcher": "slurm", "jobs": 1}
    script = tmp_path / "sweep.py"
    here = [str(Path(__file__).parent), str(Path(toy.__file__).parent)]
    script.write_text(
        f"import sys; sys.path[:0] = {here}\nfrom pathlib import Path\nimport toy\nfrom test_sweep import study\n"
        "from flops_fit.study import train_study\n\nif __name__ == '__main__':\n"
        f"    options = {planned | {'model_cls': None}}\n    options['model_cls'] = toy.Slow\n"
        f"    train_study(study(Path({str(folder)!r}), **options))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while [state for _, state in queue()] != ["PENDING", "RUNNING"]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    outcome = train_study(study(folder, **planned | {"sizes": [8, 10, 12]}))
    assert outcome.counts == {RunState.COMPLETED: 3}
    assert [len(f.read_text().splitlines()) for f in sorted(folder.glob("slurm/*/runs.txt"))] == [2, 1]


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.ddp
def test_a_run_on_two_nodes_saves_and_goes_on_too(slurm: Path, undisturbed: Path, tmp_path: Path) -> None:
    trainer = {"accelerator": "cpu", "strategy": "ddp", "num_nodes": 2}
    jobs = prepared(tmp_path, **SLOW, trainer=trainer, launcher="slurm")
    options = SlurmOptions(setup=["export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo"])
    requeued = launched_in_two_attempts(SlurmLauncher(options, tmp_path / "slurm", num_nodes=2), jobs[0])
    assert requeued
    result = jobs[0].run.result()
    assert result["world_size"] == 2
    alone = RunDirectory(undisturbed / jobs[0].run.run_id).result()
    assert result["loss"] == pytest.approx(alone["loss"], rel=1e-4)
