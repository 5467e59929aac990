"""Plots draw into what they are given, with no global state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flops_fit.fit import Excluded, ScalingAnalysis, analyze_runs
from flops_fit.fit.diagnostics import irreducible_loss
from flops_fit.report import (
    plot_frontier,
    plot_holdout,
    plot_isoflop,
    plot_leave_out,
    plot_optimum,
    plot_qq,
    plot_residuals,
    plot_surface,
)
from flops_fit.report.plots import combined, panels, sheets
from flops_fit.report.references import REFERENCES
from flops_fit.report.series import optimum_series
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


def test_a_target_and_published_laws_are_drawn_beside(analysis: ScalingAnalysis) -> None:
    series = optimum_series(analysis, 1e24)
    ax = plot_optimum(analysis, "tokens_per_param", series=series, references=["20x", "llama3"])
    assert {"target, 1e+24 FLOPs", "20 tokens per parameter", "Llama 3"} <= set(labels(ax))
    assert ax.get_xlim()[1] > 1e24
    assert series[series["kind"] == "target"]["num_params"].item() == analysis.predict(1e24).num_params


def test_published_laws_give_the_numbers_that_were_published() -> None:
    C = np.array([5.76e23, 3.8e25])
    assert REFERENCES["llama3"].answer("num_tokens", C)[1] == pytest.approx(16.55e12)
    assert REFERENCES["20x"].answer("tokens_per_param", C) == pytest.approx([20, 20])
    # Besiroglu et al. find about 20 tokens per parameter at Chinchilla's own budget; Hoffmann's surface many more.
    assert REFERENCES["besiroglu"].answer("tokens_per_param", C)[0] == pytest.approx(20, rel=0.3)
    assert REFERENCES["chinchilla"].answer("tokens_per_param", C)[0] > 60


def test_runs_left_out_are_hollow_and_move_nothing(analysis: ScalingAnalysis) -> None:
    limits = plot_isoflop(replace(analysis, excluded=())).get_ylim()
    lost = Excluded("lost", "no loss", num_params=1e8)
    far = Excluded("far", "outlier", num_params=1e8, loss=99.0)
    near = Excluded("near", "outlier", num_params=1e8, loss=float(np.mean(limits)))
    ax = plot_isoflop(replace(analysis, excluded=(lost, far, near)))
    assert ax.get_ylim() == limits
    hollow = {line.get_label(): line for line in ax.lines if line.get_markerfacecolor() == "none"}
    assert len(hollow["left out, off the frame"].get_xdata()) == 2
    assert hollow["left out"].get_ydata() == pytest.approx([np.mean(limits)])


def test_figures_say_which_they_are(analysis: ScalingAnalysis) -> None:
    drawn = sheets(analysis)
    names = ["isoflop", "optimum", "frontier", "residuals", "surface", "holdout", "leave_out"]
    assert [sheet.name for sheet in drawn] == names
    together = combined(drawn[1])
    assert (together.get_label(), len(together.axes)) == ("optimum", 3)
    alone = [f.get_label() for f in panels(drawn[1])]
    assert alone == ["optimum_num_params", "optimum_num_tokens", "optimum_tokens_per_param"]


def test_a_budget_without_a_minimum_says_so(sweep: Callable[..., pd.DataFrame]) -> None:
    frame = sweep(sizes=8)
    lopsided = frame.drop(index=range(16, 20))
    assert any("no minimum" in label for label in labels(plot_isoflop(analyze_runs(lopsided, n_bootstrap=20))))


def test_what_was_not_fitted_has_no_figure(sweep: Callable[..., pd.DataFrame]) -> None:
    few = analyze_runs(sweep(budgets=3, sizes=6), n_bootstrap=20)
    names = [sheet.name for sheet in sheets(few)]
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
