"""What the figures show, as tidy frames: one frame a figure, its kinds of points in the column ``kind``.

Curves and bands are what ``ScalingAnalysis.predict`` answers, so a figure cannot say anything else than the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flops_fit.fit.diagnostics import COMPARED_AT
from flops_fit.fit.forms import Answer
from flops_fit.fit.isoflop import BudgetStatus
from flops_fit.laws import FloatArray, ParametricLaw

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

# What candidates foretell; the other answers follow from the size.
FORETOLD: tuple[Answer, Answer] = ("num_params", "loss")
HEADLINE = "headline"
ANSWERS = ("num_params", "num_tokens", "tokens_per_param", "loss")
# How far beyond the data curves are drawn, as a factor of compute.
_BEYOND = 100.0
_ON_CURVE = 61
# The plane of N and D: how far the frontier is followed on it [factor of compute], its margin, points on a side.
_FRONTIER_BEYOND = 10.0
_RIM = 1.6
_ON_GRID = 41


def budgets_of(analysis: ScalingAnalysis) -> FloatArray:
    """The budgets of the data, ascending, shape (budgets,) [FLOPs]; empty where runs share none."""
    budgets = analysis.rows.budget
    return np.unique(budgets[np.isfinite(budgets)])


def isoflop_series(analysis: ScalingAnalysis) -> pd.DataFrame:
    """Runs by budget, the runs left out, the parabola of each budget and its minimum.

    Returns:
        kind (run, excluded, curve, minimum), run_id, compute_budget, flops, num_params, loss, num_params_low and
        num_params_high (95 % interval of a minimum), inside (of a curve: among the sizes that were run), reason.
    """
    runs = analysis.runs[["run_id", "compute_budget", "flops", "num_params", "loss"]].assign(kind="run")
    parts = [runs, _excluded(analysis)]
    for budget in analysis.isoflop.budgets if analysis.isoflop else ():
        if budget.status is not BudgetStatus.OK or budget.num_params is None:
            continue
        sizes = analysis.rows.N[analysis.rows.budget == budget.compute_budget]
        low, high = np.log(sizes.min()), np.log(sizes.max())
        margin = 0.25 * (high - low)
        x = np.linspace(low - margin, high + margin, _ON_CURVE)
        curvature, lowest = budget.curvature or 0.0, budget.loss or np.nan
        curve = lowest + 0.5 * curvature * (x - np.log(budget.num_params)) ** 2
        parts.append(
            pd.DataFrame(
                {
                    "kind": "curve",
                    "compute_budget": budget.compute_budget,
                    "num_params": np.exp(x),
                    "loss": curve,
                    "inside": (x >= low - 1e-9) & (x <= high + 1e-9),
                }
            )
        )
        half = _student(budget.n_runs - 3) * (budget.log_n_se or np.nan)
        minimum = {
            "kind": "minimum",
            "compute_budget": budget.compute_budget,
            "num_params": budget.num_params,
            "loss": lowest,
            "num_params_low": budget.num_params * np.exp(-half),
            "num_params_high": budget.num_params * np.exp(half),
        }
        parts.append(pd.DataFrame([minimum]))
    columns = "kind run_id compute_budget flops num_params loss num_params_low num_params_high inside reason".split()
    return _stacked(parts).reindex(columns=columns)


def _student(spare: int) -> float:
    """95 % point of Student's t; NaN where nothing is to spare for judging the scatter."""
    from scipy.special import stdtrit

    return float(stdtrit(spare, 0.975)) if spare > 0 else np.nan


def _excluded(analysis: ScalingAnalysis) -> pd.DataFrame:
    """Runs left out of which the size is known; a loss that is not known stays missing."""
    names = ("run_id", "reason", "compute_budget", "num_params", "num_tokens", "flops", "loss")
    rows = [{name: getattr(run, name) for name in names} for run in analysis.excluded if run.num_params]
    return pd.DataFrame(rows).assign(kind="excluded") if rows else pd.DataFrame()


