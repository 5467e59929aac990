"""The ``sweep:`` group of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from flops_fit.errors import PlanError
from flops_fit.experiment import FlopsRule, SeedsAt
from flops_fit.shapes import WidthRule, shapes_of
from flops_fit.units import Count, Flops, Seconds

LauncherName = Literal["local", "inline", "slurm", "ray", "commands"]

PlanName = Literal["grid", "designed"]

# Slurm counts in minutes, may signal a minute early, and a run is asked to save 90 s before its time is up.
_SHORTEST_TIME = 300


@dataclass(kw_only=True)
class SlurmOptions:
    """What a run asks of Slurm.

    Attributes:
        partition: Where to run; the cluster's own choice when not given.
        time_limit: Time of one attempt, such as "4h"; a run that needs more saves, is queued again and goes on
            [seconds].
        gpus: GPUs on each node of a run; one a device where the trainer's accelerator is gpu or cuda, else none.
        cpus: CPU cores for each device of a run, its data loading included.
        memory: Main memory of a run on each node, such as 16G.
        extra: Further options of sbatch, such as --account=lab or --qos=high.
        setup: Shell lines before the run, such as "module load cuda".
    """

    partition: str | None = None
    time_limit: Seconds | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: str | None = None
    extra: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            self.time_limit = Seconds(self.time_limit)
        if self.time_limit is not None and self.time_limit < _SHORTEST_TIME:
            raise PlanError(
                f"slurm.time_limit={self.time_limit:g} s is too short: runs are asked to save 90 s before its end",
                hint="give five minutes or more",
            )
        if (self.gpus is not None and self.gpus < 0) or (self.cpus is not None and self.cpus < 1):
            raise PlanError(f"slurm.gpus={self.gpus} must not be negative, slurm.cpus={self.cpus} must be positive")
        refused = [flag for flag in self.extra if not flag.startswith("-")]
        if refused:
            raise PlanError(
                f"slurm.extra: {', '.join(refused)} is no option of sbatch", hint="write each as --name=value"
            )


@dataclass(kw_only=True)
class RayOptions:
    """What a run asks of Ray.

    Attributes:
        address: Of the cluster, such as "auto" or ray://head:10001; a Ray of this machine alone when not given.
        gpus: GPUs of a run, also a part of one such as 0.25; one a device where the trainer's accelerator is gpu or
            cuda, else none.
        cpus: CPU cores of a run.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: float = 1.0

    def __post_init__(self) -> None:
        if not (self.gpus or 0) >= 0 or not self.cpus >= 0:
            raise PlanError(f"ray.gpus={self.gpus} and ray.cpus={self.cpus} must not be negative")


_Options = TypeVar("_Options", SlurmOptions, RayOptions)


def options_from(kind: type[_Options], given: Any) -> _Options:
    """Options from a mapping of their keys; None for the defaults.

    Raises:
        PlanError: There is no such key, or a value is nonsense.
    """
    if isinstance(given, kind):
        return given
    try:
        return kind(**(given or {}))
    except TypeError as error:
        name = kind.__name__.removesuffix("Options").lower()
        raise PlanError(f"{name}: {error}", hint=f"its keys are {', '.join(kind.__dataclass_fields__)}") from None


