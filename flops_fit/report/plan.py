"""A plan as a page of text: every run, what it costs, what was left out."""

from __future__ import annotations

from flops_fit.experiment import SweepPlan
from flops_fit.units import format_count, format_flops


def plan_table(plan: SweepPlan) -> str:
    """The plan for a terminal."""
    titles = ("budget", plan.size_param, "N", "D", "D/N", "steps", "FLOPs", "C/6ND")
    head = "  ".join(f"{title:>{width}}" for title, width in zip(titles, (9, 10, 8, 8, 7, 7, 9, 5), strict=True))
    lines = [f"{plan.model_cls_name}: {plan.num_experiments} runs, D in {plan.unit}", "", head]
    for e in plan.experiments:
        steps = "" if e.steps is None else str(e.steps)
        ratio = e.flops_per_token / (6 * e.num_params)
        lines.append(
            f"{format_flops(e.compute_budget):>9}  {e.size_param_value:>10}  {format_count(e.num_params):>8}"
            f"  {format_count(e.num_tokens):>8}  {e.tokens_per_param:>7.3g}  {steps:>7}  {format_flops(e.flops):>9}"
            f"  {ratio:>5.2f}"
        )
    by_budget = {C: sum(e.flops for e in plan.experiments if e.compute_budget == C) for C in plan.compute_budgets}
    lines += ["", "cost: " + ", ".join(f"{format_flops(f)} at {format_flops(C)}" for C, f in by_budget.items())]
    rule = "C = 6ND" if plan.flops_rule == "6nd" else "counted on the model"
    lines.append(f"in all {format_flops(plan.total_flops)} FLOPs ({rule})")
    if plan.batch_size is not None:
        per_step = f" = {plan.batch_size * plan.tokens_per_sample} tokens" if plan.unit == "tokens" else ""
        lines.append(f"batch: {plan.batch_size} samples{per_step} a step")
    lines += [_dropped(d.size, d.compute_budget, d.reason) for d in plan.dropped]
    lines += [f"note: {w}" for w in plan.warnings]
    return "\n".join(lines)


def _dropped(size: int, budget: float | None, reason: str) -> str:
    return f"left out: size {size}{'' if budget is None else f' at {format_flops(budget)}'}: {reason}"
