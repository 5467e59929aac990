"""Which sizes at which budgets: numbers in, numbers out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from numbers import Real
from typing import get_args

import numpy as np

from flops_fit.errors import PlanError
from flops_fit.experiment import SeedsAt
from flops_fit.units import Flops, format_flops

# Hoffmann et al. 2022 (arXiv:2203.15556) found about 20 tokens per parameter; with C = 6ND that is N = sqrt(C / 120).
EXPECTED_TOKENS_PER_PARAM = 20.0
# A size range of 16 brackets optima from 1.25 to 320 tokens per parameter and keeps the parabola's bias small.
HALF_RANGE = 4.0
# Fewer optimiser steps than this train no model properly, and the law shows the schedule instead of the size.
MIN_STEPS = 150
COMFORTABLE_STEPS = 500
# A parabola's minimum is sure from about as many sizes, over about such a range of N.
ENOUGH_SIZES = 5
ENOUGH_SPAN = 8.0
# Muennighoff et al. 2023 (arXiv:2305.16264): up to 4 epochs repeated data is nearly as good as new, at 16 worth little.
MANY_EPOCHS = 4.0
MAX_EPOCHS = 16.0
MIN_TOKENS_PER_PARAM, MAX_TOKENS_PER_PARAM = 0.1, 1000.0
MAX_BATCH_TOKENS = 2**19


def compute_of(name: str, value: float | str) -> Flops:
    """An amount of compute, as a number or as text such as "10 PF-days" [FLOPs].

    Raises:
        PlanError: The text is none; the message begins with the name.
    """
    try:
        return Flops(value)
    except ValueError as error:
        raise PlanError(f"{name}: {error}") from None


def checked_budgets(budgets: Iterable[float | str]) -> list[float]:
    """Budgets, ascending; those that agree to six digits, which is what a run's name holds, are one.

    Raises:
        PlanError: None, or one that is not a positive finite amount of compute.
    """
    told: list[float] = []
    bad: list[object] = [budgets]  # one number or text alone is no list
    if not isinstance(budgets, (str, Real)):
        told = [compute_of("compute_budgets", b) if isinstance(b, str) else b for b in budgets]
        bad = [b for b in told if isinstance(b, bool) or not isinstance(b, Real) or not 0 < float(b) < math.inf]
    if bad or not told:
        raise PlanError(
            f"compute budgets must be a list of positive numbers of FLOPs; got {', '.join(map(repr, bad)) or 'none'}",
            hint="write for example compute_budgets=[1e17, 3e17, 1e18]",
        )
    return sorted({format_flops(b, 6): float(b) for b in told}.values())


def repeated_budgets(budgets: Sequence[float], seeds_at: SeedsAt) -> list[float]:
    """The budgets whose cells are trained with every seed; those of the others are trained with the first alone.

    "small" is the smaller half of the budgets, and at least one: the noise between seeds is learned as well where a run
    is cheap. Of four budgets, each three times the one before, two more seeds there add a fifth to the cost of one seed
    everywhere; at all budgets they would triple it.

    Args:
        budgets: Ascending [FLOPs].
        seeds_at: "small" or "all".

    Raises:
        PlanError: It is neither.
    """
    if seeds_at not in get_args(SeedsAt):
        raise PlanError(
            f"seeds_at={seeds_at!r} is unknown",
            hint="choose small (further seeds at the smaller half of the budgets) or all",
        )
    return list(budgets if seeds_at == "all" else budgets[: max(1, len(budgets) // 2)])


def sensible_multiple(size: int) -> int:
    """What a size is rounded to: 64 for large widths, the power of two next below an eighth for small ones.

    A size beyond 65,536 is no width, and is rounded to about a thousandth of itself.
    """
    if size < 8:
        return 1
    eighth, thousandth = (1 << max(0, int(math.log2(size / part))) for part in (8, 1024))
    return max(min(64, eighth), thousandth)


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


def pick_sizes(
    targets: Sequence[float], candidates: Sequence[int], num_params: Callable[[int], int | None]
) -> list[int]:
    """For every target N the nearest candidate not yet taken, by log N; none farther off than the next target is.

    Sizes cost time to build, so N is interpolated between those built so far, and the candidate that looks nearest is
    built until the nearest is one that was.

    Args:
        targets: Wanted N, ascending and evenly spaced in the logarithm.
        candidates: Sizes, ascending; the first and the last can be built.
        num_params: From size to N, or None where it cannot be built.

    Returns:
        Sizes, ascending.
    """
    spacing = math.log(targets[-1] / targets[0]) / (len(targets) - 1) if len(targets) > 1 else math.inf
    ends = (candidates[0], candidates[-1])
    built = {size: count for size in ends if (count := num_params(size)) is not None}
    free = list(candidates)
    chosen: list[int] = []
    for target in targets:
        while free:
            known = np.log(sorted(built.items()))
            distances = np.abs(np.interp(np.log(free), known[:, 0], known[:, 1]) - math.log(target))
            size = free[int(np.argmin(distances))]
            if size in built:
                if np.min(distances) <= spacing * (1 + 1e-9):
                    chosen.append(size)
                    free.remove(size)
                break
            count = num_params(size)
            if count is None:
                free.remove(size)
            else:
                built[size] = count
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


def why_dropped(
    num_params: int, tokens: float, steps: int | None, min_steps: int, epochs: float | None = None
) -> str | None:
    """Why a cell cannot teach anything about the law, or None."""
    ratio = tokens / num_params
    if ratio < MIN_TOKENS_PER_PARAM:
        return f"only {ratio:.2g} tokens per parameter (at least {MIN_TOKENS_PER_PARAM:g})"
    if ratio > MAX_TOKENS_PER_PARAM:
        return f"{ratio:.4g} tokens per parameter (at most {MAX_TOKENS_PER_PARAM:g})"
    if steps is not None and steps < min_steps:
        return f"only {steps} optimiser steps (at least {min_steps}); a smaller batch would give more"
    if epochs is not None and epochs > MAX_EPOCHS:
        return f"{epochs:.3g} epochs: it asks for more data than exists (repeated at most {MAX_EPOCHS:g} times)"
    return None


def first_of_each_kind(reasons: Iterable[str]) -> list[str]:
    """Reasons that differ in more than their numbers, the first of each kind."""
    kinds: dict[str, str] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"\d[\d.e+]*", "#", reason), reason)
    return list(kinds.values())


def largest_batch(tokens_at_optimum: float, tokens_per_sample: int) -> int:
    """The largest power of two [samples] that leaves 1,000 steps at the smallest budget's expected optimum."""
    tokens = min(tokens_at_optimum / 1000, MAX_BATCH_TOKENS)
    return int(2 ** max(0, math.floor(math.log2(max(tokens / tokens_per_sample, 1)))))
