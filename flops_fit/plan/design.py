"""The designed sweep: which runs leave the least error in the answer at the target, for the least compute.

A law in, a plan out. Runs are chosen by what they are expected to teach (``expected``) if any of several laws holds
(``beliefs``); the designs met on the way from cheap to dear (``search``) are the curve of error against cost, and a
plan is one of them. What may be spent does not change the curve, so that more money never buys a larger error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from flops_fit.errors import PlanError
from flops_fit.experiment import Experiment
from flops_fit.laws import SIX_ND, ComputeRule, FloatArray, ParametricLaw
from flops_fit.plan.beliefs import DOUBT, Belief, Noise, believe
from flops_fit.plan.expected import ExpectedError
from flops_fit.plan.search import FEWEST_DISTINCT, FEWEST_RUNS, Design, designs
from flops_fit.units import format_flops

TARGET_ERROR: Final = 0.1
MAX_RUNS: Final = 60

# How much an error of ln L_opt counts beside one of ln N_opt as large. Forms differ far more in the loss that they
# foretell than in the size: with 0 a design lets the loss go, with more it follows nothing else.
LOSS_WORTH: Final = 2.0

# Runs kept back at the largest budget, at sizes to either side of the expected optimum: which of the two is better
# says on which side it lies.
_HOLDOUT_SIZES: Final = (0.5, 2.0)

# The usual sweep, after Hoffmann et al. (2022): five budgets over two decades, nine sizes within a factor four.
_USUAL_BUDGETS: Final = np.geomspace(0.01, 1.0, 5)
_USUAL_SIZES: Final = np.geomspace(0.25, 4.0, 9)
# From parameters and tokens of runs, each of shape (runs,), to which of them can be trained.
Feasible = Callable[[FloatArray, FloatArray], Any]

_USUAL_COST: Final = float(_USUAL_BUDGETS.sum() * len(_USUAL_SIZES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedErrors:
    """Root mean square errors expected at the target.

    Attributes:
        size: Of ln N_opt.
        loss: Of ln L_opt.
    """

    size: float
    loss: float

    @classmethod
    def of(cls, squares: FloatArray) -> ExpectedErrors:
        """From their squares, shape (2,)."""
        size, loss = np.sqrt(squares)
        return cls(size=float(size), loss=float(loss))


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One design on the way: what other money would buy.

    Attributes:
        flops: Cost of its runs, without those kept back and those done already [FLOPs].
        n_runs: How many they are.
        errors: What they are expected to leave.
    """

    flops: float
    n_runs: int
    errors: ExpectedErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignedSweep:
    """Runs chosen for the least error at the target, and what that error is expected to be.

    Attributes:
        target_compute: Where the answer is wanted [FLOPs].
        cells: Runs to train, by cost.
        holdout: Runs to train at the largest budget and keep back: what the others foretell of them is the check.
        errors: Expected from the cells and the runs done already.
        errors_with_holdout: Expected once the runs kept back are fitted too.
        errors_by_belief: ``errors`` if the law of that name holds.
        usual_errors: What the usual grid (5 budgets, 9 sizes within a factor 4) would leave for the cost of the cells
            and the runs done already.
        usual_flops: What the usual grid would cost for ``errors.size``; None where no grid below the target has it.
        curve: Expected errors against cost, ascending in cost.
        n_done: How many runs were done already.
    """

    target_compute: float
    cells: tuple[Experiment, ...]
    holdout: tuple[Experiment, ...]
    errors: ExpectedErrors
    errors_with_holdout: ExpectedErrors
    errors_by_belief: dict[str, ExpectedErrors]
    usual_errors: ExpectedErrors
    usual_flops: float | None
    curve: tuple[CurvePoint, ...]
    n_done: int = 0

    @property
    def flops(self) -> float:
        """Cost of the cells [FLOPs]."""
        return _flops(self.cells)

    @property
    def total_flops(self) -> float:
        """Cost of the cells and of the runs kept back [FLOPs]."""
        return _flops((*self.cells, *self.holdout))

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        values = asdict(self)
        for name in ("cells", "holdout"):
            values[name] = [e.to_dict() for e in getattr(self, name)]
        return values | {"flops": self.flops, "total_flops": self.total_flops}


