"""Train one planned run in its directory, or go on with it."""

from __future__ import annotations

import gc
import logging
import math
import time
import traceback
import warnings
from collections.abc import Callable
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
from flops_fit.train.ranks import check_world_size, cluster_plugins, planned_world_size, rank_here
from flops_fit.train.steps import LONGEST_CHUNK, Step, StepChunks, StepTaker, watches_single_steps

logger = logging.getLogger(__name__)

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


def train_run(run: RunDirectory, experiment: Experiment, make_parts: Callable[[], RunParts]) -> RunState:
    """Train a run to exactly its tokens, evaluate it, and write its result.

    SIGTERM and SIGINT are taken as the wish to save and stop. Out of memory, the run goes on with micro-batches of
    half the size, twice as many a step, and gives the same result.

    Args:
        run: Its directory; what is there already is resumed.
        experiment: What was planned.
        make_parts: Builds model, data and Trainer arguments, fresh for each attempt.

    Returns:
        The state it ended in; a failure's traceback is in ``state.json``.

    Raises:
        RunError: Another process trains this run.
    """
    run.create()
    try:
        parts = make_parts()
    except Exception as error:
        with exclusive(run.lock, f"run {run.run_id}"):
            return RunState.COMPLETED if run.state() is RunState.COMPLETED else _ended(run, error)
    if rank_here(parts.trainer):
        return _train(run, experiment, parts, make_parts)
    with exclusive(run.lock, f"run {run.run_id}"):
        if run.state() is RunState.COMPLETED:
            return RunState.COMPLETED
        return _train(run, experiment, parts, make_parts)


def _train(run: RunDirectory, experiment: Experiment, parts: RunParts, make_parts: Callable[[], RunParts]) -> RunState:
    try:
        with _quiet_lightning():
            _with_enough_memory(run, experiment, parts, make_parts)
        return RunState.COMPLETED
    except Exception as error:
        return _ended(run, error, is_recorded=not rank_here(parts.trainer))


def _ended(run: RunDirectory, error: Exception, is_recorded: bool = True) -> RunState:
    """The state that an exception leaves a run in."""
    details = {"error": str(error) if isinstance(error, FlopsFitError) else f"{type(error).__name__}: {error}"}
    state = RunState.FAILED
    if isinstance(error, DivergedError):
        state = RunState.DIVERGED
    elif isinstance(error, InterruptedRunError):
        state = RunState.INTERRUPTED
    else:
        details["traceback"] = "".join(traceback.format_exception(error))
        logger.error("%s", details["traceback"])
    if is_recorded:
        run.set_state(state, **details)
    return state


def _with_enough_memory(
    run: RunDirectory, experiment: Experiment, parts: RunParts, make_parts: Callable[[], RunParts]
) -> None:
    """Attempts with ever smaller micro-batches, from the last checkpoint on."""
    accumulate = int(parts.trainer.get("accumulate_grad_batches") or 1)
    world = planned_world_size(parts.trainer) or 1
    while True:
        try:
            return _fit_and_evaluate(run, experiment, parts, accumulate)
        except Exception as error:
            # On several devices the other ranks wait for this one: the run fails, and says why.
            if not is_out_of_memory(error) or world > 1:
                raise
            micro = parts.batch_size // accumulate
            if micro % 2:
                raise RunError(
                    f"{run.run_id}: out of memory with a micro-batch of {micro} samples, which cannot be halved",
                    hint="train on a larger or on several devices, or leave this size out",
                ) from error
            accumulate *= 2
            logger.warning("out of memory: going on with micro-batches of %d samples", micro // 2)
        del parts  # what the failed attempt holds
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = make_parts()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _fit_and_evaluate(run: RunDirectory, experiment: Experiment, parts: RunParts, accumulate: int) -> None:
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
    arguments = {k: v for k, v in parts.trainer.items() if v is not None and k not in OWNED}
    arguments = _DEFAULTS | arguments | _OURS | {"accumulate_grad_batches": accumulate}
    is_chunked = watches_single_steps(module, arguments) is None
    checkpointer = Checkpointer(
        run, parts.checkpoint_interval, batches=lambda step: step if is_chunked else step * accumulate
    )

    def watch(step: Step) -> bool:
        budget.add(step.num_tokens)
        log.add(step)
        return budget.is_spent or checkpointer.stop_asked

    if is_chunked:
        clip, algorithm = arguments.pop("gradient_clip_val"), arguments.pop("gradient_clip_algorithm", None)
        module.step_taker = StepTaker(clip, algorithm, watch)
        del arguments["accumulate_grad_batches"]
    arguments["callbacks"] = [*(arguments.get("callbacks") or ()), budget, log, checkpointer]
    plugins = arguments.get("plugins") or ()
    plugins = [*(plugins if isinstance(plugins, (list, tuple)) else [plugins]), AtomicCheckpointIO()]
    arguments["plugins"] = plugins + cluster_plugins(parts.trainer)
    trainer = pl.Trainer(**arguments, max_steps=experiment.steps, default_root_dir=run.path)
    check_world_size(trainer, parts.trainer)
    done = load_checkpoint(run.checkpoint)["global_step"] if run.checkpoint.exists() else 0
    log.step = done
    if trainer.is_global_zero:
        log.rewind(done)
        log.heartbeat(trainer)
    loader: Any = parts.data.batches(
        parts.batch_size,
        experiment.steps,
        experiment.seed,
        start=done,
        rank=trainer.global_rank,
        world=trainer.world_size,
        accumulate=accumulate,
    )
    if done < experiment.steps:
        batches = loader
        if is_chunked:
            longest = LONGEST_CHUNK if parts.checkpoint_interval else 1
            batches = StepChunks(loader, experiment.steps, start=done, accumulate=accumulate, longest=longest)
        resume_from = run.checkpoint if done else None
        with checkpointer.listening():
            trainer.fit(module, train_dataloaders=batches, ckpt_path=resume_from, weights_only=True)
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
                "micro_batch": parts.batch_size // (accumulate * trainer.world_size),
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
