"""Which samples a step sees: a function of (seed, epoch, samples consumed), whoever asks and however often.

Lightning's own sampler injection and a plain loader's position after a resume both change the data without a word;
these do not.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from flops_fit.batch import batch_samples, split_batch
from flops_fit.errors import DataError
from flops_fit.randomness import PrivateRandomness
from flops_fit.train.checkpoint import random_states, restore_random_states

logger = logging.getLogger(__name__)

# How often a loader's own state is noted, and how many notes are kept: what reads ahead of the training may be so far
# ahead, and a resume passes over at most the batches between two notes.
_NOTE_SECONDS = 0.1
_NOTES = 64


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

    @property
    def micro(self) -> int:
        """Samples in a micro-batch."""
        return self.batch // (self.world * self.accumulate)

    def positions(self) -> Iterator[int]:
        """For each micro-batch, where in the run its first sample stands; the others follow it."""
        for step in range(self.start, self.steps):
            for i in range(self.accumulate):
                yield step * self.batch + (i * self.world + self.rank) * self.micro

    def __iter__(self) -> Iterator[list[int]]:
        for first in self.positions():
            yield self._slice(first, first + self.micro).tolist()

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
        batch: Samples in a whole batch of it.
        steps: Optimiser steps of the whole run.
        start: Steps already done; so many batches are drawn and passed over, or their state is loaded.
        accumulate: Batches of the loader a step.
        pieces: Micro-batches that each of them is cut into.
        seed: Seed of what the loader, its sampler and its data set draw.
        is_stateful: Whether the loader's ``state_dict`` says where it is; what its worker processes draw is not in it.

    Attributes:
        first_epoch: Whole batches in one pass through the loader, once there has been one.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        batch: int,
        steps: int,
        *,
        start: int,
        accumulate: int,
        pieces: int = 1,
        seed: int = 0,
        is_stateful: bool = False,
    ) -> None:
        self.loader, self.batch, self.seed = loader, batch, seed
        self.accumulate, self.pieces, self.is_stateful = accumulate, pieces, is_stateful
        self.total, self.done = steps * accumulate, start * accumulate
        self.first_epoch: int | None = None
        self._notes: deque[dict[str, Any]] = deque(maxlen=_NOTES)
        self._began: dict[str, Any] = {}
        self._noted = 0.0
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.total * self.pieces

    # Not state_dict: Lightning would call that, at any moment, and restore it by itself.
    def place(self, step: int) -> dict[str, Any] | None:
        """Where the loader was when ``step`` optimiser steps were done, however far it has been read since.

        Returns:
            Plain values and tensors; None where the batches of a resumed run must be drawn and passed over.
        """
        notes = [note for note in self._notes if note["samples"] <= step * self.accumulate * self.batch]
        return notes[-1] if notes else None

    def go_to(self, place: dict[str, Any] | None) -> None:
        """Go on, at the next iteration, from what ``place`` returned; by passing over batches where it was None."""
        if place is not None and not place["samples"] % self.batch:
            self._resumed = place if self.is_stateful else None

    def __iter__(self) -> Iterator[Any]:
        randomness, resumed = PrivateRandomness(self.seed), self._resumed
        drawn = 0
        if resumed is not None and resumed["samples"] <= self.done * self.batch:
            self.first_epoch, drawn = resumed["first_epoch"], resumed["samples"] // self.batch
            self.loader.load_state_dict(copy.deepcopy(resumed["loader"]))  # type: ignore[attr-defined]
            self._notes.append(resumed)
        else:
            resumed = None
        while drawn < self.total:
            before = drawn
            for batch in self._pass(randomness, resumed):
                if batch_samples(batch) != self.batch:
                    continue
                drawn += 1
                self._note(drawn, randomness)
                if drawn > self.done:
                    yield from split_batch(batch, self.pieces) if self.pieces > 1 else (batch,)
                if drawn >= self.total:
                    return
            if drawn == before and resumed is None:
                raise DataError(f"the training data holds no whole batch of {self.batch} samples")
            if self.first_epoch is None:
                self.first_epoch = drawn
            resumed = None

    def _pass(self, randomness: PrivateRandomness, resumed: dict[str, Any] | None) -> Iterator[Any]:
        """One pass through the loader, drawing from a stream of its own; or the rest of one, as it was noted."""
        with randomness:
            if resumed is not None:  # a sampler without a state draws its order again
                _restore(self.loader, resumed["began"])
            self._began = _states(self.loader) if self.is_stateful else {}
            batches = iter(self.loader)
            if resumed is not None:
                _restore(self.loader, resumed["random"])
        while True:
            with randomness:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _note(self, drawn: int, randomness: PrivateRandomness) -> None:
        """Take down where the loader is, at the end of a step and not more often than need be."""
        if not self.is_stateful or drawn % self.accumulate or time.monotonic() - self._noted < _NOTE_SECONDS:
            return
        with randomness:
            state, random = self.loader.state_dict(), _states(self.loader)  # type: ignore[attr-defined]
        strange = not_plain(state)
        if strange is not None:
            self.is_stateful = False
            self._notes.clear()
            logger.warning("%s; a resumed run passes over the batches it has seen", strange)
            return
        note = {"samples": drawn * self.batch, "first_epoch": self.first_epoch, "loader": copy.deepcopy(state)}
        self._notes.append(note | {"began": self._began, "random": random})
        self._noted = time.monotonic()


def _states(loader: DataLoader[Any]) -> dict[str, Any]:
    """All that a loader in this process draws from."""
    return random_states() | {"generators": [generator.get_state() for generator in _generators(loader)]}


def _restore(loader: DataLoader[Any], states: dict[str, Any]) -> None:
    restore_random_states(states)
    for generator, state in zip(_generators(loader), states["generators"], strict=True):
        generator.set_state(state)


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """What a loader draws the order of a whole pass from at its beginning, and the next pass's after it."""
    sampler: Any = loader.sampler
    if getattr(sampler, "replacement", False):
        return []  # drawn piece by piece, possibly ahead of what was read
    found = (loader.generator, getattr(sampler, "generator", None))
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def not_plain(state: Any) -> str | None:
    """What of a loader's state a checkpoint that executes no code cannot hold; None where it can hold all of it."""
    if state is None or isinstance(state, Tensor) or type(state) in (bool, int, float, str, bytes):
        return None
    if type(state) in (dict, OrderedDict):
        return next((found for item in state.items() for found in map(not_plain, item) if found), None)
    if type(state) in (list, tuple):
        return next((found for found in map(not_plain, state) if found), None)
    return f"the training loader's state_dict() holds {type(state).__qualname__}, which a checkpoint cannot"
