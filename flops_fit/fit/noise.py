"""What seeds say: how runs of one cell scatter, and whether the surface misses cells by more than that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flops_fit.fit.parametric import ParametricFit
from flops_fit.fit.rows import Rows
from flops_fit.laws import FloatArray

_LEVEL: Final = 0.95

# A surface that holds is accused this often.
_ACCUSED: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The scatter of runs that differ in nothing but their seed.

    Attributes:
        sd: Standard deviation of their log loss, pooled over cells.
        degrees_of_freedom: Runs in those cells, less one for each cell.
        n_cells: Cells that were run with several seeds.
        interval: Of sd, at 95 % and for normal scatter.
        largest_compute: Of those runs; the scatter of larger ones was not seen [FLOPs].
    """

    sd: float
    degrees_of_freedom: int
    n_cells: int
    interval: tuple[float, float]
    largest_compute: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LackOfFit:
    """The surface's misses of whole cells, against the scatter within cells (Fisher's F test with pure error).

    Attributes:
        statistic: Mean square of the misses over that of the scatter.
        degrees_of_freedom: Of both: cells less fitted parameters, and runs less cells.
        p_value: Chance of a larger statistic if the surface holds and all cells scatter alike.
        size: Standard deviation of the misses beyond the scatter, in log loss; 0 where it explains them.
    """

    statistic: float
    degrees_of_freedom: tuple[int, int]
    p_value: float
    size: float


def find_noise(rows: Rows) -> Noise | None:
    """The pooled scatter within cells; None where no cell was run with several seeds."""
    away, counts = _within(rows)
    spare = int((counts - 1).sum())
    if spare == 0:
        return None
    from scipy.special import chdtri

    squares = float(away @ away)
    tail = (1 - _LEVEL) / 2
    repeated = (counts > 1)[rows.cells]
    return Noise(
        sd=float(np.sqrt(squares / spare)),
        degrees_of_freedom=spare,
        n_cells=int((counts > 1).sum()),
        interval=(float(np.sqrt(squares / chdtri(spare, tail))), float(np.sqrt(squares / chdtri(spare, 1 - tail)))),
        largest_compute=float(rows.C[repeated].max()),
    )


def lack_of_fit(fit: ParametricFit, rows: Rows) -> LackOfFit | None:
    """Test whether the surface holds as closely as seeds can tell.

    The residuals' part along the surface's own derivatives, which a fit by least squares would have taken up, does not
    count, so that a robust fit is judged by the same standard.

    Args:
        fit: The surface through these runs.
        rows: The runs.

    Returns:
        None where no cell was run with several seeds, or too few cells are left to judge by.
    """
    away, counts = _within(rows)
    spare, misses = int((counts - 1).sum()), len(counts) - 5
    within = float(away @ away)
    if spare == 0 or misses < 1 or within == 0:
        return None
    from scipy.special import fdtrc

    basis, weights, _ = np.linalg.svd(np.asarray(fit.law.log_loss_gradient(rows.N, rows.D)), full_matrices=False)
    basis = basis[:, weights > 1e-12 * weights[0]]
    r = np.log(rows.L / fit.law.loss(rows.N, rows.D))
    r = r - basis @ (basis.T @ r)
    noise, between = within / spare, max(float(r @ r) - within, 0.0) / misses
    return LackOfFit(
        statistic=between / noise,
        degrees_of_freedom=(misses, spare),
        p_value=float(fdtrc(misses, spare, between / noise)),
        # A miss counts as often as its cell was run.
        size=float(np.sqrt(max(between - noise, 0.0) / counts.mean())),
    )


def is_lacking(found: LackOfFit) -> bool:
    """Whether the misses are too large for chance."""
    return found.p_value < _ACCUSED


def _within(rows: Rows) -> tuple[FloatArray, NDArray[np.intp]]:
    """How far each run's log loss is from the mean of its cell, shape (runs,), and runs per cell, shape (cells,)."""
    cells, log_L = rows.cells, np.log(rows.L)
    counts = np.bincount(cells)
    return np.asarray(log_L - (np.bincount(cells, log_L) / counts)[cells]), counts.astype(np.intp)
