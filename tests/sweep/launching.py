"""Sweeps to launch, and hands to disturb them with."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import toy
from test_sweep import study

from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.study import train_study
from flops_fit.sweep.launchers import Job, Launcher
from flops_fit.sweep.launchers.inline import InlineLauncher
from flops_fit.sweep.orchestrator import Selection
from flops_fit.train.main import train_directory

ODD = 'it\'s $an odd 100%a "name"'  # a folder that shells, and sbatch's patterns, must leave alone

# Runs that take long enough to be caught in their middle.
SLOW = {"budgets": [3e6], "sizes": [12], "model_cls": toy.Slow, "checkpoint_interval": 0.1}


def prepared(folder: Path, **options: object) -> list[Job]:
    """A planned sweep of which nothing is trained, largest first."""
    planned = study(folder, **options)
    train_study(planned, selection=Selection(only=["no such run"]))
    return Selection().jobs(planned.directory, planned.plan.experiments, 1)


def launched(launcher: Launcher, jobs: Sequence[Job]) -> list[str]:
    """Run jobs; ids in the order they ended."""
    ended: list[str] = []
    launcher.run(jobs, lambda job: bool(ended.append(job.run.run_id)), lambda: None)
    return ended


def inline(jobs: Sequence[Job]) -> None:
    launched(InlineLauncher(lambda run: train_directory(str(run.path))), jobs)


def same_bytes(runs: Sequence[RunDirectory], there: Path) -> bool:
    return all(run.metrics.read_bytes() == (there / run.run_id / "metrics.csv").read_bytes() for run in runs)


@contextmanager
def watched(run: RunDirectory, act: Callable[[int], None]) -> Iterator[list[int]]:
    """Do something once to the process that trains a run, when it has a checkpoint; the process, when it was done."""
    over, met = threading.Event(), []

    def watch() -> None:
        while not over.is_set():
            pid = run.details().get("pid")
            if run.checkpoint.exists() and pid not in (None, os.getpid()) and run.state() is RunState.RUNNING:
                met.append(pid)
                act(pid)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield met
    finally:
        over.set()
        thread.join()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
