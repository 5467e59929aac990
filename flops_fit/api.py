"""The stages, chained: plan, train, analyse, answer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flops_fit.errors import FitError, FlopsFitError, PlanError, RunError
from flops_fit.experiment import FlopsRule, SeedsAt, SweepPlan
from flops_fit.fit import Warning_, analyze_runs
from flops_fit.fit.rows import Excluded
from flops_fit.result import Result
from flops_fit.runs.directory import SweepDirectory
from flops_fit.shapes import shapes_of
from flops_fit.sweep.config import LauncherName, PlanName, RayOptions, SlurmOptions, SweepConfig, options_from
from flops_fit.sweep.ranks import is_extra_rank
from flops_fit.units import Count, Seconds

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from flops_fit.batch import Unit
    from flops_fit.runs.rows import Table
    from flops_fit.study import Study
    from flops_fit.sweep.progress import Progress
    from flops_fit.train.module import ScalingModule, Schedule

logger = logging.getLogger(__name__)


def analyze(
    source: str | Path | pd.DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    loss_unit: Literal["nats", "bits", "bpb"] | None = None,
    bytes_per_token: float | None = None,
    n_convention: Literal["total", "matmul", "non_embedding"] | None = None,
    **options: Any,
) -> Result:
    """Fit the laws to finished runs, trained here or anywhere.

    A sweep's directory also gets runs.csv, analysis.json and draws.npz, so that ``load`` needs no refit.

    Args:
        source: A sweep's directory, a table (CSV, TSV, JSONL, also .gz, "-" for standard input), or a DataFrame.
        columns: Of a table: canonical column name to the table's own, where it is not found by itself.
        loss_unit: Of a table: what its loss is measured in.
        bytes_per_token: Of a table: turns bits per byte into nats per token.
        n_convention: Which count of parameters is N, where there are several.
        options: Those of ``flops_fit.fit.analyze_runs``.

    Raises:
        DataError: The table cannot be read, or a run's files are not whole.
        FitError: The runs cannot determine any law.
    """
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        if n_convention is not None:
            options["n_convention"] = f"num_params_{n_convention}"
        return _analyze_sweep(SweepDirectory(Path(source)), options)
    from flops_fit.runs.foreign import read_table

    table = read_table(
        source, columns=columns, loss_unit=loss_unit, n_convention=n_convention, bytes_per_token=bytes_per_token
    )
    return analyze_table(table, **options)


def analyze_table(table: Table, **options: Any) -> Result:
    """Fit the laws to a table that was read; rows the reader left out are among the analysis's ``excluded``."""
    from flops_fit.fit.mixed import mixed_runs

    analysis = analyze_runs(table.frame, **options)
    left_out = [Excluded(run, reason) for run, reason in table.dropped]
    warnings = (*analysis.warnings, *mixed_runs(analysis, table.further(analysis.rows.run_id)))
    analysis = dataclasses.replace(analysis, excluded=(*analysis.excluded, *left_out), warnings=warnings)
    return Result(analysis, mapping=table.mapping, notes=tuple(table.notes), table=table.frame)


def _analyze_sweep(sweep: SweepDirectory, options: dict[str, Any]) -> Result:
    from flops_fit.runs.table import read_runs, write_runs

    table = read_runs(sweep)
    if not (table["state"] == "completed").any():
        raise FitError(
            f"no run of {sweep.path} is completed", hint=f"train them first; `flops-fit status {sweep.path}` shows why"
        )
    write_runs(sweep, table)
    analysis = analyze_runs(table, unit=sweep.plan["unit"], **options)
    carried = [Warning_("plan", text) for text in sweep.plan["warnings"]]
    analysis = dataclasses.replace(analysis, warnings=(*analysis.warnings, *carried))
    analysis.save(sweep.path)
    return Result(analysis, table=table, directory=sweep.path)


