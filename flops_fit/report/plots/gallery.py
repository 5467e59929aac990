"""Which figures there are of an analysis, and what each is to be read for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from flops_fit.report.plots.checks import plot_holdout, plot_leave_out, plot_qq, plot_residuals
from flops_fit.report.plots.isoflop import plot_isoflop
from flops_fit.report.plots.optimum import plot_frontier, plot_optimum
from flops_fit.report.plots.surface import plot_surface
from flops_fit.report.plots.training import plot_curves, plot_device_hours
from flops_fit.report.plots.transfer import plot_rates
from flops_fit.report.references import reference
from flops_fit.report.series import FORETOLD, all_series, budgets_of
from flops_fit.report.style import MOST_IN_LEGEND, compute_bar, compute_scale, legend_below, new_figure
from flops_fit.report.training import curve_series, hours_series
from flops_fit.report.transfer import rate_series

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis
    from flops_fit.report.recorded import Recorded

_PANEL = (5.8, 4.7)
_MAP = (6.2, 5.4)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One figure: panels side by side on paper, each by itself on a page that may be narrow.

    Attributes:
        name: Of its files.
        title: What is to be seen.
        caption: How to read it.
        panels: By name, empty where there is only one: each draws into the axes it is given.
        data: What the panels draw.
        bar: Budgets that panels colour without a legend of their own, for a colour bar beside them; None without.
        size: Of a panel [inches].
        columns: Panels in a row.
    """

    name: str
    title: str
    caption: str
    panels: Mapping[str, Callable[[Axes], Axes]]
    data: pd.DataFrame
    bar: ScalarMappable | None = None
    size: tuple[float, float] = _PANEL
    columns: int = 3


def sheets(
    analysis: ScalingAnalysis,
    *,
    target: float | None = None,
    references: Sequence[str] = (),
    recorded: Recorded | None = None,
) -> list[Sheet]:
    """Every figure there is something for.

    Args:
        analysis: The fits.
        target: A budget to mark in the figures [FLOPs].
        references: Published laws to draw beside the optima, by their names in ``references.REFERENCES``.
        recorded: What the runs recorded beside their losses.

    Raises:
        DataError: There is no such reference.
    """
    for name in references:
        reference(name)
    data = all_series(analysis, target=target)
    many = budgets_of(analysis)
    made = [
        Sheet(
            name="isoflop",
            title="IsoFLOP curves" if many.size else "Runs, by compute",
            caption="Loss against size at each budget. Solid: the parabola among the sizes that were run; dashed:"
            " beyond them. Star: its minimum, with the 95 % interval of its place. Hollow: runs left out.",
            panels={"": partial(plot_isoflop, analysis, series=data["isoflop"])},
            data=data["isoflop"],
            size=(6.4, 5.2),
        ),
        Sheet(
            name="optimum",
            title="The best size, its data, and their ratio",
            caption="Against compute; dashed beyond the data. The dotted lines are the other candidates: where they"
            " part from the headline, the form of the law is what is uncertain.",
            panels={
                quantity: partial(plot_optimum, analysis, quantity, series=data["optimum"], references=references)
                for quantity in ("num_params", "num_tokens", "tokens_per_param")
            },
            data=data["optimum"],
            size=(5.0, 4.6),
        ),
        Sheet(
            name="frontier",
            title="The lowest loss that compute buys",
            caption="Dashed beyond the data. The irreducible loss E is drawn only where the runs determine it.",
            panels={"": partial(plot_frontier, analysis, series=data["frontier"])},
            data=data["frontier"],
            size=(6.4, 4.9),
        ),
    ]
    made += [sheet for name, draw in _JUDGED.items() if name in data and (sheet := draw(analysis, data))]
    return made + _recorded(analysis, recorded)


def _residuals(analysis: ScalingAnalysis, data: Mapping[str, pd.DataFrame]) -> Sheet:
    series, budgets = data["residuals"], budgets_of(analysis)
    against = ("num_params", "num_tokens", "flops")
    return Sheet(
        name="residuals",
        title="Residuals of the surface",
        caption="Measured over predicted loss. A trend or a bend here means that the law is wrong, whatever the fit's"
        " error. Last: the residuals in order against a normal scatter, a straight line where the noise is normal.",
        panels={
            **{name: partial(plot_residuals, analysis, name, series=series) for name in against},
            "qq": partial(plot_qq, analysis, series=series),
        },
        data=series,
        bar=compute_scale(budgets) if len(budgets) > MOST_IN_LEGEND else None,
        columns=2,
    )


def _surface(analysis: ScalingAnalysis, data: Mapping[str, pd.DataFrame]) -> Sheet:
    return Sheet(
        name="surface",
        title="The surface L(N, D)",
        caption="Contours of the fitted loss, lines of equal compute, the runs, and the best split of compute as"
        " answered above. Where there are no runs, the contours are the form of the law and nothing else.",
        panels={"": partial(plot_surface, analysis, series=data["surface"])},
        data=data["surface"],
        size=_MAP,
    )


