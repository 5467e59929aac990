"""A few real steps before the whole is paid for: how long a sweep will take, and whether it can be trained at all."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import heapreplace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flops_fit.errors import DataError, FitError, PlanError
from flops_fit.experiment import Experiment
from flops_fit.plan.cost import Circumstances, SizeTiming, SweepCost, measured_cost
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.runs.files import read_metrics
from flops_fit.simulation import analyzed, drawn_runs, truth_for
from flops_fit.study import Study, prepared
from flops_fit.sweep.launchers.build import devices_of
from flops_fit.sweep.launchers.job import Job, Launcher
from flops_fit.sweep.launchers.local import LocalLauncher
from flops_fit.train.environment import cpu_name
from flops_fit.train.recipe import ConfigRecipe

if TYPE_CHECKING:
    from flops_fit.train.recipe import Recipe

# A first look at every size, by which the steps of the second are chosen to take this long [seconds].
_FIRST_STEPS = 8
_SECONDS = 2.0
# Steps of a check: one with fresh weights, one with weights that have moved.
CHECK_STEPS = 2
# What torch says of a loss that was not reduced.
_NO_SCALAR = "grad can be implicitly created only for scalar outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A size that took its steps and was evaluated.

    Attributes:
        size: Value of the size parameter.
        num_params: Its parameters.
        device: What it was trained on, as torch names it.
        loss: On the held-out data, after the steps.
        memory_bytes: The most it took; None where that is not known.
        micro_batch: Samples at a time on a device, fewer than asked for where memory was too small for more.
    """

    size: int
    num_params: int
    device: str
    loss: float
    memory_bytes: int | None
    micro_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """A trial whose process has ended.

    Attributes:
        experiment: What was trained.
        run: Its directory.
        seconds: From the place it took being free to its process's end.
    """

    experiment: Experiment
    run: RunDirectory
    seconds: float


def benchmark(study: Study, circumstances: Circumstances) -> SweepCost:
    """The cost by a few steps of every size on this machine, as many runs side by side as there will be.

    Args:
        study: The sweep.
        circumstances: How it will be trained; ``seconds_around`` what precedes the first run but for the start of its
            process, to which start, fits and report are added.

    Raises:
        PlanError: A size cannot be trained.
    """
    study = study.tried()
    sizes = _one_of_each(study.plan.experiments)
    with TemporaryDirectory(prefix="flops-fit-") as folder:
        first, _ = _trained(_study(study, Path(folder) / "1", circumstances.jobs), _cut(sizes, _FIRST_STEPS))
        steps = {e.experiment.size_param_value: _steps_for(_step_seconds(e)) for e in first}
        # The places' first runs wait for the process that starts them: small ones tell how long.
        smallest = min(sizes, key=lambda e: e.num_params)
        early = [_shortened(smallest, CHECK_STEPS, f"start{i}") for i in range(circumstances.jobs)]
        trials = [_shortened(e, steps[e.size_param_value]) for e in sizes]
        ended, places = _trained(_study(study, Path(folder) / "2", circumstances.jobs), [*early, *trials])
        around = _seconds_after(study, Path(folder) / "3")
        timings = {e.experiment.size_param_value: _timing(e) for e in ended[len(early) :]}
    waited = [e.seconds for e in ended[: min(places, len(early))]]
    start = max(0.0, sum(waited) / len(waited) - timings[smallest.size_param_value].other_seconds)
    return measured_cost(
        study.plan,
        dataclasses.replace(circumstances, seconds_around=circumstances.seconds_around + start + around),
        timings,
        source=f"measured: {_SECONDS:g} s of steps of every size, {places} at a time, on {_machine(ended)}",
        precision=str(study.recipe.trainer().get("precision") or "32-true"),
    )


def check(study: Study) -> list[Checked]:
    """Two steps and an evaluation batch of the smallest and the largest size; no file is left.

    Raises:
        PlanError: One of them cannot be trained; the message is the first one's.
    """
    study = study.tried()
    experiments = sorted(_one_of_each(study.plan.experiments), key=lambda e: e.num_params)
    ends = [experiments[0], *experiments[1:][-1:]]
    with TemporaryDirectory(prefix="flops-fit-") as folder:
        brief = dataclasses.replace(study, recipe=_with_one_batch(study.recipe))
        ended, _ = _trained(_study(brief, Path(folder), 1), _cut(ends, CHECK_STEPS))
        return [_checked(e) for e in ended]


def _one_of_each(experiments: Sequence[Experiment]) -> list[Experiment]:
    """For every size its longest run, the most costly sizes first."""
    longest: dict[int, Experiment] = {}
    for e in sorted(experiments, key=lambda e: e.num_tokens):
        longest[e.size_param_value] = e
    return sorted(longest.values(), key=lambda e: -e.flops_per_token)


def _cut(experiments: Sequence[Experiment], steps: int) -> list[Experiment]:
    return [_shortened(e, steps) for e in experiments]


def _shortened(experiment: Experiment, steps: int, name: str = "trial") -> Experiment:
    """The same size for a few steps, at most as many as it has."""
    assert experiment.steps is not None
    steps = min(steps, experiment.steps)
    per_step = experiment.num_tokens // experiment.steps
    return dataclasses.replace(
        experiment,
        experiment_id=f"{name}_{experiment.size_param_value}",
        steps=steps,
        num_tokens=steps * per_step,
    )


