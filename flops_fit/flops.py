"""FLOPs of one training step, counted on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from flops_fit.batch import batch_samples

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """What one sample costs.

    Attributes:
        forward: The forward pass [FLOPs].
        total: Forward and backward [FLOPs]; 0 where nothing that costs any was seen.
    """

    forward: float
    total: float


def count_step(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any, move: Callable[[Tensor], Tensor]
) -> StepFlops:
    """Take one step and count it.

    Args:
        model: Anywhere; on the meta device it costs neither time nor memory.
        loss: From model and batch to a scalar.
        batch: Any batch.
        move: Brings a tensor of the batch to where the model is.
    """
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    moved = tree_map_only(Tensor, move, plain)
    with FlopCounterMode(display=False, custom_mapping=_cpu_attention()) as counter:
        value = loss(model, moved)
        forward = counter.get_total_flops()
        value.backward()  # type: ignore[no-untyped-call]
    samples = batch_samples(batch)
    return StepFlops(forward=forward / samples, total=counter.get_total_flops() / samples)


def flops_per_sample(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> float:
    """Forward and backward of one sample of a model on the meta device [FLOPs]; 0 where none were seen."""
    return count_step(model, loss, batch, lambda t: t.to("meta")).total


def _cpu_attention() -> dict[Any, Any]:
    """Formulas for the CPU's attention kernel, for which torch has none and counts nothing.

    As the meta device counts: causal attention in full, two products forward and four backward, recomputation left out.
    """

    def forward(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
        return _attention(q, k, v)

    def backward(_: Shape, q: Shape, k: Shape, v: Shape, *__: Any, **___: Any) -> int:
        return 2 * _attention(q, k, v)

    names = {
        "_scaled_dot_product_flash_attention_for_cpu": forward,
        "_scaled_dot_product_flash_attention_for_cpu_backward": backward,
    }
    return {getattr(torch.ops.aten, name): formula for name, formula in names.items() if hasattr(torch.ops.aten, name)}


def _attention(q: Shape, k: Shape, v: Shape) -> int:
    batch, heads, queries, width = q
    return 2 * batch * heads * queries * k[-2] * (width + v[-1])
