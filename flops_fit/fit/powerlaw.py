"""Power laws through points of (compute, value), fitted in log space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.errors import FitError
from flops_fit.laws import FloatArray, PowerLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLawFit:
    """y = k C**exponent, and how well the points determine it.

    The regression is written round the weighted mean of log C, where level and slope are uncorrelated.

    Attributes:
        law: The power law, for C in FLOPs.
        n: Points.
        center: Weighted mean of log C.
        level: Fitted log y there.
        r_squared: Share of the (weighted) variance of log y explained; None for two points, which any line meets.
        level_se: Standard error of ``level``; None for two points.
        exponent_se: Standard error of the exponent; None for two points.
    """

    law: PowerLaw
    n: int
    center: float
    level: float
    r_squared: float | None
    level_se: float | None
    exponent_se: float | None

    @property
    def log_k_se(self) -> float | None:
        """Standard error of log k, that is of the line at C = 1 FLOP."""
        if self.level_se is None or self.exponent_se is None:
            return None
        return float(np.hypot(self.level_se, self.exponent_se * self.center))

    @property
    def covariance(self) -> FloatArray | None:
        """Of (level, exponent), shape (2, 2); diagonal by the choice of the center."""
        if self.level_se is None or self.exponent_se is None:
            return None
        return np.diag([self.level_se**2, self.exponent_se**2])

    def log_se(self, C: ArrayLike) -> Any:
        """Standard error of log y at C FLOPs; nan for two points."""
        if self.level_se is None or self.exponent_se is None:
            return np.full(np.shape(C), np.nan)[()]
        return np.hypot(self.level_se, self.exponent_se * (np.log(np.asarray(C, float)) - self.center))

    def predict_interval(self, C: ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
        """Interval of the law itself (not of one more point) at C FLOPs, by Student's t; nan for two points."""
        from scipy.special import stdtrit

        if self.n < 3:
            return self.log_se(C), self.log_se(C)
        width = stdtrit(self.n - 2, (1 + level) / 2) * self.log_se(C)
        y = self.law(C)
        return y * np.exp(-width), y * np.exp(width)


def fit_power_law(C: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None) -> PowerLawFit:
    """Regress log y on log C.

    Args:
        C: Compute, shape (points,) [FLOPs].
        y: Positive values.
        weights: Relative weights, such as inverse variances of log y; points of weight 0 do not count. Only their
            ratios matter: the noise is judged by the scatter round the line.

    Raises:
        FitError: Fewer than two different C, or a value that has no logarithm.
    """
    C, y = np.asarray(C, float), np.asarray(y, float)
    w = np.ones_like(y) if weights is None else np.asarray(weights, float)
    C, y, w = C[w > 0], y[w > 0], w[w > 0]
    if not (np.all(np.isfinite(C) & (C > 0)) and np.all(np.isfinite(y) & (y > 0))):
        raise FitError("a power law needs positive finite values", hint="leave out the points that have none")
    if len(np.unique(C)) < 2:
        raise FitError(f"a power law needs at least two different budgets, not {len(np.unique(C))}")
    center, level, slope = (float(v) for v in log_log_line(np.log(C), np.log(y), w))
    n = len(y)
    r_squared = level_se = exponent_se = None
    if n > 2:
        x = np.log(C) - center
        residual = np.log(y) - level - slope * x
        rss, total = w @ residual**2, w @ (np.log(y) - level) ** 2
        r_squared = float(1 - rss / total) if total > 0 else 1.0
        level_se, exponent_se = (float(np.sqrt(rss / (n - 2) / s)) for s in (w.sum(), w @ x**2))
    law = PowerLaw(k=float(np.exp(level - slope * center)), exponent=slope)
    return PowerLawFit(
        law=law,
        n=n,
        center=center,
        level=level,
        r_squared=r_squared,
        level_se=level_se,
        exponent_se=exponent_se,
    )


def log_log_line(x: FloatArray, z: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weighted straight lines z = level + slope (x - center), one per row of z.

    Args:
        x: Shape (points,).
        z: Shape (..., points); what has weight 0 may be nan.
        w: Weights, broadcasting with z.

    Returns:
        center, level and slope, each of shape (...); nan where fewer than two different x have weight.
    """
    z = np.where(w > 0, z, 0.0)
    w = np.broadcast_to(w, z.shape)
    total = w.sum(-1)
    enough = (w > 0).sum(-1) > 1
    safe = np.where(enough, total, 1.0)
    center = (w * x).sum(-1) / safe
    level = (w * z).sum(-1) / safe
    away = x - center[..., None]
    sum_xx = (w * away**2).sum(-1)
    enough &= sum_xx > 0
    slope = (w * away * (z - level[..., None])).sum(-1) / np.where(enough, sum_xx, 1.0)
    center, level, slope = (np.where(enough, v, np.nan) for v in (center, level, slope))
    return center, level, slope
