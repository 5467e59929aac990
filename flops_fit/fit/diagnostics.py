"""What the reader must know before trusting an analysis, each with a stable code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from flops_fit.fit.forms import ANSWERS, SURFACE, Answer
from flops_fit.fit.isoflop import BudgetStatus, ParabolaBias, parabola_bias
from flops_fit.fit.noise import is_lacking
from flops_fit.fit.parametric import FitStatus
from flops_fit.fit.prediction import Warning_
from flops_fit.laws import FloatArray
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis

PARABOLA: Final = "parabola"

# Warnings that make an analysis untrustworthy: its headline may be wrong by more than its interval says, or the
# interval is too wide to act on.
GRAVE: Final = frozenset(
    {
        "surface_not_converged",
        "exponent_at_bound",
        "minimum_at_edge",
        "too_few_budgets",
        "methods_contradict",
        "holdout_missed",
        "size_uncertain",
    }
)

# Where the methods are compared [times the largest budget], and the uncertainty that makes an answer useless [factor].
COMPARED_AT: Final = 10.0
_USELESS: Final = 2.0
# Differences between the methods that are worth a word even where both are uncertain: 20 % in N, 1 % in the loss.
_APART: Final[Mapping[Answer, float]] = {"num_params": float(np.log(1.2)), "loss": 0.01}

# Answers closer than this agree [log].
_SAME: Final = 0.01

_FEW_SIZES: Final = 4
_FEW_BUDGETS: Final = 3
_BIAS_WORTH_SAYING: Final = 0.02
_SHIFTS_WORTH_SAYING: Final = 6.0
_HOLDOUT_LOSS: Final = 0.04


def find_warnings(analysis: ScalingAnalysis) -> list[Warning_]:
    """All warnings that do not depend on the question, the gravest first."""
    found = [
        *_surface(analysis),
        *_grid(analysis),
        *_methods(analysis),
        *_hold_out(analysis),
        *_data(analysis),
        *_beliefs(analysis),
    ]
    return sorted(found, key=lambda w: w.code not in GRAVE)


def prediction_warnings(analysis: ScalingAnalysis, C: float, log_size: FloatArray) -> Iterator[Warning_]:
    """Warnings of one answer: the analysis's own, then those of this budget.

    Args:
        analysis: The analysis.
        C: The budget [FLOPs].
        log_size: Ends of the interval of log N_opt.
    """
    yield from analysis.warnings
    factor = C / analysis.largest_budget
    if factor > 100:
        span = np.log10(analysis.rows.C.max() / analysis.rows.C.min())
        said = f"{np.log10(factor):.1f} decades beyond the largest budget, on data that span {span:.1f} decades"
        yield Warning_("far_extrapolation", f"{format_flops(C)} FLOPs lie {said}; train a larger budget before acting")
    if factor > COMPARED_AT:
        yield from _disagreements(analysis, C)
    if len(log_size) > 1 and log_size[-1] - log_size[0] > 2 * np.log(_USELESS):
        said = f"the best size at {format_flops(C)} FLOPs is known to a factor {_factor(log_size)}"
        yield Warning_("size_uncertain_here", said)


def disagreement(analysis: ScalingAnalysis, C: float, level: float = 0.95) -> dict[Answer, tuple[float, bool]]:
    """How far surface and parabola are apart at C FLOPs, per answer that both give.

    Args:
        analysis: The analysis.
        C: The budget [FLOPs].
        level: Coverage of the intervals, which are added in quadrature.

    Returns:
        Log of the surface's answer over the parabola's, and whether that is more than their intervals allow.
    """
    forms = analysis.combination.forms
    if SURFACE not in forms or PARABOLA not in forms:
        return {}
    found: dict[Answer, tuple[float, bool]] = {}
    for answer in ANSWERS:
        told = [forms[name].log_answer(answer, C, analysis.rule) for name in (SURFACE, PARABOLA)]
        known = [t for t in told if t is not None and len(t) > 2]
        if len(known) == 2:
            ends = [np.nanquantile(t[1:], [0.5 - level / 2, 0.5 + level / 2]) for t in known]
            apart = float(known[0][0] - known[1][0])
            # By how much the parabolas err on this grid is known, and no contradiction.
            bias = _parabola_bias(analysis) if answer == "num_params" else None
            unexplained = apart if bias is None else apart + float(bias.log_n_at(C))
            beyond = abs(unexplained) > np.hypot(*[(high - low) / 2 for low, high in ends]) + _SAME
            found[answer] = apart, bool(beyond)
    return found


def _parabola_bias(analysis: ScalingAnalysis) -> ParabolaBias | None:
    if analysis.parametric is None or analysis.isoflop is None:
        return None
    r = analysis.rows
    used = np.isin(r.budget, [b.compute_budget for b in analysis.isoflop.optima])
    return parabola_bias(analysis.parametric.law, r.N, r.D, r.C, np.where(used, r.budget, np.nan))


def _factor(log_ends: FloatArray) -> str:
    """Half an interval of a log, as the factor either way."""
    half = float(log_ends[-1] - log_ends[0]) / 2
    return f"{np.exp(half):.2g}" if half < np.log(1e6) else "a million and more"


def is_trustworthy(analysis: ScalingAnalysis) -> bool:
    """No grave warning."""
    return not any(w.code in GRAVE for w in analysis.warnings)


def irreducible_loss(analysis: ScalingAnalysis) -> tuple[float | None, str | None]:
    """E, or None and why it is withheld."""
    fit = analysis.parametric
    if fit is None:
        return None, "there is no surface"
    low, high = analysis.ci.get("parametric", {}).get("E", (fit.law.E, fit.law.E))
    if fit.status is not FitStatus.CONVERGED:
        return None, f"the surface's status is {fit.status}"
    if low <= 0:
        return None, "its interval reaches 0"
    if analysis.combination.method("loss") != SURFACE:
        return None, "the surface's form does not fit these runs, and another form has another E"
    if analysis.frontier is not None and analysis.frontier.reason is None:
        told = analysis.ci.get("L_opt", {}).get("l_inf")
        if told is not None and (told[1] < low or told[0] > high):
            return None, f"the surface says {fit.law.E:.4g}, the law through the optima {analysis.frontier.l_inf:.4g}"
    return float(fit.law.E), None


def _surface(analysis: ScalingAnalysis) -> Iterator[Warning_]:
    fit = analysis.parametric
    if fit is None:
        return
    if fit.status is FitStatus.NOT_CONVERGED:
        yield Warning_("surface_not_converged", "the surface's fit did not converge; its parameters mean little")
    if fit.status is FitStatus.AT_BOUND:
        said = f"alpha = {fit.law.alpha:.3g}, beta = {fit.law.beta:.3g}"
        yield Warning_("exponent_at_bound", f"an exponent of the surface sits on its bound ({said}); widen the sweep")
    value, reason = irreducible_loss(analysis)
    if value is None:
        yield Warning_("E_not_identified", f"no irreducible loss is stated: {reason}")
    lack, noise = analysis.lack_of_fit, analysis.noise
    if lack is not None and noise is not None and is_lacking(lack):
        said = f"whole cells by {100 * lack.size:.2g} % beyond the {100 * noise.sd:.2g} % between seeds"
        yield Warning_("lack_of_fit", f"the surface misses {said} (F = {lack.statistic:.2g}, p = {lack.p_value:.1g})")
    misfit = analysis.misfit
    if misfit is not None and misfit.doubt >= 0.5:
        said = f"its residuals show smooth structure of {100 * misfit.size:.1f} % (statistic {misfit.statistic:.1f})"
        yield Warning_("surface_misfit", f"the surface's form does not hold: {said}; answers combine several forms")
    if misfit is not None and misfit.shift_statistic > _SHIFTS_WORTH_SAYING:
        said = "whole budgets are shifted against each other (another learning rate, another evaluation set?)"
        yield Warning_("budget_shifts", f"{said}; losses are less certain than their scatter within a budget suggests")


def _grid(analysis: ScalingAnalysis) -> Iterator[Warning_]:
    budgets = () if analysis.isoflop is None else analysis.isoflop.budgets

    def named(which: list[float]) -> str:
        return ", ".join(format_flops(C) for C in which)

    outside = [b.compute_budget for b in budgets if b.status is BudgetStatus.MINIMUM_OUTSIDE]
    flat = [b.compute_budget for b in budgets if b.status is BudgetStatus.NOT_CONVEX]
    edge = [b.compute_budget for b in budgets if b.status is BudgetStatus.OK and b.argmin_at_edge]
    few = [b.compute_budget for b in budgets if b.n_sizes < _FEW_SIZES]
    if outside and len(outside) + len(flat) >= len(budgets) / 2:
        yield Warning_("minimum_at_edge", f"no minimum inside the sizes at {named(outside)} FLOPs; move the sizes")
    elif outside:
        yield Warning_("minimum_outside", f"no minimum inside the sizes at {named(outside)} FLOPs; those are left out")
    if flat:
        yield Warning_("not_convex", f"loss against log size does not curve upwards at {named(flat)} FLOPs")
    if edge:
        yield Warning_("lowest_at_edge", f"the lowest run is the smallest or largest size at {named(edge)} FLOPs")
    if few:
        yield Warning_("too_few_sizes", f"fewer than {_FEW_SIZES} sizes at {named(few)} FLOPs")
    if len(budgets) < _FEW_BUDGETS:
        said = f"{len(budgets)} budgets; no forecast of a hidden one can be tried" if budgets else "no budgets found"
        yield Warning_("too_few_budgets" if budgets else "no_budgets", said)
    bias = _parabola_bias(analysis)
    if bias is not None:
        C = COMPARED_AT * bias.compute_budget
        there = float(np.expm1(bias.log_n_at(C)))
        if abs(there) > _BIAS_WORTH_SAYING:
            said = f"N_opt {100 * there:+.0f} % at {format_flops(C)} FLOPs, exponent {bias.n_exponent:+.3f}"
            said = f"{said}, on losses without noise from the fitted surface"
            yield Warning_("parabola_bias", f"on this grid the parabolas alone err: {said}")


def _methods(analysis: ScalingAnalysis) -> Iterator[Warning_]:
    C = COMPARED_AT * analysis.largest_budget
    yield from _disagreements(analysis, C)
    told = analysis.combination.forecast("num_params", C, (0.025, 0.975))
    if told is not None and told.quantiles[1] - told.quantiles[0] > 2 * np.log(_USELESS):
        wide = _factor(told.quantiles)
        yield Warning_("size_uncertain", f"the best size at {format_flops(C)} FLOPs is known to a factor {wide} only")
    if SURFACE not in analysis.combination.forms:
        yield Warning_("no_surface", f"no surface was fitted: {analysis.missing.get('parametric', 'too few runs')}")


def _disagreements(analysis: ScalingAnalysis, C: float) -> Iterator[Warning_]:
    for answer, (apart, beyond) in disagreement(analysis, C).items():
        if beyond or abs(apart) > _APART[answer]:
            what = "N_opt" if answer == "num_params" else "loss"
            near = abs(apart) < np.log(2)
            more = f"{100 * np.expm1(apart):+.2g} % from" if near else f"{np.exp(apart):.2g} times"
            said = f"at {format_flops(C)} FLOPs the surface's {what} is {more} the parabolas'"
            if beyond and analysis.combination.method(answer) == SURFACE:
                yield Warning_("methods_contradict", f"{said}, more than their intervals allow")
            elif beyond:
                yield Warning_("methods_disagree", f"{said}, more than their intervals allow; neither answers alone")
            else:
                yield Warning_("methods_disagree", f"{said}; their intervals are wide enough for both")


def _hold_out(analysis: ScalingAnalysis) -> Iterator[Warning_]:
    if analysis.holdout is None:
        return
    largest, told = analysis.holdout.largest, analysis.holdout.headline
    if abs(told.get("loss", 0.0)) > _HOLDOUT_LOSS or abs(told.get("num_params", 0.0)) > np.log(_USELESS):
        said = ", ".join(f"{a} {100 * np.expm1(e):+.1f} %" for a, e in told.items())
        yield Warning_(
            "holdout_missed", f"hidden, the largest budget ({format_flops(largest.hidden)}) was missed: {said}"
        )


def _data(analysis: ScalingAnalysis) -> Iterator[Warning_]:
    from flops_fit.fit.budgets import named_ratio

    rows = analysis.rows
    ratio = named_ratio(rows.C, rows.N, rows.D)
    if ratio is not None:
        yield Warning_("flops_ratio", ratio)
    with np.errstate(invalid="ignore"):
        repeated = int((rows.D > 1.01 * rows.unique).sum())
    left_out = sum(e.reason.startswith("repeats") for e in analysis.excluded)
    if repeated or left_out:
        said = f"{repeated + left_out} runs repeat their data"
        said += f", {left_out} of them so often that they are left out" if left_out else ""
        yield Warning_("repeated_data", f"{said}; the laws are about fresh data")
    n = sum(e.reason.startswith("outlier") for e in analysis.excluded)
    if n:
        which = "1 run that the others contradict is" if n == 1 else f"{n} runs that the others contradict are"
        yield Warning_("outliers", f"{which} left out; see excluded")


def _beliefs(analysis: ScalingAnalysis) -> Iterator[Warning_]:
    combination = analysis.combination
    weight = max(combination.weights(a).get("local_law", 0.0) * combination.doubt(a) for a in ANSWERS)
    if analysis.priors and weight > 0.1:
        a, gamma = analysis.priors["N_opt_exponent"], analysis.priors["gamma"]
        factor = float(np.exp(gamma["sd_of_log"]))
        said = f"exponent of N_opt {a['mean']} +- {a['sd']}, gamma {gamma['median']} within a factor {factor:.2f}"
        yield Warning_("priors", f"answers lean on published laws ({said}); priors=False goes without")
