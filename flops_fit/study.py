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
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import write_atomic
from flops_fit.shapes import shapes_of
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.launchers.build import build_launcher, devices_of
from flops_fit.sweep.orchestrator import Outcome, Selection, run_sweep
from flops_fit.sweep.progress import Progress
from flops_fit.transfer import width_ratio

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
    """

    recipe: Recipe
    config: SweepConfig
    plan: SweepPlan
    basis: dict[str, Any]
    planner: Planner
    num_samples: int | None = None

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
    return Study(recipe=recipe, config=config, plan=plan, basis=basis, planner=planner, num_samples=data.num_samples)


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


def _group_warnings(plan: SweepPlan, module: ScalingModule, recipe: Recipe) -> list[str]:
    """Parameters that nothing trains; one given rate over a wide range of widths that nothing transfers."""
    smallest = min(plan.experiments, key=lambda e: e.num_params)
    sizes = sorted({e.size_param_value for e in plan.experiments})
    net = module.build_network(**smallest.size_arguments(plan.size_param))
    module.net = net
    grouped = {id(p) for group in module.param_groups() for p in group["params"]}
    left_out = [name for name, p in net.named_parameters() if p.requires_grad and id(p) not in grouped]
    if left_out:
        return [f"the parameter groups leave out {', '.join(left_out[:3])}, which will not be trained"]
    ratio = _width_ratio(plan, recipe)
    if ratio <= _ONE_RATE:
        return []
    return [
        f"one learning rate, {module.lr:g}, for {plan.size_param} {sizes[0]} to {sizes[-1]}, {ratio:.3g} times in"
        " width, and no param_groups(lr) that transfers it: the best rate falls with width, so the optimum may be"
        " biased"
    ]


def _width_ratio(plan: SweepPlan, recipe: Recipe) -> float:
    """How many times as wide as the smallest model the largest is, where nothing transfers the rate; else 1."""
    from flops_fit.train.coordinates import parameter_shapes, sets_own_rates

    by_size = sorted(plan.experiments, key=lambda e: e.num_params)
    small, large = (e.size_arguments(plan.size_param) for e in (by_size[0], by_size[-1]))
    if sets_own_rates(recipe.module(), small, large):
        return 1.0
    return width_ratio(*(parameter_shapes(recipe.module(), size) for size in (small, large)))


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
