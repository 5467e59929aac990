"""Sizes for budgets whose minimum the sizes there do not hold: further ones on the side where it must lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Final, Literal

from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.plan.grid import pick_sizes
from flops_fit.plan.planner import Planner
from flops_fit.plan.remarks import Cell
from flops_fit.units import format_flops

Side = Literal["smaller", "larger"]

# Enough to have runs to either side of a minimum that lies just outside.
_SIZES: Final = 3

# Parts of the spacing to try.
_CLOSER: Final = (1.0, 0.5, 0.25)


def plan_beyond(planner: Planner, plan: SweepPlan, sides: Mapping[float, Side], *, round: int) -> SweepPlan:
    """The plan with further sizes, spaced as those there are.

    Args:
        planner: What planned it.
        plan: What is trained already.
        sides: By budget, where its minimum must lie.
        round: Of the new runs.

    Returns:
        All runs; as many as before where no further size can be trained, for which the warnings give the reason.
    """
    added: list[Experiment] = []
    remarks: list[str] = []
    for C, side in sides.items():
        here = {e.size_param_value: e.num_params for e in plan.experiments if e.compute_budget == C}
        sizes: list[int] = []
        cells: list[Cell] = []
        for closer in _CLOSER:  # where what can be trained ends soon, sizes are put before its end
            sizes = _further(planner, here, side, closer)
            cells = planner.trainable(C, sizes)
            if cells:
                break
        seeds = planner.seeds_at(C)
        added += [replace(planner.experiment(C, cell, seed), round=round) for cell in cells for seed in seeds]
        if not cells:
            reasons = [d.reason for d in planner.dropped if d.compute_budget == C and d.size in sizes]
            why = reasons[0] if reasons else "there are none among the sizes that may be used"
            remarks.append(f"budget {format_flops(C)} wants {side} sizes, and none can be trained: {why}")
    order = sorted([*plan.experiments, *added], key=lambda e: (e.compute_budget, e.num_params, e.seed))
    return replace(
        plan,
        experiments=order,
        dropped=[*planner.search.dropped, *planner.dropped],
        warnings=[*plan.warnings, *remarks],
    )


def _further(planner: Planner, here: Mapping[int, int], side: Side, closer: float) -> list[int]:
    """Sizes that continue those of a budget, so much closer to each other than these are."""
    N = sorted(here.values())
    step = median(math.log(b / a) for a, b in pairwise(N)) if len(N) > 1 else math.log(2.0)
    step *= closer
    end, sign = (N[0], -1) if side == "smaller" else (N[-1], 1)
    targets = sorted(end * math.exp(sign * step * k) for k in range(1, _SIZES + 1))
    candidates = [size for size in planner.search.candidates(targets[-1]) if size not in here]

    def num_params(size: int) -> int | None:
        count = planner.search.count(size)
        return None if count is None else count.num_params

    beyond = [s for s in candidates if (s < min(here) if side == "smaller" else s > max(here))]
    return pick_sizes(targets, beyond, num_params) if beyond else []
