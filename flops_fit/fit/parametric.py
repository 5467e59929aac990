"""The surface L(N, D) = E + A/N**alpha + B/D**beta, fitted to finished runs.

Two steps, after Hoffmann et al. (2022), arXiv:2203.15556, section 3.3, without their grid of 4,500 starts. For fixed
exponents the law is linear in (E, A, B), so a grid over (alpha, beta) alone is searched in closed form (variable
projection, Golub & Pereyra 1973); its best local minima are then polished on the exact objective by Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, get_args

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.errors import FitError
from flops_fit.fit.newton import LOWER, UPPER, LossKind, Objective, Runs, minimise
from flops_fit.laws import FloatArray, ParametricLaw

# Huber's of Hoffmann et al.; far below the scatter of most sweeps, so that it gives nearly a median fit.
PAPER_DELTA: Final = 1e-3

# 95 % efficiency at the normal distribution (Huber 1964).
HUBER_EFFICIENT: Final = 1.345

# Losses are rarely written with more than seven digits: an adaptive delta below this would fit rounding.
SMALLEST_DELTA: Final = 1e-7

# With fewer runs than this inside delta the sum has hardly any curvature and many shallow minima; the search is then
# started again from so many resamples.
_CURVED: Final = 20
_SHAKES: Final = 16

# Standard deviation of a normal distribution over its median absolute deviation.
MAD_TO_SD: Final = 1.4826

_GRID = np.geomspace(0.02, 1.5, 48)


class FitStatus(StrEnum):
    """How a fit ended."""

    CONVERGED = "converged"
    AT_BOUND = "at_bound"
    E_NOT_IDENTIFIED = "E_not_identified"
    NOT_CONVERGED = "not_converged"


@dataclass(frozen=True)
class ParametricFit:
    """A fitted surface, and how the solver ended.

    Attributes:
        law: The surface.
        theta: (log A, alpha, log B, beta, log E), shape (5,).
        objective: Sum over runs of weight times loss: r**2/2 inside ``huber_delta`` and delta (|r| - delta/2) outside.
        loss_kind: What r is: "huber" and "log" a residual of log loss, "linear" one of the loss itself. "log" and
            "linear" are least squares.
        huber_delta: Where the loss turns linear, in log loss; None for least squares.
        tied: Whether alpha = beta was imposed.
        status: How the solver ended.
        residuals: log L minus its prediction, shape (n,).
        weights: As given, shape (n,), or None.
    """

    law: ParametricLaw
    theta: FloatArray
    objective: float
    loss_kind: LossKind
    huber_delta: float | None
    tied: bool
    status: FitStatus
    residuals: FloatArray
    weights: FloatArray | None = None

    @property
    def n_runs(self) -> int:
        """How many runs were fitted."""
        return self.residuals.size

    @property
    def scale(self) -> float:
        """Robust standard deviation of the residuals, in log loss, corrected for the fitted parameters.

        Low by a third and more below 20 runs, where the surface passes through several of them.
        """
        return robust_scale(self.residuals, self.weights, 4 if self.tied else 5)


def robust_scale(residuals: FloatArray, weights: FloatArray | None, n_parameters: int) -> float:
    """1.4826 times the median absolute deviation, times sqrt(n / (n - p)); weights count as repeated runs."""
    w = np.ones(residuals.size) if weights is None else weights
    n = float(w.sum())
    mad = _median(np.abs(residuals - _median(residuals, w)), w)
    return MAD_TO_SD * mad * float(np.sqrt(n / max(n - n_parameters, 1.0)))


def _median(values: FloatArray, weights: FloatArray) -> float:
    """Median of values repeated ``weights`` times."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    half = 0.5 * reached[-1]
    slack = 1e-9 * half
    low, high = np.searchsorted(reached, [half - slack, half + slack])
    return float(0.5 * (values[order[low]] + values[order[min(high, values.size - 1)]]))


