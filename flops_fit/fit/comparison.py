"""Two analyses at equal compute: which loss is lower, and how much less compute the second needs for the first's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.answers import FAR
from flops_fit.fit.prediction import SCHEMA_VERSION, Warning_, finite
from flops_fit.units import format_flops

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis
    from flops_fit.laws import FloatArray

# Quantiles that stand for the distribution of a loss; all pairs of the two analyses' are formed.
_LEVELS: Final = ((np.arange(100) + 0.5) / 100).tolist()

# The second's loss is looked up between points of compute so far apart, this far beyond both sweeps and the question.
_POINTS_PER_DECADE: Final = 6
_REACH: Final = 1e4

# Whole batches leave runs a little off their budget.
_EDGE: Final = 1.01

_ROWS_INSIDE: Final = 5
_ON_CURVE: Final = 25
_BEYOND: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: None where it is withheld.
        low: Lower end; None where the runs do not bound it.
        high: Upper end, likewise.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AtCompute:
    """The two at one budget.

    Attributes:
        compute_budget: The budget [FLOPs].
        loss_a: What the first reaches with it.
        loss_b: What the second reaches with it.
        difference: The second's loss over the first's, less one.
        gain: This budget over the compute that the second needs for the loss the first reaches with it: above 1, the
            second needs less.
        extrapolated: Whether this budget, or the second's for the first's loss, lies beyond what was trained.
    """

    compute_budget: float
    loss_a: Estimate
    loss_b: Estimate
    difference: Estimate
    gain: Estimate
    extrapolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two analyses side by side; their errors are taken as independent.

    Attributes:
        names: What the two are called.
        overlap: Budgets for which both were trained, smallest and largest [FLOPs]; None where there are none.
        rows: At the budgets asked for.
        curve: At many budgets, to be drawn.
        level: Coverage of the intervals.
        unit: What num_tokens counts.
        loss_unit: Of both losses; None where nothing says.
        warnings: What must be known before using it.
    """

    names: tuple[str, str]
    overlap: tuple[float, float] | None
    rows: tuple[AtCompute, ...]
    curve: tuple[AtCompute, ...]
    level: float = 0.95
    unit: str = "tokens"
    loss_unit: str | None = None
    warnings: tuple[Warning_, ...] = ()

    @property
    def sentence(self) -> str:
        """The answer where it is surest: at the largest budget for which both were trained, else at the first row."""
        inside = [row for row in self.rows if not row.extrapolated]
        return told(inside[-1] if inside else self.rows[0], self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``compare --json`` prints them; None is also an end that the runs do not bound."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "a": self.names[0],
            "b": self.names[1],
            "overlap": self.overlap,
            "level": self.level,
            "unit": self.unit,
            "loss_unit": self.loss_unit,
            "sentence": self.sentence,
            "rows": [asdict(row) for row in self.rows],
            "warnings": [w.to_dict() for w in self.warnings],
        }
        return dict(finite(document))

    def __str__(self) -> str:
        return self.sentence


def told(row: AtCompute, names: tuple[str, str]) -> str:
    """One row in words."""
    a, b = names
    where = f"at {format_flops(row.compute_budget)} FLOPs" + (", beyond the data," if row.extrapolated else "")
    low, high = row.gain.low, row.gain.high
    interval = f"{'0' if low is None else f'{low:.3g}'} to {'unbounded' if high is None else f'{high:.3g}'}"
    if row.gain.value is None:
        return f"{where} the gain of {b} over {a} is withheld (95 % interval {interval})"
    if (low or 0.0) <= 1 <= (math.inf if high is None else high):
        verdict = f"{where} {a} and {b} cannot be told apart"
        return f"{verdict}: {b} needs {1 / row.gain.value:.3g}x the compute of {a} for its loss (gain {interval})"
    more = row.gain.value > 1
    amount = row.gain.value if more else 1 / row.gain.value
    ends = (low, high) if more else (high and 1 / high, 1 / low if low else None)
    reach = " to ".join("unbounded" if end is None else f"{end:.3g}" for end in ends)
    direction = "less" if more else "more"
    return f"{where} {b} needs {amount:.3g}x ({reach}) {direction} compute than {a} for the same loss"


