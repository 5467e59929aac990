"""``plan``: every run and what it will cost, before anything is paid."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from flops_fit.cli.main import GOOD
from flops_fit.cli.simulate import add_truth_options, expected_line, truth_of
from flops_fit.cli.sweep import quiet_libraries, sweep_options
from flops_fit.cli.words import amount
from flops_fit.errors import FlopsFitError
from flops_fit.units import format_duration, parse_flops

if TYPE_CHECKING:
    from flops_fit.cli.words import Parser
    from flops_fit.plan.cost import SweepCost
    from flops_fit.study import Study


def plan(words: list[str]) -> int:
    """Show the plan and its cost; nothing is written."""
    began = time.monotonic()
    own, rest = sweep_options("plan", words, _add_options)
    if own.jobs is not None and own.jobs < 1:
        raise FlopsFitError(f"--jobs {own.jobs} must be at least 1")
    if own.benchmark and own.device_flops is not None:
        raise FlopsFitError("--benchmark measures what --device-flops states; give one of them")
    asked = [f"--{name}" for name in ("law", "noise", "compute") if getattr(own, name) is not None]
    if asked and not own.simulate:
        raise FlopsFitError(f"{', '.join(asked)} goes with --simulate")
    from flops_fit.cli.config import SweepCLI
    from flops_fit.estimate import assume, circumstances_of
    from flops_fit.study import plan_study

    with quiet_libraries():
        cli = SweepCLI(own.config, rest, "plan")
        study = plan_study(cli.recipe, cli.sweep)
        planned = time.monotonic() - began
        around = planned if own.benchmark else 0.0
        circumstances = circumstances_of(study, jobs=own.jobs, price_per_hour=own.price_per_hour, seconds_around=around)
    if own.benchmark:
        from flops_fit.trial import benchmark

        cost = benchmark(study, circumstances)
    else:
        cost = assume(study, circumstances, own.device_flops)
    told = {"schema_version": 1} | study.plan.to_dict() | {"cost": cost.to_dict()}
    told |= {"learning_rate": None if study.rate_law is None else study.rate_law.to_dict()}
    lines = [_page(study, cost, verbose=own.verbose)]
    if own.simulate:
        from flops_fit.simulation import expected_errors, target_of

        truth = truth_of(own, study.plan)
        target = target_of(study.plan, own.compute)
        expected = expected_errors(study.plan, truth, compute_budget=target, seed=own.seed)
        told |= {"simulation": asdict(expected) | {"truth": truth.to_dict(), "seed": own.seed}}
        lines.append(expected_line(expected, truth))
    print(json.dumps(told) if own.json else "\n".join(lines))
    return GOOD


def _add_options(parser: Parser) -> None:
    parser.add_argument("--verbose", "-v", action="store_true", help="N under every convention, learning rates")
    parser.add_argument("--jobs", type=int, help="runs at a time; by default what the launcher would do here")
    parser.add_argument("--price-per-hour", type=float, help="of one device, such as a GPU")
    parser.add_argument(
        "--device-flops", type=amount(parse_flops), help="FLOP/s that one device sustains, instead of what is usual"
    )
    parser.add_argument(
        "--benchmark", action="store_true", help="take a few steps of every size on this machine, and tell by them"
    )
    parser.add_argument("--simulate", action="store_true", help="say how far off this plan's answers would be")
    add_truth_options(parser)


def _page(study: Study, cost: SweepCost, *, verbose: bool) -> str:
    """The plan's table with its costs."""
    from flops_fit.report import rate_lines
    from flops_fit.report.plan import cost_columns, plan_table, rate_column, size_columns

    plan, runs = study.plan, cost.runs
    columns = cost_columns(
        [r.deviation for r in runs],
        [r.epochs for r in runs],
        [r.memory_bytes for r in runs],
        [r.seconds for r in runs],
    )
    if verbose:
        columns += [rate_column([r.lr for r in runs]), *size_columns(plan)]
    return plan_table(plan, columns, [*_totals(cost), *rate_lines(plan, study.rate_law)])


def _totals(cost: SweepCost) -> list[str]:
    """Time and money of the whole, and what they rest on."""
    from flops_fit.plan.cost import MEMORY_IS_WITHOUT

    around = cost.circumstances.seconds_around
    jobs, devices = cost.circumstances.jobs, cost.circumstances.devices
    wall = format_duration(cost.wall_seconds)
    included = f", {format_duration(around)} of it before the first run and after the last" if around else ""
    lines = [
        f"time: {wall} with {jobs} run{'s' * (jobs > 1)} at a time{included}",
        f"device-hours: {cost.device_hours:.3g}" + (f", {devices} devices a run" if devices > 1 else ""),
    ]
    if cost.price is not None:
        lines[-1] += f"; {cost.price:.2f} at {cost.circumstances.price_per_hour:g} a device-hour"
    lines.append(f"  {cost.source}")
    rates = sorted({r.lr for r in cost.runs if r.lr is not None})
    if rates:
        spread = f"{rates[0]:.3g}" if rates[0] == rates[-1] else f"{rates[0]:.3g} to {rates[-1]:.3g}"
        lines.append(f"peak learning rate: {spread}, of each size's fastest parameter group")
    if not cost.is_measured:
        lines.append(f"memory: weights, gradients and AdamW's moments, without {MEMORY_IS_WITHOUT}")
    return lines
