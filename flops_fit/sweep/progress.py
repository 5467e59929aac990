"""How far a sweep is: read from its files alone, so that any machine that sees them can tell."""

from __future__ import annotations

import csv
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flops_fit.errors import DataError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory

_ENDED = (RunState.COMPLETED, RunState.FAILED, RunState.DIVERGED)

# Speed is that of the last rows of a run's log, of which it writes about 200.
_ROWS = 20
_TAIL_BYTES = 1 << 13


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Where one run stands.

    Attributes:
        experiment: What was planned.
        state: Its state.
        done_flops: Compute spent on it so far [FLOPs].
        loss: Of a completed run its loss, else the last training loss; None before there is one.
        tokens_per_second: Of a completed run over all of it, of a running one lately; None where it is not known.
        seconds_left: Of a running run, at that speed; None where it is not known.
        note: What else is to be said: an error, where it runs, what is wrong with its files.
    """

    experiment: Experiment
    state: RunState
    done_flops: float = 0.0
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a sweep stands.

    Attributes:
        counts: Runs by state.
        total_runs: All runs asked for.
        done_flops: Compute spent on them so far [FLOPs].
        total_flops: Compute of all of them [FLOPs].
        seconds_left: Expected from the compute still to do and the speed so far; None before there is one.
        runs: Each of them, in the order of the plan.
    """

    counts: dict[RunState, int]
    total_runs: int
    done_flops: float
    total_flops: float
    seconds_left: float | None
    runs: tuple[RunProgress, ...] = ()


class Meter:
    """Turns files into progress, again and again.

    Args:
        sweep: The sweep.
        experiments: Its runs.
    """

    def __init__(self, sweep: SweepDirectory, experiments: Sequence[Experiment]) -> None:
        self._sweep, self._experiments = sweep, experiments
        self._started = time.monotonic()
        self._completed: dict[str, RunProgress] = {}
        self._first: tuple[float, int] | None = None

    def read(self) -> Progress:
        """Where the sweep stands now."""
        runs = []
        for experiment in self._experiments:
            known = self._completed.get(experiment.experiment_id)
            run = known or run_progress(self._sweep.run(experiment.experiment_id), experiment)
            if run.state is RunState.COMPLETED:
                self._completed[experiment.experiment_id] = run
            runs.append(run)
        counts = Counter(run.state for run in runs)
        done = sum(run.done_flops for run in runs)
        return Progress(
            counts=dict(counts),
            total_runs=len(runs),
            done_flops=done,
            total_flops=sum(e.flops for e in self._experiments),
            seconds_left=self._seconds_left(runs, done, counts[RunState.COMPLETED]),
            runs=tuple(runs),
        )

    def _seconds_left(self, runs: Sequence[RunProgress], done: float, completed: int) -> float | None:
        """By the compute that is left, and the speed since this began to look, or that of the runs that run now.

        Only once a run has completed does the first speed hold what lies between runs, too.
        """
        left = sum(run.experiment.flops - run.done_flops for run in runs if run.state not in _ENDED)
        if self._first is None:
            self._first = done, completed
        spent, elapsed = done - self._first[0], time.monotonic() - self._started
        running = [run for run in runs if run.state is RunState.RUNNING]
        speed = sum((run.tokens_per_second or 0.0) * run.experiment.flops_per_token for run in running)
        if (completed > self._first[1] or speed == 0) and spent > 0:
            speed = spent / elapsed
        if speed <= 0:
            return None
        return max([left / speed, *(run.seconds_left or 0.0 for run in running)])


def progress(sweep: SweepDirectory, experiments: Sequence[Experiment]) -> Progress:
    """Where a sweep stands on disk."""
    return Meter(sweep, experiments).read()


def run_progress(run: RunDirectory, experiment: Experiment) -> RunProgress:
    """Where one run stands on disk; what is wrong with its files is noted, and the others are told all the same."""
    state = run.state()
    if state is RunState.COMPLETED:
        return _completed(run, experiment)
    details = run.details()
    told = [str(details["error"])] if details.get("error") else []
    if state is RunState.RUNNING and details.get("host") != socket.gethostname():
        told.append(f"on {details.get('host')}")
    if state is RunState.INTERRUPTED and not run.is_writable:
        told.append(f"{run.path} cannot be written")
    tokens, loss, speed = (0.0, None, None) if state is RunState.PENDING else _logged(run)
    tokens = min(tokens, float(experiment.num_tokens))
    speed = speed if state is RunState.RUNNING else None
    return RunProgress(
        experiment=experiment,
        state=state,
        done_flops=experiment.flops_per_token * tokens,
        loss=loss,
        tokens_per_second=speed,
        seconds_left=(experiment.num_tokens - tokens) / speed if speed else None,
        note="; ".join([*told, *run.notes()]),
    )


def _completed(run: RunDirectory, experiment: Experiment) -> RunProgress:
    state = RunState.COMPLETED
    try:
        result = run.result()
    except DataError as error:
        return RunProgress(experiment=experiment, state=state, done_flops=experiment.flops, note=error.problem)
    speed = result.get("tokens_per_second")
    return RunProgress(
        experiment=experiment,
        state=state,
        done_flops=experiment.flops,
        loss=result["loss"],
        tokens_per_second=float(speed) if isinstance(speed, (int, float)) else None,
        note="; ".join(str(note) for note in result.get("notes") or ()),
    )


def _logged(run: RunDirectory) -> tuple[float, float | None, float | None]:
    """Tokens, training loss and tokens per second of the last rows of a run's logs."""
    metrics = [row for row in _tail(run.metrics) if "num_tokens" in row and "step" in row]
    if not metrics:
        return 0.0, None, None
    losses = [row["train_loss"] for row in metrics if "train_loss" in row]
    tokens = {row["step"]: row["num_tokens"] for row in metrics}
    # The clock starts anew with each process that goes on with a run.
    clock = [(row["seconds"], tokens[row["step"]]) for row in _tail(run.timing) if row.get("step") in tokens]
    last = len(clock) - 1
    first = last
    while first > 0 and clock[first - 1][0] <= clock[first][0] and last - first < _ROWS:
        first -= 1
    elapsed, trained = (clock[last][i] - clock[first][i] for i in (0, 1)) if clock else (0.0, 0.0)
    return metrics[-1]["num_tokens"], losses[-1] if losses else None, trained / elapsed if elapsed > 0 else None


def _tail(path: Path) -> list[dict[str, float]]:
    """The numbers in the last whole rows of a log, by column; none where there is no such file."""
    try:
        with open(path, "rb") as file:
            header = file.readline().decode(errors="replace").strip()
            begin = file.tell()
            start = max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    if start > begin:
        lines = lines[1:]  # perhaps the rest of one
    return [
        {name: number for name, cell in row.items() if (number := _number(cell)) is not None}
        for row in csv.DictReader([header, *lines])
    ]


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
