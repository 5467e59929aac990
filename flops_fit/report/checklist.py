"""What a reader needs to repeat a scaling study, answered from the analysis and from what the runs recorded.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer (2025), "(Mis)Fitting: A Survey of Scaling Laws",
arXiv:2502.18969: the form of the law, how the models were trained, what was collected, how the law was fitted.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flops_fit.report.left_out import reasons
from flops_fit.report.provenance import ASK, evaluated, loss_unit, origin, trained
from flops_fit.report.recorded import Recorded
from flops_fit.report.series import budgets_of, residual_series
from flops_fit.report.tables import holdout_line, noise_line
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

__all__ = ["ASK", "checklist"]


def checklist(analysis: ScalingAnalysis, recorded: Recorded | None = None) -> pd.DataFrame:
    """Part, question and answer; what neither the analysis nor the runs know says so.

    Args:
        analysis: The fits.
        recorded: What is known of the runs beside.
    """
    recorded = recorded or Recorded()
    parts = {
        "the law": _law(analysis),
        "training": _training(analysis) | trained(recorded),
        "data points": _points(analysis, recorded),
        "fitting": _fitting(analysis),
        "to repeat it": _repeat(recorded),
    }
    return pd.DataFrame(
        [{"part": part, "question": q, "answer": a} for part, items in parts.items() for q, a in items.items() if a]
    )


def _law(analysis: ScalingAnalysis) -> dict[str, str]:
    tied = analysis.parametric is not None and analysis.parametric.tied
    surface = "L(N, D) = E + A / N^alpha + B / D^beta" + (", alpha = beta" if tied else "")
    forms = []
    if analysis.parametric is not None:
        forms.append(f"surface: {surface}")
    if analysis.isoflop is not None and analysis.isoflop.N_opt is not None:
        forms.append("IsoFLOP parabolas: L quadratic in log N at each budget, then N_opt = k C^a and D_opt = k C^b")
    rule = analysis.rule
    cost = "6 N D" if (rule.k, rule.q) == (6.0, 1.0) else f"{rule.k:.4g} N^{rule.q:.4g} D, fitted to recorded compute"
    return {
        "form of the law": "; ".join(forms),
        "all candidates": ", ".join(analysis.combination.forms),
        "which one answers, and why": f"{analysis.headline.method}: {analysis.headline.why}",
        "variables": f"N = {analysis.n_convention}, D = {analysis.unit}, C = {cost}",
        "fitted parameters": ("E, A, B, alpha" + ("" if tied else ", beta")) if analysis.parametric is not None else "",
    }


def _training(analysis: ScalingAnalysis) -> dict[str, str]:
    rows = analysis.rows
    epochs = rows.D / rows.unique
    known = epochs[np.isfinite(epochs)]
    if not known.size:
        repeated = "unknown: the table has no unique_tokens"
    elif known.max() <= 1.01:
        repeated = "no"
    else:
        repeated = f"{(known > 1.01).sum()} runs repeat data, up to {known.max():.3g} epochs"
    budgets = budgets_of(analysis)
    return {
        "models trained": f"{analysis.n_runs} runs of {len(np.unique(rows.N))} sizes",
        "sizes": f"{format_count(rows.N.min())} to {format_count(rows.N.max())} parameters",
        "how parameters are counted": analysis.n_convention,
        f"{analysis.unit} per run": f"{format_count(rows.D.min())} to {format_count(rows.D.max())}",
        "compute per run": f"{format_flops(rows.C.min())} to {format_flops(rows.C.max())} FLOPs",
        "budgets": f"{budgets.size}" if budgets.size else "none: no three runs share one",
        "is data repeated": repeated,
    }


def _points(analysis: ScalingAnalysis, recorded: Recorded) -> dict[str, str]:
    rows = analysis.rows
    cells = pd.DataFrame({"N": rows.N, "D": rows.D}).value_counts()
    repeats = int((cells > 1).sum())
    return {
        "what is fitted": "one loss per run, the one at its end",
        "loss": f"{rows.L.min():.4g} to {rows.L.max():.4g}, in {loss_unit(recorded)}",
        "seeds": f"{repeats} of {len(cells)} cells (N, D) were run more than once; "
        + (noise_line(analysis) or "what differs between such runs is not known")
        if repeats
        else "every cell (N, D) was run once: the noise is judged by the fit alone",
        "evaluation set": evaluated(recorded),
        "columns of the table": ", ".join(f"{ours} = {theirs}" for ours, theirs in recorded.mapping.items()),
        "assumed in reading it": "; ".join(recorded.notes),
        "runs left out": "; ".join(f"{len(r.runs)} x {r.said}" for r in reasons(analysis)) or "none",
    }


def _fitting(analysis: ScalingAnalysis) -> dict[str, str]:
    fit, answers = analysis.parametric, {}
    if fit is not None:
        delta = f", delta = {fit.huber_delta:.4g}" if fit.huber_delta is not None else ""
        loss = {"huber": "Huber loss of log-loss residuals", "log": "squares of log loss", "linear": "squares of loss"}
        percent = 100 * residual_series(analysis)["residual"]
        answers = {
            "objective": f"{loss.get(fit.loss_kind, fit.loss_kind)}{delta}",
            "algorithm": "variable projection over a grid of exponents, then Newton's method from the best minima",
            "initial values": "none are needed: the grid covers exponents from 0.02 to 1.5",
            "how it ended": f"{fit.status}, objective {fit.objective:.10g}",
            "goodness of fit": f"residuals: 68 % within {np.percentile(np.abs(percent), 68):.2g} %, "
            f"largest {np.abs(percent).max():.2g} %",
        }
    intervals = "none" if not analysis.ci else "resampling of whole runs (bootstrap), 95 %"
    return answers | {
        "how the law was checked": holdout_line(analysis),
        "intervals": f"{intervals}, seed {analysis.combination.seed}",
        "extrapolation": f"answers beyond {format_flops(analysis.largest_budget)} FLOPs are marked",
    }


def _repeat(recorded: Recorded) -> dict[str, str]:
    return {
        "command": recorded.command or "not recorded",
        "config": "below" if recorded.config else "",
        "fitted runs": "runs.csv beside this page; what each figure shows is in figures/*.csv",
        "versions of the analysis": ", ".join(
            [f"{name} {_version(name)}" for name in ("flops-fit", "numpy", "scipy", "pandas")]
            + [f"Python {platform.python_version()}"]
        ),
    } | origin(recorded)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
