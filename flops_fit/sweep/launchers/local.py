"""Runs in processes of this machine."""

from __future__ import annotations

import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from flops_fit.errors import DataError, RunError
from flops_fit.runs.directory import RunState
from flops_fit.sweep.launchers.cards import CardBook, Peak
from flops_fit.sweep.launchers.job import Job, Launcher, inherited_environment

_POLL_SECONDS = 0.5
# Apple's libraries do not survive a fork; there every run is a fresh process.
_CAN_FORK = platform.system() != "Darwin"


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
        waiting, running, stop = list(reversed(jobs)), _Running(self.entry, self.threads), False
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
    """What a completed run has used of its device's memory, where that was recorded."""
    with suppress(DataError):
        memory = job.run.result().get("peak_memory_bytes")
        return Peak(job.num_params, int(memory)) if memory else None
    return None


class _Running:
    """The processes that train now: forked ones of single-device runs, fresh ones of others.

    Args:
        entry: ``module:function`` that trains the run in a folder.
        threads: Cap for the thread pools of a run.
    """

    def __init__(self, entry: str, threads: int) -> None:
        self._entry, self._environment = entry, inherited_environment(threads)
        self._server: _ForkServer | None = None
        self._forked: dict[str, Job] = {}
        self._fresh: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}

    def __len__(self) -> int:
        return len(self._forked) + len(self._fresh)

    def start(self, job: Job, lent: dict[str, str]) -> None:
        """Start a job, with variables of its own."""
        if job.devices == 1 and _CAN_FORK:
            self._server = self._server or _ForkServer(self._entry, self._environment)
            self._forked[str(job.folder)] = job
            self._server.start(str(job.folder), lent)
            return
        with open(job.run.log, "ab") as log:
            process = subprocess.Popen(job.command, stdout=log, stderr=log, env=self._environment | lent)
        self._fresh[str(job.folder)] = job, process

    def ended(self, timeout: float) -> list[Job]:
        """Jobs whose process has ended, waiting at most ``timeout`` seconds for the first."""
        ended: list[Job] = []
        if self._forked:
            assert self._server is not None
            ended += [self._forked.pop(folder) for folder in self._server.ended(timeout)]
        else:
            time.sleep(timeout)
        for folder, (job, process) in list(self._fresh.items()):
            if process.poll() is not None:
                del self._fresh[folder]
                ended.append(job)
        return ended

    def close(self) -> None:
        """Ask the runs still going to save and stop, and wait for them."""
        for _, process in self._fresh.values():
            process.terminate()
        for _, process in self._fresh.values():
            process.wait()
        if self._server is not None:
            self._server.close()


class _ForkServer:
    """The parent's end of ``python -m flops_fit.sweep.forkserver``: folders in, lines of JSON out."""

    def __init__(self, entry: str, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flops_fit.sweep.forkserver", entry],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._buffer = b""

    def start(self, folder: str, environment: dict[str, str]) -> None:
        """Fork a process for the run in a folder, with variables of its own."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"run": folder, "environment": environment}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def ended(self, timeout: float) -> list[str]:
        """Folders of the runs whose process has ended, waiting at most ``timeout`` seconds for the first."""
        assert self._process.stdout is not None
        if self._selector.select(timeout):
            chunk = self._process.stdout.read()
            if chunk == b"":
                raise self._died()
            self._buffer += chunk or b""
        *lines, self._buffer = self._buffer.split(b"\n")
        return [str(json.loads(line)["run"]) for line in lines]

    def _died(self) -> RunError:
        code = self._process.wait()
        return RunError(f"the process that starts runs ended with code {code}", hint="run the same command again")

    def close(self) -> None:
        """End the server; runs still going are asked to save and stop."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._selector.close()
