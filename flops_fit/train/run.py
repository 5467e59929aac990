"""Train one planned run in its directory, or go on with it."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning

from flops_fit.errors import RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import VERBOSE, RunDirectory, RunState
from flops_fit.train.attempt import Attempt, RunParts
from flops_fit.train.callbacks import DivergedError, InterruptedRunError
from flops_fit.train.failure import failure_details, is_out_of_memory
from flops_fit.train.memory import MicroBatches
from flops_fit.train.ranks import planned_world_size, rank_here
from flops_fit.train.stopping import STOP

logger = logging.getLogger(__name__)

EXIT_CODES = {RunState.COMPLETED: 0, RunState.DIVERGED: 0, RunState.FAILED: 1, RunState.INTERRUPTED: 75}


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
        RunError: Another process trains this run, or its directory cannot be written.
    """
    try:
        parts = [make_parts()]  # in a list, so that whoever takes them is the only one to hold them
    except Exception as error:
        with run.claimed():
            return RunState.COMPLETED if run.state() is RunState.COMPLETED else _ended(run, error)
    if rank_here(parts[0].trainer):
        return _train(run, experiment, parts, make_parts, is_recorded=False)
    with run.claimed():
        if run.state() is RunState.COMPLETED:
            return RunState.COMPLETED
        return _train(run, experiment, parts, make_parts)


def _train(
    run: RunDirectory,
    experiment: Experiment,
    parts: list[RunParts],
    make_parts: Callable[[], RunParts],
    is_recorded: bool = True,
) -> RunState:
    try:
        with _quiet_lightning(), STOP.listening():
            _with_enough_memory(run, experiment, parts, make_parts)
        return RunState.COMPLETED
    except (KeyboardInterrupt, SystemExit) as error:  # before or after the time in which signals are only noted
        return _ended(run, InterruptedRunError(f"stopped by {type(error).__name__}"), is_recorded)
    except Exception as error:
        return _ended(run, error, is_recorded)


def _ended(run: RunDirectory, error: Exception, is_recorded: bool = True) -> RunState:
    """The state that an exception leaves a run in."""
    state, details = RunState.FAILED, {"error": str(error)}
    if isinstance(error, DivergedError):
        state = RunState.DIVERGED
    elif isinstance(error, InterruptedRunError):
        state = RunState.INTERRUPTED
    elif STOP.is_asked:  # of several processes, another may have left first
        state, details = RunState.INTERRUPTED, {"error": f"stopped; start it again to go on ({error})"}
    else:
        details = failure_details(error)
        logger.error("%s", details["traceback"])
    if is_recorded:
        run.end(state, **details)
    return state


def _with_enough_memory(
    run: RunDirectory, experiment: Experiment, parts: list[RunParts], make_parts: Callable[[], RunParts]
) -> None:
    """Attempts with ever smaller micro-batches, from the last checkpoint on."""
    trainer, batch = parts[0].trainer, parts[0].batch_size
    world, is_first = planned_world_size(trainer) or 1, not rank_here(trainer)
    micro_batches = MicroBatches(run, batch, world, int(trainer.get("accumulate_grad_batches") or 1))
    while True:
        if STOP.is_asked and world == 1:
            raise InterruptedRunError("stopped before its first step; start it again to go on")
        try:
            return Attempt(run, experiment, parts.pop(), micro_batches.accumulate).complete()
        except Exception as error:
            before = micro_batches.size
            if is_out_of_memory(error):
                try:
                    micro_batches.halve()
                except RunError as cannot:
                    raise cannot from error
            elif not micro_batches.are_too_large():
                raise
            told = f"out of memory with micro-batches of {before} samples: going on with smaller ones"
            if world > 1:  # the processes of the run only start again together
                raise InterruptedRunError(told) if is_first else RunError(told) from error
            logger.warning("%s", told)
        gc.collect()  # the failed attempt, which refers to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts.append(make_parts())


class _quiet_lightning(warnings.catch_warnings):  # noqa: N801
    """Keeps Lightning's advice, which is not for this kind of run, out of the output, unless it is asked for."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        if os.environ.get(VERBOSE):
            return entered
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for message in (r".*isinstance\(treespec, LeafSpec\).*", r".*logger.*is disabled.*", r".*DataLoader running.*"):
            warnings.filterwarnings("ignore", message=message)
        return entered
