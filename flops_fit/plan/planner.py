"""From a model and budgets to a SweepPlan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import nn

from flops_fit.batch import Unit, batch_inputs, batch_samples, batch_targets, batch_tokens, batch_unit
from flops_fit.errors import PlanError
from flops_fit.experiment import DroppedCell, Experiment, FlopsRule, SweepPlan
from flops_fit.plan.count import Build, SizeCount, SizeCounter, constructor
from flops_fit.plan.grid import (
    COMFORTABLE_STEPS,
    EXPECTED_TOKENS_PER_PARAM,
    HALF_RANGE,
    MIN_STEPS,
    bracket,
    checked_budgets,
    ladder,
    largest_batch,
    log_spaced,
    pick_sizes,
    why_dropped,
)
from flops_fit.plan.rungs import BuildError, Loss
from flops_fit.units import format_count, format_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeChoice:
    """Which sizes a sweep may use.

    Attributes:
        num_sizes_per_budget: How many at each budget.
        min_size: Smallest value of the size parameter; None to find it.
        max_size: Largest value; None to find it.
        sizes: Exactly these, at every budget where they are feasible; wins over all of the above.
        size_multiple: Sizes are multiples of this; None for 64 at large widths and less at small ones.
    """

    num_sizes_per_budget: int = 7
    min_size: int | None = None
    max_size: int | None = None
    sizes: Sequence[int] | None = None
    size_multiple: int | None = None

    def __post_init__(self) -> None:
        counts = {"num_sizes_per_budget": self.num_sizes_per_budget, "min_size": self.min_size}
        counts |= {"max_size": self.max_size, "size_multiple": self.size_multiple}
        counts |= {f"sizes[{i}]": s for i, s in enumerate(() if self.sizes is None else self.sizes)}
        bad = [f"{k}={v!r}" for k, v in counts.items() if v is not None and not _is_count(v)]
        if bad or (self.sizes is not None and not len(self.sizes)):
            raise PlanError(f"sizes must be positive whole numbers; got {', '.join(bad) or 'an empty list'}")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise PlanError(f"min_size={self.min_size} is larger than max_size={self.max_size}")


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


@dataclass(kw_only=True)
class Planner:
    """Chooses the cells of a sweep.

    Attributes:
        counter: Builds and counts one size.
        choice: Which sizes may be used.
        rule: "6nd" or "counted".
        flops_per_param_per_token: The 6 of C = 6ND.
        tokens_per_sample: Tokens in one sample.
        batch_size: Global batch [samples], or None.
        min_steps: Cells with fewer optimiser steps are dropped.
    """

    counter: SizeCounter
    choice: SizeChoice
    rule: FlopsRule
    flops_per_param_per_token: float = 6.0
    tokens_per_sample: int = 1
    batch_size: int | None = None
    min_steps: int = MIN_STEPS
    dropped: list[DroppedCell] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def count(self, size: int) -> SizeCount | None:
        """The size, counted; None, with the reason noted, where it cannot be built."""
        try:
            return self.counter(size)
        except BuildError as error:
            if not any(d.size == size and d.compute_budget is None for d in self.dropped):
                self.dropped.append(DroppedCell(size=size, reason=error.problem))
            return None

    def flops_per_token(self, count: SizeCount) -> float:
        """Training cost of a token of this size [FLOPs].

        Raises:
            PlanError: FLOPs are to be counted and could not be.
        """
        if self.rule == "6nd":
            return self.flops_per_param_per_token * count.num_params
        return self.counter.flops_per_token(count.size)

    def sizes_for(self, C: float) -> list[int]:
        """The sizes to train at a budget, before cells are judged."""
        if self.choice.sizes is not None:
            return sorted({int(size) for size in self.choice.sizes})
        centre = self.expected_optimum(C)
        candidates = self._candidates(centre * HALF_RANGE)
        low, high = centre / HALF_RANGE, centre * HALF_RANGE
        if self.choice.min_size is not None:
            low = self.counter(candidates[0]).num_params
        if self.choice.max_size is not None:
            high = self.counter(candidates[-1]).num_params
        targets = log_spaced(low, max(low, high), self.choice.num_sizes_per_budget)
        # Where all sizes are outside the range the nearest is judged like any other cell, and the reason told.
        return pick_sizes(targets, candidates, self._num_params) or pick_sizes([centre], candidates, self._num_params)

    def expected_optimum(self, C: float) -> float:
        """N at which C buys EXPECTED_TOKENS_PER_PARAM; sqrt(C / 120) for C = 6ND."""
        N = math.sqrt(C / (6 * EXPECTED_TOKENS_PER_PARAM))
        if self.rule == "6nd":
            return N * math.sqrt(6 / self.flops_per_param_per_token)
        for _ in range(8):  # a fixed point: the cost per token changes slowly with N
            candidates = self._candidates(N)
            if not candidates:
                return N  # no size can be built, which the plan tells size by size
            count = self.counter(pick_sizes([N], candidates, self._num_params)[0])
            per_param = self.flops_per_token(count) / count.num_params
            N = math.sqrt(C / (per_param * EXPECTED_TOKENS_PER_PARAM))
        return N

    def _num_params(self, size: int) -> int | None:
        count = self.count(size)
        return None if count is None else count.num_params

    def _candidates(self, N: float) -> list[int]:
        """Sensible sizes up to the user's largest, or the first of at least N; the ends can be built."""
        if self.choice.sizes is not None:
            return [size for size in sorted({int(s) for s in self.choice.sizes}) if self._probe(size) is not None]
        smallest = self._smallest()
        largest = self.choice.max_size or bracket(self._probe, N, start=smallest)
        candidates = ladder(largest, self.choice.size_multiple, smallest)
        while self._probe(candidates[-1]) is None:
            candidates.pop()
        return candidates

    def _smallest(self) -> int:
        """The first sensible size that can be built, from the user's smallest on.

        Raises:
            PlanError: There is none; sizes far above a thousand are not tried, since building them may be costly.
        """
        lowest = self.choice.min_size or 1
        tried = ladder(self.choice.max_size or max(1024, 4 * lowest), self.choice.size_multiple, lowest)
        why_not = f"none is a multiple of {self.choice.size_multiple}"
        for size in tried:
            try:
                self.counter(size)
            except BuildError as error:
                why_not = error.problem
            else:
                return size
        largest = tried[-1] if tried else self.choice.max_size
        raise PlanError(f"no size from {lowest} to {largest} can be built; {why_not}", hint="give sizes=[...]")

    def _probe(self, size: int) -> int | None:
        """N of a size that nobody asked for; not being able to build it is no news."""
        try:
            return self.counter(size).num_params
        except BuildError:
            return None

    def experiments_for(self, C: float, seeds: Sequence[int], size_param: str) -> list[Experiment]:
        """The cells of one budget that can be trained; the others go to ``dropped``."""
        experiments = []
        for size in self.sizes_for(C):
            count = self.count(size)
            if count is None:
                continue
            cost = self.flops_per_token(count)
            tokens, steps = C / cost, None
            if self.batch_size is not None:
                per_step = self.batch_size * self.tokens_per_sample
                steps = max(1, round(tokens / per_step))
            reason = why_dropped(count.num_params, tokens, steps, self.min_steps)
            if reason is not None:
                cell = DroppedCell(size=size, reason=reason, compute_budget=C, num_params=count.num_params)
                self.dropped.append(cell)
                continue
            num_tokens = round(tokens) if steps is None else steps * per_step
            experiments += [
                Experiment(
                    experiment_id=f"C{format_flops(C, 6)}_{size_param}{size}_s{seed}",
                    compute_budget=C,
                    size_param_value=size,
                    num_params=count.num_params,
                    num_tokens=num_tokens,
                    flops_per_token=cost,
                    seed=seed,
                    steps=steps,
                    num_params_matmul=count.matmul,
                    num_params_total=count.total,
                    num_params_non_embedding=count.non_embedding,
                )
                for seed in seeds
            ]
        return experiments


