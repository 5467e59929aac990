"""Designs from cheap to dear: which runs to add, drop or exchange as compute gets cheaper and dearer again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from flops_fit.laws import FloatArray
from flops_fit.plan.expected import ExpectedError

# A surface needs so many runs with so many distinct N and D before a lack of fit can show.
FEWEST_RUNS: Final = 7
FEWEST_DISTINCT: Final = 3

# What the dearest run costs, in log of the expected square: from where hardly any run is worth its cost to where
# nearly all are, and back, since taking runs away finds designs that adding them does not.
_PRICES: Final = np.concatenate([np.geomspace(1000.0, 0.01, 30), np.geomspace(0.01, 1000.0, 30)])

# Every run costs something beside its compute: this part of the dearest.
_PRICE_OF_A_RUN: Final = 0.002

# A change that gains less is none.
_LEAST_GAIN: Final = 1e-6

Design = tuple[int, ...]


def designs(
    expected: ExpectedError, flops: FloatArray, *, fixed: Design, barred: Design, max_runs: int
) -> Iterator[Design]:
    """Every design met, as indices of runs, ascending; the same ones whatever may be spent.

    Args:
        expected: Judges a design.
        flops: Cost of each run there might be, shape (runs,).
        fixed: Runs that are in every design.
        barred: Runs that are in none, beside those.
        max_runs: Most runs in a design.
    """
    cost = flops / flops.max() + _PRICE_OF_A_RUN
    taken = np.zeros(len(cost), bool)
    taken[list(fixed)] = True
    free = np.ones(len(cost), bool)
    free[[*fixed, *barred]] = False
    yield tuple(np.flatnonzero(taken).tolist())
    for price in _PRICES:
        while change := _best_change(expected, taken, free, price * cost, max_runs):
            taken[list(change)] ^= True
            yield tuple(np.flatnonzero(taken).tolist())


def _best_change(expected: ExpectedError, taken: Any, free: Any, price: FloatArray, max_runs: int) -> Design:
    """The run to add, to drop, or the two to exchange, which gain most in log expected square less price."""
    none = len(taken)
    moments = expected.gather(np.flatnonzero(taken))
    out = [*np.flatnonzero(taken & free).tolist(), none]
    price = np.append(price, 0.0)
    gain = math.log(expected.loss(moments)) - np.log(expected.losses_after(moments, out))
    gain += price[out, None] - price
    gain[:, :none][:, ~(free & ~taken)] = -np.inf
    if taken.sum() <= FEWEST_RUNS:
        gain[:, none] = -np.inf
    if taken.sum() >= max_runs:
        gain[-1] = -np.inf
    i, j = np.unravel_index(int(gain.argmax()), gain.shape)
    if not gain[i, j] > _LEAST_GAIN:
        return ()
    return tuple(k for k in (out[int(i)], int(j)) if k != none)