def design_cells(
    laws: ParametricLaw | Sequence[ParametricLaw],
    candidates: Sequence[Experiment],
    *,
    target_compute: float,
    target_error: float | None = None,
    max_flops: float | None = None,
    done: Sequence[Experiment] = (),
    noise: Noise | None = None,
    rule: ComputeRule = SIX_ND,
    doubt: float = DOUBT,
    loss_worth: float = LOSS_WORTH,
    holdout: bool = True,
    max_runs: int = MAX_RUNS,
    feasible: Feasible | None = None,
) -> DesignedSweep:
    """Choose the runs that tell N_opt at the target best.

    With ``target_error`` the cheapest that reach it; with ``max_flops`` alone the best that it buys.

    Args:
        laws: What is believed: one law, a family (draws of a fit), or several laws, the likeliest first.
        candidates: Runs there might be, as ``candidate_cells`` makes them.
        target_compute: Where the answer is wanted [FLOPs].
        target_error: Largest expected root mean square error of ln N_opt there; 0.1 where ``max_flops`` is not given.
        max_flops: Most that the new runs may cost, those kept back included [FLOPs].
        done: Runs done already: they count as information and cost nothing.
        noise: How runs scatter around the law.
        rule: What training costs, for the optimum at the target.
        doubt: Probability that the law's form is another one.
        loss_worth: What an error of ln L_opt counts beside one of ln N_opt as large.
        holdout: Keep two runs at the largest budget back; without, they are among the cells.
        max_runs: Most runs, those done already included and those kept back not.
        feasible: Which runs (N, D) can be trained at all, so that the usual grid is judged by those; None for any.

    Raises:
        PlanError: The target is not beyond the candidates, the candidates cannot determine a law, or the error asked
            for cannot be had.
    """
    _check_amounts(target_compute=target_compute, target_error=target_error, max_flops=max_flops, max_runs=max_runs)
    if max_flops is None and target_error is None:
        target_error = TARGET_ERROR
    known = {(e.size_param_value, e.num_tokens) for e in done}
    fresh = [e for e in candidates if (e.size_param_value, e.num_tokens) not in known]
    runs = [*done, *fresh]
    _check_candidates(fresh, runs, target_compute)
    N, D, C = (np.array([getattr(e, name) for e in runs], float) for name in ("num_params", "num_tokens", "flops"))
    beliefs = believe(laws, N, D, target=target_compute, rule=rule, doubt=doubt)
    problem = _Problem(beliefs, target_compute, noise or Noise(), max(e.compute_budget for e in runs), rule, feasible)
    expected = problem.expected(N, D, C, worth=loss_worth)

    kept = _at_largest(runs, len(done), beliefs, rule)
    reserved = _flops([runs[i] for i in kept]) if holdout else 0.0
    fixed = tuple(range(len(done))) + (() if holdout else kept)
    met = designs(expected, C, fixed=fixed, barred=kept if holdout else (), max_runs=max_runs)
    curve = _improving([_State.of(d, runs, len(done), expected) for d in met if _shows_lack_of_fit(d, runs)])
    state = _choose(curve, target_error, max_flops, reserved)

    back = kept if holdout else ()
    by_belief = expected.by_belief(expected.gather(state.design))
    return DesignedSweep(
        target_compute=target_compute,
        cells=tuple(sorted((runs[i] for i in state.design if i >= len(done)), key=lambda e: e.flops)),
        holdout=tuple(runs[i] for i in back),
        errors=ExpectedErrors.of(state.squares),
        errors_with_holdout=ExpectedErrors.of(expected.squares(expected.gather([*state.design, *back]))),
        errors_by_belief={b.name: ExpectedErrors.of(s) for b, s in zip(beliefs, by_belief, strict=True)},
        usual_errors=ExpectedErrors.of(problem.usual_squares((state.flops + _flops(done)) / _USUAL_COST)),
        usual_flops=problem.usual_flops(float(state.squares[0])),
        curve=tuple(
            CurvePoint(flops=s.flops, n_runs=len(s.design) - len(done), errors=ExpectedErrors.of(s.squares))
            for s in curve
        ),
        n_done=len(done),
    )


