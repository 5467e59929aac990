"""The lowest loss that compute can buy: L_opt(C) = l_inf + k C**-gamma.

Linear-space least squares, as Hoffmann et al. (2022) and its followers report it. For a given gamma the law is
linear in l_inf and k, so the search is over gamma alone (variable projection, Golub and Pereyra 1973), on C over its
geometric mean: k at C = 1 FLOP spans tens of decades and would hide a bound on gamma.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.errors import FitError
from flops_fit.laws import FloatArray, PowerLaw

_GAMMA_MIN, _GAMMA_MAX = 0.005, 2.0
_GRID = np.geomspace(_GAMMA_MIN, _GAMMA_MAX, 64)
_MIN_BUDGETS = 4

# With a prior on gamma there may be as few as two budgets, and then no scatter to judge the noise by: their optima
# are taken to scatter by about 0.3 % of the loss, a belief worth four observations.
_NOISE, _NOISE_WEIGHT = 0.003, 4

# Scatter below this is rounding [relative].
_ROUNDING = 1e-13


class FrontierStatus(StrEnum):
    """How far the budgets determine l_inf and gamma."""

    IDENTIFIED = "identified"
    NOT_IDENTIFIED = "not identified"
    GAMMA_GIVEN = "gamma given"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierFit:
    """L_opt(C), and how well the budgets determine it.

    Attributes:
        law: The law; its exponent is -gamma and its offset l_inf.
        status: Whether l_inf and gamma can be told from the budgets.
        reason: Why not identified, in words; else None.
        compute_budgets: The fitted budgets [FLOPs].
        losses: Their lowest losses.
        weights: Of the squared errors.
        gamma_prior: Mean and standard deviation of the prior on gamma that was asked for; else None.
        r_squared: Share of the variance of the loss explained. Close to 1 even where the law extrapolates badly.
        log_r_squared: Same for the logarithm of the loss.
    """

    law: PowerLaw
    status: FrontierStatus
    reason: str | None
    compute_budgets: tuple[float, ...]
    losses: tuple[float, ...]
    weights: tuple[float, ...]
    gamma_prior: tuple[float, float] | None
    r_squared: float
    log_r_squared: float

    @property
    def l_inf(self) -> float:
        """Irreducible loss."""
        return float(self.law.offset)

    @property
    def gamma(self) -> float:
        """Minus the exponent of C."""
        return -float(self.law.exponent)

    def gamma_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Profile-likelihood interval; None where gamma was given or no budget is to spare for judging the noise."""
        profile = self._profile()
        if profile.spare < 1 or self.status is FrontierStatus.GAMMA_GIVEN:
            return None
        return profile.gamma_interval(level)

    def l_inf_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Profile-likelihood interval; None where no budget is to spare for judging the noise."""
        profile = self._profile()
        return None if profile.spare < 1 else profile.value_interval(0.0, level)

    def predict_interval(self, C: float, level: float = 0.95) -> tuple[float, float] | None:
        """Profile-likelihood interval of the loss at C FLOPs; None where no budget is to spare."""
        profile = self._profile()
        return None if profile.spare < 1 else profile.value_interval(float(C), level)

    def _profile(self) -> _Profile:
        C, L, w = (np.array(v) for v in (self.compute_budgets, self.losses, self.weights))
        given = self.gamma if self.status is FrontierStatus.GAMMA_GIVEN else None
        return _Profile(C, L, w, given, self.gamma_prior, self.gamma)


def fit_frontier(
    C: ArrayLike,
    L: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    gamma: float | None = None,
    gamma_prior: tuple[float, float] | None = None,
) -> FrontierFit:
    """Fit L_opt(C) = l_inf + k C**-gamma with l_inf >= 0 to the lowest losses of the budgets.

    Args:
        C: Budgets, shape (budgets,) [FLOPs].
        L: Lowest loss at each.
        weights: Of the squared errors; 1 / L**2 by default, so that relative errors count alike.
        gamma: Hold gamma at this value.
        gamma_prior: Mean and standard deviation of a Gaussian prior on gamma, which fades as budgets are added.

    Raises:
        FitError: Fewer than three budgets (two with a prior or a given gamma), or a loss that does not fall.
    """
    C, L = np.asarray(C, float), np.asarray(L, float)
    needed = 3 if gamma is None and gamma_prior is None else 2
    if len(np.unique(C)) < needed:
        raise FitError(
            f"L_opt(C) needs at least {needed} different budgets with an optimum, not {len(np.unique(C))}",
            hint="add budgets, or give gamma",
        )
    if not np.all(np.isfinite(L) & (L > 0)):
        raise FitError("L_opt(C) needs positive finite losses")
    w = _normalised(L, weights)
    draws = _solve(C, L[None, :], w[None, :], gamma, gamma_prior, rounds=10)
    l_inf, k, found = (float(v[0]) for v in draws)
    if not np.isfinite(found):
        raise FitError("the lowest loss does not fall with compute, so L_opt(C) has no such law")
    law = _raw_law(C, l_inf, k, found)
    profile = _Profile(C, L, w, gamma, gamma_prior, found)
    reason = profile.why_not_identified() if gamma is None else None
    status = FrontierStatus.NOT_IDENTIFIED if reason else FrontierStatus.IDENTIFIED
    return FrontierFit(
        law=law,
        status=status if gamma is None else FrontierStatus.GAMMA_GIVEN,
        reason=reason,
        compute_budgets=tuple(C.tolist()),
        losses=tuple(L.tolist()),
        weights=tuple(w.tolist()),
        gamma_prior=gamma_prior,
        r_squared=_r_squared(L, law(C)),
        log_r_squared=_r_squared(np.log(L), np.log(law(C))),
    )


def fit_frontier_draws(
    C: ArrayLike, L: ArrayLike, *, gamma: float | None = None, gamma_prior: tuple[float, float] | None = None
) -> PowerLaw:
    """Fit the law to many replicates of the lowest losses at once.

    Args:
        C: Budgets, shape (budgets,) [FLOPs].
        L: Lowest losses, shape (replicates, budgets); nan where a replicate has none.
        gamma: As in ``fit_frontier``.
        gamma_prior: As in ``fit_frontier``.

    Returns:
        A family of laws, shape (replicates,); nan where a replicate has too few budgets or a loss that does not fall.
    """
    C, L = np.asarray(C, float), np.asarray(L, float)
    seen = np.isfinite(L)
    w = np.where(seen, np.where(seen, L, 1.0) ** -2, 0.0)
    return _raw_law(C, *_solve(C, np.where(seen, L, 0.0), w, gamma, gamma_prior, rounds=5))


def _normalised(L: FloatArray, weights: ArrayLike | None) -> FloatArray:
    """Weights under which the mean squared error is a squared relative error."""
    w = L**-2 if weights is None else np.asarray(weights, float)
    return np.asarray(w / np.average(w * L**2))


def _raw_law(C: FloatArray, l_inf: Any, k: Any, gamma: Any) -> PowerLaw:
    """From k at the geometric mean of C to k at C = 1."""
    return PowerLaw(k=k * np.exp(gamma * np.log(C).mean()), exponent=-gamma, offset=l_inf)


def _r_squared(y: FloatArray, fitted: FloatArray) -> float:
    return float(1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _project(
    x: FloatArray, y: FloatArray, w: FloatArray, gamma: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Best l_inf >= 0 and k for given gamma, and the weighted sum of squares (infinite where k is not positive).

    Args:
        x: Centred log C, shape (budgets,).
        y: Losses, shape (replicates, budgets).
        w: Weights, same shape.
        gamma: Shape (replicates or 1, candidates).

    Returns:
        Sum of squares, l_inf and k, each of shape (replicates, candidates).
    """
    u = np.exp(-gamma[..., None] * x)
    w, y = w[:, None, :], y[:, None, :]
    total = w.sum(-1)
    safe = np.where(total > 0, total, 1.0)
    u_mean, y_mean = (w * u).sum(-1) / safe, (w * y).sum(-1) / safe
    u_away, y_away = u - u_mean[..., None], y - y_mean[..., None]
    spread = (w * u_away**2).sum(-1)
    k = (w * u_away * y_away).sum(-1) / np.where(spread > 0, spread, 1.0)
    l_inf = y_mean - k * u_mean
    power = (w * u**2).sum(-1)
    k = np.where(l_inf < 0, (w * u * y).sum(-1) / np.where(power > 0, power, 1.0), k)
    l_inf = np.maximum(l_inf, 0.0)
    rss = (w * (y - l_inf[..., None] - k[..., None] * u) ** 2).sum(-1)
    return np.where(k > 0, rss, np.inf), l_inf, k


