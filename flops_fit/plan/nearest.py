"""Which sizes lie round a number of parameters, from those whose N is known; numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def sizes_near(known: Mapping[int, float], num_params: float, multiple: int | None = None) -> list[int]:
    """The two sizes round a number of parameters: multiples of what is asked for, or of what the known ones share."""
    step = multiple or int(np.gcd.reduce(list(known)))
    below, above = 0, 1
    while params_at(known, above * step) < num_params:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if params_at(known, middle * step) < num_params else (below, middle)
    return [max(below, 1) * step, max(above, 2) * step]


def params_at(known: Mapping[int, float], size: int) -> float:
    """N of a size: as counted, else between its neighbours on log scales, else extrapolated.

    Beyond what is known N is a polynomial of the size without negative coefficients, of third degree at most, drawn
    through the nearest known size: a width gives squares, a depth that takes a width along gives cubes.
    """
    if size in known:
        return float(known[size])
    sizes, params = (np.array(column, float) for column in (sorted(known), [known[s] for s in sorted(known)]))
    if sizes[0] < size < sizes[-1]:
        return float(np.exp(np.interp(math.log(size), np.log(sizes), np.log(params))))
    end = -1 if size > sizes[-1] else 0
    if len(sizes) == 1:
        return float(params[0] * (size / sizes[0]) ** 2)
    from scipy.optimize import nnls

    unit = sizes[-1]
    terms = (sizes[:, None] / unit) ** np.arange(4)
    powers, _ = nnls(terms / params[:, None], np.ones(len(sizes)))

    def polynomial(s: float) -> float:
        return float(powers @ (s / unit) ** np.arange(4))

    return float(params[end] * polynomial(size) / polynomial(sizes[end]))
