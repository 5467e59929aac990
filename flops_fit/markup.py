"""Small pieces of HTML; every text in them is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

# A notebook has a style sheet of its own; only what keeps wide tables inside their box is ours.
_BOX = '<div style="overflow-x: auto; max-width: 100%">'


def html_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in a box of its own, which scrolls where it is wider than the page."""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"{_BOX}<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def html_lines(lines: Iterable[str]) -> str:
    """A list of lines; nothing where there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
