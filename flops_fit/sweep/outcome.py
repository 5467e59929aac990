"""What became of the runs that one call started: which are started again, what stops the call, what is left."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory, beating_elsewhere
from flops_fit.runs.files import is_locked
from flops_fit.sweep.launchers import Job
from flops_fit.units import format_flops

# How often a killed run is started again in one call: one that the kernel kills each time must not go on for ever.
RESTARTS = 2
_ENDS = (RunState.COMPLETED, RunState.FAILED, RunState.DIVERGED)


@dataclass(kw_only=True)
class Call:
    """Follows the runs of one call.

    Attributes:
        sweep: Their sweep.
        sizes: Each planned run's size, by id.
        max_hours: Start no run after this long.
        stop: Why no more are started; None while they are.
    """

    sweep: SweepDirectory
    sizes: Mapping[str, int]
    max_hours: float | None = None
    stop: str | None = None
    _started: float = field(default_factory=time.monotonic)
    _jobs: dict[str, Job] = field(default_factory=dict)
    _starts: Counter[str] = field(default_factory=Counter)
    _alike: dict[str, set[int]] = field(default_factory=dict)

    def ended(self, job: Job) -> None:
        """Note a run whose process has ended; ``stop`` says whether that ends the call."""
        self._jobs[job.run.run_id] = job
        self._starts[job.run.run_id] += 1
        if self.stop is None and job.run.state() is RunState.FAILED:
            self.stop = self._failed_alike(job.run)
        if self.stop is None and self.max_hours is not None:
            elapsed = time.monotonic() - self._started
            self.stop = (
                f"the {self.max_hours:g} hours of this call are over" if elapsed > 3600 * self.max_hours else None
            )

    def _failed_alike(self, run: RunDirectory) -> str | None:
        """The code's mistake that others would only repeat: it ended runs of several sizes, and none has completed."""
        details = run.details()
        if not (cause := details.get("cause")):
            return None
        sizes = self._alike.setdefault(cause, set())
        sizes.add(self.sizes[run.run_id])
        if len(sizes) < 2 or any(self.sweep.run(name).state() is RunState.COMPLETED for name in self.sizes):
            return None
        message = str(details.get("error")).partition("\n")[0]
        return f"runs of {len(sizes)} sizes failed with the same {cause} ({message}), and none has completed"

    def killed(self) -> list[Job]:
        """Runs to be started again: their processes have ended and left no end of the run behind."""
        killed = [self._jobs[name].run for name in self._unended() if self._starts[name] <= RESTARTS]
        killed = [
            run for run in killed if run.is_writable and not (run.state() is RunState.RUNNING and is_locked(run.lock))
        ]
        taken = beating_elsewhere(killed)
        return [self._jobs[run.run_id] for run in killed if run.run_id not in taken]

    def _unended(self) -> list[str]:
        return [name for name, job in self._jobs.items() if job.run.state() not in _ENDS]

    @property
    def started(self) -> set[str]:
        """Ids of the runs whose process has ended in this call."""
        return set(self._jobs)

    @property
    def unfinished(self) -> int:
        """Runs that this call has started and that want to be started again."""
        return len(self._unended())

    def left(self, jobs: Sequence[Job]) -> list[str]:
        """What this call leaves undone, a line for each reason.

        Args:
            jobs: What it was to start.
        """
        told = []
        if self.stop is not None:
            told.append(f"{self.stop}; not started: {sum_of([j for j in jobs if j.run.run_id not in self._jobs])}")
        told += [f"{name} is left as it is: {self._why(self._jobs[name].run)}" for name in self._unended()]
        return told

    def _why(self, run: RunDirectory) -> str:
        details = run.details()
        if run.state() is RunState.RUNNING:
            return f"process {details.get('pid')} on {details.get('host')} trains it"
        if not run.is_writable:
            return f"{run.path} cannot be written"
        if details.get("state") == RunState.INTERRUPTED:  # it could still say so itself
            return str(details.get("error"))
        times = self._starts[run.run_id]
        return f"its process was killed, or could not write its end, {times} times in this call; see {run.log}"


def sum_of(jobs: Sequence[Job]) -> str:
    """Some runs and what they cost, in words."""
    runs = "1 run" if len(jobs) == 1 else f"{len(jobs)} runs"
    return f"{runs} of {format_flops(math.fsum(job.flops for job in jobs))} FLOPs" if jobs else "none"
