"""Tables, figures and one self-contained page, all drawn from a ScalingAnalysis."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flops_fit.report.comparison import comparison_text, plot_gain, plot_losses, save_comparison
    from flops_fit.report.folder import save_report
    from flops_fit.report.plots import (
        figures,
        plot_coordinates,
        plot_curves,
        plot_device_hours,
        plot_frontier,
        plot_holdout,
        plot_isoflop,
        plot_leave_out,
        plot_optimum,
        plot_qq,
        plot_rates,
        plot_residuals,
        plot_surface,
    )
    from flops_fit.report.recorded import Recorded
    from flops_fit.report.tables import answer_sentence, answer_text, optimal
    from flops_fit.report.transfer import coordinate_table, rate_lines

__all__ = [
    "Recorded",
    "answer_sentence",
    "answer_text",
    "comparison_text",
    "coordinate_table",
    "figures",
    "optimal",
    "plot_coordinates",
    "plot_curves",
    "plot_device_hours",
    "plot_frontier",
    "plot_gain",
    "plot_holdout",
    "plot_isoflop",
    "plot_leave_out",
    "plot_losses",
    "plot_optimum",
    "plot_qq",
    "plot_rates",
    "plot_residuals",
    "plot_surface",
    "rate_lines",
    "save_comparison",
    "save_report",
]

_HOME = {
    "Recorded": "recorded",
    "answer_sentence": "tables",
    "answer_text": "tables",
    "coordinate_table": "transfer",
    "optimal": "tables",
    "rate_lines": "transfer",
    "save_report": "folder",
}
_HOME |= dict.fromkeys(("comparison_text", "plot_gain", "plot_losses", "save_comparison"), "comparison")


def __getattr__(name: str) -> Any:
    # matplotlib is loaded by the first figure, not by a table on the command line.
    if name in __all__:
        return getattr(importlib.import_module(f"flops_fit.report.{_HOME.get(name, 'plots')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
