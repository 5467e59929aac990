"""The LightningModule round a user's network and loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric

from flops_fit.batch import Unit, batch_inputs, batch_targets, batch_tokens
from flops_fit.errors import PlanError
from flops_fit.train.metrics import check_metrics, made_metrics

if TYPE_CHECKING:
    from flops_fit.train.steps import StepTaker

Schedule = Literal["linear", "cosine", "constant"]


def check_loss(loss_fn: Any) -> None:
    """Refuse what cannot be called as ``loss_fn(outputs, targets)``; what cannot be inspected passes.

    Raises:
        PlanError: A class instead of an instance, no callable, or the wrong number of arguments.
    """
    name = getattr(loss_fn, "__qualname__", type(loss_fn).__qualname__)
    if isinstance(loss_fn, type):
        raise PlanError(f"loss_fn is the class {name}, not an instance", hint=f"pass {name}() instead of {name}")
    if not callable(loss_fn):
        raise PlanError(f"loss_fn={loss_fn!r} cannot be called", hint="pass a function (outputs, targets) -> loss")
    try:
        signature = inspect.signature(loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn)
        signature.bind(None, None)
    except ValueError:
        return
    except TypeError as error:
        raise PlanError(
            f"loss_fn {name} cannot be called with (outputs, targets): {error}",
            hint="a loss takes exactly two arguments, the model's outputs and the targets, and returns a scalar",
        ) from None


class ScalingModule(pl.LightningModule):
    """One planned run of a user's network: made to be subclassed.

    Each of ``build_network``, ``compute_outputs``, ``compute_loss``, ``count_tokens``, ``param_groups``,
    ``build_optimizer`` and ``lr_factor`` can be overridden alone; ``validation_step`` may log further metrics.

    Args:
        net: Class or factory function of the network; the size parameter is set for every run.
        loss_fn: ``(outputs, targets) -> scalar``; None where ``compute_loss`` is overridden.
        lr: Peak learning rate; handed to the network's ``param_groups(lr)`` where it has that. "auto" for the rate
            that a probe finds for each size.
        schedule: Decay after warm-up, over the run's own steps: linear to zero, cosine to a tenth, or none.
        warmup_fraction: Share of the run's steps with a rising rate.
        weight_decay: AdamW's.
        betas: AdamW's.
        unit: "tokens" or "samples"; None for tokens where inputs are integers of rank 2.
        metrics: Further numbers of every evaluation by name: torchmetrics, updated with (outputs, targets).
    """

    def __init__(
        self,
        net: Callable[..., nn.Module],
        loss_fn: Callable[..., Any] | None = None,
        lr: float | Literal["auto"] = "auto",
        schedule: Schedule = "linear",
        warmup_fraction: float = 0.1,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        unit: Unit | None = None,
        metrics: dict[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        if loss_fn is not None:
            check_loss(loss_fn)
        elif type(self).compute_loss is ScalingModule.compute_loss:
            raise PlanError("no loss_fn was given", hint="pass loss_fn, or override ScalingModule.compute_loss")
        if not 0 <= warmup_fraction < 1:
            raise PlanError(f"warmup_fraction={warmup_fraction} must be in [0, 1)")
        if schedule not in get_args(Schedule):
            raise PlanError(f"schedule={schedule!r} is none of {', '.join(get_args(Schedule))}")
        self.make_net, self.loss_fn = net, loss_fn
        self._lr: float | None = None
        if lr != "auto":
            self.lr = lr
        self.schedule, self.warmup_fraction = schedule, warmup_fraction
        self.weight_decay, self.betas, self.unit = weight_decay, betas, unit
        self.total_steps = 0
        self.val_loss = MeanMetric()
        self.val_tokens = 0
        made = made_metrics(metrics or {})
        self.metric_names = tuple(made)
        self._metrics = nn.ModuleList(made.values())
        self.gradient_norm: Tensor | None = None
        self._step_taker: StepTaker | None = None

    @property
    def lr(self) -> float:
        """Peak learning rate; of a run whose rate a probe has found, that one.

        Raises:
            PlanError: It is "auto", and no rate has been set.
        """
        if self._lr is None:
            raise PlanError('lr is "auto", and no rate has been found yet', hint="give a number, or train in a sweep")
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        if not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
            raise PlanError(f"lr={lr!r} must be positive", hint='give a number such as 1e-3, or "auto"')
        self._lr = lr

    @property
    def needs_lr(self) -> bool:
        """Whether the rate is "auto" and still to be set."""
        return self._lr is None

    @property
    def step_taker(self) -> StepTaker | None:
        """Takes several steps in one ``training_step``; None for one step a call and automatic optimisation."""
        return self._step_taker

    @step_taker.setter
    def step_taker(self, taker: StepTaker | None) -> None:
        self._step_taker = taker
        self.automatic_optimization = taker is None

    def begin(self, size: dict[str, int], total_steps: int) -> None:
        """Build the network for one run and fix the schedule's horizon; called once, before training.

        Args:
            size: The size parameter and its value.
            total_steps: Optimiser steps of the run.
        """
        self.net = self.build_network(**size)
        self.total_steps = total_steps

    def build_network(self, **size: int) -> nn.Module:
        """The network of one size."""
        return self.make_net(**size)

    def compute_loss(self, net: nn.Module, batch: Any) -> Tensor:
        """Loss of a batch, a scalar [nats per token or sample]."""
        assert self.loss_fn is not None
        loss: Tensor = self.loss_fn(*self.compute_outputs(net, batch))
        return loss

    def compute_outputs(self, net: nn.Module, batch: Any) -> tuple[Any, Any]:
        """The network's outputs and the targets of a batch, as the loss and the metrics take them."""
        return net(batch_inputs(batch)), batch_targets(batch)

    def count_tokens(self, batch: Any) -> int:
        """How much a batch counts for in D [tokens or samples]."""
        return batch_tokens(batch, self.unit)

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups with peak rates: the network's own ``param_groups(lr)``, else one group."""
        own = getattr(self.net, "param_groups", None)
        return list(own(self.lr)) if callable(own) else [{"params": list(self.net.parameters()), "lr": self.lr}]

    def remarks(self) -> list[str]:
        """What the user should be told before anything is trained; asked with the smallest network in ``net``."""
        return []

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW; fused, except where a gradient scaler rules that out."""
        fused = self._trainer is None or str(self.trainer.precision) != "16-mixed"
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused)

    def lr_factor(self, step: int) -> float:
        """Share of the peak rate at a step; the horizon is this run's own, never another's."""
        warmup = max(1, round(self.warmup_fraction * self.total_steps))
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return 1 - done if self.schedule == "linear" else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))

    def forward(self, inputs: Any) -> Any:
        """The network's outputs."""
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # noqa: ARG002
        """Loss of a batch; an override is given one batch at a time, whatever the engine does otherwise."""
        if self._step_taker is not None:
            self._step_taker(self, batch)
            return None
        return self.compute_loss(self.net, batch)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm for the run's record."""
        self.gradient_norm = self.clip(optimizer, gradient_clip_val, gradient_clip_algorithm or "norm")

    def clip(self, optimizer: Any, bound: float | None, algorithm: str) -> Tensor | None:
        """Bound the gradients.

        Returns:
            Their norm before, where it is the norm that is bounded.
        """
        if not bound:
            return None
        if algorithm != "norm":
            self.clip_gradients(optimizer, gradient_clip_val=bound, gradient_clip_algorithm=algorithm)
            return None
        sharded = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if callable(sharded):  # each process holds a part of the norm, and only the wrapper can add them up
            norm: Tensor = sharded(bound)
            return norm
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(parameters, bound)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Adds to the mean loss per token of the held-out set, and to the metrics."""
        outputs: tuple[Any, Any] | None = None
        if self._metrics and type(self).compute_loss is ScalingModule.compute_loss:
            assert self.loss_fn is not None
            outputs = self.compute_outputs(self.net, batch)
            loss = self.loss_fn(*outputs)
        else:
            loss = self.compute_loss(self.net, batch)
        num_tokens = self.count_tokens(batch)
        self.val_tokens += num_tokens
        self.val_loss.update(loss, num_tokens)
        self.log("val_loss", self.val_loss)
        if not self._metrics:
            return
        outputs = outputs or self.compute_outputs(self.net, batch)  # a loss of one's own keeps its outputs to itself
        for name, metric in zip(self.metric_names, self._metrics, strict=True):
            assert isinstance(metric, Metric)
            metric.update(*outputs)
            self.log(name, metric)

    def check_metrics(self, net: nn.Module, batch: Any) -> None:
        """Try the metrics on a batch, before anything is trained; a network that cannot run here is not judged.

        Raises:
            PlanError: Some metric cannot be computed from these outputs and targets.
        """
        if not self._metrics:
            return
        is_training = net.training
        try:
            with torch.no_grad():
                outputs = self.compute_outputs(net.eval(), batch)
        except Exception:
            return  # one that needs a GPU, or has its own loss and no outputs: training says what is wrong
        finally:
            net.train(is_training)
        check_metrics(dict(zip(self.metric_names, self._metrics, strict=True)), *outputs)  # type: ignore[arg-type]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and a schedule that multiplies every group's own rate."""
        optimizer = self.build_optimizer(self.param_groups())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
