"""Coordinate checks as text."""

from __future__ import annotations

from flops_fit.transfer import Coordinate, CoordinateCheck


def coordinate_table(check: CoordinateCheck) -> str:
    """Part by size, with the power of the width in each and what it means."""
    if not check.coordinates:
        return check.verdict
    head = [f"change by {check.size_param}", *map(str, check.sizes), "slope", ""]
    rows = [head] + [
        [c.name, *(f"{v:.3g}" for v in c.rms), f"{c.slope:+.2f}", _word(c, check.tolerance)] for c in check.coordinates
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        )
        + f"  {row[-1]}"
        for row in rows
    ]
    return "\n".join([check.verdict, *(f"  {line}".rstrip() for line in lines)])


def _word(c: Coordinate, tolerance: float) -> str:
    if not c.is_judged:
        return 'not judged: see "output"'
    if not c.passes(tolerance):
        return "grows" if c.slope > 0 else "shrinks"
    return "ok, an input: may shrink" if c.is_input and c.slope <= -tolerance else "ok"
