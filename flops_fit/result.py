"""The answer: a table, predictions with intervals, figures, a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit.experiment import SweepPlan
from flops_fit.fit import Prediction, ScalingAnalysis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_ANSWERS = ("num_params", "num_tokens", "loss", "tokens_per_param")


@dataclass(frozen=True)
class Result:
    """What a sweep, or anybody's table of runs, says about compute-optimal training.

    Attributes:
        analysis: The fits.
        plan: The sweep they come from, or None for a table.
    """

    analysis: ScalingAnalysis
    plan: SweepPlan | None = None

    def predict(self, compute_budget: float) -> Prediction:
        """The best size and data for a budget, and the loss it will reach, with intervals.

        Args:
            compute_budget: Training compute [FLOPs].
        """
        return self.analysis.predict(compute_budget)

    def chinchilla_table(self, compute_budgets: Iterable[float] | None = None) -> pd.DataFrame:
        """One row a budget: the optimum with its 95 % interval.

        Args:
            compute_budgets: Rows; None for the budgets of the data and two decades beyond, marked ``extrapolated``.

        Returns:
            compute_budget, num_params, num_tokens, loss, tokens_per_param; for each the interval's ends as
            ``<name>_low`` and ``<name>_high``; and ``extrapolated``.
        """
        import pandas as pd

        largest = self.analysis.largest_budget
        if compute_budgets is None:
            budgets = self.analysis.rows.budget
            inside = np.unique(budgets[np.isfinite(budgets)])
            compute_budgets = [*(inside if inside.size else [largest]), *(largest * np.array([10.0, 100.0]))]
        rows = []
        for C in compute_budgets:
            prediction = self.predict(C)
            row: dict[str, Any] = {"compute_budget": float(C)}
            row |= {name: getattr(prediction, name) for name in _ANSWERS}
            for name in _ANSWERS:
                low, high = prediction.ci.get(name, (np.nan, np.nan))
                row |= {f"{name}_low": low, f"{name}_high": high}
            rows.append(row | {"extrapolated": C > largest * 1.01})
        return pd.DataFrame(rows)

    def plot(self) -> list[Figure]:
        """The figures: IsoFLOP curves, optima against compute, loss frontier, residuals, hold-out."""
        from flops_fit.report import figures

        return figures(self.analysis)

    def report(self, folder: str | Path) -> Path:
        """Write figures, tables and one self-contained page; returns the page."""
        from flops_fit.report import save_report

        return Path(save_report(self.analysis, Path(folder)))

    def __repr__(self) -> str:
        return f"Result({self.predict(self.analysis.largest_budget)!r})"
