"""The learning-rate probe: short runs of one or two sizes before a sweep, and the rate of every size from them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from flops_fit.errors import RunError
from flops_fit.experiment import Experiment
from flops_fit.fit.rates import EXTENSIONS, SizeProbe, fit_rate_law
from flops_fit.plan.probe import probe_runs
from flops_fit.runs.directory import RunState
from flops_fit.runs.files import SCHEMA_VERSION, write_json
from flops_fit.shapes import shapes_of
from flops_fit.study import Study, train_study, with_rate_law
from flops_fit.sweep.orchestrator import Outcome, Selection
from flops_fit.sweep.progress import Progress
from flops_fit.train.recipe import basis_hash

logger = logging.getLogger(__name__)


class UnfinishedProbeError(RunError):
    """The probe's runs have not all ended: the same call goes on."""


def find_rates(
    study: Study,
    *,
    selection: Selection | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Study:
    """The sweep with a learning rate for every run; where that is to be found, by training what finds it.

    The runs are those of any sweep, in OUTPUT_DIR/probe: they resume, and what is done is not done again. Where the
    best rate of a size is at the edge of those tried, others beyond it are tried, a bounded number of times.

    Args:
        study: As planned.
        selection: What a call may spend, and whether failed runs are tried again.
        on_progress: Told about once a second.

    Raises:
        FitError: The best rate of a size lies beyond all that were tried, or the rate makes no difference.
        UnfinishedProbeError: Runs are left for another call.
        RunError: A run failed.
        PlanError: The output directory cannot be written, or holds the probe of another sweep.
    """
    if not study.needs_lr:
        return study
    selection = dataclasses.replace(selection or Selection(), only=())
    shapes = shapes_of(study.config.size_param, study.config.sizes, study.config.width)
    tag = basis_hash(study.basis)
    runs = list(study.plan.probe)
    for attempt in range(EXTENSIONS + 1):
        probes = _trained(study, runs, selection, on_progress)
        cells = {e.size_param_value: e for e in runs}
        more = [
            run
            for probe in probes
            for run in probe_runs(cells[probe.size], probe.further(), shapes.name(probe.size), tag)
            if not probe.is_flat
        ]
        if not more or attempt == EXTENSIONS:
            break
        logger.info("learning-rate probe: the best rate is at the edge of %s", "; ".join(map(str, probes)))
        runs += more
    law = fit_rate_law(probes, tag)
    write_json(study.directory.rates_file, {"schema_version": SCHEMA_VERSION} | law.to_dict())
    plan = dataclasses.replace(study.plan, probe=runs)
    return with_rate_law(dataclasses.replace(study, plan=plan), law)


def done_flops(study: Study) -> float:
    """Compute of the probe's runs that are completed [FLOPs]."""
    states = ((run, study.directory.probe.run(run.experiment_id).state()) for run in study.plan.probe)
    return sum(run.flops for run, state in states if state is RunState.COMPLETED)


def _trained(
    study: Study, runs: Sequence[Experiment], selection: Selection, on_progress: Callable[[Progress], None]
) -> list[SizeProbe]:
    """Train what is not done of these runs, and read how they ended."""
    sweep = study.directory.probe
    config = dataclasses.replace(study.config, output_dir=sweep.path, loggers=None)
    budgets = sorted({e.compute_budget for e in runs})
    plan = dataclasses.replace(
        study.plan, experiments=list(runs), probe=[], compute_budgets=budgets, dropped=[], warnings=[]
    )
    probe = dataclasses.replace(study, config=config, plan=plan)
    outcome = train_study(probe, selection=selection, on_progress=on_progress)
    losses = {run.experiment_id: _loss(study, run, outcome) for run in runs}
    found = []
    for size in dict.fromkeys(run.size_param_value for run in runs):
        mine = sorted((run for run in runs if run.size_param_value == size), key=lambda run: run.lr or 0.0)
        found.append(
            SizeProbe(
                size=size,
                num_params=mine[0].num_params,
                steps=mine[0].steps or 0,
                lrs=tuple(run.lr for run in mine if run.lr is not None),
                losses=tuple(losses[run.experiment_id] for run in mine),
                flops=sum(run.flops for run in mine),
            )
        )
    return found


def _loss(study: Study, experiment: Experiment, outcome: Outcome) -> float | None:
    """Of a run at its end; None where it diverged."""
    run = study.directory.probe.run(experiment.experiment_id)
    state = run.state()
    if state is RunState.COMPLETED:
        return float(run.result()["loss"])
    if state is RunState.DIVERGED:
        return None
    if state is RunState.FAILED:
        raise RunError(
            f"learning-rate probe: {run.run_id} failed: {run.details().get('error')}",
            hint=f"mend it and give the same command with --retry-failed; or give lr. Its log is {run.log}",
        )
    raise UnfinishedProbeError(
        "the learning-rate probe is not finished: " + ("; ".join(outcome.left) or f"{run.run_id} is {state.value}"),
        hint="the same call goes on with it",
    )
