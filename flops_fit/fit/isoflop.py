"""IsoFLOP parabolas: the optimum of each budget, and power laws through the optima.

Approach 2 of Hoffmann et al. (2022), arXiv:2203.15556, section 3.2: at each budget the loss is a parabola in log N
whose minimum is N_opt. D_opt comes from a parabola of its own in log D, so C need not be 6ND.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flops_fit.errors import FitError
from flops_fit.fit.budgets import fit_compute_rule
from flops_fit.fit.frontier import fit_frontier
from flops_fit.fit.parabola import BoolArray, Parabolas, fit_parabolas
from flops_fit.fit.powerlaw import PowerLawFit, fit_power_law
from flops_fit.laws import FloatArray, ParametricLaw

# Sizes closer than this are one size, read off a figure twice [log N].
_SAME_SIZE = 0.01
_MIN_SIZES = 3
# Runs further from their budget than this are not moved to it [log C].
_MAX_STEP = 0.2


class BudgetStatus(StrEnum):
    """Whether a budget has an optimum, and if not, why."""

    OK = "ok"
    TOO_FEW_SIZES = "too few sizes"
    NOT_CONVEX = "not convex"
    MINIMUM_OUTSIDE = "minimum outside the sizes"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptimum:
    """The minimum of one budget's parabola.

    Attributes:
        compute_budget: The budget [FLOPs].
        status: OK, or why there is no optimum; then every estimate below is None.
        n_runs: Runs at this budget.
        n_sizes: Distinct sizes among them.
        num_params: N_opt [parameters].
        num_tokens: D_opt, from the parabola in log D [tokens].
        loss: Loss at the minimum.
        curvature: Second derivative of the loss (its logarithm if so fitted) by log N; None below three sizes.
        log_n_se: Standard error of log N_opt from the scatter round the parabola, or from that between seeds where it
            is larger; None for three runs without seeds to tell.
        log_d_se: Same for log D_opt.
        loss_se: Same for the loss at the minimum.
        residual_rms: Scatter round the parabola, degrees of freedom counted, relative to the loss.
        argmin_at_edge: The size of lowest mean loss is the smallest or the largest; the minimum leans on few runs.
    """

    compute_budget: float
    status: BudgetStatus
    n_runs: int
    n_sizes: int
    num_params: float | None = None
    num_tokens: float | None = None
    loss: float | None = None
    curvature: float | None = None
    log_n_se: float | None = None
    log_d_se: float | None = None
    loss_se: float | None = None
    residual_rms: float | None = None
    argmin_at_edge: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoflopFit:
    """Every budget's optimum and the power laws through those that have one.

    Attributes:
        budgets: In ascending order, those without an optimum included.
        N_opt: Power law of N_opt in C; None below two budgets with an optimum.
        D_opt: Same for D_opt.
    """

    budgets: tuple[BudgetOptimum, ...]
    N_opt: PowerLawFit | None
    D_opt: PowerLawFit | None

    @property
    def optima(self) -> tuple[BudgetOptimum, ...]:
        """The budgets that have an optimum."""
        return tuple(b for b in self.budgets if b.status is BudgetStatus.OK)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParabolaBias:
    """How far this grid's parabolas would miss a known surface, without any noise.

    Attributes:
        compute_budget: The largest budget [FLOPs].
        log_n: log of the parabolas' N_opt over the surface's, by the power laws, at that budget.
        log_d: Same for D_opt.
        n_exponent: Exponent of the parabolas' N_opt minus the surface's.
        d_exponent: Same for D_opt.
        n_budgets: Budgets whose noiseless parabola has an optimum.
    """

    compute_budget: float
    log_n: float
    log_d: float
    n_exponent: float
    d_exponent: float
    n_budgets: int

    def log_n_at(self, C: ArrayLike) -> FloatArray:
        """log of the parabolas' N_opt over the surface's at C FLOPs."""
        return np.asarray(self.log_n + self.n_exponent * np.log(np.asarray(C, float) / self.compute_budget))


def fit_isoflop(
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    budget: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    log_loss: bool = False,
    noise: float | None = None,
) -> IsoflopFit:
    """Fit a parabola to each budget, then power laws to their minima.

    A budget counts where it has three distinct sizes and both its parabolas, in log N and in log D, curve upwards
    and have their minimum inside the runs.

    Args:
        N: Parameters of each run, shape (runs,).
        D: Tokens.
        L: Loss.
        budget: The IsoFLOP group of each run [FLOPs]; nan for runs of none (``group_budgets``).
        weights: Relative weights of the runs; seeds of one size are averaged by the regression itself.
        log_loss: Parabolas of log L instead of L.
        noise: Standard deviation of log L between seeds, where it is known: no optimum is surer than it allows.
    """
    groups = _groups(N, D, L, budget, log_loss)
    w = np.ones(np.shape(L)) if weights is None else np.asarray(weights, float)
    budgets = tuple(_optimum(g, w[g.rows], log_loss, noise) for g in groups)
    optima = [(b.compute_budget, b.num_params, b.num_tokens) for b in budgets if b.status is BudgetStatus.OK]
    if len(optima) < 2:
        return IsoflopFit(budgets=budgets, N_opt=None, D_opt=None)
    C, N_opt, D_opt = np.array(optima, float).T
    return IsoflopFit(budgets=budgets, N_opt=fit_power_law(C, N_opt), D_opt=fit_power_law(C, D_opt))


def align_to_budgets(
    N: ArrayLike, D: ArrayLike, L: ArrayLike, C: ArrayLike, budget: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Move every run to exactly its budget's compute, along its own D/N.

    Whole batches and figures read by eye leave runs some percent off their budget, and 5 % of compute is a quarter of
    a percent of loss, as much as the noise. The loss moves by the slope of L_opt(C), which is that at the optimum.

    Args:
        N: Parameters of each run, shape (runs,).
        D: Tokens.
        L: Loss.
        C: Compute [FLOPs].
        budget: The IsoFLOP group of each run [FLOPs]; nan for runs of none, which stay as they are.

    Returns:
        N, D and L of the moved runs; as given where fewer than two budgets have an optimum, where the loss does not
        fall with compute, or where the budgets are not those of C (more than 20 % off as a rule).
    """
    N, D, L = np.asarray(N, float), np.asarray(D, float), np.asarray(L, float)
    log_step = np.log(np.asarray(budget, float) / np.asarray(C, float))
    grouped = np.isfinite(log_step)
    optima = fit_isoflop(N, D, L, budget).optima
    if len(optima) < 2 or np.median(np.abs(log_step[grouped])) > _MAX_STEP:
        return N, D, L
    log_step = np.where(grouped & (np.abs(log_step) <= _MAX_STEP), log_step, 0.0)
    at, lowest = np.array([(b.compute_budget, b.loss) for b in optima], float).T
    try:
        frontier = fit_frontier(at, lowest).law if len(at) > 2 else fit_power_law(at, lowest).law
    except FitError:
        return N, D, L
    if frontier.exponent >= 0:
        return N, D, L
    # Half way between the two amounts of compute, where the chord has the tangent's slope.
    middle = np.exp(np.log(np.asarray(C, float)) + log_step / 2)
    slope = frontier.exponent * (frontier(middle) - frontier.offset)
    share = np.exp(log_step / (1 + fit_compute_rule(N, D, C).q))
    return N * share, D * share, L + slope * log_step