def _flops(runs: Sequence[Experiment]) -> float:
    return math.fsum(e.flops for e in runs)


@dataclass(frozen=True, slots=True)
class _Problem:
    """What is asked, whatever the runs."""

    beliefs: tuple[Belief, ...]
    target: float
    noise: Noise
    largest: float
    rule: ComputeRule
    feasible: Feasible | None

    def expected(self, N: FloatArray, D: FloatArray, C: FloatArray, *, worth: float = 1.0) -> ExpectedError:
        """Judges designs among these runs."""
        return ExpectedError(
            self.beliefs,
            N,
            D,
            C,
            target=self.target,
            noise=self.noise,
            largest=self.largest,
            rule=self.rule,
            worth=worth,
        )

    def usual_squares(self, largest: float) -> FloatArray:
        """Expected squared errors of the usual grid with that largest budget, centred on the laws' mean optimum."""
        C = np.repeat(largest * _USUAL_BUDGETS, len(_USUAL_SIZES))
        N = _mean_optimum(self.beliefs, C, self.rule) * np.tile(_USUAL_SIZES, len(_USUAL_BUDGETS))
        D = np.asarray(self.rule.tokens(C, N))
        if self.feasible is not None:
            can = self.feasible(N, D)
            N, D, C = N[can], D[can], C[can]
            if min(len(np.unique(N)), len(np.unique(D))) < FEWEST_DISTINCT or len(N) < FEWEST_RUNS:
                return np.full(2, np.inf)
        expected = self.expected(N, D, C)
        return expected.squares(expected.gather(range(len(C))))

    def usual_flops(self, square: float) -> float | None:
        """Cost of the cheapest usual grid with that squared error of ln N_opt; bisection in its largest budget."""
        low, high = self.largest * 1e-4, self.target
        if self.usual_squares(high)[0] > square:
            return None
        while high > 1.01 * low:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.usual_squares(middle)[0] <= square else (middle, high)
        return high * _USUAL_COST


@dataclass(frozen=True, slots=True)
class _State:
    """A design, the cost of its new runs [FLOPs], and the expected squared errors."""

    design: Design
    flops: float
    squares: FloatArray

    @classmethod
    def of(cls, design: Design, runs: Sequence[Experiment], n_done: int, expected: ExpectedError) -> _State:
        new = [runs[i] for i in design if i >= n_done]
        return cls(design, _flops(new), expected.squares(expected.gather(design)))


def _mean_optimum(beliefs: Sequence[Belief], C: Any, rule: ComputeRule) -> Any:
    """The geometric mean of N_opt over the laws."""
    return np.exp(np.mean([np.log(b.law.optimum(C, rule)[0]) for b in beliefs], axis=0))


def _at_largest(runs: Sequence[Experiment], n_done: int, beliefs: Sequence[Belief], rule: ComputeRule) -> Design:
    """The runs to set aside at the largest budget, to either side of its optimum; fewer where some are done."""
    top = max(e.compute_budget for e in runs)
    best = float(_mean_optimum(beliefs, top, rule))
    free = [i for i, e in enumerate(runs) if e.compute_budget == top and i >= n_done]
    done = sum(e.compute_budget == top for e in runs[:n_done])
    chosen: list[int] = []
    for factor in _HOLDOUT_SIZES[done:]:
        if free:
            chosen.append(min(free, key=lambda i: abs(math.log(runs[i].num_params / (best * factor)))))
            free.remove(chosen[-1])
    return tuple(chosen)


