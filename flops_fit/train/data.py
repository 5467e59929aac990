"""Whatever data a user brings, as one training loader, held-out sets by name and what is known about them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from flops_fit.batch import batch_inputs, batch_samples
from flops_fit.errors import DataError
from flops_fit.randomness import PrivateRandomness
from flops_fit.train.loaders import (
    KEPT,
    data_length,
    fingerprint,
    fresh_copy,
    has_plain_order,
    has_state,
    with_batch_size,
)
from flops_fit.train.order import BatchOrder, RepeatedBatches, not_plain
from flops_fit.train.seeding import drawing, seeded_loader

HOLD_OUT_EVERY = 20
_HOLD_OUT_AT_MOST = 4096


@dataclass(kw_only=True)
class SweepData:
    """Data for every run of a sweep.

    Attributes:
        train: The user's loader, or ours over the user's data set; one with a state of its own is as it came.
        val_sets: The held-out sets by name, the same for every run; the first gives the run's loss.
        batch_size: Global batch [samples]; None while it is still to be chosen.
        notes: What the user should be told.
        fingerprint: Identifies the data in a run's identity.
        example: One batch, as the model gets it.
        is_stateful: Whether the loader's own state goes into checkpoints.
        is_random: Whether samples draw random numbers when they are read.
        bytes_per_token: What one token stands for on average, where the data says so [bytes].
        source: What the user brought, for what else it says of itself.
    """

    train: DataLoader[Any]
    val_sets: dict[str, DataLoader[Any]]
    batch_size: int | None
    fingerprint: str
    example: Any
    is_stateful: bool = False
    is_random: bool = False
    bytes_per_token: float | None = None
    source: Any = None
    notes: list[str] = field(default_factory=list)

    @property
    def val(self) -> DataLoader[Any]:
        """The held-out set that gives a run's loss."""
        return next(iter(self.val_sets.values()))

    @property
    def is_ordered_here(self) -> bool:
        """Whether our order replaces the loader's: a map-style data set with a plain sampler."""
        return data_length(self.train.dataset) is not None and has_plain_order(self.train)

    @property
    def num_samples(self) -> int | None:
        """Training samples, where the data set has a length."""
        return data_length(self.train.dataset)

    def max_token_id(self) -> int:
        """The largest token id: what the user's data says in an attribute of this name, or that of the first batch."""
        ids, said = batch_inputs(self.example), getattr(self.source, "max_token_id", None)
        return int(said) if isinstance(said, Integral) else int(ids.max())

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
            if self.is_random:
                return seeded_loader(self.train, order, seed)
            kept = {name: getattr(self.train, name) for name in KEPT}
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
        loader, micro = fresh_copy(self.train), batch_size // accumulate
        # As the loader has it where whole steps and whole micro-batches can be made of that.
        size = batch_samples(self.example) if loader.batch_size is None else loader.batch_size
        if batch_size % size or size % micro:
            if has_state(loader) or loader.batch_size is None:
                raise DataError(
                    f"batches of {size} samples, as the training loader makes them, cannot be made into steps of"
                    f" {batch_size} in {accumulate} micro-batches",
                    hint=f"set batch_size to a multiple of {size}, or let the loader make batches of {micro}",
                )
            size, loader = micro, with_batch_size(loader, micro)
        return RepeatedBatches(
            loader,
            size,
            steps,
            start=start,
            accumulate=batch_size // size,
            pieces=size // micro,
            seed=seed,
            is_stateful=self.is_stateful,
        )


