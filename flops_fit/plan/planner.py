"""From a model and budgets to a SweepPlan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from flops_fit.batch import Unit, batch_samples, batch_tokens, batch_unit
from flops_fit.errors import PlanError
from flops_fit.experiment import DroppedCell, Experiment, FlopsRule, SweepPlan
from flops_fit.plan.count import Build, BuildError, Loss, SizeCount, SizeCounter, constructor
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
        counts |= {f"sizes[{i}]": s for i, s in enumerate(self.sizes or ())}
        bad = [f"{k}={v!r}" for k, v in counts.items() if v is not None and (not isinstance(v, int) or v < 1)]
        if bad or (self.sizes is not None and not self.sizes):
            raise PlanError(f"sizes must be positive whole numbers; got {', '.join(bad) or 'an empty list'}")
        if self.min_size is not None and self.max_size is not None and self.min_size > self.max_size:
            raise PlanError(f"min_size={self.min_size} is larger than max_size={self.max_size}")


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
        if not count.flops_per_sample:
            raise PlanError(
                f"the FLOPs of size {count.size} could not be counted: {count.why_not_counted or 'none were seen'}",
                hint="use flops='6nd', or let the model and the loss run on the meta device",
            )
        return count.flops_per_sample / self.tokens_per_sample

    def sizes_for(self, C: float) -> list[int]:
        """The sizes to train at a budget, before cells are judged."""
        if self.choice.sizes is not None:
            return sorted(set(self.choice.sizes))
        low, high = self._range(C)
        params = self._params_between(low, high)
        return pick_sizes(log_spaced(low, high, self.choice.num_sizes_per_budget), params)

    def _range(self, C: float) -> tuple[float, float]:
        """The range of N: what the user bounded, else a factor HALF_RANGE to either side of the expected optimum."""
        centre = self.expected_optimum(C)
        low, high = centre / HALF_RANGE, centre * HALF_RANGE
        for bound in (self.choice.min_size, self.choice.max_size):
            if bound is not None and (count := self.count(bound)) is not None:
                low, high = (count.num_params, high) if bound == self.choice.min_size else (low, count.num_params)
        return (low, max(low, high))

    def expected_optimum(self, C: float) -> float:
        """N at which C buys EXPECTED_TOKENS_PER_PARAM; sqrt(C / 120) for C = 6ND."""
        N = math.sqrt(C / (6 * EXPECTED_TOKENS_PER_PARAM))
        if self.rule == "6nd":
            return N * math.sqrt(6 / self.flops_per_param_per_token)
        for _ in range(8):  # a fixed point: the cost per token changes slowly with N
            sizes = self._params_between(N / 2, N * 2)
            near = min(sizes, key=lambda s: abs(math.log(s[1] / N)))
            count = self.counter(near[0])
            per_param = self.flops_per_token(count) / count.num_params
            N = math.sqrt(C / (per_param * EXPECTED_TOKENS_PER_PARAM))
        return N

    def _params_between(self, low: float, high: float) -> list[tuple[int, int]]:
        """(size, N) of every buildable sensible size in the range and one to either side, by bisection."""

        def num_params(size: int) -> int | None:
            count = self.count(size)
            return None if count is None else count.num_params

        lowest, largest = self.choice.min_size or 1, self.choice.max_size
        if largest is None:
            largest = bracket(num_params, high, start=max(lowest, self.choice.size_multiple or 1))
        candidates = ladder(largest, self.choice.size_multiple, lowest) or [largest]
        first, last = 0, len(candidates)
        while last - first > 1:  # the last candidate that is still below the range
            middle = (first + last) // 2
            below = next((n for s in candidates[middle:last] if (n := num_params(s)) is not None), math.inf)
            first, last = (middle, last) if below < low else (first, middle)
        found: list[tuple[int, int]] = []
        for size in candidates[first:]:
            N = num_params(size)
            if N is not None:
                found.append((size, N))
                if N > high:
                    break
        if not found:
            raise PlanError(
                f"no size between {lowest} and {largest} can be built",
                hint="; ".join(dict.fromkeys(d.reason for d in self.dropped)) or None,
            )
        return found

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
            return loss_function(model(batch[0]), batch[1])

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
    unit = unit or (batch_unit(example_batch) if example_batch is not None else "tokens")
    per_sample = 1
    if example_batch is not None:
        tokens = count_tokens(example_batch) if count_tokens else batch_tokens(example_batch, unit)
        per_sample = max(1, round(tokens / batch_samples(example_batch)))
    can_count = example_batch is not None and loss is not None
    rule: FlopsRule = flops or ("counted" if unit == "samples" and can_count else "6nd")
    planner = Planner(
        counter=SizeCounter(build, example_batch, loss),
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
        warnings=planner.warnings + _sweep_warnings(experiments),
        unit=unit,
        flops_rule=rule,
        batch_size=batch_size,
        tokens_per_sample=per_sample,
    )


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
