"""Tables, figures and one self-contained page, all drawn from a ScalingAnalysis."""

from __future__ import annotations

import importlib
from typing import Any

# matplotlib is loaded by the first figure, not by a table on the command line.
_HOME = {
    "answer_text": "tables",
    "optimal": "tables",
    "save_report": "html",
    "figures": "plots",
    "plot_frontier": "plots",
    "plot_holdout": "plots",
    "plot_isoflop": "plots",
    "plot_optimum": "plots",
    "plot_residuals": "plots",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"flops_fit.report.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