def find_optimal(
    *,
    model_cls: Callable[..., nn.Module],
    model_size_param: str,
    compute_budgets: Iterable[float | str] | None = None,
    model_kwargs: dict[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    val_dataset: Any = None,
    output_dir: str | Path = "outputs",
    train: bool = True,
    batch_size: int | None = None,
    lr: float | Literal["auto"] = "auto",
    schedule: Schedule = "linear",
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.0,
    unit: Unit | None = None,
    module_cls: type[ScalingModule] | None = None,
    trainer: dict[str, Any] | None = None,
    num_sizes_per_budget: int = 7,
    min_size: int | None = None,
    max_size: int | None = None,
    sizes: Sequence[int] | Sequence[Mapping[str, Any]] | None = None,
    size_multiple: int | None = None,
    width: Mapping[str, Any] | None = None,
    flops: FlopsRule | None = None,
    flops_per_param_per_token: float = 6.0,
    seeds: Sequence[int] = (0,),
    seeds_at: SeedsAt = "small",
    min_steps: int | None = None,
    plan: PlanName = "grid",
    target_compute: float | str | None = None,
    target_error: float | None = None,
    max_flops: float | str | None = None,
    noise: float = 0.003,
    rounds: int = 1,
    launcher: LauncherName = "local",
    jobs: int | None = None,
    runs_per_gpu: int = 1,
    slurm: Mapping[str, Any] | None = None,
    ray: Mapping[str, Any] | None = None,
    checkpoint_interval: float | str = 60.0,
    loggers: list[dict[str, Any]] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Result | SweepPlan:
    """Find how big a model should be, and on how much data, for any amount of compute.

    Plans a sweep, trains every run that ``output_dir`` does not hold yet, fits the laws, and answers.

    Args:
        model_cls: Class or factory function of an ``nn.Module`` with ``num_params() -> int``; or a LightningModule's
            class, which without ``loss_fn`` is trained by its own steps and optimizer (``LightningAdapter``).
        model_size_param: The argument of it that sets the size.
        compute_budgets: Training compute of each IsoFLOP group, such as 1e18 or "10 PF-days"; a designed sweep finds
            its own [FLOPs].
        model_kwargs: Other arguments of the model.
        dataset: A Dataset, IterableDataset, DataLoader or LightningDataModule, or a function without arguments
            that returns one; items are pairs (inputs, targets) or mappings. A function can also be called by other
            processes, so that runs are trained side by side.
        loss_fn: ``(outputs, targets) -> scalar``.
        val_dataset: Held-out data, likewise, or several sets by name, of which the first gives the loss; without it a
            part of ``dataset`` is held out.
        output_dir: Where everything is written; the same call on it resumes.
        train: False only plans.
        batch_size: Samples an optimiser step, over all devices; chosen when not given.
        lr: Peak learning rate, handed to the model's ``param_groups(lr)`` where it has that. "auto" finds it by a
            probe before the sweep: one rate where those groups make of it what each size needs, else one a size.
        schedule: "linear" to zero over each run's own steps, "cosine" to a tenth, or "constant".
        warmup_fraction: Share of each run's steps with a rising rate.
        weight_decay: AdamW's.
        unit: What D counts: "tokens" or "samples"; by default tokens for integer inputs of rank 2.
        module_cls: A subclass of ``ScalingModule`` to train with.
        trainer: Further arguments of Lightning's Trainer, such as {"accelerator": "gpu"}.
        num_sizes_per_budget: Sizes at each budget.
        min_size: Smallest size; found when not given.
        max_size: Largest size; found when not given.
        sizes: Exactly these sizes, at every budget where they are feasible: values of the size parameter, or rows
            of arguments such as {"d_model": 64, "n_layer": 2}, which win over ``model_kwargs``.
        size_multiple: Sizes are multiples of this.
        width: Makes the size parameter a depth that a width follows: {"param": "d_model", "aspect_ratio": 64,
            "head_dim": 64}.
        flops: "6nd" for C = 6ND (default for tokens) or "counted" on the model (default for samples).
        flops_per_param_per_token: The 6 of C = 6ND.
        seeds: The first is that of every cell; with the others the cells of some budgets are trained again, which
            tells the noise between runs.
        seeds_at: Which budgets those are: "small" for the smaller half, or "all".
        min_steps: Cells with fewer optimiser steps are dropped; 150 for a grid, 500 for a designed sweep.
        plan: "grid", or "designed" for the runs that tell the best size at ``target_compute`` best.
        target_compute: Of a designed sweep: where the answer is wanted [FLOPs].
        target_error: Of a designed sweep: largest expected root mean square error of ln N_opt there; 0.1 where
            ``max_flops`` is not given.
        max_flops: Of a designed sweep: most that all its runs may cost [FLOPs].
        noise: Of a designed sweep: scatter of the log loss between runs at its largest budget.
        rounds: Of a grid: 2 adds sizes, once it is trained, at budgets whose minimum is not inside their sizes.
        launcher: "local" for processes of this machine, "inline" for this process, "slurm" or "ray" for a cluster;
            "commands" trains nothing and writes one command a run to OUTPUT_DIR/commands.txt.
        jobs: Runs at a time; as many as there is room for when not given.
        runs_per_gpu: Most runs that the local launcher puts on one GPU; several only where their memory is known to
            fit, from what completed runs have used.
        slurm: What a run asks of Slurm, such as {"partition": "gpu", "time_limit": "4h"}; keys of ``SlurmOptions``.
        ray: What a run asks of Ray, such as {"address": "auto", "gpus": 0.25}; keys of ``RayOptions``.
        checkpoint_interval: Time between checkpoints [seconds].
        loggers: Lightning loggers that every run gets, each {"class_path": ..., "init_args": {...}}.
        metrics: Further numbers of every evaluation by name: torchmetrics, as {"class_path": ..., "init_args": {...}}
            so that other processes can build them too, or instances.

    Returns:
        The Result; the SweepPlan where ``train`` is False or dataset or loss is missing.

    Raises:
        PlanError: The sweep cannot be trained as asked.
        DataError: The data is not what a model can be trained on.
        RunError: No run, or too few, could be trained.
        FitError: The completed runs cannot determine any law.
        SystemExit: With code 0, in all but the first of several processes that torchrun or srun has started.
    """
    from flops_fit.plan.count import constructor
    from flops_fit.plan.designed import design_sweep
    from flops_fit.plan.grid import compute_of
    from flops_fit.plan.planner import plan_sweep
    from flops_fit.probe import find_rates
    from flops_fit.rounds import check_kept, conduct
    from flops_fit.study import plan_study
    from flops_fit.train.adapter import module_class
    from flops_fit.train.module import ScalingModule, check_loss
    from flops_fit.train.recipe import PythonRecipe
    from flops_fit.train.reference import is_loading_script

    if is_loading_script():
        raise PlanError(
            "find_optimal was called while another process imported this script to find its classes",
            hint="put the call under `if __name__ == '__main__':`",
        )
    budgets = None if compute_budgets is None else [compute_of("compute_budgets", b) for b in compute_budgets]
    target = None if target_compute is None else compute_of("target_compute", target_compute)
    most = None if max_flops is None else compute_of("max_flops", max_flops)
    if loss_fn is not None:
        check_loss(loss_fn)
    module_cls = module_cls or module_class(model_cls, loss_fn)
    has_loss = loss_fn is not None or module_cls is not None
    shapes = shapes_of(model_size_param, sizes, width)
    config = SweepConfig(
        size_param=model_size_param,
        compute_budgets=budgets,
        plan=plan,
        target_compute=target,
        target_error=target_error,
        max_flops=most,
        noise=noise,
        rounds=rounds,
        output_dir=Path(output_dir),
        num_sizes_per_budget=num_sizes_per_budget,
        min_size=None if min_size is None else Count(min_size),
        max_size=None if max_size is None else Count(max_size),
        sizes=None if sizes is None else list(sizes),  # type: ignore[arg-type]
        size_multiple=None if size_multiple is None else Count(size_multiple),
        width=shapes.width,
        flops=flops,
        flops_per_param_per_token=flops_per_param_per_token,
        seeds=list(seeds),
        seeds_at=seeds_at,
        min_steps=None if min_steps is None else Count(min_steps),
        launcher=launcher,
        jobs=jobs,
        runs_per_gpu=runs_per_gpu,
        slurm=options_from(SlurmOptions, slurm),
        ray=options_from(RayOptions, ray),
        checkpoint_interval=Seconds(checkpoint_interval),
        loggers=loggers,
    )
    if dataset is None or not has_loss:
        counting: dict[str, Any] = {
            "min_size": min_size,
            "max_size": max_size,
            "sizes": sizes,
            "size_multiple": size_multiple,
            "width": width,
            "flops": flops,
            "flops_per_param_per_token": flops_per_param_per_token,
            "batch_size": batch_size,
            "unit": unit,
        }
        if min_steps is not None:
            counting["min_steps"] = min_steps
        if target is not None:
            return design_sweep(
                model_cls,
                model_size_param,
                model_kwargs,
                target_compute=target,
                target_error=target_error,
                max_flops=most,
                compute_budgets=budgets,
                noise=noise,
                seed=seeds[0] if len(seeds) else 0,
                **counting,
            )
        return plan_sweep(
            model_cls,
            model_size_param,
            model_kwargs,
            budgets or [],
            num_sizes_per_budget=num_sizes_per_budget,
            seeds=seeds,
            seeds_at=seeds_at,
            **counting,
        )
    constructor(model_cls, shapes, model_kwargs or {})
    recipe = PythonRecipe(
        model_cls=model_cls,
        model_kwargs=dict(model_kwargs or {}),
        loss_fn=loss_fn,
        dataset=dataset,
        val_dataset=val_dataset,
        batch_size=batch_size,
        module_cls=module_cls or ScalingModule,
        module_kwargs={
            "lr": lr,
            "schedule": schedule,
            "warmup_fraction": warmup_fraction,
            "weight_decay": weight_decay,
            "unit": unit,
        }
        | ({} if metrics is None else {"metrics": dict(metrics)}),
        trainer_kwargs=dict(trainer or {}),
    )
    study = plan_study(recipe, config)
    if not train:
        return study.plan
    if is_extra_rank():
        logger.warning(
            "started several times, by torchrun or srun: the first process conducts the sweep, this one ends"
        )
        raise SystemExit(0)
    study = find_rates(study, on_progress=_ProgressLog())
    for warning in study.plan.warnings:
        logger.warning("%s", warning)
    if study.rate_law is not None:
        logger.info("%s", study.rate_law)
    study, outcome = conduct(study, on_progress=_ProgressLog())
    for line in outcome.left:
        logger.warning("%s", line)
    try:
        result = dataclasses.replace(analyze(config.output_dir), plan=study.plan)
        return dataclasses.replace(result, notes=tuple(map(str, check_kept(study))))
    except FitError as error:
        raise _explained(error, study, outcome) from error


class _ProgressLog:
    """Logs every tenth of the compute: ``logging.basicConfig(level=logging.INFO)`` shows it."""

    def __init__(self) -> None:
        self._tenths = -1

    def __call__(self, progress: Progress) -> None:
        tenths = int(10 * progress.done_flops / progress.total_flops)
        if tenths > self._tenths:
            self._tenths = tenths
            completed = sum(n for state, n in progress.counts.items() if state.value == "completed")
            logger.info("%d of %d runs, %d %% of the compute", completed, progress.total_runs, 10 * tenths)


def _explained(error: FitError, study: Study, outcome: Progress) -> FlopsFitError:
    """A fit that fails for want of runs is explained by why they failed."""
    failed = [study.directory.run(e.experiment_id) for e in study.plan.experiments]
    reasons = {str(r.details().get("error")) for r in failed if r.state().value in ("failed", "diverged")}
    if not reasons:
        return error
    states = ", ".join(f"{n} {state.value}" for state, n in outcome.counts.items())
    return RunError(f"{states}: {'; '.join(sorted(reasons)[:3])}", hint=f"logs are in {study.directory.path}/runs")
