"""Train one planned run in its directory, or go on with it."""

from __future__ import annotations

import logging
import math
import os
import time
import traceback
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning

from flops_fit.errors import FlopsFitError, RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.runs.files import exclusive
from flops_fit.train.callbacks import Checkpointer, DivergedError, InterruptedRunError, RunLog, TokenBudget
from flops_fit.train.checkpoint import AtomicCheckpointIO, drop_optimizer_state, load_checkpoint
from flops_fit.train.data import SweepData
from flops_fit.train.guard import OWNED
from flops_fit.train.module import ScalingModule
from flops_fit.train.order import RepeatedBatches

EXIT_CODES = {RunState.COMPLETED: 0, RunState.DIVERGED: 0, RunState.FAILED: 1, RunState.INTERRUPTED: 75}

_OURS: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "max_epochs": -1,
}
_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "gradient_clip_val": 1.0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(kw_only=True)
class RunParts:
    """Everything that is needed to train one run, fresh.

    Attributes:
        module: The LightningModule, its network not yet built.
        data: Training and validation data.
        size_param: Name of the network's size parameter.
        batch_size: Global batch [samples].
        trainer: Arguments for the Trainer beyond our own.
        checkpoint_interval: Seconds between checkpoints.
        facts: What identifies the run; copied into its result.
    """

    module: ScalingModule
    data: SweepData
    size_param: str
    batch_size: int
    trainer: dict[str, Any] = field(default_factory=dict)
    checkpoint_interval: float = 60.0
    facts: dict[str, Any] = field(default_factory=dict)


def train_run(run: RunDirectory, experiment: Experiment, parts: RunParts) -> RunState:
    """Train a run to exactly its tokens, evaluate it, and write its result.

    SIGTERM and SIGINT are taken as the wish to save and stop.

    Args:
        run: Its directory; what is there already is resumed.
        experiment: What was planned.
        parts: Model, data and Trainer arguments.

    Returns:
        The state it ended in; a failure's traceback is in ``state.json``.

    Raises:
        RunError: Another process trains this run.
    """
    run.create()
    if int(os.environ.get("LOCAL_RANK", 0)):
        return _train(run, experiment, parts)
    with exclusive(run.lock, f"run {run.run_id}"):
        if run.state() is RunState.COMPLETED:
            return RunState.COMPLETED
        return _train(run, experiment, parts)


def _train(run: RunDirectory, experiment: Experiment, parts: RunParts) -> RunState:
    is_first = not int(os.environ.get("LOCAL_RANK", 0))
    try:
        with _quiet_lightning():
            _fit_and_evaluate(run, experiment, parts)
        return RunState.COMPLETED
    except DivergedError as error:
        state, details = RunState.DIVERGED, {"error": str(error)}
    except InterruptedRunError as error:
        state, details = RunState.INTERRUPTED, {"error": str(error)}
    except Exception as error:
        message = str(error) if isinstance(error, FlopsFitError) else f"{type(error).__name__}: {error}"
        state, details = RunState.FAILED, {"error": message, "traceback": traceback.format_exc()}
        logging.getLogger(__name__).error("%s", details["traceback"])
    if is_first:
        run.set_state(state, **details)
    return state


def _fit_and_evaluate(run: RunDirectory, experiment: Experiment, parts: RunParts) -> None:
    started = time.monotonic()
    assert experiment.steps is not None
    pl.seed_everything(experiment.seed, workers=True, verbose=False)
    module = parts.module
    module.begin({parts.size_param: experiment.size_param_value}, experiment.steps)
    net: Any = module.net  # what planning has seen has num_params()
    built = net.num_params()
    if built != experiment.num_params:
        raise RunError(f"{run.run_id}: the model has {built} parameters, the plan says {experiment.num_params}")
    budget = TokenBudget(experiment.num_tokens)
    log = RunLog(run, experiment, budget)
    checkpointer = Checkpointer(run, parts.checkpoint_interval)
    arguments = parts.trainer | {
        "callbacks": [*(parts.trainer.get("callbacks") or ()), budget, log, checkpointer],
        "plugins": [*(parts.trainer.get("plugins") or ()), AtomicCheckpointIO()],
    }
    arguments = _DEFAULTS | {k: v for k, v in arguments.items() if v is not None and k not in OWNED} | _OURS
    trainer = pl.Trainer(**arguments, max_steps=experiment.steps, default_root_dir=run.path)
    done = load_checkpoint(run.checkpoint)["global_step"] if run.checkpoint.exists() else 0
    if trainer.is_global_zero:
        log.rewind(done)
        log.heartbeat(trainer, done)
    loader = parts.data.batches(
        parts.batch_size,
        experiment.steps,
        experiment.seed,
        start=done,
        rank=trainer.global_rank,
        world=trainer.world_size,
        accumulate=trainer.accumulate_grad_batches,
    )
    if done < experiment.steps:
        resume_from = run.checkpoint if done else None
        with checkpointer.listening():
            trainer.fit(module, train_dataloaders=loader, ckpt_path=resume_from, weights_only=True)
        budget.check(run.run_id)
        trainer.save_checkpoint(run.checkpoint)
    else:  # killed between the last step and the result
        module.load_state_dict(load_checkpoint(run.checkpoint)["state_dict"])
        budget.num_tokens = experiment.num_tokens
    trainer.validate(module, dataloaders=parts.data.val, verbose=False)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    loss = metrics.pop("val_loss", math.nan)
    if trainer.is_global_zero:
        log.evaluated(experiment.steps, loss)
    if not math.isfinite(loss):
        raise DivergedError(f"{run.run_id}: the evaluation loss is {loss}")
    if trainer.is_global_zero:
        drop_optimizer_state(run.checkpoint)
        run.finish(
            experiment.to_dict()
            | parts.facts
            | {
                "loss": loss,
                "metrics": metrics,
                "unique_tokens": _unique_tokens(parts, experiment, loader),
                "seconds": round(time.monotonic() - started, 3),
                "device": str(trainer.strategy.root_device),
                "world_size": trainer.world_size,
                "precision": str(trainer.precision),
                "torch": torch.__version__,
                "lightning": version("lightning"),
            }
        )


def _unique_tokens(parts: RunParts, experiment: Experiment, loader: object) -> int:
    """Tokens seen for the first time: all of them in the first epoch, nothing after it."""
    assert experiment.steps is not None
    per_sample = experiment.num_tokens // (experiment.steps * parts.batch_size)
    samples = parts.data.num_samples
    if isinstance(loader, RepeatedBatches) and loader.first_epoch is not None:
        samples = loader.first_epoch * loader.batch
    return experiment.num_tokens if samples is None else min(experiment.num_tokens, samples * per_sample)


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801
    """Keeps Lightning's advice, which is not for this kind of run, out of the output."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for message in (r".*isinstance\(treespec, LeafSpec\).*", r".*logger.*is disabled.*", r".*DataLoader running.*"):
            warnings.filterwarnings("ignore", message=message)
        return entered
