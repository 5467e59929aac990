"""What runs recorded while they trained, as tidy frames: their curves, and the time they took."""

from __future__ import annotations

import numpy as np
import pandas as pd

from flops_fit.fit.envelope import fit_envelope
from flops_fit.laws import FloatArray

# A loss on a curve is a mean over a tenth of its rows, and over some at least: single batches scatter.
_SMOOTHED_SHARE = 10
_FEWEST_ROWS = 8
_POINTS_A_CURVE = 60
_ON_ENVELOPE = 120


def curve_series(curves: pd.DataFrame) -> pd.DataFrame:
    """Training curves against compute, and their lower envelope.

    Args:
        curves: One row per logged step: run_id, num_params, num_tokens, flops, loss.

    Returns:
        kind (curve, envelope, best: the middle of the stretch where one size leads), run_id, num_params, num_tokens,
        flops, loss. Empty without curves.
    """
    if curves.empty:
        return pd.DataFrame()
    smooth = pd.concat([_smooth(run) for _, run in curves.groupby("run_id", sort=False)], ignore_index=True)
    parts = [smooth.assign(kind="curve"), _envelope(smooth)]
    points = fit_envelope(curves, final=False).points
    if points:
        best = [{"num_params": p.num_params, "num_tokens": p.num_tokens, "flops": p.compute} for p in points]
        parts.append(pd.DataFrame(best).assign(kind="best", loss=[p.loss for p in points]))
    columns = "kind run_id num_params num_tokens flops loss".split()
    return pd.concat([part.reindex(columns=columns) for part in parts], ignore_index=True)


def _smooth(run: pd.DataFrame) -> pd.DataFrame:
    """One curve as running means, thinned to points that lie evenly in log C."""
    run = run.sort_values("flops", kind="stable")
    width = min(len(run), max(_FEWEST_ROWS, len(run) // _SMOOTHED_SHARE))
    columns = ["num_tokens", "flops", "loss"]
    means = run[columns].rolling(width).mean().dropna()
    means["run_id"], means["num_params"] = run["run_id"], run["num_params"]
    if len(means) <= _POINTS_A_CURVE:
        return means
    log_C = np.log(means["flops"].to_numpy(float))
    places = np.searchsorted(log_C, np.linspace(log_C[0], log_C[-1], _POINTS_A_CURVE))
    return means.iloc[np.unique(np.minimum(places, len(means) - 1))]


def _envelope(curves: pd.DataFrame) -> pd.DataFrame:
    """The lowest of all curves at each compute."""
    log_C = np.log(curves["flops"].to_numpy(float))
    grid = np.linspace(log_C.min(), log_C.max(), _ON_ENVELOPE)
    lowest = np.full(len(grid), np.inf)
    for _, run in curves.groupby("run_id", sort=False):
        x, y = np.log(run["flops"].to_numpy(float)), run["loss"].to_numpy(float)
        lowest = np.minimum(lowest, np.interp(grid, x, y, left=np.inf, right=np.inf))
    return pd.DataFrame({"kind": "envelope", "flops": np.exp(grid), "loss": lowest})[np.isfinite(lowest)]


def hours_series(table: pd.DataFrame) -> pd.DataFrame:
    """Loss against the time of the devices that trained for it.

    Args:
        table: The runs table of a sweep of ours: run_id, compute_budget, num_params, flops, loss, seconds, world_size.

    Returns:
        run_id, compute_budget, num_params, flops, loss, device_hours (training only), device (its name, or empty),
        is_best (no run with as little time has a lower loss). Empty where no run recorded its time.
    """
    if not {"seconds", "world_size", "loss", "compute_budget"} <= set(table.columns):
        return pd.DataFrame()
    hours = (table["seconds"] * table["world_size"] / 3600).astype(float)
    known = (hours > 0) & (table["loss"].astype(float) > 0)
    columns = ["run_id", "compute_budget", "num_params", "flops", "loss"]
    device = table["device_name"].fillna("") if "device_name" in table else ""
    series = table[columns].assign(device_hours=hours, device=device)[known]
    series = series.sort_values("device_hours", kind="stable", ignore_index=True)
    return series.assign(is_best=_is_record(series["loss"].to_numpy(float)))


def _is_record(losses: FloatArray) -> list[bool]:
    lowest = np.inf
    records = []
    for loss in losses:
        records.append(bool(loss < lowest))
        lowest = min(lowest, float(loss))
    return records
