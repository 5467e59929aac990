"""Everything about one analysis in one folder: figures, their data, tables, a page, and a text to paste."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from flops_fit.errors import DataError
from flops_fit.report.html import render_page
from flops_fit.report.left_out import excluded_table
from flops_fit.report.markdown import render_markdown
from flops_fit.report.plots.gallery import Sheet, panels, sheets
from flops_fit.report.recorded import Recorded
from flops_fit.report.rendering import inline_svg, lay_out, pdf, png
from flops_fit.report.tables import optimal

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

SCHEMA_VERSION = 1


def save_report(
    analysis: ScalingAnalysis,
    folder: str | Path,
    *,
    recorded: Recorded | None = None,
    target: float | None = None,
    references: Sequence[str] = (),
) -> Path:
    """Write figures (PNG, PDF, data as CSV), ``optimal.csv``, ``runs.csv``, ``report.md`` and ``report.html``.

    Args:
        analysis: The fits.
        folder: Where to; made if it is not there, files of an earlier report are replaced.
        recorded: What is known of the runs beside.
        target: The budget to answer for and to mark [FLOPs]; None for the largest that was trained.
        references: Published laws to draw beside the optima, by their names in ``references.REFERENCES``.

    Returns:
        The page; written last, so that its presence means the folder is whole.

    Raises:
        DataError: The folder cannot be written, or there is no such reference.
    """
    folder = Path(folder)
    drawn = sheets(analysis, target=target, references=references, recorded=recorded)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        figures = [(sheet, _save_figure(sheet, folder / "figures")) for sheet in drawn]
        _write(folder / "optimal.csv", _csv(optimal(analysis, target=target)))
        _write(folder / "runs.csv", _csv(analysis.runs))
        if analysis.excluded:
            _write(folder / "left_out.csv", _csv(excluded_table(analysis)))
        _write(folder / "report.md", render_markdown(analysis, recorded=recorded, target=target))
        page = folder / "report.html"
        _write(page, render_page(analysis, figures, recorded=recorded, target=target))
    except OSError as error:
        raise DataError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
    return page


def _save_figure(sheet: Sheet, folder: Path) -> list[str]:
    """Write the panels of one figure and their data; returns the panels for the page."""
    drawings = []
    for figure in panels(sheet):
        name = str(figure.get_label())
        lay_out(figure)
        _write(folder / f"{name}.png", png(figure))
        _write(folder / f"{name}.pdf", pdf(figure))
        drawings.append(inline_svg(figure, name, f"{sheet.title}: {name}"))
    _write(folder / f"{sheet.name}.csv", _csv(sheet.data))
    return drawings


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.assign(schema_version=SCHEMA_VERSION).to_csv(index=False))


def _write(path: Path, content: str | bytes) -> None:
    """A file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    beside.replace(path)
