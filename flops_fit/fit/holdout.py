"""Rolling hold-out: hide the largest budgets, fit the rest, see how far each candidate's forecast errs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flops_fit.fit.forms import Answer, Form, SurfaceForm
from flops_fit.fit.isoflop import IsoflopFit
from flops_fit.fit.optima import Optima
from flops_fit.fit.rows import Rows
from flops_fit.laws import ComputeRule, FloatArray

# What a good form errs by, per factor e of compute beyond its data, in log N_opt and in log loss: the best forms on
# published sweeps. It is worth as many hidden budgets as the degrees of freedom say.
FORM_ERROR: Final[Mapping[Answer, float]] = {"num_params": 0.1, "loss": 0.003}
PRIOR_BUDGETS: Final = 3.0

# Errors below these are not told apart: systematic differences between the budget's own parabola and the truth.
_FLOOR: Final[Mapping[Answer, float]] = {"num_params": 0.03, "loss": 0.0005}

_MOST_CUTS: Final = 6
_GROUPS: Final = 5
_FEWEST_BUDGETS: Final = 3

# A run this much above a budget still counts as one of it.
_ON_BUDGET: Final = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOutPoint:
    """One hidden budget, foretold from all smaller ones below a cut.

    Attributes:
        visible: Largest budget that was fitted [FLOPs].
        hidden: The budget that was foretold [FLOPs].
        se: Standard error of the hidden budget's own optimum: log N, and loss relative to it.
        errors: Per candidate and answer, log forecast minus log truth.
    """

    visible: float
    hidden: float
    se: Mapping[Answer, float]
    errors: Mapping[str, Mapping[Answer, float]]

    @property
    def log_distance(self) -> float:
        """log(hidden / visible)."""
        return float(np.log(self.hidden / self.visible))

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "visible": self.visible,
            "hidden": self.hidden,
            "factor": self.hidden / self.visible,
            "se": dict(self.se),
            "errors": {name: dict(errors) for name, errors in self.errors.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOut:
    """Every forecast of a hidden budget.

    Attributes:
        points: By cut, then by hidden budget.
        headline: log error of the headline answer at the largest budget, fitted to all smaller ones, by answer.
    """

    points: tuple[HoldOutPoint, ...]
    headline: Mapping[Answer, float]

    @property
    def largest(self) -> HoldOutPoint:
        """The largest budget, foretold from all smaller ones."""
        return max(self.points, key=lambda p: (p.hidden, p.visible))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a candidate's forecasts did on one answer.

    Attributes:
        n_hidden: Distinct budgets it foretold.
        rms: Root mean square of its log errors per factor e of compute; None where it foretold none.
        form_error: What it is taken to err by from here on, per factor e: prior and forecasts together.
        log_evidence: Log of what its weight is proportional to.
    """

    n_hidden: int
    rms: float | None
    form_error: float
    log_evidence: float


def score(points: Sequence[HoldOutPoint], names: Collection[str], answer: Answer) -> dict[str, Score]:
    """Score the candidates on one answer.

    A candidate's error at log distance d is taken as normal with standard deviation (form error) x d beside the noise
    of the hidden optimum; with an inverse-gamma prior on the form error's square, the evidence of the errors and the
    prediction for the next are Student's t. Forecasts of the same budget from several cuts are far from independent
    and count as one together. What a candidate could not forecast counts as the others' error, weighted by their
    evidence, lest those win that were tried least.
    """
    prior = FORM_ERROR[answer]
    tried = [p for p in points if any(answer in errors for errors in p.errors.values())]
    n = len({p.hidden for p in tried})
    if n == 0:
        return dict.fromkeys(names, Score(n_hidden=0, rms=None, form_error=prior, log_evidence=0.0))
    d = np.array([p.log_distance for p in tried])
    noise = np.array([p.se[answer] for p in tried]) ** 2 + _FLOOR[answer] ** 2
    # What a form errs by drifts as its exponents do: a forecast made a decade below the last says 1/e as much.
    age = np.log10([p.visible for p in tried])
    recent = np.exp(age - age.max())
    spread = np.sqrt((prior * d) ** 2 + noise)
    error = np.array([[p.errors.get(name, {}).get(answer, np.nan) for p in tried] for name in names])
    known = np.isfinite(error)

    def relative_square(errors: FloatArray) -> FloatArray:
        return np.asarray(np.average((errors / spread) ** 2, axis=-1, weights=recent))

    def log_evidence(relative: FloatArray) -> FloatArray:
        return np.asarray(-0.5 * (PRIOR_BUDGETS + n) * np.log1p(n * relative / PRIOR_BUDGETS))

    complete = known.all(axis=1)
    if complete.any():
        evidence = log_evidence(relative_square(error[complete]))
        share = np.exp(evidence - evidence.max())
        usual = share @ np.abs(error[complete]) / share.sum()
    else:
        usual = np.nanmedian(np.abs(error), axis=0)
    relative = relative_square(np.where(known, error, usual))
    return {
        name: Score(
            n_hidden=len({p.hidden for p, k in zip(tried, known[i], strict=True) if k}),
            rms=float(np.sqrt(np.mean((error[i] / d)[known[i]] ** 2))) if known[i].any() else None,
            form_error=prior * float(np.sqrt((PRIOR_BUDGETS + n * relative[i]) / (PRIOR_BUDGETS + n))),
            log_evidence=float(log_evidence(relative)[i]),
        )
        for i, name in enumerate(names)
    }


