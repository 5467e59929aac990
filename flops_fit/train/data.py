"""Whatever data a user brings, as one training loader, one validation loader and what is known about them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from flops_fit.batch import batch_inputs, batch_samples
from flops_fit.errors import DataError
from flops_fit.randomness import PrivateRandomness
from flops_fit.train.order import BatchOrder, RepeatedBatches

HOLD_OUT_EVERY = 20
_HOLD_OUT_AT_MOST = 4096
# What a rebuilt loader keeps of the user's.
_KEPT = (
    "num_workers collate_fn pin_memory timeout worker_init_fn multiprocessing_context prefetch_factor"
    " persistent_workers"
).split()


@dataclass(kw_only=True)
class SweepData:
    """Data for every run of a sweep.

    Attributes:
        train: The user's loader, or ours over the user's data set.
        val: The held-out set, the same for every run.
        batch_size: Global batch [samples]; None while it is still to be chosen.
        notes: What the user should be told.
        fingerprint: Identifies the data in a run's identity.
        example: One batch, as the model gets it.
    """

    train: DataLoader[Any]
    val: DataLoader[Any]
    batch_size: int | None
    fingerprint: str
    example: Any
    notes: list[str] = field(default_factory=list)

    @property
    def is_ordered_here(self) -> bool:
        """Whether our order replaces the loader's: a map-style data set with a plain sampler."""
        return _length(self.train.dataset) is not None and _is_plain(self.train)

    @property
    def num_samples(self) -> int | None:
        """Training samples, where the data set has a length."""
        return _length(self.train.dataset)

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that the data cannot fill.

        Raises:
            DataError: The data set is smaller than one batch.
        """
        if self.num_samples is not None and self.num_samples < batch_size:
            raise DataError(
                f"the training data has {self.num_samples} samples, fewer than one batch of {batch_size}",
                hint="lower batch_size, or bring more data",
            )

    def batches(
        self, batch_size: int, steps: int, seed: int, *, start: int, rank: int, world: int, accumulate: int
    ) -> DataLoader[Any] | RepeatedBatches:
        """The batches of one run and rank, from a step on."""
        self.check_batch(batch_size)
        if self.is_ordered_here:
            assert self.num_samples is not None
            order = BatchOrder(
                self.num_samples, batch_size, steps, seed, start=start, rank=rank, world=world, accumulate=accumulate
            )
            kept = {name: getattr(self.train, name) for name in _KEPT}
            # Its own generator: the loader must not draw from the one whose state a resume restores.
            generator = torch.Generator().manual_seed(seed)
            return DataLoader(self.train.dataset, batch_sampler=order, generator=generator, **kept)
        if world > 1:
            raise DataError(
                "an iterable data set, or a loader with its own sampler, can be trained on one device only",
                hint="bring a map-style data set to train a run on several devices",
            )
        if batch_size % accumulate:
            raise DataError(f"a batch of {batch_size} samples cannot be split into {accumulate} micro-batches")
        loader = self.train
        micro = batch_size // accumulate
        if loader.batch_size not in (None, micro):
            kept = {name: getattr(loader, name) for name in _KEPT}
            if isinstance(loader.dataset, IterableDataset):
                loader = DataLoader(loader.dataset, batch_size=micro, **kept)
            else:
                loader = DataLoader(loader.dataset, batch_size=micro, sampler=loader.sampler, **kept)
        return RepeatedBatches(loader, micro, steps, start=start, accumulate=accumulate, seed=seed)


def sweep_data(source: Any, val: Any = None, batch_size: int | None = None) -> SweepData:
    """Check what the user brought and make it ready.

    What a data function or a data set draws meanwhile is the same in every process, and not missed by this one.

    Args:
        source: A map-style or iterable Dataset, a DataLoader, a LightningDataModule, or a function that returns one.
        val: Validation data, in any of these forms; None to use the module's own, or to hold samples out.
        batch_size: Global batch [samples]; None to take the loader's.

    Raises:
        DataError: It is none of these, is empty, is smaller than a batch, or its items are not pairs or mappings.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise DataError(f"batch_size={batch_size!r} must be a positive whole number")
    with PrivateRandomness(0):
        return _sweep_data(source, val, batch_size)


