"""Sweeps in rounds: what the results so far ask for next, and training all of it."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from flops_fit.errors import DataError, FitError
from flops_fit.experiment import Design, Experiment, SweepPlan
from flops_fit.fit import ScalingAnalysis, analyze_runs
from flops_fit.laws import ParametricLaw
from flops_fit.plan.beliefs import Noise, usual_laws
from flops_fit.plan.beyond import plan_beyond
from flops_fit.plan.designed import Designer
from flops_fit.runs.directory import RunState
from flops_fit.runs.table import read_runs
from flops_fit.study import Study, question_of, train_study
from flops_fit.sweep.orchestrator import Outcome, Selection
from flops_fit.sweep.progress import Progress
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.plan.beyond import Side
    from flops_fit.plan.designed import Laws

logger = logging.getLogger(__name__)

# Draws of a fit whose N_opt at the target spread more than this between their tenth and ninetieth hundredth [log N]
# tell where the optimum is among the runs, and not how it moves.
_TELLING: Final = math.log(16.0)

# The noise that was assumed counts as so many residuals beside those of a first round's fit.
_PRIOR_RESIDUALS: Final = 6.0
_SURFACE_PARAMETERS: Final = 5


def conduct(
    study: Study,
    *,
    selection: Selection | None = None,
    extend: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_plan: Callable[[SweepPlan], None] = lambda _: None,
) -> tuple[Study, Outcome]:
    """Train a sweep, and what its results ask for, round by round; what is done is never done again.

    Args:
        study: The sweep.
        selection: Which runs to train in this call.
        extend: Plan one round more than the config asks for.
        on_progress: Told about once a second.
        on_plan: Told of the plan of every further round before it is trained.

    Returns:
        The sweep with all its rounds, and where it stands.

    Raises:
        PlanError: The output directory cannot be written or holds another sweep, or no further runs can be planned.
        RunError: Another process trains this sweep.
        KeyboardInterrupt: Asked to stop; every run has saved, the same call goes on.
    """
    limits = _Limits(study, selection or Selection())
    study = with_recorded(study)
    may_extend = extend
    while True:
        now = _trainable(study)
        outcome = train_study(now, selection=limits.left(), on_progress=on_progress)
        if any(outcome.counts.get(state) for state in (RunState.PENDING, RunState.INTERRUPTED, RunState.RUNNING)):
            return now, outcome
        following = next_round(study, extend=may_extend)
        if following is None:
            return now, outcome
        may_extend = may_extend and _rounds(following.plan) <= study.config.rounds
        study = following
        on_plan(study.plan)


def with_recorded(study: Study) -> Study:
    """The sweep with the later rounds that its directory says were planned for the same question."""
    sweep = study.directory
    if not sweep.plan_file.exists() or sweep.plan.get("basis") != study.basis:
        return study
    plan, recorded = study.plan, sweep.experiments()
    if plan.design is None:
        known = {e.experiment_id for e in plan.experiments}
        later = [e for e in recorded if e.round > 1 and e.compute_budget in plan.compute_budgets]
        added = [e for e in later if e.experiment_id not in known]
        return dataclasses.replace(study, plan=_with_runs(plan, [*plan.experiments, *added]))
    design = sweep.plan.get("design")
    if not design or not design["is_final"] or not _same_question(plan.design, design):
        return study
    names = {field.name for field in dataclasses.fields(Design)}
    kept = Design(**{k: v for k, v in design.items() if k in names} | {"holdout": tuple(design["holdout"])})
    return dataclasses.replace(study, plan=dataclasses.replace(_with_runs(plan, recorded), design=kept))


def _with_runs(plan: SweepPlan, experiments: Sequence[Experiment]) -> SweepPlan:
    order = sorted(experiments, key=lambda e: (e.compute_budget, e.num_params, e.seed))
    return dataclasses.replace(plan, experiments=order)


def _same_question(design: Design, recorded: Mapping[str, object]) -> bool:
    return all(recorded.get(k) == getattr(design, k) for k in ("target_compute", "target_error", "max_flops"))


def _trainable(study: Study) -> Study:
    """Without the runs that the first round may still change."""
    plan = study.plan
    if plan.design is None or plan.design.is_final:
        return study
    first = [e for e in plan.experiments if e.round == 1]
    return dataclasses.replace(study, plan=dataclasses.replace(plan, experiments=first))


def _rounds(plan: SweepPlan) -> int:
    return max(e.round for e in plan.experiments)


def next_round(study: Study, *, extend: bool = False) -> Study | None:
    """What the completed runs ask for; None where they ask for nothing, or the config for no more.

    Raises:
        PlanError: They ask for what cannot be planned.
    """
    plan, done = study.plan, _rounds(study.plan)
    if plan.design is not None:
        if plan.design.is_final and not extend:
            return None
        return dataclasses.replace(study, plan=_designed_further(study))
    if done >= study.config.rounds and not extend:
        return None
    try:
        sides = open_sides(_analysis(study))
    except (FitError, DataError) as error:
        logger.warning("no further sizes are planned: %s", error)
        return None
    if not sides:
        return None
    further = plan_beyond(study.planner, plan, sides, round=done + 1)
    for text in further.warnings[len(plan.warnings) :]:
        logger.warning("%s", text)
    return dataclasses.replace(study, plan=further) if len(further.experiments) > len(plan.experiments) else None


def _analysis(study: Study) -> ScalingAnalysis:
    """Of the runs of its plan alone, so that the same runs always ask for the same."""
    table = read_runs(study.directory)
    table = table[table["run_id"].isin([e.experiment_id for e in study.plan.experiments])]
    return analyze_runs(table, unit=study.plan.unit)


def open_sides(analysis: ScalingAnalysis) -> dict[float, Side]:
    """Budgets whose minimum is not between their sizes, and on which side of them it must lie."""
    sides: dict[float, Side] = {}
    rows = analysis.rows
    for budget in analysis.isoflop.budgets if analysis.isoflop else ():
        here = np.isclose(rows.budget, budget.compute_budget, rtol=1e-6)
        sizes = np.unique(rows.N[here])
        lowest = sizes[int(np.argmin([rows.L[here & (rows.N == N)].mean() for N in sizes]))]
        if lowest == sizes[0]:
            sides[budget.compute_budget] = "smaller"
        elif lowest == sizes[-1]:
            sides[budget.compute_budget] = "larger"
        elif budget.num_params is None and budget.n_sizes >= 3:  # a crooked curve: more sizes where its minimum leans
            sides[budget.compute_budget] = "smaller" if lowest * lowest < sizes[0] * sizes[-1] else "larger"
    return sides


def _designed_further(study: Study) -> SweepPlan:
    """The design once more, by what the completed runs say."""
    question = question_of(study.config)
    assert question is not None
    assert study.plan.design is not None
    designer = Designer(planner=study.planner, question=question)
    completed = {r.run_id for r in map(study.directory.run, _names(study)) if r.state() is RunState.COMPLETED}
    done = [e for e in study.plan.experiments if e.experiment_id in completed]
    try:
        learnt = _learnt(study, designer, _analysis(study))
    except (FitError, DataError) as error:
        logger.warning("the first runs tell nothing of the law, and the rest is planned without: %s", error)
        learnt = _Learnt(designer.prior, study.plan.design.prior, study.config.noise)
    plan = designer.rest(
        learnt.laws, done, prior=learnt.words, noise=learnt.noise, round=_rounds(_trainable(study).plan) + 1
    )
    return dataclasses.replace(plan, warnings=list(dict.fromkeys(plan.warnings)), probe=study.plan.probe)


def _names(study: Study) -> list[str]:
    return [e.experiment_id for e in study.plan.experiments]


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What is believed after some runs, in words, and their scatter."""

    laws: Laws
    words: str
    noise: float


