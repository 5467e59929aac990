"""The optima of a sweep's budgets as numbers to fit laws through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from flops_fit.fit.isoflop import IsoflopFit
from flops_fit.laws import FloatArray

# An optimum with a larger standard error of log N says nothing.
_VAGUE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Optima:
    """The budgets' optima that say something, ascending in compute; every array has shape (budgets,).

    Attributes:
        C: Compute [FLOPs].
        log_size: log N_opt.
        log_size_se: Its standard error; the usual one where a budget has too few runs to tell.
        loss: Loss at the optimum.
        loss_se: Its standard error, relative.
    """

    C: FloatArray
    log_size: FloatArray
    log_size_se: FloatArray
    loss: FloatArray
    loss_se: FloatArray

    @classmethod
    def of(cls, isoflop: IsoflopFit) -> Optima:
        """From the parabolas."""
        good = [b for b in isoflop.optima if (b.log_n_se or 0.0) <= _VAGUE and (b.loss or 0.0) > 0]
        loss = np.array([b.loss or np.nan for b in good], float)
        return cls(
            C=np.array([b.compute_budget for b in good], float),
            log_size=np.log(np.array([b.num_params or np.nan for b in good], float)),
            log_size_se=_known([b.log_n_se for b in good], 0.1),
            loss=loss,
            loss_se=_known([b.loss_se for b in good], 0.003 * float(loss.mean()) if good else 0.0) / loss,
        )


def _known(values: list[float | None], default: float) -> FloatArray:
    known = [v for v in values if v is not None]
    usual = float(np.median(known)) if known else default
    return np.array([usual if v is None else v for v in values], float)
