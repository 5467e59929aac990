"""Published laws of compute-optimal language models, to hold an answer against.

Their data, tokenizers and counts of parameters are not those of the sweep: a difference is no error of either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flops_fit.errors import DataError
from flops_fit.laws import FloatArray, ParametricLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One published law.

    Attributes:
        label: How a legend names it.
        source: Where it is published.
        num_params: N_opt of C FLOPs; D_opt follows from C = 6ND.
    """

    label: str
    source: str
    num_params: Callable[[FloatArray], FloatArray]

    def answer(self, quantity: str, C: FloatArray) -> FloatArray:
        """num_params, num_tokens or tokens_per_param at C FLOPs."""
        N = self.num_params(C)
        D = C / (6 * N)
        return {"num_params": N, "num_tokens": D, "tokens_per_param": D / N}[quantity]


def _surface(E: float, A: float, B: float, alpha: float, beta: float) -> Callable[[FloatArray], FloatArray]:
    law = ParametricLaw(E=E, A=A, B=B, alpha=alpha, beta=beta)
    return lambda C: np.asarray(law.optimum(C)[0])


def _llama3(C: FloatArray) -> FloatArray:
    # The text's own extrapolation, 16.55e12 tokens at 3.8e25 FLOPs, with its exponent of D_opt: the factor printed
    # beside the exponent is rounded so far that it gives another number.
    return np.asarray(C / (6 * 16.55e12 * (C / 3.8e25) ** 0.53))


REFERENCES = {
    "chinchilla": Reference(
        label="Chinchilla",
        source="Hoffmann et al. 2022, arXiv:2203.15556, section 3.3",
        num_params=_surface(1.69, 406.4, 410.7, 0.34, 0.28),
    ),
    "besiroglu": Reference(
        label="Chinchilla, refitted",
        source="Besiroglu et al. 2024, arXiv:2404.10102",
        num_params=_surface(1.81686, 482.006, 2085.434, 0.34781, 0.36585),
    ),
    "llama3": Reference(
        label="Llama 3", source="Grattafiori et al. 2024, arXiv:2407.21783, section 3.2.1", num_params=_llama3
    ),
    "20x": Reference(
        label="20 tokens per parameter",
        source="the rule of thumb read off Hoffmann et al. 2022",
        num_params=lambda C: np.asarray(np.sqrt(C / 120)),
    ),
}


def reference(name: str) -> Reference:
    """A published law by its name.

    Raises:
        DataError: There is none of that name.
    """
    if name not in REFERENCES:
        raise DataError(f"{name!r} is no reference law", hint=f"there are {', '.join(REFERENCES)}")
    return REFERENCES[name]