def _learnt(study: Study, designer: Designer, analysis: ScalingAnalysis) -> _Learnt:
    """The draws of the runs' surface; where these leave the exponents open, published ones round the runs' optimum."""
    assert study.config.target_compute is not None
    target, rule = study.config.target_compute, designer.rule
    noise = _noise(analysis, study.planner.budgets[-1], study.config.noise)
    draws = analysis.draws
    if draws is not None:
        family = ParametricLaw.from_logs(draws)
        with np.errstate(all="ignore"):
            log_N = np.log(family.optimum(target, rule)[0])
        log_N = log_N[np.isfinite(log_N)]
        if len(log_N) > len(draws) / 2 and np.subtract(*np.quantile(log_N, [0.9, 0.1])) < _TELLING:
            return _Learnt(family, f"the surface of the first {analysis.n_runs} runs", noise)
    C = math.exp(float(np.mean(np.log(analysis.rows.C))))
    N = analysis.predict(C).num_params
    if N is None:
        raise FitError("the first runs leave the best size open even among themselves")
    words = f"published exponents round the best size of the first {analysis.n_runs} runs"
    return _Learnt(usual_laws(C, N, rule), words, noise)


def _noise(analysis: ScalingAnalysis, largest: float, assumed: float) -> float:
    """Scatter of the log loss at the largest budget: that of the residuals, and what was assumed, by their numbers."""
    fit = analysis.parametric
    if fit is None:
        return assumed
    growth = Noise().growth
    scaled = np.asarray(fit.residuals) * (analysis.rows.C / largest) ** growth
    free = max(0, len(scaled) - _SURFACE_PARAMETERS)
    square = (_PRIOR_RESIDUALS * assumed**2 + float(scaled @ scaled)) / (_PRIOR_RESIDUALS + free)
    return math.sqrt(square)