def _shows_lack_of_fit(design: Design, runs: Sequence[Experiment]) -> bool:
    distinct = min(len({getattr(runs[i], name) for i in design}) for name in ("num_params", "num_tokens"))
    return len(design) >= FEWEST_RUNS and distinct >= FEWEST_DISTINCT


def _improving(states: Sequence[_State]) -> list[_State]:
    """Those that no cheaper one equals in the error of ln N_opt, by cost."""
    best, kept = math.inf, []
    for state in sorted(states, key=lambda s: (s.flops, s.squares[0], s.design)):
        if state.squares[0] < best:
            best = float(state.squares[0])
            kept.append(state)
    return kept


def _choose(curve: list[_State], target_error: float | None, max_flops: float | None, reserved: float) -> _State:
    """The cheapest design that has the error, or the best that the money buys."""
    if not curve:
        raise PlanError(
            f"no design has {FEWEST_RUNS} runs with {FEWEST_DISTINCT} distinct N and D",
            hint="give more sizes or budgets",
        )
    affordable = [s for s in curve if max_flops is None or s.flops + reserved <= max_flops]
    if not affordable:
        raise PlanError(
            f"max_flops={format_flops(max_flops or 0)} buys no sweep: the cheapest that determines a law costs"
            f" {format_flops(curve[0].flops + reserved)}, of which {format_flops(reserved)} for the runs kept back",
            hint="raise max_flops, or lower the largest budget",
        )
    good = [s for s in curve if target_error is not None and s.squares[0] <= target_error**2]
    if target_error is None:
        return affordable[-1]
    if good and good[0].flops <= affordable[-1].flops:
        return good[0]
    best = affordable[-1] if good else curve[-1]
    reachable = f"{math.sqrt(best.squares[0]):.3g} for {format_flops(best.flops + reserved)}"
    if good:
        raise PlanError(
            f"an error of {target_error:g} in ln N_opt costs {format_flops(good[0].flops + reserved)};"
            f" max_flops={format_flops(max_flops or 0)} buys {reachable}",
            hint="raise max_flops or target_error",
        )
    raise PlanError(
        f"an error of {target_error:g} in ln N_opt cannot be had from these budgets, whatever is paid;"
        f" the least is {reachable}",
        hint="raise the largest budget, which brings the target nearer, or raise target_error",
    )


def _check_amounts(**amounts: float | None) -> None:
    bad = [f"{name}={v!r}" for name, v in amounts.items() if v is not None and not 0 < v < math.inf]
    if bad:
        raise PlanError(f"{', '.join(bad)} must be positive and finite")


def _check_candidates(fresh: Sequence[Experiment], runs: Sequence[Experiment], target: float) -> None:
    if not fresh:
        raise PlanError("there is no run to choose from", hint="see what was dropped; give other sizes or budgets")
    largest = max(e.compute_budget for e in runs)
    if target <= largest:
        raise PlanError(
            f"target_compute={format_flops(target)} is not beyond the pilots, the largest of which cost"
            f" {format_flops(largest)}",
            hint="lower the budgets to a hundredth of the target, or simply train at the target",
        )
    distinct = [len({getattr(e, name) for e in runs}) for name in ("num_params", "num_tokens")]
    needed = FEWEST_RUNS + len(_HOLDOUT_SIZES)
    if len(runs) < needed or min(distinct) < FEWEST_DISTINCT:
        raise PlanError(
            f"{len(runs)} possible runs with {distinct[0]} distinct N and {distinct[1]} distinct D cannot determine a"
            f" law and check it; {needed} with {FEWEST_DISTINCT} of each can",
            hint="give more sizes or budgets",
        )
