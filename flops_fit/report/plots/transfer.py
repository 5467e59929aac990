"""Figures of what transfers over sizes: coordinate checks and learning-rate probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flops_fit.report.style import CANDIDATES, GREY, marker_of, new_axes, own_axes
from flops_fit.transfer import OUTPUT
from flops_fit.units import format_count

if TYPE_CHECKING:
    from flops_fit.fit.rates import RateLaw
    from flops_fit.transfer import Coordinate, CoordinateCheck


def plot_coordinates(check: CoordinateCheck, ax: Axes | None = None) -> Axes:
    """How far a few steps move every part of the network, against its width; flat where one rate serves all.

    Args:
        check: What was found.
        ax: Where to draw; None makes a figure.
    """
    ax = ax if ax is not None else new_axes((8.4, 5.0))
    for i, c in enumerate(check.coordinates):
        fails = not c.passes(check.tolerance)
        label = f"{c.name}: {c.slope:+.2f}" + (" fails" if fails else "" if c.is_judged else " not judged")
        color = _color(i, c)
        ax.plot(
            check.widths,
            c.rms,
            color=color,
            marker=marker_of(i),
            linewidth=2.2 if fails else 1.2,
            linestyle="-" if c.is_judged else ":",
            label=label,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    labels = dict(zip(check.widths, map(str, check.sizes), strict=True))
    ax.xaxis.set_major_locator(FixedLocator(list(check.widths)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda width, _: labels.get(width, "")))
    ax.set_xlabel(check.size_param)
    ax.set_ylabel(f"change of the output over {check.steps} steps (RMS)")
    verdict = {True: "passed", False: "failed", None: "not applicable"}[check.passed]
    ax.set_title(f"Coordinate check: {verdict}", loc="left")
    if check.coordinates:
        legend = ax.legend(title="power of the width", fontsize="small", frameon=False, loc="center left")
        legend.set_bbox_to_anchor((1.0, 0.5))
    return ax


def plot_rates(law: RateLaw, ax: Axes | None = None) -> Axes:
    """The loss of every run of a learning-rate probe against its rate, and the rate that each size is given.

    Args:
        law: What the probe has found.
        ax: Where to draw; None makes a figure.
    """
    with own_axes(ax, (7.0, 5.0)) as ax:
        for i, probe in enumerate(law.probes):
            runs = [(lr, loss) for lr, loss in zip(probe.lrs, probe.losses, strict=True) if loss is not None]
            worst = max(loss for _, loss in runs)
            lost = [lr for lr, loss in zip(probe.lrs, probe.losses, strict=True) if loss is None]
            color, name = CANDIDATES[i % len(CANDIDATES)], f"N = {format_count(probe.num_params)}"
            ax.plot(*zip(*runs, strict=True), color=color, marker=marker_of(i), label=name)
            ax.plot(
                lost, [worst] * len(lost), color=color, marker="x", ls="", label=f"{name}, diverged" if lost else None
            )
            ax.axvline(probe.best_lr, color=color, ls=":", lw=1.2, label=f"{name}, best {probe.best_lr:.3g}")
        ax.set_xscale("log")
        ax.set_xlabel("peak learning rate")
        ax.set_ylabel(f"loss after {law.probes[0].steps} steps")
    return ax


def _color(i: int, c: Coordinate) -> str:
    """Black for the whole network's output."""
    *colors, black = CANDIDATES
    return black if c.name == OUTPUT else colors[i % len(colors)] if c.is_judged else GREY
