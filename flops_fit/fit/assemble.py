"""A runs table in, a ScalingAnalysis out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.analysis import Headline, ScalingAnalysis
from flops_fit.fit.prediction import Warning_
from flops_fit.fit.rows import Excluded, Rows, select_rows
from flops_fit.laws import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit.fit.forms import Answer
    from flops_fit.fit.holdout import HoldOut
    from flops_fit.fit.isoflop import IsoflopFit
    from flops_fit.fit.leave_out import LeftOut
    from flops_fit.fit.methods import Fitted
    from flops_fit.fit.outliers import OutlierRule
    from flops_fit.fit.parametric import ParametricFit
    from flops_fit.fit.repeated import RepetitionFit
    from flops_fit.laws import ComputeRule

# Runs that see their data up to four times do nearly as well as on fresh data (Muennighoff et al. 2023,
# arXiv:2305.16264); more than that and the surface must not take the tokens at face value.
_MOST_EPOCHS: Final = 4.0

# Whole batches run a little over an epoch.
_ROUNDED_EPOCH: Final = 1.01

# Fewer runs than this are a budget only where their compute is the same [log C].
_SURELY_MEANT: Final = 5
_SAME_BUDGET: Final = 0.02

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
            unique_tokens, loss_unit, data_fingerprint.
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
    from flops_fit.fit.budgets import fit_compute_rule
    from flops_fit.fit.diagnostics import find_warnings
    from flops_fit.fit.intervals import law_intervals
    from flops_fit.fit.local import named_priors
    from flops_fit.fit.methods import Settings, fit_methods, hold_out_headline
    from flops_fit.fit.noise import find_noise, lack_of_fit

    rows, excluded = select_rows(runs, n_convention=n_convention)
    notes: list[Warning_] = _simulated(runs)
    labelled = bool(np.isfinite(rows.budget).any())
    rows = _relabelled(rows, notes) if labelled else replace(rows, budget=_found_budgets(rows.C))
    everything = rows
    rows, repeated = _fresh(rows)
    rows, outlying, left_out = _without_outliers(rows, outliers)
    excluded = [*excluded, *repeated, *left_out]
    rule = fit_compute_rule(rows.N, rows.D, rows.C)

    settings = Settings(rule=rule, huber_delta=huber_delta, priors=priors, seed=seed)
    fitted = fit_methods(rows, outlying, settings, n_bootstrap=n_bootstrap)
    if not fitted.combination.forms:
        said = "; ".join(f"{method}: {reason}" for method, reason in fitted.missing.items())
        raise FitError(
            f"{len(rows)} runs cannot carry any scaling law: {said}",
            hint="train at least 7 runs with 3 sizes and 3 token counts, or 2 budgets of 3 sizes",
        )
    holdout = hold_out_headline(rows, outlying, settings, fitted)
    frontier, reason = _frontier(fitted.isoflop)
    missing = dict(fitted.missing) | ({} if reason is None else {"frontier": reason})
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
        headline=_headline(fitted, holdout),
        combination=fitted.combination,
        ci={},
        leave_one_out=_leave_one_out(rows, fitted, rule),
        repetition=_repetition(everything, fitted.parametric),
        noise=find_noise(rows),
        lack_of_fit=None if fitted.parametric is None else lack_of_fit(fitted.parametric, rows),
        missing=missing,
        n_convention=n_convention,
        unit=unit,
        priors=named_priors() if "local_law" in fitted.combination.forms else {},
        loss_unit=(_the_one(runs, "loss_unit") or "").partition("/")[0] or None,
        data_fingerprint=_the_one(runs, "data_fingerprint"),
    )
    analysis = replace(analysis, ci=law_intervals(analysis))
    return replace(analysis, warnings=(*notes, *find_warnings(analysis)))


def _the_one(runs: pd.DataFrame, column: str) -> str | None:
    """The value that a column has in all runs which have any."""
    values = set(runs[column].dropna().astype(str)) if column in runs else set()
    return values.pop() if len(values) == 1 else None


def _simulated(runs: pd.DataFrame) -> list[Warning_]:
    """Say of runs that were drawn from a law, and not trained, that they were; whatever is made of them says so too."""
    if "state" not in runs:
        return []
    drawn = int((runs["state"].astype(str).str.strip().str.lower() == "simulated").sum())
    said = f"{drawn} of {len(runs)} runs are simulated: drawn from a law, not trained"
    return [Warning_("simulated", said)] if drawn else []


def _leave_one_out(rows: Rows, fitted: Fitted, rule: ComputeRule) -> tuple[LeftOut, ...]:
    from flops_fit.fit.diagnostics import COMPARED_AT
    from flops_fit.fit.leave_out import leave_one_out

    if fitted.parametric is None:
        return ()
    combination = fitted.combination
    C = COMPARED_AT * combination.largest_budget
    return leave_one_out(rows, fitted.parametric, combination.without_budget, rule, C)


def _repetition(rows: Rows, surface: ParametricFit | None) -> RepetitionFit | None:
    """What repeated data are worth, on top of the surface of those that are not repeated often."""
    from flops_fit.fit.repeated import fit_repetition

    with np.errstate(invalid="ignore"):
        repeated = rows.D > _ROUNDED_EPOCH * rows.unique
    if surface is None or not repeated.any():
        return None
    known = rows.take(np.isfinite(rows.unique) & (rows.unique > 0))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return fit_repetition(known.N, known.D, known.unique, known.L, surface.law)


def _frontier(isoflop: IsoflopFit) -> Any:
    from flops_fit.fit.frontier import fit_frontier

    good = isoflop.optima
    try:
        # Losses that are all the same have no R^2.
        with np.errstate(divide="ignore", invalid="ignore"):
            return fit_frontier([b.compute_budget for b in good], [b.loss or np.nan for b in good]), None
    except FitError as error:
        return None, error.problem


def _headline(fitted: Fitted, holdout: HoldOut | None) -> Headline:
    from flops_fit.fit.combine import COMBINATION

    misfit, combination = fitted.misfit, fitted.combination
    words: dict[Answer, str] = {"num_params": "N_opt", "loss": "loss"}
    beaten = [word for answer, word in words.items() if combination.method(answer) == COMBINATION]
    method = COMBINATION if beaten else "surface"
    if misfit is None:
        why = "there are too few runs for the surface"
    elif misfit.doubt >= 0.5:
        why = f"the surface's residuals show that its form does not hold (statistic {misfit.statistic:.1f})"
    elif combination.misfit_doubt == 1:
        why = "too few budgets to show whether the surface's form holds"
    elif beaten:
        why = f"other forms foretold hidden budgets better than the surface ({' and '.join(beaten)})"
    else:
        why = f"its residuals show no misfit of its form (statistic {misfit.statistic:.1f})"
    if holdout is None or not holdout.headline:
        return Headline(method=method, why=f"{why}; no budget could be hidden and foretold")
    said = ", ".join(f"{words[answer]} {100 * np.expm1(e):+.2g} %" for answer, e in holdout.headline.items())
    return Headline(method=method, why=f"{why}; the largest budget, hidden, was foretold with errors of {said}")


def _found_budgets(C: FloatArray) -> FloatArray:
    """Budgets by the gaps in C; a few runs near each other by chance, as happens in any scatter, are none."""
    from flops_fit.fit.budgets import group_budgets

    budget = group_budgets(C)
    for label in np.unique(budget[np.isfinite(budget)]):
        members = budget == label
        if members.sum() < _SURELY_MEANT and np.ptp(np.log(C[members])) > _SAME_BUDGET:
            budget[members] = np.nan
    return budget


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
    return rows.take(~many), rows.excluded(many, reasons)


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
    excluded = rows.excluded([i for i, _ in found], [f"outlier: {why}" for _, why in found])
    return rows.take(keep), rows.take(~keep), excluded
