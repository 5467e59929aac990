"""From what a model and its data are to a designed sweep of them: ``design`` chooses among sizes that can be built.

In two rounds where that is possible: a few cheap runs correct what is believed before the rest is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from torch import nn

from flops_fit.batch import Unit
from flops_fit.errors import PlanError
from flops_fit.experiment import Design, DroppedCell, Experiment, FlopsRule, SweepPlan
from flops_fit.laws import ComputeRule, FloatArray, ParametricLaw
from flops_fit.plan.beliefs import Noise, usual_laws
from flops_fit.plan.cells import FIRST_STAGE_SHARE, HALF_RANGE, budget_ladder, candidate_cells, first_stage
from flops_fit.plan.count import SizeCount
from flops_fit.plan.design import DesignedSweep, design_cells
from flops_fit.plan.grid import (
    COMFORTABLE_STEPS,
    EXPECTED_TOKENS_PER_PARAM,
    MANY_EPOCHS,
    MAX_TOKENS_PER_PARAM,
    MIN_TOKENS_PER_PARAM,
    compute_of,
    log_spaced,
)
from flops_fit.plan.planner import Planner, planner_of
from flops_fit.plan.remarks import Cell, sweep_remarks
from flops_fit.units import format_flops

Laws = ParametricLaw | Sequence[ParametricLaw]

# Where no budgets are given, the largest pilot is a hundredth of the target, and half of what may be spent goes to two
# runs at the largest budget that are kept back.
_PILOT_SHARE: Final = 0.01
_SPENT_SHARE: Final = 0.25

# Sizes that are built to know all others by: N and the cost of a token are smooth in between.
_ANCHORS: Final = 12

# A first round dearer than this part of the whole is no cheap one, and nothing is gained by waiting for it.
_MOST_OF_A_FIRST_ROUND: Final = 0.15

_MOST_TRIES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a designed sweep is for.

    Attributes:
        target_compute: Where the answer is wanted [FLOPs].
        target_error: Largest root mean square error of ln N_opt there.
        max_flops: Most that the whole may cost [FLOPs].
        noise: Scatter of the log loss of runs at the largest budget, before any of it was seen.
    """

    target_compute: float
    target_error: float | None = None
    max_flops: float | None = None
    noise: float = Noise().sigma

    def __post_init__(self) -> None:
        amounts = {"target_compute": self.target_compute, "target_error": self.target_error}
        amounts |= {"max_flops": self.max_flops, "noise": self.noise}
        bad = [f"{name}={v!r}" for name, v in amounts.items() if v is not None and not 0 < v < math.inf]
        if bad:
            raise PlanError(f"{', '.join(bad)} must be positive and finite")

    def budgets(self) -> list[float]:
        """The budgets of the pilots where none are given, ascending [FLOPs]."""
        largest = _PILOT_SHARE * self.target_compute
        if self.max_flops is not None:
            largest = min(largest, _SPENT_SHARE * self.max_flops)
        return budget_ladder(largest)


