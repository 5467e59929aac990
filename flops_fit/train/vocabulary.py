"""Whether a model knows every token of the data: an id too large is an index out of range, long after planning."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from flops_fit.batch import batch_inputs
from flops_fit.errors import DataError
from flops_fit.randomness import PrivateRandomness
from flops_fit.train.data import SweepData
from flops_fit.train.module import ScalingModule


def check_vocabulary(module: ScalingModule, size: dict[str, Any], data: SweepData) -> None:
    """Hold the largest token id against the rows of the embedding that the tokens go through.

    Says nothing where the inputs are no token ids, or the model looks them up in no ``nn.Embedding``, or does not run
    on the meta device.

    Args:
        module: The module; its network is built anew.
        size: Arguments of the size to build.
        data: The training data.

    Raises:
        DataError: A token has no row.
    """
    ids = batch_inputs(data.example)
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        return
    rows = _rows(module, size, data.example, ids.shape)
    largest = data.max_token_id()
    smallest = int(ids.min())
    if smallest < 0:
        raise DataError(
            f"the training data holds the token id {smallest}; ids count from 0",
            hint="negative ids may mark what is not scored in the labels, never in the inputs",
        )
    if rows is not None and largest >= rows:
        raise DataError(
            f"the data holds the token id {largest}, and the model's embedding has {rows} rows, for ids 0 to"
            f" {rows - 1}",
            hint=f"give the model a vocabulary of at least {largest + 1}, or tokenise with a smaller one",
        )


def _rows(module: ScalingModule, size: dict[str, Any], batch: Any, shape: torch.Size) -> int | None:
    """Rows of the largest embedding that is looked up once for every token; None where none is seen."""
    found: list[int] = []

    def look(embedding: nn.Module, args: tuple[Any, ...]) -> None:
        # Positions have one row for all samples: another shape, but for batches of one sample.
        if isinstance(embedding, nn.Embedding) and args and getattr(args[0], "shape", None) == shape:
            found.append(embedding.num_embeddings)

    plain = dict(batch) if isinstance(batch, Mapping) else batch
    # The user's code: what does not run here is tried in training.
    with suppress(Exception), PrivateRandomness(0), torch.device("meta"), torch.no_grad():
        net = module.build_network(**size)
        for part in net.modules():
            if isinstance(part, nn.Embedding):
                part.register_forward_pre_hook(look)
        module.compute_loss(net.to("meta"), tree_map_only(Tensor, lambda t: t.to("meta"), plain))
    return max(found, default=None)
