"""Runs that do not belong: left out before fitting, each with its reason."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.fit.parametric import fit_parametric

OutlierRule = Literal["surface", "iqr", "none"]


def find_outliers(N: ArrayLike, D: ArrayLike, L: ArrayLike, *, rule: OutlierRule = "surface") -> list[tuple[int, str]]:
    """Runs whose loss the others contradict: (index, reason) of each."""
    if rule == "none":
        return []
    residuals = fit_parametric(N, D, L).residuals
    low, high = np.quantile(residuals, [0.25, 0.75])
    reach = (1.5 if rule == "iqr" else 5.0) * (high - low)
    outside = np.flatnonzero((residuals < low - reach) | (residuals > high + reach))
    return [(int(i), f"loss {100 * np.expm1(residuals[i]):+.1f} % from the surface") for i in outside]
