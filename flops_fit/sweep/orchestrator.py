"""What is still to do in a sweep, in which order, and how far it is."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.sweep.launchers import Job, Launcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a sweep stands.

    Attributes:
        counts: Runs by state.
        total_runs: All runs asked for.
        done_flops: Compute spent on them so far [FLOPs].
        total_flops: Compute of all of them [FLOPs].
        seconds_left: Expected from the compute still to do and the rate so far; None before there is a rate.
    """

    counts: dict[RunState, int]
    total_runs: int
    done_flops: float
    total_flops: float
    seconds_left: float | None


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

    def jobs(self, sweep: SweepDirectory, experiments: Sequence[Experiment], devices: int) -> list[Job]:
        """What to start: not what is completed or running, longest first."""
        left = {RunState.PENDING, RunState.INTERRUPTED}
        if self.retry_failed:
            left |= {RunState.FAILED, RunState.DIVERGED}
        chosen = [e for e in experiments if sweep.run(e.experiment_id).state() in left]
        if self.only:
            chosen = [e for e in chosen if any(text in e.experiment_id for text in self.only)]
        chosen.sort(key=lambda e: -e.flops)
        if self.max_flops is not None:
            chosen = _affordable(chosen, self.max_flops)
        return [
            Job(run=sweep.run(e.experiment_id), flops=e.flops, devices=devices, num_params=e.num_params) for e in chosen
        ]


def _affordable(experiments: list[Experiment], flops: float) -> list[Experiment]:
    chosen = []
    for experiment in sorted(experiments, key=lambda e: e.flops):  # the most runs for the money: cheapest first
        flops -= experiment.flops
        if flops < 0:
            break
        chosen.append(experiment)
    return sorted(chosen, key=lambda e: -e.flops)


@dataclass
class _Meter:
    """Turns states on disk into progress."""

    sweep: SweepDirectory
    experiments: Sequence[Experiment]
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: dict[str, RunState] = field(default_factory=dict)

    def read(self) -> Progress:
        counts: Counter[RunState] = Counter()
        done = 0.0
        for experiment in self.experiments:
            name = experiment.experiment_id
            state = self.ended.get(name) or self.sweep.run(name).state()
            counts[state] += 1
            if state is RunState.COMPLETED:
                self.ended[name] = state
                done += experiment.flops
            elif state is not RunState.PENDING:
                done += experiment.flops_per_token * _tokens_so_far(self.sweep, name)
        total = sum(e.flops for e in self.experiments)
        if self.first is None:
            self.first = done
        spent, elapsed = done - self.first, time.monotonic() - self.started
        left = (total - done) * elapsed / spent if spent > 0 else None
        return Progress(
            counts=dict(counts),
            total_runs=len(self.experiments),
            done_flops=done,
            total_flops=total,
            seconds_left=left,
        )


def _tokens_so_far(sweep: SweepDirectory, name: str) -> float:
    """Tokens in the last whole row of a running run's metrics."""
    try:
        with open(sweep.run(name).metrics, newline="") as file:
            rows = list(csv.DictReader(file))
        return float(rows[-1]["num_tokens"]) if rows else 0.0
    except (OSError, KeyError, ValueError, TypeError):
        return 0.0


def progress(sweep: SweepDirectory, experiments: Sequence[Experiment]) -> Progress:
    """Where the sweep stands on disk; no rate is known, so no time left."""
    return _Meter(sweep, experiments).read()


def run_sweep(
    sweep: SweepDirectory,
    experiments: Sequence[Experiment],
    launcher: Launcher,
    *,
    selection: Selection,
    devices: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Train what is not done; completed runs are never touched.

    Args:
        sweep: The sweep's directory; every run in it has its config.
        experiments: The runs of the plan at hand.
        launcher: Starts them.
        selection: Which of them now.
        devices: Devices for each run.
        on_progress: Told about once a second.

    Returns:
        Where the sweep stands at the end.
    """
    jobs = selection.jobs(sweep, experiments, devices)
    meter = _Meter(sweep, experiments)
    if not jobs:
        return meter.read()
    deadline = None if selection.max_hours is None else time.monotonic() + 3600 * selection.max_hours
    failures: Counter[str] = Counter()
    last = -1.0

    def poll() -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            on_progress(meter.read())

    def on_done(job: Job) -> bool:
        nonlocal last
        state = job.run.state()
        if state is RunState.FAILED:
            failures[str(job.run.details().get("error"))] += 1
        last = -1.0
        poll()
        too_late = deadline is not None and time.monotonic() > deadline
        # The same error twice is the code's, not the run's: the rest would only repeat it.
        return too_late or max(failures.values(), default=0) >= 2

    poll()
    launcher.run(jobs, on_done, poll)
    return meter.read()
