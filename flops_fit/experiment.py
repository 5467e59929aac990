"""What planning hands to training: experiments, and the plan that holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal, Self

from flops_fit.errors import PlanError
from flops_fit.markup import html_lines, html_table, text_table
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    import pandas as pd

FlopsRule = Literal["6nd", "counted"]
SeedsAt = Literal["small", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One planned training run.

    Attributes:
        experiment_id: Unique in the sweep; also its directory name.
        compute_budget: The budget it belongs to [FLOPs].
        size_param_value: What the size parameter is set to.
        num_params: What the model's own ``num_params()`` says [parameters].
        num_tokens: Training data, summed over ranks [tokens or samples]; whole batches where the batch is known.
        flops_per_token: Training cost of one token or sample, forward and backward [FLOPs].
        seed: Seed of initial weights and data order.
        steps: Optimiser steps, or None where the batch is not known.
        num_params_matmul: Parameters that take part in a matrix product (None if not counted).
        num_params_total: All parameters.
        num_params_non_embedding: All but those of embedding look-ups and of the output head.
        size_kwargs: All arguments of this size, where it is more than the size parameter.
        round: 1 for what was planned before anything was trained, more for what the results of the rounds before it
            have asked for.
        lr: Peak learning rate of this run, where a probe has found it; None for the module's own.
    """

    experiment_id: str
    compute_budget: float
    size_param_value: int
    num_params: int
    num_tokens: int
    flops_per_token: float
    seed: int = 0
    steps: int | None = None
    num_params_matmul: int | None = None
    num_params_total: int | None = None
    num_params_non_embedding: int | None = None
    size_kwargs: dict[str, Any] | None = None
    round: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.num_params <= 0 or self.num_tokens <= 0 or not self.flops_per_token > 0:
            raise PlanError(
                f"{self.experiment_id}: num_params={self.num_params}, num_tokens={self.num_tokens} and"
                f" flops_per_token={self.flops_per_token} must be positive",
                hint=f"{self.compute_budget:.1e} FLOPs is too little for this size; raise the budget or drop the size",
            )

    @property
    def tokens_per_param(self) -> float:
        """D / N."""
        return self.num_tokens / self.num_params

    @property
    def flops(self) -> float:
        """Training compute of exactly these tokens [FLOPs]; differs from the budget by less than half a batch."""
        return self.flops_per_token * self.num_tokens

    def size_arguments(self, size_param: str) -> dict[str, Any]:
        """What the model of this run is built with, beside what is the same for all."""
        return {size_param: self.size_param_value} if self.size_kwargs is None else dict(self.size_kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, derived values included."""
        values = asdict(self) | {"tokens_per_param": self.tokens_per_param, "flops": self.flops}
        plain = {"size_kwargs": None, "round": 1, "lr": None}
        return {k: v for k, v in values.items() if k not in plain or v != plain[k]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedCell:
    """A size, or one size at one budget, that will not be trained.

    Attributes:
        size: Value of the size parameter.
        reason: Why, in words.
        compute_budget: The budget [FLOPs], or None where the size is dropped everywhere.
        num_params: Size of the model, where it could be built.
    """

    size: int
    reason: str
    compute_budget: float | None = None
    num_params: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What a designed sweep was asked for, and what its runs are expected to leave unknown.

    Attributes:
        target_compute: Where the answer is wanted [FLOPs].
        target_error: Largest error of ln N_opt there that was asked for, or None.
        max_flops: Most that the whole may cost, or None [FLOPs].
        size_error: Expected root mean square error of ln N_opt at the target.
        loss_error: The same of ln L_opt.
        usual_size_error: What the usual grid (five budgets, nine sizes) would leave of the first for as much;
            None where it cannot be trained for that.
        usual_loss_error: Of the second.
        usual_flops: What the usual grid would cost for ``size_error``; None where none below the target has it.
        cells_flops: Compute of the runs that were chosen [FLOPs].
        holdout: Ids of the runs at the largest budget that the forecast is checked on; they are counted apart.
        prior: What the runs were chosen by, in words.
        is_final: False while the first round may still change what follows it.
    """

    target_compute: float
    target_error: float | None
    max_flops: float | None
    size_error: float
    loss_error: float
    usual_size_error: float | None
    usual_loss_error: float | None
    usual_flops: float | None
    cells_flops: float
    holdout: tuple[str, ...]
    prior: str
    is_final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """Every run of a sweep, and every cell that was dropped with the reason.

    Attributes:
        experiments: The runs, by budget, size and seed.
        size_param: Name of the model's size parameter.
        model_cls_name: Name of the model class or factory.
        model_kwargs: Its fixed arguments.
        compute_budgets: As asked, ascending [FLOPs].
        dropped: Cells left out.
        warnings: What the reader should know before paying.
        unit: What is counted in ``num_tokens``: tokens or samples.
        flops_rule: "6nd" for C = 6ND, "counted" for FLOPs counted on the model.
        batch_size: Global batch [samples], or None if not known.
        tokens_per_sample: Tokens in one sample; 1 where the unit is samples.
        design: What a designed sweep expects of itself; None for a grid.
        probe: Runs that find the learning rate, before the others; none where it is given.
    """

    experiments: list[Experiment]
    size_param: str
    model_cls_name: str
    model_kwargs: dict[str, Any]
    compute_budgets: list[float]
    dropped: list[DroppedCell] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unit: Literal["tokens", "samples"] = "tokens"
    flops_rule: FlopsRule = "6nd"
    batch_size: int | None = None
    tokens_per_sample: int = 1
    design: Design | None = None
    probe: list[Experiment] = field(default_factory=list)

    @property
    def num_experiments(self) -> int:
        """How many runs."""
        return len(self.experiments)

    @property
    def total_flops(self) -> float:
        """Training compute of all runs, those of the learning-rate probe among them [FLOPs]."""
        return math.fsum(e.flops for e in [*self.experiments, *self.probe])

    @property
    def repeats(self) -> list[Experiment]:
        """Runs that train a cell again with a further seed, of whose scatter the noise is told."""
        cells = set()
        again = []
        for run in self.experiments:
            cell = run.compute_budget, run.size_param_value
            if cell in cells:
                again.append(run)
            cells.add(cell)
        return again

    def __repr__(self) -> str:
        return f"<SweepPlan of {self._title}>"

    def __str__(self) -> str:
        """A budget a row; every run is in ``to_frame()``."""
        return "\n".join([self._title, "", *text_table(*self._table), *(f"note: {line}" for line in self._notes)])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return f"<p><b>{escape(self._title)}</b></p>{html_table(*self._table)}{html_lines(self._notes)}"

    @property
    def _title(self) -> str:
        return f"{self.model_cls_name}: {self.num_experiments} runs, {format_flops(self.total_flops)} FLOPs in all"

    @property
    def _table(self) -> tuple[list[str], list[list[object]]]:
        rows: list[list[object]] = []
        for C in self.compute_budgets:
            runs = [e for e in self.experiments if e.compute_budget == C]
            if runs:
                cost = format_flops(math.fsum(e.flops for e in runs))
                rows.append([format_flops(C), len(runs), *_ranges(runs), cost])
        return ["budget", "runs", self.size_param, "parameters", self.unit, "FLOPs"], rows

    @property
    def _notes(self) -> list[str]:
        cells = "1 cell was" if len(self.dropped) == 1 else f"{len(self.dropped)} cells were"
        dropped = [f"{cells} left out; see dropped"] if self.dropped else []
        probe = [f"{len(self.probe)} short runs find the learning rate first; see probe"] if self.probe else []
        return [*self.warnings, *probe, *dropped]

    def to_frame(self) -> pd.DataFrame:
        """One row per experiment."""
        import pandas as pd

        return pd.DataFrame([e.to_dict() for e in self.experiments])

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``plan.json`` holds them; an argument of the model that is no plain value by its name."""
        values = asdict(replace(self, model_kwargs={})) | {"model_kwargs": _plain(self.model_kwargs)}
        values |= {"experiments": [e.to_dict() for e in self.experiments]}
        values |= {"probe": [e.to_dict() for e in self.probe]}
        return values | {"num_experiments": self.num_experiments, "total_flops": self.total_flops}


def _ranges(runs: list[Experiment]) -> list[str]:
    """Size, N and D from the least to the most."""
    sizes = sorted({e.size_param_value for e in runs})
    ends = [str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"]
    for values in ([e.num_params for e in runs], [e.num_tokens for e in runs]):
        low, high = format_count(min(values)), format_count(max(values))
        ends.append(low if low == high else f"{low} to {high}")
    return ends


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(getattr(value, "__qualname__", type(value).__qualname__))
