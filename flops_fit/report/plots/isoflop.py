"""Loss against size at each budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from flops_fit.laws import FloatArray
from flops_fit.report.series import budgets_of, isoflop_series
from flops_fit.report.style import (
    LABELS,
    MOST_IN_LEGEND,
    axis_label,
    compute_bar,
    compute_scale,
    count_axis,
    draw_dots,
    draw_left_out,
    frame_losses,
    marker_of,
    own_axes,
)
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis


def plot_isoflop(analysis: ScalingAnalysis, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """Loss against size at each budget: runs, parabola, minimum with its 95 % interval, runs left out hollow.

    Args:
        analysis: The fits.
        ax: Where to draw; None makes a figure. So for every plot here.
        series: What to draw, if it is at hand (``series.all_series``). So for every plot here.
    """
    with own_axes(ax, (7.4, 5.4)) as ax:
        series = isoflop_series(analysis) if series is None else series
        kinds = dict(iter(series.groupby("kind")))
        ax.set_xscale("log")
        runs, budgets = kinds["run"], budgets_of(analysis)
        _budgets(ax, analysis, kinds, budgets)
        if "minimum" in kinds:
            _minima(ax, kinds["minimum"])
        count_axis(ax, "x", "num_params", analysis.unit)
        seen = pd.concat([runs["loss"], kinds["curve"]["loss"]]) if "curve" in kinds else runs["loss"]
        frame_losses(ax, runs["loss"].to_numpy(float), seen.to_numpy(float))
        if "excluded" in kinds:
            draw_left_out(ax, kinds["excluded"], "num_params")
            count_axis(ax, "x", "num_params", analysis.unit)  # its ticks, for a range that may have grown
        ax.set_ylabel(axis_label("loss", analysis.unit))
    return ax


def _budgets(ax: Axes, analysis: ScalingAnalysis, kinds: dict[str, pd.DataFrame], budgets: FloatArray) -> None:
    """Runs and parabola of each budget; a colour bar where there are too many for a legend."""
    runs = kinds["run"]
    scale = compute_scale(budgets if budgets.size else analysis.rows.C)
    resolved = set(kinds["minimum"]["compute_budget"]) if "minimum" in kinds else set()
    loose = runs[runs["compute_budget"].isna()]
    if budgets.size:
        draw_dots(ax, loose, "num_params", color="#bbbbbb", marker=".", label="in no budget")
    else:
        draw_dots(ax, loose, "num_params", color=scale.to_rgba(loose["flops"].to_numpy(float)), marker="o", label=None)
    few = 0 < len(budgets) <= MOST_IN_LEGEND
    for i, C in enumerate(budgets):
        color = scale.to_rgba(C)
        label = f"{format_flops(C, 2)} FLOPs" + ("" if C in resolved else ", no minimum")
        mine = runs[runs["compute_budget"] == C]
        draw_dots(ax, mine, "num_params", color=color, marker=marker_of(i), label=label if few else None)
        if "curve" in kinds:
            curve = kinds["curve"][kinds["curve"]["compute_budget"] == C]
            within = curve["inside"].astype(bool)
            ax.plot(curve["num_params"], curve["loss"], color=color, lw=1, ls=(0, (4, 3)), zorder=2)
            ax.plot(curve["num_params"][within], curve["loss"][within], color=color, lw=1.8, zorder=2)
    if not few:
        compute_bar(ax, scale, "budget [FLOPs]" if budgets.size else LABELS["flops"])


def _minima(ax: Axes, lowest: pd.DataFrame) -> None:
    """The minimum of each parabola, with the 95 % interval of its place where the scatter tells one."""
    reach = np.abs(lowest[["num_params_low", "num_params_high"]].sub(lowest["num_params"], axis=0)).to_numpy().T
    known = np.isfinite(reach).all(axis=0)
    # An interval that is wider than the picture says nothing by where it is cut.
    limits = ax.get_xlim()
    ax.errorbar(
        lowest["num_params"][known],
        lowest["loss"][known],
        xerr=reach[:, known],
        fmt="none",
        ecolor="black",
        elinewidth=1.2,
        capsize=3,
        zorder=4,
    )
    x, y = (lowest[c].astype(float) for c in ("num_params", "loss"))
    size = 11 if len(lowest) <= MOST_IN_LEGEND else 6
    label = "minimum, 95 %" if known.any() else "minimum"
    ax.plot(x, y, "*", ms=size, mfc="white", mec="black", mew=1.0, ls="", zorder=5, label=label)
    ax.set_xlim(limits)
