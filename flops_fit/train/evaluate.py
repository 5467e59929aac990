"""The evaluation of a run: loss and metrics on fixed held-out data, with the weights as they are."""

from __future__ import annotations

from dataclasses import dataclass

import lightning.pytorch as pl

from flops_fit.errors import RunError
from flops_fit.randomness import PrivateRandomness
from flops_fit.train.data import SweepData
from flops_fit.train.metrics import keep_apart
from flops_fit.train.module import ScalingModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the held-out data says of a run.

    Attributes:
        loss: Mean over the tokens of the first set [nats per token or sample]; not finite where the run diverged.
        metrics: Everything else that was logged, by name; of further sets as ``name/set``, their loss as ``loss/set``.
        num_tokens: In all sets together [tokens or samples]; None where ``validation_step`` does not count them.
    """

    loss: float
    metrics: dict[str, float]
    num_tokens: int | None


def evaluate(trainer: pl.Trainer, module: ScalingModule, data: SweepData) -> Evaluation:
    """Evaluate on every held-out set.

    Every process goes through all the data, so that any number of them finds the same; what the data draws at random
    is the same for every run.

    Raises:
        RunError: ``validation_step`` logged no ``val_loss``, or a set gave no batch.
    """
    keep_apart(module)
    loss, num_tokens = float("nan"), 0
    metrics: dict[str, float] = {}
    for i, (name, loader) in enumerate(data.val_sets.items()):
        module.val_tokens = 0
        with PrivateRandomness(0):
            trainer.validate(module, dataloaders=loader, verbose=False)
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        if "val_loss" not in found:
            raise RunError(
                f"{type(module).__qualname__}.validation_step logged no val_loss on the validation data {name!r}",
                hint="call super().validation_step(batch, batch_idx) in it, or log val_loss; the data needs a batch",
            )
        if i == 0:
            loss = found.pop("val_loss")
            metrics |= found
        else:
            metrics |= {f"{'loss' if key == 'val_loss' else key}/{name}": value for key, value in found.items()}
        num_tokens += module.val_tokens
    return Evaluation(loss=loss, metrics=metrics, num_tokens=num_tokens or None)