def groups_of(rows: Rows, isoflop: IsoflopFit) -> FloatArray:
    """What is hidden together: the budgets that have an optimum, or fifths of the runs by compute where few have one.

    Returns:
        The budget, or the largest compute of the fifth, of each run, shape (runs,); nan for runs of neither, which are
        hidden with the budgets that they are larger than.
    """
    best = Optima.of(isoflop)
    if len(best.C) >= _FEWEST_BUDGETS:
        return np.where(np.isin(rows.budget, best.C), rows.budget, np.nan)
    edges = np.unique(np.quantile(rows.C, np.linspace(0, 1, _GROUPS + 1)[1:], method="higher"))
    # Runs of one budget spend it to within a step: hiding some of them from the others foretells nothing.
    edges = edges[np.append(edges[1:] > _ON_BUDGET * edges[:-1], True)]
    return np.asarray(edges[np.searchsorted(edges, rows.C)])


def visible_runs(rows: Rows, groups: FloatArray, visible: float) -> Any:
    """Which runs are seen when everything above a budget is hidden."""
    return (groups <= visible) | (np.isnan(groups) & (rows.C <= _ON_BUDGET * visible))


def roll(
    rows: Rows,
    groups: FloatArray,
    isoflop: IsoflopFit,
    rule: ComputeRule,
    fit_forms: Callable[[Rows], Mapping[str, Form]],
) -> tuple[HoldOutPoint, ...]:
    """Hide the top 1, 2, ... budgets in turn and forecast every one that is hidden.

    Args:
        rows: The runs.
        groups: What is hidden together (``groups_of``).
        isoflop: The parabolas of all runs: each hidden budget's own is the truth. A group without one is judged by the
            losses of its runs.
        rule: What training costs.
        fit_forms: Fits every candidate to some of the rows.
    """
    levels = np.unique(groups[np.isfinite(groups)])
    # Two visible budgets are a thin base: used only where there are hardly more.
    first = min(3, len(levels) - 1)
    best = Optima.of(isoflop)
    points = []
    for cut in range(max(first, len(levels) - _MOST_CUTS, 2), len(levels)):
        visible = float(levels[cut - 1])
        forms = fit_forms(rows.take(visible_runs(rows, groups, visible)))
        for hidden in levels[cut:]:
            place = np.flatnonzero(best.C == hidden)
            if place.size:
                points.append(_against_optimum(forms, visible, best, int(place[0]), rule))
            elif len(best.C) < _FEWEST_BUDGETS:
                points.append(_against_runs(forms, visible, rows.take(groups == hidden)))
    return tuple(p for p in points if p.errors)


def _against_optimum(
    forms: Mapping[str, Form], visible: float, truth: Optima, i: int, rule: ComputeRule
) -> HoldOutPoint:
    hidden = float(truth.C[i])
    true: dict[Answer, float] = {"num_params": float(truth.log_size[i]), "loss": float(np.log(truth.loss[i]))}
    errors: dict[str, dict[Answer, float]] = {}
    for name, form in forms.items():
        errors[name] = {}
        for answer, log_truth in true.items():
            forecast = form.log_answer(answer, hidden, rule)
            if forecast is not None:
                errors[name][answer] = float(forecast[0]) - log_truth
    se: dict[Answer, float] = {"num_params": float(truth.log_size_se[i]), "loss": float(truth.loss_se[i])}
    return HoldOutPoint(visible=visible, hidden=hidden, se=se, errors=errors)


def _against_runs(forms: Mapping[str, Form], visible: float, rows: Rows) -> HoldOutPoint:
    errors: dict[str, dict[Answer, float]] = {}
    scatter = 0.0
    for name, form in forms.items():
        if isinstance(form, SurfaceForm):
            fit = SurfaceForm(theta=form.theta[:1])
            error = fit.log_loss(np.log(rows.N), np.log(rows.D)) - np.log(rows.L)
            errors[name] = {"loss": float(np.median(error))}
            scatter = float(np.std(error) / np.sqrt(len(error)))
    middle = float(np.exp(np.mean(np.log(rows.C))))
    # Fifths of the runs may touch; a forecast over no distance says nothing about the form.
    return HoldOutPoint(visible=visible, hidden=max(middle, _ON_BUDGET * visible), se={"loss": scatter}, errors=errors)
