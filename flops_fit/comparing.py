"""Two analyses side by side, whatever they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flops_fit.api import analyze
from flops_fit.errors import FitError
from flops_fit.fit import ScalingAnalysis, Warning_
from flops_fit.fit.comparison import Comparison, compare_analyses
from flops_fit.result import Result
from flops_fit.units import Flops

if TYPE_CHECKING:
    import pandas as pd

    Source: TypeAlias = Result | ScalingAnalysis | str | Path | pd.DataFrame

# From here on a cost per token is not that of 6ND.
_ROUNDING: Final = 1e-3


def compare(
    a: Source,
    b: Source,
    *,
    names: tuple[str, str] | None = None,
    compute_budgets: Iterable[float | str] | None = None,
    allow_mismatch: bool = False,
    **options: Any,
) -> Comparison:
    """Loss at equal compute, and how much less compute the second needs for the loss of the first.

    Args:
        a: The yardstick: a Result, a ScalingAnalysis, a sweep's directory, the folder or ``analysis.json`` of
            ``analyze --output``, or a table as ``analyze`` reads it.
        b: What is held against it, likewise.
        names: What they are called; by default after their folder or file.
        compute_budgets: Rows, such as 1e21 or "10 PF-days" [FLOPs]; None for the budgets that both cover, and two
            decades beyond.
        allow_mismatch: Compare losses of different units, or of different data.
        options: Those of ``analyze``, for tables.

    Raises:
        DataError: A source cannot be read.
        FitError: The losses are not of one unit or of one data set, or one analysis cannot tell the loss.
    """
    first, second = (_analysis(source, options) for source in (a, b))
    called = names or _names(a, b)
    differences = _mismatches(first, second, called)
    if differences and not allow_mismatch:
        raise FitError(
            "the two cannot be compared: " + "; ".join(differences),
            hint="compare losses of one kind on the same held-out data, or say --allow-mismatch (allow_mismatch=True)",
        )
    try:
        budgets = None if compute_budgets is None else [Flops(C) for C in compute_budgets]
    except ValueError as error:
        raise FitError(f"compute_budgets: {error}") from None
    compared = compare_analyses(first, second, names=called, compute_budgets=budgets)
    warnings = [Warning_("mismatch", text) for text in differences] + _remarks(first, second, called)
    if compared.overlap is None:
        said = "the two were trained at budgets of which none lies in both ranges: every row is extrapolated"
        warnings.append(Warning_("no_overlap", said))
    return dataclasses.replace(compared, warnings=tuple(warnings))


def _analysis(source: Source, options: dict[str, Any]) -> ScalingAnalysis:
    if isinstance(source, ScalingAnalysis):
        return source
    if isinstance(source, Result):
        return source.analysis
    if isinstance(source, (str, Path)) and str(source) != "-":
        path = Path(source)
        if path.name == "analysis.json" or (path / "analysis.json").is_file():
            return ScalingAnalysis.load(path)
    return analyze(source, **options).analysis


def _names(a: Source, b: Source) -> tuple[str, str]:
    """The shortest ends of two paths that differ; A and B for what has no path."""
    if not (isinstance(a, (str, Path)) and isinstance(b, (str, Path))):
        return "A", "B"
    parts = [_parts(Path(source)) for source in (a, b)]
    for length in range(1, 1 + max(map(len, parts))):
        first, second = ("/".join(p[-length:]) for p in parts)
        if first != second:
            return first, second
    return "A", "B"


def _parts(path: Path) -> list[str]:
    parts = [*path.parts[:-1], *([] if path.name == "analysis.json" else [path.stem])]
    return [p for p in parts if p not in (".", "..", "/")] or [path.resolve().name]


def _mismatches(a: ScalingAnalysis, b: ScalingAnalysis, names: tuple[str, str]) -> list[str]:
    """What makes two losses different things."""
    first, second = names
    found = []
    if None not in (a.loss_unit, b.loss_unit) and a.loss_unit != b.loss_unit:
        found.append(f"the loss of {first} is in {a.loss_unit}, that of {second} in {b.loss_unit}")
    if a.unit != b.unit:
        found.append(f"{first} counts {a.unit}, {second} counts {b.unit}")
    if None not in (a.data_fingerprint, b.data_fingerprint) and a.data_fingerprint != b.data_fingerprint:
        found.append(f"{first} and {second} were trained or evaluated on different data (their fingerprints differ)")
    return found


def _remarks(a: ScalingAnalysis, b: ScalingAnalysis, names: tuple[str, str]) -> list[Warning_]:
    """What leaves a comparison possible, and in doubt."""
    first, second = names
    found = []
    if None in (a.data_fingerprint, b.data_fingerprint):
        said = "nothing says that both were evaluated on the same held-out data; only then is a lower loss better"
        found.append(Warning_("data_unknown", said))
    if a.n_convention != b.n_convention:
        said = f"N of {first} is {a.n_convention}, of {second} {b.n_convention}; their sizes are not the same count"
        found.append(Warning_("n_convention", said))
    by_rule = [abs(x.rule.k / 6 - 1) < _ROUNDING and abs(x.rule.q - 1) < _ROUNDING for x in (a, b)]
    if by_rule[0] != by_rule[1]:
        six, other = names if by_rule[0] else names[::-1]
        said = f"the compute of {six} is 6ND, that of {other} is counted otherwise: equal FLOPs are not equal work"
        found.append(Warning_("compute_rule", said))
    for name, analysis in zip(names, (a, b), strict=True):
        if not analysis.trustworthy:
            said = f"the fit of {name} comes with grave warnings, which `flops-fit analyze` prints"
            found.append(Warning_("not_trustworthy", said))
        if any(w.code == "simulated" for w in analysis.warnings):
            found.append(Warning_("simulated", f"runs of {name} are simulated: drawn from a law, not trained"))
    return found
