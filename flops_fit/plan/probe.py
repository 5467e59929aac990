"""The runs of a learning-rate probe: which sizes of a plan, for how long, at which rates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flops_fit.experiment import Experiment, SweepPlan

NUM_RATES = 5
# The middle of the first rates: AdamW's usual ones for small models, and u-muP's, which are near one
# (Blake et al. 2024, arXiv:2407.17465). A best rate elsewhere is walked to.
_USUAL, _OWN = 4e-3, 0.5
# Of the sweep's compute, what the first rates may take, as long as runs are not too short to tell rates apart.
_SHARE = 0.1
_LEAST_STEPS = 200


def first_rates(has_own_rates: bool, factor: float) -> list[float]:
    """Rates to begin with, ascending.

    Args:
        has_own_rates: Whether the model's groups make of one rate what each size needs.
        factor: Between neighbours.
    """
    middle = _OWN if has_own_rates else _USUAL
    return [middle * factor**k for k in range(-(NUM_RATES // 2), NUM_RATES // 2 + 1)]


def probe_cells(plan: SweepPlan, *, num_sizes: int) -> list[Experiment]:
    """The sizes to probe, all for the same steps: as many as the shortest of their runs has, or fewer.

    Equal steps, because the best rate falls with their number, too, and what is asked is how it goes with the size.

    Args:
        plan: The sweep.
        num_sizes: 2 for the smallest size and a middle one, 1 for the middle one alone.
    """
    shortest: dict[int, Experiment] = {}
    for e in sorted(plan.experiments, key=lambda e: (-e.num_tokens, -e.seed)):
        shortest[e.size_param_value] = e
    by_size = sorted(shortest.values(), key=lambda e: e.num_params)
    middle_N = math.sqrt(by_size[0].num_params * by_size[-1].num_params)
    middle = min(by_size[1:] or by_size, key=lambda e: abs(math.log(e.num_params / middle_N)))
    chosen = [middle] if num_sizes == 1 or middle is by_size[0] else [by_size[0], middle]
    flops = _SHARE * math.fsum(e.flops for e in plan.experiments) / NUM_RATES
    affordable = int(flops / sum(e.flops_per_token * _per_step(e) for e in chosen))
    steps = min([max(_LEAST_STEPS, affordable), *(e.steps or 1 for e in chosen)])
    return [dataclasses.replace(e, steps=steps, num_tokens=steps * _per_step(e)) for e in chosen]


def _per_step(experiment: Experiment) -> int:
    """Tokens in a step."""
    assert experiment.steps is not None
    return experiment.num_tokens // experiment.steps


def probe_runs(cell: Experiment, rates: Sequence[float], name: str, tag: str) -> list[Experiment]:
    """The runs of one size.

    Args:
        cell: What ``probe_cells`` has chosen.
        rates: Peak learning rates.
        name: Of the size.
        tag: Hash of what decides their results; part of their names, as the other two are.
    """
    return [
        dataclasses.replace(
            cell,
            experiment_id=f"lr{lr:.4g}_{name}_{cell.steps}steps_s{cell.seed}_{tag}",
            compute_budget=cell.flops,
            lr=lr,
        )
        for lr in rates
    ]
