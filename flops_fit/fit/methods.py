"""Every method fitted to the same rows, tried on hidden budgets, and combined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.candidates import fit_candidates
from flops_fit.fit.combine import Combination
from flops_fit.fit.forms import ANSWERS, Answer, Form
from flops_fit.fit.holdout import HoldOut, HoldOutPoint, groups_of, roll, score, visible_runs
from flops_fit.fit.isoflop import IsoflopFit, align_to_budgets, fit_isoflop
from flops_fit.fit.misfit import Misfit, find_misfit
from flops_fit.fit.noise import find_noise
from flops_fit.fit.parametric import ParametricFit, fit_parametric
from flops_fit.fit.rows import Rows
from flops_fit.fit.uncertainty import draw_theta, jackknife_groups, normal_draws, sandwich_covariance
from flops_fit.laws import ComputeRule, FloatArray

# Leaving out one of fewer budgets says more about the design than about the budgets.
_FEWEST_BUDGETS_TO_LEAVE_OUT: Final = 4

_FEWEST_TO_SHOW_MISFIT: Final = 4

# The surface and the parabolas take all runs; the other forms, and all forecasts of hidden budgets, are as sure as they
# need to be with this many.
_MOST_RUNS: Final = 2000

# Draws of each form where the surface is not resampled.
_DRAWS: Final = 1000
_HOLDOUT_DRAWS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all fits of one analysis share.

    Attributes:
        rule: What training costs.
        huber_delta: Of the surface; None for adaptive.
        priors: Whether laws with priors are among the candidates.
        seed: Of all draws.
    """

    rule: ComputeRule
    huber_delta: float | None
    priors: bool
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """All methods fitted to some rows.

    Attributes:
        parametric: The surface, or None.
        isoflop: The parabolas, of the runs moved to exactly their budgets.
        misfit: What the surface leaves unexplained, or None.
        points: Forecasts of hidden budgets.
        combination: The forms, and one answer from them all.
        missing: Why a method is missing, by method.
    """

    parametric: ParametricFit | None
    isoflop: IsoflopFit
    misfit: Misfit | None
    points: tuple[HoldOutPoint, ...]
    combination: Combination
    missing: Mapping[str, str]


def fit_methods(
    rows: Rows,
    outlying: Rows,
    settings: Settings,
    *,
    n_bootstrap: int,
    n_draws: int = _DRAWS,
    points: tuple[HoldOutPoint, ...] | None = None,
) -> Fitted:
    """Fit every method that the rows can carry.

    Args:
        rows: The runs.
        outlying: Runs left out as outliers, which only the misfit test looks at.
        settings: What all fits share.
        n_bootstrap: Resamples of the surface; 0 takes its draws from the sandwich covariance.
        n_draws: Draws of each form where it is not resampled.
        points: Forecasts of hidden budgets, where they are known already.
    """
    rng = np.random.default_rng(settings.seed)
    parametric, reason = _surface(rows, settings)
    missing = {} if reason is None else {"parametric": reason}
    draws, misfit = None, None
    if parametric is not None:
        if n_bootstrap:
            draws = draw_theta(parametric, rows.N, rows.D, rows.L, n_draws=n_bootstrap, rng=rng, cells=rows.cells)
        else:
            covariance = sandwich_covariance(parametric, rows.N, rows.D, rows.L, rows.cells)
            draws = normal_draws(parametric.theta, covariance, n_draws, rng)
        misfit = find_misfit(parametric, rows.with_others(outlying))
    isoflop = _parabolas(rows, parametric, settings)
    if isoflop.N_opt is None:
        missing["isoflop"] = f"{len(isoflop.optima)} budgets have an optimum inside their sizes; 2 are needed"
    few = rows.thinned(_MOST_RUNS)
    forms = fit_candidates(
        few,
        parametric=parametric,
        parametric_draws=draws,
        isoflop=isoflop,
        rule=settings.rule,
        priors=settings.priors,
        n_draws=n_bootstrap or n_draws,
        rng=rng,
    )
    if points is None:
        points = roll(few, groups_of(few, isoflop), isoflop, settings.rule, lambda some: _points(some, settings, rng))
    budgets = rows.budget[np.isfinite(rows.budget)]
    span = budgets if budgets.size else rows.C
    combination = Combination(
        forms=forms,
        scores={answer: score(points, forms, answer) for answer in ANSWERS},
        misfit_doubt=_doubt(rows, misfit),
        without_budget=None if parametric is None else _without_each_budget(rows, parametric),
        rule=settings.rule,
        smallest_budget=float(span.min()),
        largest_budget=float(span.max()),
        seed=settings.seed,
    )
    return Fitted(
        parametric=parametric,
        isoflop=isoflop,
        misfit=misfit,
        points=points,
        combination=combination,
        missing=missing,
    )


