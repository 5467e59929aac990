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