def _sweep_data(source: Any, val: Any, batch_size: int | None) -> SweepData:
    source, val = _called(source), _called(val)
    if isinstance(source, pl.LightningDataModule):
        source.prepare_data()
        source.setup("fit")
        train = _loader_of(source, "train_dataloader")
        if val is None and is_overridden("val_dataloader", source):
            val = _loader_of(source, "val_dataloader")
    else:
        train = _as_loader(source, batch_size, "the training data")
    batch = batch_size or (train.batch_size if isinstance(source, (DataLoader, pl.LightningDataModule)) else None)
    _check_items(train, "the training data")
    notes: list[str] = []
    if val is None:
        train, val_loader, note = _hold_out(train)
        notes.append(note)
    else:
        if isinstance(val, pl.LightningDataModule):
            val.prepare_data()
            val.setup("validate")
            val = _loader_of(val, "val_dataloader")
        val_loader = _as_loader(val, None, "the validation data")
        _check_items(val_loader, "the validation data")
    example = _first_batch(train, batch)
    if train.batch_size is None and batch is None:
        batch = batch_samples(example)
    own = getattr(source, "fingerprint", None)
    data = SweepData(
        train=train,
        val=val_loader,
        batch_size=batch,
        fingerprint=own if isinstance(own, str) else f"{_fingerprint(train)} {_fingerprint(val_loader)}",
        example=example,
        notes=notes,
    )
    if batch is not None:
        data.check_batch(batch)
        if data.num_samples is None and batch == train.batch_size and batch_samples(example) < batch:
            raise DataError(
                f"the training data ended after {batch_samples(example)} samples, fewer than one batch of {batch}",
                hint="lower batch_size, or bring more data",
            )
    return data


def _called(source: Any) -> Any:
    is_function = callable(source) and not isinstance(source, type) and not hasattr(source, "__getitem__")
    if isinstance(source, type):
        raise DataError(f"{source.__qualname__} is a class, not data", hint=f"pass {source.__qualname__}(...) instead")
    if is_function and not isinstance(source, (DataLoader, pl.LightningDataModule, IterableDataset)):
        if any(
            p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            for p in inspect.signature(source).parameters.values()
        ):
            name = getattr(source, "__qualname__", type(source).__qualname__)
            raise DataError(
                f"the data function {name} must take no arguments", hint="bind them with functools.partial, or call it"
            )
        return source()
    return source


def _loader_of(module: pl.LightningDataModule, method: str) -> DataLoader[Any]:
    loader = getattr(module, method)()
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"{type(module).__qualname__}.{method}() returned {type(loader).__qualname__}, not one DataLoader",
            hint="return a torch.utils.data.DataLoader",
        )
    return loader


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether the loader's order is one that ours may replace: every sample once, in turn or shuffled."""
    sampler: Any = loader.sampler
    if loader.batch_size is None or type(sampler) not in (RandomSampler, SequentialSampler):
        return False
    return not getattr(sampler, "replacement", False) and len(sampler) == _length(loader.dataset)


def _length(dataset: Any) -> int | None:
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        return None
    return len(dataset)


def _as_loader(source: Any, batch_size: int | None, what: str) -> DataLoader[Any]:
    if isinstance(source, DataLoader):
        return source
    is_map = hasattr(source, "__getitem__") and isinstance(source, Sized) and not isinstance(source, (str, Mapping))
    if not is_map and not isinstance(source, IterableDataset):
        raise DataError(
            f"{what} is {type(source).__qualname__}, not a data set",
            hint="bring a Dataset with __len__ and __getitem__, an IterableDataset, a DataLoader or a"
            " LightningDataModule",
        )
    if is_map and len(source) == 0:
        raise DataError(f"{what} is empty", hint="the data set's __len__ returned 0")
    size = batch_size or 64
    return DataLoader(source, batch_size=min(size, len(source)) if is_map else size)


