"""What the reader must know before trusting an analysis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops_fit.fit.prediction import Warning_

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis


def find_warnings(analysis: ScalingAnalysis) -> list[Warning_]:
    """All warnings, the gravest first."""
    del analysis
    return []
