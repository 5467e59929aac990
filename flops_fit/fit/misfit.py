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

# The test costs the cube of the runs; that many are enough to see a misfit that matters.
_MOST_RUNS: Final = 250

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
    log_N, log_D = np.log(rows.N), np.log(rows.D)
    J = np.asarray(fit.law.log_loss_gradient(rows.N, rows.D))
    basis, values, _ = np.linalg.svd(J, full_matrices=True)
    rank = int((values > 1e-12 * values[0]).sum())
    free = basis[:, rank:]
    u = free.T @ r
    if len(u) < 5 or not np.any(np.abs(r) > 1e-9):
        return Misfit(statistic=0.0, size=0.0, shift_statistic=0.0)
    distance = ((log_N[:, None] - log_N) ** 2 + (log_D[:, None] - log_D) ** 2) / _LENGTH**2
    hills = free.T @ np.exp(-0.5 * distance) @ free
    budget = rows.budget
    labels = np.unique(budget[np.isfinite(budget)])
    member = (budget[:, None] == labels).astype(float)
    shifts = free.T @ (member @ member.T) @ free
    ratios = _SHIFTS if len(labels) > 2 else _SHIFTS[:1]
    likelihood = np.array([_log_likelihoods(u, hills, ratio, shifts) for ratio in ratios])
    shift, hill = np.unravel_index(int(likelihood[:, :, 0].argmax()), likelihood.shape[:2])
    plain = float(likelihood[:, 0, 0].max())
    return Misfit(
        statistic=float(2 * (likelihood[:, :, 0].max() - plain)),
        size=float(np.sqrt(_HILLS[hill] * likelihood[shift, hill, 1])),
        shift_statistic=float(2 * (plain - likelihood[0, 0, 0])),
    )


def _log_likelihoods(u: FloatArray, hills: FloatArray, ratio: float, shifts: FloatArray) -> FloatArray:
    """Restricted log likelihood and noise variance for every size of the hills, shape (hills, 2)."""
    n = len(u)
    root = np.linalg.cholesky(np.eye(n) + ratio * shifts)
    half = np.linalg.solve(root, hills)
    values, vectors = np.linalg.eigh(np.linalg.solve(root, half.T))
    power = (vectors.T @ np.linalg.solve(root, u)) ** 2
    spread = 1 + _HILLS[:, None] * np.maximum(values, 0.0)
    variance = (power / spread).mean(axis=1)
    log_det = np.log(spread).sum(axis=1) + 2 * np.log(np.diag(root)).sum()
    return np.stack([-0.5 * (n * np.log(variance) + log_det), variance], axis=1)
