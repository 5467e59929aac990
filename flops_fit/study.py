"""A sweep, planned and trained: the first two stages, chained."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.errors import RunError
from flops_fit.experiment import SweepPlan
from flops_fit.fit.rates import FACTOR, RateLaw, rate_law_in
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import write_atomic
from flops_fit.shapes import shapes_of
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.launchers.build import build_launcher, devices_of
from flops_fit.sweep.orchestrator import Outcome, Selection, run_sweep
from flops_fit.sweep.progress import Progress
from flops_fit.transfer import width_ratio
from flops_fit.units import format_count

if TYPE_CHECKING:
    from flops_fit.plan.designed import Question
    from flops_fit.plan.planner import Planner
    from flops_fit.runs.directory import RunDirectory
    from flops_fit.sweep.launchers.job import Launcher
    from flops_fit.train.module import ScalingModule
    from flops_fit.train.recipe import Recipe

logger = logging.getLogger(__name__)

# Over so many times in width one rate may do where nothing transfers it.
_ONE_RATE = 4.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep that is planned and can be trained.

    Attributes:
        recipe: Builds the parts of its runs.
        config: What was asked for.
        plan: The runs.
        basis: What, beside budget, size and seed, decides their results.
        planner: Plans further runs.
        num_samples: Training samples in one pass; None where they have no known end.
        needs_lr: Whether the learning rate is still to be found by a probe.
        first_rates: What such a probe begins with, ascending; empty where the rate is given.
        rate_law: What the probe has found; None where the rate is given or still to be found.
    """

    recipe: Recipe
    config: SweepConfig
    plan: SweepPlan
    basis: dict[str, Any]
    planner: Planner
    num_samples: int | None = None
    needs_lr: bool = False
    first_rates: tuple[float, ...] = ()
    rate_law: RateLaw | None = None

    @property
    def directory(self) -> SweepDirectory:
        """Where it is written."""
        return SweepDirectory(Path(self.config.output_dir))

    def tried(self) -> Study:
        """As it is tried by a few steps while its learning rate is not known: at the middle of the first rates."""
        if not self.needs_lr:
            return self
        lr = self.first_rates[len(self.first_rates) // 2]
        experiments = [dataclasses.replace(e, lr=lr) for e in self.plan.experiments]
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, experiments=experiments))


def plan_study(recipe: Recipe, config: SweepConfig) -> Study:
    """Check model, data and loss on real objects, and plan; nothing is written.

    Raises:
        PlanError: The sweep cannot be trained as asked.
        DataError: The data is not what a model can be trained on.
    """
    from flops_fit.plan.designed import Designer
    from flops_fit.plan.grid import COMFORTABLE_STEPS
    from flops_fit.plan.planner import make_planner
    from flops_fit.plan.sizes import SizeChoice
    from flops_fit.train.guard import check_trainer
    from flops_fit.train.loggers import check_loggers
    from flops_fit.train.recipe import basis_hash
    from flops_fit.train.vocabulary import check_vocabulary

    trainer = recipe.trainer()
    check_trainer(trainer)
    check_loggers(config.loggers)
    data, module = recipe.data(), recipe.module()
    shapes = shapes_of(config.size_param, config.sizes, config.width)
    choice = SizeChoice(
        num_sizes_per_budget=config.num_sizes_per_budget,
        min_size=config.min_size,
        max_size=config.max_size,
        sizes=shapes.values,
        size_multiple=config.size_multiple,
    )
    question = question_of(config)
    planner = make_planner(
        lambda size: module.build_network(**shapes.arguments(size)),
        question.budgets() if question and config.compute_budgets is None else config.compute_budgets or [],
        choice=choice,
        shapes=shapes,
        model_name=recipe.model_name,
        model_kwargs=recipe.model_kwargs,
        loss=module.compute_loss,
        example_batch=data.example,
        batch_size=data.batch_size,
        unit=module.unit,
        flops=config.flops,
        flops_per_param_per_token=config.flops_per_param_per_token,
        seeds=config.seeds or [0],
        seeds_at=config.seeds_at,
        min_steps=COMFORTABLE_STEPS if question and config.min_steps is None else config.min_steps,
        count_tokens=module.count_tokens,
        num_samples=data.num_samples,
        auto_batch=True,
    )
    assert planner.batch_size is not None
    data.check_batch(planner.batch_size)
    basis = recipe.basis() | {
        "data_fingerprint": data.fingerprint,
        "batch_size": planner.batch_size,
        "flops": [planner.search.rule, config.flops_per_param_per_token],
    }
    basis = json.loads(json.dumps(basis))
    planner.tag = basis_hash(basis)
    twice = [name for name in shapes.names if name in recipe.model_kwargs]
    if twice:
        planner.notes.append(f"the model's arguments also set {', '.join(twice)}; the planned sizes win")
    plan = planner.grid() if question is None else Designer(planner=planner, question=question).outline()
    planner.notes += data.notes + _group_warnings(plan, module, recipe) + module.remarks()
    module.check_metrics(module.net, data.example)  # of the smallest size
    if plan.unit == "tokens":
        smallest = min(plan.experiments, key=lambda e: e.num_params)
        check_vocabulary(module, smallest.size_arguments(plan.size_param), data)
    plan = dataclasses.replace(plan, warnings=list(dict.fromkeys([*planner.notes, *plan.warnings])))
    study = Study(recipe=recipe, config=config, plan=plan, basis=basis, planner=planner, num_samples=data.num_samples)
    return _with_rates(study) if recipe.module().needs_lr else study


