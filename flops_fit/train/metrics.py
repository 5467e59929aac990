"""Validation metrics of the user's choice: torchmetrics, by name, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from flops_fit.errors import PlanError
from flops_fit.runs.table import COLUMNS
from flops_fit.train.class_path import build

# Columns of the tables that metrics stand beside.
_TAKEN = {*COLUMNS, "val_loss"}


def made_metrics(metrics: Mapping[str, Metric | Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics by name, those given as ``{class_path: ..., init_args: ...}`` built.

    Raises:
        PlanError: One is no metric, or its name stands for something else.
    """
    if not isinstance(metrics, Mapping):
        raise PlanError(f"metrics is {type(metrics).__name__}, not a mapping", hint="give {name: metric}")
    made = {}
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name or name in _TAKEN or name.startswith("loss/"):
            raise PlanError(f"a metric cannot be called {name!r}", hint="choose a name that no other column has")
        if isinstance(metric, type) and issubclass(metric, Metric):
            raise PlanError(
                f"metrics: {name} is the class {metric.__name__}, not an instance",
                hint=f"pass {metric.__name__}(...), or its class_path and init_args",
            )
        if not isinstance(metric, Metric):
            metric = build(metric, f"metrics: {name}", Metric, "torchmetrics")
        made[name] = metric.clone()  # the next run has its own
    return made


def check_metrics(metrics: Mapping[str, Metric], outputs: Any, targets: Any) -> None:
    """Try every metric on the outputs and targets of one batch.

    Raises:
        PlanError: Some cannot be computed from them, or give no single number; all are named.
    """
    problems = []
    for name, metric in metrics.items():
        try:
            metric.update(outputs, targets)
            value = metric.compute()
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            problems.append(f"{name} ({type(metric).__name__}) fails: {type(error).__name__}: {first}")
        else:
            if not isinstance(value, (int, float)) and not (isinstance(value, Tensor) and value.numel() == 1):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                problems.append(f"{name} ({type(metric).__name__}) gives {shape}, not a number")
        finally:
            metric.reset()
    if problems:
        raise PlanError(
            f"metrics, on outputs {_shape(outputs)} and targets {_shape(targets)}: " + "; ".join(problems),
            hint="metrics are updated with (outputs, targets) of every validation batch; override"
            " ScalingModule.compute_outputs to hand them something else",
        )


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def keep_apart(module: nn.Module) -> None:
    """Let every process keep its own sums: each evaluates all held-out data, and adding up would count it twice."""
    for metric in module.modules():
        if isinstance(metric, Metric):
            metric.distributed_available_fn = _never


def _never() -> bool:
    return False
