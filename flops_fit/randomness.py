"""Random numbers of one's own, where code that is not ours draws from the global generators."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand


class PrivateRandomness:
    """A stream of random numbers, lent to Python's, numpy's and torch's CPU generators for each block.

    What is drawn inside a block is a function of the seed and of what earlier blocks drew, and nothing drawn there is
    missed outside.

    Args:
        seed: Seed of the stream.
    """

    def __init__(self, seed: int) -> None:
        # Not torch.manual_seed, which would seed the accelerators' generators too.
        torch_state = torch.Generator().manual_seed(seed).get_state()
        self._other: tuple[Any, Any, Any] = (random.Random(seed).getstate(), np.random.MT19937(seed), torch_state)
        self._lender: Any = None

    def _exchange(self) -> None:
        # numpy's generator is exchanged as a whole: copying states there and back takes far longer.
        mine = random.getstate(), mtrand.get_bit_generator(), torch.get_rng_state()
        random.setstate(self._other[0])
        mtrand.set_bit_generator(self._other[1])
        torch.set_rng_state(self._other[2])
        self._other = mine

    def __enter__(self) -> None:
        self._lender = np.random.get_state()
        self._exchange()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange()
        if self._lender[3]:  # a normal deviate was kept back, which an exchange drops
            np.random.set_state(self._lender)
