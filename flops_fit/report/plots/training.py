"""What the runs recorded: training curves with their envelope, and loss against the time of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flops_fit.report.style import (
    LABELS,
    MOST_IN_LEGEND,
    axis_label,
    compute_bar,
    compute_scale,
    count_axis,
    draw_dots,
    marker_of,
    own_axes,
    size_scale,
)
from flops_fit.report.training import curve_series, hours_series
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0


def plot_curves(curves: pd.DataFrame, ax: Axes | None = None, *, series: pd.DataFrame | None = None) -> Axes:
    """Training loss against compute for every run, coloured by size, and the lowest loss reached at each compute.

    Args:
        curves: As ``training.curve_series`` takes them.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
    """
    with own_axes(ax, (7.0, 5.0)) as ax:
        series = curve_series(curves) if series is None else series
        kinds = dict(iter(series.groupby("kind")))
        lines = kinds["curve"]
        sizes = np.sort(lines["num_params"].astype(float).unique())
        scale = size_scale(sizes)
        many = lines["run_id"].nunique() > 60
        for _, run in lines.groupby("run_id", sort=False):
            color = scale.to_rgba(run["num_params"].to_numpy(float)[:1])[0]
            ax.plot(run["flops"], run["loss"], color=color, lw=0.5 if many else 0.9, zorder=2, rasterized=many)
        ends = lines.groupby("run_id", sort=False).tail(1)
        colors = scale.to_rgba(ends["num_params"].to_numpy(float))
        ax.scatter(ends["flops"], ends["loss"], s=14, color=colors, zorder=3, label="end of a run", lw=0)
        lowest = kinds["envelope"]
        ax.plot(lowest["flops"], lowest["loss"], color="black", lw=1.6, ls=(0, (4, 2)), zorder=4, label="envelope")
        if "best" in kinds:
            best = kinds["best"]
            style: dict[str, Any] = {"ms": 11, "mfc": "white", "mec": "black", "zorder": 5, "ls": ""}
            ax.plot(best["flops"], best["loss"], "*", label="a size leads here", **style)
        ax.set_xscale("log")
        _frame(ax, lines)
        ax.set_xlabel(LABELS["flops"])
        count_axis(ax, "x", "flops", "")
        ax.set_ylabel("training loss")
        _size_bar(ax, scale, sizes)
    return ax


def _frame(ax: Axes, lines: pd.DataFrame) -> None:
    """From where half of the runs have begun to learn: the first steps of all are the same fall."""
    starts = lines.groupby("run_id")["flops"].min().astype(float)
    ends = lines.groupby("run_id")["flops"].max().astype(float)
    left = max(float(starts.median()), float(ends.min()) / 100)
    shown = lines.loc[lines["flops"] >= left, "loss"].astype(float)
    low, high = float(shown.min()), float(np.percentile(shown, 97))
    margin = 0.06 * (high - low) or 0.05 * abs(high)
    ax.set_xlim(left, 1.15 * float(ends.max()))
    ax.set_ylim(low - margin, high + margin)


def _size_bar(ax: Axes, scale: ScalarMappable, sizes: np.ndarray) -> None:
    bar = ax.figure.colorbar(scale, ax=ax, label="parameters N")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    picked = sizes[np.linspace(0, len(sizes) - 1, min(len(sizes), 6)).round().astype(int)]
    bar.ax.yaxis.set_major_locator(FixedLocator(list(picked)))


def plot_device_hours(
    table: pd.DataFrame, ax: Axes | None = None, *, series: pd.DataFrame | None = None, unit: str = "tokens"
) -> Axes:
    """Loss against the time of devices that training took, by budget, and the best that each time has bought.

    Args:
        table: As ``training.hours_series`` takes it.
        ax: As in ``plot_isoflop``.
        series: As in ``plot_isoflop``.
        unit: What num_tokens counts.
    """
    with own_axes(ax, (7.0, 5.0)) as ax:
        series = hours_series(table) if series is None else series
        seconds = series.assign(seconds=3600 * series["device_hours"])
        budgets = np.unique(seconds["compute_budget"].dropna().to_numpy(float))
        scale = compute_scale(budgets if budgets.size else seconds["flops"].to_numpy(float))
        few = len(budgets) <= MOST_IN_LEGEND
        for i, C in enumerate(budgets):
            part = seconds[seconds["compute_budget"] == C]
            label = f"{format_flops(C, 2)} FLOPs" if few else None
            draw_dots(ax, part, "seconds", color=scale.to_rgba(C), marker=marker_of(i), label=label)
        loose = seconds[seconds["compute_budget"].isna()]
        draw_dots(ax, loose, "seconds", color="#888888", marker=".", label="in no budget")
        best = seconds[seconds["is_best"].astype(bool)]
        ax.step(best["seconds"], best["loss"], where="post", color="black", lw=1, zorder=1, label="lowest so far")
        if not few:
            compute_bar(ax, scale)
        ax.set_xscale("log")
        _time_axis(ax)
        devices = [name for name in seconds["device"].unique() if name]
        said = "" if not devices else devices[0] if len(devices) == 1 else f"{len(devices)} kinds: not one scale"
        ax.set_xlabel("device time (devices x training time)" + (f"\n{said[:60]}" if said else ""))
        ax.set_ylabel(axis_label("loss", unit))
    return ax


def _time_axis(ax: Axes) -> None:
    """Ticks at 1 s, 10 s, 1 min and so on; more of them on a short axis."""
    low, high = ax.get_xlim()
    coarse = [1e-3, 1e-2, 0.1, 1, 10, _MINUTE, 10 * _MINUTE, _HOUR, 10 * _HOUR, 100 * _HOUR]
    coarse += [_HOUR * 10.0**p for p in range(3, 9)]
    fine = sorted({*coarse, *(2 * t for t in coarse), *(3 * t for t in coarse), *(5 * t for t in coarse)})
    wide = sum(low <= t <= high for t in coarse) >= 3
    ticks = [t for t in (coarse if wide else fine) if low <= t <= high]
    kept: list[float] = []
    for tick in ticks:
        if not kept or np.log(tick / kept[-1]) > 0.09 * np.log(high / low):
            kept.append(tick)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))


def _duration(seconds: float) -> str:
    for scale, name in ((_HOUR, "h"), (_MINUTE, "min"), (1.0, "s")):
        if seconds >= scale:
            return (
                f"{seconds / scale:.3g} {name}" if seconds / scale < 1000 else f"{format_count(seconds / scale)} {name}"
            )
    return f"{1000 * seconds:.3g} ms"
