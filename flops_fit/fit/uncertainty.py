"""How sure the surface is: draws of theta, sandwich covariance, leave-one-group-out jackknife, intervals."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flops_fit.fit.bootstrap import bootstrap_weights, refit_weighted
from flops_fit.fit.newton import FREE, LOWER, TIED, UPPER, Runs
from flops_fit.fit.parametric import ParametricFit, robust_scale
from flops_fit.laws import FloatArray

# A replicate costs time in proportion to the runs; that many runs also need fewer of them less.
FULL_BOOTSTRAP_RUNS: Final = 2_000
LARGEST_BOOTSTRAP_RUNS: Final = 20_000
FEWEST_REPLICATES: Final = 200


def n_replicates_for(n_runs: int, asked: int) -> int:
    """How many bootstrap replicates n_runs can afford; 0 means that the sandwich must serve."""
    if n_runs > LARGEST_BOOTSTRAP_RUNS:
        return 0
    if n_runs <= FULL_BOOTSTRAP_RUNS:
        return asked
    return min(asked, max(FEWEST_REPLICATES, asked * FULL_BOOTSTRAP_RUNS // n_runs))


def draw_theta(
    fit: ParametricFit,
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    n_draws: int,
    rng: np.random.Generator,
    cells: NDArray[np.intp] | None = None,
) -> FloatArray:
    """Draws of theta, shape (R, 5): case bootstrap, or the sandwich's normal distribution above 20,000 runs.

    Resampling whole runs was the only bootstrap near its nominal coverage under Gaussian, heavy-tailed and
    heteroscedastic noise alike; stratified, wild and residual bootstraps and the delta method were not. Runs of one
    cell that differ in their seed alone share what the surface misses there, so that cells are drawn as a whole.

    Args:
        fit: To all runs.
        N: Parameters of each run, shape (n,).
        D: Tokens.
        L: Losses [nats/token].
        n_draws: R.
        rng: Source of the draws.
        cells: Which cell each run belongs to, numbered from 0, shape (n,); None where each is its own.
    """
    N, D, L = (np.asarray(v, float) for v in (N, D, L))
    n_replicates = n_replicates_for(N.size, n_draws)
    if n_replicates == 0:
        return normal_draws(fit.theta, sandwich_covariance(fit, N, D, L, cells), n_draws, rng)
    if cells is None:
        cells = np.arange(N.size)
    W = bootstrap_weights(int(cells.max()) + 1, n_replicates, rng)[:, cells]
    if fit.weights is not None:
        W *= fit.weights
    return refit_weighted(
        N, D, L, W, start=fit.theta, huber_delta=fit.huber_delta, loss_kind=fit.loss_kind, tied=fit.tied
    )


def normal_draws(theta: FloatArray, covariance: FloatArray, n_draws: int, rng: np.random.Generator) -> FloatArray:
    """Draws from the normal distribution of an estimate, exponents kept inside the solver's bounds; (n_draws, 5)."""
    values, vectors = np.linalg.eigh(covariance)
    draws = theta + rng.standard_normal((n_draws, theta.size)) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    draws[:, [1, 3]] = np.clip(draws[:, [1, 3]], LOWER[1], UPPER[1])
    return np.asarray(draws)