def optimum_series(analysis: ScalingAnalysis, target: float | None = None) -> pd.DataFrame:
    """The answers along compute, from the smallest run to a hundred times the largest budget, or to the target.

    Args:
        analysis: The fits.
        target: A budget to be answered in a row of its own, of kind "target" [FLOPs].

    Returns:
        kind (headline, the name of another candidate, budget, target), compute_budget, num_params, num_tokens,
        tokens_per_param, loss, each answer with _low and _high (95 % interval), extrapolated.
    """
    largest = analysis.largest_budget
    smallest = min(float(analysis.rows.C.min()), largest)
    end = max(largest * _BEYOND, 2 * (target or 0.0))
    parts = [answers(analysis, np.geomspace(smallest, end, _ON_CURVE)).assign(kind="headline")]
    C = parts[0]["compute_budget"].to_numpy()
    for name in rivals(analysis):
        N, loss = (_candidate(analysis, name, answer, C) for answer in FORETOLD)
        parts.append(_optima(name, C, N, analysis.rule.tokens(C, N), loss))
    points = [b for b in analysis.isoflop.budgets if b.num_params and b.num_tokens] if analysis.isoflop else []
    for b in points:
        t = _student(b.n_runs - 3)
        part = _optima("budget", [b.compute_budget], [b.num_params], [b.num_tokens], [b.loss])
        for name, center, se in (("num_params", b.num_params, b.log_n_se), ("num_tokens", b.num_tokens, b.log_d_se)):
            half = t * (se or np.nan)
            part[f"{name}_low"], part[f"{name}_high"] = (center or np.nan) * np.exp([-half, half])
        half = t * (b.loss_se or np.nan)
        parts.append(part.assign(loss_low=(b.loss or np.nan) - half, loss_high=(b.loss or np.nan) + half))
    if target is not None:
        parts.append(answers(analysis, np.array([target])).assign(kind="target"))
    frame = _stacked(parts)
    frame["extrapolated"] = frame["compute_budget"] > largest * 1.01
    return frame[["kind", *(c for c in frame if c != "kind")]]


def rivals(analysis: ScalingAnalysis) -> list[str]:
    """Candidates beside the headline."""
    return [name for name in analysis.combination.forms if name != analysis.headline.method]


def _candidate(analysis: ScalingAnalysis, name: str, answer: Answer, C: FloatArray) -> FloatArray:
    """What one candidate answers along compute; NaN where it has no answer."""
    form = analysis.combination.forms[name]
    values = (form.log_answer(answer, float(c), analysis.rule) for c in C)
    return np.array([np.nan if v is None else np.exp(v[0]) for v in values])


def _optima(kind: str, C: object, N: object, D: object, loss: object) -> pd.DataFrame:
    frame = pd.DataFrame({"kind": kind, "compute_budget": C, "num_params": N, "num_tokens": D, "loss": loss})
    return frame.assign(tokens_per_param=frame["num_tokens"] / frame["num_params"])


def answers(analysis: ScalingAnalysis, compute_budgets: FloatArray) -> pd.DataFrame:
    """The best model for each budget, with 95 % intervals.

    Returns:
        compute_budget; num_params, num_tokens, tokens_per_param and loss, each with _low and _high (NaN where it is
        withheld); extrapolated, whether the budget lies beyond the data.
    """
    rows = []
    for C in compute_budgets:
        prediction = analysis.predict(float(C))
        row: dict[str, float | bool] = {"compute_budget": float(C)}
        for name in ANSWERS:
            value = getattr(prediction, name)
            row[name] = np.nan if value is None else value
            row[f"{name}_low"], row[f"{name}_high"] = prediction.ci.get(name, (np.nan, np.nan))
        rows.append(row | {"extrapolated": bool(C > analysis.largest_budget * 1.01)})
    return pd.DataFrame(rows)


def residual_series(analysis: ScalingAnalysis) -> pd.DataFrame:
    """Measured over predicted loss of every fitted run, minus 1; empty without a surface.

    Returns:
        run_id, compute_budget, num_params, num_tokens, flops, loss, predicted, residual.
    """
    if analysis.parametric is None:
        return pd.DataFrame()
    runs = analysis.runs
    predicted = analysis.parametric.law.loss(runs["num_params"], runs["num_tokens"])
    return runs.assign(predicted=predicted, residual=runs["loss"] / predicted - 1)


def holdout_series(analysis: ScalingAnalysis) -> pd.DataFrame:
    """Forecasts of hidden budgets by every candidate; the headline's for the largest budget.

    Returns:
        candidate, answer (num_params, loss), visible, hidden (budgets), factor (hidden over visible), error (forecast
        over truth, minus 1), truth_se (relative standard error of the hidden budget's own optimum). Empty without a
        hold-out.
    """
    if analysis.holdout is None:
        return pd.DataFrame()
    rows = []
    largest = analysis.holdout.largest
    for point in analysis.holdout.points:
        told = dict(point.errors) | ({HEADLINE: analysis.holdout.headline} if point is largest else {})
        for name, errors in told.items():
            for answer, error in errors.items():
                row = {"candidate": name, "answer": answer, "visible": point.visible, "hidden": point.hidden}
                row |= {"factor": point.hidden / point.visible, "error": float(np.expm1(error))}
                rows.append(row | {"truth_se": point.se.get(answer, np.nan)})
    return pd.DataFrame(rows)


