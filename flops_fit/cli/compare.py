"""``compare``: two analyses at equal compute."""

from __future__ import annotations

import json
from pathlib import Path

from flops_fit.cli.main import GOOD
from flops_fit.cli.words import amount, parser_of, say
from flops_fit.units import parse_flops

_SOURCE = "a sweep's output_dir, the folder or analysis.json of `analyze --output`, or a table of runs"


def compare(words: list[str]) -> int:
    """Loss at equal compute, and how much less compute the second needs for the loss of the first."""
    parser = parser_of("compare")
    parser.add_argument("a", metavar="A", help=f"the yardstick: {_SOURCE}")
    parser.add_argument("b", metavar="B", help="what is held against it, likewise")
    parser.add_argument(
        "--compute", action="append", type=amount(parse_flops), help='a row of the table: 1e21, "10 PF-days"; repeated'
    )
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="what the two are called")
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="compare losses of different units or of different data"
    )
    parser.add_argument("--output", "-o", type=Path, help="folder for comparison.png, .pdf, .csv and .json")
    own = parser.parse_args(words)
    from flops_fit.comparing import compare as compared
    from flops_fit.report import comparison_text, save_comparison

    names = None if own.names is None else (own.names[0], own.names[1])
    answer = compared(own.a, own.b, names=names, compute_budgets=own.compute, allow_mismatch=own.allow_mismatch)
    print(json.dumps(answer.to_dict()) if own.json else comparison_text(answer))
    if own.output is not None:
        for path in save_comparison(answer, own.output):
            say(f"written: {path}")
    return GOOD
