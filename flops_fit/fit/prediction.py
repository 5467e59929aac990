"""What one asks a fitted sweep: a budget in, the best model and data for it out, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flops_fit.markup import html_lines, html_table
from flops_fit.units import format_count, format_flops

SCHEMA_VERSION = 1


def finite(value: Any) -> Any:
    """A tree of plain types without NaN and infinity, which JSON does not have: None in their place."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Warning_:  # noqa: N801
    """Something the reader must know before trusting a number.

    Attributes:
        code: Stable name, for programs.
        message: What, where, and what to do about it.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def to_dict(self) -> dict[str, str]:
        """Plain types."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The compute-optimal model for one budget.

    Attributes:
        compute_budget: Training compute [FLOPs].
        num_params: Best size [parameters]; None where it is withheld.
        num_tokens: Data for it [tokens or samples]; None where it is withheld.
        loss: Loss it will reach [nats/token]; None where it is withheld or no method can tell.
        ci: Interval per answer, by name; None in its place where there is none.
        level: Coverage of the intervals.
        extrapolation: Budget over the largest budget that was trained; below 1 inside the data.
        methods: Which method gave each answer.
        warnings: What to know before using it.
        unit: What num_tokens counts.
    """

    compute_budget: float
    num_params: float | None
    num_tokens: float | None
    loss: float | None
    ci: dict[str, tuple[float, float]] = field(default_factory=dict)
    level: float = 0.95
    extrapolation: float = 1.0
    methods: dict[str, str] = field(default_factory=dict)
    warnings: tuple[Warning_, ...] = ()
    unit: str = "tokens"

    @property
    def tokens_per_param(self) -> float | None:
        """D / N."""
        if not self.num_params or self.num_tokens is None:
            return None
        return self.num_tokens / self.num_params

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``predict --json`` prints them; None is also an end that the runs do not bound."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "compute_budget": self.compute_budget,
            "num_params": self.num_params,
            "num_tokens": self.num_tokens,
            "loss": self.loss,
            "tokens_per_param": self.tokens_per_param,
            "ci": dict(self.ci),
            "level": self.level,
            "extrapolation": self.extrapolation,
            "methods": dict(self.methods),
            "unit": self.unit,
            "warnings": [w.to_dict() for w in self.warnings],
        }
        return dict(finite(document))

    def _told(self, name: str, form: Callable[[float], str]) -> str:
        """One answer with its interval."""
        value = getattr(self, name)
        if value is None:
            return "withheld"
        if name not in self.ci:
            return form(value)
        low, high = self.ci[name]
        if math.isinf(high):
            return f"{form(value)} ({form(low)} or more)"
        return f"{form(value)} ({form(low)} to {form(high)})"

    def _repr_html_(self) -> str:
        """One row, for notebooks, and what to know before using it."""
        columns = ["compute [FLOPs]", "parameters", self.unit, f"{self.unit} per parameter", "loss"]
        row = [
            self._told("compute_budget", format_flops),
            self._told("num_params", format_count),
            self._told("num_tokens", format_count),
            self._told("tokens_per_param", lambda v: f"{v:.3g}"),
            self._told("loss", lambda v: f"{v:.4g}"),
        ]
        beyond = [f"{self.extrapolation:.3g} times the largest budget trained"] if self.extrapolation > 1.01 else []
        return html_table(columns, [row]) + html_lines([*beyond, *(w.message for w in self.warnings)])

    def __str__(self) -> str:
        parts = [f"{name} {self._told(name, format_count)}" for name in ("num_params", "num_tokens")]
        parts.append(f"loss {self._told('loss', lambda v: f'{v:.4g}')}")
        return f"C = {self._told('compute_budget', format_flops)} FLOPs: " + ", ".join(parts)
