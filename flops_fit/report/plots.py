"""Drawing: every plot takes an Axes or makes its own figure, and returns the Axes. No pyplot, no global state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from flops_fit.fit.parametric import FitStatus
from flops_fit.laws import FloatArray
from flops_fit.report.series import (
    HEADLINE,
    all_series,
    budgets_of,
    holdout_series,
    isoflop_series,
    optimum_series,
    residual_series,
    rivals,
)
from flops_fit.report.style import (
    BLUE,
    CANDIDATES,
    GREY,
    LABELS,
    MOST_IN_LEGEND,
    ORANGE,
    axis_label,
    compute_scale,
    count_axis,
    draw_box,
    draw_dots,
    frame_losses,
    legend_below,
    marker_of,
    new_axes,
    new_figure,
)
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

_FRAME = 100.0  # factor that a band may leave the answers by before it is cut off


def plot_isoflop(analysis: ScalingAnalysis, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """Loss against size at each budget: runs, parabola, minimum with its 95 % interval, runs left out.

    Args:
        analysis: The fits.
        ax: Where to draw; None makes a figure. So for every plot here.
        series: What to draw, if it is at hand (``series.all_series``). So for every plot here.
    """
    ax = ax if ax is not None else new_axes((8.4, 5.0))
    series = isoflop_series(analysis) if series is None else series
    kinds = dict(iter(series.groupby("kind")))
    runs, budgets = kinds["run"], budgets_of(analysis)
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
        label = format_flops(C, 2) + ("" if C in resolved else ", no minimum")
        mine = runs[runs["compute_budget"] == C]
        draw_dots(ax, mine, "num_params", color=color, marker=marker_of(i), label=label if few else None)
        if "curve" in kinds:
            curve = kinds["curve"][kinds["curve"]["compute_budget"] == C]
            within = curve["inside"].astype(bool)
            ax.plot(curve["num_params"], curve["loss"], color=color, lw=1, ls=(0, (4, 3)), zorder=2)
            ax.plot(curve["num_params"][within], curve["loss"][within], color=color, lw=1.8, zorder=2)
    if "minimum" in kinds:
        lowest = kinds["minimum"]
        reach = np.abs(lowest[["num_params_low", "num_params_high"]].sub(lowest["num_params"], axis=0)).to_numpy().T
        known = np.isfinite(reach).all(axis=0)
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
        ax.plot(
            *(lowest[c] for c in ("num_params", "loss")), "*", ms=11, mfc="white", mec="black", mew=1.0, ls="", zorder=5
        )
    count_axis(ax, "x", "num_params", analysis.unit)
    seen = pd.concat([runs["loss"], kinds["curve"]["loss"]]) if "curve" in kinds else runs["loss"]
    frame_losses(ax, runs["loss"].to_numpy(), seen.to_numpy())
    if "excluded" in kinds:
        _crosses(ax, kinds["excluded"])
    ax.set_ylabel(axis_label("loss", analysis.unit))
    ax.set_title("IsoFLOP curves" if budgets.size else "Runs, by compute")
    if not few:
        ax.figure.colorbar(scale, ax=ax, label="budget [FLOPs]" if budgets.size else LABELS["flops"])
    extra = [Line2D([], [], ls="", marker="*", ms=11, mfc="white", mec="black", label="minimum, 95 %")]
    handles = ax.get_legend_handles_labels()[0] + (extra if "minimum" in kinds else [])
    if handles:
        beside = {"title": "budget [FLOPs]", "loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        ax.legend(handles=handles, frameon=False, **(beside if few else {"loc": "upper right"}))
    return ax


def plot_optimum(
    analysis: ScalingAnalysis,
    quantity: str = "num_params",
    ax: Axes | None = None,
    *,
    series: pd.DataFrame | None = None,
) -> Axes:
    """An answer against compute: the headline with its 95 % band, other candidates, the budgets' own optima.

    Args:
        analysis: The fits.
        quantity: num_params, num_tokens, tokens_per_param or loss.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
    """
    ax = ax if ax is not None else new_axes((6.0, 4.6))
    series = optimum_series(analysis) if series is None else series
    line = series[series["kind"] == "headline"]
    C = line["compute_budget"].to_numpy()
    ax.set_xscale("log")
    ax.axvspan(C.min(), analysis.largest_budget, color="#eeeeee", zorder=0, label="data")
    points = series[series["kind"] == "budget"]
    # What is hardly known may reach over hundreds of decades: the frame is the answer's, an edge is "or more".
    told = np.concatenate([frame[quantity].to_numpy(float) for frame in (line, points)])
    told = told[np.isfinite(told)]
    rim = (told.min() / _FRAME, told.max() * _FRAME) if told.size and quantity != "loss" else (-np.inf, np.inf)
    others = [series[series["kind"] == name] for name in rivals(analysis)]
    for i, other in enumerate(o for o in others if o[quantity].notna().any()):
        label = None if i else "other candidates"
        ax.plot(C, other[quantity].astype(float).clip(*rim), color=GREY, lw=0.9, ls=":", zorder=1, label=label)
    low, high = (line[f"{quantity}_{end}"].to_numpy(float).clip(*rim) for end in ("low", "high"))
    if np.isfinite(low).any():
        ax.fill_between(C, low, high, color=BLUE, alpha=0.18, lw=0, zorder=2, label="95 %")
    beyond = line["extrapolated"].to_numpy(bool)
    ax.plot(C[~beyond], line[quantity][~beyond], color=BLUE, lw=2, zorder=3, label=analysis.headline.method)
    ax.plot(C[beyond], line[quantity][beyond], color=BLUE, lw=2, ls=(0, (4, 2)), zorder=3, label="extrapolated")
    if len(points):
        reach = np.zeros((2, len(points)))
        if f"{quantity}_low" in points:
            ends = points[[f"{quantity}_low", f"{quantity}_high"]].astype(float).clip(*rim)
            reach = np.nan_to_num(np.abs(ends.sub(points[quantity].astype(float), axis=0)).to_numpy().T)
        ax.errorbar(
            points["compute_budget"].astype(float),
            points[quantity].astype(float),
            yerr=reach,
            fmt="o",
            ms=5,
            mfc="white",
            mec="black",
            ecolor="black",
            elinewidth=1,
            capsize=2,
            zorder=4,
            label="optimum of a budget",
        )
    if quantity == "loss":
        _irreducible(ax, analysis)
        ax.set_ylabel(axis_label("loss", analysis.unit))
    else:
        count_axis(ax, "y", quantity, analysis.unit)
        draw_box(ax, _exponents(analysis, quantity))
    ax.set_xlabel(LABELS["flops"])
    return ax


def plot_frontier(analysis: ScalingAnalysis, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """The lowest loss that compute buys, with its 95 % band; the irreducible loss only where it is identified."""
    ax = plot_optimum(analysis, "loss", ax if ax is not None else new_axes((7.4, 4.6)), series=series)
    runs = analysis.runs
    draw_dots(ax, runs.assign(compute=runs["flops"]), "compute", color="#999999", marker=".", label="runs", size=14)
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    frame_losses(ax, runs["loss"].to_numpy(), drawn)
    ax.set_title("Loss frontier")
    ax.legend(loc="upper right", frameon=False, fontsize="small")
    return ax


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
    ax = ax if ax is not None else new_axes((5.4, 4.2))
    series = residual_series(analysis) if series is None else series
    series = series.assign(percent=100 * series["residual"])
    budgets = budgets_of(analysis)
    scale = compute_scale(budgets if budgets.size else analysis.rows.C)
    for i, C in enumerate(budgets):
        part = series[series["compute_budget"] == C]
        label = format_flops(C, 2) if len(budgets) <= MOST_IN_LEGEND else None
        draw_dots(ax, part, against, "percent", color=scale.to_rgba(C), marker=marker_of(i), label=label)
    loose = series[series["compute_budget"].isna()]
    draw_dots(
        ax, loose, against, "percent", color="#999999", marker=".", label="in no budget" if budgets.size else None
    )
    ax.axhline(0, color="black", lw=0.8, zorder=1)
    spread = float(np.percentile(np.abs(series["percent"]), 68))
    ax.axhspan(-spread, spread, color="#eeeeee", zorder=0, lw=0)
    # One lost run must not hide the pattern of all others: those beyond are drawn at the rim.
    limit = 1.15 * max(float(np.percentile(np.abs(series["percent"]), 99)), 3 * spread, 1e-9)
    if np.abs(series["percent"]).max() > limit:
        far = series[np.abs(series["percent"]) > limit]
        ax.plot(
            far[against],
            np.clip(far["percent"], -0.96 * limit, 0.96 * limit),
            "x",
            color=ORANGE,
            ms=6,
            ls="",
            label="outside the frame",
        )
    ax.set_ylim(-limit, limit)
    ax.set_ylabel("measured / predicted loss - 1 [%]")
    count_axis(ax, "x", against, analysis.unit)
    return ax


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
    ax = ax if ax is not None else new_axes((6.0, 4.4))
    series = holdout_series(analysis) if series is None else series
    series = series[(series["answer"] == answer) & (series["hidden"] == series["hidden"].max())]
    series = series.assign(percent=100 * series["error"]).sort_values("factor")
    se = 100 * float(series["truth_se"].max())
    if np.isfinite(se):
        ax.axhspan(-2 * se, 2 * se, color="#eeeeee", zorder=0, lw=0, label="measured, 95 %")
    ax.axhline(0, color="black", lw=0.8, zorder=1)
    for i, name in enumerate(analysis.combination.forms):
        part = series[series["candidate"] == name]
        color, marker = CANDIDATES[i % len(CANDIDATES)], marker_of(i)
        if len(part):
            ax.plot(part["factor"], part["percent"], color=color, marker=marker, ms=5, lw=1, label=name)
    best = series[series["candidate"] == HEADLINE]
    if len(best):
        ax.plot(best["factor"], best["percent"], "*", ms=15, mfc="white", mec="black", label="headline", zorder=5)
    ax.set_xscale("log")
    factors = _apart(np.unique(series["factor"].to_numpy(float)))
    ax.set_xticks(factors, [f"{factor:.3g}x" for factor in factors])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("largest budget over the largest that was fitted")
    ax.set_ylabel("error of the forecast of " + ("the loss [%]" if answer == "loss" else "N_opt [%]"))
    return ax


def _apart(values: FloatArray) -> list[float]:
    """Ascending values that leave each other room on a log axis."""
    kept: list[float] = []
    for value in values:
        if not kept or value > kept[-1] * (values[-1] / values[0]) ** 0.06:
            kept.append(float(value))
    return kept


def figures(analysis: ScalingAnalysis, series: Mapping[str, pd.DataFrame] | None = None) -> list[Figure]:
    """Every figure the analysis has something for; ``get_label()`` tells which is which.

    Args:
        analysis: The fits.
        series: ``series.all_series`` of it, if it is at hand.
    """
    data = all_series(analysis) if series is None else series
    isoflop, optimum, frontier = (
        new_figure("isoflop", (8.4, 5.0)),
        new_figure("optimum", (13.5, 4.4)),
        new_figure("frontier", (7.4, 4.6)),
    )
    plot_isoflop(analysis, isoflop.subplots(), series=data["isoflop"])
    for ax, quantity in zip(optimum.subplots(1, 3), ("num_params", "num_tokens", "tokens_per_param"), strict=True):
        plot_optimum(analysis, quantity, ax, series=data["optimum"])
    legend_below(optimum)
    plot_frontier(analysis, frontier.subplots(), series=data["frontier"])
    made = [isoflop, optimum, frontier]
    if "residuals" in data:
        figure = new_figure("residuals", (13.5, 4.2))
        for ax, against in zip(figure.subplots(1, 3, sharey=True), ("num_params", "num_tokens", "flops"), strict=True):
            plot_residuals(analysis, against, ax, series=data["residuals"])
            ax.label_outer()
        figure.suptitle("Residuals of the surface: a pattern is a wrong law")
        if len(budgets := budgets_of(analysis)) > MOST_IN_LEGEND:
            figure.colorbar(compute_scale(budgets), ax=figure.axes, label="budget [FLOPs]")
        legend_below(figure)
        made.append(figure)
    if "holdout" in data:
        told = [a for a in ("loss", "num_params") if a in set(data["holdout"]["answer"])]
        figure = new_figure("holdout", (6.0 * len(told), 4.6))
        for ax, answer in zip(figure.subplots(1, len(told), squeeze=False)[0], told, strict=True):
            plot_holdout(analysis, answer, ax, series=data["holdout"])
        figure.suptitle("Hold-out: the largest budget foretold from the smaller ones")
        legend_below(figure)
        made.append(figure)
    return made


def _crosses(ax: Axes, excluded: pd.DataFrame) -> None:
    """Runs left out; those above the frame at its rim, so that they cannot squeeze the rest."""
    top = ax.get_ylim()[1]
    y = np.minimum(excluded["loss"].astype(float), ax.get_ylim()[0] + 0.98 * (top - ax.get_ylim()[0]))
    ax.plot(
        excluded["num_params"].astype(float), y, "x", color=ORANGE, ms=7, mew=1.5, ls="", label="left out", zorder=4
    )
    ax.set_ylim(top=top)


def _exponents(analysis: ScalingAnalysis, quantity: str) -> list[str]:
    """The power of C by each method, with its 95 % interval."""
    named = {"num_params": ("a", "N_opt"), "num_tokens": ("b", "D_opt")}.get(quantity)
    if named is None:
        return []
    lines = []
    letter, group = named
    if analysis.parametric is not None:
        value = analysis.parametric.law.exponents(analysis.rule)["ab".index(letter)]
        lines.append(_power("surface", value, analysis.ci.get("parametric", {}).get(letter)))
    law = None if analysis.isoflop is None else getattr(analysis.isoflop, group)
    if law is not None:
        lines.append(_power("parabola", law.law.exponent, analysis.ci.get(group, {}).get("exponent")))
    return lines


def _power(method: str, value: float, ci: tuple[float, float] | None) -> str:
    interval = "" if ci is None else f"  ({ci[0]:.3f} to {ci[1]:.3f})"
    return f"{method}: $C^{{{value:.3f}}}${interval}"


def _irreducible(ax: Axes, analysis: ScalingAnalysis) -> None:
    """The loss that no compute removes: only where the runs determine it, and the law that says so answers."""
    surface = analysis.parametric
    if surface is None or analysis.headline.method != "surface" or surface.status is not FitStatus.CONVERGED:
        return
    E, interval = float(surface.law.E), analysis.ci.get("parametric", {}).get("E")
    said = "" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})"
    ax.axhline(E, color=ORANGE, lw=1.2, ls=(0, (1, 1.5)), zorder=1, label=f"E = {E:.3g}{said}")
