"""Several optimiser steps in one call of ``training_step``: what a Trainer costs per call is then paid once for all.

A Trainer adds 0.3 to 0.5 ms a call. Steps of a small model take 2 ms, so up to 32 of them are done in one call, with
manual optimisation. Where anything of the user's watches or changes single steps, there is one step a call and
Lightning's own, automatic, optimisation: the numbers are the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from flops_fit.train.module import ScalingModule
from flops_fit.train.ranks import planned_world_size

# A chunk ends often enough for signals, heartbeats and checkpoints, and holds no more data than a device can spare.
LONGEST_CHUNK = 32
_SECONDS = 0.2
_BYTES = 2**26

_MODULE_HOOKS = (
    "training_step configure_optimizers configure_gradient_clipping optimizer_step optimizer_zero_grad backward"
    " lr_scheduler_step on_train_batch_start on_train_batch_end on_before_zero_grad on_before_backward"
    " on_after_backward on_before_optimizer_step transfer_batch_to_device on_before_batch_transfer"
    " on_after_batch_transfer"
).split()
_CALLBACK_HOOKS = (
    "on_train_batch_start on_train_batch_end on_before_zero_grad on_before_backward on_after_backward"
    " on_before_optimizer_step"
).split()
# Those in which a step is nothing but backward and step; a gradient scaler has its own order of things.
_PRECISIONS = ("32-true", "32", 32, "64-true", "64", 64, "bf16-mixed", "bf16-true", "bf16")


def watches_single_steps(module: ScalingModule, trainer: dict[str, Any]) -> str | None:
    """What forbids chunks: a hook of the user's, several devices, a logger, a profiler; None where nothing does.

    Args:
        module: The module that will be trained.
        trainer: The arguments the Trainer will get.
    """
    for name in _MODULE_HOOKS:
        if getattr(type(module), name) is not getattr(ScalingModule, name):
            return f"{type(module).__qualname__}.{name}"
    for callback in trainer.get("callbacks") or ():
        for name in _CALLBACK_HOOKS:
            if getattr(type(callback), name) is not getattr(pl.Callback, name):
                return f"{type(callback).__qualname__}.{name}"
    for name in ("profiler", "logger", "detect_anomaly"):
        if trainer.get(name):
            return f"trainer.{name}"
    if planned_world_size(trainer) != 1:
        return f"trainer.devices={trainer['devices']}"
    if str(trainer.get("strategy", "auto")) not in ("auto", "single_device"):
        return f"trainer.strategy={trainer['strategy']}"
    if trainer.get("precision") is not None and trainer["precision"] not in _PRECISIONS:
        return f"trainer.precision={trainer['precision']}"
    return None


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimiser step came to.

    Attributes:
        loss: Mean over the micro-batches of this process, still on the device.
        lr: Of the first parameter group.
        num_tokens: In the batch of this process [tokens or samples].
        gradient_norm: Before clipping, still on the device; None without clipping by norm.
    """

    loss: Tensor
    lr: float
    num_tokens: int
    gradient_norm: Tensor | None


class StepChunks:
    """A loader's micro-batches as chunks: lists of whole steps, each a list of micro-batches.

    Chunks grow until one takes about a fifth of a second. How many steps are in one never changes a number.

    Args:
        loader: Micro-batches.
        steps: Optimiser steps of the whole run.
        start: Steps already done; the loader begins after them.
        accumulate: Micro-batches a step.
        longest: Most steps in a chunk.
    """

    def __init__(
        self, loader: Iterable[Any], steps: int, *, start: int, accumulate: int, longest: int = LONGEST_CHUNK
    ) -> None:
        self.loader, self.steps, self.left = loader, steps, steps - start
        self.accumulate, self.longest = accumulate, longest

    def __len__(self) -> int:
        # Of the whole run, in steps: Lightning compares it with the count of batches done, which a resume restores.
        return self.steps

    def __iter__(self) -> Iterator[list[list[Any]]]:
        micro_batches, left, size = iter(self.loader), self.left, 1
        while left > 0:
            began = time.perf_counter()
            chunk = [list(islice(micro_batches, self.accumulate)) for _ in range(min(size, left))]
            chunk = [step for step in chunk if step]
            if not chunk:
                return
            left -= len(chunk)
            limit = min(self.longest, 1 + _BYTES // (1 + _nbytes(chunk[0])))
            yield chunk
            seconds = time.perf_counter() - began
            size = min(limit, 2 * size) if seconds < _SECONDS / 2 else max(1, size // 2) if seconds > _SECONDS else size


def _nbytes(step: Sequence[Any]) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(step) if isinstance(leaf, Tensor))


class StepTaker:
    """Takes the steps of a chunk, as Lightning's automatic optimisation would.

    Args:
        clip: Bound of gradients; None or 0 for none.
        algorithm: "norm" or "value".
        watch: Told of every step; True ends the chunk.
    """

    def __init__(self, clip: float | None, algorithm: str | None, watch: Callable[[Step], bool]) -> None:
        self.clip, self.algorithm, self.watch = clip, algorithm or "norm", watch

    def __call__(self, module: ScalingModule, chunk: list[list[Any]]) -> None:
        """Take the steps of ``chunk`` with the module's optimizer and schedule."""
        # Not Lightning's wrapper of the optimizer: it calls hooks that nobody here overrides, a tenth of a small step.
        optimizer, scheduler = module.optimizers(use_pl_optimizer=False), module.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        progress = module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        is_mixed = torch.is_autocast_enabled(module.device.type)
        for micro_batches in chunk:
            loss: Tensor | None = None
            for batch in micro_batches:
                part = module.compute_loss(module.net, batch)
                if len(micro_batches) > 1:
                    part = part / len(micro_batches)
                with torch.autocast(module.device.type, enabled=False) if is_mixed else contextlib.nullcontext():
                    part.backward()  # type: ignore[no-untyped-call]
                loss = part.detach() if loss is None else loss + part.detach()
            norm = module.clip(optimizer, self.clip, self.algorithm)
            rate = optimizer.param_groups[0]["lr"]
            progress.increment_ready()
            optimizer.step()
            progress.increment_completed()
            optimizer.zero_grad()
            scheduler.step()
            if is_mixed:
                torch.clear_autocast_cache()  # it holds the weights as they were
            assert loss is not None  # a step has a micro-batch at least
            num_tokens = sum(module.count_tokens(batch) for batch in micro_batches)
            if self.watch(Step(loss=loss, lr=rate, num_tokens=num_tokens, gradient_norm=norm)):
                return


def align_loops(checkpoint: dict[str, Any], step: int, batches: int) -> None:
    """Let a checkpoint's loops say that ``step`` steps were done in ``batches`` batches.

    Lightning counts batches, and counts steps in one place for automatic and in another for manual optimisation; a
    resumed run may cut its steps otherwise than the run that wrote the checkpoint.

    Args:
        checkpoint: As Lightning wrote it at the end of a batch; changed in place.
        step: Optimiser steps done.
        batches: What the resumed run would have counted for them.
    """
    loop = checkpoint["loops"]["fit_loop"]
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    done = {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    loop["epoch_loop.batch_progress"] |= {"total": dict(done), "current": dict(done), "is_last_batch": False}
    steps = {"ready": step, "completed": step}
    automatic = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    automatic["step"] = {"total": dict(steps), "current": dict(steps)}
    loop["epoch_loop.manual_optimization.optim_step_progress"] = {"total": dict(steps), "current": dict(steps)}
