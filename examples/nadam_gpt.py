"""A subclass of ScalingModule: another optimizer, and a second metric on the held-out text. See nadam_gpt.yaml."""

from typing import Any

import torch
from torch import Tensor

from flops_fit import ScalingModule


class NAdamGPT(ScalingModule):
    """Trains with NAdam and also records how often the most likely next byte is right.

    Args:
        momentum_decay: NAdam's.
    """

    def __init__(self, *args: Any, momentum_decay: float = 0.004, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.momentum_decay = momentum_decay

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.NAdam(groups, lr=self.lr, betas=self.betas, momentum_decay=self.momentum_decay)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        ids, targets = batch
        right = (self(ids).argmax(dim=-1) == targets).float().mean()
        self.log("accuracy", right, on_epoch=True, batch_size=len(ids))