def sandwich_covariance(
    fit: ParametricFit, N: ArrayLike, D: ArrayLike, L: ArrayLike, cells: NDArray[np.intp] | None = None
) -> FloatArray:
    """Covariance of theta that stays right under unequal scatter (Huber 1967), shape (5, 5).

    bread**-1 meat bread**-1 with bread = J' diag(psi') J and meat = J' diag(psi**2) J, inflated by n / (n - p); of runs
    in one cell (as in ``draw_theta``) the columns of J' psi are added up first. psi' of
    Huber's loss is a step, and with a small delta few residuals fall inside it; it is therefore smoothed by a normal
    kernel. Parameters at a bound count as known.
    """
    N, D, L = (np.asarray(v, float) for v in (N, D, L))
    runs = Runs.of(N, D, L)
    w = np.ones(N.size) if fit.weights is None else fit.weights
    q = runs.coordinates(fit.theta)
    J = np.asarray(fit.law.log_loss_gradient(N, D))
    # Centred, as in the solver: the raw derivatives are nearly collinear.
    J[:, 1] += runs.means[0] * J[:, 0]
    J[:, 3] += runs.means[1] * J[:, 2]
    r = np.asarray(fit.residuals)
    if fit.loss_kind == "linear":
        predicted = L * np.exp(-r)
        J, r = J * predicted[:, None], L - predicted
    if fit.huber_delta is None:
        psi, slope = r, np.ones_like(r)
    else:
        delta = fit.huber_delta
        psi = np.clip(r, -delta, delta)
        width = max(0.9 * robust_scale(r, w, 5) * float(w.sum()) ** -0.2, 1e-12)
        from scipy.special import ndtr

        slope = ndtr((delta - r) / width) - ndtr((-delta - r) / width)
    basis = TIED if fit.tied else FREE
    J = J @ basis.T
    free = ((q > LOWER) & (q < UPPER)) @ basis.T > 0
    J = np.where(free, J, 0.0)
    bread = np.linalg.pinv((J * (w * slope)[:, None]).T @ J, rcond=1e-12, hermitian=True)
    pull, n = J * (w * psi)[:, None], float(w.sum())
    if cells is not None:
        total = np.zeros((int(cells.max()) + 1, J.shape[1]))
        np.add.at(total, cells, pull)
        pull, n = total, n * len(total) / len(J)
    meat = pull.T @ pull
    covariance = basis.T @ (bread @ meat @ bread) @ basis * n / max(n - free.sum(), 1.0)
    shift = np.eye(5)
    shift[0, 1], shift[2, 3] = runs.means[0], runs.means[1]
    return np.asarray(shift @ covariance @ shift.T)


def jackknife_groups(N: ArrayLike, D: ArrayLike, L: ArrayLike, groups: ArrayLike, fit: ParametricFit) -> FloatArray:
    """theta with each group of runs (a budget, a size) left out in turn, in the order of np.unique; shape (k, 5)."""
    groups = np.asarray(groups)
    W = (groups != np.unique(groups)[:, None]).astype(float)
    if fit.weights is not None:
        W *= fit.weights
    return refit_weighted(
        N, D, L, W, start=fit.theta, huber_delta=fit.huber_delta, loss_kind=fit.loss_kind, tied=fit.tied
    )


def jackknife_se(estimates: ArrayLike) -> Any:
    """Standard error from k leave-one-group-out estimates along the first axis (Efron & Stein 1981)."""
    estimates = np.asarray(estimates, float)
    k = len(estimates)
    return np.sqrt((k - 1) / k * np.sum((estimates - estimates.mean(axis=0)) ** 2, axis=0))


def jackknife_interval(estimate: Any, estimates: ArrayLike, level: Any = 0.95) -> tuple[Any, Any]:
    """estimate -+ t standard errors, t of Student with k - 1 degrees of freedom."""
    half = np.vectorize(student_reach, otypes=[float])(len(np.asarray(estimates)) - 1, level) * jackknife_se(estimates)
    return estimate - half, estimate + half


@cache
def student_reach(degrees: int, level: float) -> float:
    """The t between whose minus and plus Student's distribution holds ``level``.

    By bisection of the closed form that it has for whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and
    26.7.4): importing scipy.special for this one number would be a third of the time that `predict` takes.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2  # t = sqrt(degrees) tan(angle)
        power, term, within = degrees % 2, math.sin(angle) * math.cos(angle) ** (degrees % 2), 0.0
        while power <= degrees - 2:
            within += term
            term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
            power += 2
        if degrees % 2:
            within = (angle + within) * 2 / math.pi
        low, high = (angle, high) if within < level else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def percentile_interval(draws: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Central interval of draws along the first axis. Infinite draws count; those that are no number do not."""
    draws = np.asarray(draws, float)
    low, high = np.round([0.5 - level / 2, 0.5 + level / 2], 12)
    # No interpolation: halfway between two infinities is no number.
    return np.nanquantile(draws, low, axis=0, method="lower"), np.nanquantile(draws, high, axis=0, method="higher")
