"""A LightningModule as its author wrote it, trained to budgets: its steps and its optimizer, the sweep's schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from flops_fit.batch import batch_samples
from flops_fit.errors import PlanError, RunError
from flops_fit.train.module import ScalingModule

_HELD_OUT_LOSS = "val_loss"
# Hooks that are called, or that have no part in a run of a sweep, or whose work the data of the sweep does.
_KNOWN = {"on_validation_epoch_start", "on_validation_epoch_end", "configure_model", "configure_sharded_model"}
_WITHOUT_MEANING = ("test", "predict")
_OF_THE_DATA = {"prepare_data", "train_dataloader", "val_dataloader"}
_OF_A_STEP = (
    "backward configure_callbacks configure_gradient_clipping lr_scheduler_step optimizer_step optimizer_zero_grad"
).split()


class LightningAdapter(ScalingModule):
    """Scales somebody's LightningModule without a change to it.

    Kept: ``training_step`` and its loss, ``validation_step`` with what it logs and its epoch hooks, ``forward``,
    ``configure_model``, and of ``configure_optimizers`` the optimizer with its groups and rates. Replaced: the
    schedule, since each run's must end with its own budget, and whatever the Trainer would do about epochs, checkpoints
    and stopping. Not kept: what ``training_step`` logs, and hooks that are not called, which the plan names.

    The held-out loss is what ``validation_step`` returns, or else what it logs as ``val_loss``; without such a step,
    the loss of ``training_step`` in eval mode. A module without ``num_params()`` counts all its parameters. ``lr`` and
    ``weight_decay`` are not used: they are those of ``configure_optimizers``.

    Args:
        net: The LightningModule's class, or a function that returns one.
        args: Those of ``ScalingModule``, but for ``loss_fn`` and ``betas``, which the module has itself.
        kwargs: Likewise.
    """

    def __init__(self, net: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> None:
        super().__init__(net, *args, **kwargs)
        self._seen: dict[str, float | Tensor] = {}
        self._batch_idx = self._samples = 0

    @property
    def needs_lr(self) -> bool:
        """Never: the rates are the module's own."""
        return False

    def build_network(self, **size: int) -> nn.Module:
        """The user's module of one size, its log in our hands.

        Raises:
            PlanError: It is no LightningModule, or takes its optimiser steps itself.
        """
        net = super().build_network(**size)
        name = type(net).__qualname__
        if not isinstance(net, pl.LightningModule) or isinstance(net, ScalingModule):
            raise PlanError(
                f"{name} is not a LightningModule that brings its own steps",
                hint="give a plain nn.Module to ScalingModule, with a loss",
            )
        if not is_overridden("training_step", net):
            raise PlanError(f"{name} has no training_step", hint="give it one, or its loss to ScalingModule as loss_fn")
        if not net.automatic_optimization:
            raise PlanError(
                f"{name} takes its optimiser steps itself (automatic_optimization=False)",
                hint="a run takes exactly the steps its budget buys: return the loss from training_step instead",
            )
        net.configure_model()
        own: Any = net
        if not callable(getattr(net, "num_params", None)):
            own.num_params = lambda: sum(p.numel() for p in net.parameters())
        own.log, own.log_dict = self._take, self._take_all
        return net

    def compute_loss(self, net: nn.Module, batch: Any) -> Tensor:
        """What the module's own step says of a batch: ``training_step``, or ``validation_step`` in eval mode.

        Raises:
            RunError: The step gives no loss.
        """
        assert isinstance(net, pl.LightningModule)
        self._seen, self._samples = {}, batch_samples(batch)
        evaluates = not net.training and is_overridden("validation_step", net)
        step = net.validation_step if evaluates else net.training_step
        index = self._batch_idx if not net.training or self._trainer is None else self.trainer.global_step
        found = _called(step, batch, index)
        if isinstance(found, Mapping):
            found = found.get("loss")
        if found is None and evaluates:
            found = self._seen.get(_HELD_OUT_LOSS)
        if not isinstance(found, (Tensor, float)):
            logged = ", ".join(self._seen) or "nothing"
            raise RunError(
                f"{type(net).__qualname__}.{step.__name__} gives no loss: it returns {type(found).__name__} and logs"
                f" {logged}",
                hint=f"return the loss{f', or log it as {_HELD_OUT_LOSS}' if evaluates else ''}",
            )
        return torch.as_tensor(found)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The module's own, whose loss becomes the run's."""
        self._batch_idx = batch_idx
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """The module's own."""
        self._inner.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """The module's own."""
        self._inner.on_validation_epoch_end()

    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the module's own optimizer, at their peak rates."""
        groups: list[dict[str, Any]] = self._own_optimizer()[0].param_groups
        self.lr = max(float(group["lr"]) for group in groups)
        return groups

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:  # noqa: ARG002
        """The module's own optimizer."""
        return self._own_optimizer()[0]

    def check_metrics(self, net: nn.Module, batch: Any) -> None:
        """Also try the module's evaluation on a batch, before anything is trained.

        Raises:
            PlanError: It gives no loss, or a metric cannot be computed.
        """
        is_training = net.training
        try:
            with torch.no_grad():
                self.compute_loss(net.eval(), batch)
        except RunError as error:
            raise PlanError(error.problem, hint=error.hint) from None
        except Exception:  # one that needs a GPU, or a Trainer: training says what is wrong
            pass
        finally:
            net.train(is_training)
        super().check_metrics(net, batch)

    def remarks(self) -> list[str]:
        """What of the module has no effect in a sweep."""
        net, name = self._inner, type(self._inner).__qualname__
        found = []
        if self._own_optimizer()[1]:
            found.append(
                f"{name}'s own schedule is replaced by {self.schedule!r} with {self.warmup_fraction:.0%} of warm-up,"
                " over each run's own steps; its optimizer and rates are kept"
            )
        hooks = {name for kind in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(kind) if name[0] != "_"}
        hooks |= set(_OF_A_STEP)
        silent = [h for h in sorted(hooks - _KNOWN) if not any(w in h for w in _WITHOUT_MEANING) and _is_own(h, net)]
        if idle := [h for h in silent if h not in _OF_THE_DATA]:
            found.append(f"{name}'s {', '.join(idle)} {'is' if len(idle) == 1 else 'are'} not called in a sweep")
        if loaders := [h for h in silent if h in _OF_THE_DATA]:
            found.append(f"{name}'s {', '.join(loaders)} not used: the sweep has its own data")
        return found

    @property
    def _inner(self) -> pl.LightningModule:
        assert isinstance(self.net, pl.LightningModule)
        return self.net

    def _own_optimizer(self) -> tuple[torch.optim.Optimizer, bool]:
        """The module's optimizer at its peak rates, and whether a schedule came with it.

        Raises:
            PlanError: It gives none, or several, or fails.
        """
        net = self._inner
        name = f"{type(net).__qualname__}.configure_optimizers"
        try:
            with _length_known(net, max(1, self.total_steps)):
                made = net.configure_optimizers()
        except Exception as error:
            raise PlanError(
                f"{name} fails: {type(error).__name__}: {error}",
                hint="it may ask its trainer for estimated_stepping_batches and max_steps, and must need no more",
            ) from error
        optimizers = list(_optimizers(made))
        if len(optimizers) != 1:
            raise PlanError(
                f"{name} returns {len(optimizers)} optimizers; a sweep needs one",
                hint="put all parameters into groups of one optimizer",
            )
        for group in optimizers[0].param_groups:
            # A scheduler has set the first step's rate already, and noted the rate it began from, or goes up to.
            group["lr"] = group.pop("max_lr", group.get("initial_lr", group["lr"]))
            group.pop("initial_lr", None)
        return optimizers[0], made is not optimizers[0]

    def _take_all(self, dictionary: Mapping[str, Any], **options: Any) -> None:
        for name, value in dictionary.items():
            self._take(name, value, **options)

    def _take(self, name: str, value: Any, **_: Any) -> None:
        """What the module logs: of an evaluation it goes among the run's metrics, as a mean over all samples."""
        if isinstance(value, (Tensor, float, int)):
            self._seen[name] = value.detach() if isinstance(value, Tensor) else value
        if self._trainer is not None and not self.training and name != _HELD_OUT_LOSS:
            self.log(name, value, on_step=False, on_epoch=True, batch_size=self._samples or 1)


