"""Runs in processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from flops_fit.errors import DataError
from flops_fit.runs.directory import RunState
from flops_fit.sweep.launchers.cards import CardBook, Peak
from flops_fit.sweep.launchers.job import Job, Launcher
from flops_fit.sweep.launchers.processes import Running

_POLL_SECONDS = 0.5


class LocalLauncher(Launcher):
    """Runs in processes of this machine, threads capped so that together they use the cores once.

    Single-device runs are forked from a server that has torch loaded (0.06 s instead of 2.6 s a start); a run on
    several devices is a fresh process, because it starts its own ranks. Jobs start strictly in order: one that finds
    no room waits for it, instead of being overtaken by smaller ones for as long as there are any.

    Args:
        entry: ``module:function`` that trains the run in a folder, for the server to import.
        jobs: Most runs at a time; None for as many as the GPUs, or else the cores, have room for.
        devices: Processes, or GPUs, that train one run.
        cards: The GPUs that runs may use; each run sees only its own. Without it, none is hidden.
    """

    def __init__(self, entry: str, jobs: int | None = None, *, devices: int = 1, cards: CardBook | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        room = max(1, cores // devices) if cards is None else cards.room
        self.entry, self.cards = entry, cards
        self.slots = jobs or room
        self.threads = max(1, cores // (min(self.slots, room) * devices))

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        waiting, running, stop = list(reversed(jobs)), Running(self.entry, self.threads), False
        try:
            while running or (waiting and not stop):
                while waiting and not stop and len(running) < self.slots:
                    lent = self._enter(waiting[-1])
                    if lent is None:
                        break
                    running.start(waiting.pop(), lent)
                for job in running.ended(_POLL_SECONDS):
                    self._leave(job)
                    stop = on_done(job) or stop
                poll()
        finally:
            running.close()

    def _enter(self, job: Job) -> dict[str, str] | None:
        """What a job is lent, as variables; None where there is no room for it now."""
        if self.cards is None:
            return {}
        card = self.cards.enter(job.run.run_id, job.num_params)
        return None if card is None else {"CUDA_VISIBLE_DEVICES": card}

    def _leave(self, job: Job) -> None:
        if self.cards is None:
            return
        self.cards.leave(job.run.run_id)
        if job.run.state() is RunState.COMPLETED:
            peak = peak_of(job)
            if peak is not None:
                self.cards.learn(peak)


def peak_of(job: Job) -> Peak | None:
    """What a completed run has used of its GPU's memory, where it was trained on one."""
    with suppress(DataError):
        result = job.run.result()
        memory = result.get("peak_memory_bytes")
        if memory and str(result.get("device")).startswith("cuda"):
            return Peak(job.num_params, int(memory))
    return None
