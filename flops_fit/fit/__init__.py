"""Scaling laws from finished runs: ``analyze_runs`` takes a runs table and returns a ``ScalingAnalysis``."""

from flops_fit.fit.analysis import Headline, ScalingAnalysis, analyze_runs
from flops_fit.fit.prediction import Prediction, Warning_

__all__ = ["Headline", "Prediction", "ScalingAnalysis", "Warning_", "analyze_runs"]