def _study(study: Study, folder: Path, jobs: int) -> Study:
    """The sweep in another folder and on this machine, without loggers: nobody wants trials in a dashboard."""
    here = study.config.launcher if study.config.launcher in ("inline", "local") else "local"
    places = jobs if here == study.config.launcher else None
    config = dataclasses.replace(study.config, output_dir=folder, launcher=here, jobs=places, loggers=None)
    return dataclasses.replace(study, config=config)


def _trained(study: Study, experiments: Sequence[Experiment]) -> tuple[list[_Ended], int]:
    """Train these runs, in this order, as the sweep's launcher would, and time them.

    Returns:
        They, and how many there were at a time.
    """
    study = dataclasses.replace(study, plan=dataclasses.replace(study.plan, experiments=list(experiments)))
    sweep, devices = study.directory, devices_of(study.recipe.trainer())
    with sweep.claimed():
        launcher = prepared(study)
        jobs = [
            Job(run=sweep.run(e.experiment_id), flops=e.flops, devices=devices, num_params=e.num_params)
            for e in experiments
        ]
        ends: dict[str, float] = {}
        began = time.monotonic()

        def on_done(job: Job) -> bool:
            ends[job.run.run_id] = time.monotonic()
            _refuse_failure(job.run)
            return False

        launcher.run(jobs, on_done, poll=lambda: None)
    # A run starts when the first of the runs before it leaves its place.
    free = [began] * _places(launcher)
    ended = []
    for experiment, job in zip(experiments, jobs, strict=True):
        end = ends[job.run.run_id]
        start = heapreplace(free, end)
        ended.append(_Ended(experiment=experiment, run=job.run, seconds=end - start))
    return ended, len(free)


def _places(launcher: Launcher) -> int:
    if not isinstance(launcher, LocalLauncher):
        return 1
    return launcher.slots if launcher.cards is None else min(launcher.slots, launcher.cards.room)


def _refuse_failure(run: RunDirectory) -> None:
    """Make a failure of a trial the answer; one whose loss has risen within so few steps is none."""
    state, details = run.state(), run.details()
    if state is RunState.COMPLETED:
        return
    losses = _losses(run)
    if state is RunState.DIVERGED and losses and all(map(math.isfinite, losses)):
        return
    size = run.run_id.rpartition("_")[2]
    error, cause = details.get("error") or "its process was killed", details.get("cause")
    place = f"\n  raised as {cause}" if cause and " at ?" not in cause else ""
    error = str(error).removeprefix(f"{run.run_id}: ")
    hint = "a loss is one number: reduce it, for example with .mean()" if _NO_SCALAR in error else None
    raise PlanError(f"size {size} cannot be trained: {error}{place}", hint=hint)


def _losses(run: RunDirectory) -> list[float]:
    """Every loss the run has written."""
    with suppress(DataError):
        rows = read_metrics(run.metrics)
        return [float(row[k]) for row in rows for k in ("train_loss", "val_loss") if row[k]]
    return []


def _step_seconds(ended: _Ended) -> float:
    """Of one step, but for the first ones, which are slow."""
    rows = [(int(row["step"]), float(row["seconds"])) for row in read_metrics(ended.run.timing)]
    last, end = rows[-1]
    early = [row for row in rows if row[0] <= last / 4] or rows[:1]
    first, begin = early[-1]
    return (end - begin) / (last - first) if last > first else end / last


def _steps_for(step_seconds: float) -> int:
    return max(_FIRST_STEPS, math.ceil(_SECONDS / max(step_seconds, 1e-6)))


def _timing(ended: _Ended) -> SizeTiming:
    assert ended.experiment.steps is not None
    step_seconds = _step_seconds(ended)
    return SizeTiming(
        step_seconds=step_seconds,
        other_seconds=max(0.0, ended.seconds - ended.experiment.steps * step_seconds),
        memory_bytes=_recorded(ended.run).get("peak_memory_bytes"),
    )


def _recorded(run: RunDirectory) -> Mapping[str, Any]:
    """What a run has recorded of itself; nothing of one whose loss has risen."""
    return run.result() if run.state() is RunState.COMPLETED else {}


def _seconds_after(study: Study, folder: Path) -> float:
    """How long the fits and the report will take, made of simulated runs; nothing where there are too few for any."""
    began = time.monotonic()
    with suppress(FitError, DataError):
        result = analyzed(drawn_runs(study.plan, truth_for(study.plan)), study.plan)
        result.analysis.save(_made(folder))
        result.report(folder)
    return time.monotonic() - began


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _machine(ended: Sequence[_Ended]) -> str:
    names = {str(_recorded(e.run).get("device_name") or cpu_name() or platform.machine()) for e in ended}
    return ", ".join(sorted(names))


def _with_one_batch(recipe: Recipe) -> Recipe:
    """The recipe with an evaluation of one batch."""
    if not isinstance(recipe, ConfigRecipe):
        return recipe
    trainer = (recipe.config.get("trainer") or {}) | {"limit_val_batches": 1}
    return ConfigRecipe(recipe.config | {"trainer": trainer})


def _checked(ended: _Ended) -> Checked:
    result, losses = _recorded(ended.run), _losses(ended.run)
    return Checked(
        size=ended.experiment.size_param_value,
        num_params=ended.experiment.num_params,
        device=str(result.get("device") or "unknown"),
        loss=losses[-1],
        memory_bytes=result.get("peak_memory_bytes"),
        micro_batch=int(result.get("micro_batch") or 0),
    )