def _cost(rss: FloatArray, n: ArrayLike, gamma: FloatArray, prior: tuple[float, float] | None) -> FloatArray:
    """Minus twice the log likelihood with the noise integrated out, prior on gamma included."""
    n = np.asarray(n)
    if prior is None:
        return np.asarray(n * np.log(rss + n * _ROUNDING**2))
    mean, sd = prior
    noise = _NOISE_WEIGHT * _NOISE**2
    return np.asarray((n - 2 + _NOISE_WEIGHT) * np.log(rss + noise) + ((gamma - mean) / sd) ** 2)


def _solve(
    C: FloatArray, L: FloatArray, w: FloatArray, given: float | None, prior: tuple[float, float] | None, *, rounds: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """l_inf, k (at the geometric mean of C) and gamma, each of shape (replicates,); nan where there is no law."""
    x = np.log(C) - np.log(C).mean()
    n = (w > 0).sum(axis=1)[:, None]
    gamma = _GRID[None, :] if given is None else np.array([[given]])
    # Each round looks nine times closer round the best candidate: five leave 1e-6 of gamma, ten only rounding.
    for _ in range(rounds if given is None else 0):
        cost = _cost(_project(x, L, w, gamma)[0], n, gamma, prior)
        best = cost.argmin(axis=1)[:, None]
        gamma = np.broadcast_to(gamma, cost.shape)
        low = np.take_along_axis(gamma, np.maximum(best - 1, 0), axis=1)
        high = np.take_along_axis(gamma, np.minimum(best + 1, gamma.shape[1] - 1), axis=1)
        gamma = low + (high - low) * np.linspace(0, 1, 19)
    rss, l_inf, k = _project(x, L, w, gamma)
    best = _cost(rss, n, gamma, prior).argmin(axis=1)[:, None]
    gamma = np.broadcast_to(gamma, rss.shape)
    rss, l_inf, k, gamma = (np.take_along_axis(v, best, axis=1)[:, 0] for v in (rss, l_inf, k, gamma))
    fine = np.isfinite(rss) & (n[:, 0] >= (3 if given is None and prior is None else 2))
    return np.where(fine, l_inf, np.nan), np.where(fine, k, np.nan), np.where(fine, gamma, np.nan)


class _Profile:
    """The profile likelihood of one fit, and the intervals it gives.

    Everything whose cost is within a threshold of the best is accepted. Without a prior that is the F test of the
    residual sum of squares on ``spare`` degrees of freedom.
    """

    def __init__(
        self,
        C: FloatArray,
        L: FloatArray,
        w: FloatArray,
        given: float | None,
        prior: tuple[float, float] | None,
        gamma: float,
    ) -> None:
        self._center = np.log(C).mean()
        self._x, self._L, self._w, self._prior = np.log(C) - self._center, L, w, prior
        self._given, self._gamma, self._n = given, gamma, len(C)
        self.spare = self._n - 2 if given is not None else self._n - 3 + (_NOISE_WEIGHT if prior else 0)
        self._best = float(self._costs(np.array([gamma]))[0])

    def _costs(self, gamma: FloatArray) -> FloatArray:
        rss, _, _ = _project(self._x, self._L[None, :], self._w[None, :], gamma[None, :])
        return _cost(rss[0], self._n, gamma, self._prior)

    def _limit(self, level: float) -> float:
        from scipy.special import fdtri

        factor = self._n if self._prior is None else self._n - 2 + _NOISE_WEIGHT
        return float(self._best + factor * np.log1p(fdtri(1, self.spare, level) / self.spare))

    def gamma_interval(self, level: float) -> tuple[float, float]:
        """Where the cost crosses the limit on either side, or the bound on gamma."""
        from scipy.optimize import brentq

        if self._given is not None:
            return self._given, self._given
        limit = self._limit(level)

        def excess(gamma: float) -> float:
            # Infinite where the law would rise; brentq only needs the sign.
            return float(np.minimum(self._costs(np.array([gamma]))[0] - limit, 1e6))

        def edge(outward: FloatArray) -> float:
            inner = self._gamma
            for outer in outward:
                if excess(outer) > 0:
                    return float(brentq(excess, inner, outer, xtol=1e-12)) if excess(inner) < 0 else inner
                inner = float(outer)
            return inner

        return edge(_GRID[_GRID < self._gamma][::-1]), edge(_GRID[_GRID > self._gamma])

    def value_interval(self, C: float, level: float) -> tuple[float, float]:
        """Interval of l_inf + k C**-gamma, of l_inf itself for C = 0.

        At each accepted gamma the accepted (l_inf, k) are an ellipse, cut off at l_inf = 0. The value is linear, so
        its extremes lie on the ellipse, or where that is cut, at the ends of the cut.
        """
        low, high = self.gamma_interval(level)
        gamma = np.linspace(low, high, 201)
        u = np.exp(-gamma[:, None] * self._x)
        u0 = np.exp(-gamma * (np.log(C) - self._center)) if C > 0 else np.zeros_like(gamma)
        w, y = self._w, self._L
        s0, s1, s2 = w.sum(), u @ w, u**2 @ w
        det = s0 * s2 - s1**2
        l_inf = (s2 * (w @ y) - s1 * (u @ (w * y))) / det
        k = (s0 * (u @ (w * y)) - s1 * (w @ y)) / det
        k_cut = u @ (w * y) / s2
        rss = (y - l_inf[:, None] - k[:, None] * u) ** 2 @ w
        rss_cut = (y - k_cut[:, None] * u) ** 2 @ w
        allowed = self._allowed(gamma, level)
        variance, covariance = (s2 - 2 * u0 * s1 + u0**2 * s0) / det, (s2 - u0 * s1) / det
        half = np.sqrt(np.maximum(allowed - rss, 0) * variance)
        half_cut = np.sqrt(np.maximum(allowed - rss_cut, 0) / s2) * u0
        ends = []
        for sign in (-1, 1):
            value, l_there = l_inf + k * u0 + sign * half, l_inf + sign * half * covariance / variance
            ends.append(np.where(l_there >= 0, value, k_cut * u0 + sign * half_cut))
        return float(ends[0].min()), float(ends[1].max())

    def _allowed(self, gamma: FloatArray, level: float) -> FloatArray:
        """The sum of squares at which the cost meets the limit."""
        limit = self._limit(level)
        if self._prior is None:
            return np.full_like(gamma, np.exp(limit / self._n) - self._n * _ROUNDING**2)
        mean, sd = self._prior
        rest = (limit - ((gamma - mean) / sd) ** 2) / (self._n - 2 + _NOISE_WEIGHT)
        return np.asarray(np.exp(rest) - _NOISE_WEIGHT * _NOISE**2)

    def why_not_identified(self) -> str | None:
        if self._n < _MIN_BUDGETS:
            return f"{self._n} budgets; telling l_inf from k and gamma takes at least {_MIN_BUDGETS}"
        low, high = self.gamma_interval(0.95)
        if low <= _GAMMA_MIN or high >= _GAMMA_MAX:
            return f"the 95 % interval of gamma, {low:.3g} to {high:.3g}, reaches the end of the range searched"
        if self.value_interval(0.0, 0.95)[0] <= 0:
            return "the 95 % interval of l_inf reaches 0"
        return None
