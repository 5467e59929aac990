"""The best learning rate by size, from a probe: short runs of one or two sizes at rates a factor of two apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flops_fit.errors import DataError, FitError
from flops_fit.units import format_count, format_flops

# Between neighbouring rates; the best one of a parametrisation is flat enough for it.
FACTOR = 2.0
# Rates that are added on the side where the best one is at the edge, and how often.
MORE = 2
EXTENSIONS = 4
# Sizes over so many times the largest that was probed are told.
_FAR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeProbe:
    """One size, trained for the same few steps at several rates.

    Attributes:
        size: Value of the size parameter.
        num_params: Its parameters.
        steps: Of every run.
        lrs: Peak learning rates, ascending.
        losses: At the end of each run; None where it diverged [nats per token or sample].
        flops: Of all its runs together [FLOPs].
    """

    size: int
    num_params: int
    steps: int
    lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    flops: float

    @property
    def edge(self) -> int:
        """-1 where the best rate is the lowest tried or all diverged, 1 where it is the highest, else 0."""
        best = self._best
        return -1 if best == 0 else int(best == len(self.lrs) - 1)

    @property
    def is_flat(self) -> bool:
        """Whether the rate makes no difference at all: nothing uses it."""
        return len(set(self.losses)) == 1 and None not in self.losses

    @property
    def best_lr(self) -> float:
        """Where a parabola through the best rate and its neighbours is lowest, in log rate.

        The best rate itself where a neighbour diverged, and at an edge.
        """
        best = self._best
        around = slice(best - 1, best + 2)
        losses = self.losses[around] if self.edge == 0 else ()
        if not losses or None in losses:
            return self.lrs[best]
        bend, slope, _ = np.polyfit(np.log(self.lrs[around]) - math.log(self.lrs[best]), np.array(losses, float), 2)
        return float(self.lrs[best] * math.exp(-slope / (2 * bend))) if bend > 0 else self.lrs[best]

    @property
    def _best(self) -> int:
        values = [math.inf if loss is None else loss for loss in self.losses]
        return int(np.argmin(values))

    def further(self) -> list[float]:
        """Rates to try beyond the edge that the best one is at; none where it is inside."""
        end = self.lrs[0] if self.edge < 0 else self.lrs[-1]
        return sorted(end * FACTOR ** (self.edge * k) for k in range(1, MORE + 1)) if self.edge else []

    def __str__(self) -> str:
        told = ", ".join(
            f"{lr:.3g}: {'diverged' if loss is None else format(loss, '.4f')}"
            for lr, loss in zip(self.lrs, self.losses, strict=True)
        )
        return f"size {self.size} ({told})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLaw:
    """lr = constant N^-exponent.

    Attributes:
        constant: Rate of a model of one parameter; with an exponent of 0, of every model.
        exponent: Of N.
        probes: What it was fitted to, the smallest size first.
        cause: Hash of all else that decides a run's result: another sweep must be probed anew.
    """

    constant: float
    exponent: float
    probes: tuple[SizeProbe, ...]
    cause: str

    def rate(self, num_params: float) -> float:
        """Peak learning rate of a size.

        A rate that was found to grow with the size is not trusted to grow on beyond what was probed.
        """
        N = min(num_params, self.probes[-1].num_params) if self.exponent < 0 else num_params
        return float(f"{self.constant * N**-self.exponent:.4g}")

    @property
    def flops(self) -> float:
        """Of all runs of the probe [FLOPs]."""
        return math.fsum(probe.flops for probe in self.probes)

    @property
    def num_runs(self) -> int:
        """How many runs the probe was."""
        return sum(len(probe.lrs) for probe in self.probes)

    @property
    def formula(self) -> str:
        """The law, told at a size that was probed."""
        first = self.probes[0]
        if self.exponent == 0:
            return f"{self.rate(first.num_params):.3g} for all sizes"
        return f"{self.rate(first.num_params):.3g} (N / {format_count(first.num_params)})^{-self.exponent:+.2f}"

    def __str__(self) -> str:
        best = " and ".join(f"{p.best_lr:.3g} at N = {format_count(p.num_params)}" for p in self.probes)
        return (
            f"learning rate: {self.formula}; by a probe of {self.num_runs} runs, {format_flops(self.flops)} FLOPs,"
            f" with the best at {best}"
        )

    def warnings(self, num_params: Sequence[int]) -> list[str]:
        """What must be said when models of these sizes are trained at its rates."""
        told, last = [], self.probes[-1]
        if self.exponent < 0:
            told.append(
                f"learning-rate probe: the best rate grew with the size (exponent {self.exponent:.2f}), which is"
                f" unusual: beyond N = {format_count(last.num_params)} the rate found there is kept"
            )
        largest = max(num_params)
        if len(self.probes) > 1 and largest > _FAR * last.num_params:
            told.append(
                f"learning-rate probe: the rates of sizes up to N = {format_count(largest)} are extrapolated from"
                f" N = {format_count(self.probes[0].num_params)} and {format_count(last.num_params)}"
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``learning_rate.json`` holds them."""
        best = [{"best_lr": probe.best_lr} for probe in self.probes]
        rows = [asdict(probe) | more for probe, more in zip(self.probes, best, strict=True)]
        return asdict(self) | {"probes": rows, "flops": self.flops}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RateLaw:
        """The inverse of ``to_dict``."""
        names = SizeProbe.__dataclass_fields__
        rows: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in p.items()} for p in values["probes"]
        ]
        probes = tuple(SizeProbe(**{k: v for k, v in row.items() if k in names}) for row in rows)
        return cls(constant=values["constant"], exponent=values["exponent"], probes=probes, cause=str(values["cause"]))


def rate_law_in(file: Path) -> RateLaw | None:
    """What a probe has written; None where there is no such file.

    Raises:
        DataError: It is not what a probe has written.
    """
    if not file.exists():
        return None
    try:
        return RateLaw.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} holds no learning rate: {error!r}",
            hint="delete it: it is made again of the probe's runs, which are kept",
        ) from None


def fit_rate_law(probes: Sequence[SizeProbe], cause: str) -> RateLaw:
    """The law through the best rates of the sizes that were probed; of one size, that rate for all.

    Args:
        probes: Of one size or two.
        cause: As in ``RateLaw``.

    Raises:
        FitError: The rate makes no difference, or the best one lies beyond all that were tried.
    """
    ordered = sorted(probes, key=lambda p: p.num_params)
    for probe in ordered:
        if probe.is_flat:
            raise FitError(
                f"learning-rate probe: {probe} ends the same whatever the rate",
                hint="does the optimizer use the module's lr? Otherwise give any lr: no probe is made then",
            )
        if probe.edge:
            side = "lowest" if probe.edge < 0 else "highest"
            raise FitError(
                f"learning-rate probe: the best rate of {probe} is the {side} of all that were tried",
                hint="give lr yourself, or look for what keeps the model from learning at usual rates",
            )
    logs = [(math.log(p.num_params), math.log(p.best_lr)) for p in ordered]
    exponent = 0.0
    if len(logs) > 1:
        (x0, y0), (x1, y1) = logs[0], logs[-1]
        exponent = round(-(y1 - y0) / (x1 - x0), 3)
    mean = sum(y + exponent * x for x, y in logs) / len(logs)
    # Few digits, so that the identity of runs does not hang on the last ones of a logarithm.
    return RateLaw(constant=float(f"{math.exp(mean):.5g}"), exponent=exponent, probes=tuple(ordered), cause=cause)