def parabola_bias(
    law: ParametricLaw, N: ArrayLike, D: ArrayLike, C: ArrayLike, budget: ArrayLike, *, log_loss: bool = False
) -> ParabolaBias | None:
    """What this grid and the fitted surface imply for the parabola: fit the surface's own, noiseless losses.

    A parabola is only locally right: on wide grids, or grids off the optimum, its minimum is not the surface's
    (lesson of Open-Athena/scaling-law-analysis). Give the budgets that the real fit used, nan for the others.

    Returns:
        The bias, or None where fewer than two budgets have an optimum even without noise.
    """
    noiseless = fit_isoflop(N, D, law.loss(N, D), budget, log_loss=log_loss)
    if noiseless.N_opt is None or noiseless.D_opt is None:
        return None
    rule = fit_compute_rule(N, D, C)
    largest = float(np.nanmax(np.asarray(budget, float)))
    N_true, D_true = law.optimum(largest, rule)
    a, b = law.exponents(rule)
    return ParabolaBias(
        compute_budget=largest,
        log_n=float(np.log(noiseless.N_opt.law(largest) / N_true)),
        log_d=float(np.log(noiseless.D_opt.law(largest) / D_true)),
        n_exponent=float(noiseless.N_opt.law.exponent - a),
        d_exponent=float(noiseless.D_opt.law.exponent - b),
        n_budgets=noiseless.N_opt.n,
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """The runs of one budget in order of size; ``first_of_size`` is where each distinct size begins."""

    compute_budget: float
    rows: NDArray[np.intp]
    first_of_size: NDArray[np.intp]
    log_params: FloatArray
    log_tokens: FloatArray
    y: FloatArray


@dataclass(frozen=True, slots=True)
class _Solved:
    """Both parabolas of a budget, one per weight vector, and how many sizes each weight vector sees."""

    by_params: Parabolas
    by_tokens: Parabolas
    n_sizes: NDArray[np.intp]
    argmin_at_edge: BoolArray

    @property
    def convex(self) -> BoolArray:
        return self.by_params.convex & self.by_tokens.convex

    @property
    def ok(self) -> BoolArray:
        return self.by_params.inside & self.by_tokens.inside


def _groups(N: ArrayLike, D: ArrayLike, L: ArrayLike, budget: ArrayLike, log_loss: bool) -> list[_Group]:
    N, D, L, budget = (np.asarray(v, float) for v in (N, D, L, budget))
    log_N, log_D, y = np.log(N), np.log(D), np.log(L) if log_loss else L
    groups = []
    for C in np.unique(budget[np.isfinite(budget)]):
        rows = np.flatnonzero(budget == C)
        rows = rows[np.argsort(log_N[rows], kind="stable")]
        groups.append(_Group(float(C), rows, _first_of_size(log_N[rows]), log_N[rows], log_D[rows], y[rows]))
    return groups


def _first_of_size(log_N: FloatArray) -> NDArray[np.intp]:
    """Where each size begins among ascending log N: as wide as one size may be, however many runs lie in between."""
    first = [0]
    while (after := int(np.searchsorted(log_N, log_N[first[-1]] + _SAME_SIZE, side="right"))) < len(log_N):
        first.append(after)
    return np.asarray(first, np.intp)


def _solve(group: _Group, w: FloatArray) -> _Solved:
    """Both parabolas under each weight vector; w has shape (replicates, runs of the group)."""
    size_weight = np.add.reduceat(w, group.first_of_size, axis=1)
    size_loss = np.add.reduceat(w * group.y, group.first_of_size, axis=1)
    seen = size_weight > 0
    # A size that no run of a replicate has cannot be its lowest.
    lowest = np.where(seen, size_loss / np.where(seen, size_weight, 1.0), np.inf).argmin(axis=1)
    smallest, largest = seen.argmax(axis=1), seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1)
    n_sizes = seen.sum(axis=1)
    return _Solved(
        by_params=fit_parabolas(group.log_params, group.y, w, n_sizes >= _MIN_SIZES),
        by_tokens=fit_parabolas(group.log_tokens, group.y, w, n_sizes >= _MIN_SIZES),
        n_sizes=n_sizes,
        argmin_at_edge=(lowest == smallest) | (lowest == largest),
    )


