"""The processes of this machine that train runs: forked ones of single-device runs, fresh ones of others."""

from __future__ import annotations

import json
import logging
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress

from flops_fit.errors import RunError
from flops_fit.runs.files import is_locked
from flops_fit.sweep.launchers.job import Job, inherited_environment

logger = logging.getLogger(__name__)

# Apple's libraries do not survive a fork; there every run is a fresh process.
_CAN_FORK = platform.system() != "Darwin"
_SAVING_SECONDS = 60.0


class Running:
    """The processes that train now.

    Args:
        entry: ``module:function`` that trains the run in a folder.
        threads: Cap for the thread pools of a run.
    """

    def __init__(self, entry: str, threads: int) -> None:
        self._entry, self._environment = entry, inherited_environment(threads)
        self._server: _ForkServer | None = None
        self._forked: dict[str, Job] = {}
        self._fresh: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
        self._orphans: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._forked) + len(self._fresh) + len(self._orphans)

    def start(self, job: Job, lent: dict[str, str]) -> None:
        """Start a job, with variables of its own."""
        folder = str(job.folder)
        if job.devices == 1 and _CAN_FORK:
            self._server = self._server or _ForkServer(self._entry, self._environment)
            self._forked[folder] = job
            self._server.start(folder, lent)
            return
        with open(job.run.log, "ab") as log:
            process = subprocess.Popen(job.command, stdout=log, stderr=log, env=self._environment | lent)
        self._fresh[folder] = job, process

    def ended(self, timeout: float) -> list[Job]:
        """Jobs whose process has ended, waiting at most ``timeout`` seconds for the first."""
        ended: list[Job] = []
        if self._server is not None and self._forked:
            ended += [self._forked.pop(folder) for folder in self._server.ended(timeout)]
            if self._server.died_with is not None:
                self._replace_server(self._server)
        else:
            time.sleep(timeout)
        for folder, (job, process) in list(self._fresh.items()):
            if process.poll() is not None:
                del self._fresh[folder]
                ended.append(job)
        for folder, job in list(self._orphans.items()):
            if not is_locked(job.run.lock):
                del self._orphans[folder]
                ended.append(job)
        return ended

    def _replace_server(self, dead: _ForkServer) -> None:
        """What a dead server has started goes on alone, until its lock is free; the next job gets a new server."""
        if not dead.was_ready:
            raise RunError(
                f"the process that starts runs ended with code {dead.died_with} before it could start any",
                hint="what it printed stands above; `launcher: inline` does without it",
            )
        logger.warning("the process that starts runs was killed (code %s); another one takes over", dead.died_with)
        dead.close()
        self._server = None
        self._orphans |= self._forked
        self._forked = {}

    def close(self) -> None:
        """Ask the runs still going to save and stop, and wait for them."""
        for _, process in self._fresh.values():
            process.terminate()
        for _, process in self._fresh.values():
            process.wait()
        if self._server is not None:
            self._server.close()


class _ForkServer:
    """The parent's end of ``python -m flops_fit.sweep.forkserver``: folders in, lines of JSON out.

    Attributes:
        was_ready: Whether it has loaded what it needs.
        died_with: Its exit code once it has ended by itself, else None.
    """

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
        self.was_ready = False
        self.died_with: int | None = None

    def start(self, folder: str, environment: dict[str, str]) -> None:
        """Fork a process for the run in a folder, with variables of its own."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the end of its output says so as well
            self._process.stdin.write(json.dumps({"run": folder, "environment": environment}).encode() + b"\n")
            self._process.stdin.flush()

    def ended(self, timeout: float) -> list[str]:
        """Folders of the runs whose process has ended, waiting at most ``timeout`` seconds for the first."""
        assert self._process.stdout is not None
        if self._selector.select(timeout):
            chunk = self._process.stdout.read()
            if chunk == b"":
                self.died_with = self._process.wait()
            self._buffer += chunk or b""
        *lines, self._buffer = self._buffer.split(b"\n")
        told = [json.loads(line) for line in lines]
        self.was_ready = self.was_ready or bool(told)
        return [str(order["run"]) for order in told if "run" in order]

    def close(self) -> None:
        """End the server; runs still going are asked to save and stop."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_SAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._selector.close()
