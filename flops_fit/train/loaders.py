"""What a loader is: how long, in whose order, with a state or not, over which data."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from flops_fit.errors import DataError

# What a rebuilt loader keeps of the user's.
KEPT = (
    "num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context prefetch_factor"
    " persistent_workers"
).split()


def has_plain_order(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is one that ours may replace: every sample once, in turn or shuffled."""
    sampler: Any = loader.sampler
    if loader.batch_size is None or has_state(loader) or type(sampler) not in (RandomSampler, SequentialSampler):
        return False
    return not getattr(sampler, "replacement", False) and len(sampler) == data_length(loader.dataset)


def data_length(dataset: Any) -> int | None:
    """Samples in a data set; None where it does not say, as an iterable one."""
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        return None
    return len(dataset)


def has_state(loader: DataLoader[Any]) -> bool:
    """Whether a loader can say where it is, and go on from there."""
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


def fresh_copy(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader; a copy of one that has a state, so that what is read of it is not missed by the next run."""
    if not has_state(loader):
        return loader
    # A data set with a length has no position, and may be large.
    shared = {} if data_length(loader.dataset) is None else {id(loader.dataset): loader.dataset}
    try:
        return copy.deepcopy(loader, shared)
    except Exception as error:
        raise DataError(
            f"the training loader {type(loader).__qualname__} has a state, and cannot be copied for every run:"
            f" {type(error).__name__}: {error}",
            hint="let its data set open files and the like only in __iter__",
        ) from error


def with_batch_size(loader: DataLoader[Any], batch_size: int) -> DataLoader[Any]:
    """A loader of the same data in the same order, in batches of another size."""
    kept = {name: getattr(loader, name) for name in KEPT}
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(loader.dataset, batch_size=batch_size, **kept)
    return DataLoader(loader.dataset, batch_size=batch_size, sampler=loader.sampler, **kept)


def fingerprint(loader: DataLoader[Any]) -> str:
    """A hash of the data's length and of a few evenly spaced items."""
    digest = hashlib.sha256()
    dataset, total = loader.dataset, data_length(loader.dataset)
    items = list(islice(iter(dataset), 8)) if total is None else [dataset[i * (total - 1) // 7] for i in range(8)]
    digest.update(str(total).encode())
    for leaf in tree_leaves([dict(item) if isinstance(item, Mapping) else item for item in items]):
        digest.update(_bytes(leaf))
    return digest.hexdigest()


def _bytes(leaf: Any) -> bytes:
    """A value as bytes that are the same in every process."""
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu()
        values = (leaf if leaf.dtype is not torch.bfloat16 else leaf.float()).numpy()
    else:
        values = np.asarray(leaf)
    if values.dtype.hasobject:  # addresses differ between processes
        return type(leaf).__qualname__.encode()
    return f"{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes()
