"""The lower envelope of training curves: which size is best at each amount of compute, along the way.

Approach 1 of Hoffmann et al. (2022), arXiv:2203.15556, section 3.1, with one change. The best of K sizes is a
staircase in C, and a line through all of it leans on where the stairs end; so each size gives one point, the middle
(in log C) of the stretch where it wins. The smallest and the largest win where there is no rival, and give none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from flops_fit.errors import FitError
from flops_fit.fit.powerlaw import PowerLawFit, fit_power_law
from flops_fit.laws import FloatArray

_COLUMNS = ("run_id", "num_params", "num_tokens", "flops", "loss")
_MIN_SIZES = 5
_MIN_POINTS = 3
_GRID_POINTS = 1500
_REACH = 2 * np.log(10)
_MIN_CUBIC = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopePoint:
    """The middle of the stretch of compute on which one size is the best.

    Attributes:
        num_params: The size [parameters].
        compute: Middle of the stretch, in log C [FLOPs].
        num_tokens: Tokens that the size has seen there.
        loss: Its loss there.
    """

    num_params: float
    compute: float
    num_tokens: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeFit:
    """Power laws along the envelope, or why there are none.

    Attributes:
        points: One per size that wins somewhere between two rivals.
        n_sizes: Sizes among the curves.
        descriptive: Losses along the curves are not those that runs ending there would have: a picture, not an answer.
        reason: Why there are no power laws; else None.
        N_opt: Power law of the best size in C.
        D_opt: Same for its tokens.
    """

    points: tuple[EnvelopePoint, ...]
    n_sizes: int
    descriptive: bool
    reason: str | None = None
    N_opt: PowerLawFit | None = None
    D_opt: PowerLawFit | None = None


def fit_envelope(curves: pd.DataFrame, *, final: bool) -> EnvelopeFit:
    """Fit N_opt(C) and D_opt(C) to the lower envelope of training curves.

    Args:
        curves: One row per evaluation; columns run_id, num_params, num_tokens, flops, loss.
        final: The loss at every point is what a run ending there would reach (constant learning rate with a cooldown
            at each point, or runs of every horizon). Points of a run whose rate decays towards a later end are not.

    Raises:
        FitError: A column is missing.
    """
    missing = [name for name in _COLUMNS if name not in curves.columns]
    if missing:
        raise FitError(f"training curves lack {', '.join(missing)}; columns: {', '.join(map(str, curves.columns))}")
    values = curves[list(_COLUMNS[1:])].to_numpy(float)
    curves = curves[(np.isfinite(values) & (values > 0)).all(axis=1)]
    sizes = np.unique(curves["num_params"].to_numpy(float))
    if len(sizes) < _MIN_SIZES:
        reason = f"{len(sizes)} sizes; the envelope takes at least {_MIN_SIZES}"
        return EnvelopeFit(points=(), n_sizes=len(sizes), descriptive=not final, reason=reason)
    log_C = np.log(curves["flops"].to_numpy(float))
    grid = np.linspace(log_C.min(), log_C.max(), _GRID_POINTS)
    by_size = [_lowest_curve(group, grid) for _, group in curves.groupby("num_params", sort=True)]
    log_loss, log_D = (np.array(v) for v in zip(*by_size, strict=True))
    points = []
    for k, stretch in _stretches(log_loss).items():
        middle = grid[stretch].mean()
        inside = np.isfinite(log_loss[k])
        loss, D = (float(np.exp(np.interp(middle, grid[inside], v[k, inside]))) for v in (log_loss, log_D))
        points.append(EnvelopePoint(num_params=float(sizes[k]), compute=float(np.exp(middle)), num_tokens=D, loss=loss))
    if len(points) < _MIN_POINTS:
        reason = f"only {len(points)} sizes are the best somewhere between two others; it takes {_MIN_POINTS}"
        return EnvelopeFit(points=tuple(points), n_sizes=len(sizes), descriptive=not final, reason=reason)
    C = [p.compute for p in points]
    return EnvelopeFit(
        points=tuple(points),
        n_sizes=len(sizes),
        descriptive=not final,
        N_opt=fit_power_law(C, [p.num_params for p in points]),
        D_opt=fit_power_law(C, [p.num_tokens for p in points]),
    )


def _lowest_curve(group: pd.DataFrame, grid: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log loss (infinite where no run of this size is) and log D of the lowest run on the grid of log C."""
    loss, tokens = np.full_like(grid, np.inf), np.full_like(grid, np.nan)
    for _, run in group.sort_values("flops", kind="stable").groupby("run_id", sort=True):
        x, D, L = (np.log(run[name].to_numpy(float)) for name in ("flops", "num_tokens", "loss"))
        here = _smooth(x, L, grid)
        lower = here < loss
        loss[lower], tokens[lower] = here[lower], np.interp(grid[lower], x, D)
    return loss, tokens


def _smooth(x: FloatArray, y: FloatArray, grid: FloatArray) -> FloatArray:
    """One curve's last two decades as a cubic, every stretch of log C counting alike; infinite outside the curve.

    Neighbouring sizes differ by less than the noise of an evaluation, so the raw curves cross many times. Two decades
    leave warm-up out and are enough for a size to take and lose the lead.
    """
    recent = (x >= x[-1] - _REACH) & (np.diff(x, prepend=-np.inf) > 1e-9)
    x, y = x[recent], y[recent]
    if len(x) < _MIN_CUBIC:
        return np.interp(grid, x, y, left=np.inf, right=np.inf)
    cubic = Polynomial.fit(x, y, 3, w=np.sqrt(np.gradient(x)))
    return np.where((grid >= x[0]) & (grid <= x[-1]), cubic(grid), np.inf)


def _stretches(log_loss: FloatArray) -> dict[int, NDArray[np.intp]]:
    """Where each size is the best, for sizes that take the lead from one rival and lose it to another.

    At both ends both curves must exist on both sides: a lead taken because the rival's run ended says nothing.
    """
    present = np.isfinite(log_loss)
    winner = np.where(present.any(axis=0), log_loss.argmin(axis=0), -1)
    stretches = {}
    for k in range(1, len(log_loss) - 1):
        wins = np.flatnonzero(winner == k)
        if not len(wins) or wins[0] == 0 or wins[-1] == len(winner) - 1:
            continue
        before, after = winner[wins[0] - 1], winner[wins[-1] + 1]
        crossings = ((before, wins[0] - 1, wins[0]), (after, wins[-1] + 1, wins[-1]))
        if all(present[k, outside] and present[rival, inside] for rival, outside, inside in crossings):
            stretches[k] = wins
    return stretches
