"""Marks, axes and frames that the plots share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from flops_fit.laws import FloatArray
from flops_fit.units import format_count, format_flops

# Okabe and Ito's colours, told apart by every common kind of colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"
CANDIDATES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vhp<>d8H"
# More budgets than this are read off a colour bar, not off a legend.
MOST_IN_LEGEND = 12
# More points than this are drawn as one picture, also in PDF and SVG.
_MANY = 2000
# Lines that are told apart by their dashes.
DASHES: tuple[Any, ...] = ((0, (6, 2)), (0, (6, 2, 1, 2)), (0, (2, 2)), (0, (8, 2, 1, 2, 1, 2)))
LABELS = {
    "num_params": "parameters N",
    "num_tokens": "{unit} D",
    "tokens_per_param": "{unit} per parameter D/N",
    "loss": "loss",
    "flops": "compute C [FLOPs]",
}


def new_figure(name: str, size: tuple[float, float]) -> Figure:
    """A figure that belongs to nobody's state."""
    figure = Figure(figsize=size, layout="constrained")
    figure.set_label(name)
    return figure


def legend_below(figure: Figure) -> None:
    """One legend for all panels."""
    named = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if named:
        # A small letter is about a fourteenth of an inch; a legend does not wrap by itself.
        columns = max(1, int(figure.get_figwidth() / (0.55 + 0.072 * max(map(len, named)))))
        figure.legend(
            named.values(),
            named.keys(),
            loc="outside lower center",
            ncols=min(columns, len(named)),
            frameon=False,
            fontsize="small",
            columnspacing=1.4,
            handletextpad=0.6,
            labelspacing=0.35,
        )


@contextmanager
def own_axes(ax: Axes | None, size: tuple[float, float]) -> Iterator[Axes]:
    """The axes to draw into; where none are given, those of a new figure, with a legend below at the end."""
    if ax is not None:
        yield ax
        return
    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots()
    legend_below(figure)


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes on a figure of their own."""
    return Figure(figsize=size, layout="constrained").subplots()


def axis_label(quantity: str, unit: str) -> str:
    """What an axis is called."""
    return LABELS[quantity].format(unit=unit)


def compute_scale(C: FloatArray) -> ScalarMappable:
    """Colours for compute: viridis without its palest end, which white paper swallows."""
    shades = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.75, 256)))
    low, high = float(C.min()), float(C.max())
    return ScalarMappable(LogNorm(low, high if high > low else 1.01 * low), shades)


def compute_bar(ax: Axes | list[Axes], scale: ScalarMappable, label: str = "budget [FLOPs]") -> None:
    """A bar that reads colours as compute, beside one or several axes."""
    first = ax[0] if isinstance(ax, list) else ax
    bar = first.figure.colorbar(scale, ax=ax, label=label)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_flops(value)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def size_scale(N: FloatArray) -> ScalarMappable:
    """Colours for sizes: another ramp than that of compute, so that the two are not taken for each other."""
    shades = ListedColormap(matplotlib.colormaps["plasma"](np.linspace(0.0, 0.75, 256)))
    low, high = float(N.min()), float(N.max())
    return ScalarMappable(LogNorm(low, high if high > low else 1.01 * low), shades)


def marker_of(i: int) -> str:
    """A marker for the i-th of several; colour alone would be lost on some eyes and printers."""
    return MARKERS[i % len(MARKERS)]


def draw_dots(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str = "loss",
    *,
    color: Any,
    marker: str,
    label: str | None,
    size: float = 22,
) -> None:
    """Runs as dots."""
    if len(frame):
        ax.scatter(
            frame[x].astype(float),
            frame[y].astype(float),
            s=size if len(frame) <= _MANY else size / 5,
            color=color,
            marker=marker,
            linewidths=0,
            alpha=0.85,
            zorder=3,
            label=label,
            rasterized=len(frame) > _MANY,
        )


def draw_left_out(ax: Axes, excluded: pd.DataFrame, x: str) -> None:
    """Runs left out, hollow; those above the frame, or without a loss, at its rim: they must not squeeze the rest."""
    low, high = ax.get_ylim()
    loss = excluded["loss"].to_numpy(float)
    rim = high - 0.03 * (high - low)
    inside = (loss >= low) & (loss <= rim)
    at = excluded[x].to_numpy(float)
    style: dict[str, Any] = {"mfc": "none", "mec": ORANGE, "mew": 1.3, "ls": "", "zorder": 4}
    if inside.any():
        ax.plot(at[inside], loss[inside], "o", ms=8, label="left out", **style)
        ax.plot(at[inside], loss[inside], "x", ms=4.5, mec=ORANGE, ls="", zorder=4)
    if not inside.all():
        y = np.where(loss < low, low + 0.03 * (high - low), rim)
        ax.plot(at[~inside], y[~inside], "^", ms=8, label="left out, off the frame", **style)
    ax.set_ylim(low, high)


def frame_losses(ax: Axes, runs: FloatArray, drawn: FloatArray) -> None:
    """Limits that show the runs, whatever a curve or one lost run does."""
    low = min(float(np.min(runs)), float(np.nanmin(drawn)))
    high = float(np.percentile(runs, 98)) + 0.6 * float(np.percentile(runs, 98) - np.percentile(runs, 2))
    high = min(high, float(np.max(runs)))
    margin = 0.06 * (high - low) or 0.05 * abs(high)
    ax.set_ylim(low - margin, high + margin)


def count_axis(ax: Axes, which: str, quantity: str, unit: str) -> None:
    """A log axis whose ticks read 20M, 50M, 100M; FLOPs stay powers of ten."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_label_text(axis_label(quantity, unit))
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    decades = np.log10(high / low)
    if quantity == "flops":
        axis.set_minor_formatter(NullFormatter())  # on a short axis they would stand on each other
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < 1.7 else (1.0,), numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_flops(value)))
        return
    steps = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(
        LogLocator(subs=steps if decades > 0.5 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), numticks=20)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axis.set_minor_formatter(NullFormatter())


def draw_box(ax: Axes, lines: list[str]) -> None:
    """Lines of text in the upper left corner."""
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
