"""The page: one file, no scripts, nothing fetched, every name escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING

import pandas as pd

from flops_fit.markup import html_table
from flops_fit.report.checklist import ASK, checklist
from flops_fit.report.left_out import left_out_table
from flops_fit.report.plots.gallery import Sheet
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

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.3rem; }
p { max-width: 60rem; margin: 0.5rem 0; }
.answer { font-size: 1.2rem; line-height: 1.45; border: 1px solid #888; border-left: 5px solid #0072B2;
  padding: 0.8rem 1rem; margin: 1rem 0; max-width: 60rem; }
.warning { border-left: 4px solid #999; padding: 0.2rem 0.8rem; margin: 0.35rem 0; background: #f6f6f6; }
.grave { border-left-color: #D55E00; background: #fdf3ec; }
table { border-collapse: collapse; font-size: 0.92em; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: left; padding: 0.25rem 1rem 0.25rem 0; border-bottom: 1px solid #ddd; vertical-align: top;
  white-space: nowrap; }
.wrap td { white-space: normal; }
.wrap table { width: 100%; } .wrap td { overflow-wrap: anywhere; } .wrap td:first-child { width: 34%; }
.wrap td:nth-child(2) { min-width: 9rem; }
.panels { display: flex; flex-wrap: wrap; gap: 0.6rem 1.2rem; justify-content: flex-start; align-items: flex-start; }
.panels svg { flex: 1 1 26rem; width: 100%; min-width: 0; height: auto; } .three svg { flex-basis: 20rem; }
.panels svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure { margin: 0.5rem 0 1.6rem; } figcaption { color: #444; font-size: 0.92em; max-width: 60rem; }
pre, code { background: #f4f4f4; font-size: 0.88em; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { padding: 0.6rem 0.8rem; margin: 0.4rem 0; } code { padding: 0.1rem 0.3rem; }
.ask { color: #A33B00; font-style: italic; }
@media print {
  body { margin: 0; max-width: none; font-size: 10.5pt; } h2, h3 { break-after: avoid; }
  figure, tr, .answer, .warning { break-inside: avoid; } .panels svg { flex-basis: 40%; }
  td { white-space: normal; } th { white-space: normal; overflow-wrap: anywhere; }
}
</style>
</head>
<body>
<h1>$title</h1>
<p>$data</p>
<p class="answer">$answer</p>
$warnings
<h2>Compute-optimal models</h2>
<p>Best values with their 95&nbsp;% intervals.</p>
$answers
<p><b>Answered by $method</b>: $why</p>
<p>$holdout.</p>
$figures
<h2>Candidates</h2>
<p>$candidates_say.</p>
$candidates
<h2>Fitted laws</h2>
$parameters
<h2>Budgets</h2>
$budgets
$left_out
<h2>Reproducibility</h2>
<p>After the checklist of Li, Kudugunta and Zettlemoyer (2025), arXiv:2502.18969, filled in from the runs.</p>
$checklist
<h3>Command</h3>
<pre>$command</pre>
$config
</body>
</html>
""")


def render_page(
    analysis: ScalingAnalysis,
    drawn: Sequence[tuple[Sheet, Sequence[str]]],
    *,
    recorded: Recorded | None = None,
    target: float | None = None,
) -> str:
    """The page as text.

    Args:
        analysis: The fits.
        drawn: The figures to show, each with its panels as SVG elements.
        recorded: What is known of the runs beside.
        target: The budget to answer for [FLOPs]; None for the largest that was trained.
    """
    recorded = recorded or Recorded()
    left_out = left_out_table(analysis)
    return _PAGE.substitute(
        title=escape(title_of(recorded)),
        data=escape(data_line(analysis)),
        answer=escape(answer_sentence(analysis, target)),
        method=escape(analysis.headline.method),
        why=escape(analysis.headline.why),
        warnings=_warnings(analysis, target),
        answers=_table(answer_table(analysis, target=target)),
        holdout=escape(capitalised(holdout_line(analysis))),
        candidates_say=capitalised(CANDIDATES_SAY),
        candidates=_table(candidate_table(analysis)),
        figures="\n".join(_figure(*figure) for figure in drawn),
        parameters=_table(parameter_table(analysis)),
        budgets=_table(isoflop_table(analysis)) or "<p>None: no three runs share one.</p>",
        left_out="" if left_out.empty else f'<h2>Left out</h2>\n<div class="wrap">{_table(left_out)}</div>',
        checklist=_checklist(analysis, recorded),
        command=escape(recorded.command or "not recorded"),
        config=_config(recorded),
    )


def title_of(recorded: Recorded) -> str:
    """What the page is called."""
    return "Scaling analysis" + (f" of {recorded.name}" if recorded.name else "")


def capitalised(text: str) -> str:
    """With a capital first letter; N_opt and FLOPs stay as they are."""
    return text[:1].upper() + text[1:]


def _warnings(analysis: ScalingAnalysis, target: float | None) -> str:
    lines = []
    for warning, grave in warnings_first(analysis, target):
        kind, said = ("warning grave", "Do not act on this alone: ") if grave else ("warning", "Note: ")
        lines.append(
            f'<p class="{kind}"><b>{said}</b>{escape(warning.message)} <code>{escape(warning.code)}</code></p>'
        )
    return "\n".join(lines)


def _figure(sheet: Sheet, drawings: Sequence[str]) -> str:
    inside, three = "\n".join(drawings), " three" if len(drawings) == 3 else ""
    return (
        f'<h2>{escape(sheet.title)}</h2>\n<figure><div class="panels{three}">\n{inside}\n</div>'
        f"<figcaption>{escape(sheet.caption)}</figcaption></figure>"
    )


def _checklist(analysis: ScalingAnalysis, recorded: Recorded) -> str:
    parts = []
    for part, rows in checklist(analysis, recorded).groupby("part", sort=False):
        table = _table(rows[["question", "answer"]]).replace(f"<td>{ASK}</td>", f'<td class="ask">{ASK}</td>')
        parts.append(f'<h3>{escape(capitalised(str(part)))}</h3>\n<div class="wrap">{table}</div>')
    return "\n".join(parts)


def _config(recorded: Recorded) -> str:
    return f"<h3>Config</h3>\n<pre>{escape(recorded.config)}</pre>" if recorded.config else ""


def _table(frame: pd.DataFrame) -> str:
    return "" if frame.empty else html_table(list(frame.columns), frame.astype(str).to_numpy().tolist())
