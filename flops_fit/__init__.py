"""flops-fit: given this much compute, how big should the model be, on how much data, and how sure are we?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit.api import analyze as analyze
    from flops_fit.api import find_optimal as find_optimal
    from flops_fit.comparing import compare as compare
    from flops_fit.coordinates import coordinate_check as coordinate_check
    from flops_fit.errors import DataError, FitError, FlopsFitError, PlanError, RunError
    from flops_fit.experiment import Experiment, SweepPlan
    from flops_fit.fit import Prediction, ScalingAnalysis
    from flops_fit.fit.comparison import Comparison
    from flops_fit.plan.designed import design_sweep as design_sweep
    from flops_fit.plan.planner import plan_sweep as plan_sweep
    from flops_fit.result import Result
    from flops_fit.train.adapter import LightningAdapter
    from flops_fit.train.module import ScalingModule
    from flops_fit.train.token_bin import TokenBin
    from flops_fit.transfer import CoordinateCheck

__version__ = "0.1.0"

# Each name is imported when it is first used: torch, pandas and matplotlib cost seconds that an answer does not need.
_HOMES = {
    "Comparison": "flops_fit.fit.comparison",
    "CoordinateCheck": "flops_fit.transfer",
    "DataError": "flops_fit.errors",
    "Experiment": "flops_fit.experiment",
    "FitError": "flops_fit.errors",
    "FlopsFitError": "flops_fit.errors",
    "LightningAdapter": "flops_fit.train.adapter",
    "PlanError": "flops_fit.errors",
    "Prediction": "flops_fit.fit",
    "Result": "flops_fit.result",
    "RunError": "flops_fit.errors",
    "ScalingAnalysis": "flops_fit.fit",
    "ScalingModule": "flops_fit.train.module",
    "SweepPlan": "flops_fit.experiment",
    "TokenBin": "flops_fit.train.token_bin",
    "analyze": "flops_fit.api",
    "compare": "flops_fit.comparing",
    "coordinate_check": "flops_fit.coordinates",
    "design_sweep": "flops_fit.plan.designed",
    "find_optimal": "flops_fit.api",
    "plan_sweep": "flops_fit.plan.planner",
}

__all__ = [
    "Comparison",
    "CoordinateCheck",
    "DataError",
    "Experiment",
    "FitError",
    "FlopsFitError",
    "LightningAdapter",
    "PlanError",
    "Prediction",
    "Result",
    "RunError",
    "ScalingAnalysis",
    "ScalingModule",
    "SweepPlan",
    "TokenBin",
    "analyze",
    "compare",
    "coordinate_check",
    "design_sweep",
    "find_optimal",
    "plan_sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
