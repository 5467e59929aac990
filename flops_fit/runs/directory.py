"""One sweep on disk: where everything is, which state every run is in.

A run directory is the contract between whatever starts a run and whatever trains it; ``result.json`` is written last
and atomically, and only its presence means completed.
"""

from __future__ import annotations

import math
import os
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from flops_fit.errors import DataError, PlanError
from flops_fit.experiment import Experiment
from flops_fit.runs.files import is_locked, read_json, read_metrics, sha256, write_atomic, write_json

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
        self._state = self.path / "state.json"
        self._result = self.path / "result.json"

    @property
    def run_id(self) -> str:
        """The experiment's id: the directory's name."""
        return self.path.name

    def create(self) -> None:
        """Make the folders."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def set_state(self, state: RunState, **details: Any) -> None:
        """Record the state, with a heartbeat, in ``state.json``."""
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
        write_json(self._state, {"state": state.value} | owner | details)

    def details(self) -> dict[str, Any]:
        """What ``state.json`` holds; empty where there is none."""
        return read_json(self._state) if self._state.exists() else {}

    def state(self) -> RunState:
        """The state; a run that says it is running and whose process is gone is interrupted."""
        if self._result.exists():
            return RunState.COMPLETED
        details = self.details()
        state = RunState(details.get("state", RunState.PENDING))
        if state is RunState.RUNNING and not _alive(self, details):
            return RunState.INTERRUPTED
        if state is RunState.COMPLETED:  # the result was deleted by hand
            return RunState.INTERRUPTED
        return state

    def finish(self, result: dict[str, Any]) -> None:
        """Complete the run: write ``result.json`` with the checksum of ``metrics.csv``."""
        write_json(self._result, result | {"metrics_sha256": sha256(self.metrics)})
        self.set_state(RunState.COMPLETED)

    def result(self) -> dict[str, Any]:
        """The result of a completed run; its loss is the last evaluation row of ``metrics.csv``.

        Raises:
            DataError: ``metrics.csv`` is missing, cut short or not the one the result was written for.
        """
        result = read_json(self._result)
        rows = read_metrics(self.metrics)
        if sha256(self.metrics) != result.get("metrics_sha256"):
            raise DataError(
                f"{self.metrics} is not the file that its result.json was written for: it was changed or cut short",
                hint=f"delete {self.path} and run the sweep again: only this run is trained",
            )
        evaluations = [row["val_loss"] for row in rows if row["val_loss"]]
        return result | {"loss": float(evaluations[-1])}


def _alive(run: RunDirectory, details: dict[str, Any]) -> bool:
    """Whether the process that trains a run is there: here its lock tells, on another machine its heartbeat.

    A process number would not do: a killed process keeps it until somebody takes note of its end.
    """
    if details.get("host") == socket.gethostname():
        return is_locked(run.lock)
    return time.time() - float(details.get("heartbeat", 0)) < _STALE_SECONDS


@dataclass(frozen=True)
class SweepDirectory:
    """One sweep: ``sweep.yaml plan.json runs/ runs.csv analysis.json draws.npz report/``."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan: experiments and what decides their results."""
        return self.path / "plan.json"

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
            raise DataError(
                f"{self.path} is not a sweep directory: it has no plan.json",
                hint="give the output_dir of a sweep, or start one with `flops-fit fit --config sweep.yaml`",
            )
        return read_json(self.plan_file)

    def experiments(self) -> list[Experiment]:
        """All experiments ever planned here."""
        return [Experiment.from_dict(e) for e in self.plan["experiments"]]

    def open(self, plan: dict[str, Any], basis: dict[str, Any]) -> None:
        """Create the sweep, or extend it by new experiments.

        Args:
            plan: ``SweepPlan.to_dict()``.
            basis: What, beside budget, size and seed, decides a run's result; nested plain values.

        Raises:
            PlanError: The folder cannot be written, or holds something else, or a sweep on another basis.
        """
        try:
            (self.path / "runs").mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / ".writable", "")
            (self.path / ".writable").unlink()
        except OSError as error:
            raise PlanError(
                f"output_dir {self.path} cannot be written: {error.strerror}", hint="choose another output_dir"
            ) from None
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
            "total_flops": math.fsum(e["flops"] for e in experiments.values()),
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
