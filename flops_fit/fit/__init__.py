"""Scaling laws from finished runs: ``analyze_runs`` takes a runs table and returns a ``ScalingAnalysis``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flops_fit.fit.analysis import Headline, ScalingAnalysis
from flops_fit.fit.prediction import Prediction, Warning_
from flops_fit.fit.rows import Excluded, Rows

if TYPE_CHECKING:
    from flops_fit.fit.assemble import analyze_runs

__all__ = ["Excluded", "Headline", "Prediction", "Rows", "ScalingAnalysis", "Warning_", "analyze_runs"]


def __getattr__(name: str) -> Any:
    # What fits is loaded when something is fitted: a saved analysis answers without it.
    if name != "analyze_runs":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flops_fit.fit.assemble import analyze_runs

    return analyze_runs