def fit_parametric(
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    huber_delta: float | None = None,
    loss_kind: LossKind = "huber",
    tied: bool = False,
    start: ArrayLike | None = None,
) -> ParametricFit:
    """Fit L(N, D) = E + A/N**alpha + B/D**beta.

    Args:
        N: Parameters of each run, shape (n,).
        D: Tokens it was trained on.
        L: Its loss [nats/token].
        weights: Multiplicity or emphasis of each run; weight 2 is a run given twice.
        huber_delta: Residual, in log loss, beyond which the loss grows linearly. None takes it from the scatter:
            1.345 times the robust standard deviation around the fit with 1e-3, which keeps 95 % of the efficiency of
            least squares under Gaussian noise. 1e-3 reproduces the papers.
        loss_kind: "huber" on log loss; "log" or "linear" for least squares on log loss or on the loss.
        tied: Impose alpha = beta.
        start: A theta to polish instead of searching for one, shape (5,).

    Raises:
        FitError: Too few runs, or too few distinct N or D, to determine the law; or values that cannot be.
    """
    N, D, L = (np.asarray(v, float) for v in (N, D, L))
    w = np.ones(N.size) if weights is None else np.asarray(weights, float)
    _check(N, D, L, w, tied)
    if loss_kind not in get_args(LossKind):
        raise FitError(f"loss_kind={loss_kind!r} is unknown", hint=f"choose one of {', '.join(get_args(LossKind))}")
    if huber_delta is not None and not huber_delta > 0:
        raise FitError(f"huber_delta={huber_delta} must be positive", hint="1e-3 is the papers'; None adapts it")
    runs = Runs.of(N, D, L)
    adaptive = loss_kind == "huber" and huber_delta is None
    delta = np.inf if loss_kind != "huber" else PAPER_DELTA if huber_delta is None else huber_delta
    objective = Objective(runs=runs, delta=delta, linear=loss_kind == "linear", tied=tied)
    q = grid_starts(runs, w, tied=tied) if start is None else runs.coordinates(np.atleast_2d(np.asarray(start, float)))
    q, value, converged = _polish(objective, q, w)
    if start is None and not adaptive and (np.abs(_log_residuals(runs, q)) <= delta).sum() < _CURVED:
        q, value, converged = _shaken(objective, q, w)
    if adaptive:
        scale = robust_scale(_log_residuals(runs, q), w, 4 if tied else 5)
        objective = replace(objective, delta=max(HUBER_EFFICIENT * scale, SMALLEST_DELTA))
        q, value, converged = _polish(objective, q[None], w)

    theta = runs.theta(q)
    if objective.linear:
        value *= float(np.exp(2 * runs.means[2]))
    return ParametricFit(
        law=ParametricLaw.from_logs(theta),
        theta=theta,
        objective=value,
        loss_kind=loss_kind,
        huber_delta=objective.delta if loss_kind == "huber" else None,
        tied=tied,
        status=_status(q, runs, converged),
        residuals=_log_residuals(runs, q),
        weights=None if weights is None else w,
    )