def question_of(config: SweepConfig) -> Question | None:
    """What a designed sweep is for; None for a grid."""
    if config.target_compute is None:
        return None
    from flops_fit.plan.designed import Question

    return Question(
        target_compute=config.target_compute,
        target_error=config.target_error,
        max_flops=config.max_flops,
        noise=config.noise,
    )


def _with_rates(study: Study) -> Study:
    """With the learning rates that a probe of this sweep has found, or with the runs that will find them."""
    from flops_fit.plan.probe import first_rates, probe_cells, probe_runs
    from flops_fit.train.recipe import basis_hash

    tag = basis_hash(study.basis)
    law = rate_law_in(study.directory.rates_file)
    if law is not None and law.cause == tag:
        plan = dataclasses.replace(study.plan, probe=study.directory.probe.experiments())
        return with_rate_law(dataclasses.replace(study, plan=plan), law)
    is_own = _has_own_rates(study.plan, study.recipe)
    rates = first_rates(is_own, FACTOR)
    shapes = shapes_of(study.config.size_param, study.config.sizes, study.config.width)
    cells = probe_cells(study.plan, num_sizes=1 if is_own else 2)
    probe = [run for c in cells for run in probe_runs(c, rates, shapes.name(c.size_param_value), tag)]
    plan = dataclasses.replace(study.plan, probe=probe)
    return dataclasses.replace(study, plan=plan, needs_lr=True, first_rates=tuple(rates))


def with_rate_law(study: Study, law: RateLaw) -> Study:
    """The sweep, each run at the rate of its size, which is part of what its id is a hash of."""
    from flops_fit.train.recipe import basis_hash

    basis = study.basis | {"learning_rate": {"constant": law.constant, "exponent": law.exponent}}
    old, new = f"_{basis_hash(study.basis)}", f"_{basis_hash(basis)}"
    experiments = [
        dataclasses.replace(e, experiment_id=e.experiment_id.removesuffix(old) + new, lr=law.rate(e.num_params))
        for e in study.plan.experiments
    ]
    warnings = law.warnings([e.num_params for e in experiments]) + study.plan.warnings
    study.planner.tag, study.planner.rate = new.removeprefix("_"), law.rate  # of the runs of further rounds
    plan = dataclasses.replace(study.plan, experiments=experiments, warnings=warnings)
    return dataclasses.replace(study, plan=plan, basis=basis, needs_lr=False, rate_law=law)


