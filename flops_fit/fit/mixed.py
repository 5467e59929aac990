"""Runs of several kinds under one law: a column that tells which of them lie below it and which above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flops_fit.fit.prediction import Warning_
from flops_fit.laws import FloatArray

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis

# More kinds than these are a setting that was varied, and fewer runs or sizes of one say nothing of it.
_MOST_KINDS: Final = 8
_FEWEST_RUNS: Final = 5
_FEWEST_SIZES: Final = 3

# Kinds are compared at equal N: each must reach over this share of the sizes' range, or the column follows the size.
_OVERLAP: Final = 0.5

# Chance of finding kinds in a column that means nothing, and the least difference worth a word [of the scatter].
_CHANCE: Final = 1e-3
_LEAST: Final = 1.0

_LONGEST: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """What a column says of the residuals.

    Attributes:
        column: Its name.
        lowest: The kind whose runs lie lowest.
        highest: The kind whose runs lie highest.
        apart: Log of the loss of the second over that of the first, at equal N and D.
        strength: Variance between kinds over what scatter within them makes.
    """

    column: str
    lowest: str
    highest: str
    apart: float
    strength: float


def mixed_runs(analysis: ScalingAnalysis, columns: Mapping[str, Sequence[Any]]) -> list[Warning_]:
    """A word on runs of several kinds in one table, where one of its further columns tells them apart.

    Args:
        analysis: The fits.
        columns: What the table says of the fitted runs besides, by name.
    """
    if analysis.parametric is None:
        return []
    kinds = find_kinds(np.log(analysis.rows.N), analysis.parametric.residuals, columns)
    if kinds is None:
        return []
    said = (
        f"the runs are of several kinds: at equal N and D the losses where {kinds.column} is {kinds.highest[:_LONGEST]}"
        f" lie {100 * np.expm1(kinds.apart):.2g} % above those where it is {kinds.lowest[:_LONGEST]};"
        f" --group-by {quote(kinds.column)}, or a table of each, fits them apart"
    )
    return [Warning_("mixed_runs", said)]


def find_kinds(log_N: FloatArray, residuals: FloatArray, columns: Mapping[str, Sequence[Any]]) -> Kinds | None:
    """The column by which the residuals of one law differ most, or None where they differ by none.

    Medians of the kinds are held against the scatter within them, so that a few wild runs make no kind.

    Args:
        log_N: Log of the runs' sizes, shape (runs,).
        residuals: Log of loss over the law's, shape (runs,).
        columns: By name, what a table says of the runs besides; each of length (runs,).
    """
    found = [kinds for name, values in columns.items() if (kinds := _kinds(name, values, log_N, residuals)) is not None]
    return max(found, key=lambda kinds: kinds.strength, default=None)


def _kinds(column: str, values: Sequence[Any], log_N: FloatArray, residuals: FloatArray) -> Kinds | None:
    from scipy.special import fdtri

    texts = [str(value) for value in values]
    if not 2 <= len(set(texts)) <= _MOST_KINDS:
        return None
    labels = np.array(texts)
    names, counts = np.unique(labels, return_counts=True)
    reach = _OVERLAP * np.ptp(log_N)
    runs = {name: labels == name for name in names[counts >= _FEWEST_RUNS]}
    kept = [
        name
        for name, which in runs.items()
        if len(np.unique(log_N[which])) >= _FEWEST_SIZES and np.ptp(log_N[which]) >= reach
    ]
    if len(kept) < 2:
        return None
    middles = np.array([np.median(residuals[runs[name]]) for name in kept])
    within = np.concatenate([residuals[runs[name]] - m for name, m in zip(kept, middles, strict=True)])
    n = np.array([runs[name].sum() for name in kept])
    scatter = 1.4826 * float(np.median(np.abs(within)))
    if scatter == 0:
        return None
    # The variance of a median is pi / 2 times that of a mean.
    between = float(n @ (middles - np.average(middles, weights=n)) ** 2) / (len(kept) - 1)
    strength = between / (np.pi / 2 * scatter**2)
    apart = float(np.ptp(middles))
    if strength < fdtri(len(kept) - 1, n.sum() - len(kept), 1 - _CHANCE) or apart < _LEAST * scatter:
        return None
    low, high = int(np.argmin(middles)), int(np.argmax(middles))
    return Kinds(column=column, lowest=str(kept[low]), highest=str(kept[high]), apart=apart, strength=strength)
