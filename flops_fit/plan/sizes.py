"""Which sizes a sweep trains: found by building as few as possible, or as the user gave them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral

from flops_fit.errors import PlanError
from flops_fit.experiment import DroppedCell, FlopsRule
from flops_fit.plan.count import SizeCount, SizeCounter
from flops_fit.plan.grid import (
    EXPECTED_TOKENS_PER_PARAM,
    HALF_RANGE,
    bracket,
    first_of_each_kind,
    ladder,
    log_spaced,
    pick_sizes,
)
from flops_fit.plan.rungs import BuildError
from flops_fit.units import format_count

# Two sizes nearer than this are one point of a curve, paid twice.
_SAME_N = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeChoice:
    """Which sizes a sweep may use.

    Attributes:
        num_sizes_per_budget: How many at each budget.
        min_size: Smallest value of the size parameter; None to find it.
        max_size: Largest value; None to find it.
        sizes: Exactly these, at every budget where they are feasible; wins over all of the above.
        size_multiple: Sizes are multiples of this; None for 64 at large widths and less at small ones.
    """

    num_sizes_per_budget: int = 7
    min_size: int | None = None
    max_size: int | None = None
    sizes: Sequence[int] | None = None
    size_multiple: int | None = None

    def __post_init__(self) -> None:
        counts = {"num_sizes_per_budget": self.num_sizes_per_budget, "min_size": self.min_size}
        counts |= {"max_size": self.max_size, "size_multiple": self.size_multiple}
        counts |= {f"sizes[{i}]": s for i, s in enumerate(() if self.sizes is None else self.sizes)}
        bad = [f"{k}={v!r}" for k, v in counts.items() if v is not None and not is_count(v)]
        if bad or (self.sizes is not None and not len(self.sizes)):
            raise PlanError(f"sizes must be positive whole numbers; got {', '.join(bad) or 'an empty list'}")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise PlanError(f"min_size={self.min_size} is larger than max_size={self.max_size}")


def is_count(value: object) -> bool:
    """Whether it is a positive whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


