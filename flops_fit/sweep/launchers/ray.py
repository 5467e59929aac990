"""Runs as tasks of Ray."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from flops_fit.errors import RunError
from flops_fit.runs.directory import RunState
from flops_fit.sweep.config import RayOptions
from flops_fit.sweep.launchers.job import Job, Launcher, inherited_environment

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_TICK_SECONDS = 0.1
_SAVING_SECONDS = 60.0
# A worker that dies, as when its machine is taken away, is replaced, and the run goes on from its directory.
_MAX_RETRIES = 3


class RayLauncher(Launcher):
    """Runs as tasks of Ray, each around the command that trains a run in a directory which all machines share.

    Nothing of Ray above its tasks is used: no Tune, no Train.

    Args:
        options: What a run asks of Ray.
        jobs: Most runs at a time; None for as many as the cluster has room for.
        gpus: GPUs of a run; a part of one lets several runs share it.
    """

    def __init__(self, options: RayOptions, jobs: int | None = None, *, gpus: float = 0) -> None:
        self.options, self.jobs, self.gpus = options, jobs, gpus

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        ray = _import_ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            self._connect(ray)
        train = ray.remote(num_cpus=self.options.cpus, num_gpus=self.gpus, max_retries=_MAX_RETRIES)(train_directory)
        waiting, stop = list(reversed(jobs)), False
        running: dict[Any, Job] = {}
        try:
            self._check_room(ray)
            while running or (waiting and not stop):
                while waiting and not stop and len(running) < (self.jobs or len(jobs)):
                    job = waiting.pop()
                    running[train.remote(str(job.folder), os.getcwd())] = job
                for task in ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                    job = running.pop(task)
                    if not _is_cancelled(ray, task, job):
                        stop = on_done(job) or stop
                if stop:  # what waits for room in the cluster is not started any more
                    for task, job in running.items():
                        if job.run.state() is not RunState.RUNNING:
                            ray.cancel(task)
                poll()
        finally:
            for task in running:
                ray.cancel(task)  # its run is asked to save and stop
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=_SAVING_SECONDS)
            if is_ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        alone: dict[str, Any] = {"include_dashboard": False} if self.options.address is None else {}
        try:
            ray.init(address=self.options.address or "local", log_to_driver=False, logging_level="WARNING", **alone)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(
                f"ray.address={self.options.address}: no Ray can be reached: {error}",
                hint="`ray start --head` starts one; without an address, one is started for this sweep",
            ) from error

    def _check_room(self, ray: Any) -> None:
        """A run that asks for more than there is would wait for ever, unless the cluster can grow."""
        there = ray.cluster_resources()
        missing = [
            f"{name}={asked:g}, and there are {there.get(resource, 0):g}"
            for name, asked, resource in (("ray.cpus", self.options.cpus, "CPU"), ("ray.gpus", self.gpus, "GPU"))
            if asked > there.get(resource, 0)
        ]
        if missing and self.options.address is None:
            raise RunError(f"no run fits into this machine: {'; '.join(missing)}", hint="ask for less")
        if missing:
            logger.warning("no run fits into the cluster as it is: %s; waiting for it to grow", "; ".join(missing))


def train_directory(folder: str, working_directory: str) -> int:
    """Train the run in a folder, in a process of its own; what Ray's workers call.

    Args:
        folder: The run's.
        working_directory: Where the sweep was started; its config may name files from there.

    Returns:
        The exit code.
    """
    with open(os.path.join(folder, "run.log"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flops_fit", "run", folder],
            stdout=log,
            stderr=log,
            cwd=working_directory,
            env=inherited_environment(),
        )
    try:
        while process.poll() is None:  # a blocking wait would not notice that the task was cancelled
            time.sleep(_TICK_SECONDS)
        return process.returncode
    except KeyboardInterrupt:  # it was: the run saves and stops
        process.terminate()
        process.wait()
        raise


def _is_cancelled(ray: Any, task: Any, job: Job) -> bool:
    """Whether a task was taken back; how far one came that failed for good, the run's directory says."""
    try:
        ray.get(task)
    except ray.exceptions.TaskCancelledError:
        return True
    except ray.exceptions.RayError as error:
        logger.warning("Ray could not train %s: %s", job.run.run_id, str(error).strip().splitlines()[-1])
    return False


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise RunError("launcher: ray needs Ray, which is not installed", hint="pip install 'flops-fit[ray]'") from None