def plan_sweep(
    model_cls: Callable[..., nn.Module],
    size_param: str,
    model_kwargs: dict[str, Any] | None = None,
    compute_budgets: Iterable[float] = (),
    *,
    num_sizes_per_budget: int = 7,
    min_size: int | None = None,
    max_size: int | None = None,
    sizes: Sequence[int] | None = None,
    size_multiple: int | None = None,
    flops: FlopsRule | None = None,
    flops_per_param_per_token: float = 6.0,
    example_batch: Any = None,
    batch_size: int | None = None,
    loss_fn: Callable[..., Any] | None = None,
    unit: Unit | None = None,
    seeds: Sequence[int] = (0,),
    min_steps: int = MIN_STEPS,
) -> SweepPlan:
    """Plan an IsoFLOP sweep (Hoffmann et al. 2022, arXiv:2203.15556, section 3.2) of any model class.

    Args:
        model_cls: Class or factory function of an ``nn.Module`` with ``num_params() -> int``.
        size_param: The constructor's argument that sets the size.
        model_kwargs: Its other arguments.
        compute_budgets: Training compute of each IsoFLOP group [FLOPs].
        num_sizes_per_budget: Sizes at each budget.
        min_size: Smallest size; found when not given.
        max_size: Largest size; found when not given.
        sizes: Exactly these sizes, at every budget where they are feasible.
        size_multiple: Sizes are multiples of this.
        flops: "6nd" for C = 6ND (default for tokens) or "counted" on the meta device (default for samples).
        flops_per_param_per_token: The 6 of C = 6ND.
        example_batch: One batch, (inputs, targets) or a mapping; tells the unit and allows counting.
        batch_size: Samples an optimiser step, over all devices; with it, D is whole batches.
        loss_fn: ``(outputs, targets) -> scalar``; allows counting.
        unit: "tokens" or "samples"; by default tokens for integer inputs of rank 2.
        seeds: Every cell is trained once for each.
        min_steps: Cells with fewer optimiser steps are dropped.

    Raises:
        PlanError: The model breaks its contract, a budget is not a positive number, or no cell is left.
    """
    fixed = dict(model_kwargs or {})
    build = constructor(model_cls, size_param, fixed)
    loss: Loss | None = None
    if loss_fn is not None:
        loss_function = loss_fn

        def loss(model: nn.Module, batch: Any) -> Any:
            return loss_function(model(batch_inputs(batch)), batch_targets(batch))

    choice = SizeChoice(
        num_sizes_per_budget=num_sizes_per_budget,
        min_size=min_size,
        max_size=max_size,
        sizes=sizes,
        size_multiple=size_multiple,
    )
    plan = make_plan(
        build,
        compute_budgets,
        choice=choice,
        size_param=size_param,
        model_name=getattr(model_cls, "__qualname__", str(model_cls)),
        model_kwargs=fixed,
        loss=loss,
        example_batch=example_batch,
        batch_size=batch_size,
        unit=unit,
        flops=flops,
        flops_per_param_per_token=flops_per_param_per_token,
        seeds=seeds,
        min_steps=min_steps,
    )
    if size_param in fixed:
        plan.warnings.append(f"model_kwargs also sets {size_param}={fixed[size_param]!r}; the planned sizes win")
    return plan


