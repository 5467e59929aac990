"""One run at the predicted optimum of a budget: what was foretold, and what came of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.errors import FitError, PlanError, RunError
from flops_fit.experiment import Experiment
from flops_fit.fit import ScalingAnalysis
from flops_fit.plan.nearest import sizes_near
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import read_json, write_json
from flops_fit.study import Study, plan_study, train_study
from flops_fit.suggestion import counted_sizes
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.orchestrator import Selection
from flops_fit.sweep.progress import Progress
from flops_fit.units import Flops, format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.train.recipe import Recipe

_FILE = "validations.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A forecast and its outcome.

    Attributes:
        compute_budget: Of the run [FLOPs].
        experiment_id: The run.
        num_params: Its size, the nearest that can be built [parameters].
        num_params_predicted: The optimum [parameters].
        loss_predicted: Foretold before the run was trained [nats per token or sample].
        ci: 95 % interval of it; None where there is none.
        loss: Measured; None before the run is completed.
    """

    compute_budget: float
    experiment_id: str
    num_params: int
    num_params_predicted: float
    loss_predicted: float
    ci: tuple[float, float] | None
    loss: float | None = None

    @property
    def error(self) -> float | None:
        """Forecast over measurement, less one; None before the run is completed."""
        return None if self.loss is None else self.loss_predicted / self.loss - 1

    @property
    def is_inside(self) -> bool | None:
        """Whether the measurement lies in the interval; None where one of the two is missing."""
        return None if self.loss is None or self.ci is None else self.ci[0] <= self.loss <= self.ci[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return dataclasses.asdict(self) | {"error": self.error, "is_inside": self.is_inside}

    def __str__(self) -> str:
        interval = "" if self.ci is None else f" ({self.ci[0]:.4g} to {self.ci[1]:.4g})"
        size = f"N = {format_count(self.num_params)}, predicted optimum {format_count(self.num_params_predicted)}"
        lines = [f"C = {format_flops(self.compute_budget)} FLOPs, {size}"]
        lines.append(f"predicted loss {self.loss_predicted:.4g}{interval}")
        if self.loss is not None:
            where = {True: ", inside the interval", False: ", outside the interval", None: ""}[self.is_inside]
            lines.append(f"measured loss  {self.loss:.4g}: the forecast is off by {self.error:+.2%}{where}")
        return "\n".join(lines)


def validate(
    recipe: Recipe, config: SweepConfig, compute: float, *, on_progress: Callable[[Progress], None] = lambda _: None
) -> Validation:
    """Train one run at the optimum that a sweep's saved analysis predicts for a budget.

    The forecast is written down before the run is trained, and kept; a later analysis uses the run.

    Args:
        recipe: Builds the sweep's runs.
        config: The sweep's.
        compute: Budget of the run [FLOPs].
        on_progress: Told about once a second.

    Raises:
        DataError: The sweep has no saved analysis.
        FitError: The analysis says nothing of this budget.
        PlanError: No size near the optimum can be trained.
        RunError: The run failed.
    """
    sweep = SweepDirectory(Path(config.output_dir))
    kept = {v.compute_budget: v for v in _read(sweep)}
    forecast = kept.get(compute)
    study = _one_run(recipe, config, compute, forecast.num_params if forecast else _predicted(sweep, compute)[0])
    experiment = study.plan.experiments[0]
    if forecast is None:
        forecast = _forecast(sweep, experiment, compute)
        _write(sweep, kept | {compute: forecast})
    train_study(study, selection=Selection(retry_failed=True), on_progress=on_progress)
    run = sweep.run(experiment.experiment_id)
    if run.state() is not RunState.COMPLETED:
        details = run.details()
        raise RunError(f"{run.run_id} is {run.state().value}: {details.get('error')}", hint=f"{run.log} may say more")
    measured = dataclasses.replace(forecast, loss=run.result()["loss"])
    _write(sweep, kept | {compute: measured})
    return measured


def _predicted(sweep: SweepDirectory, compute: float) -> tuple[float, float, tuple[float, float] | None]:
    """Size, loss and the loss's interval at the optimum of a budget."""
    prediction = ScalingAnalysis.load(sweep.path).predict(compute)
    if prediction.num_params is None or prediction.loss is None:
        missing = "best size" if prediction.num_params is None else "loss"
        raise FitError(
            f"the analysis of {sweep.path} withholds the {missing} at {format_flops(compute)} FLOPs",
            hint="validate a budget nearer to the data, or extend the sweep",
        )
    return prediction.num_params, prediction.loss, prediction.ci.get("loss")


def _forecast(sweep: SweepDirectory, experiment: Experiment, compute: float) -> Validation:
    num_params, loss, ci = _predicted(sweep, compute)
    return Validation(
        compute_budget=compute,
        experiment_id=experiment.experiment_id,
        num_params=experiment.num_params,
        num_params_predicted=num_params,
        loss_predicted=loss,
        ci=ci,
    )


def _one_run(recipe: Recipe, config: SweepConfig, compute: float, num_params: float) -> Study:
    """The plan of one run: the buildable size that is nearest to the optimum on a log scale."""
    known = counted_sizes(SweepDirectory(Path(config.output_dir)))
    around: list[Any] = list(config.sizes or [])
    if not any(isinstance(row, Mapping) for row in around):  # of a table its rows are all there is
        around = sizes_near(known, num_params, config.size_multiple)
    one = dataclasses.replace(
        config,
        compute_budgets=[Flops(compute)],
        sizes=around,
        seeds=None,
        plan="grid",
        target_compute=None,
        target_error=None,
        max_flops=None,
    )
    study = plan_study(recipe, one)
    if not study.plan.experiments:
        raise PlanError(f"no run of {format_flops(compute)} FLOPs can be planned at {config.size_param} {around}")
    nearest = min(study.plan.experiments, key=lambda e: abs(math.log(e.num_params / num_params)))
    # What was said of the whole sweep holds for it still: the warnings that one run raises would take their place.
    told = SweepDirectory(Path(config.output_dir)).plan["warnings"]
    return dataclasses.replace(study, plan=dataclasses.replace(study.plan, experiments=[nearest], warnings=told))


def _read(sweep: SweepDirectory) -> list[Validation]:
    path = sweep.path / _FILE
    if not path.exists():
        return []
    names = {f.name for f in dataclasses.fields(Validation)}
    found = [{k: v for k, v in entry.items() if k in names} for entry in read_json(path)["validations"]]
    return [Validation(**entry | {"ci": tuple(entry["ci"]) if entry["ci"] else None}) for entry in found]


def _write(sweep: SweepDirectory, validations: dict[float, Validation]) -> None:
    write_json(sweep.path / _FILE, {"validations": [v.to_dict() for v in validations.values()]})
