"""The surface L(N, D) as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from flops_fit.laws import FloatArray
from flops_fit.report.series import budgets_of, surface_series
from flops_fit.report.style import BLUE, GREY, compute_scale, count_axis, draw_dots, marker_of, own_axes
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

_LEVELS = 9
_MOST_LINES = 12


def plot_surface(analysis: ScalingAnalysis, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """Contours of the fitted loss over N and D, lines of equal compute, the runs, and the best split of compute.

    Args:
        analysis: The fits, with a surface.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
    """
    with own_axes(ax, (7.0, 5.8)) as ax:
        series = surface_series(analysis) if series is None else series
        kinds = dict(iter(series.groupby("kind")))
        grid = kinds["grid"].pivot(index="num_tokens", columns="num_params", values="loss")
        N, D, L = grid.columns.to_numpy(float), grid.index.to_numpy(float), grid.to_numpy(float)
        count_axis(ax, "x", "num_params", analysis.unit)
        count_axis(ax, "y", "num_tokens", analysis.unit)
        ax.set_xlim(N[0], N[-1])
        ax.set_ylim(D[0], D[-1])
        lines = ax.contour(N, D, L, levels=_levels(L), colors="#666666", linewidths=0.8, zorder=1)
        losses = ax.clabel(lines, fmt=lambda level: f"{level:.3g}", fontsize="small", inline_spacing=2, zorder=5)
        for text in losses:
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        _equal_compute(ax, analysis, N)
        budgets = budgets_of(analysis)
        scale = compute_scale(budgets if budgets.size else analysis.rows.C)
        runs = kinds["run"]
        for i, C in enumerate(budgets):
            mine = runs[runs["compute_budget"] == C]
            draw_dots(ax, mine, "num_params", "num_tokens", color=scale.to_rgba(C), marker=marker_of(i), label=None)
        loose = runs[runs["compute_budget"].isna()]
        draw_dots(ax, loose, "num_params", "num_tokens", color="#888888", marker=".", label=None)
        ax.plot([], [], "o", color=scale.to_rgba(analysis.rows.C[:1])[0], ms=5, ls="", label="runs")
        ax.plot([], [], color="#666666", lw=0.8, label="loss of the surface")
        _frontier(ax, kinds["headline"])
        count_axis(ax, "x", "num_params", analysis.unit)
        count_axis(ax, "y", "num_tokens", analysis.unit)
    return ax


def _levels(L: FloatArray) -> FloatArray:
    """Losses for contours, evenly in what is reducible on the map, which falls by a factor and not by a step."""
    low, high = np.percentile(L, [2, 98])
    floor = low - 0.5 * (np.median(L) - low)
    levels = floor + np.geomspace(low - floor, high - floor, _LEVELS)
    digits = 1 - int(np.floor(np.log10(max(levels[1] - levels[0], 1e-12))))
    return np.unique(np.round(levels, max(digits, 0)))


def _equal_compute(ax: Axes, analysis: ScalingAnalysis, N: FloatArray) -> None:
    """C constant: for the budgets where they are few, else for powers of ten."""
    C = budgets_of(analysis)
    if not 0 < C.size <= _MOST_LINES:
        ends = np.log10([analysis.rows.C.min(), analysis.largest_budget])
        C = 10.0 ** np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
    for i, budget in enumerate(C):
        D = analysis.rule.tokens(budget, N)
        label = None if i else "equal compute [FLOPs]"
        ax.plot(N, D, color=GREY, lw=0.9, ls=(0, (4, 3)), zorder=1, label=label)
        along = ax.transData.transform(np.column_stack([N, D]))
        height = ax.transAxes.inverted().transform(along)[:, 1]
        inside = np.flatnonzero((height > 0.15) & (height < 0.96))  # room for the label below its start and above it
        if inside.size:
            at = inside[0]
            x, y = along[-1] - along[0]
            ax.annotate(
                format_flops(budget, 2),
                (N[at], D[at]),
                xytext=(3, 2),
                textcoords="offset points",
                clip_on=True,
                fontsize="x-small",
                color="#333333",
                rotation=float(np.degrees(np.arctan2(y, x))),
                rotation_mode="anchor",
            )


def _frontier(ax: Axes, path: pd.DataFrame) -> None:
    """The best split for ever more compute, dashed beyond the data."""
    x, y = (path[name].to_numpy(float) for name in ("num_params", "num_tokens"))
    beyond = path["extrapolated"].to_numpy(bool)
    onward = beyond | np.roll(beyond, -1) if beyond.any() else beyond
    ax.plot(x[~beyond], y[~beyond], color=BLUE, lw=2.2, zorder=4, label="best split")
    ax.plot(x[onward], y[onward], color=BLUE, lw=2.2, ls=(0, (3, 1.5)), zorder=4, label="extrapolated")
