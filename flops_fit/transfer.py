"""Whether a learning rate serves models of several widths: what a coordinate check has found.

The idea is that of Yang et al. 2022, arXiv:2203.03466, appendix D.1: where a parametrisation transfers the rate, a few
steps change what every part of the network puts out by as much at any width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

TOLERANCE = 0.2
# What the output of the whole network is called.
OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """How far a few steps move the output of one part of the network, at each width.

    Attributes:
        name: Of the module, a star for the number of a block; "output" for what the network returns.
        rms: Root mean square of the change at each size, the geometric mean over seeds.
        slope: Power of the width in it.
        is_input: A look-up or layer whose inputs do not grow with the width. Its change may shrink: u-muP lowers the
            embedding's rate as width^-1/2 (Blake et al. 2024, arXiv:2407.17465).
        is_judged: Whether it decides. The layer that makes the output does not: what is multiplied to it afterwards,
            such as 1/width, belongs to the parametrisation too, and "output" has it.
    """

    name: str
    rms: tuple[float, ...]
    slope: float
    is_input: bool = False
    is_judged: bool = True

    def passes(self, tolerance: float) -> bool:
        """Neither grows with the width nor, but for inputs, shrinks: a part that learns less and less is lost, too."""
        return not self.is_judged or (self.slope < tolerance and (self.is_input or self.slope > -tolerance))


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinateCheck:
    """What a coordinate check has found.

    Attributes:
        size_param: Name of the size parameter.
        sizes: Its values, ascending.
        widths: Of the models, the smallest one's being 1.
        lr: Peak learning rate that the steps were taken with.
        steps: Optimiser steps.
        seeds: Every size was started from each.
        tolerance: Slopes up to here, either way, are taken for none.
        coordinates: Every part of the network that was looked at.
        has_own_rates: Whether the model's parameter groups set rates by size, which says that they transfer.
        not_applicable: Why the question cannot be put to these sizes; None where it can.
    """

    size_param: str
    sizes: tuple[int, ...]
    widths: tuple[float, ...]
    lr: float
    steps: int
    seeds: tuple[int, ...]
    tolerance: float = TOLERANCE
    coordinates: tuple[Coordinate, ...] = ()
    has_own_rates: bool = False
    not_applicable: str | None = None

    @property
    def failing(self) -> list[Coordinate]:
        """Parts whose change depends on the width, the worst first."""
        return sorted((c for c in self.coordinates if not c.passes(self.tolerance)), key=lambda c: -abs(c.slope))

    @property
    def passed(self) -> bool | None:
        """Whether one rate serves all widths; None where that cannot be asked."""
        return None if self.not_applicable else not self.failing

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.not_applicable:
            return f"coordinate check: not applicable: {self.not_applicable}"
        among = f"{self.size_param} {self.sizes[0]} to {self.sizes[-1]}, {len(self.seeds)} seeds, lr {self.lr:g}"
        head = f"coordinate check ({self.steps} steps, {among})"
        failing = self.failing
        if not failing:
            return f"{head}: passed, no update depends on the width: one learning rate serves all"
        worst = ", ".join(f"{c.name} as width^{c.slope:+.2f}" for c in failing[:3])
        return (
            f"{head}: failed, updates change with the width ({worst}"
            f"{f' and {len(failing) - 3} more' * (len(failing) > 3)}): one learning rate does not serve all"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``check --json`` prints them."""
        rows = [asdict(c) | {"passed": c.passes(self.tolerance)} for c in self.coordinates]
        return asdict(self) | {"passed": self.passed, "verdict": self.verdict, "coordinates": rows}

    def __str__(self) -> str:
        return self.verdict


def slope_of(widths: Sequence[float], rms: Sequence[float]) -> float:
    """Power of the width in the size of a change, by least squares of logarithms."""
    return float(np.polyfit(np.log(widths), np.log(rms), 1)[0])


Shapes = Mapping[str, Sequence[int]]


def width_ratio(small: Shapes, large: Shapes) -> float:
    """How much wider one model is than another: the median ratio of the sides of its weights that differ.

    Parameters that only one of them has, such as those of further layers, say nothing of width.

    Args:
        small: Names and shapes of the parameters of one.
        large: Those of the other.
    """
    ratios = [
        b / a
        for name, shape in small.items()
        if name in large and len(large[name]) == len(shape)
        for a, b in zip(shape, large[name], strict=True)
        if a != b and a > 0
    ]
    return math.exp(float(np.median(np.log(ratios)))) if ratios else 1.0


def why_no_widths(shapes: Sequence[Shapes]) -> str | None:
    """Why these models, in ascending order, do not differ in width alone; None where they do.

    Args:
        shapes: Names and shapes of the parameters of each.
    """
    names = set(shapes[0])
    if any(set(other) != names for other in shapes):
        more = sorted(set(shapes[-1]) ^ names)
        return f"the sizes differ in depth, not in width alone: only some have {more[0]}"
    widths = [width_ratio(shapes[0], other) for other in shapes]
    if any(not b > a for a, b in pairwise(widths)):
        return "the size parameter does not make the layers wider"
    return None