def leave_out_series(analysis: ScalingAnalysis) -> pd.DataFrame:
    """What leaving out each budget, and each size, does to the surface's answer beyond the data.

    Returns:
        what (budget, size), value (which one), n_runs, compute_budget (where they are compared), answer (num_params,
        loss), change (answer without over answer with, minus 1), low and high (the surface's own 95 % interval, on
        the same scale). Empty without a surface.
    """
    if analysis.parametric is None or not analysis.leave_one_out:
        return pd.DataFrame()
    C = COMPARED_AT * analysis.largest_budget
    N, _ = analysis.parametric.law.optimum(C, analysis.rule)
    whole = {"num_params": float(N), "loss": float(analysis.parametric.law.optimal_loss(C, analysis.rule))}
    spread: dict[str, tuple[float, float]] = {}
    if analysis.draws is not None and len(analysis.draws):
        laws = ParametricLaw.from_logs(analysis.draws)
        # Some draws of a surface that is hardly determined go anywhere.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            drawn = {"num_params": laws.optimum(C, analysis.rule)[0], "loss": laws.optimal_loss(C, analysis.rule)}
            spread = {name: tuple(np.quantile(v, [0.025, 0.975]) / whole[name] - 1) for name, v in drawn.items()}
    rows = []
    for left in analysis.leave_one_out:
        for answer in FORETOLD:
            low, high = spread.get(answer, (np.nan, np.nan))
            row = {"what": left.what, "value": left.value, "n_runs": left.n_runs, "compute_budget": C}
            change = getattr(left, answer) / whole[answer] - 1
            rows.append(row | {"answer": answer, "change": change, "low": low, "high": high})
    return pd.DataFrame(rows)


def surface_series(analysis: ScalingAnalysis) -> pd.DataFrame:
    """The surface L(N, D) on a grid around the runs and the frontier, with both.

    Returns:
        kind (grid, run, headline), compute_budget, num_params, num_tokens, loss, extrapolated. Empty without a surface.
    """
    if analysis.parametric is None:
        return pd.DataFrame()
    runs = analysis.runs[["compute_budget", "num_params", "num_tokens", "loss"]].assign(kind="run")
    ends = (float(analysis.rows.C.min()), _FRONTIER_BEYOND * analysis.largest_budget)
    path = answers(analysis, np.geomspace(*ends, _ON_CURVE))
    path = path[["compute_budget", "num_params", "num_tokens", "loss", "extrapolated"]].assign(kind="headline")
    axes = []
    for name, own in (("num_params", analysis.rows.N), ("num_tokens", analysis.rows.D)):
        told = path[name].to_numpy(float)
        values = np.concatenate([own, told[np.isfinite(told) & (told < _FRONTIER_BEYOND * own.max())]])
        axes.append(np.geomspace(values.min() / _RIM, values.max() * _RIM, _ON_GRID))
    N, D = (a.ravel() for a in np.meshgrid(*axes))
    grid = pd.DataFrame({"kind": "grid", "num_params": N, "num_tokens": D})
    return _stacked([grid.assign(loss=analysis.parametric.law.loss(N, D)), runs, path])


def all_series(analysis: ScalingAnalysis, *, target: float | None = None) -> dict[str, pd.DataFrame]:
    """The data of every figure of an analysis, by the figure's name; only those that have any.

    Args:
        analysis: The fits.
        target: As in ``optimum_series``.
    """
    optimum = optimum_series(analysis, target)
    series = {"isoflop": isoflop_series(analysis), "optimum": optimum, "frontier": optimum}
    series |= {"residuals": residual_series(analysis), "holdout": holdout_series(analysis)}
    series |= {"leave_out": leave_out_series(analysis), "surface": surface_series(analysis)}
    return {name: frame for name, frame in series.items() if not frame.empty}


def _stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames under each other; what one has not is missing."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    whole = [part.reindex(columns=names).astype(object) for part in parts if len(part)]
    return pd.concat(whole, ignore_index=True).infer_objects()
