"""Drawing: every plot takes an Axes or makes its own figure, and returns the Axes. No pyplot, no global state."""

from flops_fit.report.plots.checks import plot_holdout, plot_leave_out, plot_qq, plot_residuals
from flops_fit.report.plots.gallery import Sheet, combined, figures, panels, sheets
from flops_fit.report.plots.isoflop import plot_isoflop
from flops_fit.report.plots.optimum import plot_frontier, plot_optimum
from flops_fit.report.plots.surface import plot_surface
from flops_fit.report.plots.training import plot_curves, plot_device_hours
from flops_fit.report.plots.transfer import plot_coordinates, plot_rates

__all__ = [
    "Sheet",
    "combined",
    "figures",
    "panels",
    "plot_coordinates",
    "plot_curves",
    "plot_device_hours",
    "plot_frontier",
    "plot_holdout",
    "plot_isoflop",
    "plot_leave_out",
    "plot_optimum",
    "plot_qq",
    "plot_rates",
    "plot_residuals",
    "plot_surface",
    "sheets",
]