def sweep_data(source: Any, val: Any = None, batch_size: int | None = None) -> SweepData:
    """Check what the user brought and make it ready.

    What a data function or a data set draws meanwhile is the same in every process, and not missed by this one.

    Args:
        source: A map-style or iterable Dataset, a DataLoader, a LightningDataModule, or a function that returns one.
        val: Validation data, in any of these forms, or several by name; None to use the module's own, or to hold
            samples out.
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
        train = _train_loader(source)
        if val is None and is_overridden("val_dataloader", source):
            val = source.val_dataloader()
            _check_val_loaders(source, val)
    else:
        train = _as_loader(source, batch_size, "the training data")
    batch = batch_size or (train.batch_size if isinstance(source, (DataLoader, pl.LightningDataModule)) else None)
    _check_items(fresh_copy(train), "the training data")
    notes: list[str] = []
    if val is None:
        train, val_loader, note = _hold_out(train)
        notes.append(note)
        val_sets = {"0": val_loader}
    else:
        val_sets = _val_sets(val)
    looked_at = fresh_copy(train)
    example, is_random = drawing(lambda: _first_batch(looked_at, batch))
    own_order = _order_note(train, looked_at)
    notes += own_order or []
    if train.batch_size is None and batch is None:
        batch = batch_samples(example)
    own = getattr(source, "fingerprint", None)
    data = SweepData(
        train=train,
        val_sets=val_sets,
        batch_size=batch,
        fingerprint=own if isinstance(own, str) else _fingerprints(train, val_sets),
        example=example,
        is_stateful=has_state(train) and not own_order,
        is_random=is_random,
        bytes_per_token=_bytes_per_token(source),
        source=source,
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


def _train_loader(module: pl.LightningDataModule) -> DataLoader[Any]:
    loader = module.train_dataloader()
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"{type(module).__qualname__}.train_dataloader() returned {type(loader).__qualname__}, not one DataLoader",
            hint="return a torch.utils.data.DataLoader",
        )
    return loader


def _check_val_loaders(module: pl.LightningDataModule, loaders: Any) -> None:
    several = (
        loaders.values() if isinstance(loaders, Mapping) else loaders if isinstance(loaders, (list, tuple)) else ()
    )
    if not isinstance(loaders, DataLoader) and not (several and all(isinstance(v, DataLoader) for v in several)):
        raise DataError(
            f"{type(module).__qualname__}.val_dataloader() returned {type(loaders).__qualname__}, not a DataLoader, nor"
            " a list or a dict of DataLoaders",
            hint="return a torch.utils.data.DataLoader, or {name: DataLoader} for several sets",
        )


def _val_sets(val: Any) -> dict[str, DataLoader[Any]]:
    """Validation data as loaders by name, every one checked."""
    if isinstance(val, pl.LightningDataModule):
        module = val
        module.prepare_data()
        module.setup("validate")
        val = module.val_dataloader()
        _check_val_loaders(module, val)
    if isinstance(val, (list, tuple)) and val and all(isinstance(v, (DataLoader, Dataset)) for v in val):
        val = dict(enumerate(val))
    if not isinstance(val, Mapping):
        val = {"0": val}
    loaders = {}
    for name, data in val.items():
        what = "the validation data" if len(val) == 1 else f"the validation data {name!r}"
        loaders[str(name)] = _as_loader(_called(data), None, what)
        _check_items(loaders[str(name)], what)
    if not loaders:
        raise DataError("the validation data is an empty mapping", hint="give at least one set, or none at all")
    return loaders


def _order_note(train: DataLoader[Any], looked_at: DataLoader[Any]) -> list[str] | None:
    """Why a resumed run has to pass over batches; None where it has not."""
    if data_length(train.dataset) is not None and has_plain_order(train):
        return None
    passes_over = "a resumed run passes over the batches it has seen"
    if not has_state(train):
        return [f"the training data keeps an order of its own: {passes_over}"]
    strange = not_plain(looked_at.state_dict())  # type: ignore[attr-defined]
    return None if strange is None else [f"{strange}: {passes_over}"]


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
    if data_length(loader.dataset) == 0:
        raise DataError(f"{what} is empty", hint="the data set's __len__ returned 0")
    try:
        item = next(iter(loader.dataset)) if data_length(loader.dataset) is None else loader.dataset[0]
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
    kept = {name: getattr(loader, name) for name in KEPT}
    total = data_length(loader.dataset)
    is_own = loader.num_workers or has_state(loader) if total is None else not has_plain_order(loader)
    if loader.batch_size is None or is_own:
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
    total = data_length(loader.dataset)
    if total is not None and loader.batch_size is not None and not has_state(loader):
        items = [loader.dataset[i] for i in range(min(batch or 1, loader.batch_size, total))]
        example = loader.collate_fn(items)
    else:
        example = next(iter(loader))
    batch_inputs(example)
    return example


def _fingerprints(train: DataLoader[Any], val_sets: dict[str, DataLoader[Any]]) -> str:
    """Of the training data and of every held-out set; of several sets with their names."""
    several = len(val_sets) > 1
    held_out = [
        f"{name}={fingerprint(loader)}" if several else fingerprint(loader) for name, loader in val_sets.items()
    ]
    return " ".join([fingerprint(fresh_copy(train)), *held_out])


def _bytes_per_token(source: Any) -> float | None:
    """What the data set, or the module, says one of its tokens stands for."""
    for holder in (source, getattr(source, "dataset", None)):
        value = getattr(holder, "bytes_per_token", None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not 0 < value < float("inf"):
                raise DataError(f"bytes_per_token={value} of the training data must be a positive number")
            return float(value)
    return None
