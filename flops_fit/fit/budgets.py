"""Which runs share a compute budget, and how compute follows from N and D."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.errors import FitError
from flops_fit.laws import SIX_ND, ComputeRule, FloatArray

# All in natural log of C. Whole batches and digitised figures move a run a few percent off its budget; neighbouring
# budgets of published sweeps are at least a factor 1.5 apart.
_GAP = 0.1
_HALF_WIDTH = 0.1
_BANDWIDTH = 0.05
_STEP = 0.005
_VALLEY = 1 / 3
_REACH = 0.4
_MIN_RUNS = 3

# Two costs closer than this are the same for us [relative].
_SAME = 0.005


def group_budgets(C: ArrayLike) -> FloatArray:
    """Find IsoFLOP groups among runs by the gaps in log C, never by rounding.

    Runs are split wherever neighbours in log C are more than 10 % apart. A piece no wider than 20 % is one budget. A
    wider piece is a sweep mixed with other experiments, where no gap is left: there the budgets are the peaks of the
    density of log C that stand at least three times above a valley within a factor 1.5 on either side, and their runs
    those within 10 % of the peak.

    Args:
        C: Compute of each run, shape (runs,) [FLOPs].

    Returns:
        The median compute of each run's group, shape (runs,) [FLOPs]; nan where a run shares its budget with fewer
        than two others.
    """
    C = np.asarray(C, float)
    labels = np.full(C.shape, np.nan)
    usable = np.flatnonzero(np.isfinite(C) & (C > 0))
    order = usable[np.argsort(C[usable], kind="stable")]
    log_C = np.log(C[order])
    for piece in np.split(np.arange(len(order)), np.flatnonzero(np.diff(log_C) > _GAP) + 1):
        if len(piece) < _MIN_RUNS:
            continue
        spread = log_C[piece[-1]] - log_C[piece[0]]
        groups = [piece] if spread <= 2 * _HALF_WIDTH else [piece[near] for near in _dense_places(log_C[piece])]
        for group in groups:
            labels[order[group]] = np.median(C[order[group]])
    return labels


def _dense_places(x: FloatArray) -> list[FloatArray]:
    """Masks of the runs near each peak of the density of ascending x."""
    from scipy.ndimage import gaussian_filter1d

    margin, reach = round(4 * _BANDWIDTH / _STEP), round(_REACH / _STEP)
    bins = margin + np.round((x - x[0]) / _STEP).astype(int)
    density = gaussian_filter1d(
        np.bincount(bins, minlength=bins[-1] + margin + 1).astype(float), _BANDWIDTH / _STEP, mode="constant"
    )
    peaks = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])) + 1
    places = []
    for peak in peaks:
        higher = np.flatnonzero(density > density[peak])
        left = max(higher[higher < peak].max(initial=0), peak - reach)
        right = min(higher[higher > peak].min(initial=len(density)), peak + reach)
        left_valley, right_valley = density[left:peak].min(), density[peak:right].min()
        near = np.abs(bins - peak) * _STEP <= _HALF_WIDTH
        if max(left_valley, right_valley) <= _VALLEY * density[peak] and near.sum() >= _MIN_RUNS:
            places.append(near)
    return places


def fit_compute_rule(N: ArrayLike, D: ArrayLike, C: ArrayLike) -> ComputeRule:
    """Fit C = k N**q D to the runs' recorded compute.

    Args:
        N: Parameters of each run, shape (runs,).
        D: Tokens.
        C: Recorded compute [FLOPs].

    Returns:
        Exactly C = 6ND where that holds within 0.5 %; q = 1 and a fitted k where cost per token and parameter does
        not change with size; else both fitted by regression of log(C/D) on log N.

    Raises:
        FitError: Cost per token falls with size, which no optimum can be built on.
    """
    log_N = np.log(np.asarray(N, float))
    log_cost = np.log(np.asarray(C, float)) - log_N - np.log(np.asarray(D, float))
    if np.all(np.abs(log_cost - np.log(SIX_ND.k)) <= _SAME):
        return SIX_ND
    x = log_N - log_N.mean()
    sum_xx = x @ x
    slope = x @ log_cost / sum_xx if sum_xx > 0 else 0.0
    residual = log_cost - log_cost.mean() - slope * x
    slope_se = np.sqrt(residual @ residual / max(len(x) - 2, 1) / sum_xx) if sum_xx > 0 else 0.0
    if abs(slope) * np.ptp(x) <= _SAME or abs(slope) <= 3 * slope_se:
        k = float(np.exp(log_cost.mean()))
        return SIX_ND if abs(np.log(k / SIX_ND.k)) <= _SAME else ComputeRule(k=k)
    if slope <= -1:
        raise FitError(
            f"recorded compute per token falls with model size (C ~ N^{1 + slope:.2f} D)",
            hint="check that the columns of parameters, tokens and FLOPs are what they say",
        )
    return ComputeRule(k=float(np.exp(log_cost.mean() - slope * log_N.mean())), q=float(1 + slope))


_FACTORS = (
    (1 / 3, "6ND/3: forward passes only?"),
    (1 / 2, "6ND/2: are multiply-adds counted as one operation?"),
    (1 / 6, "6ND/6: the product N x D, without operations per parameter and token?"),
    (np.log(2), "6ND x ln 2: was it, or D, converted between nats and bits?"),
    (1 / np.log(2), "6ND / ln 2: was it, or D, converted between nats and bits?"),
    (4 / 3, "8ND: is the forward pass counted twice, for activation checkpointing?"),
    (2.0, "12ND: are multiply-adds counted twice?"),
    (3.0, "18ND: is the factor 3 for forward and backward in there twice?"),
)
_FLOP_UNITS = {1: "kFLOPs", 2: "MFLOPs", 3: "GFLOPs", 4: "TFLOPs", 5: "PFLOPs", 6: "EFLOPs"}
_COUNT_UNITS = {1: "thousands", 2: "millions", 3: "billions", 4: "trillions"}
_PF_DAY = 86400e15


def named_ratio(C: ArrayLike, N: ArrayLike, D: ArrayLike) -> str | None:
    """Say what a ratio between recorded compute and 6ND probably means.

    Args:
        C: Recorded compute of each run, shape (runs,).
        N: Parameters.
        D: Tokens.

    Returns:
        Words for a user, or None where C is 6ND or a ratio of its order changes from run to run (counted FLOPs).
    """
    C, N, D = (np.asarray(v, float) for v in (C, N, D))
    log_ratio = np.log(C) - np.log(6.0) - np.log(N) - np.log(D)
    middle = float(np.median(log_ratio))
    constant = bool(np.quantile(np.abs(log_ratio - middle), 0.9) <= 2 * _SAME)
    if abs(middle + np.log(_PF_DAY)) <= (2 * _SAME if constant else np.log(3)):
        return "C is in PF-days, not FLOPs"
    thousands = round(middle / np.log(1000))
    unit = _unit_words(thousands, N, D)
    if not constant:
        return unit and f"C is about {np.exp(middle):.2g} x 6ND: {unit}"
    rest = middle - thousands * np.log(1000)
    if abs(rest) <= 2 * _SAME:
        return unit and f"C is {np.exp(middle):.4g} x 6ND: {unit}"
    for factor, words in _FACTORS:
        if abs(rest - np.log(factor)) <= 2 * _SAME:
            return f"C is {words}" if unit is None else f"{unit}; then C is {words}"
    factor = np.exp(rest)
    return f"C is {factor:.4g} x 6ND in every run" if unit is None else f"{unit}; then C is {factor:.4g} x 6ND"


def _unit_words(thousands: int, N: FloatArray, D: FloatArray) -> str | None:
    """Which column is in a larger unit than one, when C / 6ND is off by 1000**thousands."""
    if thousands == 0:
        return None
    if thousands < 0:
        return f"C is in {_FLOP_UNITS.get(-thousands, f'units of 1e{-3 * thousands} FLOPs')}"
    # No model worth a sweep has fewer than a thousand parameters, and no run fewer than a thousand tokens.
    small = [name for name, values in (("N", N), ("D", D)) if np.median(values) < 1e3 * 1000 ** (thousands > 3)]
    if len(small) == 2:
        return f"N and D are in larger units, together 1e{3 * thousands}"
    return f"{small[0] if small else 'N or D'} is in {_COUNT_UNITS.get(thousands, f'units of 1e{3 * thousands}')}"
