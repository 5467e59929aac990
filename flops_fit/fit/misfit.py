"""Does the additive surface bend the wrong way? A test for smooth structure in what it leaves unexplained.

The residuals of a right form are noise, and perhaps a shift of each budget as a whole (its own learning rate, another
evaluation set). A wrong form leaves hills and valleys over (log N, log D). Both are Gaussian processes; the ratio of
their restricted likelihoods says whether the hills are there. On published sweeps that were foretold 1 % wrong it is
10 to 100; on sweeps drawn from the surface, under any noise, it is below 1 in nine of ten and below 2.5 in 95 of 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from flops_fit.fit.parametric import ParametricFit
from flops_fit.fit.rows import Rows
from flops_fit.laws import FloatArray

# Over which distance in log N and log D a misfit keeps its sign: a factor 30. Shorter lengths have less power against
# the forms that rival the additive one.
_LENGTH: Final = float(np.log(30))

# Variances of hills and of shifts, over that of the noise.
_HILLS = np.append(0.0, np.geomspace(0.03, 3e3, 26))
_SHIFTS = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 10.0])

# That many runs are enough to see a misfit that matters.
_MOST_RUNS: Final = 2000

# Terms of the kernel's expansion in each direction together; the next is below 1e-3 on sweeps of four decades.
_DEGREE: Final = 8

# Up to the first the residuals show no misfit, from the second on it counts in full.
_NONE: Final = 0.5
_SURE: Final = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Smooth structure in the surface's residuals.

    Attributes:
        statistic: Twice the log likelihood ratio of hills beside shifts of the budgets against shifts alone.
        size: Standard deviation of the hills, in log loss, at the maximum of the likelihood.
        shift_statistic: Same ratio of shifts of the budgets against plain noise.
    """

    statistic: float
    size: float
    shift_statistic: float

    @property
    def doubt(self) -> float:
        """How far the surface's own word is replaced by the combination of all forms, 0 to 1."""
        return float(np.clip((self.statistic - _NONE) / (_SURE - _NONE), 0.0, 1.0))


def find_misfit(fit: ParametricFit, rows: Rows) -> Misfit:
    """Test the residuals of a fitted surface for smooth structure.

    Args:
        fit: The surface.
        rows: The runs it is to explain, outliers included: what a wrong form cannot reach looks like outliers.
    """
    rows = rows.thinned(_MOST_RUNS)
    r = np.log(rows.L / fit.law.loss(rows.N, rows.D))
    # What Huber's loss discounts must not count in full here.
    reach = 3 * max(fit.scale, 1e-12)
    r = np.clip(r, -reach, reach)
    # What the surface could still follow is taken out of everything (restricted likelihood).
    basis, weights, _ = np.linalg.svd(np.asarray(fit.law.log_loss_gradient(rows.N, rows.D)), full_matrices=False)
    basis = basis[:, weights > 1e-12 * weights[0]]

    def rest(columns: FloatArray) -> FloatArray:
        return np.asarray(columns - basis @ (basis.T @ columns))

    spare = len(r) - basis.shape[1]
    if spare < 5 or not np.any(np.abs(r) > 1e-9):
        return Misfit(statistic=0.0, size=0.0, shift_statistic=0.0)
    hills = rest(_features(np.log(rows.N), np.log(rows.D)))
    labels = np.unique(rows.budget[np.isfinite(rows.budget)])
    shifts = rest((rows.budget[:, None] == labels).astype(float))
    ratios = _SHIFTS if len(labels) > 2 else _SHIFTS[:1]
    likelihood, variance = _log_likelihoods(rest(r), hills, shifts, ratios, spare)
    shift, hill = np.unravel_index(int(likelihood.argmax()), likelihood.shape)
    plain = float(likelihood[:, 0].max())
    return Misfit(
        statistic=float(2 * (likelihood.max() - plain)),
        size=float(np.sqrt(_HILLS[hill] * variance[shift, hill])),
        shift_statistic=float(2 * (plain - likelihood[0, 0])),
    )


def _features(log_N: FloatArray, log_D: FloatArray) -> FloatArray:
    """Columns whose products are the Gaussian kernel of _LENGTH, by its Taylor expansion; shape (runs, features)."""
    from scipy.special import factorial

    rows = []
    for v in (log_N, log_D):
        x = (v - v.mean()) / _LENGTH
        powers = np.arange(_DEGREE + 1)
        rows.append(np.exp(-0.5 * x**2) * x ** powers[:, None] / np.sqrt(factorial(powers))[:, None])
    return np.array([a * b for i, a in enumerate(rows[0]) for b in rows[1][: _DEGREE + 1 - i]]).T


def _log_likelihoods(
    u: FloatArray, hills: FloatArray, shifts: FloatArray, ratios: FloatArray, spare: int
) -> tuple[FloatArray, FloatArray]:
    """Restricted log likelihood and noise variance for every size of shifts and of hills, each (shifts, hills).

    The covariance is the identity plus few columns' products, so that only matrices of their number are solved.
    """
    columns = np.hstack([hills, shifts])
    gram, along = columns.T @ columns, columns.T @ u
    of_hill = np.arange(columns.shape[1]) < hills.shape[1]
    size = np.sqrt(np.where(of_hill, _HILLS[None, :, None], ratios[:, None, None]))
    inner = np.eye(len(gram)) + size[..., :, None] * gram * size[..., None, :]
    along = size * along
    explained = np.einsum("...i,...i", along, np.linalg.solve(inner, along[..., None])[..., 0])
    variance = (u @ u - explained) / spare
    log_det = np.linalg.slogdet(inner)[1]
    return -0.5 * (spare * np.log(variance) + log_det), variance