@dataclass(kw_only=True)
class Designer:
    """Designs sweeps of one model.

    Attributes:
        planner: Builds and counts sizes.
        question: What is asked.
    """

    planner: Planner
    question: Question

    def __post_init__(self) -> None:
        if len(self.planner.seeds) > 1:
            raise PlanError(
                f"a designed sweep trains every run once; got the seeds {', '.join(map(str, self.planner.seeds))}",
                hint="give one seed, or plan a grid",
            )

    @cached_property
    def rule(self) -> ComputeRule:
        """What training costs."""
        if self.planner.search.rule == "6nd":
            return ComputeRule(k=self.planner.search.flops_per_param_per_token)
        N, cost = np.log([(c.num_params, self.planner.search.flops_per_token(c)) for c in self._anchors]).T
        if np.ptp(N) == 0:
            return ComputeRule(k=float(np.exp(cost[0] - N[0])))
        q, k = np.polyfit(N, cost, 1)
        return ComputeRule(k=float(np.exp(k)), q=float(q))

    @cached_property
    def prior(self) -> list[ParametricLaw]:
        """What is believed of a model of which nothing is known."""
        middle = math.sqrt(self.planner.budgets[0] * self.planner.budgets[-1])
        return usual_laws(middle, self.planner.search.expected_optimum(middle), self.rule)

    def outline(self) -> SweepPlan:
        """The sweep as it is expected to be: a first round, and what would follow if all were as expected.

        Raises:
            PlanError: No such sweep answers the question.
        """
        where = f"{EXPECTED_TOKENS_PER_PARAM:g} {self.planner.unit} a parameter"
        told = f"published exponents, with the best size near {where}"
        alone = self._designed(self.prior, ())
        try:
            first = self._first(alone)
        except PlanError as error:
            return self._plan(alone, (), told, note=f"all runs are chosen at once: {error.problem}")
        rest = self._designed(self.prior, first)
        return self._plan(rest, first, told, note="", is_final=False)

    def rest(self, laws: Laws, done: Sequence[Experiment], *, prior: str, noise: float, round: int) -> SweepPlan:
        """What follows runs that are done.

        Args:
            laws: What they say.
            done: They.
            prior: That in words.
            noise: Their scatter in log loss, at the largest budget.
            round: Of the new runs.

        Raises:
            PlanError: No runs answer the question.
        """
        return self._plan(self._designed(laws, done, noise), done, prior, round=round)

    @cached_property
    def _sizes(self) -> list[int]:
        """Sizes that may be used: up to the largest that the largest budget trains at all."""
        top = self.planner.budgets[-1]
        at_least = self.planner.search.expected_optimum(top) * math.sqrt(
            EXPECTED_TOKENS_PER_PARAM / MIN_TOKENS_PER_PARAM
        )
        return self.planner.search.candidates(at_least)

    @cached_property
    def _anchors(self) -> list[SizeCount]:
        wanted = log_spaced(self._sizes[0], self._sizes[-1], min(_ANCHORS, len(self._sizes)))
        nearest = {min(self._sizes, key=lambda size: abs(size - w)) for w in wanted}
        if self.planner.search.choice.sizes is not None:
            nearest = set(self._sizes)  # rows of a table are not smooth
        found = [c for size in sorted(nearest) if (c := self.planner.search.count(size)) is not None]
        grows = [c for i, c in enumerate(found) if not i or c.num_params > max(b.num_params for b in found[:i])]
        if len(grows) < 2:
            raise PlanError("fewer than two sizes can be built", hint="see what was dropped; give other sizes")
        return grows

    def _smooth(self, values: Sequence[float]) -> FloatArray:
        """A value of every size, from those of the anchors."""
        known = np.log([c.size for c in self._anchors])
        return np.asarray(np.exp(np.interp(np.log(self._sizes), known, np.log(values))))

    @cached_property
    def _candidates(self) -> list[Experiment]:
        """Runs there might be; N and cost are those of the sizes' neighbours."""
        N = dict(zip(self._sizes, self._smooth([c.num_params for c in self._anchors]).round().astype(int), strict=True))
        costs = [self.planner.search.flops_per_token(c) for c in self._anchors]
        cost = dict(zip(self._sizes, self._smooth(costs), strict=True))
        per_step = self.planner.batch_size and self.planner.batch_size * self.planner.tokens_per_sample
        cells, dropped = candidate_cells(
            self.prior,
            self.planner.budgets,
            sizes=self._sizes,
            num_params=lambda size: int(N[size]),
            flops_per_token=lambda size: float(cost[size]),
            tokens_per_step=per_step,
            rule=self.rule,
            half_range=HALF_RANGE,
            min_steps=self.planner.min_steps,
            size_param=self.planner.shapes.size_param,
            seed=self.planner.seeds[0],
        )
        samples = self.planner.num_samples
        most = math.inf if samples is None else MANY_EPOCHS * samples * self.planner.tokens_per_sample
        self.planner.dropped += [*dropped, *(self._repeated(e) for e in cells if e.num_tokens > most)]
        return [e for e in cells if e.num_tokens <= most]

    @staticmethod
    def _repeated(e: Experiment) -> DroppedCell:
        reason = f"it asks for the data more than {MANY_EPOCHS:g} times"
        return DroppedCell(
            size=e.size_param_value, reason=reason, compute_budget=e.compute_budget, num_params=e.num_params
        )

    def _designed(self, laws: Laws, done: Sequence[Experiment], noise: float | None = None) -> DesignedSweep:
        """The design, of sizes that were really built."""
        question = self.question
        spent = math.fsum(e.flops for e in done)
        left = None if question.max_flops is None else question.max_flops - spent
        if left is not None and left <= 0:
            raise PlanError(
                f"max_flops={format_flops(question.max_flops or 0)} is spent: the runs done cost {format_flops(spent)}",
                hint="raise max_flops",
            )
        known = {(e.size_param_value, e.compute_budget) for e in done}
        for _ in range(_MOST_TRIES):
            candidates = [e for e in self._candidates if (e.size_param_value, e.compute_budget) not in known]
            found = design_cells(
                laws,
                candidates,
                target_compute=question.target_compute,
                target_error=question.target_error,
                max_flops=left,
                done=done,
                noise=Noise(sigma=noise or question.noise),
                rule=self.rule,
                feasible=self._feasible,
            )
            refused = {e.size_param_value for e in (*found.cells, *found.holdout) if self._built(e) is None}
            if not refused:
                return found
            known |= {(size, C) for size in refused for C in self.planner.budgets}
        raise PlanError("too few of the sizes can be built", hint="see what was dropped; give sizes=[...]")

    def _feasible(self, N: FloatArray, D: FloatArray) -> Any:
        """Which runs could be candidates: of such a size, on so many tokens."""
        sizes, tokens = ([getattr(e, name) for e in self._candidates] for name in ("num_params", "num_tokens"))
        inside = (min(sizes) <= N) & (max(sizes) >= N) & (min(tokens) <= D) & (max(tokens) >= D)
        return inside & (D / N >= MIN_TOKENS_PER_PARAM) & (D / N <= MAX_TOKENS_PER_PARAM)

    def _first(self, whole: DesignedSweep) -> list[Experiment]:
        """The runs of the first round, as cheap a share of the whole as there is."""
        for share in (FIRST_STAGE_SHARE, _MOST_OF_A_FIRST_ROUND):
            try:
                stage = first_stage(self._candidates, plan_flops=whole.total_flops, share=share)
            except PlanError:
                if share == _MOST_OF_A_FIRST_ROUND:
                    raise
            else:
                return [e for cell in stage if (e := self._built(cell)) is not None]
        raise AssertionError("the last share returns or raises")

    def _built(self, wanted: Experiment) -> Experiment | None:
        """A candidate of a size that is really built, in whole steps; None where it cannot be."""
        count = self.planner.search.count(wanted.size_param_value)
        if count is None:
            return None
        cell = self.planner.cell(wanted.compute_budget, count)
        return self.planner.experiment(wanted.compute_budget, cell, wanted.seed)

    def _plan(
        self,
        found: DesignedSweep,
        done: Sequence[Experiment],
        prior: str,
        *,
        note: str = "",
        round: int | None = None,
        is_final: bool = True,
    ) -> SweepPlan:
        later = round or (2 if done else 1)
        chosen, kept = (
            [replace(e, round=later) for cell in cells if (e := self._built(cell)) is not None]
            for cells in (found.cells, found.holdout)
        )
        cells: dict[float, list[Cell]] = {}
        for e in (*done, *chosen, *kept):
            count = self.planner.search.count(e.size_param_value)
            assert count is not None
            cells.setdefault(e.compute_budget, []).append(self.planner.cell(e.compute_budget, count))
        design = Design(
            target_compute=self.question.target_compute,
            target_error=self.question.target_error,
            max_flops=self.question.max_flops,
            size_error=found.errors.size,
            loss_error=found.errors.loss,
            usual_size_error=_finite(found.usual_errors.size),
            usual_loss_error=_finite(found.usual_errors.loss),
            usual_flops=found.usual_flops,
            cells_flops=math.fsum(e.flops for e in (*done, *chosen)),
            holdout=tuple(e.experiment_id for e in kept),
            prior=prior,
            is_final=is_final,
        )
        order = sorted((*done, *chosen, *kept), key=lambda e: (e.compute_budget, e.num_params))
        return self.planner.plan_of(order, [*([note] if note else []), *sweep_remarks(cells)], design=design)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def design_sweep(
    model_cls: Callable[..., nn.Module],
    size_param: str,
    model_kwargs: dict[str, Any] | None = None,
    *,
    target_compute: float | str,
    target_error: float | None = None,
    max_flops: float | str | None = None,
    compute_budgets: Iterable[float | str] | None = None,
    noise: float = Noise().sigma,
    min_size: int | None = None,
    max_size: int | None = None,
    sizes: Sequence[int] | Sequence[Mapping[str, Any]] | None = None,
    size_multiple: int | None = None,
    width: Mapping[str, Any] | None = None,
    flops: FlopsRule | None = None,
    flops_per_param_per_token: float = 6.0,
    example_batch: Any = None,
    batch_size: int | None = None,
    loss_fn: Callable[..., Any] | None = None,
    unit: Unit | None = None,
    seed: int = 0,
    min_steps: int = COMFORTABLE_STEPS,
) -> SweepPlan:
    """Plan the cheapest sweep that tells the best size at a target, or the best that a sum buys.

    Runs are chosen by what they are expected to teach (Fisher information), with the noise of runs, with what small
    runs do differently, and with other forms of the law taken into account; ``plan.design`` says what error that is
    expected to leave, beside that of the usual grid.

    Args:
        model_cls: Class or factory function of an ``nn.Module`` with ``num_params() -> int``.
        size_param: The constructor's argument that sets the size.
        model_kwargs: Its other arguments.
        target_compute: Where the answer is wanted, such as 1e21 or "10 PF-days" [FLOPs].
        target_error: Largest expected root mean square error of ln N_opt there; 0.1 where ``max_flops`` is not given.
        max_flops: Most that all runs may cost [FLOPs].
        compute_budgets: Of the runs; three decades below a hundredth of the target when not given [FLOPs].
        noise: Scatter of the log loss of runs at the largest budget.
        min_size: Smallest size; found when not given.
        max_size: Largest size; found when not given.
        sizes: Only these sizes, as for ``plan_sweep``.
        size_multiple: Sizes are multiples of this.
        width: Makes the size parameter a depth that a width follows.
        flops: "6nd" for C = 6ND (default for tokens) or "counted" on the meta device (default for samples).
        flops_per_param_per_token: The 6 of C = 6ND.
        example_batch: One batch, (inputs, targets) or a mapping; tells the unit and allows counting.
        batch_size: Samples an optimiser step, over all devices; with it, D is whole batches.
        loss_fn: ``(outputs, targets) -> scalar``; allows counting.
        unit: "tokens" or "samples"; by default tokens for integer inputs of rank 2.
        seed: Of every run.
        min_steps: Runs with fewer optimiser steps are not considered: their law is the schedule's.

    Raises:
        PlanError: The model breaks its contract, the target is not beyond the budgets, or the error cannot be had.
    """
    question = Question(
        target_compute=compute_of("target_compute", target_compute),
        target_error=target_error,
        max_flops=None if max_flops is None else compute_of("max_flops", max_flops),
        noise=noise,
    )
    planner = planner_of(
        model_cls,
        size_param,
        model_kwargs,
        question.budgets() if compute_budgets is None else compute_budgets,
        num_sizes_per_budget=1,
        min_size=min_size,
        max_size=max_size,
        sizes=sizes,
        size_multiple=size_multiple,
        width=width,
        flops=flops,
        flops_per_param_per_token=flops_per_param_per_token,
        example_batch=example_batch,
        batch_size=batch_size,
        loss_fn=loss_fn,
        unit=unit,
        seeds=[seed],
        min_steps=min_steps,
    )
    return Designer(planner=planner, question=question).outline()
