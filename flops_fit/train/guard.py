"""What of Lightning's Trainer is ours to set, and which key of ours does instead what the user meant by it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from flops_fit.errors import PlanError

_LENGTH = "a run trains on exactly the tokens its budget buys: set sweep.compute_budgets"
_EVALUATION = "a run is evaluated once, with its final weights; more sets or metrics are data's val_dataset and metrics"

# What a Trainer argument would change, and the key that decides it. A run's length, its logs, its files and the order
# of its data are decided by the plan.
_REASONS = {
    "max_steps": _LENGTH,
    "max_epochs": _LENGTH,
    "max_time": _LENGTH,
    "min_steps": _LENGTH,
    "min_epochs": _LENGTH,
    "limit_train_batches": _LENGTH,
    "overfit_batches": _LENGTH,
    "fast_dev_run": f"{_LENGTH}, lower for a trial",
    "logger": "every run writes metrics.csv; further loggers are sweep.loggers",
    "enable_checkpointing": "runs save by themselves: set sweep.checkpoint_interval",
    "default_root_dir": "runs are written below sweep.output_dir",
    "use_distributed_sampler": "the order of the samples is a function of the seed, the same on any number of devices",
    "reload_dataloaders_every_n_epochs": "a run has one loader, whose position a resume restores",
    "val_check_interval": _EVALUATION,
    "check_val_every_n_epoch": _EVALUATION,
    "barebones": "it switches off the logging that the evaluation is read from",
}
OWNED = tuple(_REASONS)

# Saying what is so anyway is no mistake.
_HARMLESS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
    "max_epochs": -1,
    "max_steps": -1,
}

_CALLBACKS: list[tuple[type, str]] = [
    (callbacks.EarlyStopping, "a run cut short breaks the IsoFLOP constraint: its loss belongs to no budget"),
    (callbacks.Timer, f"it would cut runs short; {_LENGTH}"),
    (callbacks.Checkpoint, "runs save by themselves and keep their final weights: set sweep.checkpoint_interval"),
    (callbacks.GradientAccumulationScheduler, "it changes the batch within a run; set trainer.accumulate_grad_batches"),
    (callbacks.BatchSizeFinder, "the global batch is one for the whole sweep: set batch_size"),
    (callbacks.LearningRateFinder, "it would train runs at rates of their own: set the model's lr"),
    (callbacks.LearningRateMonitor, "it needs the Trainer's logger; the rate is in metrics.csv and in sweep.loggers"),
    (callbacks.DeviceStatsMonitor, "it needs the Trainer's logger; peak memory and throughput are in result.json"),
    (callbacks.ThroughputMonitor, "it needs the Trainer's logger; throughput and utilisation are in result.json"),
]


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuse Trainer arguments and callbacks that would change what the plan decides.

    Args:
        arguments: Of the Trainer; a callback is an instance, or a mapping with ``class_path``.

    Raises:
        PlanError: Some are there; all are named, each with the key that is ours.
    """
    defaults = inspect.signature(pl.Trainer).parameters
    problems = [
        f"trainer.{name} cannot be set: {reason}"
        for name, reason in _REASONS.items()
        if arguments.get(name) is not None
        and arguments[name] != defaults[name].default
        and arguments[name] != _HARMLESS.get(name)
    ]
    for callback in _listed(arguments.get("callbacks")):
        kind = _class_of(callback)
        reason = next((reason for ours, reason in _CALLBACKS if issubclass(kind, ours)), None)
        if reason is not None:
            problems.append(f"trainer.callbacks cannot hold {kind.__name__}: {reason}")
    if problems:
        raise PlanError("\n".join(problems), hint=f"remove {'it' if len(problems) == 1 else 'them'}")
    _check_names(arguments)


def _check_names(arguments: Mapping[str, Any]) -> None:
    """Refuse strategies, accelerators and numbers of devices that there are nowhere, whatever machine trains."""
    known = {
        "strategy": {"auto", *StrategyRegistry.available_strategies()},
        "accelerator": {"auto", "gpu", *AcceleratorRegistry.available_accelerators()},
    }
    for name, names in known.items():
        given = arguments.get(name)
        if isinstance(given, str) and given not in names:
            near = difflib.get_close_matches(given, sorted(names), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
            raise PlanError(f"trainer.{name}: there is no {given!r}", hint=hint)
    devices = arguments.get("devices")
    if isinstance(devices, str) and not re.fullmatch(r"auto|-1|\d+(,\s*\d+)*,?", devices.strip()):
        raise PlanError(f"trainer.devices: {devices!r} is not a number of devices", hint="write 2, auto, or [0, 1]")


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _class_of(callback: Any) -> type:
    """A callback's class; of one that cannot be found, ``object``: building it will say so."""
    if not isinstance(callback, Mapping):
        return type(callback)
    module, _, name = str(callback.get("class_path")).rpartition(".")
    try:
        # As in Lightning's YAML, a bare name is one of Lightning's own callbacks.
        found = getattr(importlib.import_module(module), name) if module else getattr(callbacks, name)
    except (ImportError, AttributeError):
        return object
    return found if isinstance(found, type) else object