def make_plan(
    build: Build,
    compute_budgets: Iterable[float],
    *,
    choice: SizeChoice,
    size_param: str,
    model_name: str,
    model_kwargs: dict[str, Any],
    loss: Loss | None,
    example_batch: Any,
    batch_size: int | None,
    unit: Unit | None,
    flops: FlopsRule | None,
    flops_per_param_per_token: float,
    seeds: Sequence[int],
    min_steps: int,
    count_tokens: Callable[[Any], int] | None = None,
    auto_batch: bool = False,
) -> SweepPlan:
    """As ``plan_sweep``, for anything that builds a model from a size; ``auto_batch`` chooses the batch."""
    budgets = checked_budgets(compute_budgets)
    seeds = _checked_seeds(seeds)
    if batch_size is not None and not _is_count(batch_size):
        raise PlanError(f"batch_size={batch_size!r} must be a positive whole number of samples")
    unit = unit or (batch_unit(example_batch) if example_batch is not None else "tokens")
    per_sample = 1
    if example_batch is not None:
        tokens = count_tokens(example_batch) if count_tokens else batch_tokens(example_batch, unit)
        per_sample = max(1, round(tokens / batch_samples(example_batch)))
    can_count = example_batch is not None and loss is not None
    rule: FlopsRule = flops or ("counted" if unit == "samples" and can_count else "6nd")
    planner = Planner(
        counter=SizeCounter(build, example_batch, loss, per_sample),
        choice=choice,
        rule=rule,
        flops_per_param_per_token=flops_per_param_per_token,
        tokens_per_sample=per_sample,
        batch_size=batch_size,
        min_steps=min_steps,
    )
    if batch_size is None and auto_batch:
        smallest = budgets[0]
        optimum = EXPECTED_TOKENS_PER_PARAM * planner.expected_optimum(smallest)
        planner.batch_size = batch_size = largest_batch(optimum, per_sample)
    experiments: list[Experiment] = []
    for C in budgets:
        cells = planner.experiments_for(C, seeds, size_param)
        planner.warnings += _budget_warnings(planner, C, cells)
        experiments += cells
    if not experiments:
        reasons = dict.fromkeys(d.reason for d in planner.dropped)
        raise PlanError(
            f"no size can be trained at any of the budgets {', '.join(map(format_flops, budgets))}: "
            + "; ".join(list(reasons)[:4]),
            hint="raise the budgets, or give other sizes" + (", or a smaller batch" if batch_size else ""),
        )
    return SweepPlan(
        experiments=experiments,
        size_param=size_param,
        model_cls_name=model_name,
        model_kwargs=model_kwargs,
        compute_budgets=budgets,
        dropped=planner.dropped,
        warnings=planner.counter.notes + planner.warnings + _sweep_warnings(experiments),
        unit=unit,
        flops_rule=rule,
        batch_size=batch_size,
        tokens_per_sample=per_sample,
    )


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    bad = [s for s in seeds if isinstance(s, bool) or not isinstance(s, Integral) or not 0 <= s < 2**32]
    if bad or len(seeds) == 0:
        raise PlanError(f"seeds must be whole numbers from 0 to 2**32 - 1; got {', '.join(map(repr, bad)) or 'none'}")
    return list(dict.fromkeys(int(s) for s in seeds))


