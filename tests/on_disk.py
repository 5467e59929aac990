"""Sweeps on disk that nobody has trained: every state, losses of a known law."""

from __future__ import annotations

from pathlib import Path

from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory
from flops_fit.runs.files import CsvLog

STEPS = 100
METRICS = ("step", "num_tokens", "lr", "train_loss", "val_loss")
TIMING = ("step", "unix_time", "seconds")


def experiments(budgets: tuple[float, ...] = (1e12, 4e12, 1.6e13), sizes: int = 5) -> list[Experiment]:
    """A grid around C = 20 * 6 N^2."""
    found = []
    for C in budgets:
        middle = (C / 120) ** 0.5
        for i in range(sizes):
            N = round(middle * 2 ** (i - sizes // 2))
            found.append(
                Experiment(
                    experiment_id=f"C{C:.1e}_width{N}_s0_ab12cd34",
                    compute_budget=C,
                    size_param_value=N,
                    num_params=N,
                    num_tokens=round(C / (6 * N)),
                    flops_per_token=6.0 * N,
                    steps=STEPS,
                )
            )
    return found


def write_sweep(folder: Path, planned: list[Experiment] | None = None) -> SweepDirectory:
    """A planned sweep, nothing of it trained."""
    planned = experiments() if planned is None else planned
    plan = SweepPlan(
        experiments=planned,
        size_param="width",
        model_cls_name="toy.Net",
        model_kwargs={},
        compute_budgets=sorted({e.compute_budget for e in planned}),
    )
    sweep = SweepDirectory(folder)
    sweep.open(plan.to_dict(), {"model_cls": "toy.Net"})
    return sweep


def train(run: RunDirectory, experiment: Experiment, share: float, *, seconds: float = 0.5, loss: float = 3.0) -> None:
    """The logs that a run leaves behind after a share of its steps, each of so many seconds."""
    run.create()
    metrics, timing = CsvLog(run.metrics, METRICS), CsvLog(run.timing, TIMING)
    for step in range(1, round(share * STEPS) + 1):
        tokens = experiment.num_tokens * step / STEPS
        metrics.append({"step": step, "num_tokens": round(tokens), "lr": 0.1, "train_loss": loss + 1 / step})
        timing.append({"step": step, "unix_time": 1e9 + step, "seconds": round(seconds * step, 3)})


def complete(run: RunDirectory, experiment: Experiment) -> None:
    """Everything that a completed run leaves behind."""
    train(run, experiment, 0.05)
    loss = 1.7 + 400 / experiment.num_params**0.34 + 410 / experiment.num_tokens**0.28
    row = {"step": STEPS, "num_tokens": experiment.num_tokens, "val_loss": loss}
    CsvLog(run.metrics, METRICS).append(row)
    run.finish(
        {
            "num_tokens": experiment.num_tokens,
            "flops": experiment.flops,
            "unique_tokens": experiment.num_tokens,
            "metrics": {},
            "tokens_per_second": 5000.0,
        }
    )


def fail(run: RunDirectory, error: str) -> None:
    """A run that raised."""
    run.create()
    run.end(RunState.FAILED, error=error, traceback=error)
