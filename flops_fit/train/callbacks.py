"""What watches a run: its token budget, its logs, its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from flops_fit.errors import RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import HEARTBEAT_SECONDS, RunDirectory, RunState
from flops_fit.runs.files import CsvLog
from flops_fit.train.checkpoint import load_checkpoint, random_states, restore_random_states
from flops_fit.train.module import ScalingModule
from flops_fit.train.order import RepeatedBatches
from flops_fit.train.steps import Step, align_loops
from flops_fit.train.stopping import STOP

METRICS = ("step", "num_tokens", "lr", "train_loss", "val_loss")
TIMING = ("step", "unix_time", "seconds")
_ROWS_PER_RUN = 200


class DivergedError(RunError):
    """The loss is not a finite number."""


class InterruptedRunError(RunError):
    """The run was asked to stop; it goes on from its checkpoint when started again."""


class TokenBudget(pl.Callback):
    """Counts tokens and stops at the budget; a run that ends elsewhere is an error, not a result.

    ``max_steps`` stops runs of equal batches; this is the stop for batches of varying length, and the check for all.

    Args:
        num_tokens: The budget, summed over ranks [tokens or samples].
    """

    def __init__(self, num_tokens: int) -> None:
        self.budget = num_tokens
        self.num_tokens = 0

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"num_tokens": self.num_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The count, after a resume."""
        self.num_tokens = state_dict["num_tokens"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop at once where a reloaded checkpoint has used the budget up."""
        trainer.should_stop = self.is_spent

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count a micro-batch of every rank; steps taken in chunks were counted one by one."""
        assert isinstance(pl_module, ScalingModule)
        if pl_module.step_taker is None:
            count = pl_module.count_tokens(batch)
            if trainer.world_size > 1:
                count = int(trainer.strategy.reduce(torch.tensor(count, device=pl_module.device), reduce_op="sum"))
            self.add(count)
        trainer.should_stop = self.is_spent

    def add(self, num_tokens: int) -> None:
        """Count a batch."""
        self.num_tokens += num_tokens

    @property
    def is_spent(self) -> bool:
        """Whether the run has seen what it was to see."""
        return self.num_tokens >= self.budget

    def check(self, experiment_id: str) -> None:
        """Compare with the plan.

        Raises:
            RunError: Another number of tokens was trained on than planned.
        """
        if self.num_tokens != self.budget:
            raise RunError(
                f"{experiment_id} was trained on {self.num_tokens} tokens, not on the {self.budget} planned",
                hint="batches differ in size from the example the plan was made with; make them equal, or override"
                " count_tokens",
            )


class RunLog(pl.Callback):
    """Writes metrics.csv (the same for every repetition), timing.csv (clocks) and the heartbeat; stops at NaN.

    Losses stay on the device between rows, of which a run has about 200.

    Args:
        run: Where to write.
        experiment: The planned run.
        budget: Counts the tokens.
        also: Told of every row too: ``(row, step)``.

    Attributes:
        step: Optimiser steps done.
    """

    def __init__(
        self,
        run: RunDirectory,
        experiment: Experiment,
        budget: TokenBudget,
        also: Callable[[dict[str, float], int], None] = lambda row, step: None,  # noqa: ARG005
    ) -> None:
        self.run, self.budget, self.also = run, budget, also
        self.steps = experiment.steps or 1
        self.every = max(1, self.steps // _ROWS_PER_RUN)
        self.metrics, self.timing = CsvLog(run.metrics, METRICS), CsvLog(run.timing, TIMING)
        self.step = 0
        self._started, self._beat = time.monotonic(), -math.inf
        self._pending: list[tuple[int, int, float, Tensor]] = []
        self._rate = math.nan
        self._loss: Tensor | None = None
        self._norm: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """The largest gradient norm so far."""
        return {"largest_gradient_norm": self.largest_gradient_norm}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The norm, after a resume."""
        norm = state_dict["largest_gradient_norm"]
        self._norm = None if norm is None else torch.tensor(norm)

    @property
    def largest_gradient_norm(self) -> float | None:
        """Over all steps, before clipping; None without clipping by norm."""
        return None if self._norm is None else float(self._norm)

    def recall(self, checkpoint: Mapping[str, Any]) -> None:
        """The norm from a checkpoint of a run whose training had ended."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None:
            self.load_state_dict(state)

    def rewind(self, step: int) -> None:
        """Forget what was logged after a checkpoint's step."""
        self.metrics.rewind(step, required="train_loss")  # an evaluation is made again as well
        self.timing.rewind(step)
        self.step = step

    def add(self, step: Step) -> None:
        """Take note of an optimiser step; rows are written by ``flush``."""
        self.step += 1
        if step.gradient_norm is not None:
            norm = step.gradient_norm.detach()
            self._norm = norm if self._norm is None else torch.maximum(self._norm.to(norm.device), norm)
        if self.step == 1 or self.step % self.every == 0 or self.step >= self.steps:
            self._pending.append((self.step, self.budget.num_tokens, step.lr, step.loss))

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Note the first group's rate before the scheduler moves on."""
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Write the rows that are due; micro-batches of an unfinished step leave ``global_step`` as it was."""
        assert isinstance(pl_module, ScalingModule)
        if pl_module.step_taker is None:
            if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
                # Lightning has divided it by the number of micro-batches.
                part = outputs["loss"].detach()
                self._loss = part if self._loss is None else self._loss + part
            if trainer.global_step == self.step:
                return
            if self._loss is None:
                raise RunError(
                    f"{self.run.run_id}: {type(pl_module).__qualname__}.training_step returned no loss",
                    hint="return the loss, or a mapping with the key 'loss', so that it can be logged",
                )
            loss = self._loss
            if trainer.world_size > 1:
                loss = trainer.strategy.reduce(loss, reduce_op="mean")
            self.add(Step(loss=loss, lr=self._rate, num_tokens=0, gradient_norm=pl_module.gradient_norm))
            self._loss = None
        self.flush(trainer)
        self._beat_if_due(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """A long evaluation is no end of the run."""
        self._beat_if_due(trainer)

    def _beat_if_due(self, trainer: pl.Trainer) -> None:
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self.heartbeat(trainer)

    def heartbeat(self, trainer: pl.Trainer) -> None:
        """Say that the run is alive and how far it is."""
        self._beat = time.monotonic()
        if trainer.is_global_zero:
            self.run.set_state(RunState.RUNNING, step=self.step, num_tokens=self.budget.num_tokens)

    def flush(self, trainer: pl.Trainer) -> None:
        """Write the rows that wait.

        Raises:
            DivergedError: A loss is not a finite number.
        """
        pending, self._pending = self._pending, []
        rows = [
            {"step": step, "num_tokens": num_tokens, "lr": lr, "train_loss": float(loss)}
            for step, num_tokens, lr, loss in pending
        ]
        bad = next((row for row in rows if not math.isfinite(row["train_loss"])), None)
        rows = rows if bad is None else rows[: rows.index(bad) + 1]
        if rows and trainer.is_global_zero:
            self.metrics.append(*rows)
            clocks = {"unix_time": round(time.time(), 3), "seconds": round(time.monotonic() - self._started, 3)}
            self.timing.append(*({"step": row["step"]} | clocks for row in rows))
            for row in rows:
                self.also(row, int(row["step"]))
        if bad is not None:
            raise DivergedError(f"{self.run.run_id}: the training loss is {bad['train_loss']} at step {bad['step']}")

    def evaluated(self, step: int, loss: float) -> None:
        """Log the final evaluation."""
        row = {"step": step, "num_tokens": self.budget.num_tokens, "val_loss": loss}
        self.metrics.append(row)
        self.also(row, step)


class Checkpointer(pl.Callback):
    """Saves by time, and when asked to stop; carries the random states.

    Args:
        run: Where to save.
        interval: Seconds between two checkpoints; 0 for one after every step.
        batches: What this run's loader counts for so many steps.
    """

    def __init__(self, run: RunDirectory, interval: float, batches: Callable[[int], int]) -> None:
        self.path, self.interval, self.batches = run.checkpoint, interval, batches
        self._last, self._last_step = time.monotonic(), 0
        self._restored: dict[str, Any] | None = None
        self.loader: RepeatedBatches | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Listen again: Lightning has added a handler that would leave in the middle of a step."""
        STOP.listen()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Listen again."""
        STOP.listen()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Leave an evaluation, which is made again; of several processes none may leave alone."""
        if STOP.is_asked and trainer.world_size == 1:
            raise InterruptedRunError("stopped during its evaluation; start it again to go on")

    def state_dict(self) -> dict[str, Any]:
        """The random states of this process, and where a loader with an order of its own is."""
        return random_states() | {"loader": self.loader.place(self._last_step) if self.loader is not None else None}

    def place_of_loader(self, checkpoint: Path | None) -> dict[str, Any] | None:
        """Where the loader was when a checkpoint was saved."""
        if checkpoint is None:
            return None
        state: dict[str, Any] = load_checkpoint(checkpoint).get("callbacks", {}).get(self.state_key, {})
        return state.get("loader")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the first batch: what Lightning draws before it must not count."""
        self._restored = state_dict

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """This run may cut its steps into other batches than the one that saved."""
        step = checkpoint["global_step"]
        align_loops(checkpoint, step, self.batches(step))

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Restore the random states once."""
        if self._restored is not None:
            restore_random_states(self._restored)
            self._restored = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Save after an optimiser step when it is time, on all ranks together."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        due = STOP.is_asked or time.monotonic() - self._last >= self.interval
        stop = STOP.is_asked
        if trainer.world_size > 1:
            flags: Tensor = torch.tensor([float(due), float(stop)], device=pl_module.device)
            flags = trainer.strategy.reduce(flags, reduce_op="max")
            due, stop = bool(flags[0]), bool(flags[1])
        if due:
            trainer.save_checkpoint(self.path)
            self._last = time.monotonic()
        if stop:
            raise InterruptedRunError(f"stopped at step {trainer.global_step}; start it again to go on")
