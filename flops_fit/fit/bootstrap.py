"""Resampled runs as vectors of weights, all refitted in one batched solve."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.fit.newton import LossKind, Objective, Runs, minimise
from flops_fit.laws import FloatArray


def bootstrap_weights(n: int, n_replicates: int, rng: np.random.Generator) -> FloatArray:
    """How often each of n runs is drawn in each resample of n runs with replacement; shape (n_replicates, n)."""
    drawn = rng.integers(0, n, (n_replicates, n)) + n * np.arange(n_replicates)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_replicates * n).reshape(n_replicates, n).astype(float)


def refit_weighted(
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    W: ArrayLike,
    *,
    start: ArrayLike,
    huber_delta: float | None,
    loss_kind: LossKind = "huber",
    tied: bool = False,
) -> FloatArray:
    """Refit the surface under R vectors of weights.

    Args:
        N: Parameters, shape (n,).
        D: Tokens, shape (n,).
        L: Losses [nats/token], shape (n,).
        W: Weights, shape (R, n).
        start: theta of the fit to all runs, shape (5,), or one start per replicate, shape (R, 5).
        huber_delta: Of that fit; None for least squares.
        loss_kind: Of that fit.
        tied: Of that fit.

    Returns:
        theta of each replicate, shape (R, 5).
    """
    runs = Runs.of(N, D, L)
    W = np.atleast_2d(np.asarray(W, float))
    q = np.broadcast_to(runs.coordinates(np.asarray(start, float)), (len(W), 5))
    delta = np.inf if loss_kind != "huber" or huber_delta is None else huber_delta
    objective = Objective(runs=runs, delta=delta, linear=loss_kind == "linear", tied=tied)
    q, _, _ = minimise(objective, q, W, damping=0.1)
    return runs.theta(q)
