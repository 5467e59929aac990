"""The answer as Markdown, to paste into an issue."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd

from flops_fit.report.checklist import checklist
from flops_fit.report.html import capitalised, title_of
from flops_fit.report.left_out import left_out_table
from flops_fit.report.recorded import Recorded
from flops_fit.report.tables import (
    CANDIDATES_SAY,
    answer_sentence,
    answer_table,
    candidate_table,
    data_line,
    holdout_line,
    isoflop_table,
    parameter_table,
    warnings_first,
)

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

# What Markdown, or the HTML that it lets through, would take for its own.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def render_markdown(analysis: ScalingAnalysis, *, recorded: Recorded | None = None, target: float | None = None) -> str:
    """The report without its figures; arguments as those of ``html.render_page``."""
    recorded = recorded or Recorded()
    headline = f"Answered by {analysis.headline.method}: {analysis.headline.why}"
    parts = [
        f"## {_plain(title_of(recorded))}",
        _plain(data_line(analysis)),
        f"**{_plain(answer_sentence(analysis, target))}**",
        *_warnings(analysis, target),
        _table(answer_table(analysis, target=target)),
        _plain(f"{headline}. {capitalised(holdout_line(analysis))}."),
        "### Fitted laws",
        _table(parameter_table(analysis)),
        f"{_plain(capitalised(CANDIDATES_SAY))}.",
        _table(candidate_table(analysis)),
        _folded("Budgets", _table(isoflop_table(analysis))),
        _folded("Left out", _table(left_out_table(analysis))),
        _folded("Reproducibility", _table(checklist(analysis, recorded))),
        "Command:\n\n" + _block(recorded.command or "not recorded"),
        _folded("Config", _block(recorded.config, "yaml")) if recorded.config else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _warnings(analysis: ScalingAnalysis, target: float | None) -> list[str]:
    lines = [
        f"- {'**Do not act on this alone**: ' if grave else ''}{_plain(w.message)} ({_plain(w.code)})"
        for w, grave in warnings_first(analysis, target)
    ]
    return ["\n".join(lines)] if lines else []


def _plain(text: str) -> str:
    """A text that stands for itself, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _table(frame: pd.DataFrame) -> str:
    if frame.empty:
        return ""
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).to_numpy().tolist()]
    return "\n".join(
        f"| {' | '.join(cell if i == 1 else _plain(cell) for cell in row)} |" for i, row in enumerate(rows)
    )


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>" if content else ""


def _block(text: str, language: str = "") -> str:
    """A block of code whose fence nothing in it can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
