"""Everything about one analysis in one folder: figures, their data, tables, and a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import os
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd

from flops_fit.errors import DataError
from flops_fit.report.checklist import ASK, checklist
from flops_fit.report.plots import figures
from flops_fit.report.series import all_series
from flops_fit.report.tables import (
    CANDIDATES_SAY,
    answer_table,
    candidate_table,
    data_line,
    excluded_table,
    holdout_line,
    isoflop_table,
    optimal,
    parameter_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flops_fit.fit import ScalingAnalysis

SCHEMA_VERSION = 1

# Text stays text in PDF; the ids in SVG do not change from run to run.
_STYLE: dict[Any, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "flops-fit"}

_CAPTIONS = {
    "isoflop": "Loss against size at each budget. Solid: parabola among the sizes that were run; dashed: beyond them."
    " Star: its minimum, with the 95 % interval of its place. Crosses: runs left out.",
    "optimum": "The best size, its data and their ratio against compute. Dashed beyond the data. The dotted lines are"
    " the other candidates: where they part from the headline, the form of the law is what is uncertain.",
    "frontier": "The lowest loss that compute buys. The irreducible loss is drawn only where the runs determine it.",
    "residuals": "Measured over predicted loss. A trend here means that the law is wrong, whatever the fit's error.",
    "holdout": "The largest budgets, foretold from the smaller ones alone.",
}

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.92em; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { text-align: left; padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: 0.92em; }
.warning { border-left: 4px solid #D55E00; padding: 0.3rem 0.8rem; margin: 0.4rem 0; background: #fdf3ec; }
code { background: #f4f4f4; padding: 0.1rem 0.3rem; overflow-wrap: anywhere; } .ask { color: #B34700; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$data</p>
<p><b>Answered by $method</b>: $why</p>
$warnings
<h2>Compute-optimal models</h2>
$answers
<p>$holdout.</p>
$figures
<h2>Candidates</h2>
<p>$candidates_say.</p>
$candidates
<h2>Fitted laws</h2>
$parameters
<h2>Budgets</h2>
$budgets
$excluded
<h2>Reproducibility</h2>
<p>After the checklist of Li, Kudugunta and Zettlemoyer (2025), arXiv:2502.18969.</p>
$checklist
</body>
</html>
""")


def save_report(analysis: ScalingAnalysis, folder: str | Path, *, command: str | None = None) -> Path:
    """Write figures (PNG, PDF, data as CSV), ``optimal.csv``, ``runs.csv`` and ``report.html``.

    Args:
        analysis: The fits.
        folder: Where to; made if it is not there, files of an earlier report are replaced.
        command: How the analysis was started, for the page.

    Returns:
        The page; written last, so that its presence means the folder is whole.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = Path(folder)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        series = all_series(analysis)
        drawn = figures(analysis, series)
        _save_figures(drawn, folder / "figures")
        for name, frame in series.items():
            _write(folder / "figures" / f"{name}.csv", _csv(frame))
        _write(folder / "optimal.csv", _csv(optimal(analysis)))
        _write(folder / "runs.csv", _csv(analysis.runs))
        page = folder / "report.html"
        _write(page, render_page(analysis, drawn, command=command))
    except OSError as error:
        raise DataError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
    return page


def render_page(analysis: ScalingAnalysis, drawn: list[Figure], *, command: str | None = None) -> str:
    """The page as text: one file, no scripts, nothing fetched, every name escaped."""
    warnings = "\n".join(f'<p class="warning">{escape(w.message)}</p>' for w in analysis.warnings)
    pictures = "\n".join(
        f'<figure><img alt="{escape(str(f.get_label()))}" src="{_picture(f)}">'
        f"<figcaption>{escape(_CAPTIONS.get(str(f.get_label()), ''))}</figcaption></figure>"
        for f in drawn
    )
    excluded = excluded_table(analysis)
    audit = _table(checklist(analysis, command)).replace(f"<td>{ASK}</td>", f'<td class="ask">{ASK}</td>')
    return _PAGE.substitute(
        title="Scaling analysis",
        data=escape(data_line(analysis)),
        method=escape(analysis.headline.method),
        why=escape(analysis.headline.why),
        warnings=warnings,
        answers=_table(answer_table(analysis)),
        holdout=escape(_sentence(holdout_line(analysis))),
        candidates_say=_sentence(CANDIDATES_SAY),
        candidates=_table(candidate_table(analysis)),
        figures=pictures,
        parameters=_table(parameter_table(analysis)),
        budgets=_table(isoflop_table(analysis)),
        excluded="" if excluded.empty else f"<h2>Left out</h2>\n{_table(excluded)}",
        checklist=audit,
    )


def _sentence(text: str) -> str:
    """With a capital first letter; N_opt and FLOPs stay as they are."""
    return text[:1].upper() + text[1:]


def _save_figures(drawn: list[Figure], folder: Path) -> None:
    with matplotlib.rc_context(_STYLE):
        for figure in drawn:
            # Laid out once, not again for each format.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
                _write(folder / f"{figure.get_label()}.{suffix}", buffer.getvalue())


def _picture(figure: Figure) -> str:
    """A figure as a data address; as an image, so that nothing in it can run."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(frame: pd.DataFrame) -> str:
    return f'<div class="scroll">{frame.to_html(index=False, border=0, escape=True)}</div>'


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.assign(schema_version=SCHEMA_VERSION).to_csv(index=False))


def _write(path: Path, content: str | bytes) -> None:
    """A file that is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    beside.replace(path)
