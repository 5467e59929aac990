"""One attempt at a run: its parts put together, trained to the budget, evaluated and recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from flops_fit.errors import RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import read_metrics
from flops_fit.train.callbacks import Checkpointer, DivergedError, InterruptedRunError, RunLog, TokenBudget
from flops_fit.train.checkpoint import AtomicCheckpointIO, drop_optimizer_state, load_checkpoint, usable_checkpoint
from flops_fit.train.data import SweepData
from flops_fit.train.environment import write_environment
from flops_fit.train.evaluate import Evaluation, evaluate
from flops_fit.train.guard import OWNED
from flops_fit.train.loggers import build_loggers, close_loggers, log_row
from flops_fit.train.module import ScalingModule
from flops_fit.train.order import RepeatedBatches
from flops_fit.train.ranks import check_world_size, cluster_plugins, lost_rank
from flops_fit.train.record import Effort, run_record
from flops_fit.train.steps import LONGEST_CHUNK, Step, StepChunks, StepTaker, watches_single_steps
from flops_fit.train.stopping import STOP

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


class Attempt:
    """A run with its Trainer, from the last checkpoint on.

    Args:
        run: Its directory.
        experiment: What was planned.
        parts: Model, data and Trainer arguments; used up.
        accumulate: Micro-batches a step and device.

    Raises:
        RunError: The model, or the number of processes, is not the planned one.
    """

    def __init__(self, run: RunDirectory, experiment: Experiment, parts: RunParts, accumulate: int) -> None:
        assert experiment.steps is not None
        self.run, self.experiment, self.parts, self.accumulate = run, experiment, parts, accumulate
        self.steps = experiment.steps
        pl.seed_everything(experiment.seed, workers=True, verbose=False)
        self.module = parts.module
        self._build()
        self.budget = TokenBudget(experiment.num_tokens)
        self.loggers: list[Logger] = []
        self.log = RunLog(run, experiment, self.budget, also=lambda row, step: log_row(self.loggers, row, step))
        arguments = {k: v for k, v in parts.trainer.items() if v is not None and k not in OWNED}
        arguments = _DEFAULTS | arguments | _OURS | {"accumulate_grad_batches": accumulate}
        self.is_chunked = watches_single_steps(self.module, arguments) is None
        self.checkpointer = Checkpointer(
            run, parts.checkpoint_interval, batches=lambda step: step if self.is_chunked else step * accumulate
        )
        if self.is_chunked:  # what Lightning does only in automatic optimisation
            clip, algorithm = arguments.pop("gradient_clip_val"), arguments.pop("gradient_clip_algorithm", None)
            self.module.step_taker = StepTaker(clip, algorithm, self._watch)
            del arguments["accumulate_grad_batches"]
        self.effort = Effort()
        ours = [self.effort, self.budget, self.log, self.checkpointer]
        arguments["callbacks"] = [*_listed(arguments.get("callbacks")), *ours]
        plugins = [*_listed(arguments.get("plugins")), *cluster_plugins(parts.trainer)]
        arguments["plugins"] = [*plugins, AtomicCheckpointIO(run.metrics, run.timing)]
        self.trainer = pl.Trainer(**arguments, max_steps=self.steps, default_root_dir=run.path)
        check_world_size(self.trainer, parts.trainer)

    def complete(self) -> None:
        """Train what is left, evaluate, and write the result.

        Raises:
            DivergedError: The loss is not finite, or the run ended above where it began.
            InterruptedRunError: Asked to stop; everything is saved.
            RunError: The run saw another number of tokens than planned.
        """
        status = "failed"
        try:
            self._complete()
            status = "success"
        except InterruptedRunError:
            status = "interrupted"
            raise
        except Exception as error:
            lost = lost_rank(self.trainer)
            if lost is None:
                raise
            status = "interrupted"
            raise InterruptedRunError(f"{lost}; start it again to go on") from error
        finally:
            close_loggers(self.loggers, status)

    def _complete(self) -> None:
        newest, passed_over = usable_checkpoint(self.run)
        saved: dict[str, Any] = load_checkpoint(newest) if newest else {"global_step": 0}
        done = self.log.step = saved["global_step"]
        if self.trainer.is_global_zero:
            for note in passed_over:
                self.run.note(note)
            self.log.rewind(done)
            self.log.heartbeat(self.trainer)
            facts = self.parts.facts
            write_environment(self.run, facts.get("origin"))
            self.loggers += build_loggers(facts.get("loggers"), self.run, self.experiment, facts.get("group", ""))
        loader = self.parts.data.batches(
            self.parts.batch_size,
            self.steps,
            self.experiment.seed,
            start=done,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            accumulate=self.accumulate,
        )
        if done < self.steps:
            self._train(loader, done, newest)
        else:  # killed between the last step and the result
            if newest is not None and self.trainer.is_global_zero:
                newest.replace(self.run.checkpoint)
            self.module.load_state_dict(saved["state_dict"])
            self.budget.num_tokens = self.experiment.num_tokens
            self.effort.recall(saved)
            self.log.recall(saved)
        evaluation = self._evaluate()
        self._check_progress(evaluation.loss)
        if self.trainer.is_global_zero:
            record = run_record(
                self.run,
                self.experiment,
                self.parts,
                self.trainer,
                evaluation=evaluation,
                loader=loader,
                accumulate=self.accumulate,
                effort=self.effort,
                largest_gradient_norm=self.log.largest_gradient_norm,
            )
            if self.trainer.strategy.root_device.type == "cuda":
                write_environment(self.run, self.parts.facts.get("origin"))  # now that its devices can be named
            drop_optimizer_state(self.run.checkpoint)
            self.run.finish(record)

    def _build(self) -> None:
        parts, experiment = self.parts, self.experiment
        if experiment.lr is not None:
            self.module.lr = experiment.lr
        self.module.begin(experiment.size_arguments(parts.size_param), self.steps)
        net: Any = self.module.net  # what planning has seen has num_params()
        built = net.num_params()
        if built != experiment.num_params:
            name = self.run.run_id
            raise RunError(f"{name}: the model has {built} parameters, the plan says {experiment.num_params}")

    def _watch(self, step: Step) -> bool:
        """Take note of a step within a chunk; True ends the chunk."""
        self.budget.add(step.num_tokens)
        self.log.add(step)
        return self.budget.is_spent or STOP.is_asked

    def _train(self, loader: Any, done: int, newest: Path | None) -> None:
        if isinstance(loader, RepeatedBatches):
            self.checkpointer.loader = loader
            loader.go_to(self.checkpointer.place_of_loader(newest))
        batches = loader
        if self.is_chunked:
            longest = LONGEST_CHUNK if self.parts.checkpoint_interval else 1
            batches = StepChunks(loader, self.steps, start=done, accumulate=self.accumulate, longest=longest)
        self.trainer.fit(self.module, train_dataloaders=batches, ckpt_path=newest, weights_only=True)
        self.budget.check(self.run.run_id)
        self.trainer.save_checkpoint(self.run.checkpoint)

    def _evaluate(self) -> Evaluation:
        evaluation = evaluate(self.trainer, self.module, self.parts.data)
        if self.trainer.is_global_zero:
            self.log.evaluated(self.steps, evaluation.loss)
            log_row(self.loggers, evaluation.metrics, self.steps)
        if not math.isfinite(evaluation.loss):
            raise DivergedError(f"{self.run.run_id}: the evaluation loss is {evaluation.loss}")
        return evaluation

    def _check_progress(self, loss: float) -> None:
        """A run that ends above where it began has diverged, too."""
        rows = read_metrics(self.run.metrics) if self.trainer.is_global_zero else []
        first = next((float(row["train_loss"]) for row in rows if row["train_loss"]), math.inf)
        if loss <= self.trainer.strategy.broadcast(first):
            return
        # The first batch may have been an easy one: what counts is the untrained network on the held-out data.
        trained = self.module.net
        pl.seed_everything(self.experiment.seed, workers=True, verbose=False)
        self._build()
        start = evaluate(self.trainer, self.module, self.parts.data).loss
        self.module.net = trained
        if loss > start:
            raise DivergedError(
                f"{self.run.run_id}: the loss ended at {loss:.4g}, above the {start:.4g} it started from",
                hint="lower the learning rate",
            )


def _listed(value: Any) -> list[Any]:
    """Trainer arguments that may be one thing, several, or nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
