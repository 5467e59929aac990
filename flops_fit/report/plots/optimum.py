"""An answer against compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from flops_fit.fit.diagnostics import irreducible_loss
from flops_fit.laws import FloatArray
from flops_fit.report.references import reference
from flops_fit.report.series import optimum_series, rivals
from flops_fit.report.style import (
    BLUE,
    DASHES,
    GREY,
    ORANGE,
    axis_label,
    count_axis,
    draw_box,
    draw_dots,
    frame_losses,
    own_axes,
)
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

_FRAME = 100.0  # factor that a band may leave the answers by before it is cut off


def plot_optimum(
    analysis: ScalingAnalysis,
    quantity: str = "num_params",
    ax: Axes | None = None,
    *,
    series: pd.DataFrame | None = None,
    references: Sequence[str] = (),
) -> Axes:
    """An answer against compute: the headline with its 95 % band, other candidates, the budgets' own optima.

    Args:
        analysis: The fits.
        quantity: num_params, num_tokens, tokens_per_param or loss.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``; with a row of kind "target", that budget is marked.
        references: Published laws to draw beside, by their names in ``references.REFERENCES``.
    """
    with own_axes(ax, (6.0, 4.8)) as ax:
        series = optimum_series(analysis) if series is None else series
        line, points = series[series["kind"] == "headline"], series[series["kind"] == "budget"]
        C = line["compute_budget"].to_numpy(float)
        ax.set_xscale("log")
        ax.axvspan(C.min() / 100, analysis.largest_budget, color="#ebebeb", zorder=0, lw=0, label="data")
        # What is hardly known may reach over hundreds of decades: the frame is the answer's, an edge is "or more".
        told = np.concatenate([frame[quantity].to_numpy(float) for frame in (line, points)])
        told = told[np.isfinite(told)]
        rim = (told.min() / _FRAME, told.max() * _FRAME) if told.size and quantity != "loss" else (-np.inf, np.inf)
        _rivals(ax, analysis, series, quantity, C, rim)
        _headline(ax, analysis, line, quantity, C, rim)
        if len(points):
            _points(ax, points, quantity, rim, fmt="o", ms=5, mfc="white", label="optimum of a budget")
        _target(ax, series[series["kind"] == "target"], quantity, rim)
        if quantity == "loss":
            _irreducible(ax, analysis)
            ax.set_ylabel(axis_label("loss", analysis.unit))
        else:
            for name, dashes in zip(references, DASHES, strict=False):
                law = reference(name)
                values = _inside(law.answer(quantity, C), rim)
                ax.plot(C, values, color="black", lw=1.1, ls=dashes, zorder=2, label=law.label)
            count_axis(ax, "y", quantity, analysis.unit)
            draw_box(ax, _exponents(analysis, quantity))
        margin = (C.max() / C.min()) ** 0.02
        ax.set_xlim(C.min() / margin, C.max() * margin)
        count_axis(ax, "x", "flops", analysis.unit)
    return ax


def plot_frontier(analysis: ScalingAnalysis, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """The lowest loss that compute buys, with its 95 % band; the irreducible loss only where it is identified."""
    with own_axes(ax, (7.0, 5.0)) as ax:
        series = optimum_series(analysis) if series is None else series
        plot_optimum(analysis, "loss", ax, series=series)
        runs = analysis.runs
        draw_dots(ax, runs.assign(compute=runs["flops"]), "compute", color="#999999", marker=".", label="runs", size=14)
        E, _ = irreducible_loss(analysis)
        line = series["loss"].to_numpy(float)
        floor = np.nanmin([*line, runs["loss"].min(), *([] if E is None else [E])])
        # A band may reach down to nothing: as far as it helps to see the rest.
        deepest = np.nanmin([*series["loss_low"].to_numpy(float), floor])
        low = max(deepest, floor - 0.5 * (runs["loss"].max() - floor))
        frame_losses(ax, runs["loss"].to_numpy(float), np.array([low]))
    return ax


def _rivals(
    ax: Axes, analysis: ScalingAnalysis, series: pd.DataFrame, quantity: str, C: FloatArray, rim: tuple[float, float]
) -> None:
    others = [series[series["kind"] == name] for name in rivals(analysis)]
    for i, other in enumerate(o for o in others if o[quantity].notna().any()):
        label = None if i else "other candidates"
        values = _inside(other[quantity].to_numpy(float), rim)
        ax.plot(C, values, color=GREY, lw=0.9, ls=":", zorder=1, label=label)


def _inside(values: FloatArray, rim: tuple[float, float]) -> FloatArray:
    """Values that the frame has room for; a line ends where it leaves it."""
    return np.where((values >= rim[0]) & (values <= rim[1]), values, np.nan)


def _headline(
    ax: Axes, analysis: ScalingAnalysis, line: pd.DataFrame, quantity: str, C: FloatArray, rim: tuple[float, float]
) -> None:
    """The answer, dashed beyond the data, and its band."""
    low, high = (line[f"{quantity}_{end}"].to_numpy(float).clip(*rim) for end in ("low", "high"))
    if np.isfinite(low).any():
        ax.fill_between(C, low, high, color=BLUE, alpha=0.2, lw=0, zorder=2, label="95 %")
        ax.plot(C, low, color=BLUE, lw=0.5, zorder=2)  # an edge that a grey print keeps
        ax.plot(C, high, color=BLUE, lw=0.5, zorder=2)
    beyond = line["extrapolated"].to_numpy(bool)
    # The dashes go on where the solid line ends, without a gap.
    onward = beyond | np.roll(beyond, -1) if beyond.any() else beyond
    y = line[quantity].to_numpy(float)
    ax.plot(C[~beyond], y[~beyond], color=BLUE, lw=2, zorder=3, label=f"answer: {analysis.headline.method}")
    ax.plot(C[onward], y[onward], color=BLUE, lw=2, ls=(0, (3, 1.5)), zorder=3, label="extrapolated")


def _points(
    ax: Axes,
    points: pd.DataFrame,
    quantity: str,
    rim: tuple[float, float],
    *,
    fmt: str,
    ms: float,
    mfc: str,
    label: str,
    elinewidth: float = 1,
    capsize: float = 2,
    zorder: float = 4,
) -> None:
    """Answers at single budgets with their intervals."""
    reach = np.zeros((2, len(points)))
    if f"{quantity}_low" in points:
        ends = points[[f"{quantity}_low", f"{quantity}_high"]].astype(float).clip(*rim)
        reach = np.nan_to_num(np.abs(ends.sub(points[quantity].astype(float), axis=0)).to_numpy().T)
    ax.errorbar(
        points["compute_budget"].astype(float),
        points[quantity].astype(float),
        yerr=reach,
        fmt=fmt,
        ms=ms,
        mfc=mfc,
        mec="black",
        ecolor="black",
        elinewidth=elinewidth,
        capsize=capsize,
        zorder=zorder,
        ls="",
        label=label,
    )


def _target(ax: Axes, target: pd.DataFrame, quantity: str, rim: tuple[float, float]) -> None:
    """The budget that was asked for, with what is answered there."""
    if target.empty:
        return
    row = target.iloc[0]
    C, value = float(row["compute_budget"]), float(row[quantity])
    ax.axvline(C, color="black", lw=0.9, ls=(0, (1, 2)), zorder=1)
    if not np.isfinite(value):
        ax.plot([], [], ls="", label=f"at {format_flops(C)}: withheld")
        return
    label = f"target, {format_flops(C)} FLOPs"
    _points(ax, target, quantity, rim, fmt="D", ms=6, mfc=ORANGE, elinewidth=1.6, capsize=4, zorder=6, label=label)


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
    interval = "" if ci is None else f" ({ci[0]:.3f} to {ci[1]:.3f})"
    return f"{method}: exponent {value:.3f}{interval}"


def _irreducible(ax: Axes, analysis: ScalingAnalysis) -> None:
    """The loss that no compute removes, with its interval: only where the analysis states one."""
    E, _ = irreducible_loss(analysis)
    if E is None:
        return
    interval = analysis.ci.get("parametric", {}).get("E")
    said = "" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})"
    ax.axhline(E, color=ORANGE, lw=1.3, ls=(0, (1, 1.5)), zorder=1, label=f"E = {E:.3g}{said}")
    if interval is not None:
        ax.axhspan(*interval, facecolor=ORANGE, alpha=0.12, lw=0, zorder=0)
