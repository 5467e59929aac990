"""The stages, chained: plan, train, analyse, answer."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flops_fit.errors import DataError, FitError, FlopsFitError, PlanError, RunError
from flops_fit.experiment import FlopsRule, SweepPlan
from flops_fit.fit import ScalingAnalysis, Warning_, analyze_runs
from flops_fit.result import Result
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import write_atomic
from flops_fit.runs.table import read_runs, write_runs
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.launchers import InlineLauncher, Launcher, LocalLauncher
from flops_fit.sweep.orchestrator import Progress, Selection, run_sweep
from flops_fit.units import Flops, Seconds

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from flops_fit.batch import Unit
    from flops_fit.runs.directory import RunDirectory
    from flops_fit.train.module import ScalingModule, Schedule
    from flops_fit.train.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep that is planned and can be trained.

    Attributes:
        recipe: Builds the parts of its runs.
        config: What was asked for.
        plan: The runs.
        basis: What, beside budget, size and seed, decides their results.
    """

    recipe: Recipe
    config: SweepConfig
    plan: SweepPlan
    basis: dict[str, Any]

    @property
    def directory(self) -> SweepDirectory:
        """Where it is written."""
        return SweepDirectory(Path(self.config.output_dir))


def plan_study(recipe: Recipe, config: SweepConfig) -> Study:
    """Check model, data and loss on real objects, and plan; nothing is written.

    Raises:
        PlanError: The sweep cannot be trained as asked.
        DataError: The data is not what a model can be trained on.
    """
    from flops_fit.plan.planner import SizeChoice, make_plan
    from flops_fit.train.recipe import basis_hash
    from flops_fit.train.run import check_trainer

    trainer = recipe.trainer()
    check_trainer(trainer)
    data, module = recipe.data(), recipe.module()
    choice = SizeChoice(
        num_sizes_per_budget=config.num_sizes_per_budget,
        min_size=config.min_size,
        max_size=config.max_size,
        sizes=config.sizes,
        size_multiple=config.size_multiple,
    )
    plan = make_plan(
        lambda size: module.build_network(**{config.size_param: size}),
        config.compute_budgets,
        choice=choice,
        size_param=config.size_param,
        model_name=recipe.model_name,
        model_kwargs=recipe.model_kwargs,
        loss=module.compute_loss,
        example_batch=data.example,
        batch_size=data.batch_size,
        unit=module.unit,
        flops=config.flops,
        flops_per_param_per_token=config.flops_per_param_per_token,
        seeds=config.seeds or [0],
        min_steps=config.min_steps,
        count_tokens=module.count_tokens,
        auto_batch=True,
    )
    assert plan.batch_size is not None
    data.check_batch(plan.batch_size)
    basis = recipe.basis() | {
        "data_fingerprint": data.fingerprint,
        "batch_size": plan.batch_size,
        "flops": [plan.flops_rule, config.flops_per_param_per_token],
    }
    basis = json.loads(json.dumps(basis))
    tag = basis_hash(basis)
    experiments = [dataclasses.replace(e, experiment_id=f"{e.experiment_id}_{tag}") for e in plan.experiments]
    notes = data.notes + _rate_warnings(plan, module)
    plan = dataclasses.replace(plan, experiments=experiments, warnings=notes + plan.warnings)
    if config.size_param in plan.model_kwargs:
        plan.warnings.append(f"the model's arguments also set {config.size_param}; the planned sizes win")
    return Study(recipe=recipe, config=config, plan=plan, basis=basis)


def _rate_warnings(plan: SweepPlan, module: ScalingModule) -> list[str]:
    """One given rate over a wide range of sizes, without a parametrisation that transfers it."""
    sizes = sorted({e.size_param_value for e in plan.experiments})
    net = module.build_network(**{plan.size_param: sizes[0]})
    if callable(getattr(net, "param_groups", None)) or sizes[-1] <= 4 * sizes[0]:
        return []
    return [
        f"one learning rate, {module.lr:g}, for {plan.size_param} {sizes[0]} to {sizes[-1]}, and the model has no"
        " param_groups(lr) that transfers it: the best rate falls with width, so the optimum may be biased"
    ]


