"""What every launcher must do alike, tried on each with real runs in real processes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy
from launching import ODD, SLOW, inline, kill, launched, prepared, same_bytes, watched

from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.sweep.config import RayOptions, SlurmOptions
from flops_fit.sweep.launchers import Job, Launcher
from flops_fit.sweep.launchers.commands import CommandsLauncher
from flops_fit.sweep.launchers.inline import InlineLauncher
from flops_fit.sweep.launchers.local import LocalLauncher
from flops_fit.sweep.launchers.ray import RayLauncher
from flops_fit.sweep.launchers.slurm import SlurmLauncher
from flops_fit.train.main import train_directory

ENTRY = "flops_fit.train.main:train_directory"


class Shell(Launcher):
    """Writes the commands and gives each to a shell: what a user would do by hand."""

    def __init__(self, file: Path) -> None:
        self._commands = CommandsLauncher(file)

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        self._commands.run(jobs, on_done, poll)
        lines = self._commands.file.read_text().splitlines()
        shells = [subprocess.Popen(["bash", "-c", line], stderr=subprocess.DEVNULL) for line in lines]
        for job, shell in zip(jobs, shells, strict=True):
            shell.wait()
            on_done(job)


@dataclass(frozen=True)
class Kind:
    """How a launcher is made for a sweep's folder, training so many runs at a time."""

    name: str
    make: Callable[[Path, int], Launcher]


@pytest.fixture(
    scope="module",
    params=[
        "inline",
        pytest.param("local", marks=pytest.mark.slow),
        pytest.param("commands", marks=pytest.mark.slow),
        pytest.param("slurm", marks=[pytest.mark.slow, pytest.mark.slurm]),
        pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.ray]),
    ],
)
def kind(request: pytest.FixtureRequest) -> Kind:
    name = request.param
    if name == "inline":
        return Kind(name, lambda folder, jobs: InlineLauncher(lambda run: train_directory(str(run.path))))
    if name == "local":
        return Kind(name, lambda folder, jobs: LocalLauncher(ENTRY, jobs))
    if name == "commands":
        return Kind(name, lambda folder, jobs: Shell(folder / "commands.txt"))
    if name == "ray":
        options = RayOptions(address=request.getfixturevalue("ray_address"))
        return Kind(name, lambda folder, jobs: RayLauncher(options, jobs))
    request.getfixturevalue("slurm")
    return Kind(name, lambda folder, jobs: SlurmLauncher(SlurmOptions(), folder / "slurm", jobs))


# --- a sweep with everything in it: a completed run, a failing one, one to be trained

MIXED = {"budgets": [1e6], "sizes": [4, 6, 8], "model_cls": toy.FailingAtSix}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the mixed sweep, trained in this process."""
    folder = tmp_path_factory.mktemp("reference")
    inline(prepared(folder, **MIXED))
    return folder / "runs"


@dataclass(frozen=True)
class Swept:
    """A mixed sweep after a launcher: its runs by width, which ended, and the completed one's files before."""

    runs: dict[int, RunDirectory]
    ended: list[str]
    before: dict[str, int]


def times(run: RunDirectory) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (run.metrics, run.path / "result.json", run.checkpoint)}


@pytest.fixture(scope="module")
def swept(kind: Kind, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp(kind.name) / ODD
    jobs = prepared(folder, **MIXED)
    runs = {int(job.run.run_id.split("width")[1].split("_")[0]): job.run for job in jobs}
    shutil.copytree(reference / runs[4].run_id, runs[4].path, dirs_exist_ok=True)
    before = times(runs[4])
    return Swept(runs, launched(kind.make(folder, 2), jobs), before)


def test_runs_have_the_bytes_of_runs_in_this_process(swept: Swept, reference: Path) -> None:
    assert swept.runs[8].state() is RunState.COMPLETED
    assert same_bytes([swept.runs[8]], reference)


def test_a_failure_is_reported_and_the_others_go_on(swept: Swept) -> None:
    assert sorted(swept.ended) == sorted(run.run_id for run in swept.runs.values())
    assert swept.runs[6].state() is RunState.FAILED
    assert "width 6 always fails" in swept.runs[6].details()["traceback"]


def test_a_completed_run_is_not_touched(swept: Swept) -> None:
    assert times(swept.runs[4]) == swept.before


# --- runs that take their time


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(kind: Kind, undisturbed: Path, tmp_path: Path) -> None:
    if kind.name == "commands":
        pytest.skip("the launcher only writes them")
    jobs = prepared(tmp_path / ODD, **SLOW)
    run = jobs[0].run
    with watched(run, kill) as met:
        if kind.name == "inline":
            subprocess.run(jobs[0].command, check=False)
        else:
            assert launched(kind.make(tmp_path / ODD, 1), jobs) == [run.run_id]
    assert met, "the run ended before it could be killed"
    assert run.state() is RunState.INTERRUPTED
    step = int(run.metrics.read_text().splitlines()[-1].split(",")[0])
    assert 0 < step
    assert launched(kind.make(tmp_path / ODD, 1), jobs) == [run.run_id]
    assert run.state() is RunState.COMPLETED
    assert same_bytes([run], undisturbed)


def test_a_wish_to_stop_is_honoured(kind: Kind, tmp_path: Path) -> None:
    if kind.name == "commands":
        pytest.skip("the launcher starts nothing")
    jobs = prepared(tmp_path / ODD, **SLOW | {"sizes": [8, 10, 12, 14, 16], "budgets": [1e6]})
    ended: list[str] = []

    def stop(job: Job) -> bool:
        ended.append(job.run.run_id)
        return True

    kind.make(tmp_path / ODD, 1).run(jobs, stop, lambda: None)
    states = {job.run.run_id: job.run.state() for job in jobs}
    # A cluster may have started the next one before it could be told.
    assert {name for name, state in states.items() if state is RunState.COMPLETED} == set(ended)
    assert 1 <= len(ended) <= 2
    assert list(states.values()).count(RunState.PENDING) == 5 - len(ended)
