"""Weighted least-squares parabolas, many weight vectors at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit.laws import FloatArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Parabolas:
    """y = c0 + c1 z + c2 z**2 with z = (x - center) / scale in [-1, 1], one parabola per weight vector.

    Attributes:
        center: Of x.
        scale: Half the range of x.
        coefficients: Shape (replicates, 3).
        inverse: Inverse of the weighted information matrix, shape (replicates, 3, 3).
        residual: y minus the parabola, shape (replicates, points).
        inside: The parabola opens upwards and its minimum lies between the points that have weight.
    """

    center: float
    scale: float
    coefficients: FloatArray
    inverse: FloatArray
    residual: FloatArray
    inside: BoolArray

    @property
    def convex(self) -> BoolArray:
        """Opens upwards."""
        return self.coefficients[:, 2] > 0

    @property
    def curvature(self) -> FloatArray:
        """Second derivative by x."""
        return np.asarray(2 * self.coefficients[:, 2] / self.scale**2)

    @property
    def place(self) -> FloatArray:
        """Where the minimum is, in x; nan where there is none."""
        return self.center + self.scale * _vertex(self.coefficients)

    @property
    def minimum(self) -> FloatArray:
        """Value at the minimum."""
        return np.asarray(self.coefficients[:, 0] + self.coefficients[:, 1] * _vertex(self.coefficients) / 2)

    def errors(self, weights: FloatArray, noise: float | None = None) -> tuple[Any, Any]:
        """Standard errors of ``place`` and ``minimum`` by the delta method, each of shape (replicates,).

        The noise is judged by the scatter round the parabola, so only ratios of weights matter; nan for three points.

        Args:
            weights: As fitted.
            noise: Standard deviation of y that is known from elsewhere: a few points that happen to lie on a parabola
                do not make it surer than this allows.
        """
        spare = (weights > 0).sum(axis=1) - 3
        rss = (weights * self.residual**2).sum(axis=1)
        variance = np.where(spare > 0, rss, np.nan) / np.maximum(spare, 1)
        if noise is not None:
            variance = np.fmax(variance, noise**2)
        z = _vertex(self.coefficients)
        value_gradient = np.stack([np.ones_like(z), z, z**2], axis=1)
        place_gradient = np.stack([np.zeros_like(z), np.ones_like(z), 2 * z], axis=1)
        place_gradient *= (self.scale / (2 * np.where(self.convex, self.coefficients[:, 2], np.nan)))[:, None]
        place, minimum = (
            np.sqrt(variance * np.einsum("ri,rij,rj->r", g, self.inverse, g)) for g in (place_gradient, value_gradient)
        )
        return place, minimum


def _vertex(coefficients: FloatArray) -> FloatArray:
    bend = np.where(coefficients[:, 2] > 0, coefficients[:, 2], np.nan)
    return np.asarray(-coefficients[:, 1] / (2 * bend))


def fit_parabolas(x: FloatArray, y: FloatArray, weights: FloatArray, solvable: BoolArray) -> Parabolas:
    """Fit y over x under every weight vector.

    Args:
        x: Shape (points,).
        y: Shape (points,).
        weights: Shape (replicates, points).
        solvable: Whether a replicate has three different x; the others get an answer that means nothing.
    """
    center, scale = float(x.max() + x.min()) / 2, max(float(np.ptp(x)) / 2, 1e-12)
    z = (x - center) / scale
    X = np.stack([np.ones_like(z), z, z**2], axis=1)
    information = (weights @ (X[:, :, None] * X[:, None, :]).reshape(-1, 9)).reshape(-1, 3, 3)
    information[~solvable] = np.eye(3)
    # Loss varies little round its mean: taking the mean off keeps the digits that the minimum depends on.
    y_mean = weights @ y / np.where(solvable, weights.sum(axis=1), 1.0)
    right = weights @ (X * y[:, None]) - y_mean[:, None] * (weights @ X)
    inverse = np.asarray(np.linalg.pinv(information, hermitian=True), float)
    coefficients = (inverse @ right[..., None])[..., 0]
    coefficients[:, 0] += y_mean
    vertex = _vertex(coefficients)
    low = np.where(weights > 0, z, np.inf).min(axis=1)
    high = np.where(weights > 0, z, -np.inf).max(axis=1)
    return Parabolas(
        center=center,
        scale=scale,
        coefficients=coefficients,
        inverse=inverse,
        residual=y - coefficients @ X.T,
        inside=solvable & (vertex > low) & (vertex < high),
    )
