"""What watches a run: its token budget, its logs, its checkpoints."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from flops_fit.errors import RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import HEARTBEAT_SECONDS, RunDirectory, RunState
from flops_fit.runs.files import CsvLog
from flops_fit.train.checkpoint import random_states, restore_random_states
from flops_fit.train.module import ScalingModule

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
        trainer.should_stop = self.num_tokens >= self.budget

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Count a micro-batch of every rank."""
        assert isinstance(pl_module, ScalingModule)
        count = pl_module.count_tokens(batch)
        if trainer.world_size > 1:
            count = int(trainer.strategy.reduce(torch.tensor(count, device=pl_module.device), reduce_op="sum"))
        self.num_tokens += count
        if self.num_tokens >= self.budget:
            trainer.should_stop = True

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

    Args:
        run: Where to write.
        experiment: The planned run.
        budget: Counts the tokens.
    """

    def __init__(self, run: RunDirectory, experiment: Experiment, budget: TokenBudget) -> None:
        self.run, self.budget = run, budget
        self.steps = experiment.steps or 1
        self.every = max(1, self.steps // _ROWS_PER_RUN)
        self.metrics, self.timing = CsvLog(run.metrics, METRICS), CsvLog(run.timing, TIMING)
        self._started, self._beat, self._last_step = time.monotonic(), -math.inf, -1
        self._rate: float | None = None

    def rewind(self, step: int) -> None:
        """Forget what was logged after a checkpoint's step."""
        self.metrics.rewind(step, required="train_loss")  # an evaluation is made again as well
        self.timing.rewind(step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """A resumed run has done steps already; they are not logged again."""
        self._last_step = trainer.global_step

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
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log every k-th optimiser step; micro-batches in between leave ``global_step`` as it was."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        if step % self.every == 0 or step >= self.steps:
            loss = outputs["loss"].detach()
            if trainer.world_size > 1:
                loss = trainer.strategy.reduce(loss, reduce_op="mean")
            self._write(trainer, step, float(loss) * trainer.accumulate_grad_batches)
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self.heartbeat(trainer, step)

    def heartbeat(self, trainer: pl.Trainer, step: int) -> None:
        """Say that the run is alive and how far it is."""
        self._beat = time.monotonic()
        if trainer.is_global_zero:
            self.run.set_state(RunState.RUNNING, step=step, num_tokens=self.budget.num_tokens)

    def _write(self, trainer: pl.Trainer, step: int, loss: float) -> None:
        if trainer.is_global_zero:
            row = {"step": step, "num_tokens": self.budget.num_tokens, "lr": self._rate, "train_loss": loss}
            self.metrics.append(row)
            now = time.monotonic() - self._started
            self.timing.append({"step": step, "unix_time": round(time.time(), 3), "seconds": round(now, 3)})
        if not math.isfinite(loss):
            raise DivergedError(f"{self.run.run_id}: the training loss is {loss} at step {step}")

    def evaluated(self, step: int, loss: float) -> None:
        """Log the final evaluation."""
        self.metrics.append({"step": step, "num_tokens": self.budget.num_tokens, "val_loss": loss})


class Checkpointer(pl.Callback):
    """Saves by time, and when asked to stop; carries the random states.

    Args:
        run: Where to save.
        interval: Seconds between two checkpoints; 0 for one after every step.
    """

    def __init__(self, run: RunDirectory, interval: float) -> None:
        self.path, self.interval = run.checkpoint, interval
        self.stop_asked = False
        self._last, self._last_step = time.monotonic(), 0
        self._restored: dict[str, Any] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT, for the block, as the wish to save and stop at the next step."""

        def ask(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self.stop_asked = True

        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {name: signal.signal(name, ask) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def state_dict(self) -> dict[str, Any]:
        """The random states of this process."""
        return random_states()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the first batch: what Lightning draws before it must not count."""
        self._restored = state_dict

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
        due = self.stop_asked or time.monotonic() - self._last >= self.interval
        stop = self.stop_asked
        if trainer.world_size > 1:
            flags: Tensor = torch.tensor([float(due), float(stop)], device=pl_module.device)
            flags = trainer.strategy.reduce(flags, reduce_op="max")
            due, stop = bool(flags[0]), bool(flags[1])
        if due:
            trainer.save_checkpoint(self.path)
            self._last = time.monotonic()
        if stop:
            raise InterruptedRunError(f"stopped at step {trainer.global_step}; start it again to go on")
