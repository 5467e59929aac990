"""Fits every form of scaling law that a sweep can carry (``forms``).

No form is right for both answers on real sweeps, so all are fitted, and how well each foretold the budgets that were
hidden from it (``holdout``) says how much it is believed.
"""

from __future__ import annotations

import contextlib
from typing import Final

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.forms import SURFACE, Form, LocalForm, ParabolaForm, SurfaceForm
from flops_fit.fit.frontier import fit_frontier, fit_frontier_draws
from flops_fit.fit.generalised import fit_generalised
from flops_fit.fit.isoflop import IsoflopFit
from flops_fit.fit.local import fit_local_loss, fit_local_size
from flops_fit.fit.optima import Optima
from flops_fit.fit.parametric import ParametricFit, fit_parametric
from flops_fit.fit.powerlaw import fit_power_law, log_log_line
from flops_fit.fit.rows import Rows
from flops_fit.fit.uncertainty import normal_draws, sandwich_covariance
from flops_fit.laws import ComputeRule, FloatArray

# The generalised mean has six parameters.
_FEWEST_GENERALISED: Final = 20

# Runs count by how near they are to their budget's optimum, with this standard deviation in log N; so many must then be
# left, by their effective number, for the four parameters of tied exponents.
_NEAR: Final = 0.7
_FEWEST_NEAR: Final = 12

# Three parameters through fewer optima leave nothing to judge them by.
_FEWEST_FOR_FRONTIER: Final = 4


def fit_candidates(
    rows: Rows,
    *,
    parametric: ParametricFit | None,
    parametric_draws: FloatArray | None,
    isoflop: IsoflopFit,
    rule: ComputeRule,
    priors: bool,
    n_draws: int,
    rng: np.random.Generator,
) -> dict[str, Form]:
    """Every form that the rows can carry, by name.

    Args:
        rows: The runs.
        parametric: Their surface, or None.
        parametric_draws: Its draws of theta, shape (draws, 5), or None for the fit alone.
        isoflop: Their parabolas.
        rule: What training costs.
        priors: Whether laws with priors are among the candidates.
        n_draws: Draws of each form; 0 for the fits alone.
        rng: Source of the draws.
    """
    N, D, L = rows.N, rows.D, rows.L
    forms: dict[str, Form] = {}
    if parametric is not None:
        drawn = np.empty((0, 5)) if parametric_draws is None else parametric_draws
        forms[SURFACE] = _additive(np.vstack([parametric.theta, drawn]))
    with contextlib.suppress(FitError):
        forms["tied"] = _tied(rows, None, n_draws, rng)
    if parametric is not None and len(rows) >= _FEWEST_GENERALISED:
        mean = fit_generalised(N, D, L, parametric)
        forms["generalised_mean"] = SurfaceForm(theta=np.vstack([mean.theta, mean.draws(n_draws, rng)]), linear=True)
    if parametric is not None:
        # A surface fitted to nonsense may put the optimum beyond all numbers.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            away = (np.log(N) - np.log(parametric.law.optimum(rows.C, rule)[0])) / _NEAR
            near = np.nan_to_num(np.exp(-0.5 * away**2))
        if near.sum() ** 2 > _FEWEST_NEAR * (near @ near):
            forms["near_optimum"] = _tied(rows, near, n_draws, rng)
    best = Optima.of(isoflop)
    parabola = _parabola(best, n_draws, rng)
    if parabola is not None:
        forms["parabola"] = parabola
    if priors and len(best.C) >= 2:
        # Without draws the median still needs some.
        many = n_draws or 400
        size = fit_local_size(np.log(best.C), best.log_size, best.log_size_se, many, rng)
        loss = fit_local_loss(np.log(best.C), best.loss, best.loss_se, many, rng)
        forms["local_law"] = LocalForm(size=size, loss=loss)
    return forms


def _tied(rows: Rows, weights: FloatArray | None, n_draws: int, rng: np.random.Generator) -> SurfaceForm:
    fit = fit_parametric(rows.N, rows.D, rows.L, tied=True, weights=weights)
    covariance = sandwich_covariance(fit, rows.N, rows.D, rows.L, rows.cells)
    drawn = normal_draws(fit.theta, covariance, n_draws, rng)
    return _additive(np.vstack([fit.theta, drawn]), linear=True)


def _additive(theta: FloatArray, *, linear: bool = False) -> SurfaceForm:
    return SurfaceForm(theta=np.column_stack([theta, np.zeros(len(theta))]), linear=linear)


def _parabola(best: Optima, n_draws: int, rng: np.random.Generator) -> ParabolaForm | None:
    """Power laws through the optima; draws refit them to optima that scatter as these do.

    Resampling runs would leave many budgets with the three sizes that a parabola meets exactly, and draws far wilder
    than the optima; their standard errors, and what they scatter beyond those, are better behaved.
    """
    if len(best.C) < 2:
        return None
    x, loss_law = np.log(best.C), None
    law = fit_power_law(best.C, np.exp(best.log_size)).law
    size = np.array([[np.log(law.k), law.exponent]])
    if len(best.C) >= _FEWEST_FOR_FRONTIER:
        with contextlib.suppress(FitError):
            loss_law = fit_frontier(best.C, best.loss).law
    frontier = None if loss_law is None else np.array([[loss_law.offset, np.log(loss_law.k), -loss_law.exponent]])
    if n_draws:
        log_size = _scattered(best.log_size, np.log(law(best.C)), best.log_size_se, 2, n_draws, rng)
        center, level, slope = log_log_line(x, log_size, np.ones_like(log_size))
        size = np.vstack([size, np.column_stack([level - slope * center, slope])])
    if n_draws and loss_law is not None and frontier is not None:
        log_loss = _scattered(np.log(best.loss), np.log(loss_law(best.C)), best.loss_se, 3, n_draws, rng)
        laws = fit_frontier_draws(best.C, np.exp(log_loss))
        fine = np.isfinite(laws.k)
        rest = np.column_stack([laws.offset[fine], np.log(laws.k[fine]), -laws.exponent[fine]])
        frontier = np.vstack([frontier, rest])
    return ParabolaForm(size=size, frontier=frontier)


def _scattered(
    y: FloatArray, fitted: FloatArray, se: FloatArray, n_parameters: int, n_draws: int, rng: np.random.Generator
) -> FloatArray:
    """Values round the fitted ones with the scatter that y has, at least its standard errors; (n_draws, points)."""
    spare = len(y) - n_parameters
    beyond = max(float((y - fitted) @ (y - fitted)) / spare - float(np.mean(se**2)), 0.0) if spare > 0 else 0.0
    return np.asarray(fitted + rng.standard_normal((n_draws, len(y))) * np.sqrt(se**2 + beyond))