def _check_items(loader: DataLoader[Any], what: str) -> None:
    """Look at one item: it must be a pair or a mapping."""
    if _length(loader.dataset) == 0:
        raise DataError(f"{what} is empty", hint="the data set's __len__ returned 0")
    try:
        item = next(iter(loader.dataset)) if _length(loader.dataset) is None else loader.dataset[0]
    except StopIteration:
        raise DataError(f"{what} is empty", hint="the iterable ended before its first item") from None
    except Exception as error:
        raise DataError(f"the first item of {what} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(item, Mapping) and not (isinstance(item, (tuple, list)) and len(item) >= 2):
        raise DataError(
            f"an item of {what} is {type(item).__qualname__}, not a pair (inputs, targets) or a mapping",
            hint="let __getitem__ return (inputs, targets), or a mapping such as {'input_ids': ..., 'labels': ...}",
        )


class _HeldOut(IterableDataset[Any]):
    """Every k-th item of an iterable, or all the others."""

    def __init__(self, dataset: Any, keep_held_out: bool) -> None:
        self.dataset, self.keep_held_out = dataset, keep_held_out

    def __iter__(self) -> Iterator[Any]:
        taken = 0
        for i, item in enumerate(self.dataset):
            if ((i + 1) % HOLD_OUT_EVERY == 0) == self.keep_held_out:
                yield item
                taken += 1
                if self.keep_held_out and taken >= _HOLD_OUT_AT_MOST:
                    return


def _hold_out(loader: DataLoader[Any]) -> tuple[DataLoader[Any], DataLoader[Any], str]:
    """Take every k-th sample away from training, before anything is sharded or shuffled."""
    kept = {name: getattr(loader, name) for name in _KEPT}
    total = _length(loader.dataset)
    if loader.batch_size is None or (loader.num_workers if total is None else not _is_plain(loader)):
        raise DataError(
            "no validation data was given, and none can be held out of a loader with its own order or workers",
            hint="pass val_dataset",
        )
    if total is None:
        train = DataLoader(_HeldOut(loader.dataset, False), batch_size=loader.batch_size, **kept)
        val = DataLoader(_HeldOut(loader.dataset, True), batch_size=loader.batch_size, **kept)
        if next(iter(val), None) is None:
            raise DataError(f"the training data holds fewer than {HOLD_OUT_EVERY} items", hint="pass val_dataset")
        return train, val, f"no validation data was given: every {HOLD_OUT_EVERY}th sample is held out"
    every = max(HOLD_OUT_EVERY, total // _HOLD_OUT_AT_MOST)
    held_out = range(every - 1, total, every)
    if not held_out:
        raise DataError(f"the training data has only {total} samples, too few to hold any out", hint="pass val_dataset")
    rest = np.delete(np.arange(total), held_out).tolist()
    train = DataLoader(Subset(loader.dataset, rest), batch_size=loader.batch_size, shuffle=True, **kept)
    val = DataLoader(Subset(loader.dataset, list(held_out)), batch_size=loader.batch_size, **kept)
    return train, val, f"no validation data was given: every {every}th sample is held out ({len(held_out)} in all)"


def _first_batch(loader: DataLoader[Any], batch: int | None) -> Any:
    """One batch; of a loader whose data has a length, without touching the loader's order."""
    total = _length(loader.dataset)
    if total is not None and loader.batch_size is not None:
        items = [loader.dataset[i] for i in range(min(batch or 1, loader.batch_size, total))]
        example = loader.collate_fn(items)
    else:
        example = next(iter(loader))
    batch_inputs(example)
    return example


def _fingerprint(loader: DataLoader[Any]) -> str:
    """A hash of the data's length and of a few evenly spaced items."""
    digest = hashlib.sha256()
    dataset, total = loader.dataset, _length(loader.dataset)
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
