"""FLOPs of one training step, counted on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from flops_fit.batch import batch_samples


def flops_per_sample(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> float:
    """Forward and backward of one sample [FLOPs]; 0 where nothing that costs any was seen.

    Args:
        model: On the meta device: on the CPU attention has no FLOP formula and counts as nothing; here it is counted
            in full.
        loss: From model and batch to a scalar.
        batch: Any batch; its tensors may be anywhere.
    """
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    on_meta = tree_map_only(Tensor, lambda t: t.to("meta"), plain)
    with FlopCounterMode(display=False) as counter:
        loss(model, on_meta).backward()  # type: ignore[no-untyped-call]
    total: int = counter.get_total_flops()
    return total / batch_samples(batch)
