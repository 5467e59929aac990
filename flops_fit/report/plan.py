"""A plan as a page of text: every run, what it costs, what was left out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from flops_fit.experiment import DroppedCell, Experiment, SweepPlan
from flops_fit.markup import text_table
from flops_fit.units import format_bytes, format_count, format_duration, format_flops

_Column = tuple[str, Sequence[str]]


def plan_table(plan: SweepPlan, runs: Sequence[_Column] = (), totals: Sequence[str] = ()) -> str:
    """The plan for a terminal.

    Args:
        plan: The plan.
        runs: Further columns: a title, and a cell for every run.
        totals: Further lines on the whole.
    """
    lines = [f"{plan.model_cls_name}: {plan.num_experiments} runs, D in {plan.unit}", ""]
    titles, cells = zip(*_columns(plan), *runs, strict=True)
    lines += text_table(titles, zip(*cells, strict=True))
    by_budget = {C: sum(e.flops for e in plan.experiments if e.compute_budget == C) for C in plan.compute_budgets}
    lines += ["", "cost: " + ", ".join(f"{format_flops(f)} at {format_flops(C)}" for C, f in by_budget.items())]
    rule = "C = 6ND" if plan.flops_rule == "6nd" else "counted on the model"
    lines.append(f"in all {format_flops(plan.total_flops)} FLOPs ({rule})")
    lines += [*totals, *repeats_lines(plan), *design_lines(plan)]
    if plan.batch_size is not None:
        per_step = f" = {plan.batch_size * plan.tokens_per_sample} tokens" if plan.unit == "tokens" else ""
        lines.append(f"batch: {plan.batch_size} samples{per_step} a step")
    lines += _left_out(plan.dropped)
    lines += [f"note: {w}" for w in plan.warnings]
    return "\n".join(lines)


def repeats_lines(plan: SweepPlan) -> list[str]:
    """How many runs further seeds add and why, in a line; none where every cell is trained once."""
    again = plan.repeats
    if not again:
        return []
    budgets = sorted({e.compute_budget for e in again})
    seeds = sorted({e.seed for e in again})
    flops = sum(e.flops for e in again)
    share = 100 * flops / (sum(e.flops for e in plan.experiments) - flops)
    where = "all budgets" if budgets == plan.compute_budgets else ", ".join(format_flops(C) for C in budgets)
    return [
        f"seeds: {', '.join(map(str, seeds))} again at {where}: {len(again)} more runs,"
        f" {share:.2g}% more FLOPs; their scatter is the noise that the fit is judged by"
    ]


def design_lines(plan: SweepPlan) -> list[str]:
    """What a designed sweep expects of itself, beside the usual grid; nothing for a grid."""
    design = plan.design
    if design is None:
        return []
    target = format_flops(design.target_compute)
    expected = f"{_factor(design.size_error)} in N_opt, {design.loss_error:.2%} in the loss"
    usual = "cannot be trained for as much"
    if design.usual_size_error is not None:
        usual = f"leaves {_factor(design.usual_size_error)} and {design.usual_loss_error:.2%} for as much"
    kept = [e for e in plan.experiments if e.experiment_id in design.holdout]
    apart = format_flops(sum(e.flops for e in kept))
    lines = [
        f"design: expected error at {target} FLOPs {expected} (root mean squares), for"
        f" {format_flops(design.cells_flops)} FLOPs; {len(kept)} runs kept back to check it cost {apart} more",
        f"  the usual grid of 5 budgets and 9 sizes {usual}"
        + (
            f", and costs {format_flops(design.usual_flops)} ({design.usual_flops / design.cells_flops:.2g} times) for"
            " the same error in N_opt"
            if design.usual_flops
            else ", and has no such error in N_opt at any cost below the target"
        ),
        f"  chosen by {design.prior}, allowing for other forms of the law",
    ]
    if not design.is_final:
        first = [e for e in plan.experiments if e.round == 1]
        cost = format_flops(sum(e.flops for e in first))
        lines.append(f"  first {len(first)} runs, {cost} FLOPs; the others are chosen anew by what these say")
    return lines


def _factor(error: float) -> str:
    """An error of a logarithm, as a percentage."""
    return f"{math.expm1(error):.1%}"


def size_columns(plan: SweepPlan) -> list[_Column]:
    """N under every convention, and counted FLOPs over those of 6ND: what ``plan -v`` shows beside."""
    conventions = {
        "N matmul": [e.num_params_matmul for e in plan.experiments],
        "N total": [e.num_params_total for e in plan.experiments],
        "N non-emb": [e.num_params_non_embedding for e in plan.experiments],
    }
    columns: list[_Column] = [
        (title, ["" if n is None else format_count(n) for n in counts]) for title, counts in conventions.items()
    ]
    return [*columns, ("C/6ND", [f"{e.flops_per_token / (6 * e.num_params):.2f}" for e in plan.experiments])]


def cost_columns(
    deviations: Sequence[float], epochs: Sequence[float | None], memory: Sequence[int], seconds: Sequence[float]
) -> list[_Column]:
    """What every run costs: FLOPs over budget less one, passes over the data, memory [bytes], time [seconds]."""
    return [
        ("off", [f"{100 * d:+.2g}%" for d in deviations]),
        ("epochs", ["" if e is None else f"{e:.2g}" for e in epochs]),
        ("memory", [format_bytes(m) for m in memory]),
        ("time", [format_duration(s) for s in seconds]),
    ]


def rate_column(rates: Sequence[float | None]) -> _Column:
    """The peak learning rate of every run."""
    return "lr", ["" if rate is None else f"{rate:.3g}" for rate in rates]


def _columns(plan: SweepPlan) -> list[_Column]:
    runs: Sequence[Experiment] = plan.experiments
    return [
        ("budget", [format_flops(e.compute_budget) for e in runs]),
        (plan.size_param if runs[0].size_kwargs is None else "size", [_size(e) for e in runs]),
        ("N", [format_count(e.num_params) for e in runs]),
        ("D", [format_count(e.num_tokens) for e in runs]),
        ("D/N", [f"{e.tokens_per_param:.3g}" for e in runs]),
        ("steps", ["" if e.steps is None else str(e.steps) for e in runs]),
        ("FLOPs", [format_flops(e.flops) for e in runs]),
    ]


def _left_out(dropped: Sequence[DroppedCell]) -> list[str]:
    """A line for every kind of reason at a budget, with the sizes that it holds for and the first one's numbers."""
    kinds: dict[tuple[float | None, str], list[DroppedCell]] = {}
    for d in dropped:
        kinds.setdefault((d.compute_budget, re.sub(r"\d[\d.e+-]*", "#", d.reason)), []).append(d)
    lines = []
    for (budget, _), cells in kinds.items():
        where = "" if budget is None else f" at {format_flops(budget)}"
        sizes = ", ".join(str(d.size) for d in cells)
        reason = cells[0].reason if len(cells) == 1 else f"{cells[0].reason} (of size {cells[0].size})"
        lines.append(f"left out{where}: size{'s' * (len(cells) > 1)} {sizes}: {reason}")
    return lines


def _size(experiment: Experiment) -> str:
    """The value of the size parameter, or all that this size sets."""
    if experiment.size_kwargs is None:
        return str(experiment.size_param_value)
    return " ".join(f"{k}={v}" for k, v in experiment.size_kwargs.items())
