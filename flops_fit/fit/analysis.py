"""A runs table in, a ScalingAnalysis out: every method that the runs can carry, and what to believe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.candidates import Form, OptimaForm, SurfaceForm
from flops_fit.fit.prediction import SCHEMA_VERSION, Prediction, Warning_
from flops_fit.fit.rows import Excluded, Rows, select_rows
from flops_fit.laws import ComputeRule, FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit.fit.isoflop import IsoflopFit
    from flops_fit.fit.parametric import ParametricFit


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """Which method answers.

    Attributes:
        method: Name of a candidate.
        why: One sentence.
    """

    method: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ScalingAnalysis:
    """What the runs say about compute-optimal training.

    Attributes:
        rows: The runs that were fitted.
        excluded: The others, each with its reason.
        rule: What training costs.
        parametric: The fitted surface, or None.
        isoflop: The parabolas and their power laws, or None.
        frontier: L_opt(C) = l_inf + k C**-gamma through the budgets' optima, or None.
        envelope: Lower envelope of training curves, or None where there are none.
        holdout: How well the largest budgets are predicted by the rest, or None.
        headline: Which method answers, and why.
        forms: Every candidate.
        ci: 95 % intervals of the surface's parameters and exponents, by name.
        missing: Why a method that is None is None, by method.
        warnings: What the reader must know.
        n_convention: The column that counts parameters.
        unit: What num_tokens counts.
        seed: Of the draws.
    """

    rows: Rows
    excluded: tuple[Excluded, ...]
    rule: ComputeRule
    parametric: ParametricFit | None
    isoflop: IsoflopFit | None
    frontier: Any
    envelope: Any
    holdout: Any
    headline: Headline
    forms: Mapping[str, Form]
    ci: Mapping[str, tuple[float, float]]
    missing: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Warning_, ...] = ()
    n_convention: str = "num_params"
    unit: str = "tokens"
    seed: int = 0

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that were fitted, one row each."""
        import pandas as pd

        r = self.rows
        columns = {"num_params": r.N, "num_tokens": r.D, "flops": r.C, "loss": r.L}
        return pd.DataFrame({"run_id": r.run_id, "compute_budget": r.budget} | columns)

    @property
    def n_runs(self) -> int:
        """How many runs were fitted."""
        return len(self.rows)

    @property
    def largest_budget(self) -> float:
        """Compute of the largest budget, or run, that was trained [FLOPs]."""
        budgets = self.rows.budget[np.isfinite(self.rows.budget)]
        return float(budgets.max() if budgets.size else self.rows.C.max())

    def predict(self, compute_budget: float, *, level: float = 0.95) -> Prediction:
        """The best model for a budget, and the loss it will reach.

        Args:
            compute_budget: Training compute [FLOPs].
            level: Coverage of the intervals.
        """
        C = float(compute_budget)
        if not (np.isfinite(C) and C > 0):
            raise FitError(f"compute_budget={compute_budget!r} must be a positive finite number of FLOPs")
        log_N, log_L = self.forms[self.headline.method].log_optimum(C, self.rule)
        log_D = np.log(C / self.rule.k) - self.rule.q * log_N
        answers = {"num_params": log_N, "num_tokens": log_D, "tokens_per_param": log_D - log_N}
        if log_L is not None:
            answers["loss"] = log_L
        ci = {name: interval(values[1:], level) for name, values in answers.items() if len(values) > 1}
        return Prediction(
            compute_budget=C,
            num_params=float(np.exp(log_N[0])),
            num_tokens=float(np.exp(log_D[0])),
            loss=None if log_L is None else float(np.exp(log_L[0])),
            ci=ci,
            level=level,
            extrapolation=C / self.largest_budget,
            methods=dict.fromkeys(("num_params", "num_tokens", "loss"), self.headline.method),
            warnings=self.warnings,
            unit=self.unit,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``analyze --json`` prints them."""
        return {
            "schema_version": SCHEMA_VERSION,
            "n_runs": self.n_runs,
            "excluded": [{"run": e.run_id, "reason": e.reason} for e in self.excluded],
            "parametric": self._parametric_dict(),
            "headline": {"method": self.headline.method, "why": self.headline.why},
            "n_convention": self.n_convention,
            "warnings": [w.to_dict() for w in self.warnings],
        }

    def _parametric_dict(self) -> dict[str, Any] | None:
        if self.parametric is None:
            return None
        law = self.parametric.law
        a, b = law.exponents(self.rule)
        return {
            "E": law.E,
            "A": law.A,
            "B": law.B,
            "alpha": law.alpha,
            "beta": law.beta,
            "a": a,
            "b": b,
            "objective": self.parametric.objective,
            "huber_delta": self.parametric.huber_delta,
            "status": str(self.parametric.status),
            "ci": {name: list(values) for name, values in self.ci.items()},
        }


def interval(log_draws: FloatArray, level: float) -> tuple[float, float]:
    """Central interval of draws given as logs."""
    tail = 50 * (1 - level)
    low, high = np.exp(np.nanpercentile(log_draws, [tail, 100 - tail]))
    return float(low), float(high)


def analyze_runs(
    runs: pd.DataFrame,
    *,
    seed: int = 0,
    n_bootstrap: int = 1000,
    huber_delta: float | None = None,
    n_convention: str = "num_params",
    unit: str = "tokens",
) -> ScalingAnalysis:
    """Fit every law that the runs can carry.

    Args:
        runs: One row per run: num_params, num_tokens, loss; optional run_id, compute_budget, flops, seed, state.
        seed: Of the resampling; the same seed gives the same draws.
        n_bootstrap: Resamples of whole runs; 0 gives no intervals.
        huber_delta: Of the surface; None takes it from the residuals, 1e-3 is the papers'.
        n_convention: The column that counts parameters.
        unit: What num_tokens counts, for the reader.

    Raises:
        DataError: A column is missing or not numeric.
        FitError: No method can answer from these runs.
    """
    from flops_fit.fit.bootstrap import bootstrap_weights, refit_weighted
    from flops_fit.fit.budgets import fit_compute_rule, group_budgets
    from flops_fit.fit.isoflop import bootstrap_isoflop, fit_isoflop
    from flops_fit.fit.parametric import fit_parametric

    rows, excluded = select_rows(runs, n_convention=n_convention)
    if not np.isfinite(rows.budget).any():
        rows = replace(rows, budget=group_budgets(rows.C))
    N, D, L = rows.N, rows.D, rows.L
    rule = fit_compute_rule(N, D, rows.C)
    W = bootstrap_weights(len(rows), n_bootstrap, np.random.default_rng(seed))
    missing: dict[str, str] = {}
    forms: dict[str, Form] = {}
    ci: dict[str, tuple[float, float]] = {}

    parametric = None
    try:
        parametric = fit_parametric(N, D, L, huber_delta=huber_delta)
    except FitError as error:
        missing["parametric"] = str(error)
    else:
        draws = refit_weighted(N, D, L, W, start=parametric.theta, huber_delta=parametric.huber_delta)
        theta = np.vstack([parametric.theta, draws])
        forms["surface"] = SurfaceForm(name="surface", theta=np.column_stack([theta, np.zeros(len(theta))]))
        if n_bootstrap:
            ci = _parameter_intervals(draws, rule)

    isoflop = fit_isoflop(N, D, L, rows.budget)
    if isoflop.N_opt is None:
        missing["isoflop"] = "fewer than two budgets have a minimum inside their sizes"
    else:
        drawn = bootstrap_isoflop(N, D, L, rows.budget, W)
        law = isoflop.N_opt.law
        size = np.vstack([[np.log(law.k), law.exponent], np.column_stack([drawn["N_log_k"], drawn["N_exponent"]])])
        forms["parabola"] = OptimaForm(name="parabola", size=size[np.isfinite(size).all(1)])
    if not forms:
        raise FitError(
            f"{len(rows)} runs cannot carry any scaling law: " + "; ".join(f"{k}: {v}" for k, v in missing.items()),
            hint="train at least 7 runs with 3 sizes and 3 token counts, or 2 budgets of 3 sizes",
        )
    method = next(iter(forms))
    return ScalingAnalysis(
        rows=rows,
        excluded=tuple(excluded),
        rule=rule,
        parametric=parametric,
        isoflop=isoflop if isoflop.budgets else None,
        frontier=None,
        envelope=None,
        holdout=None,
        headline=Headline(method=method, why="the surface uses every run" if method == "surface" else "no surface"),
        forms=forms,
        ci=ci,
        missing=missing,
        n_convention=n_convention,
        unit=unit,
        seed=seed,
    )


def _parameter_intervals(theta: FloatArray, rule: ComputeRule) -> dict[str, tuple[float, float]]:
    from flops_fit.laws import ParametricLaw

    laws = ParametricLaw.from_logs(theta)
    a, b = laws.exponents(rule)
    values = {"E": laws.E, "A": laws.A, "B": laws.B, "alpha": laws.alpha, "beta": laws.beta, "a": a, "b": b}
    return {name: (float(low), float(high)) for name, (low, high) in _percentiles(values, 0.95).items()}


def _percentiles(values: dict[str, FloatArray], level: float) -> dict[str, FloatArray]:
    tail = 50 * (1 - level)
    return {name: np.percentile(v, [tail, 100 - tail]) for name, v in values.items()}