def _holdout(analysis: ScalingAnalysis, data: Mapping[str, pd.DataFrame]) -> Sheet:
    told = [a for a in ("loss", "num_params") if a in set(data["holdout"]["answer"])]
    return Sheet(
        name="holdout",
        title="Hold-out: the largest budget foretold from the smaller ones",
        caption="Each candidate's forecast of the largest budget, from ever fewer of the smaller ones to the right.",
        panels={answer: partial(plot_holdout, analysis, answer, series=data["holdout"]) for answer in told},
        data=data["holdout"],
        columns=2,
    )


def _leave_out(analysis: ScalingAnalysis, data: Mapping[str, pd.DataFrame]) -> Sheet:
    series = data["leave_out"]
    every: tuple[Literal["budget", "size"], ...] = ("budget", "size")
    kinds = [what for what in every if what in set(series["what"])]
    return Sheet(
        name="leave_out",
        title="The surface without one budget, and without one size",
        caption="How far its answer beyond the data moves when one budget or one size is left out: an answer that"
        " hangs on a single one of them is not settled.",
        panels={
            f"{answer}_by_{what}": partial(plot_leave_out, analysis, what, answer, series=series)
            for answer in FORETOLD
            for what in kinds
        },
        data=series,
        columns=len(kinds),
    )


_JUDGED = {"residuals": _residuals, "surface": _surface, "holdout": _holdout, "leave_out": _leave_out}


def _recorded(analysis: ScalingAnalysis, recorded: Recorded | None) -> list[Sheet]:
    """Figures of what runs recorded while they trained."""
    made: list[Sheet] = []
    if recorded is not None and recorded.rate_law is not None:
        made.append(
            Sheet(
                name="learning_rate",
                title="The learning-rate probe",
                caption=f"Short runs before the sweep. Peak rate of its runs: {recorded.rate_law.formula}.",
                panels={"": partial(plot_rates, recorded.rate_law)},
                data=rate_series(recorded.rate_law),
                size=(7.0, 5.0),
            )
        )
    if recorded is not None and recorded.curves is not None:
        curves = curve_series(recorded.curves)
        if not curves.empty:
            made.append(
                Sheet(
                    name="curves",
                    title="Training curves and their envelope",
                    caption="A picture, not an answer: along a schedule that comes down at its end, the loss is not"
                    " what a run ending there would have reached. Means over a tenth of each run.",
                    panels={"": partial(plot_curves, recorded.curves, series=curves)},
                    data=curves,
                    size=(6.4, 4.9),
                )
            )
    if recorded is not None and recorded.table is not None:
        hours = hours_series(recorded.table)
        if not hours.empty:
            made.append(
                Sheet(
                    name="device_hours",
                    title="Loss against the time of devices",
                    caption="Time of training alone, times the devices of a run, as recorded. Runs that shared a"
                    " machine slowed each other down.",
                    panels={"": partial(plot_device_hours, recorded.table, series=hours, unit=analysis.unit)},
                    data=hours,
                    size=(6.4, 4.9),
                )
            )
    return made


def combined(sheet: Sheet) -> Figure:
    """All panels of a sheet in one figure, with one legend; ``get_label()`` is the sheet's name."""
    columns = min(sheet.columns, len(sheet.panels))
    rows = -(-len(sheet.panels) // columns)
    width, height = sheet.size
    factor = 0.86 if columns > 1 else 1.0
    figure = new_figure(sheet.name, (factor * width * columns, factor * height * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for draw, ax in zip(sheet.panels.values(), axes.ravel(), strict=True):
        draw(ax)
    _finish(figure, sheet)
    figure.suptitle(sheet.title)
    return figure


def panels(sheet: Sheet) -> Iterator[Figure]:
    """The panels of a sheet as figures of their own, each with its legend, labelled for its files."""
    for panel, draw in sheet.panels.items():
        figure = new_figure(f"{sheet.name}_{panel}" if panel else sheet.name, sheet.size)
        draw(figure.subplots())
        _finish(figure, sheet)
        yield figure


def _finish(figure: Figure, sheet: Sheet) -> None:
    if sheet.bar is not None:
        compute_bar(figure.axes, sheet.bar)
    legend_below(figure)


def figures(
    analysis: ScalingAnalysis,
    *,
    target: float | None = None,
    references: Sequence[str] = (),
    recorded: Recorded | None = None,
) -> list[Figure]:
    """Every figure there is something for; ``get_label()`` tells which is which. Arguments as those of ``sheets``."""
    made = sheets(analysis, target=target, references=references, recorded=recorded)
    return [combined(sheet) for sheet in made]