def _optimum(group: _Group, w: FloatArray, log_loss: bool, noise: float | None) -> BudgetOptimum:
    solved = _solve(group, w[None, :])
    n_runs = int((w > 0).sum())
    result = BudgetOptimum(
        compute_budget=group.compute_budget,
        status=BudgetStatus.TOO_FEW_SIZES,
        n_runs=n_runs,
        n_sizes=int(solved.n_sizes[0]),
    )
    if result.n_sizes < _MIN_SIZES:
        return result
    params, tokens = solved.by_params, solved.by_tokens
    result = replace(result, curvature=float(params.curvature[0]), argmin_at_edge=bool(solved.argmin_at_edge[0]))
    if not solved.ok[0]:
        outside = bool(solved.convex[0])
        return replace(result, status=BudgetStatus.MINIMUM_OUTSIDE if outside else BudgetStatus.NOT_CONVEX)
    loss = float(np.exp(params.minimum[0])) if log_loss else float(params.minimum[0])
    result = replace(
        result,
        status=BudgetStatus.OK,
        num_params=float(np.exp(params.place[0])),
        num_tokens=float(np.exp(tokens.place[0])),
        loss=loss,
    )
    if n_runs == _MIN_SIZES and noise is None:
        return result
    # Errors of log L become errors of L, and the other way round, by the factor L.
    to_loss = loss if log_loss else 1.0
    least = None if noise is None else noise * loss / to_loss
    (log_n_se,), (loss_se,) = params.errors(w[None, :], least)
    (log_d_se,), _ = tokens.errors(w[None, :], least)
    result = replace(result, log_n_se=float(log_n_se), log_d_se=float(log_d_se), loss_se=float(loss_se * to_loss))
    if n_runs == _MIN_SIZES:
        return result
    scatter = np.sqrt(np.average(params.residual[0] ** 2, weights=w) * n_runs / (n_runs - 3))
    return replace(result, residual_rms=float(scatter * to_loss / loss))
