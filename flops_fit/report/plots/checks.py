"""What speaks for or against the laws: residuals, hidden budgets, and what single budgets or sizes do to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from scipy.special import ndtri

from flops_fit.laws import FloatArray
from flops_fit.report.series import HEADLINE, budgets_of, holdout_series, leave_out_series, residual_series
from flops_fit.report.style import (
    BLUE,
    CANDIDATES,
    MOST_IN_LEGEND,
    ORANGE,
    compute_scale,
    count_axis,
    draw_dots,
    marker_of,
    own_axes,
)
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

_RESIDUAL = "measured / predicted loss - 1 [%]"


def plot_residuals(
    analysis: ScalingAnalysis,
    against: str = "num_params",
    ax: Axes | None = None,
    *,
    series: pd.DataFrame | None = None,
) -> Axes:
    """Measured over predicted loss of the surface, in percent, against N, D or C.

    Args:
        analysis: The fits, with a surface.
        against: num_params, num_tokens or flops.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
    """
    with own_axes(ax, (5.6, 4.6)) as ax:
        series = _in_percent(analysis, series)
        spread = float(np.percentile(np.abs(series["percent"]), 68))
        limit = _limit(series["percent"].to_numpy(float))
        ax.axhspan(-spread, spread, color="#ebebeb", zorder=0, lw=0, label="68 % of the runs")
        ax.axhline(0, color="black", lw=0.8, zorder=1)
        _by_budget(ax, analysis, series, against)
        if len(far := series[np.abs(series["percent"]) > limit]):
            rim = np.clip(far["percent"], -0.96 * limit, 0.96 * limit)
            ax.plot(far[against], rim, "x", color=ORANGE, ms=6, ls="", label="outside the frame")
        ax.set_ylim(-limit, limit)
        ax.set_ylabel(_RESIDUAL)
        count_axis(ax, "x", against, analysis.unit)
    return ax


def plot_qq(analysis: ScalingAnalysis, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """Residuals in order against those of a normal scatter: a straight line where the noise is normal.

    Args:
        analysis: The fits, with a surface.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_residuals``.
    """
    with own_axes(ax, (5.6, 4.6)) as ax:
        series = _in_percent(analysis, series).sort_values("percent", kind="stable")
        percent = series["percent"].to_numpy(float)
        # Blom's plotting positions.
        expected = ndtri((np.arange(1, len(percent) + 1) - 0.375) / (len(percent) + 0.25))
        series = series.assign(expected=expected)
        # Through the quartiles, which stray runs do not move.
        quarter = ndtri(0.75)
        low, middle, high = np.percentile(percent, [25, 50, 75])
        slope = (high - low) / (2 * quarter)
        ends = np.array([expected[0], expected[-1]]) * 1.1
        ax.plot(ends, middle + slope * ends, color="black", lw=0.9, zorder=1, label="normal scatter")
        _by_budget(ax, analysis, series, "expected")
        limit = _limit(percent)
        if (np.abs(percent) > limit).any():
            far = series[np.abs(series["percent"]) > limit]
            rim = np.clip(far["percent"], -0.96 * limit, 0.96 * limit)
            ax.plot(far["expected"], rim, "x", color=ORANGE, ms=6, ls="", label="outside the frame")
        ax.set_ylim(-limit, limit)
        ax.set_xlabel("standard normal quantile")
        ax.set_ylabel(_RESIDUAL)
    return ax


def _in_percent(analysis: ScalingAnalysis, series: pd.DataFrame | None) -> pd.DataFrame:
    series = residual_series(analysis) if series is None else series
    return series.assign(percent=100 * series["residual"])


def _limit(percent: FloatArray) -> float:
    """Of the frame: one lost run must not hide the pattern of all others; those beyond are drawn at the rim."""
    away = np.abs(percent)
    limit = 1.15 * max(float(np.percentile(away, 99)), 3 * float(np.percentile(away, 68)), 1e-9)
    return min(limit, max(1.15 * float(away.max()), 1e-9))


def _by_budget(ax: Axes, analysis: ScalingAnalysis, series: pd.DataFrame, x: str) -> None:
    budgets = budgets_of(analysis)
    scale = compute_scale(budgets if budgets.size else analysis.rows.C)
    for i, C in enumerate(budgets):
        part = series[series["compute_budget"] == C]
        label = f"{format_flops(C, 2)} FLOPs" if len(budgets) <= MOST_IN_LEGEND else None
        draw_dots(ax, part, x, "percent", color=scale.to_rgba(C), marker=marker_of(i), label=label)
    loose = series[series["compute_budget"].isna()]
    draw_dots(ax, loose, x, "percent", color="#888888", marker=".", label="in no budget" if budgets.size else "runs")


def plot_holdout(
    analysis: ScalingAnalysis, answer: str = "loss", ax: Axes | None = None, *, series: pd.DataFrame | None = None
) -> Axes:
    """How far each candidate errs on the largest budget when it is foretold from ever fewer of the smaller ones.

    Args:
        analysis: The fits, with a hold-out.
        answer: loss or num_params.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
    """
    with own_axes(ax, (6.0, 4.8)) as ax:
        series = holdout_series(analysis) if series is None else series
        series = series[(series["answer"] == answer) & (series["hidden"] == series["hidden"].max())]
        series = series.assign(percent=100 * series["error"]).sort_values("factor")
        se = 100 * float(series["truth_se"].max())
        if np.isfinite(se):
            ax.axhspan(-2 * se, 2 * se, color="#ebebeb", zorder=0, lw=0, label="measured, 95 %")
        ax.axhline(0, color="black", lw=0.8, zorder=1)
        for i, name in enumerate(analysis.combination.forms):
            part = series[series["candidate"] == name]
            color, marker = CANDIDATES[i % len(CANDIDATES)], marker_of(i)
            if len(part):
                ax.plot(part["factor"], part["percent"], color=color, marker=marker, ms=5, lw=1, label=name)
        best = series[series["candidate"] == HEADLINE]
        if len(best):
            style: dict[str, Any] = {"ms": 15, "mfc": "white", "mec": "black", "zorder": 5, "ls": ""}
            ax.plot(best["factor"], best["percent"], "*", label="headline", **style)
        ax.set_xscale("log")
        factors = _apart(np.unique(series["factor"].to_numpy(float)))
        ax.set_xticks(factors, [f"{factor:.3g}x" for factor in factors])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.08)
        ax.set_xlabel("largest budget over the largest that was fitted")
        ax.set_ylabel("error of the forecast of " + ("the loss [%]" if answer == "loss" else "N_opt [%]"))
    return ax


def _apart(values: FloatArray) -> list[float]:
    """Ascending values that leave each other room on a log axis."""
    kept: list[float] = []
    for value in values:
        if not kept or value > kept[-1] * (values[-1] / values[0]) ** 0.1:
            kept.append(float(value))
    return kept


def plot_leave_out(
    analysis: ScalingAnalysis,
    what: Literal["budget", "size"] = "budget",
    answer: str = "num_params",
    ax: Axes | None = None,
    *,
    series: pd.DataFrame | None = None,
) -> Axes:
    """How far the surface's answer beyond the data moves when one budget, or one size, is left out.

    Args:
        analysis: The fits, with a surface.
        what: budget or size.
        answer: num_params or loss.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
    """
    with own_axes(ax, (6.0, 4.6)) as ax:
        series = leave_out_series(analysis) if series is None else series
        series = series[(series["what"] == what) & (series["answer"] == answer)]
        change = 100 * series["change"].to_numpy(float)
        low, high = (100 * float(series[end].iloc[0]) for end in ("low", "high"))
        if np.isfinite(low):
            ax.axhspan(low, high, color="#ebebeb", zorder=0, lw=0, label="its 95 % interval with all runs")
        ax.axhline(0, color="black", lw=0.8, zorder=1)
        # A refit without a pillar of the sweep may go anywhere: such points stand at the rim.
        known = change[np.isfinite(change)]
        widest = max(abs(low) if np.isfinite(low) else 0.0, high if np.isfinite(high) else 0.0)
        usual = float(np.median(np.abs(known))) if known.size else 0.0
        limit = 1.2 * max(min(float(np.abs(known).max(initial=0.0)), 6 * max(usual, widest)), widest, 1e-6)
        value = series["value"].to_numpy(float)
        shown = np.clip(np.nan_to_num(change, nan=np.inf), -0.95 * limit, 0.95 * limit)
        cut = ~(np.abs(change) <= limit)
        ax.vlines(value, 0, shown, color=BLUE, lw=1, zorder=2)
        ax.plot(value[~cut], shown[~cut], "o", color=BLUE, ms=6, ls="", zorder=3, label=f"without this {what}")
        if cut.any():
            ax.plot(value[cut], shown[cut], "x", color=ORANGE, ms=7, mew=1.6, ls="", zorder=3, label="farther away")
        ax.set_ylim(max(-limit, -100) if answer == "num_params" else -limit, limit)
        C = format_flops(float(series["compute_budget"].iloc[0]))
        ax.set_ylabel(f"change of {'N_opt' if answer == 'num_params' else 'the loss'} at {C} FLOPs [%]")
        count_axis(ax, "x", "flops" if what == "budget" else "num_params", analysis.unit)
        ax.set_xlabel("budget left out [FLOPs]" if what == "budget" else "size left out [parameters]")
    return ax
