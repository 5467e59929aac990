"""The ``sweep:`` group of a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flops_fit.errors import PlanError
from flops_fit.experiment import FlopsRule
from flops_fit.units import Flops, Seconds


@dataclass(kw_only=True)
class SweepConfig:
    """What to plan and how to run it.

    Attributes:
        size_param: The network's argument that sets its size.
        compute_budgets: Training compute of each IsoFLOP group, such as 1e18 or "10 PF-days" [FLOPs].
        output_dir: Where everything is written; the same command on it resumes.
        num_sizes_per_budget: Sizes at each budget.
        min_size: Smallest size; found when not given.
        max_size: Largest size; found when not given.
        sizes: Exactly these sizes, at every budget where they are feasible.
        size_multiple: Sizes are multiples of this.
        flops: "6nd" for C = 6ND (default for tokens) or "counted" on the model (default for samples).
        flops_per_param_per_token: The 6 of C = 6ND.
        seeds: Every cell is trained once for each.
        min_steps: Cells with fewer optimiser steps are dropped.
        launcher: "local" for processes of this machine, "inline" for this process.
        jobs: Runs at a time; one a core when not given.
        checkpoint_interval: Time between checkpoints, such as 60 or "5min" [seconds].
    """

    size_param: str
    compute_budgets: list[Flops]
    output_dir: Path = Path("outputs")
    num_sizes_per_budget: int = 7
    min_size: int | None = None
    max_size: int | None = None
    sizes: list[int] | None = None
    size_multiple: int | None = None
    flops: FlopsRule | None = None
    flops_per_param_per_token: float = 6.0
    seeds: list[int] | None = None
    min_steps: int = 150
    launcher: Literal["local", "inline"] = "local"
    jobs: int | None = None
    checkpoint_interval: Seconds = Seconds(60)  # noqa: RUF009

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        if self.jobs is not None and self.jobs < 1:
            raise PlanError(f"jobs={self.jobs} must be at least 1")
        if self.launcher not in ("local", "inline"):
            raise PlanError(f"launcher={self.launcher!r} is unknown", hint="choose local or inline")
        if not self.checkpoint_interval >= 0:
            raise PlanError(f"checkpoint_interval={self.checkpoint_interval} must not be negative")
        if self.flops not in (None, "6nd", "counted"):
            raise PlanError(f"flops={self.flops!r} is unknown", hint="choose 6nd or counted")
