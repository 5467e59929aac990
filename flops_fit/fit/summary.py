"""A ScalingAnalysis as plain types: what ``analyze --json`` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flops_fit.fit.diagnostics import irreducible_loss
from flops_fit.fit.prediction import SCHEMA_VERSION, finite

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis
    from flops_fit.fit.powerlaw import PowerLawFit


def summarise(analysis: ScalingAnalysis) -> dict[str, Any]:
    """The analysis in plain types, full precision; None for what is no finite number."""
    document: dict[str, Any] = finite(_document(analysis))
    return document


def _document(analysis: ScalingAnalysis) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "n_runs": analysis.n_runs,
        "excluded": [{"run": e.run_id, "reason": e.reason} for e in analysis.excluded],
        "headline": {"method": analysis.headline.method, "why": analysis.headline.why},
        "holdout": _holdout(analysis),
        "parametric": _parametric(analysis),
        "isoflop": _isoflop(analysis),
        "envelope": _envelope(analysis),
        "candidates": _candidates(analysis),
        "misfit": None
        if analysis.misfit is None
        else {
            "statistic": analysis.misfit.statistic,
            "size": analysis.misfit.size,
            "shift_statistic": analysis.misfit.shift_statistic,
        },
        "leave_one_out": [asdict(row) for row in analysis.leave_one_out],
        "repetition": _repetition(analysis),
        "noise": None if analysis.noise is None else asdict(analysis.noise),
        "lack_of_fit": None if analysis.lack_of_fit is None else asdict(analysis.lack_of_fit),
        "priors": dict(analysis.priors),
        "compute_rule": {"k": analysis.rule.k, "q": analysis.rule.q},
        "missing": dict(analysis.missing),
        "n_convention": analysis.n_convention,
        "unit": analysis.unit,
        "loss_unit": analysis.loss_unit,
        "data_fingerprint": analysis.data_fingerprint,
        "irreducible_loss": dict(zip(("value", "withheld_because"), irreducible_loss(analysis), strict=True)),
        "trustworthy": analysis.trustworthy,
        "warnings": [w.to_dict() for w in analysis.warnings],
    }


def _parametric(analysis: ScalingAnalysis) -> dict[str, Any] | None:
    fit = analysis.parametric
    if fit is None:
        return None
    law = fit.law
    a, b = law.exponents(analysis.rule)
    return {
        "E": law.E,
        "A": law.A,
        "B": law.B,
        "alpha": law.alpha,
        "beta": law.beta,
        "a": a,
        "b": b,
        "objective": fit.objective,
        "huber_delta": fit.huber_delta,
        "status": str(fit.status),
        "scale": fit.scale,
        "ci": _ci(analysis, "parametric"),
    }


def _isoflop(analysis: ScalingAnalysis) -> dict[str, Any] | None:
    fit = analysis.isoflop
    if fit is None:
        return None
    return {
        "budgets": [
            {
                "compute_budget": b.compute_budget,
                "num_params": b.num_params,
                "num_tokens": b.num_tokens,
                "loss": b.loss,
                "status": str(b.status),
                "n_runs": b.n_runs,
                "n_sizes": b.n_sizes,
            }
            for b in fit.budgets
        ],
        "N_opt": _power_law(analysis, "N_opt", fit.N_opt),
        "D_opt": _power_law(analysis, "D_opt", fit.D_opt),
        "L_opt": _frontier(analysis),
    }


def _power_law(analysis: ScalingAnalysis, name: str, fit: PowerLawFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {
        "k": fit.law.k,
        "exponent": fit.law.exponent,
        "r_squared": fit.r_squared,
        "exponent_se": fit.exponent_se,
        "ci": _ci(analysis, name),
    }


def _frontier(analysis: ScalingAnalysis) -> dict[str, Any] | None:
    fit = analysis.frontier
    if fit is None:
        return None
    return {
        "k": fit.law.k,
        "exponent": fit.law.exponent,
        "l_inf": fit.l_inf,
        "r_squared": fit.r_squared,
        "status": str(fit.status),
        "reason": fit.reason,
        "ci": _ci(analysis, "L_opt"),
    }


def _repetition(analysis: ScalingAnalysis) -> dict[str, Any] | None:
    fit = analysis.repetition
    if fit is None:
        return None
    return {
        "R_D": fit.law.R_D,
        "R_N": fit.law.R_N,
        "borrowed": fit.law.borrowed,
        "status": str(fit.status),
        "n_repeated": fit.n_repeated,
        "R_D_range": fit.R_D_range and list(fit.R_D_range),
        "R_N_range": fit.R_N_range and list(fit.R_N_range),
    }


def _envelope(analysis: ScalingAnalysis) -> dict[str, Any] | None:
    fit = analysis.envelope
    if fit is None:
        return None
    return {
        "n_sizes": fit.n_sizes,
        "descriptive": fit.descriptive,
        "reason": fit.reason,
        "points": [
            {"num_params": p.num_params, "compute": p.compute, "num_tokens": p.num_tokens, "loss": p.loss}
            for p in fit.points
        ],
        "N_opt": _power_law(analysis, "envelope", fit.N_opt),
        "D_opt": _power_law(analysis, "envelope", fit.D_opt),
    }


def _holdout(analysis: ScalingAnalysis) -> dict[str, Any] | None:
    if analysis.holdout is None:
        return None
    largest = analysis.holdout.largest
    return {
        "visible": largest.visible,
        "hidden": largest.hidden,
        "factor": largest.hidden / largest.visible,
        "headline": dict(analysis.holdout.headline),
        "errors": {name: dict(errors) for name, errors in largest.errors.items()},
        "se": dict(largest.se),
        "points": [p.to_dict() for p in analysis.holdout.points],
    }


def _candidates(analysis: ScalingAnalysis) -> list[dict[str, Any]]:
    combination = analysis.combination
    weights = {answer: combination.weights(answer) for answer in combination.scores}
    return [
        {
            "name": name,
            "scores": {
                answer: {
                    "n_hidden": scores[name].n_hidden,
                    "rms_per_efold": scores[name].rms,
                    "form_error_per_efold": scores[name].form_error,
                    "weight": weights[answer].get(name, 0.0),
                }
                for answer, scores in combination.scores.items()
            },
        }
        for name in combination.forms
    ]


def _ci(analysis: ScalingAnalysis, group: str) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in analysis.ci.get(group, {}).items()}
