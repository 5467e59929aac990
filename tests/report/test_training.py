"""Curves and clocks of runs, as the figures show them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from flops_fit.report import plot_curves, plot_device_hours
from flops_fit.report.training import curve_series, hours_series


@pytest.fixture(scope="module")
def curves() -> pd.DataFrame:
    """Eight sizes of a noiseless law, each over three decades of tokens."""
    parts = []
    for i, N in enumerate(np.geomspace(1e4, 1e6, 8)):
        D = np.linspace(1, 200, 200) / 200 * 3e12 / N**0.8
        loss = 1.5 + 30 * N**-0.3 + 60 * D**-0.3
        parts.append(
            pd.DataFrame({"run_id": f"run {i}", "num_params": N, "num_tokens": D, "flops": 6 * N * D, "loss": loss})
        )
    return pd.concat(parts, ignore_index=True)


def test_no_curve_lies_below_the_envelope(curves: pd.DataFrame) -> None:
    series = curve_series(curves)
    envelope = series[series["kind"] == "envelope"]
    for _, run in series[series["kind"] == "curve"].groupby("run_id"):
        inside = envelope["flops"].between(run["flops"].min(), run["flops"].max())
        here = np.interp(np.log(envelope["flops"][inside]), np.log(run["flops"]), run["loss"])
        assert (envelope["loss"][inside] <= here + 1e-12).all()
    assert np.diff(envelope["loss"]).max() <= 0.02


def test_smoothing_keeps_the_mean_and_lowers_the_scatter(curves: pd.DataFrame) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, len(curves))
    flat = curves.assign(loss=3 + noise)
    smooth = curve_series(flat)
    losses = smooth.loc[smooth["kind"] == "curve", "loss"]
    assert losses.mean() == pytest.approx(3, abs=0.02)
    assert losses.std() < 0.05


def test_a_run_of_a_few_steps_is_still_a_curve(curves: pd.DataFrame) -> None:
    few = curves.groupby("run_id").head(3)
    series = curve_series(few)
    assert series.loc[series["kind"] == "curve", "run_id"].nunique() == 8
    assert plot_curves(few).has_data()
    assert curve_series(curves.head(0)).empty


def test_time_is_that_of_all_devices_and_records_are_marked() -> None:
    table = pd.DataFrame(
        {
            "run_id": ["a", "b", "c", "d"],
            "compute_budget": [1e15, 1e15, 1e16, 1e16],
            "num_params": 1000,
            "flops": [1e15, 1e15, 1e16, 1e16],
            "loss": [3.0, 3.2, 2.5, np.nan],
            "seconds": [1800.0, 900.0, 3600.0, np.nan],
            "world_size": [1, 4, 2, np.nan],
            "device_name": "H100",
        }
    )
    series = hours_series(table)
    assert dict(zip(series["run_id"], series["device_hours"], strict=True)) == {"a": 0.5, "b": 1.0, "c": 2.0}
    assert series.loc[series["is_best"], "run_id"].tolist() == ["a", "c"]
    ax = Figure().subplots()
    assert plot_device_hours(table, ax) is ax
    assert ax.get_xlabel().endswith("H100")
    assert hours_series(table.drop(columns="world_size")).empty
