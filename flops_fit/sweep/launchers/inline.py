"""Runs in this process: for tests, and for objects that live nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.sweep.launchers.job import Job, Launcher


class InlineLauncher(Launcher):
    """Runs in this process, one after the other.

    Args:
        train: Trains one run in its directory, and returns the state it ended in where it could.
    """

    def __init__(self, train: Callable[[RunDirectory], object]) -> None:
        self._train = train

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        for job in jobs:
            poll()
            if self._train(job.run) is RunState.INTERRUPTED:
                raise KeyboardInterrupt
            if on_done(job):
                return
