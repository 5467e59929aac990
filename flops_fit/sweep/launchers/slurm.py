"""Runs as the tasks of a Slurm job array."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flops_fit.errors import PlanError, RunError
from flops_fit.runs.directory import RunState
from flops_fit.runs.files import write_atomic
from flops_fit.sweep.config import SlurmOptions
from flops_fit.sweep.launchers.job import Job, Launcher, inherited_environment
from flops_fit.sweep.launchers.slurm_script import batch_script, sbatch_options

logger = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_COMPLETING_SECONDS = 120.0
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Task:
    """A task in the queue: its array's job id and its state, such as PENDING, RUNNING or COMPLETING."""

    array: str
    state: str


class SlurmLauncher(Launcher):
    """Runs as the tasks of one job array a call; the cluster's queue is asked only which tasks are still in it.

    Each call makes a folder with the batch script, the list of run folders and what Slurm itself has to say of each
    task; the runs write to their own logs. Tasks outlive this process: runs that are in the queue from an earlier
    call are waited for, not submitted again. An array is found again by its job name, which names the sweep's folder,
    so that there is no moment between submitting and writing down at which a task could be lost.

    Args:
        options: What a run asks of Slurm.
        folder: Where to keep the scripts, on a file system that all nodes share.
        jobs: Most runs at a time; None for as many as the cluster has room for.
        devices: Processes on each node that train one run.
        num_nodes: Nodes that train one run.
        gpus: GPUs on each node.
    """

    # Between two questions about the queue, which the whole cluster shares.
    queue_seconds = 10.0

    def __init__(
        self,
        options: SlurmOptions,
        folder: Path,
        jobs: int | None = None,
        *,
        devices: int = 1,
        num_nodes: int = 1,
        gpus: int = 0,
    ) -> None:
        self.options, self.folder, self.jobs = options, folder.resolve(), jobs
        self.devices, self.num_nodes, self.gpus = devices, num_nodes, gpus
        self._is_silent = False  # whether the controller did not answer when last asked; said once
        name = re.sub(r"[^A-Za-z0-9._-]", "_", self.folder.parent.name)
        self._name = f"flops-fit.{name}.{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    def going_on(self) -> Collection[str]:
        return {Path(folder).name for folder in self._queue()}

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        left = {str(job.folder): job for job in jobs}
        try:
            queue = self._settled(left, poll)
            submitted = [job for folder, job in left.items() if folder not in queue]
            if len(submitted) < len(left):
                logger.warning("waiting for %d runs that are in Slurm's queue already", len(left) - len(submitted))
            if submitted:
                self._submit(submitted)
            self._wait(left, on_done, poll)
        except KeyboardInterrupt:
            self._say_what_goes_on(left)
            raise

    def _wait(self, left: dict[str, Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        missing: set[str] = set()
        gone: set[str] = set()  # missing twice: a single look may fall into a moment of change
        asked, stop = time.monotonic(), False
        while left:
            time.sleep(min(_TICK_SECONDS, self.queue_seconds))
            if time.monotonic() - asked >= self.queue_seconds:
                queue, asked = self._cancel_waiting(left) if stop else self._ask(), time.monotonic()
                if queue is not None:
                    gone, missing = missing - queue.keys(), left.keys() - queue.keys()
            for folder, job in [(folder, job) for folder, job in left.items() if _has_ended(job, folder in gone)]:
                del left[folder]
                if on_done(job) and not stop:
                    stop, asked = True, -math.inf  # what waits must not start meanwhile
            poll()

    def _cancel_waiting(self, left: dict[str, Job]) -> Mapping[str, _Task] | None:
        """Take what has not started out of the queue, and out of what is waited for; the queue, as far as known."""
        before = self._ask() or {}
        waiting = {folder: task for folder, task in before.items() if folder in left and task.state == "PENDING"}
        for array in {task.array for task in waiting.values()}:
            with suppress(RunError):  # all of it may have started by now
                _call(["scancel", "--state=PENDING", array])
        after = self._ask()
        for folder in waiting:
            if after is not None and folder not in after:
                del left[folder]
        return after

    def _say_what_goes_on(self, left: Mapping[str, Job]) -> None:
        arrays = sorted({task.array for folder, task in (self._ask() or {}).items() if folder in left})
        if arrays:
            logger.warning(
                "%d runs stay in Slurm's queue and go on: the same command waits for them, `scancel %s` ends them",
                len(left),
                " ".join(arrays),
            )

    def _settled(self, left: Mapping[str, Job], poll: Callable[[], None]) -> Mapping[str, _Task]:
        """The queue, once each task of a run at hand that is just ending has left it, or is back in it.

        Raises:
            RunError: The queue cannot be read: to submit now could be to submit twice.
        """
        deadline = time.monotonic() + _COMPLETING_SECONDS
        while True:
            queue = self._queue()
            ending = {folder for folder in left if folder in queue and queue[folder].state == "COMPLETING"}
            if not ending or time.monotonic() > deadline:
                return {folder: task for folder, task in queue.items() if folder not in ending}
            time.sleep(min(_TICK_SECONDS, self.queue_seconds))
            poll()

    def _ask(self) -> Mapping[str, _Task] | None:
        """The queue, or None while the controller does not answer: then nothing is known to have left it."""
        try:
            queue = self._queue()
        except RunError as error:
            if not self._is_silent:
                logger.warning("%s", error)
            self._is_silent = True
            return None
        self._is_silent = False
        return queue

    def _queue(self) -> dict[str, _Task]:
        """What this sweep has in the queue, by the run's folder."""
        found: dict[str, _Task] = {}
        lists: dict[str, list[str]] = {}
        for line in _call(["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%F|%K|%T|%j"]).splitlines():
            array, index, state, name = line.strip().split("|", 3)
            if name.startswith(f"{self._name}.") and index.isdigit():
                file = self.folder / name.rpartition(".")[2] / "runs.txt"
                if name not in lists:
                    lists[name] = file.read_text().splitlines() if file.is_file() else []
                if int(index) < len(lists[name]):
                    found[lists[name][int(index)]] = _Task(array, state)
        return found

    def _submit(self, jobs: Sequence[Job]) -> None:
        folders = [str(job.folder) for job in jobs]
        broken = [folder for folder in folders if "\n" in folder]
        if broken:
            raise PlanError(f"output_dir: {broken[0]!r} has a line break in it", hint="choose another output_dir")
        folder = self._new_folder()
        script = folder / "run.sh"
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={self._name}.{folder.name}",
            f"--array=0-{len(jobs) - 1}" + (f"%{self.jobs}" if self.jobs else ""),
            *sbatch_options(self.options, devices=self.devices, num_nodes=self.num_nodes, gpus=self.gpus),
            # In the names of files, sbatch reads % as the start of a pattern.
            f"--output={str(folder).replace('%', '%%')}/%a.out",
            str(script),
        ]
        write_atomic(folder / "runs.txt", "".join(f"{path}\n" for path in folders))
        text = batch_script(
            runs_file=folder / "runs.txt",
            working_directory=Path.cwd(),
            submitted_as=shlex.join(command),
            options=self.options,
            num_nodes=self.num_nodes,
        )
        write_atomic(script, text)
        array = _call(command).strip().partition(";")[0]
        logger.info("%d runs are submitted to Slurm as array %s", len(jobs), array)

    def _new_folder(self) -> Path:
        number = max((int(f.name) for f in self.folder.glob("[0-9]*") if f.name.isdigit()), default=0)
        while True:
            number += 1
            try:
                (self.folder / str(number)).mkdir(parents=True)
            except FileExistsError:  # another process was faster
                continue
            return self.folder / str(number)


def _has_ended(job: Job, is_gone: bool) -> bool:
    """Whether a run is complete, or has left the queue; the queue alone would not do.

    The files of another machine may say that a run is running for a while after its task has left the queue.
    """
    state = job.run.state()
    return state is RunState.COMPLETED or (is_gone and state is not RunState.RUNNING)


def _call(command: Sequence[str]) -> str:
    """What one of Slurm's commands answers.

    Raises:
        RunError: It is not there, or refuses.
    """
    # Of a job that this process is itself a part of, sbatch would take limits over as if they had been asked for.
    environment = {k: v for k, v in inherited_environment().items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_ANSWER_SECONDS)
    except FileNotFoundError:
        raise RunError(
            f"launcher: slurm needs {command[0]}, which is not on this machine",
            hint="start this on a login node of the cluster, or choose launcher: local",
        ) from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]} has not answered for {_ANSWER_SECONDS:g} s", hint="is Slurm up?") from None
    if done.returncode:
        raise RunError(
            f"{command[0]} refused: {done.stderr.strip() or f'exit code {done.returncode}'}",
            hint=f"the whole command was {shlex.join(command)}",
        )
    return done.stdout
