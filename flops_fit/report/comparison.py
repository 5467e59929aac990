"""Two analyses side by side: as text, as a table, as a figure."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from flops_fit.errors import DataError
from flops_fit.fit.prediction import SCHEMA_VERSION
from flops_fit.report.tables import BEYOND, as_text, rounded
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flops_fit.fit.comparison import AtCompute, Comparison, Estimate


def comparison_frame(rows: tuple[AtCompute, ...]) -> pd.DataFrame:
    """One row a budget, in full precision: compute_budget, each estimate with ``_low`` and ``_high``, extrapolated."""
    return pd.DataFrame([_flat(row) for row in rows])


def comparison_text(comparison: Comparison) -> str:
    """Warnings, the sentence, and the table."""
    a, b = comparison.names
    unit = "" if comparison.loss_unit is None else f" [{comparison.loss_unit}]"
    table = pd.DataFrame(
        {
            "compute_budget": [format_flops(row.compute_budget) for row in comparison.rows],
            f"loss of {a}{unit}": [_said(row.loss_a) for row in comparison.rows],
            f"loss of {b}{unit}": [_said(row.loss_b) for row in comparison.rows],
            "difference": [_said(row.difference, percent=True) for row in comparison.rows],
            "gain": [_said(row.gain) for row in comparison.rows],
            "": [BEYOND if row.extrapolated else "" for row in comparison.rows],
        }
    )
    overlap = comparison.overlap
    ranges = (
        "no budgets in common" if overlap is None else f"both trained from {' to '.join(map(format_flops, overlap))}"
    )
    lines = [f"warning: {w}" for w in comparison.warnings]
    lines += [*([""] if lines else []), comparison.sentence, f"({ranges}; 95 % intervals)", ""]
    lines += [as_text(table), ""]
    lines.append(f"gain: compute over what {b} needs for the loss that {a} reaches with it; above 1, {b} needs less")
    return "\n".join(lines)


def _said(estimate: Estimate, *, percent: bool = False) -> str:
    scale, sign = (100.0, " %") if percent else (1.0, "")
    value, low, high = (math.nan if v is None else scale * v for v in (estimate.value, estimate.low, estimate.high))
    if math.isnan(value):
        return "withheld"
    said = rounded(value, low, high)
    if math.isnan(low) != math.isnan(high):
        ends = ["0" if math.isnan(low) else f"{low:.3g}", "unbounded" if math.isnan(high) else f"{high:.3g}"]
        said = f"{value:.3g} ({' to '.join(ends)})"
    number, _, interval = said.partition(" ")
    return f"{number}{sign} {interval}".rstrip()


def _flat(row: AtCompute) -> dict[str, float | bool]:
    flat: dict[str, float | bool] = {"compute_budget": row.compute_budget}
    for name in ("loss_a", "loss_b", "difference", "gain"):
        parts = asdict(getattr(row, name))
        numbers = {end: math.nan if v is None else float(v) for end, v in parts.items()}
        flat |= {name: numbers["value"], f"{name}_low": numbers["low"], f"{name}_high": numbers["high"]}
    return flat | {"extrapolated": row.extrapolated}


def plot_losses(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Both losses against compute, each with its 95 % band; dashed where it is extrapolated."""
    from flops_fit.report.style import BLUE, LABELS, ORANGE, axis_label, new_axes

    ax = ax if ax is not None else new_axes((6.4, 4.4))
    frame = comparison_frame(comparison.curve)
    for name, key, color, marker in zip(comparison.names, ("loss_a", "loss_b"), (BLUE, ORANGE), "os", strict=True):
        _band(ax, frame, key, color, marker, name)
    ax.set_xlabel(LABELS["flops"])
    ax.set_ylabel(axis_label("loss", comparison.unit))
    ax.set_title("Loss at equal compute")
    ax.legend(frameon=False, loc="upper right")
    return ax


def plot_gain(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The compute-equivalent gain of the second over the first, with its 95 % band and the line of no gain."""
    from flops_fit.report.style import BLUE, LABELS, new_axes

    ax = ax if ax is not None else new_axes((6.4, 4.4))
    a, b = comparison.names
    _band(ax, comparison_frame(comparison.curve), "gain", BLUE, "", None)
    ax.axhline(1, color="black", lw=0.8, ls=":", zorder=1)
    known = [row.gain.value for row in comparison.curve if row.gain.value]
    if known:
        # An unbounded end would flatten everything else.
        low, high = min(*known, 1.0), max(*known, 1.0)
        bottom, top = ax.get_ylim()
        ax.set_ylim(max(bottom, low / 4), min(top, high * 4))
    ax.set_xlabel(LABELS["flops"])
    ax.set_ylabel("gain in compute")
    ax.set_title(f"Compute of {a} over that of {b}\nfor the same loss")
    return ax


def _band(
    ax: Axes,
    frame: pd.DataFrame,
    key: str,
    color: str,
    marker: str,
    label: str | None,
) -> None:
    C, value = frame["compute_budget"].to_numpy(float), frame[key].to_numpy(float)
    beyond = frame["extrapolated"].to_numpy(bool)
    ax.set_xscale("log")
    ax.fill_between(C, frame[f"{key}_low"], frame[f"{key}_high"], color=color, alpha=0.18, lw=0, zorder=2)
    ax.plot(C, value, color=color, lw=1.6, ls=(0, (4, 2)), zorder=3)
    inside = value.copy()
    inside[beyond] = math.nan
    ax.plot(C, inside, color=color, lw=2.2, marker=marker, ms=5, markevery=4, zorder=4, label=label)


def comparison_figure(comparison: Comparison) -> Figure:
    """Losses and gain side by side, the budgets that both cover shaded."""
    from flops_fit.report.style import new_figure

    figure = new_figure("comparison", (11.0, 4.4))
    left, right = figure.subplots(1, 2)
    for ax in (plot_losses(comparison, left), plot_gain(comparison, right)):
        if comparison.overlap is not None:
            ax.axvspan(*comparison.overlap, color="#eeeeee", zorder=0, lw=0)
    return figure


def save_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write ``comparison.json``, ``comparison.csv`` (what is drawn), ``comparison.png`` and ``.pdf``; returns them.

    Raises:
        DataError: The folder cannot be written.
    """
    folder, figure = Path(folder), comparison_figure(comparison)
    frame = comparison_frame(comparison.curve).assign(schema_version=SCHEMA_VERSION)
    contents: dict[str, bytes] = {
        "json": json.dumps(comparison.to_dict(), indent=1).encode(),
        "csv": frame.to_csv(index=False).encode(),
    }
    for kind in ("png", "pdf"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150)
        contents[kind] = buffer.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, content in contents.items():
            beside = folder / f".comparison.{kind}.{os.getpid()}"
            beside.write_bytes(content)
            beside.replace(folder / f"comparison.{kind}")
    except OSError as error:
        raise DataError(f"the comparison cannot be written to {folder}: {error.strerror or error}") from error
    return [folder / f"comparison.{kind}" for kind in contents]