class _Limits:
    """What one call may spend, over all its rounds."""

    def __init__(self, study: Study, selection: Selection) -> None:
        self._study, self._selection = study, selection
        self._began, self._before = time.monotonic(), self._done()
        self._is_first = True

    def _done(self) -> float:
        sweep = self._study.directory
        if not sweep.plan_file.exists():
            return 0.0
        return math.fsum(
            e.flops for e in sweep.experiments() if sweep.run(e.experiment_id).state() is RunState.COMPLETED
        )

    def left(self) -> Selection:
        """The selection, less what earlier rounds of the call have spent."""
        if self._is_first:
            self._is_first = False
            return self._selection
        hours, flops = self._selection.max_hours, self._selection.max_flops
        if hours is not None:
            hours = max(0.0, hours - (time.monotonic() - self._began) / 3600)
        if flops is not None:
            flops = max(0.0, flops - (self._done() - self._before))
        return dataclasses.replace(self._selection, max_hours=hours, max_flops=flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A run that was kept back, and what the others foretold of it.

    Attributes:
        run_id: The run.
        compute_budget: Of it [FLOPs].
        foretold: Its loss by all runs but those kept back [nats per token or sample].
        ci: 95 % interval of that, or None.
        loss: What it reached.
    """

    run_id: str
    compute_budget: float
    foretold: float
    ci: tuple[float, float] | None
    loss: float

    @property
    def error(self) -> float:
        """Forecast over measurement, less one."""
        return self.foretold / self.loss - 1

    def __str__(self) -> str:
        interval = "" if self.ci is None else f" ({self.ci[0]:.4g} to {self.ci[1]:.4g})"
        return (
            f"kept back at {format_flops(self.compute_budget)} FLOPs: {self.run_id} was foretold a loss of"
            f" {self.foretold:.4g}{interval} and reached {self.loss:.4g}, {self.error:+.2%}"
        )


def check_kept(study: Study) -> list[Kept]:
    """How well a designed sweep foretells the runs that it kept back; none where that cannot be told."""
    design = study.plan.design
    if design is None or not design.holdout:
        return []
    table = read_runs(study.directory)
    ended = table[table["state"] == "completed"]
    kept, others = (ended[ended["run_id"].isin(design.holdout) == which] for which in (True, False))
    if kept.empty:
        return []
    try:
        analysis = analyze_runs(others, unit=study.plan.unit)
        told = [analysis.predict(params=float(r.num_params), tokens=float(r.num_tokens)) for r in kept.itertuples()]
    except (FitError, DataError):
        return []
    return [
        Kept(
            run_id=str(r.run_id),
            compute_budget=float(r.compute_budget),
            foretold=p.loss,
            ci=p.ci.get("loss"),
            loss=float(r.loss),
        )
        for r, p in zip(kept.itertuples(), told, strict=True)
        if p.loss is not None
    ]