def hold_out_headline(rows: Rows, outlying: Rows, settings: Settings, fitted: Fitted) -> HoldOut | None:
    """Hide the largest budget from the whole analysis, its choice of method included; None with too few budgets."""
    if not fitted.points:
        return None
    holdout = HoldOut(points=fitted.points, headline={})
    largest = holdout.largest
    rows = rows.thinned(_MOST_RUNS)
    groups = groups_of(rows, fitted.isoflop)
    part = fit_methods(
        rows.take(visible_runs(rows, groups, largest.visible)),
        outlying.take(outlying.C <= largest.visible),
        settings,
        n_bootstrap=0,
        n_draws=_HOLDOUT_DRAWS,
        points=tuple(p for p in fitted.points if p.hidden <= largest.visible),
    ).combination
    errors: dict[Answer, float] = {}
    for answer in ANSWERS:
        told = part.forecast(answer, largest.hidden, (0.5,)) if part.forms else None
        for name, form in part.forms.items():
            direct = form.log_answer(answer, largest.hidden, settings.rule)
            if told is not None and direct is not None and answer in largest.errors.get(name, {}):
                # The truth is the same for all, so the headline errs by as much more as it forecasts more.
                errors[answer] = largest.errors[name][answer] + told.point - float(direct[0])
                break
    return replace(holdout, headline=errors)


def _points(rows: Rows, settings: Settings, rng: np.random.Generator) -> dict[str, Form]:
    """The forms' best fits, without draws."""
    parametric, _ = _surface(rows, settings)
    isoflop = _parabolas(rows, parametric, settings)
    return fit_candidates(
        rows,
        parametric=parametric,
        parametric_draws=None,
        isoflop=isoflop,
        rule=settings.rule,
        priors=settings.priors,
        n_draws=0,
        rng=rng,
    )


def _surface(rows: Rows, settings: Settings) -> tuple[ParametricFit | None, str | None]:
    """The surface, or why there is none."""
    few = rows.thinned(_MOST_RUNS)
    try:
        # Many runs are searched by some of them and polished on all.
        start = None if few is rows else fit_parametric(few.N, few.D, few.L).theta
        return fit_parametric(rows.N, rows.D, rows.L, huber_delta=settings.huber_delta, start=start), None
    except FitError as error:
        return None, error.problem


def _parabolas(rows: Rows, surface: ParametricFit | None, settings: Settings) -> IsoflopFit:
    """Parabolas of the runs, moved to exactly their budgets: along the surface, or without one along L_opt(C)."""
    known = find_noise(rows)
    noise = None if known is None else known.sd
    if surface is None:
        moved = align_to_budgets(rows.N, rows.D, rows.L, rows.C, rows.budget)
        return fit_isoflop(*moved, rows.budget, noise=noise)
    rows = rows.on_budget(surface.law, settings.rule)
    return fit_isoflop(rows.N, rows.D, rows.L, rows.budget, noise=noise)


def _doubt(rows: Rows, misfit: Misfit | None) -> float:
    """How far the surface does not answer alone, before hidden budgets are looked at."""
    budgets = np.unique(rows.budget[np.isfinite(rows.budget)]).size
    # Two or three budgets follow any form: that no misfit shows does not say there is none.
    return 1.0 if misfit is None or 2 <= budgets < _FEWEST_TO_SHOW_MISFIT else misfit.doubt


def _without_each_budget(rows: Rows, parametric: ParametricFit) -> FloatArray | None:
    """theta with each budget left out, shape (budgets, 5); runs beside the budgets stay in every fit."""
    inside = np.isfinite(rows.budget)
    if np.unique(rows.budget[inside]).size < _FEWEST_BUDGETS_TO_LEAVE_OUT:
        return None
    groups = np.where(inside, rows.budget, -1.0)
    return jackknife_groups(rows.N, rows.D, rows.L, groups, parametric)[np.unique(groups) > 0]
