"""Ways to start runs. Whatever starts it, a run is one directory, and its state on disk is the truth."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flops_fit.errors import RunError
from flops_fit.runs.directory import RunDirectory, RunState

# What a fit of this process may have exported, or a cluster; a child must not take itself for a rank of it.
_NOT_INHERITED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run to start.

    Attributes:
        run: Its directory.
        flops: Its cost, for ordering and progress [FLOPs].
        devices: Processes that train it together.
    """

    run: RunDirectory
    flops: float
    devices: int = 1


class Launcher(Protocol):
    """Starts jobs and says when each has ended."""

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        """Run all jobs, in order as far as there is room.

        Args:
            jobs: What to run.
            on_done: Called when a job's process has ended; True asks to start no more.
            poll: Called now and then, for progress.
        """


class InlineLauncher:
    """Runs in this process, one after the other.

    Args:
        train: Trains one run in its directory.
    """

    def __init__(self, train: Callable[[RunDirectory], object]) -> None:
        self._train = train

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        for job in jobs:
            poll()
            self._train(job.run)
            if job.run.state() is RunState.INTERRUPTED:
                raise KeyboardInterrupt
            if on_done(job):
                return


class LocalLauncher:
    """Runs in processes of this machine, threads capped so that together they use the cores once.

    Single-device runs are forked from a server that has torch loaded (0.06 s instead of 2.6 s a start); a run on
    several devices is a fresh process, because it starts its own ranks.

    Args:
        entry: ``module:function`` that trains the run in a folder, for the server to import.
        slots: Runs at a time; None for as many as the GPUs, or else the cores, have room for.
        devices: Processes, or GPUs, that train one run.
        gpus: Their ids, as CUDA_VISIBLE_DEVICES names them; each slot sees only its own. Without any, none is hidden.
    """

    def __init__(self, entry: str, slots: int | None = None, *, devices: int = 1, gpus: Sequence[str] = ()) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        groups = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
        self.entry, self.slots = entry, slots or len(groups) or max(1, cores // devices)
        self.threads = max(1, cores // (self.slots * devices))
        self._lent = [{"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} if groups else {} for i in range(self.slots)]

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        waiting, stop = list(jobs), False
        free = list(self._lent)
        running: dict[str, tuple[Job, dict[str, str]]] = {}
        server = _ForkServer(self.entry, self._environment(self.threads)) if any(j.devices == 1 for j in jobs) else None
        fresh: dict[str, subprocess.Popen[bytes]] = {}
        try:
            while running or (waiting and not stop):
                while waiting and not stop and free:
                    job, lent = waiting.pop(0), free.pop(0)
                    running[job.run.run_id] = job, lent
                    if job.devices == 1 and server is not None:
                        server.start(job.run, lent)
                    else:
                        fresh[job.run.run_id] = self._start_fresh(job, lent)
                if server is None:
                    time.sleep(_POLL_SECONDS)
                ended = server.ended(_POLL_SECONDS) if server is not None else []
                ended += [name for name, process in fresh.items() if process.poll() is not None]
                for name in ended:
                    fresh.pop(name, None)
                    job, lent = running.pop(name)
                    free.append(lent)
                    stop = on_done(job) or stop
                poll()
        finally:
            for process in fresh.values():
                process.terminate()
            for process in fresh.values():
                process.wait()
            if server is not None:
                server.close()

    def _start_fresh(self, job: Job, lent: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(job.run.log, "ab") as log:
            command = [sys.executable, "-m", "flops_fit", "run", str(job.run.path)]
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment(self.threads) | lent)

    @staticmethod
    def _environment(threads: int) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        return kept | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


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

    def start(self, run: RunDirectory, environment: dict[str, str]) -> None:
        """Fork a process for a run, with variables of its own."""
        assert self._process.stdin is not None
        order = {"run": str(Path(run.path).resolve()), "environment": environment}
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def ended(self, timeout: float) -> list[str]:
        """Ids of the runs whose process has ended, waiting at most ``timeout`` seconds for the first."""
        assert self._process.stdout is not None
        if self._selector.select(timeout):
            chunk = self._process.stdout.read()
            if chunk == b"":
                raise self._died()
            self._buffer += chunk or b""
        *lines, self._buffer = self._buffer.split(b"\n")
        return [Path(json.loads(line)["run"]).name for line in lines]

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
