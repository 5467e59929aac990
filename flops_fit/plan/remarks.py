"""The cells of a budget, and what must be said about them before paying."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flops_fit.experiment import DroppedCell
from flops_fit.plan.count import SizeCount
from flops_fit.plan.grid import (
    COMFORTABLE_STEPS,
    ENOUGH_SIZES,
    ENOUGH_SPAN,
    EXPECTED_TOKENS_PER_PARAM,
    MANY_EPOCHS,
    first_of_each_kind,
)
from flops_fit.units import format_count, format_flops


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One size at one budget.

    Attributes:
        count: The size, counted.
        cost: Of a token [FLOPs].
        exact_tokens: What the budget buys.
        num_tokens: D: the same in whole batches, where the batch is known.
        steps: Optimiser steps, likewise.
        epochs: Passes over the data, where its length is known.
    """

    count: SizeCount
    cost: float
    exact_tokens: float
    num_tokens: int
    steps: int | None
    epochs: float | None


def span(cells: Sequence[Cell]) -> float:
    """Ratio of the largest N to the smallest."""
    N = [cell.count.num_params for cell in cells]
    return max(N) / min(N) if N else 1.0


def budget_remarks(C: float, cells: Sequence[Cell], dropped: Sequence[DroppedCell]) -> list[str]:
    """On one budget: its sizes, and the steps of the one nearest the expected optimum."""
    budget = f"budget {format_flops(C)}"
    if not cells:
        reasons = first_of_each_kind(d.reason for d in dropped if d.compute_budget in (C, None))
        return [f"{budget} has no run: {'; '.join(reasons[:3]) or 'no size was found'}"]
    remarks = []
    if len(cells) < 3:
        remarks.append(f"{budget} has {len(cells)} sizes; a minimum needs at least 3, better {ENOUGH_SIZES}")
    elif len(cells) < ENOUGH_SIZES or span(cells) < ENOUGH_SPAN:
        remarks.append(
            f"{budget} has {len(cells)} sizes over {span(cells):.2g} times in N; a sure minimum needs {ENOUGH_SIZES}"
            f" over {ENOUGH_SPAN:g} times"
        )
    middle = min(cells, key=_distance)
    if middle.steps is not None and middle.steps < COMFORTABLE_STEPS:
        remarks.append(
            f"{budget}: {middle.steps} optimiser steps near the expected optimum"
            f" (N = {format_count(middle.count.num_params)}); below {COMFORTABLE_STEPS} the law shows the schedule,"
            " use a smaller batch"
        )
    return remarks


def _distance(cell: Cell) -> float:
    return abs(math.log(cell.num_tokens / cell.count.num_params / EXPECTED_TOKENS_PER_PARAM))


def sweep_remarks(cells: Mapping[float, Sequence[Cell]]) -> list[str]:
    """On the whole: enough budgets to check a forecast, and data that is seen more than once."""
    count = sum(bool(some) for some in cells.values())
    remarks = []
    if count < 3:
        plural = "s" * (count > 1)
        remarks.append(f"{count} budget{plural}: at least 3 are needed to check a forecast on held-out compute")
    repeated = [(cell.epochs, C, cell) for C, some in cells.items() for cell in some if (cell.epochs or 0) > 1.0]
    if repeated:
        epochs, C, cell = max(repeated, key=lambda r: r[0] or 0)
        assert epochs is not None
        where = f"at most {epochs:.2g} times (budget {format_flops(C)}, size {cell.count.size})"
        text = f"{len(repeated)} cells go through the data more than once, {where}"
        if epochs > MANY_EPOCHS:
            many = sum((r[0] or 0) > MANY_EPOCHS for r in repeated)
            text += (
                f", {many} of them more than {MANY_EPOCHS:g} times: repeated data teaches far less than new, and the"
                " law will be wrong; bring more data or lower the budgets"
            )
        else:
            text += "; repeated data teaches a little less than new"
        remarks.append(text)
    return remarks
