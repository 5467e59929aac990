"""From a model and budgets to a SweepPlan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import nn

from flops_fit.batch import Unit, batch_inputs, batch_samples, batch_targets, batch_tokens, batch_unit
from flops_fit.errors import PlanError
from flops_fit.experiment import DroppedCell, Experiment, FlopsRule, SeedsAt, SweepPlan
from flops_fit.plan.count import Build, SizeCount, SizeCounter, constructor
from flops_fit.plan.grid import (
    ENOUGH_SIZES,
    ENOUGH_SPAN,
    EXPECTED_TOKENS_PER_PARAM,
    HALF_RANGE,
    MAX_EPOCHS,
    MAX_TOKENS_PER_PARAM,
    MIN_STEPS,
    MIN_TOKENS_PER_PARAM,
    checked_budgets,
    first_of_each_kind,
    largest_batch,
    repeated_budgets,
    why_dropped,
)
from flops_fit.plan.remarks import Cell, budget_remarks, span, sweep_remarks
from flops_fit.plan.rungs import Loss
from flops_fit.plan.sizes import SizeChoice, SizeSearch, is_count
from flops_fit.shapes import Shapes, shapes_of
from flops_fit.units import format_flops


@dataclass(kw_only=True)
class Planner:
    """Chooses the cells of a sweep.

    Attributes:
        search: Finds sizes.
        shapes: What a size sets of the model.
        model_name: Name of the model class or factory.
        model_kwargs: Its fixed arguments.
        budgets: Compute budgets, ascending [FLOPs].
        seeds: The first is that of every cell.
        repeated: Budgets whose cells are trained with the other seeds too.
        unit: What D counts.
        tokens_per_sample: Tokens in one sample.
        batch_size: Global batch [samples], or None.
        num_samples: Training samples, where their number is known.
        min_steps: Cells with fewer optimiser steps are dropped.
        tag: Ends the names of runs: a hash of what, beside budget, size and seed, decides their results.
        rate: From parameters to the peak learning rate of a run; None for the module's own.
        cells: Those chosen so far, by budget.
        dropped: Cells left out.
        warnings: What the reader should know of them.
        notes: What the reader should know of every plan.
    """

    search: SizeSearch
    shapes: Shapes
    model_name: str
    model_kwargs: dict[str, Any]
    budgets: list[float]
    seeds: Sequence[int] = (0,)
    repeated: Sequence[float] = ()
    unit: Unit = "tokens"
    tokens_per_sample: int = 1
    batch_size: int | None = None
    num_samples: int | None = None
    min_steps: int = MIN_STEPS
    tag: str = ""
    rate: Callable[[float], float] | None = None
    cells: dict[float, list[Cell]] = field(default_factory=dict)
    dropped: list[DroppedCell] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells_for(self, C: float) -> list[Cell]:
        """The cells of one budget that can be trained; the others go to ``dropped``."""
        sizes = self.search.sizes_for(C)
        cells = self.trainable(C, sizes)
        wanted = min(ENOUGH_SIZES, self.search.choice.num_sizes_per_budget)
        if self.search.choice.sizes is None and (len(cells) < wanted or span(cells) < ENOUGH_SPAN):
            # One side of the expected optimum cannot be trained: a curve needs its width all the same.
            moved = self.trainable(C, self._moved_sizes(C, sizes))
            if (len(moved), span(moved)) > (len(cells), span(cells)):
                return moved
        return cells

    def _moved_sizes(self, C: float, sizes: Sequence[int]) -> list[int]:
        """Sizes over a range of N as near to the expected optimum as what can be trained allows."""
        counts = [count for size in sizes if (count := self.search.count(size)) is not None]
        if not counts:
            return []
        # D goes nearly as 1/N, so that one cell tells the limits of all; 5 % are left for what is not exactly so.
        cell = self.cell(C, counts[len(counts) // 2])
        N, ratio = cell.count.num_params, cell.exact_tokens / cell.count.num_params
        low = 1.05 * N * max(math.sqrt(ratio / MAX_TOKENS_PER_PARAM), (cell.epochs or 0) / MAX_EPOCHS)
        high = (
            N
            / 1.05
            * min(
                math.sqrt(ratio / MIN_TOKENS_PER_PARAM),
                math.inf if cell.steps is None else cell.steps / max(1, self.min_steps),
            )
        )
        if low > high:
            return []
        centre = min(max(self.search.expected_optimum(C), low * HALF_RANGE), high / HALF_RANGE)
        return self.search.sizes_within(max(low, centre / HALF_RANGE), min(high, centre * HALF_RANGE))

    def trainable(self, C: float, sizes: Sequence[int]) -> list[Cell]:
        """These sizes at a budget, less those that cannot teach anything, which go to ``dropped``."""
        cells: list[Cell] = []
        for size in sizes:
            count = self.search.count(size)
            if count is None:
                continue
            cell = self.cell(C, count)
            reason = why_dropped(count.num_params, cell.exact_tokens, cell.steps, self.min_steps, cell.epochs)
            if reason is None:
                cells.append(cell)
            elif not any(d.size == size and d.compute_budget == C for d in self.dropped):
                self.dropped.append(
                    DroppedCell(size=size, reason=reason, compute_budget=C, num_params=count.num_params)
                )
        return cells

    def cell(self, C: float, count: SizeCount) -> Cell:
        """A size at a budget, whether or not it can be trained."""
        cost = self.search.flops_per_token(count)
        tokens, steps = C / cost, None
        num_tokens = round(tokens)
        if self.batch_size is not None:
            per_step = self.batch_size * self.tokens_per_sample
            steps = max(1, round(tokens / per_step))
            num_tokens = steps * per_step
        epochs = num_tokens / (self.num_samples * self.tokens_per_sample) if self.num_samples else None
        return Cell(count=count, cost=cost, exact_tokens=tokens, num_tokens=num_tokens, steps=steps, epochs=epochs)

    def grid(self) -> SweepPlan:
        """The usual sweep: sizes round the expected optimum of every budget.

        Raises:
            PlanError: No cell is left.
        """
        experiments: list[Experiment] = []
        for C in self.budgets:
            cells = self.cells_for(C)
            self.warnings += budget_remarks(C, cells, [*self.search.dropped, *self.dropped])
            self.cells[C] = cells
            experiments += [self.experiment(C, cell, seed) for cell in cells for seed in self.seeds_at(C)]
        if not experiments:
            reasons = first_of_each_kind(d.reason for d in [*self.search.dropped, *self.dropped])
            raise PlanError(
                f"no size can be trained at any of the budgets {', '.join(map(format_flops, self.budgets))}: "
                + "; ".join(reasons[:4]),
                hint="raise the budgets, or give other sizes" + (", or a smaller batch" if self.batch_size else ""),
            )
        return self.plan_of(experiments, self.warnings + sweep_remarks(self.cells))

    def seeds_at(self, C: float) -> Sequence[int]:
        """The seeds of a budget's cells."""
        return self.seeds if C in self.repeated else self.seeds[:1]

    def experiment(self, C: float, cell: Cell, seed: int) -> Experiment:
        """One run."""
        size = cell.count.size
        return Experiment(
            experiment_id=f"C{format_flops(C, 6)}_{self.shapes.name(size)}_s{seed}" + (self.tag and f"_{self.tag}"),
            compute_budget=C,
            size_param_value=size,
            num_params=cell.count.num_params,
            num_tokens=cell.num_tokens,
            flops_per_token=cell.cost,
            seed=seed,
            steps=cell.steps,
            num_params_matmul=cell.count.matmul,
            num_params_total=cell.count.total,
            num_params_non_embedding=cell.count.non_embedding,
            size_kwargs=self.shapes.extra(size),
            lr=None if self.rate is None else self.rate(cell.count.num_params),
        )

    def plan_of(self, experiments: list[Experiment], warnings: Sequence[str], **also: Any) -> SweepPlan:
        """A plan of these runs; ``also`` are further attributes of it."""
        odd = [] if self.shapes.table else self.search.warnings(self.shapes.size_param)
        return SweepPlan(
            experiments=experiments,
            size_param=self.shapes.size_param,
            model_cls_name=self.model_name,
            model_kwargs=self.model_kwargs,
            compute_budgets=self.budgets,
            dropped=[*self.search.dropped, *self.dropped],
            warnings=[*self.notes, *self.search.counter.notes, *odd, *warnings],
            unit=self.unit,
            flops_rule=self.search.rule,
            batch_size=self.batch_size,
            tokens_per_sample=self.tokens_per_sample,
            **also,
        )


