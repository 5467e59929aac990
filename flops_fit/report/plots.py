"""Drawing: every plot takes an Axes or makes its own figure, and returns the Axes. No pyplot, no global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from flops_fit.report.series import (
    HEADLINE,
    budgets_of,
    holdout_series,
    isoflop_series,
    optimum_series,
    residual_series,
    rivals,
)
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

# Okabe and Ito's colours, told apart by every common kind of colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
_CANDIDATES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vhp<>d8H"
# More points than this are drawn as one picture, also in PDF and SVG.
_MANY = 2000
_LABELS = {
    "num_params": "parameters N",
    "num_tokens": "{unit} D",
    "tokens_per_param": "{unit} per parameter D/N",
    "loss": "loss",
    "flops": "compute C [FLOPs]",
}


def plot_isoflop(analysis: ScalingAnalysis, ax: Axes | None = None) -> Axes:
    """Loss against size at each budget: runs, parabola, minimum with its 95 % interval, runs left out."""
    ax = ax if ax is not None else _axes((8.4, 5.0))
    series = isoflop_series(analysis)
    kinds = dict(iter(series.groupby("kind")))
    budgets = budgets_of(analysis)
    style = _budget_styles(budgets)
    runs = kinds["run"]
    resolved = set(kinds["minimum"]["compute_budget"]) if "minimum" in kinds else set()
    loose = runs[runs["compute_budget"].isna()]
    if len(loose):
        _dots(ax, loose, "num_params", color="#bbbbbb", marker=".", label="in no budget")
    for C in budgets:
        color, marker = style[C]
        label = format_flops(C, 2) + ("" if C in resolved else ", no minimum")
        _dots(ax, runs[runs["compute_budget"] == C], "num_params", color=color, marker=marker, label=label)
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
    _count_axis(ax, "x", "num_params", analysis.unit)
    seen = pd.concat([runs["loss"], kinds["curve"]["loss"]]) if "curve" in kinds else runs["loss"]
    _frame_losses(ax, runs["loss"].to_numpy(), seen.to_numpy())
    if "excluded" in kinds:
        _crosses(ax, kinds["excluded"])
    ax.set_ylabel(_label("loss", analysis.unit))
    ax.set_title("IsoFLOP curves")
    extra = [Line2D([], [], ls="", marker="*", ms=11, mfc="white", mec="black", label="minimum, 95 %")]
    handles = ax.get_legend_handles_labels()[0] + (extra if "minimum" in kinds else [])
    if handles:
        ax.legend(handles=handles, title="budget [FLOPs]", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return ax


def plot_optimum(analysis: ScalingAnalysis, quantity: str = "num_params", ax: Axes | None = None) -> Axes:
    """An answer against compute: the headline with its 95 % band, other candidates, the budgets' own optima.

    Args:
        analysis: The fits.
        quantity: num_params, num_tokens, tokens_per_param or loss.
        ax: Where to draw; None makes a figure.
    """
    ax = ax if ax is not None else _axes((6.0, 4.6))
    series = optimum_series(analysis)
    line = series[series["kind"] == "headline"]
    C = line["compute_budget"].to_numpy()
    ax.set_xscale("log")
    ax.axvspan(C.min(), analysis.largest_budget, color="#eeeeee", zorder=0, label="data")
    others = [series[series["kind"] == name] for name in rivals(analysis)]
    for i, other in enumerate(o for o in others if o[quantity].notna().any()):
        label = None if i else "other candidates"
        ax.plot(C, other[quantity].astype(float), color=GREY, lw=0.9, ls=":", zorder=1, label=label)
    low, high = (line[f"{quantity}_{end}"].to_numpy(float) for end in ("low", "high"))
    if np.isfinite(low).any():
        ax.fill_between(C, low, high, color=BLUE, alpha=0.18, lw=0, zorder=2, label="95 %")
    beyond = line["extrapolated"].to_numpy(bool)
    ax.plot(C[~beyond], line[quantity][~beyond], color=BLUE, lw=2, zorder=3, label=analysis.headline.method)
    ax.plot(C[beyond], line[quantity][beyond], color=BLUE, lw=2, ls=(0, (4, 2)), zorder=3, label="extrapolated")
    points = series[series["kind"] == "budget"]
    if len(points):
        reach = np.zeros((2, len(points)))
        if f"{quantity}_low" in points:
            ends = points[[f"{quantity}_low", f"{quantity}_high"]].astype(float)
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
        ax.set_ylabel(_label("loss", analysis.unit))
    else:
        _count_axis(ax, "y", quantity, analysis.unit)
        _box(ax, _exponents(analysis, quantity))
    ax.set_xlabel(_LABELS["flops"])
    return ax


def plot_frontier(analysis: ScalingAnalysis, ax: Axes | None = None) -> Axes:
    """The lowest loss that compute buys, with its 95 % band; the irreducible loss only where it is identified."""
    ax = plot_optimum(analysis, "loss", ax if ax is not None else _axes((7.4, 4.6)))
    runs = analysis.runs
    _dots(ax, runs.assign(compute=runs["flops"]), "compute", color="#999999", marker=".", label="runs", size=9)
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    _frame_losses(ax, runs["loss"].to_numpy(), drawn)
    ax.set_title("Loss frontier")
    ax.legend(loc="upper right", frameon=False, fontsize="small")
    return ax


def plot_residuals(analysis: ScalingAnalysis, against: str = "num_params", ax: Axes | None = None) -> Axes:
    """Measured over predicted loss of the surface, in percent, against N, D or C.

    Args:
        analysis: The fits, with a surface.
        against: num_params, num_tokens or flops.
        ax: Where to draw; None makes a figure.
    """
    ax = ax if ax is not None else _axes((5.4, 4.2))
    series = residual_series(analysis).assign(percent=lambda r: 100 * r["residual"])
    budgets = budgets_of(analysis)
    for C, (color, marker) in _budget_styles(budgets).items():
        part = series[series["compute_budget"] == C]
        _dots(ax, part, against, "percent", color=color, marker=marker, label=format_flops(C, 2))
    loose = series[series["compute_budget"].isna()]
    _dots(ax, loose, against, "percent", color="#999999", marker=".", label="in no budget")
    ax.axhline(0, color="black", lw=0.8, zorder=1)
    spread = float(np.percentile(np.abs(series["percent"]), 68))
    ax.axhspan(-spread, spread, color="#eeeeee", zorder=0, lw=0)
    # One lost run must not hide the pattern of all others: those beyond are drawn at the rim.
    limit = 1.15 * max(float(np.percentile(np.abs(series["percent"]), 99)), 3 * spread, 1e-9)
    if np.abs(series["percent"]).max() > limit:
        far = series[np.abs(series["percent"]) > limit]
        ax.plot(far[against], np.clip(far["percent"], -0.96 * limit, 0.96 * limit), "x", color=ORANGE, ms=6, ls="")
    ax.set_ylim(-limit, limit)
    ax.set_ylabel("measured / predicted loss - 1 [%]")
    _count_axis(ax, "x", against, analysis.unit)
    return ax


def plot_holdout(analysis: ScalingAnalysis, answer: str = "loss", ax: Axes | None = None) -> Axes:
    """How far each candidate errs on the largest budget when it is foretold from ever fewer of the smaller ones.

    Args:
        analysis: The fits, with a hold-out.
        answer: loss or num_params.
        ax: Where to draw; None makes a figure.
    """
    ax = ax if ax is not None else _axes((6.0, 4.4))
    series = holdout_series(analysis)
    series = series[(series["answer"] == answer) & (series["hidden"] == series["hidden"].max())]
    series = series.assign(percent=100 * series["error"]).sort_values("factor")
    se = 100 * float(series["truth_se"].max())
    if np.isfinite(se):
        ax.axhspan(-2 * se, 2 * se, color="#eeeeee", zorder=0, lw=0, label="measured, 95 %")
    ax.axhline(0, color="black", lw=0.8, zorder=1)
    for i, name in enumerate(analysis.combination.forms):
        part = series[series["candidate"] == name]
        color, marker = _CANDIDATES[i % len(_CANDIDATES)], _MARKERS[i % len(_MARKERS)]
        if len(part):
            ax.plot(part["factor"], part["percent"], color=color, marker=marker, ms=5, lw=1, label=name)
    best = series[series["candidate"] == HEADLINE]
    if len(best):
        ax.plot(best["factor"], best["percent"], "*", ms=15, mfc="white", mec="black", label="headline", zorder=5)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("largest budget over the largest that was fitted")
    ax.set_ylabel("error of the forecast of " + ("the loss [%]" if answer == "loss" else "N_opt [%]"))
    return ax


def figures(analysis: ScalingAnalysis) -> list[Figure]:
    """Every figure the analysis has something for; ``get_label()`` tells which is which."""
    made = []
    figure = _figure("isoflop", (8.4, 5.0))
    plot_isoflop(analysis, figure.subplots())
    made.append(figure)
    figure = _figure("optimum", (13.5, 4.4))
    for ax, quantity in zip(figure.subplots(1, 3), ("num_params", "num_tokens", "tokens_per_param"), strict=True):
        plot_optimum(analysis, quantity, ax)
    _legend_below(figure)
    made.append(figure)
    figure = _figure("frontier", (7.4, 4.6))
    plot_frontier(analysis, figure.subplots())
    made.append(figure)
    if analysis.parametric is not None:
        figure = _figure("residuals", (13.5, 4.2))
        for ax, against in zip(figure.subplots(1, 3, sharey=True), ("num_params", "num_tokens", "flops"), strict=True):
            plot_residuals(analysis, against, ax)
            ax.label_outer()
        figure.suptitle("Residuals of the surface: a pattern is a wrong law")
        _legend_below(figure, title="budget [FLOPs]")
        made.append(figure)
    if analysis.holdout is not None:
        told = [a for a in ("loss", "num_params") if a in set(holdout_series(analysis)["answer"])]
        figure = _figure("holdout", (6.0 * len(told), 4.6))
        for ax, answer in zip(figure.subplots(1, len(told), squeeze=False)[0], told, strict=True):
            plot_holdout(analysis, answer, ax)
        figure.suptitle("Hold-out: the largest budget foretold from the smaller ones")
        _legend_below(figure)
        made.append(figure)
    return made


def _figure(name: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    figure.set_label(name)
    return figure


def _legend_below(figure: Figure, title: str | None = None) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = min(len(handles), 10)
        figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns, frameon=False)


def _axes(size: tuple[float, float]) -> Axes:
    return Figure(figsize=size, layout="constrained").subplots()


def _label(quantity: str, unit: str) -> str:
    return _LABELS[quantity].format(unit=unit)


def _budget_styles(budgets: Sequence[float] | np.ndarray[Any, Any]) -> dict[float, tuple[Any, str]]:
    """A colour and a marker for each budget; colour alone would be lost on some eyes and printers."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, max(len(budgets), 2)))
    return {float(C): (shades[i], _MARKERS[i % len(_MARKERS)]) for i, C in enumerate(budgets)}