def module_class(model_cls: Any, loss_fn: Any) -> type[ScalingModule] | None:
    """What trains a model that brings its own loss; None for one that does not."""
    is_own = isinstance(model_cls, type) and issubclass(model_cls, pl.LightningModule)
    return LightningAdapter if is_own and loss_fn is None and not issubclass(model_cls, ScalingModule) else None


def _called(step: Callable[..., Any], batch: Any, index: int) -> Any:
    """A step, with its batch's number where it asks for that."""
    names = list(inspect.signature(step).parameters)
    return step(batch, index) if len(names) > 1 and names[1] != "dataloader_idx" else step(batch)


def _is_own(hook: str, net: pl.LightningModule) -> bool:
    return getattr(type(net), hook, None) is not getattr(pl.LightningModule, hook, None)


@contextmanager
def _length_known(net: pl.LightningModule, steps: int) -> Iterator[None]:
    """Answer what ``configure_optimizers`` may ask of its Trainer; the real one, asked, loses data on resume."""
    before = net._trainer
    stand_in: Any = SimpleNamespace(
        estimated_stepping_batches=steps, max_steps=steps, num_training_batches=steps, max_epochs=1, global_step=0
    )
    net.trainer = stand_in
    try:
        yield
    finally:
        net.trainer = before


def _optimizers(made: Any) -> Iterator[torch.optim.Optimizer]:
    """The optimizers in whatever ``configure_optimizers`` may return; schedulers are no optimizers."""
    if isinstance(made, torch.optim.Optimizer):
        yield made
    elif isinstance(made, Mapping):
        yield from _optimizers(made.get("optimizer"))
    elif isinstance(made, (list, tuple)):
        for item in made:
            yield from _optimizers(item)