def plan_sweep(
    model_cls: Callable[..., nn.Module],
    size_param: str,
    model_kwargs: dict[str, Any] | None = None,
    compute_budgets: Iterable[float | str] = (),
    *,
    num_sizes_per_budget: int = 7,
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
    seeds: Sequence[int] = (0,),
    seeds_at: SeedsAt = "small",
    min_steps: int | None = None,
) -> SweepPlan:
    """Plan an IsoFLOP sweep (Hoffmann et al. 2022, arXiv:2203.15556, section 3.2) of any model class.

    Args:
        model_cls: Class or factory function of an ``nn.Module`` with ``num_params() -> int``.
        size_param: The constructor's argument that sets the size.
        model_kwargs: Its other arguments.
        compute_budgets: Training compute of each IsoFLOP group, such as 1e18 or "10 PF-days" [FLOPs].
        num_sizes_per_budget: Sizes at each budget.
        min_size: Smallest size; found when not given.
        max_size: Largest size; found when not given.
        sizes: Exactly these sizes, at every budget where they are feasible: values of the size parameter, or rows
            of arguments such as {"d_model": 64, "n_layer": 2}.
        size_multiple: Sizes are multiples of this.
        width: Makes the size parameter a depth that a width follows: {"param": "d_model", "aspect_ratio": 64,
            "head_dim": 64}.
        flops: "6nd" for C = 6ND (default for tokens) or "counted" on the meta device (default for samples).
        flops_per_param_per_token: The 6 of C = 6ND.
        example_batch: One batch, (inputs, targets) or a mapping; tells the unit and allows counting.
        batch_size: Samples an optimiser step, over all devices; with it, D is whole batches.
        loss_fn: ``(outputs, targets) -> scalar``; allows counting.
        unit: "tokens" or "samples"; by default tokens for integer inputs of rank 2.
        seeds: The first is that of every cell; with the others the cells of some budgets are trained again, which
            tells the noise between runs.
        seeds_at: Which budgets those are: "small" for the smaller half, or "all".
        min_steps: Cells with fewer optimiser steps are dropped; 150 when not given.

    Raises:
        PlanError: The model breaks its contract, a budget is not a positive number, or no cell is left.
    """
    return planner_of(
        model_cls,
        size_param,
        model_kwargs,
        compute_budgets,
        num_sizes_per_budget=num_sizes_per_budget,
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
        seeds=seeds,
        seeds_at=seeds_at,
        min_steps=min_steps,
    ).grid()


