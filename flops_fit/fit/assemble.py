"""A runs table in, a ScalingAnalysis out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.analysis import Headline, ScalingAnalysis
from flops_fit.fit.prediction import Warning_
from flops_fit.fit.rows import Excluded, Rows, select_rows
from flops_fit.laws import ComputeRule, FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit.fit.candidates import Answer, Form
    from flops_fit.fit.combine import Combination
    from flops_fit.fit.holdout import HoldOutPoint
    from flops_fit.fit.isoflop import IsoflopFit
    from flops_fit.fit.misfit import Misfit
    from flops_fit.fit.outliers import OutlierRule
    from flops_fit.fit.parametric import ParametricFit

# Leaving out one of fewer budgets says more about the design than about the budgets.
_FEWEST_BUDGETS_TO_LEAVE_OUT: Final = 4

# Runs that see their data up to four times do nearly as well as on fresh data (Muennighoff et al. 2023,
# arXiv:2305.16264); more than that and the surface must not take the tokens at face value.
_MOST_EPOCHS: Final = 4.0

# Labels farther than this from the recorded compute are not what the laws are written in.
_LABEL_SLACK: Final = 0.1


def analyze_runs(
    runs: pd.DataFrame,
    *,
    seed: int = 0,
    n_bootstrap: int = 1000,
    outliers: OutlierRule = "surface",
    huber_delta: float | None = None,
    n_convention: str = "num_params",
    unit: str = "tokens",
    priors: bool = True,
    curves: pd.DataFrame | None = None,
    curves_final: bool = False,
) -> ScalingAnalysis:
    """Fit every law that the runs can carry, and judge which to believe.

    Args:
        runs: One row per run: num_params, num_tokens, loss; optional run_id, compute_budget, flops, seed, state,
            unique_tokens.
        seed: Of the resampling; the same seed gives the same draws.
        n_bootstrap: Resamples of whole runs; 0 takes the intervals from the sandwich covariance instead.
        outliers: Runs left out before fitting: by the residuals of the "surface", by the "iqr" rule, or "none".
        huber_delta: Of the surface; None takes it from the residuals, 1e-3 is the papers'.
        n_convention: The column that counts parameters.
        unit: What num_tokens counts, for the reader.
        priors: Whether laws with weak priors from published exponents are among the candidates.
        curves: Training curves for the envelope: run_id, num_params, num_tokens, flops, loss.
        curves_final: Whether losses along the curves are those of runs that ended there (constant rate and cooldown).

    Raises:
        DataError: A column is missing or not numeric.
        FitError: No method can answer from these runs.
    """
    from flops_fit.fit.budgets import fit_compute_rule, group_budgets
    from flops_fit.fit.diagnostics import find_warnings
    from flops_fit.fit.intervals import law_intervals
    from flops_fit.fit.local import named_priors

    rows, excluded = select_rows(runs, n_convention=n_convention)
    notes: list[Warning_] = []
    labelled = bool(np.isfinite(rows.budget).any())
    rows = _relabelled(rows, notes) if labelled else replace(rows, budget=group_budgets(rows.C))
    rows, repeated = _fresh(rows)
    rows, outlying, left_out = _without_outliers(rows, outliers)
    excluded = [*excluded, *repeated, *left_out]
    rule = fit_compute_rule(rows.N, rows.D, rows.C)

    fitted = _fit(rows, outlying, rule, huber_delta, priors, n_bootstrap, seed)
    if not fitted.forms:
        said = "; ".join(f"{method}: {reason}" for method, reason in fitted.missing.items())
        raise FitError(
            f"{len(rows)} runs cannot carry any scaling law: {said}",
            hint="train at least 7 runs with 3 sizes and 3 token counts, or 2 budgets of 3 sizes",
        )
    holdout = _headline_hold_out(rows, outlying, rule, huber_delta, priors, seed, fitted)
    frontier, reason = _frontier(fitted.isoflop)
    missing = fitted.missing | ({} if reason is None else {"frontier": reason})
    envelope = None
    if curves is not None:
        from flops_fit.fit.envelope import fit_envelope

        envelope = fit_envelope(curves, final=curves_final)
    analysis = ScalingAnalysis(
        rows=rows,
        excluded=tuple(excluded),
        rule=rule,
        parametric=fitted.parametric,
        isoflop=fitted.isoflop if fitted.isoflop.budgets else None,
        frontier=frontier,
        envelope=envelope,
        misfit=fitted.misfit,
        holdout=holdout,
        headline=_headline(fitted.misfit),
        combination=fitted.combination,
        ci={},
        missing=missing,
        n_convention=n_convention,
        unit=unit,
        priors=named_priors() if "local_law" in fitted.forms else {},
    )
    analysis = replace(analysis, ci=law_intervals(analysis))
    return replace(analysis, warnings=(*notes, *find_warnings(analysis)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """All methods fitted to some rows."""

    parametric: ParametricFit | None
    isoflop: IsoflopFit
    misfit: Misfit | None
    forms: Mapping[str, Form]
    points: tuple[HoldOutPoint, ...]
    combination: Combination
    missing: dict[str, str]


def _fit(
    rows: Rows,
    outlying: Rows,
    rule: ComputeRule,
    huber_delta: float | None,
    priors: bool,
    n_draws: int,
    seed: int,
) -> _Fitted:
    from flops_fit.fit.candidates import ANSWERS, fit_candidates
    from flops_fit.fit.combine import Combination
    from flops_fit.fit.holdout import groups_of, roll, score
    from flops_fit.fit.misfit import find_misfit
    from flops_fit.fit.uncertainty import draw_theta, jackknife_groups, normal_draws, sandwich_covariance

    rng = np.random.default_rng(seed)
    missing: dict[str, str] = {}
    parametric, draws, misfit, without_budget = _surface(rows, huber_delta, missing), None, None, None
    if parametric is not None:
        N, D, L = rows.N, rows.D, rows.L
        if n_draws:
            draws = draw_theta(parametric, N, D, L, n_draws=n_draws, rng=rng)
        else:
            draws = normal_draws(parametric.theta, sandwich_covariance(parametric, N, D, L), 1000, rng)
        misfit = find_misfit(parametric, rows.with_others(outlying))
        in_budget = np.isfinite(rows.budget)
        if np.unique(rows.budget[in_budget]).size >= _FEWEST_BUDGETS_TO_LEAVE_OUT:
            # Runs beside the budgets stay in every fit.
            groups = np.where(in_budget, rows.budget, -1.0)
            left_out = jackknife_groups(N, D, L, groups, parametric)
            without_budget = left_out[np.unique(groups) > 0]
    isoflop, _ = _parabolas(rows, parametric, rule)
    if isoflop.N_opt is None:
        missing["isoflop"] = f"{len(isoflop.optima)} budgets have an optimum inside their sizes; 2 are needed"

    def candidates(some: Rows, surface: ParametricFit | None, theta: FloatArray | None, n: int) -> dict[str, Form]:
        parabolas, on_budget = _parabolas(some, surface, rule)
        return fit_candidates(
            some,
            parametric=surface,
            parametric_draws=theta,
            isoflop=parabolas,
            on_budget=on_budget,
            rule=rule,
            priors=priors,
            n_draws=n,
            rng=rng,
        )

    forms = candidates(rows, parametric, draws, n_draws or 1000)
    points = roll(
        rows, groups_of(rows), isoflop, rule, lambda some: candidates(some, _surface(some, huber_delta), None, 0)
    )
    budgets = rows.budget[np.isfinite(rows.budget)]
    combination = Combination(
        forms=forms,
        scores={answer: {name: score(points, name, answer) for name in forms} for answer in ANSWERS},
        doubt=1.0 if misfit is None else misfit.doubt,
        without_budget=without_budget,
        rule=rule,
        largest_budget=float(budgets.max() if budgets.size else rows.C.max()),
        seed=seed,
    )
    return _Fitted(
        parametric=parametric,
        isoflop=isoflop,
        misfit=misfit,
        forms=forms,
        points=tuple(points),
        combination=combination,
        missing=missing,
    )


def _surface(rows: Rows, huber_delta: float | None, missing: dict[str, str] | None = None) -> ParametricFit | None:
    from flops_fit.fit.parametric import fit_parametric

    try:
        return fit_parametric(rows.N, rows.D, rows.L, huber_delta=huber_delta)
    except FitError as error:
        if missing is not None:
            missing["parametric"] = error.problem
        return None


def _parabolas(rows: Rows, surface: ParametricFit | None, rule: ComputeRule) -> tuple[IsoflopFit, Rows]:
    """Parabolas of the runs moved to exactly their budgets, and those runs."""
    from flops_fit.fit.isoflop import fit_isoflop

    if surface is not None:
        rows = rows.on_budget(surface.law, rule)
    return fit_isoflop(rows.N, rows.D, rows.L, rows.budget), rows


def _headline_hold_out(
    rows: Rows,
    outlying: Rows,
    rule: ComputeRule,
    huber_delta: float | None,
    priors: bool,
    seed: int,
    fitted: _Fitted,
) -> Any:
    """Hide the largest budget from the whole analysis, its choice of method included."""
    from flops_fit.fit.holdout import HoldOut, groups_of

    if not fitted.points:
        return None
    holdout = HoldOut(points=fitted.points, headline={})
    largest = holdout.largest
    groups = groups_of(rows)
    seen = (groups <= largest.visible) | (np.isnan(groups) & (rows.C <= 1.05 * largest.visible))
    small = outlying.take(outlying.C <= 1.05 * largest.visible)
    part = _fit(rows.take(seen), small, rule, huber_delta, priors, 200, seed)
    errors: dict[Answer, float] = {}
    if part.forms and "surface" in largest.errors:
        for answer in largest.errors["surface"]:
            told = part.combination.forecast(answer, largest.hidden, (0.5,))
            direct = part.forms["surface"].log_answer(answer, largest.hidden, rule) if "surface" in part.forms else None
            if told is not None and direct is not None:
                # The truth is the same for all, so an error is the surface's plus the difference of the forecasts.
                errors[answer] = largest.errors["surface"][answer] + told.point - float(direct[0])
    return replace(holdout, headline=errors)


def _frontier(isoflop: IsoflopFit) -> Any:
    from flops_fit.fit.frontier import fit_frontier

    good = isoflop.optima
    try:
        return fit_frontier([b.compute_budget for b in good], [b.loss or np.nan for b in good]), None
    except FitError as error:
        return None, error.problem


def _headline(misfit: Misfit | None) -> Headline:
    if misfit is None:
        return Headline(method="combination", why="there are too few runs for the surface")
    found = f"smooth misfit of the surface: statistic {misfit.statistic:.1f}, above 2.5 in 5 % of sweeps that have none"
    if misfit.doubt < 0.5:
        return Headline(method="surface", why=f"the residuals show no misfit of its form ({found})")
    return Headline(method="combination", why=f"the surface's form does not fit ({found})")


def _relabelled(rows: Rows, notes: list[Warning_]) -> Rows:
    """Budget labels that are not the compute of their runs are replaced by it."""
    labels = rows.budget.copy()
    for label in np.unique(labels[np.isfinite(labels)]):
        members = rows.budget == label
        actual = float(np.median(rows.C[members]))
        if abs(np.log(actual / label)) > _LABEL_SLACK:
            labels[members] = actual
            if not notes:
                said = (
                    f"the budget labelled {label:.3g} holds runs of {actual:.3g} FLOPs, {actual / label:.3g} times that"
                )
                notes.append(Warning_("budget_label", f"{said}; such budgets go by the compute of their runs"))
    return replace(rows, budget=labels)


def _fresh(rows: Rows) -> tuple[Rows, list[Excluded]]:
    """Leave out runs that repeat their data many times, where enough others remain."""
    with np.errstate(invalid="ignore"):
        epochs = rows.D / rows.unique
        many = epochs > _MOST_EPOCHS
    if not many.any() or (~many).sum() < 7:
        return rows, []
    reasons = [f"repeats its data {e:.3g} times; fresh tokens are what the laws are about" for e in epochs[many]]
    return rows.take(~many), [Excluded(str(r), why) for r, why in zip(rows.run_id[many], reasons, strict=True)]


def _without_outliers(rows: Rows, rule: OutlierRule) -> tuple[Rows, Rows, list[Excluded]]:
    """The rows that belong, those that do not, and why."""
    from flops_fit.fit.outliers import find_outliers

    try:
        found = find_outliers(rows.N, rows.D, rows.L, rule=rule)
    except FitError:
        # Too few runs for a surface are too few to say which of them is wrong.
        found = []
    keep = np.ones(len(rows), bool)
    keep[[i for i, _ in found]] = False
    excluded = [Excluded(str(rows.run_id[i]), f"outlier: {why}") for i, why in found]
    return rows.take(keep), rows.take(~keep), excluded
