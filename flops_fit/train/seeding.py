"""Samples that draw random numbers, as augmentation does: the same numbers whenever and in whichever process.

What a sample draws is made a function of the seed and of its position in the run, so it does not matter how many
devices, micro-batches or workers there are, how far ahead is read, or where a run was killed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from flops_fit.randomness import PrivateRandomness
from flops_fit.train.loaders import KEPT
from flops_fit.train.order import BatchOrder


def drawing(read: Callable[[], Any]) -> tuple[Any, bool]:
    """What ``read`` returns, and whether it drew from Python's, numpy's or torch's global generator."""
    before = _states()
    value = read()
    return value, before != _states()


def _states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    torch_state = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *rest, torch_state


def seeded_loader(loader: DataLoader[Any], order: BatchOrder, seed: int) -> DataLoader[Any]:
    """A loader like the user's, in our order, whose samples and batches draw as functions of seed and position."""
    kept = {name: getattr(loader, name) for name in KEPT}
    kept["collate_fn"] = _SeededCollate(loader.collate_fn, seed)
    return DataLoader(
        _SeededItems(loader.dataset, seed),
        batch_sampler=_Positions(order),
        generator=torch.Generator().manual_seed(seed),
        **kept,
    )


class _Positions:
    """Micro-batches as pairs (position in the run, index in the data set)."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first, indices in zip(self.order.positions(), self.order, strict=True):
            yield list(enumerate(indices, start=first))


class _Micro(list[Any]):
    """The samples of a micro-batch, with the position of the first."""

    position = 0


class _SeededItems(Dataset[Any]):
    """A data set read by pairs (position, index)."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self._stream = PrivateRandomness(seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pair: tuple[int, int]) -> Any:
        return self.__getitems__([pair])[0]

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> _Micro:
        samples = _Micro()
        samples.position = pairs[0][0]
        with self._stream:
            for position, index in pairs:
                _seed_generators(self.seed, "sample", position)
                samples.append(self.dataset[index])
        return samples


class _SeededCollate:
    """A collate function that draws, for masking say."""

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed
        self._stream = PrivateRandomness(seed)

    def __call__(self, samples: _Micro) -> Any:
        with self._stream:
            _seed_generators(self.seed, "batch", samples.position)
            return self.collate(list(samples))


def _seed_generators(*key: object) -> None:
    """Seed the three global generators; not torch.manual_seed, which would reach for the accelerators' too."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8])
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number % 2**63)