def compare_analyses(
    a: ScalingAnalysis,
    b: ScalingAnalysis,
    *,
    names: tuple[str, str] = ("A", "B"),
    compute_budgets: Iterable[float] | None = None,
    level: float = 0.95,
) -> Comparison:
    """Loss at equal compute, and the compute-equivalent gain of the second over the first.

    Each analysis gives the distribution of its loss at a budget. The gain's comes from all pairs of quantiles: the
    second's quantile, followed along compute, is solved for the loss that is the first's.

    Args:
        a: The first, which is the yardstick.
        b: The second.
        names: What they are called.
        compute_budgets: Rows; None for five over the budgets that both cover, and two decades beyond.
        level: Coverage of the intervals.

    Raises:
        FitError: One of them cannot tell the loss, or a budget is not positive.
    """
    for name, analysis in zip(names, (a, b), strict=True):
        if analysis.combination.forecast("loss", analysis.largest_budget, _LEVELS) is None:
            raise FitError(f"no method can tell the loss of {name}", hint="it takes 4 budgets, or a surface")
    ends = [(x.combination.smallest_budget, x.largest_budget) for x in (a, b)]
    low, high = max(e[0] for e in ends), min(e[1] for e in ends)
    overlap = (low, high) if low <= high else None
    if overlap is None:
        low, high = sorted((low, high))
    asked = np.array([float(C) for C in compute_budgets or ()])
    if not (np.isfinite(asked) & (asked > 0)).all():
        raise FitError("every compute budget must be a positive finite number")
    inside = np.geomspace(low, high, _ROWS_INSIDE if high > _EDGE * low else 1)
    rows = np.unique(asked) if asked.size else np.concatenate([inside, [10 * high, _BEYOND * high]])
    drawn = np.geomspace(min(low, *rows), max(_BEYOND * high, *rows), _ON_CURVE)
    lookup = _Lookup.of(b, min(low, *rows) / _REACH, max(_BEYOND * high, *rows) * _REACH)
    made = [_at(float(C), a, b, lookup, ends, level) for C in (*rows, *drawn)]
    return Comparison(
        names=names,
        overlap=overlap,
        rows=tuple(made[: len(rows)]),
        curve=tuple(made[len(rows) :]),
        level=level,
        unit=a.unit,
        loss_unit=a.loss_unit or b.loss_unit,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lookup:
    """The compute that an analysis needs for a loss.

    Attributes:
        at: Log of the compute, ascending, shape (points,).
        point: Its log loss there, falling, shape (points,).
        paths: Quantiles of its log loss, each falling along compute, shape (points, levels).
    """

    at: FloatArray
    point: FloatArray
    paths: FloatArray

    @classmethod
    def of(cls, analysis: ScalingAnalysis, low: float, high: float) -> _Lookup:
        at = np.linspace(math.log(low), math.log(high), round(_POINTS_PER_DECADE * math.log10(high / low)))
        told = [_forecast(analysis, float(np.exp(x)))[:2] for x in at]
        # A path that rises again, far from the data, reaches no loss that it has not reached before.
        point, paths = (np.minimum.accumulate(np.array(part), axis=0) for part in zip(*told, strict=True))
        return cls(at=at, point=point, paths=paths)

    def needed(self, log_loss: FloatArray, path: FloatArray) -> FloatArray:
        """Log compute at which a path first meets a loss; -inf and inf where that is beyond all points."""
        return np.interp(-np.asarray(log_loss), -path, self.at, left=-np.inf, right=np.inf)


def _forecast(analysis: ScalingAnalysis, C: float, level: float = 0.95) -> tuple[float, FloatArray, FloatArray]:
    """Log loss at C FLOPs: the answer, quantiles at all levels, the interval's ends."""
    forecast = analysis.combination.forecast("loss", C, [*_LEVELS, 0.5 - level / 2, 0.5 + level / 2])
    assert forecast is not None
    return forecast.point, forecast.quantiles[:-2], forecast.quantiles[-2:]


def _at(
    C: float,
    a: ScalingAnalysis,
    b: ScalingAnalysis,
    lookup: _Lookup,
    ends: list[tuple[float, float]],
    level: float,
) -> AtCompute:
    (point_a, quantiles_a, ends_a), (point_b, quantiles_b, ends_b) = (_forecast(x, C, level) for x in (a, b))
    far_a, far_b = (C > FAR * x.largest_budget and x.predict(C).loss is None for x in (a, b))
    needed = np.array([lookup.needed(quantiles_a, path) for path in lookup.paths.T])
    C_b = float(np.exp(lookup.needed(np.array(point_a), lookup.point)))
    extrapolated = any(not low / _EDGE <= C <= high * _EDGE for low, high in ends)
    extrapolated |= not ends[1][0] / _EDGE <= C_b <= ends[1][1] * _EDGE
    # An end beyond all points has infinite neighbours, between which there is no mean.
    probabilities = (0.5 - level / 2, 0.5 + level / 2)
    gains = np.exp(np.quantile(math.log(C) - needed, probabilities, method="inverted_cdf"))
    apart = np.expm1(np.quantile(np.subtract.outer(quantiles_b, quantiles_a), probabilities))
    gain = None if far_a or far_b or not 0 < C_b < np.inf else C / C_b
    return AtCompute(
        compute_budget=C,
        loss_a=_estimate(None if far_a else math.exp(point_a), np.exp(ends_a)),
        loss_b=_estimate(None if far_b else math.exp(point_b), np.exp(ends_b)),
        difference=_estimate(None if far_a or far_b else math.expm1(point_b - point_a), apart),
        gain=_estimate(gain, gains),
        extrapolated=extrapolated,
    )


def _estimate(value: float | None, ends: FloatArray) -> Estimate:
    low, high = (float(end) if np.isfinite(end) else None for end in ends)
    return Estimate(value=value, low=low, high=high)
