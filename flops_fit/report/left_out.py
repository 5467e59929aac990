"""Runs that were left out, by reason: those that differ in their numbers alone are one, with the numbers' range."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import pandas as pd

from flops_fit.units import parse_count

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

_MOST_REASONS: Final = 20
_MOST_NAMES: Final = 3
_NUMBER: Final = re.compile(r"(?<![\w.'])\d+(?:\.\d+)?(?:e[+-]?\d+)?[kMBT]?(?!\w)")


class Reason(NamedTuple):
    """Why some runs are left out.

    Attributes:
        runs: Their ids.
        said: The reason, its numbers as ranges over the runs.
    """

    runs: list[str]
    said: str

    def __str__(self) -> str:
        names = ", ".join(self.runs[:_MOST_NAMES])
        more = len(self.runs) - _MOST_NAMES
        return f"{names} and {more} more: {self.said}" if more > 0 else f"{names}: {self.said}"


def reasons(analysis: ScalingAnalysis) -> list[Reason]:
    """Every reason, that of the most runs first."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for run in analysis.excluded:
        kinds[_NUMBER.sub("#", run.reason)].append((run.run_id, run.reason))
    told = [Reason([name for name, _ in runs], _ranged([reason for _, reason in runs])) for runs in kinds.values()]
    return sorted(told, key=lambda reason: -len(reason.runs))


def excluded_table(analysis: ScalingAnalysis) -> pd.DataFrame:
    """Runs that were not fitted, and why."""
    return pd.DataFrame([{"run": e.run_id, "reason": e.reason} for e in analysis.excluded])


def left_out_table(analysis: ScalingAnalysis) -> pd.DataFrame:
    """``excluded_table`` for the eye: of many runs with one reason the first, and how many there are."""
    told = reasons(analysis)
    rows = [{"runs": str(len(r.runs)), "the first": r.runs[0], "reason": r.said} for r in told[:_MOST_REASONS]]
    if others := sum(len(reason.runs) for reason in told[_MOST_REASONS:]):
        rows.append({"runs": str(others), "the first": "", "reason": "other reasons: see left_out.csv"})
    return pd.DataFrame(rows)


def _ranged(alike: list[str]) -> str:
    """Texts that are the same but for their numbers, as one."""
    between = _NUMBER.split(alike[0])
    numbers = zip(*(_NUMBER.findall(text) for text in alike), strict=True)
    ranges = []
    for told in numbers:
        low, high = min(told, key=parse_count), max(told, key=parse_count)
        ranges.append(low if low == high else f"{low} to {high}")
    return "".join(text + number for text, number in zip(between, [*ranges, ""], strict=True))
