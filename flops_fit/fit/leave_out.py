"""What one budget, or one size, does to the answer: the surface with each left out in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from flops_fit.fit.parametric import ParametricFit
from flops_fit.fit.rows import Rows
from flops_fit.fit.uncertainty import jackknife_groups
from flops_fit.laws import ComputeRule, FloatArray, ParametricLaw

# Sizes closer than this are one [log N]; more different sizes than this are left out in as many groups of neighbours.
_SAME_SIZE: Final = 0.01
_MOST_SIZES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """The surface without some runs.

    Attributes:
        what: Whether a budget or a size is left out.
        value: Which: FLOPs, or the middle size of those left out [parameters].
        n_runs: Runs left out.
        exponent: Power of C in N_opt.
        num_params: N_opt at the budget asked for.
        loss: Loss there [nats/token].
    """

    what: Literal["budget", "size"]
    value: float
    n_runs: int
    exponent: float
    num_params: float
    loss: float


def leave_one_out(
    rows: Rows, fit: ParametricFit, without_budget: FloatArray | None, rule: ComputeRule, C: float
) -> tuple[LeftOut, ...]:
    """Refit without each budget and without each size.

    Args:
        rows: The runs.
        fit: Their surface.
        without_budget: theta without each budget, shape (budgets, 5), or None.
        rule: What training costs.
        C: Where N_opt and loss are compared [FLOPs].
    """
    table: list[LeftOut] = []
    if without_budget is not None:
        budgets, counts = np.unique(rows.budget[np.isfinite(rows.budget)], return_counts=True)
        table += _rows("budget", budgets, counts, without_budget, rule, C)
    groups = _sizes(rows.N)
    sizes, counts = np.unique(groups, return_counts=True)
    if len(sizes) > 3:
        table += _rows("size", sizes, counts, jackknife_groups(rows.N, rows.D, rows.L, groups, fit), rule, C)
    return tuple(table)


def _rows(
    what: Literal["budget", "size"],
    values: FloatArray,
    counts: Any,
    theta: FloatArray,
    rule: ComputeRule,
    C: float,
) -> list[LeftOut]:
    laws = ParametricLaw.from_logs(theta)
    exponents, _ = laws.exponents(rule)
    # What is left may not determine the surface at all.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        N, D = laws.optimum(C, rule)
        loss = laws.loss(N, D)
    columns = zip(values, counts, exponents, N, loss, strict=True)
    return [
        LeftOut(what=what, value=float(v), n_runs=int(n), exponent=float(a), num_params=float(size), loss=float(at))
        for v, n, a, size, at in columns
    ]


def _sizes(N: FloatArray) -> FloatArray:
    """The middle size of each run's group of equal, or neighbouring, sizes."""
    order = np.argsort(N, kind="stable")
    log_N = np.log(N[order])
    starts = [0]
    while len(starts) <= _MOST_SIZES and starts[-1] < len(N):
        starts.append(int(np.searchsorted(log_N, log_N[starts[-1]] + _SAME_SIZE, side="right")))
    if starts[-1] < len(N):
        starts = [len(N) * i // _MOST_SIZES for i in range(_MOST_SIZES)]
    middles = np.empty(len(N))
    for part in np.split(order, starts[1:]):
        middles[part] = np.median(N[part]) if len(part) else np.nan
    return middles
