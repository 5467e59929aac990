"""What is still to do in a sweep, and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields

from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.sweep.launchers import Job, Launcher
from flops_fit.sweep.outcome import Call, sum_of
from flops_fit.sweep.progress import Meter, Progress
from flops_fit.units import format_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Progress):
    """Where a sweep stands after a call.

    Attributes:
        left: What the call leaves undone and why, a line each.
        unfinished: Runs that were started, by this call or another, and have not ended: the same call goes on.
    """

    left: list[str]
    unfinished: int


@dataclass(kw_only=True)
class Selection:
    """Which of the planned runs to train now.

    Attributes:
        only: Only runs whose id contains one of these.
        retry_failed: Also those that failed or diverged before.
        max_flops: Stop starting runs before the compute of this call exceeds this [FLOPs].
        max_hours: Start no run after this long.
    """

    only: Sequence[str] = ()
    retry_failed: bool = False
    max_flops: float | None = None
    max_hours: float | None = None

    def wanted(
        self,
        sweep: SweepDirectory,
        experiments: Sequence[Experiment],
        devices: int = 1,
        going_on: Collection[str] = (),
    ) -> list[Job]:
        """What is to be done, whatever it costs; longest first.

        Neither what is completed nor what another process trains, unless the launcher has it: of those ``going_on``.
        """
        left = {RunState.PENDING, RunState.INTERRUPTED}
        if self.retry_failed:
            left |= {RunState.FAILED, RunState.DIVERGED}
        states = {e.experiment_id: sweep.run(e.experiment_id).state() for e in experiments}
        ours = {name for name in going_on if states.get(name) is RunState.RUNNING}
        chosen = [e for e in experiments if states[e.experiment_id] in left or e.experiment_id in ours]
        if self.only:
            chosen = [e for e in chosen if any(text in e.experiment_id for text in self.only)]
        chosen.sort(key=lambda e: -e.flops)
        return [
            Job(run=sweep.run(e.experiment_id), flops=e.flops, devices=devices, num_params=e.num_params) for e in chosen
        ]

    def affordable(self, jobs: Sequence[Job]) -> list[Job]:
        """The most of these runs for the compute that may be spent, in their order."""
        if self.max_flops is None:
            return list(jobs)
        spent, chosen = 0.0, []
        for job in sorted(jobs, key=lambda j: j.flops):
            spent += job.flops
            if spent > self.max_flops:
                break
            chosen.append(job)
        return [job for job in jobs if job in chosen]

    def jobs(self, sweep: SweepDirectory, experiments: Sequence[Experiment], devices: int) -> list[Job]:
        """What to start."""
        return self.affordable(self.wanted(sweep, experiments, devices))


def run_sweep(
    sweep: SweepDirectory,
    experiments: Sequence[Experiment],
    launcher: Launcher,
    *,
    selection: Selection,
    devices: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Train what is not done; completed runs are never touched.

    A run whose process is killed is started again, twice at most. Runs that fail alike in several sizes before any has
    completed end the call: the mistake is the code's, and the others would only repeat it.

    Args:
        sweep: The sweep's directory; every run in it has its config.
        experiments: The runs of the plan at hand.
        launcher: Starts them.
        selection: Which of them now.
        devices: Devices for each run.
        on_progress: Told about once a second.

    Returns:
        Where the sweep stands at the end, and what was left.
    """
    wanted = selection.wanted(sweep, experiments, devices, launcher.going_on())
    jobs = selection.affordable(wanted)
    meter = Meter(sweep, experiments)
    sizes = {e.experiment_id: e.size_param_value for e in experiments}
    call = Call(sweep=sweep, sizes=sizes, max_hours=selection.max_hours)
    last = -1.0

    def poll() -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            on_progress(meter.read())

    def on_done(job: Job) -> bool:
        nonlocal last
        call.ended(job)
        last = -1.0
        poll()
        return call.stop is not None

    starting = jobs
    while starting and call.stop is None:
        poll()
        launcher.run(starting, on_done, poll)
        starting = call.killed()
        if selection.max_flops is None:  # what others have let go of, such as runs whose own orchestrator was killed
            known = {job.run.run_id for job in jobs}
            freed = [job for job in selection.wanted(sweep, experiments, devices) if job.run.run_id not in known]
            jobs, starting = jobs + freed, starting + freed
    left = call.left(jobs)
    others = [e.experiment_id for e in experiments if e.experiment_id not in call.started]
    others = [name for name in others if sweep.run(name).state() is RunState.RUNNING]
    if others:
        left.append(f"trained by processes that this call has not started: {', '.join(others)}")
    if len(jobs) < len(wanted):
        dear = sum_of([job for job in wanted if job not in jobs])
        left.append(f"this call may spend {format_flops(selection.max_flops or 0)} FLOPs; not started: {dear}")
    now = {f.name: getattr(meter.read(), f.name) for f in fields(Progress)}
    return Outcome(**now, left=left, unfinished=call.unfinished + len(others))