@dataclass(kw_only=True)
class SweepConfig:
    """What to plan and how to run it.

    Attributes:
        size_param: The network's argument that sets its size.
        compute_budgets: Training compute of each IsoFLOP group, such as 1e18 or "10 PF-days"; a designed sweep finds
            its own, three decades below a hundredth of the target [FLOPs].
        plan: "grid" for sizes round the expected optimum of every budget; "designed" for the runs that tell the best
            size at ``target_compute`` best.
        target_compute: Of a designed sweep: where the answer is wanted [FLOPs].
        target_error: Of a designed sweep: largest expected root mean square error of ln N_opt there; 0.1 where
            ``max_flops`` is not given.
        max_flops: Of a designed sweep: most that all its runs may cost [FLOPs].
        noise: Of a designed sweep: scatter of the log loss between runs at its largest budget.
        rounds: Of a grid: 2 adds sizes, once it is trained, at budgets whose minimum is not inside their sizes.
        output_dir: Where everything is written; the same command on it resumes.
        num_sizes_per_budget: Sizes at each budget.
        min_size: Smallest size; found when not given.
        max_size: Largest size; found when not given.
        sizes: Exactly these sizes, at every budget where they are feasible: values of the size parameter, or rows
            of arguments such as {d_model: 64, n_layer: 2}, which win over the model's own.
        size_multiple: Sizes are multiples of this.
        width: Makes the size parameter a depth that a width follows.
        flops: "6nd" for C = 6ND (default for tokens) or "counted" on the model (default for samples).
        flops_per_param_per_token: The 6 of C = 6ND.
        seeds: The first is that of every cell; with the others the cells of some budgets are trained again, which
            tells the noise between runs. [0] when not given.
        seeds_at: Which budgets those are: "small" for the smaller half, or "all".
        min_steps: Cells with fewer optimiser steps are dropped; 150 for a grid, 500 for a designed sweep, whose runs
            are farther from the optimum.
        launcher: "local" for processes of this machine, "inline" for this process, "slurm" or "ray" for a cluster;
            "commands" trains nothing and writes one command a run to OUTPUT_DIR/commands.txt.
        jobs: Runs at a time; as many as there is room for when not given.
        runs_per_gpu: Most runs that the local launcher puts on one GPU; several only where their memory is known to
            fit, from what completed runs have used.
        slurm: What a run asks of Slurm.
        ray: What a run asks of Ray.
        checkpoint_interval: Time between checkpoints, such as 60 or "5min" [seconds].
        loggers: Lightning loggers that every run gets beside its metrics.csv, each {class_path: ..., init_args: ...};
            name, group, tags and folder are filled in.
    """

    size_param: str
    compute_budgets: list[Flops] | None = None
    plan: PlanName = "grid"
    target_compute: Flops | None = None
    target_error: float | None = None
    max_flops: Flops | None = None
    noise: float = 0.003
    rounds: int = 1
    output_dir: Path = Path("outputs")
    num_sizes_per_budget: int = 7
    min_size: Count | None = None
    max_size: Count | None = None
    sizes: list[int] | list[dict[str, Any]] | None = None
    size_multiple: Count | None = None
    width: WidthRule | None = None
    flops: FlopsRule | None = None
    flops_per_param_per_token: float = 6.0
    seeds: list[int] | None = None
    seeds_at: SeedsAt = "small"
    min_steps: Count | None = None
    launcher: LauncherName = "local"
    jobs: int | None = None
    runs_per_gpu: int = 1
    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    ray: RayOptions = field(default_factory=RayOptions)
    checkpoint_interval: Seconds = Seconds(60)  # noqa: RUF009
    loggers: list[dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        # From YAML, and from Python where that is shorter, the nested options come as mappings.
        self.width = shapes_of(self.size_param, self.sizes, self.width).width
        self.slurm = options_from(SlurmOptions, self.slurm)
        self.ray = options_from(RayOptions, self.ray)
        self._check_plan()
        if self.jobs is not None and self.jobs < 1:
            raise PlanError(f"jobs={self.jobs} must be at least 1")
        if self.runs_per_gpu < 1:
            raise PlanError(f"runs_per_gpu={self.runs_per_gpu} must be at least 1")
        if self.launcher not in get_args(LauncherName):
            choices = ", ".join(get_args(LauncherName))
            raise PlanError(f"launcher={self.launcher!r} is unknown", hint=f"choose one of {choices}")
        if not self.checkpoint_interval >= 0:
            raise PlanError(f"checkpoint_interval={self.checkpoint_interval} must not be negative")
        if self.flops not in (None, "6nd", "counted"):
            raise PlanError(f"flops={self.flops!r} is unknown", hint="choose 6nd or counted")

    def _check_plan(self) -> None:
        if self.plan not in get_args(PlanName):
            raise PlanError(f"plan={self.plan!r} is unknown", hint=f"choose {' or '.join(get_args(PlanName))}")
        asked = {"target_compute": self.target_compute, "target_error": self.target_error, "max_flops": self.max_flops}
        given = [name for name, value in asked.items() if value is not None]
        if self.plan == "grid" and given:
            raise PlanError(
                f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} for a designed sweep, and plan is grid",
                hint="add plan: designed, or leave these out (--max-flops of `fit` limits one call)",
            )
        if self.plan == "grid" and self.compute_budgets is None:
            raise PlanError(
                "compute_budgets is missing: the training compute of each IsoFLOP group",
                hint="such as compute_budgets: [1e17, 3e17, 1e18], or plan: designed with a target_compute",
            )
        if self.plan == "designed" and self.target_compute is None:
            raise PlanError(
                "plan: designed needs target_compute, where the answer is wanted", hint="such as target_compute: 1e21"
            )
        if self.rounds < 1 or (self.plan == "designed" and self.rounds != 1):
            raise PlanError(
                f"rounds={self.rounds} must be at least 1, and 1 for a designed sweep, which plans its own second round"
            )
