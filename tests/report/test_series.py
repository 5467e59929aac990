"""What the figures show is what the analysis says."""

from __future__ import annotations

import numpy as np
import pytest

from flops_fit.fit import ScalingAnalysis
from flops_fit.report.series import (
    all_series,
    answers,
    budgets_of,
    holdout_series,
    isoflop_series,
    optimum_series,
    residual_series,
)


def test_each_curve_is_lowest_at_its_minimum(analysis: ScalingAnalysis) -> None:
    series = isoflop_series(analysis)
    minima = series[series["kind"] == "minimum"].set_index("compute_budget")
    assert len(minima) == len(budgets_of(analysis)) == 5
    for C, curve in series[series["kind"] == "curve"].groupby("compute_budget"):
        assert curve["loss"].min() >= minima.loc[C, "loss"] - 1e-12
        lowest = curve.loc[curve["loss"].astype(float).idxmin(), "num_params"]
        assert abs(np.log(lowest / minima.loc[C, "num_params"])) < 0.1
    assert (minima["num_params_low"] < minima["num_params"]).all()


def test_curves_are_inside_exactly_between_the_sizes_that_were_run(analysis: ScalingAnalysis) -> None:
    series = isoflop_series(analysis)
    runs, curves = series[series["kind"] == "run"], series[series["kind"] == "curve"]
    for C, curve in curves.groupby("compute_budget"):
        sizes = runs.loc[runs["compute_budget"] == C, "num_params"]
        inside = curve.loc[curve["inside"].astype(bool), "num_params"]
        assert inside.min() >= sizes.min() * 0.999
        assert inside.max() <= sizes.max() * 1.001
        assert len(inside) < len(curve)


def test_the_headline_curve_is_what_predict_answers(analysis: ScalingAnalysis) -> None:
    series = optimum_series(analysis)
    row = series[series["kind"] == "headline"].iloc[40]
    prediction = analysis.predict(row["compute_budget"])
    assert row["num_params"] == prediction.num_params
    assert (row["loss_low"], row["loss_high"]) == prediction.ci["loss"]
    assert series["extrapolated"].any()
    assert set(series["kind"]) >= {"headline", "budget", "parabola"}


def test_answers_beyond_the_data_are_marked(analysis: ScalingAnalysis) -> None:
    frame = answers(analysis, np.array([1e18, analysis.largest_budget, 1e21]))
    assert frame["extrapolated"].tolist() == [False, False, True]


def test_residuals_are_measured_over_predicted(analysis: ScalingAnalysis) -> None:
    series = residual_series(analysis)
    assert len(series) == analysis.n_runs
    assert (series["predicted"] * (1 + series["residual"])).to_numpy() == pytest.approx(analysis.rows.L)
    assert series["residual"].abs().max() < 0.02


def test_hold_out_errors_are_relative(analysis: ScalingAnalysis) -> None:
    series = holdout_series(analysis)
    assert analysis.holdout is not None
    largest = analysis.holdout.largest
    row = series[(series["candidate"] == "surface") & (series["hidden"] == largest.hidden)]
    row = row[(row["visible"] == largest.visible) & (row["answer"] == "loss")].iloc[0]
    assert np.log1p(row["error"]) == pytest.approx(largest.errors["surface"]["loss"])
    assert (series["candidate"] == "headline").sum() == 2


def test_every_figure_has_its_data(analysis: ScalingAnalysis) -> None:
    names = {"isoflop", "optimum", "frontier", "residuals", "holdout", "leave_out", "surface"}
    assert set(all_series(analysis)) == names