def train_study(
    study: Study,
    *,
    selection: Selection | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Train what is not done yet.

    Raises:
        PlanError: The output directory cannot be written, or holds another sweep.
        KeyboardInterrupt: Asked to stop; every run has saved, the same call goes on.
    """
    from flops_fit.train.recipe import run_parts, write_run_config
    from flops_fit.train.run import train_run

    sweep, config = study.directory, study.recipe.to_config()
    sweep.open(study.plan.to_dict(), study.basis)
    facts = {
        "size_param": study.plan.size_param,
        "batch_size": study.plan.batch_size,
        "checkpoint_interval": float(study.config.checkpoint_interval),
    }
    experiments = {e.experiment_id: e for e in study.plan.experiments}
    for experiment in experiments.values():
        run = sweep.run(experiment.experiment_id)
        if run.state() is not RunState.COMPLETED:
            write_run_config(run, experiment, config, facts)
    if config is None and study.config.launcher == "local":
        logger.warning("training in this process: model, loss or data cannot be imported by another one")

    def train(run: RunDirectory) -> None:
        train_run(run, experiments[run.run_id], run_parts(study.recipe, facts))

    is_inline = config is None or study.config.launcher == "inline"
    launcher: Launcher = InlineLauncher(train) if is_inline else LocalLauncher(study.config.jobs)
    devices = _devices(study.recipe.trainer())
    if is_inline and devices > 1:
        raise PlanError(
            f"{devices} devices a run need processes of their own, and this sweep is trained inline",
            hint="use launcher: local, with model, loss and data that can be imported",
        )
    return run_sweep(
        sweep,
        study.plan.experiments,
        launcher,
        selection=selection or Selection(),
        devices=devices,
        on_progress=on_progress,
    )


def _devices(trainer: dict[str, Any]) -> int:
    devices = trainer.get("devices", 1)
    if isinstance(devices, (list, tuple)):
        return len(devices)
    return int(devices) if str(devices).lstrip("-").isdigit() and int(devices) > 0 else 1


def analyze_sweep(directory: str | Path, **options: Any) -> Result:
    """Fit the laws to the completed runs of a sweep; writes runs.csv, analysis.json and draws.npz beside them.

    Args:
        directory: The sweep's output directory.
        options: Those of ``flops_fit.fit.analyze_runs``.

    Raises:
        DataError: It is no sweep, or a run's files are not whole.
        FitError: Too few runs are completed.
    """
    sweep = SweepDirectory(Path(directory))
    table = read_runs(sweep)
    completed = table[table["state"] == "completed"]
    if completed.empty:
        raise FitError(
            f"no run of {sweep.path} is completed", hint=f"train them first; `flops-fit status {sweep.path}` shows why"
        )
    write_runs(sweep, table)
    analysis = analyze_runs(table, unit=sweep.plan["unit"], **options)
    carried = [Warning_("plan", text) for text in sweep.plan["warnings"]]
    analysis = dataclasses.replace(analysis, warnings=(*analysis.warnings, *carried))
    analysis.save(sweep.path)
    return Result(analysis)


def analyze(source: str | Path | pd.DataFrame, **options: Any) -> Result:
    """Fit the laws to finished runs, trained here or anywhere.

    Args:
        source: A sweep's directory, a table (CSV, TSV, JSONL, also .gz), or a DataFrame.
        options: Of the table (``columns``, ``loss_unit``, ``n_convention``) and of ``flops_fit.fit.analyze_runs``.

    Raises:
        DataError: The table cannot be read.
        FitError: The runs cannot determine any law.
    """
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        return analyze_sweep(source, **options)
    from flops_fit.runs.foreign import read_table

    reading = {k: options.pop(k) for k in ("columns", "loss_unit") if k in options}
    table = read_table(source, **reading)
    for note in table.notes:
        logger.info("%s", note)
    return Result(analyze_runs(table.frame, **options))


def load(source: str | Path) -> ScalingAnalysis:
    """A saved analysis: a sweep's directory, or an ``analysis.json``.

    Raises:
        DataError: There is none.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if not (folder / "analysis.json").is_file():
        raise DataError(
            f"{path} holds no analysis.json", hint=f"make one with `flops-fit analyze {path}`, which needs the runs"
        )
    return ScalingAnalysis.load(folder)


def find_optimal(
    *,
    model_cls: Callable[..., nn.Module],
    model_size_param: str,
    compute_budgets: Iterable[float | str],
    model_kwargs: dict[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Callable[..., Any] | None = None,
    val_dataset: Any = None,
    output_dir: str | Path = "outputs",
    train: bool = True,
    batch_size: int | None = None,
    lr: float = 1e-3,
    schedule: Schedule = "linear",
    warmup_fraction: float = 0.1,
    weight_decay: float = 0.0,
    unit: Unit | None = None,
    module_cls: type[ScalingModule] | None = None,
    trainer: dict[str, Any] | None = None,
    num_sizes_per_budget: int = 7,
    min_size: int | None = None,
    max_size: int | None = None,
    sizes: Sequence[int] | None = None,
    size_multiple: int | None = None,
    flops: FlopsRule | None = None,
    flops_per_param_per_token: float = 6.0,
    seeds: Sequence[int] = (0,),
    min_steps: int = 150,
    launcher: Literal["local", "inline"] = "local",
    jobs: int | None = None,
    checkpoint_interval: float | str = 60.0,
) -> Result | SweepPlan:
    """Find how big a model should be, and on how much data, for any amount of compute.

    Plans a sweep, trains every run that ``output_dir`` does not hold yet, fits the laws, and answers.

    Args:
        model_cls: Class or factory function of an ``nn.Module`` with ``num_params() -> int``.
        model_size_param: The argument of it that sets the size.
        compute_budgets: Training compute of each IsoFLOP group, such as 1e18 or "10 PF-days" [FLOPs].
        model_kwargs: Other arguments of the model.
        dataset: A Dataset, IterableDataset, DataLoader or LightningDataModule, or a function without arguments
            that returns one; items are pairs (inputs, targets) or mappings. A function can also be called by other
            processes, so that runs are trained side by side.
        loss_fn: ``(outputs, targets) -> scalar``.
        val_dataset: Held-out data, likewise; without it a part of ``dataset`` is held out.
        output_dir: Where everything is written; the same call on it resumes.
        train: False only plans.
        batch_size: Samples an optimiser step, over all devices; chosen when not given.
        lr: Peak learning rate, handed to the model's ``param_groups(lr)`` where it has that.
        schedule: "linear" to zero over each run's own steps, "cosine" to a tenth, or "constant".
        warmup_fraction: Share of each run's steps with a rising rate.
        weight_decay: AdamW's.
        unit: What D counts: "tokens" or "samples"; by default tokens for integer inputs of rank 2.
        module_cls: A subclass of ``ScalingModule`` to train with.
        trainer: Further arguments of Lightning's Trainer, such as {"accelerator": "gpu"}.
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
        checkpoint_interval: Time between checkpoints [seconds].

    Returns:
        The Result; the SweepPlan where ``train`` is False or dataset or loss is missing.

    Raises:
        PlanError: The sweep cannot be trained as asked.
        DataError: The data is not what a model can be trained on.
        RunError: No run, or too few, could be trained.
        FitError: The completed runs cannot determine any law.
    """
    from flops_fit.plan.planner import plan_sweep
    from flops_fit.train.module import ScalingModule, check_loss
    from flops_fit.train.recipe import PythonRecipe
    from flops_fit.train.reference import is_loading_script

    if is_loading_script():
        raise PlanError(
            "find_optimal was called while another process imported this script to find its classes",
            hint="put the call under `if __name__ == '__main__':`",
        )
    budgets = [_flops(b) for b in compute_budgets]
    if loss_fn is not None:
        check_loss(loss_fn)
    has_loss = loss_fn is not None or module_cls is not None
    if dataset is None or not has_loss:
        return plan_sweep(
            model_cls,
            model_size_param,
            model_kwargs,
            budgets,
            num_sizes_per_budget=num_sizes_per_budget,
            min_size=min_size,
            max_size=max_size,
            sizes=sizes,
            size_multiple=size_multiple,
            flops=flops,
            flops_per_param_per_token=flops_per_param_per_token,
            batch_size=batch_size,
            unit=unit,
            seeds=seeds,
            min_steps=min_steps,
        )
    _check_model(model_cls, model_size_param, model_kwargs or {})
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
        },
        trainer_kwargs=dict(trainer or {}),
    )
    config = SweepConfig(
        size_param=model_size_param,
        compute_budgets=budgets,
        output_dir=Path(output_dir),
        num_sizes_per_budget=num_sizes_per_budget,
        min_size=min_size,
        max_size=max_size,
        sizes=None if sizes is None else list(sizes),
        size_multiple=size_multiple,
        flops=flops,
        flops_per_param_per_token=flops_per_param_per_token,
        seeds=list(seeds),
        min_steps=min_steps,
        launcher=launcher,
        jobs=jobs,
        checkpoint_interval=Seconds(checkpoint_interval),
    )
    study = plan_study(recipe, config)
    if not train:
        return study.plan
    for warning in study.plan.warnings:
        logger.warning("%s", warning)
    outcome = train_study(study)
    try:
        return dataclasses.replace(analyze_sweep(config.output_dir), plan=study.plan)
    except FitError as error:
        raise _explained(error, study, outcome) from error


def _flops(value: float | str) -> Flops:
    try:
        return Flops(value)
    except ValueError as error:
        raise PlanError(f"compute budget {error}") from None


def _check_model(model_cls: Callable[..., nn.Module], size_param: str, model_kwargs: dict[str, Any]) -> None:
    from flops_fit.plan.count import constructor

    constructor(model_cls, size_param, model_kwargs)


def _explained(error: FitError, study: Study, outcome: Progress) -> FlopsFitError:
    """A fit that fails for want of runs is explained by why they failed."""
    failed = [study.directory.run(e.experiment_id) for e in study.plan.experiments]
    reasons = {str(r.details().get("error")) for r in failed if r.state().value in ("failed", "diverged")}
    if not reasons:
        return error
    states = ", ".join(f"{n} {state.value}" for state, n in outcome.counts.items())
    return RunError(f"{states}: {'; '.join(sorted(reasons)[:3])}", hint=f"logs are in {study.directory.path}/runs")


def write_sweep_yaml(study: Study, text: str) -> None:
    """Keep the resolved config beside the runs."""
    write_atomic(study.directory.path / "sweep.yaml", text)
