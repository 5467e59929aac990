"""A plan tried without training: its runs drawn from a known law, and analysed as if they had been trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from flops_fit.api import analyze_table
from flops_fit.errors import FitError, PlanError
from flops_fit.experiment import SweepPlan
from flops_fit.fit.budgets import fit_compute_rule
from flops_fit.laws import ComputeRule, ParametricLaw
from flops_fit.plan.grid import EXPECTED_TOKENS_PER_PARAM
from flops_fit.runs.foreign import read_table

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis
    from flops_fit.result import Result

# Hoffmann et al. 2022 (arXiv:2203.15556), section 3.3.
_CHINCHILLA: Final = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
# Where the reducible loss of the default law is taken from: the middle of their own sweep [FLOPs].
_MIDDLE: Final = 3e19

# Between seeds, small runs scatter by about this much [log loss].
NOISE: Final = 0.005
DRAWS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What simulated runs are drawn from.

    Attributes:
        law: Loss by size and data.
        rule: What training costs.
        noise: Standard deviation of the log loss between runs.
    """

    law: ParametricLaw
    rule: ComputeRule
    noise: float = NOISE

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1:
            raise PlanError(f"noise={self.noise} must lie between 0 and 1: it is the scatter of the log loss")

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"law": asdict(self.law), "rule": asdict(self.rule), "noise": self.noise}

    def __str__(self) -> str:
        law = self.law
        return (
            f"L = {law.E:.4g} + {law.A:.4g}/N^{law.alpha:.4g} + {law.B:.4g}/D^{law.beta:.4g},"
            f" noise {100 * self.noise:.3g} %"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far an analysis is from the truth; None for what it withholds.

    Attributes:
        exponent: Of N_opt over the sweep's budgets, fitted less true.
        num_params: Log of N_opt at the target, fitted over true.
        loss: Log of the loss at the target, fitted over true.
    """

    exponent: float | None
    num_params: float | None
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Root mean square errors over several draws; what no draw gave is None.

    Attributes:
        errors: Of the draws that gave an answer.
        draws: How many were drawn.
        answered: How many of them gave N_opt at the target.
        compute_budget: The target [FLOPs].
    """

    errors: Errors
    draws: int
    answered: int
    compute_budget: float


def truth_for(plan: SweepPlan, law: ParametricLaw | None = None, noise: float = NOISE) -> Truth:
    """The truth to draw a plan's runs from.

    Without a law it is Chinchilla's exponents, irreducible and reducible loss, scaled so that the optimum of the
    plan's middle budget lies where the plan expects it.
    """
    N, D, C = _cells(plan)
    rule = fit_compute_rule(N, D, C)
    if law is not None:
        return Truth(law=law, rule=rule, noise=noise)
    alpha, beta = _CHINCHILLA.alpha, _CHINCHILLA.beta
    middle = math.exp(float(np.mean(np.log(plan.compute_budgets))))
    best_N = (middle / (rule.k * EXPECTED_TOKENS_PER_PARAM)) ** (1 / (1 + rule.q))
    best_D = rule.tokens(middle, best_N)
    # At the optimum the two terms are to each other as q beta to alpha.
    reducible = _CHINCHILLA.optimal_loss(_MIDDLE) - _CHINCHILLA.E
    size = reducible * rule.q * beta / (alpha + rule.q * beta)
    scaled = ParametricLaw(
        E=_CHINCHILLA.E,
        A=size * best_N**alpha,
        B=(reducible - size) * best_D**beta,
        alpha=alpha,
        beta=beta,
    )
    return Truth(law=scaled, rule=rule, noise=noise)


def drawn_runs(plan: SweepPlan, truth: Truth, seed: int = 0) -> pd.DataFrame:
    """The plan's runs as a table, with losses drawn from the truth; ``state`` says that they are simulated."""
    N, D, C = _cells(plan)
    scatter = np.random.default_rng(seed).normal(0, truth.noise, len(N)) if truth.noise else 0.0
    return pd.DataFrame(
        {
            "run_id": [e.experiment_id for e in plan.experiments],
            "compute_budget": [e.compute_budget for e in plan.experiments],
            "size": [e.size_param_value for e in plan.experiments],
            "num_params": N.astype(int),
            "num_tokens": D.astype(int),
            "flops": C,
            "loss": truth.law.loss(N, D) * np.exp(scatter),
            "loss_unit": f"nats/{plan.unit.removesuffix('s')}",
            "seed": [e.seed for e in plan.experiments],
            "state": "simulated",
        }
    )


def analyzed(runs: pd.DataFrame, plan: SweepPlan, **options: Any) -> Result:
    """What ``flops-fit analyze`` makes of drawn runs.

    Raises:
        DataError: There are too few.
        FitError: They cannot determine any law.
    """
    return analyze_table(read_table(runs), unit=plan.unit, **options)


def target_of(plan: SweepPlan, compute_budget: float | None = None) -> float:
    """Where errors are judged: ten times beyond the largest budget, if nothing else is asked for [FLOPs]."""
    if compute_budget is None:
        return 10 * max(plan.compute_budgets)
    if not 0 < compute_budget < math.inf:
        raise PlanError(f"compute={compute_budget} must be a positive number of FLOPs")
    return compute_budget


def errors_of(analysis: ScalingAnalysis, truth: Truth, plan: SweepPlan, compute_budget: float) -> Errors:
    """Compare an analysis with the truth its runs were drawn from."""
    told = analysis.predict(compute_budget)
    best_N, _ = truth.law.optimum(compute_budget, truth.rule)
    ends = [min(plan.compute_budgets), max(plan.compute_budgets)]
    sizes = [analysis.predict(C).num_params for C in ends]
    exponent = None
    if ends[0] < ends[1] and sizes[0] and sizes[1]:
        exponent = math.log(sizes[1] / sizes[0]) / math.log(ends[1] / ends[0]) - truth.law.exponents(truth.rule)[0]
    loss = truth.law.optimal_loss(compute_budget, truth.rule)
    return Errors(
        exponent=exponent,
        num_params=None if told.num_params is None else math.log(told.num_params / best_N),
        loss=None if told.loss is None else math.log(told.loss / loss),
    )


def expected_errors(
    plan: SweepPlan, truth: Truth, *, compute_budget: float, seed: int = 0, draws: int = DRAWS
) -> Expected:
    """The errors that a plan would give, over several draws of all its runs.

    Raises:
        FitError: No draw could be analysed.
    """
    found: list[Errors] = []
    problem: FitError | None = None
    for i in range(draws):
        try:
            analysis = analyzed(drawn_runs(plan, truth, seed + i), plan, n_bootstrap=0).analysis
            found.append(errors_of(analysis, truth, plan, compute_budget))
        except FitError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    sizes = [e.num_params for e in found]
    errors = Errors(
        exponent=_rms([e.exponent for e in found]), num_params=_rms(sizes), loss=_rms([e.loss for e in found])
    )
    answered = sum(size is not None for size in sizes)
    return Expected(errors=errors, draws=draws, answered=answered, compute_budget=compute_budget)


def _rms(errors: Sequence[float | None]) -> float | None:
    known = [e for e in errors if e is not None]
    return math.sqrt(math.fsum(e * e for e in known) / len(known)) if known else None


def _cells(plan: SweepPlan) -> tuple[Any, Any, Any]:
    columns = [(e.num_params, e.num_tokens, e.flops) for e in plan.experiments]
    N, D, C = np.array(columns, float).T
    return N, D, C
