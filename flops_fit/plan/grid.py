"""Which sizes at which budgets: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from flops_fit.errors import PlanError

# Hoffmann et al. 2022 (arXiv:2203.15556) found about 20 tokens per parameter; with C = 6ND that is N = sqrt(C / 120).
EXPECTED_TOKENS_PER_PARAM = 20.0
# A size range of 16 brackets optima from 1.25 to 320 tokens per parameter and keeps the parabola's bias small.
HALF_RANGE = 4.0
# Fewer optimiser steps than this train no model properly, and the law shows the schedule instead of the size.
MIN_STEPS = 150
COMFORTABLE_STEPS = 500
MIN_TOKENS_PER_PARAM, MAX_TOKENS_PER_PARAM = 0.1, 1000.0
MAX_BATCH_TOKENS = 2**19


def checked_budgets(budgets: Iterable[float]) -> list[float]:
    """Budgets, ascending and distinct.

    Raises:
        PlanError: None, or one that is not a positive finite number.
    """
    budgets = list(budgets)
    bad = [b for b in budgets if isinstance(b, bool) or not isinstance(b, (int, float)) or not 0 < b < math.inf]
    if bad or not budgets:
        what = f"compute budgets must be positive numbers of FLOPs; got {', '.join(map(repr, bad)) or 'none'}"
        raise PlanError(what, hint="write for example compute_budgets=[1e17, 3e17, 1e18]")
    return sorted({float(b) for b in budgets})


def sensible_multiple(size: int) -> int:
    """What a size is rounded to: 64 for large widths, the power of two next below an eighth for small ones."""
    return min(64, 2 ** max(0, int(math.log2(max(size, 1) / 8)))) if size >= 8 else 1


def ladder(largest: int, multiple: int | None, smallest: int = 1) -> list[int]:
    """All sensible sizes from ``smallest`` to ``largest``, ascending."""
    sizes: list[int] = []
    size = smallest
    while size <= largest:
        step = multiple or sensible_multiple(size)
        size = -(-size // step) * step
        if size > largest:
            break
        sizes.append(size)
        size += 1
    return sizes


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """``count`` values from low to high, evenly spaced in the logarithm."""
    if count == 1:
        return [math.sqrt(low * high)]
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def pick_sizes(targets: Sequence[float], params: Sequence[tuple[int, int]]) -> list[int]:
    """For every target N the nearest size not yet taken, by log N; ``params`` are (size, N)."""
    free = dict(params)
    chosen: list[int] = []
    for target in targets:
        if not free:
            break
        size = min(free, key=lambda s: abs(math.log(free[s] / target)))
        chosen.append(size)
        del free[size]
    return sorted(chosen)


def bracket(num_params: Callable[[int], int | None], target: float, start: int = 1) -> int:
    """The first size, by doubling, with at least ``target`` parameters.

    Args:
        num_params: From size to N, or None where it cannot be built.
        target: Wanted N.
        start: First size tried.

    Raises:
        PlanError: Doubling does not make the model larger.
    """
    size, seen = start, []
    for _ in range(40):
        count = num_params(size)
        if count is not None:
            seen.append(count)
            if count >= target:
                return size
            if len(seen) > 4 and all(b <= a for a, b in pairwise(seen[-4:])):
                break
        size *= 2
    raise PlanError(
        f"doubling the size parameter from {start} up to {size} never gave a model of {target:.3g} parameters"
        + (f"; the largest that could be built has {max(seen):.3g}" if seen else "; no size could be built"),
        hint="check the size parameter, or give sizes=[...], or min_size and max_size",
    )


def why_dropped(num_params: int, tokens: float, steps: int | None, min_steps: int) -> str | None:
    """Why a cell cannot teach anything about the law, or None."""
    ratio = tokens / num_params
    if ratio < MIN_TOKENS_PER_PARAM:
        return f"only {ratio:.2g} tokens per parameter (at least {MIN_TOKENS_PER_PARAM:g})"
    if ratio > MAX_TOKENS_PER_PARAM:
        return f"{ratio:.4g} tokens per parameter (at most {MAX_TOKENS_PER_PARAM:g})"
    if steps is not None and steps < min_steps:
        return f"only {steps} optimiser steps (at least {min_steps}); a smaller batch would give more"
    return None


def largest_batch(tokens_at_optimum: float, tokens_per_sample: int) -> int:
    """The largest power of two [samples] that leaves 1,000 steps at the smallest budget's expected optimum."""
    tokens = min(tokens_at_optimum / 1000, MAX_BATCH_TOKENS)
    return int(2 ** max(0, math.floor(math.log2(max(tokens / tokens_per_sample, 1)))))