def _dots(
    ax: Axes, frame: pd.DataFrame, x: str, y: str = "loss", *, color: Any, marker: str, label: str, size: float = 22
) -> None:
    if len(frame):
        ax.scatter(
            frame[x].astype(float),
            frame[y].astype(float),
            s=size,
            color=color,
            marker=marker,
            linewidths=0,
            alpha=0.85,
            zorder=3,
            label=label,
            rasterized=len(frame) > _MANY,
        )


def _crosses(ax: Axes, excluded: pd.DataFrame) -> None:
    """Runs left out; those above the frame at its rim, so that they cannot squeeze the rest."""
    top = ax.get_ylim()[1]
    y = np.minimum(excluded["loss"].astype(float), ax.get_ylim()[0] + 0.98 * (top - ax.get_ylim()[0]))
    ax.plot(
        excluded["num_params"].astype(float), y, "x", color=ORANGE, ms=7, mew=1.5, ls="", label="left out", zorder=4
    )
    ax.set_ylim(top=top)


def _frame_losses(ax: Axes, runs: np.ndarray[Any, Any], drawn: np.ndarray[Any, Any]) -> None:
    """Limits that show the runs, whatever a curve or one lost run does."""
    low = min(float(np.min(runs)), float(np.nanmin(drawn)))
    high = float(np.percentile(runs, 98)) + 0.6 * float(np.percentile(runs, 98) - np.percentile(runs, 2))
    high = min(high, float(np.max(runs)))
    margin = 0.06 * (high - low) or 0.05 * abs(high)
    ax.set_ylim(low - margin, high + margin)


def _count_axis(ax: Axes, which: str, quantity: str, unit: str) -> None:
    """A log axis whose ticks read 20M, 50M, 100M; FLOPs stay powers of ten."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_label_text(_label(quantity, unit))
    if quantity == "flops":
        return
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    decades = np.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(
        LogLocator(subs=steps if decades > 0.5 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), numticks=20)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axis.set_minor_formatter(NullFormatter())


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


def _box(ax: Axes, lines: list[str]) -> None:
    if lines:
        ax.text(
            0.04,
            0.96,
            "\n".join(lines),
            transform=ax.transAxes,
            va="top",
            ha="left",
            fontsize="small",
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "#cccccc", "alpha": 0.9},
            zorder=6,
        )


def _irreducible(ax: Axes, analysis: ScalingAnalysis) -> None:
    """The line E, only where the runs determine it."""
    fit = analysis.parametric
    if fit is None or str(fit.status) != "converged":
        return
    E = float(fit.law.E)
    low, high = analysis.ci.get("parametric", {}).get("E", (E, E))
    ax.axhline(E, color=ORANGE, lw=1.2, ls=(0, (1, 1.5)), zorder=1, label=f"E = {E:.3g} ({low:.3g} to {high:.3g})")
