"""Repeated data: what epochs are worth, after Muennighoff et al. (2023), arXiv:2305.16264.

D tokens made of U unique ones, seen R_D + 1 times, are worth D' = U + U R_D* (1 - exp(-R_D / R_D*)) fresh ones; and
parameters beyond those that U unique tokens call for lose their worth the same way, with a constant of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.errors import FitError
from flops_fit.laws import SIX_ND, ComputeRule, FloatArray, ParametricLaw

# Muennighoff et al. 2023, section 6: fitted by them to 182 runs on C4.
PUBLISHED_R_D, PUBLISHED_R_N = 15.387756, 5.309743

# Below this range a repetition is worth nothing; above it, as much as fresh data in any run ever made.
_LOW, _HIGH = 0.1, 1000.0
_GRID = np.geomspace(_LOW, _HIGH, 49)
_MAX_RUNS = 2000


class RepetitionStatus(StrEnum):
    """Whether the runs determine what repetition is worth."""

    IDENTIFIED = "identified"
    NOT_IDENTIFIED = "not identified"
    NO_REPEATS = "no run repeats data"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedDataLaw:
    """Loss of N parameters on D tokens of which only U are unique.

    Attributes:
        base: The law for fresh data.
        R_D: Repetitions after which one more of them is worth 1/e of a fresh epoch.
        R_N: Same for excess parameters.
        borrowed: The constants are the published ones, not fitted to these runs.
    """

    base: ParametricLaw
    R_D: Any = PUBLISHED_R_D
    R_N: Any = PUBLISHED_R_N
    borrowed: bool = True

    def effective_tokens(self, D: ArrayLike, U: ArrayLike) -> Any:
        """Fresh tokens that D tokens of U unique ones are worth; D itself up to one epoch."""
        D = np.asarray(D, float)
        return _worth(D, np.minimum(D, np.asarray(U, float)), self.R_D)

    def effective_params(self, N: ArrayLike, U: ArrayLike) -> Any:
        """Parameters that N are worth on U unique tokens; N itself up to the size that U calls for."""
        N = np.asarray(N, float)
        return _worth(N, np.minimum(N, _params_for(self.base, np.asarray(U, float))), self.R_N)

    def loss(self, N: ArrayLike, D: ArrayLike, U: ArrayLike) -> Any:
        """Loss of N parameters trained on D tokens of U unique ones [nats/token]."""
        return self.base.loss(self.effective_params(N, U), self.effective_tokens(D, U))

    def optimum(self, C: float, U: float, rule: ComputeRule = SIX_ND) -> tuple[float, float]:
        """The split (N, D) of C FLOPs with the lowest loss when only U tokens are unique; one law only."""
        from scipy.optimize import minimize_scalar

        centre = float(np.log(self.base.optimum(C, rule)[0]))

        def loss(log_N: float) -> float:
            N = np.exp(log_N)
            return float(self.loss(N, rule.tokens(C, N), U))

        # Repetition moves the optimum towards larger models, by less than the compute allows; never the other way far.
        best = minimize_scalar(loss, bounds=(centre - 3, centre + 7), method="bounded", options={"xatol": 1e-8})
        N = float(np.exp(best.x))
        return N, float(rule.tokens(C, N))


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionFit:
    """The fitted constants, and how well the runs determine them.

    Attributes:
        law: The law; the published constants, borrowed, where no run repeats data.
        status: Whether both ranges end inside the range searched.
        n_repeated: Runs of more than one epoch.
        objective: Sum of the Huber losses of log-loss residuals at the law.
        published_objective: Same at the published constants.
        R_D_range: Values of R_D that 95 % confidence cannot tell from the best, by the profile of the objective; None
            without repeats.
        R_N_range: Same for R_N.
    """

    law: RepeatedDataLaw
    status: RepetitionStatus
    n_repeated: int
    objective: float
    published_objective: float
    R_D_range: tuple[float, float] | None
    R_N_range: tuple[float, float] | None


def fit_repetition(
    N: ArrayLike, D: ArrayLike, U: ArrayLike, L: ArrayLike, base: ParametricLaw, *, huber_delta: float = 1e-3
) -> RepetitionFit:
    """Fit R_D* and R_N* to runs that repeat data, the base law held fixed.

    Every pair of a grid is tried and the best places polished: the objective has several local minima. Above 2,000
    runs an even choice of them is fitted.

    Args:
        N: Parameters of each run, shape (runs,).
        D: Tokens, repetitions counted.
        U: Unique tokens.
        L: Loss.
        base: The law for fresh data, from runs of one epoch.
        huber_delta: Residual, in log loss, beyond which growth is linear.

    Raises:
        FitError: A value is not positive and finite.
    """
    from scipy.optimize import minimize
    from scipy.special import huber

    N, D, L = np.asarray(N, float), np.asarray(D, float), np.asarray(L, float)
    unique: FloatArray = np.minimum(np.asarray(U, float), D)
    if not all(np.all(np.isfinite(v) & (v > 0)) for v in (N, D, unique, L)):
        raise FitError("repeated data: parameters, tokens, unique tokens and loss must be positive and finite")
    if len(L) > _MAX_RUNS:
        order = np.lexsort((L, N, D, unique))[:: -(-len(L) // _MAX_RUNS)]
        N, D, unique, L = N[order], D[order], unique[order], L[order]
    published = RepeatedDataLaw(base=base)

    def objective(law: RepeatedDataLaw) -> float:
        return float(huber(huber_delta, np.log(law.loss(N, D, unique)) - np.log(L)).sum())

    def grid(R_D: FloatArray, R_N: FloatArray) -> FloatArray:
        return _objective_grid(base, (N, D, unique, np.log(L)), R_D, R_N, huber_delta)

    n_repeated = int((D > unique * (1 + 1e-6)).sum())
    if n_repeated == 0:
        at_published = objective(published)
        return RepetitionFit(
            law=published,
            status=RepetitionStatus.NO_REPEATS,
            n_repeated=0,
            objective=at_published,
            published_objective=at_published,
            R_D_range=None,
            R_N_range=None,
        )
    surface = grid(_GRID, _GRID)
    best = published
    for i, j in _local_minima(surface):
        found = minimize(
            lambda log_R: objective(RepeatedDataLaw(base=base, R_D=np.exp(log_R[0]), R_N=np.exp(log_R[1]))),
            np.log([_GRID[i], _GRID[j]]),
            method="Nelder-Mead",
            bounds=[(np.log(_LOW), np.log(_HIGH))] * 2,
            options={"xatol": 1e-7, "fatol": 1e-15, "initial_simplex": _simplex(np.log([_GRID[i], _GRID[j]]))},
        )
        R_D, R_N = (float(v) for v in np.exp(found.x))
        law = RepeatedDataLaw(base=base, R_D=R_D, R_N=R_N, borrowed=False)
        if best is published or objective(law) < objective(best):
            best = law
    # With its quadratic part negligible, the Huber loss is that of Laplace noise: minus twice the log likelihood is
    # 2 n log(objective), and 3.84 the 95 % point of chi-square on one degree of freedom. Under Gaussian noise the
    # ratio is chi-square times pi / 2, which is wide for heavier tails and so right or wide for both.
    limit = objective(best) * np.exp(3.84 / 2 * np.pi / 2 / len(L))
    ranges = _accepted(grid, limit, best)
    inside = all(_LOW < low and high < _HIGH for low, high in ranges)
    return RepetitionFit(
        law=best,
        status=RepetitionStatus.IDENTIFIED if inside else RepetitionStatus.NOT_IDENTIFIED,
        n_repeated=n_repeated,
        objective=objective(best),
        published_objective=objective(published),
        R_D_range=ranges[0],
        R_N_range=ranges[1],
    )


def _worth(total: FloatArray, fresh: FloatArray, R: Any) -> Any:
    """fresh + fresh R (1 - exp(-repeats / R)), repeats being total / fresh - 1."""
    return fresh - fresh * R * np.expm1(-(total / fresh - 1) / R)


def _params_for(law: ParametricLaw, U: FloatArray) -> FloatArray:
    """The size whose compute-optimal data, for C = 6ND, are U tokens."""
    log_N = np.log(law.alpha * law.A) - np.log(law.beta * law.B) + law.beta * np.log(U)
    return np.asarray(np.exp(log_N / law.alpha))


def _objective_grid(
    base: ParametricLaw, runs: tuple[FloatArray, ...], R_D: FloatArray, R_N: FloatArray, delta: float
) -> FloatArray:
    """The objective at every pair, shape (R_D, R_N); both terms of the loss are shared along a line of the grid."""
    from scipy.special import huber

    N, D, U, log_L = runs
    fresh_N = np.minimum(N, _params_for(base, U))
    size = base.A * _worth(N, fresh_N, R_N[:, None]) ** -base.alpha
    rows = (base.E + base.B * _worth(D, U, R) ** -base.beta + size for R in R_D)
    return np.array([huber(delta, np.log(row) - log_L).sum(axis=1) for row in rows])


def _local_minima(surface: FloatArray) -> list[tuple[int, int]]:
    """Grid points no higher than their eight neighbours, lowest first, at most five."""
    padded = np.pad(surface, 1, constant_values=np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    places = np.argwhere(surface <= windows.min(axis=(2, 3)))
    order = np.argsort(surface[tuple(places.T)], kind="stable")[:5]
    return [(int(i), int(j)) for i, j in places[order]]


def _simplex(start: FloatArray) -> FloatArray:
    """A first simplex as wide as the grid, turned inwards."""
    step = np.log(_GRID[1] / _GRID[0]) * np.where(start > 0.5 * np.log(_LOW * _HIGH), -1.0, 1.0)
    return np.stack([start, start + step * [1, 0], start + step * [0, 1]])


def _accepted(
    grid: Callable[[FloatArray, FloatArray], FloatArray], limit: float, best: RepeatedDataLaw
) -> list[tuple[float, float]]:
    """Ranges of R_D and R_N over the pairs whose objective is within the limit, by looking ever closer at them."""
    axes = [_GRID, _GRID]
    ranges: list[tuple[float, float]] = []
    for _ in range(6):
        accepted = grid(*axes) <= limit
        ranges, closer = [], []
        for axis, values, found in ((1, axes[0], best.R_D), (0, axes[1], best.R_N)):
            inside = np.append(values[accepted.any(axis=axis)], found)
            low, high = float(inside.min()), float(inside.max())
            ranges.append((low, high))
            step = np.exp(np.diff(np.log(values)).max())
            closer.append(np.geomspace(max(low / step, _LOW), min(high * step, _HIGH), len(_GRID)))
        axes = closer
    return ranges
