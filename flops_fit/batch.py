"""What a batch holds: samples, and tokens or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from flops_fit.errors import DataError

Unit = Literal["tokens", "samples"]


def batch_inputs(batch: Any) -> Any:
    """The model's input: ``input_ids`` or the first entry of a mapping, the first item of a pair.

    Raises:
        DataError: The batch is neither.
    """
    if isinstance(batch, Mapping) and batch:
        return batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0]
    raise DataError(
        f"a batch of type {type(batch).__name__} is neither a pair (inputs, targets) nor a mapping",
        hint="let the data set return (inputs, targets), or a mapping such as {'input_ids': ..., 'labels': ...}",
    )


def batch_samples(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor.

    Raises:
        DataError: It holds no tensor.
    """
    # A mapping that is no dict, such as a tokenizer's, would count as one leaf.
    for leaf in tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise DataError("a batch holds no tensor", hint="items must be pairs or mappings of tensors, arrays or numbers")


def batch_unit(batch: Any) -> Unit:
    """Tokens where the inputs are integers of rank 2 (batch, time), samples otherwise."""
    inputs = batch_inputs(batch)
    is_text = isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.dtype in (torch.int32, torch.int64)
    return "tokens" if is_text else "samples"


def batch_tokens(batch: Any, unit: Unit | None = None) -> int:
    """How much a batch counts for: its tokens, or its samples."""
    if (unit or batch_unit(batch)) == "tokens":
        return int(batch_inputs(batch).numel())
    return batch_samples(batch)


def batch_targets(batch: Any) -> Any:
    """What the loss compares with: ``labels`` or ``targets`` or the last entry of a mapping, the second of a pair."""
    if isinstance(batch, Mapping):
        return next((batch[k] for k in ("labels", "targets", "target") if k in batch), list(batch.values())[-1])
    return batch[1]


def split_batch(batch: Any, pieces: int) -> list[Any]:
    """A batch as so many micro-batches of equal size, in order; what has no entry a sample is in each of them.

    Raises:
        DataError: The samples cannot be shared out equally.
    """
    samples = batch_samples(batch)
    if samples % pieces:
        raise DataError(f"a batch of {samples} samples cannot be cut into {pieces} micro-batches")
    size = samples // pieces
    return [_samples_of(batch, samples, slice(i * size, (i + 1) * size)) for i in range(pieces)]


def _samples_of(node: Any, samples: int, some: slice) -> Any:
    if isinstance(node, Mapping):
        return {k: _samples_of(v, samples, some) for k, v in node.items()}
    if isinstance(node, (tuple, list)):
        if len(node) == samples and not any(isinstance(item, (Tensor, Mapping, tuple, list)) for item in node):
            return node[some]  # one value a sample, such as its name
        parts = [_samples_of(item, samples, some) for item in node]
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    has_samples = getattr(node, "ndim", 0) > 0 and len(node) == samples
    return node[some] if has_samples else node
