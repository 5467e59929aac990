"""What serves several sizes, as text: coordinate checks, and learning rates that a probe finds."""

from __future__ import annotations

import pandas as pd

from flops_fit.experiment import SweepPlan
from flops_fit.fit.rates import EXTENSIONS, MORE, RateLaw
from flops_fit.transfer import Coordinate, CoordinateCheck
from flops_fit.units import format_flops


def coordinate_table(check: CoordinateCheck) -> str:
    """Part by size, with the power of the width in each and what it means."""
    if not check.coordinates:
        return check.verdict
    head = [f"change by {check.size_param}", *map(str, check.sizes), "slope", ""]
    rows = [head] + [
        [c.name, *(f"{v:.3g}" for v in c.rms), f"{c.slope:+.2f}", _word(c, check.tolerance)] for c in check.coordinates
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        )
        + f"  {row[-1]}"
        for row in rows
    ]
    return "\n".join([check.verdict, *(f"  {line}".rstrip() for line in lines)])


def rate_lines(plan: SweepPlan, law: RateLaw | None) -> list[str]:
    """What a plan's learning-rate probe is or has found; none where the rate is given."""
    if law is not None:
        return [str(law)]
    if not plan.probe:
        return []
    sizes = dict.fromkeys(f"{plan.size_param} {e.size_param_value}" for e in plan.probe)
    rates = sorted({e.lr for e in plan.probe if e.lr is not None})
    flops = format_flops(sum(e.flops for e in plan.probe))
    return [
        f"learning rate: auto: a probe finds it first, {len(plan.probe)} runs of {' and '.join(sizes)} for"
        f" {plan.probe[0].steps} steps at {rates[0]:.3g} to {rates[-1]:.3g}, {flops} FLOPs, which are in the sum; where"
        f" the best one is at the edge, up to {EXTENSIONS * MORE * len(sizes)} runs more"
    ]


def rate_series(law: RateLaw) -> pd.DataFrame:
    """Every run of a probe: size, num_params, steps, lr, loss (missing where it diverged), and its size's best_lr."""
    rows = [
        {
            "size": probe.size,
            "num_params": probe.num_params,
            "steps": probe.steps,
            "lr": lr,
            "loss": loss,
            "best_lr": probe.best_lr,
        }
        for probe in law.probes
        for lr, loss in zip(probe.lrs, probe.losses, strict=True)
    ]
    return pd.DataFrame(rows)


def _word(c: Coordinate, tolerance: float) -> str:
    if not c.is_judged:
        return 'not judged: see "output"'
    if not c.passes(tolerance):
        return "grows" if c.slope > 0 else "shrinks"
    return "ok, an input: may shrink" if c.is_input and c.slope <= -tolerance else "ok"