@dataclass(kw_only=True)
class SizeSearch:
    """Finds sizes for a budget.

    Attributes:
        counter: Builds and counts one size.
        choice: Which sizes may be used.
        rule: "6nd" or "counted".
        flops_per_param_per_token: The 6 of C = 6ND.
        dropped: Sizes left out at every budget.
    """

    counter: SizeCounter
    choice: SizeChoice
    rule: FlopsRule
    flops_per_param_per_token: float = 6.0
    dropped: list[DroppedCell] = field(default_factory=list)

    def count(self, size: int) -> SizeCount | None:
        """The size, counted; None, with the reason noted, where it cannot be built."""
        try:
            return self.counter(size)
        except BuildError as error:
            self._drop(size, error.problem)
            return None

    def _drop(self, size: int, reason: str, num_params: int | None = None) -> None:
        if not any(d.size == size for d in self.dropped):
            self.dropped.append(DroppedCell(size=size, reason=reason, num_params=num_params))

    def flops_per_token(self, count: SizeCount) -> float:
        """Training cost of a token of this size [FLOPs].

        Raises:
            PlanError: FLOPs are to be counted and could not be.
        """
        if self.rule == "6nd":
            return self.flops_per_param_per_token * count.num_params
        return self.counter.flops_per_token(count.size)

    def sizes_for(self, C: float) -> list[int]:
        """The sizes to train at a budget, before cells are judged."""
        if self.choice.sizes is not None:
            return self._given()
        centre = self.expected_optimum(C)
        candidates = self.candidates(centre * HALF_RANGE)
        low, high = centre / HALF_RANGE, centre * HALF_RANGE
        if self.choice.min_size is not None:
            low = self.counter(candidates[0]).num_params
        if self.choice.max_size is not None:
            high = self.counter(candidates[-1]).num_params
        targets = log_spaced(low, max(low, high), self.choice.num_sizes_per_budget)
        # Where all sizes are outside the range the nearest is judged like any other cell, and the reason told.
        return pick_sizes(targets, candidates, self._num_params) or pick_sizes([centre], candidates, self._num_params)

    def sizes_within(self, low: float, high: float) -> list[int]:
        """As many sizes as are wanted, evenly over a range of N."""
        targets = log_spaced(low, high, self.choice.num_sizes_per_budget)
        return pick_sizes(targets, self.candidates(high), self._num_params)

    def _given(self) -> list[int]:
        """The user's sizes, less those that cannot be built and those of as many parameters as another."""
        kept: dict[int, int] = {}
        assert self.choice.sizes is not None
        for size in sorted({int(s) for s in self.choice.sizes}):
            count = self.count(size)
            if count is None:
                continue
            N = count.num_params
            twin = next((s for s, n in kept.items() if max(N, n) <= _SAME_N * min(N, n)), None)
            if twin is not None:
                near = (
                    f"its {format_count(N)} parameters are within 3 % of the {format_count(kept[twin])} of size {twin}"
                )
                self._drop(size, near + ", which stands for both", N)
                continue
            kept[size] = N
        return list(kept)

    def warnings(self, size_param: str) -> list[str]:
        """What is odd about the sizes built so far."""
        known = self.counter.known
        falls = [(a, b) for a, b in pairwise(known) if b.num_params < a.num_params]
        if not falls:
            return []
        a, b = falls[0]
        return [
            f"the model does not grow with {size_param}: {format_count(a.num_params)} parameters at {a.size},"
            f" {format_count(b.num_params)} at {b.size}; check how the size enters the model"
        ]

    def expected_optimum(self, C: float) -> float:
        """N at which C buys EXPECTED_TOKENS_PER_PARAM; sqrt(C / 120) for C = 6ND."""
        N = math.sqrt(C / (6 * EXPECTED_TOKENS_PER_PARAM))
        if self.rule == "6nd":
            return N * math.sqrt(6 / self.flops_per_param_per_token)
        for _ in range(8):  # a fixed point: the cost per token changes slowly with N
            candidates = self.candidates(N)
            if not candidates:
                return N  # no size can be built, which the plan tells size by size
            count = self.counter(pick_sizes([N], candidates, self._num_params)[0])
            per_param = self.flops_per_token(count) / count.num_params
            N = math.sqrt(C / (per_param * EXPECTED_TOKENS_PER_PARAM))
        return N

    def _num_params(self, size: int) -> int | None:
        count = self.count(size)
        return None if count is None else count.num_params

    def candidates(self, N: float) -> list[int]:
        """Sensible sizes up to the user's largest, or the first of at least N; the ends can be built."""
        if self.choice.sizes is not None:
            return [size for size in sorted({int(s) for s in self.choice.sizes}) if self._probe(size) is not None]
        smallest = self._smallest()
        largest = self.choice.max_size or bracket(self._probe, N, start=smallest)
        candidates = ladder(largest, self.choice.size_multiple, smallest)
        while self._probe(candidates[-1]) is None:
            candidates.pop()
        return candidates

    def _smallest(self) -> int:
        """The first sensible size that can be built, from the user's smallest on.

        Raises:
            PlanError: There is none; sizes far above a thousand are not tried, since building them may be costly.
        """
        lowest = self.choice.min_size or 1
        tried = ladder(self.choice.max_size or max(1024, 4 * lowest), self.choice.size_multiple, lowest)
        why_not: list[str] = []
        for size in tried:
            try:
                self.counter(size)
            except BuildError as error:
                why_not.append(error.problem)
            else:
                return size
        largest = tried[-1] if tried else self.choice.max_size
        reasons = first_of_each_kind(why_not) or [f"none is a multiple of {self.choice.size_multiple}"]
        raise PlanError(
            f"no size from {lowest} to {largest} can be built; {'; '.join(reasons)}", hint="give sizes=[...]"
        )

    def _probe(self, size: int) -> int | None:
        """N of a size that nobody asked for; not being able to build it is no news."""
        try:
            return self.counter(size).num_params
        except BuildError:
            return None
