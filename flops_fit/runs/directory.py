"""One sweep on disk: where everything is, which state every run is in.

A run directory is the contract between whatever starts a run and whatever trains it; ``result.json`` is written last
and atomically, and only its presence means completed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from flops_fit.errors import DataError, PlanError, RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.files import (
    TEMPORARY,
    cannot_write,
    disk_error,
    exclusive,
    is_locked,
    last_value,
    read_json,
    read_metrics,
    sha256,
    write_atomic,
    write_json,
)

logger = logging.getLogger(__name__)

# Set, it has runs write to run.log what Lightning says, too; a variable, since every launcher's processes inherit it.
VERBOSE = "FLOPS_FIT_VERBOSE"

HEARTBEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "diverged"
    COMPLETED = "completed"


class RunDirectory:
    """One run: ``config.yaml metrics.csv timing.csv state.json run.log checkpoints/ result.json``."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.timing = self.path / "timing.csv"
        self.log = self.path / "run.log"
        self.lock = self.path / "lock"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.previous_checkpoint = self.checkpoint.with_name("previous.ckpt")
        self._state = self.path / "state.json"
        self._result = self.path / "result.json"

    @property
    def run_id(self) -> str:
        """The experiment's id: the directory's name."""
        return self.path.name

    def create(self) -> None:
        """Make the folders.

        Raises:
            RunError: The disk does not take them.
        """
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be, for the block, the only process that trains this run.

        Raises:
            RunError: Another one trains it, here or on another machine; or the directory cannot be written.
        """
        self.create()
        with exclusive(self.lock, f"run {self.run_id}"):
            details = self.details()
            if beating_elsewhere([self]):
                raise RunError(
                    f"run {self.run_id} is in use by process {details.get('pid')} on {details.get('host')}",
                    hint="wait for it to end, or stop it",
                )
            for leftover in (*self.path.glob(f".*{TEMPORARY}"), *self.checkpoint.parent.glob(f".*{TEMPORARY}")):
                leftover.unlink(missing_ok=True)  # of a process killed while it wrote
            yield

    @property
    def is_writable(self) -> bool:
        """Whether this process may write here; a disk may turn read-only at any time."""
        return os.access(self.path, os.W_OK)

    def set_state(self, state: RunState, **details: Any) -> None:
        """Record the state, with a heartbeat, in ``state.json``; what was noted about the run stays.

        Raises:
            RunError: The disk does not take it; the old state is still there.
        """
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
        notes = {"notes": self.notes()} if self.notes() else {}
        write_json(self._state, {"state": state.value} | owner | notes | details)

    def end(self, state: RunState, **details: Any) -> None:
        """Record how an attempt ended, with as much of the details as the disk takes, and never fail."""
        try:
            try:
                self.set_state(state, **details)
            except RunError:
                self.set_state(state, error=details.get("error"))
        except RunError as error:
            logger.error("%s; so its end is not recorded there: %s", error.problem, details.get("error"))

    def note(self, text: str) -> None:
        """Keep something worth knowing about the run: in its state and, once complete, in its result."""
        logger.warning("%s: %s", self.run_id, text)
        details = {k: v for k, v in self.details().items() if k != "schema_version"}
        state = RunState(details.pop("state", RunState.PENDING))
        self.set_state(state, **details | {"notes": [*self.notes(), text]})

    def notes(self) -> list[str]:
        """What was noted about the run."""
        notes = self.details().get("notes")
        return [str(text) for text in notes] if isinstance(notes, list) else []

    def details(self) -> dict[str, Any]:
        """What ``state.json`` holds; empty where there is none, and interrupted where a power cut emptied it."""
        if not os.path.exists(self._state):  # unlike Path's, no error in a folder that is not ours
            return {}
        try:
            details = read_json(self._state)
            RunState(details["state"])
        except (DataError, KeyError, ValueError) as error:
            problem = error.problem if isinstance(error, DataError) else f"{self._state} holds no state"
            return {"state": RunState.INTERRUPTED.value, "error": problem}
        return details

    def state(self) -> RunState:
        """The state; a run that says it is running and whose process is gone is interrupted."""
        if os.path.exists(self._result):
            return RunState.COMPLETED
        details = self.details()
        state = RunState(details.get("state", RunState.PENDING))
        if state is RunState.RUNNING and not _alive(self, details):
            return RunState.INTERRUPTED
        if state is RunState.COMPLETED:  # the result was deleted by hand
            return RunState.INTERRUPTED
        return state

    def finish(self, result: dict[str, Any]) -> None:
        """Complete the run: write ``result.json`` with the checksum of ``metrics.csv``, drop what only a resume needs.

        Raises:
            RunError: The disk does not take the result.
        """
        ended = {"state": RunState.COMPLETED.value, "notes": self.notes(), "metrics_sha256": sha256(self.metrics)}
        write_json(self._result, result | ended)
        self.end(RunState.COMPLETED)
        with contextlib.suppress(OSError):
            self.previous_checkpoint.unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        """The result of a completed run; its loss is the last evaluation row of ``metrics.csv``.

        Raises:
            DataError: ``metrics.csv`` is missing, cut short or not the one the result was written for.
        """
        result = read_json(self._result)
        if not self.metrics.is_file() or sha256(self.metrics) != result.get("metrics_sha256"):
            read_metrics(self.metrics)  # says so where the file is missing or cut short
            raise DataError(
                f"{self.metrics} is not the file that its result.json was written for: it was changed or cut short",
                hint=f"delete {self.path} and run the sweep again: only this run is trained",
            )
        return result | {"loss": last_value(self.metrics, "val_loss")}


def _alive(run: RunDirectory, details: dict[str, Any]) -> bool:
    """Whether the process that trains a run is there: here its lock tells, on another machine its heartbeat.

    A process number would not do: a killed process keeps it until somebody takes note of its end.
    """
    if details.get("host") == socket.gethostname():
        return is_locked(run.lock)
    return abs(time.time() - _heartbeat(details)) < _STALE_SECONDS  # no clock is that far ahead: it has jumped


def _heartbeat(details: dict[str, Any]) -> float:
    """When the process that trains a run gave its last sign, by the clock of its machine [seconds]."""
    beat = details.get("heartbeat")
    return float(beat) if isinstance(beat, (int, float)) else 0.0


def beating_elsewhere(runs: Sequence[RunDirectory]) -> set[str]:
    """Watch which of these runs another machine is training, for a minute at most.

    A lock need not reach across machines, and their clocks need not agree: a heart that beats changes the file.

    Returns:
        Their ids.
    """
    here, now = socket.gethostname(), time.time()
    quiet = {run: run.details() for run in runs}
    quiet = {run: d for run, d in quiet.items() if d.get("state") == RunState.RUNNING and d.get("host") != here}
    beating: set[str] = set()
    # By a clock that is right, a part of the minute has passed; a heartbeat of the future says that none is.
    watch = {
        run: max(3 * HEARTBEAT_SECONDS, _STALE_SECONDS - max(0.0, now - _heartbeat(d))) for run, d in quiet.items()
    }
    start = time.monotonic()
    while quiet:
        time.sleep(HEARTBEAT_SECONDS / 10)
        for run, before in list(quiet.items()):
            details = run.details()
            if details != before and details.get("state") == RunState.RUNNING:
                beating.add(run.run_id)
            if details != before or time.monotonic() - start > watch[run]:
                del quiet[run]
    return beating


@dataclass(frozen=True)
class SweepDirectory:
    """One sweep: ``sweep.yaml plan.json runs/ runs.csv analysis.json draws.npz report/``."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan: experiments and what decides their results."""
        return self.path / "plan.json"

    @property
    def probe(self) -> SweepDirectory:
        """The runs that find the learning rate: a sweep of their own."""
        return SweepDirectory(self.path / "probe")

    @property
    def rates_file(self) -> Path:
        """What those have found."""
        return self.path / "learning_rate.json"

    @property
    def report(self) -> Path:
        """Figures, tables and the page."""
        return self.path / "report"

    @property
    def analysis(self) -> bytes | None:
        """What ``analysis.json`` holds, to see whether a new analysis says anything new."""
        file = self.path / "analysis.json"
        return file.read_bytes() if file.exists() else None

    def run(self, experiment_id: str) -> RunDirectory:
        """The directory of one run."""
        return RunDirectory(self.path / "runs" / experiment_id)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What ``plan.json`` holds.

        Raises:
            DataError: There is none, or it cannot be read.
        """
        if not self.plan_file.exists():
            problem = f"{self.path} is not a sweep directory: it has no plan.json"
            raise DataError(
                problem if self.path.exists() else f"there is no folder {self.path}",
                hint="give the output_dir of a sweep, or start one with `flops-fit fit --config sweep.yaml`",
            )
        return read_json(self.plan_file)

    def experiments(self) -> list[Experiment]:
        """All experiments ever planned here."""
        return [Experiment.from_dict(e) for e in self.plan["experiments"]]

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be, for the block, the only process that starts runs of this sweep.

        Raises:
            PlanError: The folder cannot be written.
            RunError: Another one starts them; the message says who.
        """
        self._require_writable()
        with exclusive(self.path / "lock", f"sweep {self.path}"):
            yield

    def _require_writable(self) -> None:
        try:
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / ".writable", "")
            (self.path / ".writable").unlink()
        except (OSError, RunError) as error:
            reason = disk_error(error)
            raise PlanError(
                f"output_dir {self.path} cannot be written: {reason.strerror if reason else error}",
                hint="choose another output_dir, or make room or this one writable",
            ) from None

    def open(self, plan: dict[str, Any], basis: dict[str, Any]) -> None:
        """Create the sweep, or extend it by new experiments.

        Args:
            plan: ``SweepPlan.to_dict()``.
            basis: What, beside budget, size and seed, decides a run's result; nested plain values.

        Raises:
            PlanError: The folder cannot be written, or holds something else, or a sweep on another basis.
        """
        self._require_writable()
        experiments = {e["experiment_id"]: e for e in plan["experiments"]}
        if self.plan_file.exists():
            old = read_json(self.plan_file)
            changes = _differences(old.get("basis", {}), basis)
            if changes:
                raise PlanError(
                    f"output_dir {self.path} holds another sweep; changed since then: " + "; ".join(changes),
                    hint="choose another output_dir, or set these back; only budgets, sizes and seeds may be added",
                )
            experiments = {e["experiment_id"]: e for e in old["experiments"]} | experiments
            plan = plan | {"compute_budgets": sorted({*old["compute_budgets"], *plan["compute_budgets"]})}
        totals = {
            "num_experiments": len(experiments),
            "total_flops": math.fsum(e["flops"] for e in [*experiments.values(), *plan.get("probe", ())]),
        }
        write_json(self.plan_file, plan | totals | {"experiments": list(experiments.values()), "basis": basis})
        self.__dict__.pop("plan", None)  # what was read before is no longer so


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Every leaf that differs, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    return [] if old == new else [f"{where}: {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