def _group_warnings(plan: SweepPlan, module: ScalingModule, recipe: Recipe) -> list[str]:
    """Parameters that nothing trains; one given rate over a wide range of widths that nothing transfers."""
    smallest = min(plan.experiments, key=lambda e: e.num_params)
    largest = max(e.num_params for e in plan.experiments)
    net = module.build_network(**smallest.size_arguments(plan.size_param))
    module.net = net
    is_given = not module.needs_lr
    if not is_given:
        module.lr = 1.0  # of the groups only the parameters matter here
    grouped = {id(p) for group in module.param_groups() for p in group["params"]}
    left_out = [name for name, p in net.named_parameters() if p.requires_grad and id(p) not in grouped]
    if left_out:
        return [f"the parameter groups leave out {', '.join(left_out[:3])}, which will not be trained"]
    if not is_given or _has_own_rates(plan, recipe):
        return []
    ratio = _width_ratio(plan, recipe)
    if ratio <= _ONE_RATE:
        return []
    return [
        f"one learning rate, {module.lr:g}, for N = {format_count(smallest.num_params)} to {format_count(largest)},"
        f" {ratio:.3g} times in width, and no param_groups(lr) that transfers it: the best rate falls with width, so"
        " the optimum may be biased; lr: auto finds one for each size"
    ]


def _width_ratio(plan: SweepPlan, recipe: Recipe) -> float:
    """How many times as wide as the smallest model the largest is."""
    from flops_fit.train.coordinates import parameter_shapes

    return width_ratio(*(parameter_shapes(recipe.module(), size) for size in _ends(plan)))


def _has_own_rates(plan: SweepPlan, recipe: Recipe) -> bool:
    """Whether the parameter groups make of one rate what each size needs."""
    from flops_fit.train.coordinates import sets_own_rates

    return sets_own_rates(recipe.module(), *_ends(plan))


def _ends(plan: SweepPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the smallest and the largest model."""
    by_size = sorted(plan.experiments, key=lambda e: e.num_params)
    return by_size[0].size_arguments(plan.size_param), by_size[-1].size_arguments(plan.size_param)


def train_study(
    study: Study,
    *,
    selection: Selection | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Train what is not done yet.

    Raises:
        PlanError: The output directory cannot be written, or holds another sweep.
        RunError: Another process trains this sweep.
        KeyboardInterrupt: Asked to stop; every run has saved, the same call goes on.
    """
    with study.directory.claimed():
        return _train(study, selection or Selection(), on_progress)


def _train(study: Study, selection: Selection, on_progress: Callable[[Progress], None]) -> Outcome:
    launcher = prepared(study)
    return run_sweep(
        study.directory,
        study.plan.experiments,
        launcher,
        selection=selection,
        devices=devices_of(study.recipe.trainer()),
        on_progress=on_progress,
    )


def prepared(study: Study) -> Launcher:
    """Write what the runs that are not completed are trained from, and build what starts them.

    Raises:
        PlanError: The launcher cannot train such runs, or the output directory holds another sweep.
    """
    from flops_fit.train.environment import origin
    from flops_fit.train.recipe import run_parts, write_run_config
    from flops_fit.train.run import train_run

    sweep, config = study.directory, study.recipe.to_config()
    facts = {
        "size_param": study.plan.size_param,
        "batch_size": study.plan.batch_size,
        "checkpoint_interval": float(study.config.checkpoint_interval),
        "flops_rule": study.plan.flops_rule,
        "unit": study.plan.unit,
        "group": sweep.path.resolve().name,
        "loggers": study.config.loggers,
        "origin": origin(Path.cwd()),
    }
    experiments = {e.experiment_id: e for e in study.plan.experiments}

    def train(run: RunDirectory) -> RunState | None:
        try:
            with _logged(run):
                return train_run(run, experiments[run.run_id], partial(run_parts, study.recipe, facts))
        except RunError as error:  # its directory is in use or cannot be written; the others go on
            logger.error("%s", error)
            return None

    launcher = build_launcher(
        study.config,
        study.recipe.trainer(),
        sweep=sweep,
        experiments=study.plan.experiments,
        train=train,
        is_importable=config is not None,
    )
    sweep.open(study.plan.to_dict(), study.basis)
    for experiment in experiments.values():
        run = sweep.run(experiment.experiment_id)
        if run.state() is not RunState.COMPLETED:
            write_run_config(run, experiment, config, facts)
    return launcher


@contextlib.contextmanager
def _logged(run: RunDirectory) -> Iterator[None]:
    """What a run that is trained in this process logs goes to its run.log, too, where that can be written."""
    try:
        handler = logging.FileHandler(run.log)
    except OSError:
        yield
        return
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    ours = logging.getLogger("flops_fit")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()


def write_sweep_yaml(study: Study, text: str) -> None:
    """Keep the resolved config beside the runs."""
    write_atomic(study.directory.path / "sweep.yaml", text)