def _budget_warnings(planner: Planner, C: float, cells: list[Experiment]) -> list[str]:
    if not cells:
        reasons = dict.fromkeys(d.reason for d in planner.dropped if d.compute_budget in (C, None))
        return [f"budget {format_flops(C)} has no run: {'; '.join(list(reasons)[:3]) or 'no size was found'}"]
    warnings = []
    sizes = {e.num_params for e in cells}
    if len(sizes) < 3:
        warnings.append(f"budget {format_flops(C)} has {len(sizes)} sizes; a minimum needs at least 3, better 5")
    middle = min(cells, key=lambda e: abs(math.log(e.tokens_per_param / EXPECTED_TOKENS_PER_PARAM)))
    if middle.steps is not None and middle.steps < COMFORTABLE_STEPS:
        warnings.append(
            f"budget {format_flops(C)}: {middle.steps} optimiser steps near the expected optimum"
            f" (N = {format_count(middle.num_params)}); below {COMFORTABLE_STEPS} the law shows the schedule,"
            " use a smaller batch"
        )
    return warnings


def _sweep_warnings(experiments: list[Experiment]) -> list[str]:
    count = len({e.compute_budget for e in experiments})
    if count < 3:
        return [f"{count} budget{'s' * (count > 1)}: at least 3 are needed to check a forecast on held-out compute"]
    return []
