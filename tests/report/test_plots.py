"""Plots draw into what they are given, with no global state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit.fit import ScalingAnalysis, analyze_runs
from flops_fit.fit.diagnostics import irreducible_loss
from flops_fit.report import (
    figures,
    plot_frontier,
    plot_holdout,
    plot_isoflop,
    plot_leave_out,
    plot_optimum,
    plot_qq,
    plot_residuals,
    plot_surface,
)
from flops_fit.report.style import LABELS


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


EVERY = [plot_isoflop, plot_frontier, plot_optimum, plot_residuals, plot_qq, plot_holdout, plot_leave_out, plot_surface]


@pytest.mark.parametrize("plot", EVERY)
def test_a_plot_returns_the_axes_it_was_given_or_makes_its_own(analysis: ScalingAnalysis, plot: object) -> None:
    ax = Figure().subplots()
    assert plot(analysis, ax=ax) is ax  # type: ignore[operator]
    assert ax.has_data()
    assert isinstance(plot(analysis), Axes)  # type: ignore[operator]


@pytest.mark.parametrize("quantity", ["num_params", "num_tokens", "tokens_per_param", "loss"])
def test_every_answer_can_be_drawn_against_compute(analysis: ScalingAnalysis, quantity: str) -> None:
    ax = plot_optimum(analysis, quantity)
    assert ax.get_xlabel() == LABELS["flops"]
    assert {"data", "extrapolated", "optimum of a budget"} <= set(labels(ax))


def test_figures_say_which_they_are(analysis: ScalingAnalysis) -> None:
    drawn = figures(analysis)
    names = ["isoflop", "optimum", "frontier", "residuals", "surface", "holdout", "leave_out"]
    assert [f.get_label() for f in drawn] == names
    assert all(isinstance(f, Figure) for f in drawn)


def test_a_budget_without_a_minimum_says_so(sweep: Callable[..., pd.DataFrame]) -> None:
    frame = sweep(sizes=8)
    lopsided = frame.drop(index=range(16, 20))
    assert any("no minimum" in label for label in labels(plot_isoflop(analyze_runs(lopsided, n_bootstrap=20))))


def test_what_was_not_fitted_has_no_figure(sweep: Callable[..., pd.DataFrame]) -> None:
    few = analyze_runs(sweep(budgets=3, sizes=6), n_bootstrap=20)
    names = [f.get_label() for f in figures(few)]
    assert ("residuals" in names) == (few.parametric is not None)
    assert ("holdout" in names) == (few.holdout is not None)


def test_irreducible_loss_is_drawn_only_where_it_is_stated(analysis: ScalingAnalysis) -> None:
    drawn = any(label.startswith("E = ") for label in labels(plot_frontier(analysis)))
    assert drawn == (irreducible_loss(analysis)[0] is not None)


def test_no_pyplot_and_no_torch() -> None:
    code = (
        "import sys; import flops_fit.report.tables; assert 'matplotlib' not in sys.modules\n"
        "import flops_fit.report.folder\n"
        "assert not {'matplotlib.pyplot', 'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
