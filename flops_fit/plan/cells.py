"""The runs that a designed sweep may choose from: sizes that can be built, whole steps, budgets on a ladder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from flops_fit.errors import PlanError
from flops_fit.experiment import DroppedCell, Experiment
from flops_fit.laws import SIX_ND, ComputeRule, ParametricLaw
from flops_fit.plan.grid import (
    MAX_TOKENS_PER_PARAM,
    MIN_STEPS,
    MIN_TOKENS_PER_PARAM,
    checked_budgets,
    log_spaced,
    pick_sizes,
)
from flops_fit.units import format_flops

# What can be learnt of the exponents is at the ends: sizes within a factor 16 of the optimum bought the same error for
# a third of the compute that a factor 4 took.
HALF_RANGE: Final = 16.0
SIZES_PER_OCTAVE: Final = 2
MOST_SIZES: Final = 41

# The first of two stages may cost this part of the whole, and has so many sizes at each of two budgets; the surface
# needs seven runs.
FIRST_STAGE_SHARE: Final = 0.02
_FIRST_STAGE_SIZES: Final = range(9, 3, -1)


def budget_ladder(largest: float, *, decades: float = 3.0, per_decade: int = 2) -> list[float]:
    """Budgets from ``largest`` down, evenly spaced in the logarithm, ascending [FLOPs]."""
    count = round(decades * per_decade) + 1
    return log_spaced(largest / 10**decades, largest, count) if count > 1 else [largest]


def candidate_cells(
    laws: ParametricLaw | Sequence[ParametricLaw],
    compute_budgets: Sequence[float],
    *,
    sizes: Sequence[int],
    num_params: Callable[[int], int | None],
    flops_per_token: Callable[[int], float] | None = None,
    tokens_per_step: int | None = None,
    rule: ComputeRule = SIX_ND,
    half_range: float = HALF_RANGE,
    tokens_per_param: tuple[float, float] | None = (MIN_TOKENS_PER_PARAM, MAX_TOKENS_PER_PARAM),
    min_steps: int = MIN_STEPS,
    size_param: str = "size",
    seed: int = 0,
) -> tuple[list[Experiment], list[DroppedCell]]:
    """Every run that might be trained: sizes around the optimum that the laws expect at each budget.

    Args:
        laws: One law, a family, or several; the sizes reach ``half_range`` beyond the optima of all of them.
        compute_budgets: Budgets [FLOPs].
        sizes: Values of the size parameter that may be used, ascending.
        num_params: From size to N; None where it cannot be built. Only some sizes are asked for.
        flops_per_token: From size to the cost of one token or sample [FLOPs]; None for that of the rule.
        tokens_per_step: Tokens or samples in one optimiser step; D is then whole steps.
        rule: What training costs, for the laws' optima.
        half_range: Factor below the smallest and above the largest expected optimum.
        tokens_per_param: Least and largest D / N; None for any, as where data are no tokens.
        min_steps: Fewest optimiser steps.
        size_param: Name of the size parameter.
        seed: Of every run.

    Returns:
        Runs, by budget and size; and what was left out, with the reason.

    Raises:
        PlanError: Nothing is left, or no size can be built.
    """
    budgets = checked_budgets(compute_budgets)
    counts = {size: num_params(size) for size in (sizes[0], sizes[-1])} if len(sizes) else {}
    if not counts or None in counts.values():
        raise PlanError(
            "the smallest and the largest size must be buildable: " + (", ".join(map(str, counts)) or "there are none"),
            hint="give sizes that the model can be built with, ascending",
        )
    members = [laws] if isinstance(laws, ParametricLaw) else laws
    cells: list[Experiment] = []
    dropped: list[DroppedCell] = []
    for C in budgets:
        optima = np.concatenate([np.ravel(law.optimum(C, rule)[0]) for law in members])
        low, high = float(optima.min()) / half_range, float(optima.max()) * half_range
        count = min(MOST_SIZES, round(SIZES_PER_OCTAVE * math.log2(high / low)) + 1)
        targets = log_spaced(low, high, count)
        for size in pick_sizes(targets, sizes, num_params):
            N = num_params(size)
            assert N is not None, "a size that was picked can be built"
            cost = float(rule.flops(N, 1.0)) if flops_per_token is None else flops_per_token(size)
            steps = None if tokens_per_step is None else max(1, round(C / cost / tokens_per_step))
            tokens = round(C / cost) if steps is None or tokens_per_step is None else steps * tokens_per_step
            reason = _why_not(N, tokens, steps, tokens_per_param, min_steps)
            if reason is not None:
                dropped.append(DroppedCell(size=size, reason=reason, compute_budget=C, num_params=N))
                continue
            cells.append(
                Experiment(
                    experiment_id=f"C{format_flops(C, 6)}_{size_param}{size}_s{seed}",
                    compute_budget=C,
                    size_param_value=size,
                    num_params=N,
                    num_tokens=tokens,
                    flops_per_token=cost,
                    seed=seed,
                    steps=steps,
                )
            )
    if not cells:
        reasons = list(dict.fromkeys(d.reason for d in dropped))[:3] or ["no size is near the expected optimum"]
        raise PlanError(
            f"no run is feasible at the budgets {', '.join(map(format_flops, budgets))}: {'; '.join(reasons)}",
            hint="raise the budgets, give other sizes, or a smaller batch",
        )
    return cells, dropped


def _why_not(N: int, tokens: int, steps: int | None, limits: tuple[float, float] | None, min_steps: int) -> str | None:
    if tokens < 1:
        return "not one token"
    low, high = limits or (0.0, math.inf)
    if tokens / N < low:
        return f"only {tokens / N:.2g} tokens per parameter (at least {low:g})"
    if tokens / N > high:
        return f"{tokens / N:.4g} tokens per parameter (at most {high:g})"
    if steps is not None and steps < min_steps:
        return f"only {steps} optimiser steps (at least {min_steps}); a smaller batch would give more"
    return None


def first_stage(
    candidates: Sequence[Experiment], *, plan_flops: float, share: float = FIRST_STAGE_SHARE
) -> tuple[Experiment, ...]:
    """The cheap runs that correct a poor guess at the law before the rest is planned.

    As many sizes at each of the two smallest budgets that have four, evenly spaced over all that are candidates, as
    this share of the whole buys, at most nine.

    Args:
        candidates: Runs there might be, as ``candidate_cells`` makes them.
        plan_flops: Cost of the whole sweep [FLOPs].
        share: Of it, for these.

    Raises:
        PlanError: There are not two budgets of four sizes, or they cost too much.
    """
    fewest = _FIRST_STAGE_SIZES[-1]
    every = sorted({e.compute_budget for e in candidates})
    by_budget = [sorted((e for e in candidates if e.compute_budget == C), key=lambda e: e.num_params) for C in every]
    rungs = [rung for rung in by_budget if len(rung) >= fewest][:2]
    budgets = [rung[0].compute_budget for rung in rungs]
    if len(rungs) < 2:
        found = ", ".join(f"{format_flops(C)} has {len(r)}" for C, r in zip(every, by_budget, strict=True)) or "none"
        raise PlanError(
            f"a first stage needs two budgets of at least {fewest} sizes; {found}",
            hint="give more sizes, or a further budget",
        )
    for count in _FIRST_STAGE_SIZES:
        picked = [
            rung[i] for rung in rungs for i in np.unique(np.linspace(0, len(rung) - 1, count).round().astype(int))
        ]
        cost = math.fsum(e.flops for e in picked)
        if cost <= share * plan_flops:
            return tuple(picked)
    raise PlanError(
        f"a first stage of {len(picked)} runs at {format_flops(budgets[0])} and {format_flops(budgets[1])} costs"
        f" {format_flops(cost)}, more than {share:.0%} of {format_flops(plan_flops)}",
        hint="add smaller budgets, a thousandth of the largest and less",
    )