def planner_of(
    model_cls: Callable[..., nn.Module],
    size_param: str,
    model_kwargs: dict[str, Any] | None,
    compute_budgets: Iterable[float | str],
    *,
    num_sizes_per_budget: int,
    min_size: int | None,
    max_size: int | None,
    sizes: Sequence[int] | Sequence[Mapping[str, Any]] | None,
    size_multiple: int | None,
    width: Mapping[str, Any] | None,
    example_batch: Any,
    loss_fn: Callable[..., Any] | None,
    **options: Any,
) -> Planner:
    """What plans sweeps of a model class; the arguments are those of ``plan_sweep``."""
    fixed = dict(model_kwargs or {})
    shapes = shapes_of(size_param, sizes, width)
    build = constructor(model_cls, shapes, fixed)
    loss: Loss | None = None
    if loss_fn is not None:
        loss_function = loss_fn

        def loss(model: nn.Module, batch: Any) -> Any:
            return loss_function(model(batch_inputs(batch)), batch_targets(batch))

    choice = SizeChoice(
        num_sizes_per_budget=num_sizes_per_budget,
        min_size=min_size,
        max_size=max_size,
        sizes=shapes.values,
        size_multiple=size_multiple,
    )
    planner = make_planner(
        build,
        compute_budgets,
        choice=choice,
        shapes=shapes,
        model_name=getattr(model_cls, "__qualname__", str(model_cls)),
        model_kwargs=fixed,
        loss=loss,
        example_batch=example_batch,
        **options,
    )
    twice = [f"{name}={fixed[name]!r}" for name in shapes.names if name in fixed]
    if twice:
        planner.notes.append(f"model_kwargs also sets {', '.join(twice)}; the planned sizes win")
    return planner