def _check(N: FloatArray, D: FloatArray, L: FloatArray, w: FloatArray, tied: bool) -> None:
    if not N.shape == D.shape == L.shape == w.shape or N.ndim != 1:
        raise FitError(f"N, D, L and weights must be of one length, not {N.shape}, {D.shape}, {L.shape}, {w.shape}")
    for name, values in (("N", N), ("D", D), ("L", L)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise FitError(
                f"{name} must be positive and finite; run {bad[0]} has {values[bad[0]]}",
                hint="leave out runs that diverged or did not finish",
            )
    if not np.all(np.isfinite(w) & (w >= 0)):
        raise FitError("weights must be finite and not negative")
    # A run given twice is no more evidence that the law holds than one, so multiplicities do not count here.
    used = w > 0
    needed = 5 if tied else 7
    n, sizes, tokens = int(used.sum()), np.unique(N[used]).size, np.unique(D[used]).size
    if n < needed or sizes < 3 or tokens < 3:
        raise FitError(
            f"the surface needs at least {needed} runs with 3 distinct N and 3 distinct D;"
            f" there are {n} runs with {sizes} distinct N and {tokens} distinct D",
            hint="train more sizes or budgets" + ("" if tied else ", or tie alpha = beta (5 runs)"),
        )


def grid_starts(runs: Runs, weights: FloatArray, *, tied: bool = False, keep: int = 3) -> FloatArray:
    """The best local minima over a grid of exponents, in the solver's coordinates, shape (<= keep, 5).

    Residuals of the loss, relative to the loss, stand in for those of its log. For each pair of exponents the law is
    then linear in E and the two amplitudes, and one Gram matrix of all columns N**-alpha, D**-beta, 1 and L holds the
    normal equations of all pairs. A pair that comes out with E < 0 is solved again with E = 0.
    """
    from scipy.ndimage import minimum_filter

    k = _GRID.size
    gram = np.zeros((2 * k + 2, 2 * k + 2))
    for first in range(0, runs.x.size, 4096):
        x, z, y, w = (v[first : first + 4096] for v in (runs.x, runs.z, runs.y, weights))
        loss = np.exp(y)
        rows = np.vstack([np.exp(-np.outer(_GRID, x)), np.exp(-np.outer(_GRID, z)), np.ones(x.size), loss])
        rows *= np.sqrt(w) / loss
        gram += rows @ rows.T
    one = gram[2 * k]
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v, rss = _solve_pairs(gram - np.outer(one, one) / one[2 * k], k)
        e = (one[-1] - u * one[:k, None] - v * one[k : 2 * k]) / one[2 * k]
        u0, v0, rss0 = _solve_pairs(gram, k)
        zero = ~(e > 0) | ~(u > 0) | ~(v > 0)
        u, v, e, rss = (np.where(zero, b, a) for a, b in ((u, u0), (v, v0), (e, 0.0), (rss, rss0)))
        rss = np.where((u > 0) & (v > 0) & np.isfinite(rss), rss, np.inf)
    if tied:
        rss = np.where(np.eye(k, dtype=bool), rss, np.inf)
    lowest_nearby = minimum_filter(rss, size=3, mode="constant", cval=np.inf)
    i, j = np.nonzero(np.isfinite(rss) & (rss <= lowest_nearby))
    if i.size == 0:
        # No pair of exponents gives two positive terms: losses do not fall with N or with D.
        return np.array([[np.log(0.3), 0.3, np.log(0.3), 0.3, 0.4]])
    best = np.argsort(rss[i, j])[:keep]
    i, j = i[best], j[best]
    return np.stack([np.log(u[i, j]), _GRID[i], np.log(v[i, j]), _GRID[j], e[i, j]], axis=1)


def _solve_pairs(gram: FloatArray, k: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Coefficients of the two terms, and the residual sum of squares, of every pair of exponents; each (k, k)."""
    uu, vv = gram.diagonal()[:k, None], gram.diagonal()[k : 2 * k]
    uv, uy, vy = gram[:k, k : 2 * k], gram[:k, -1:], gram[k : 2 * k, -1]
    det = uu * vv - uv**2
    u, v = (uy * vv - uv * vy) / det, (uu * vy - uv * uy) / det
    return u, v, np.where(det > 1e-13 * uu * vv, gram[-1, -1] - u * uy - v * vy, np.inf)


def _polish(objective: Objective, q: FloatArray, w: FloatArray) -> tuple[FloatArray, float, bool]:
    """The lowest of the minima reached from starts q, shape (k, 5)."""
    q, value, converged = minimise(objective, q, np.broadcast_to(w, (len(q), w.size)))
    best = int(np.argmin(value))
    return q[best], float(value[best]), bool(converged[best])


def _shaken(objective: Objective, q: FloatArray, w: FloatArray) -> tuple[FloatArray, float, bool]:
    """The lowest minimum near q, shape (5,), where the loss is nearly absolute and so has many shallow ones.

    The optima of resampled runs lie about as far from each other as the scatter can move one; each is a start.
    """
    resampled = np.random.default_rng(0).multinomial(w.size, np.full(w.size, 1 / w.size), size=_SHAKES) * w
    starts, _, _ = minimise(objective, np.tile(q, (_SHAKES, 1)), resampled)
    return _polish(objective, np.vstack([q, starts[np.isfinite(starts).all(axis=1)]]), w)


def _log_residuals(runs: Runs, q: FloatArray) -> FloatArray:
    return np.asarray(runs.y - np.log(np.exp(q[0] - q[1] * runs.x) + np.exp(q[2] - q[3] * runs.z) + q[4]))


def _status(q: FloatArray, runs: Runs, converged: bool) -> FitStatus:
    if not converged:
        return FitStatus.NOT_CONVERGED
    if np.any(q[:4] <= LOWER[:4]) or np.any(q[:4] >= UPPER[:4]):
        return FitStatus.AT_BOUND
    # An E below a thousandth of the lowest loss is the bound E = 0 for all practical purposes.
    if q[4] < 1e-3 * float(np.exp(runs.y.min())):
        return FitStatus.E_NOT_IDENTIFIED
    return FitStatus.CONVERGED
