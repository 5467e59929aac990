"""Small pieces of HTML, in which every text is escaped, and of plain text."""

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


def text_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of right-aligned columns, no wider than their cells."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
