"""Which samples a step sees: a function of (seed, epoch, samples consumed), whoever asks and however often.

Lightning's own sampler injection and a plain loader's position after a resume both change the data without a word;
these do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from flops_fit.batch import batch_samples
from flops_fit.errors import DataError
from flops_fit.randomness import PrivateRandomness


class BatchOrder(Sampler[list[int]]):
    """Micro-batches of one rank, from a cursor to the end of the run.

    A global batch is cut in order into (accumulation x ranks) micro-batches, so the samples of a step are the same for
    any number of devices. Epochs follow each other without a gap.

    Args:
        num_samples: Samples in the data set.
        batch: Global batch [samples].
        steps: Optimiser steps of the whole run.
        seed: Seed of the order.
        start: Steps already done.
        rank: This process.
        world: Number of processes.
        accumulate: Micro-batches a step and rank.
    """

    def __init__(
        self, num_samples: int, batch: int, steps: int, seed: int, *, start: int, rank: int, world: int, accumulate: int
    ) -> None:
        if batch % (world * accumulate):
            raise DataError(
                f"a batch of {batch} samples cannot be cut into {world} devices x {accumulate} micro-batches",
                hint="choose a batch_size that both divide",
            )
        self.num_samples, self.batch, self.steps, self.seed = num_samples, batch, steps, seed
        self.start, self.rank, self.world, self.accumulate = start, rank, world, accumulate
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        # Of the whole run: Lightning compares it with the count of batches done, which a resume restores.
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.batch // (self.world * self.accumulate)
        for step in range(self.start, self.steps):
            samples = self._slice(step * self.batch, (step + 1) * self.batch)
            for i in range(self.accumulate):
                first = (i * self.world + self.rank) * micro
                yield samples[first : first + micro].tolist()

    def _slice(self, begin: int, end: int) -> NDArray[np.int64]:
        """The samples at positions begin..end of the endless sequence of epochs."""
        parts = []
        while begin < end:
            epoch, offset = divmod(begin, self.num_samples)
            if epoch != self._epoch:
                generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
                self._epoch, self._order = epoch, generator.permutation(self.num_samples)
            take = min(end - begin, self.num_samples - offset)
            parts.append(self._order[offset : offset + take])
            begin += take
        return np.concatenate(parts)


class RepeatedBatches:
    """Whole batches of a loader whose order is its own: an iterable, or the user's sampler; from a cursor to the end.

    The loader is gone through again when it ends; batches that are not whole are left out. What it draws in this
    process is a stream of its own, a function of the seed: the same for every size, and after a resume.

    Args:
        loader: The user's loader.
        batch: Samples in a whole batch.
        steps: Optimiser steps of the whole run.
        start: Steps already done; so many batches are drawn and passed over.
        accumulate: Micro-batches a step; the loader's batches are the micro-batches.
        seed: Seed of what the loader, its sampler and its data set draw.

    Attributes:
        first_epoch: Whole batches in one pass through the loader, once there has been one.
    """

    def __init__(
        self, loader: DataLoader[Any], batch: int, steps: int, *, start: int, accumulate: int, seed: int = 0
    ) -> None:
        self.loader, self.batch, self.seed = loader, batch, seed
        self.total, self.done = steps * accumulate, start * accumulate
        self.first_epoch: int | None = None

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Any]:
        drawn, randomness = 0, PrivateRandomness(self.seed)
        while drawn < self.total:
            before = drawn
            for batch in _drawing_from(randomness, self.loader):
                if batch_samples(batch) != self.batch:
                    continue
                drawn += 1
                if drawn > self.done:
                    yield batch
                if drawn >= self.total:
                    return
            if drawn == before:
                raise DataError(f"the training data holds no whole batch of {self.batch} samples")
            if self.first_epoch is None:
                self.first_epoch = drawn


def _drawing_from(randomness: PrivateRandomness, loader: DataLoader[Any]) -> Iterator[Any]:
    """One pass through a loader, drawing from a stream of its own."""
    with randomness:
        batches = iter(loader)
    while True:
        with randomness:
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