def make_planner(
    build: Build,
    compute_budgets: Iterable[float | str],
    *,
    choice: SizeChoice,
    shapes: Shapes,
    model_name: str,
    model_kwargs: dict[str, Any],
    loss: Loss | None,
    example_batch: Any,
    batch_size: int | None,
    unit: Unit | None,
    flops: FlopsRule | None,
    flops_per_param_per_token: float,
    seeds: Sequence[int],
    min_steps: int | None,
    seeds_at: SeedsAt = "small",
    count_tokens: Callable[[Any], int] | None = None,
    num_samples: int | None = None,
    auto_batch: bool = False,
) -> Planner:
    """What plans sweeps of anything that builds a model from a size; the arguments are those of ``plan_sweep``.

    ``auto_batch`` chooses the batch; with ``num_samples``, the length of the training data, repeats are told.
    """
    budgets = checked_budgets(compute_budgets)
    seeds = _checked_seeds(seeds)
    repeated = repeated_budgets(budgets, seeds_at)
    if batch_size is not None and not is_count(batch_size):
        raise PlanError(f"batch_size={batch_size!r} must be a positive whole number of samples")
    unit = unit or (batch_unit(example_batch) if example_batch is not None else "tokens")
    per_sample = 1
    if example_batch is not None:
        tokens = count_tokens(example_batch) if count_tokens else batch_tokens(example_batch, unit)
        per_sample = max(1, round(tokens / batch_samples(example_batch)))
    can_count = example_batch is not None and loss is not None
    rule: FlopsRule = flops or ("counted" if unit == "samples" and can_count else "6nd")
    counter = SizeCounter(build, example_batch, loss, per_sample)
    search = SizeSearch(counter=counter, choice=choice, rule=rule, flops_per_param_per_token=flops_per_param_per_token)
    if batch_size is None and auto_batch:
        optimum = EXPECTED_TOKENS_PER_PARAM * search.expected_optimum(budgets[0])
        batch_size = largest_batch(optimum, per_sample)
    return Planner(
        search=search,
        shapes=shapes,
        model_name=model_name,
        model_kwargs=model_kwargs,
        budgets=budgets,
        seeds=seeds,
        repeated=repeated,
        unit=unit,
        tokens_per_sample=per_sample,
        batch_size=batch_size,
        num_samples=num_samples,
        min_steps=MIN_STEPS if min_steps is None else min_steps,
    )


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    bad = [s for s in seeds if isinstance(s, bool) or not isinstance(s, Integral) or not 0 <= s < 2**32]
    if bad or len(seeds) == 0:
        raise PlanError(f"seeds must be whole numbers from 0 to 2**32 - 1; got {', '.join(map(repr, bad)) or 'none'}")
    return list(dict.fromkeys(int(s) for s in seeds))
