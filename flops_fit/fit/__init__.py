"""Scaling laws from finished runs: ``analyze_runs`` takes a runs table and returns a ``ScalingAnalysis``."""

from flops_fit.fit.analysis import Headline, ScalingAnalysis
from flops_fit.fit.assemble import analyze_runs
from flops_fit.fit.prediction import Prediction, Warning_
from flops_fit.fit.rows import Excluded, Rows

__all__ = ["Excluded", "Headline", "Prediction", "Rows", "ScalingAnalysis", "Warning_", "analyze_runs"]
