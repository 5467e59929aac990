"""The answer: a table, predictions with intervals, figures, a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit.errors import FitError
from flops_fit.experiment import SweepPlan
from flops_fit.fit import Prediction, ScalingAnalysis
from flops_fit.fit.what_if import WhatIf, over_trained, repeated, served
from flops_fit.units import parse_flops

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result:
    """What a sweep, or anybody's table of runs, says about compute-optimal training.

    Attributes:
        analysis: The fits.
        plan: The sweep they come from, or None for a table.
        mapping: Of a table: canonical column name to the table's own.
        notes: Of a table: what was assumed in reading it.
    """

    analysis: ScalingAnalysis
    plan: SweepPlan | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def predict(
        self,
        compute_budget: float | str | None = None,
        *,
        params: float | None = None,
        tokens: float | None = None,
        loss: float | None = None,
    ) -> Prediction:
        """The best size and data for a budget and the loss it will reach; or the budget that another answer calls for.

        Args:
            compute_budget: Training compute, such as 1e21 or "10 PF-days" [FLOPs].
            params: Instead: the size that is to be the best [parameters].
            tokens: Instead: the data that is to be the best [tokens or samples].
            loss: Instead: the loss to reach [nats/token].
        """
        if isinstance(compute_budget, str):
            try:
                compute_budget = parse_flops(compute_budget)
            except ValueError as error:
                raise FitError(f"compute_budget: {error}") from None
        return self.analysis.predict(compute_budget, params=params, tokens=tokens, loss=loss)

    def over_train(self, compute_budget: float, tokens_per_param: float) -> WhatIf:
        """The model of a chosen D/N for a budget: its loss, and what reaching that loss costs extra."""
        return over_trained(self.analysis, compute_budget, tokens_per_param)

    def serve(self, loss: float, served_tokens: float) -> WhatIf:
        """The model that reaches a loss for the least compute, training and serving together."""
        return served(self.analysis, loss, served_tokens)

    def repeat(self, compute_budget: float, unique_tokens: float) -> WhatIf:
        """The best split of a budget when only so many tokens are unique."""
        return repeated(self.analysis, compute_budget, unique_tokens)

    def chinchilla_table(self, compute_budgets: Iterable[float] | None = None) -> pd.DataFrame:
        """One row a budget: the optimum with its 95 % interval.

        Args:
            compute_budgets: Rows; None for the budgets of the data and two decades beyond.

        Returns:
            compute_budget, num_params, num_tokens, loss, tokens_per_param; for each the interval's ends as
            ``<name>_low`` and ``<name>_high``; and ``extrapolated``, true beyond the data.
        """
        from flops_fit.report import optimal

        table = optimal(self.analysis, compute_budgets)
        first = ["compute_budget", "num_params", "num_tokens", "loss", "tokens_per_param"]
        return table[[*first, *(c for c in table.columns if c not in first)]]

    def plot(self) -> list[Figure]:
        """The figures: IsoFLOP curves, optima against compute, loss frontier, residuals, hold-out."""
        from flops_fit.report import figures

        return figures(self.analysis)

    def report(self, folder: str | Path, *, command: str | None = None) -> Path:
        """Write figures, tables and one self-contained page, which names the command; returns the page."""
        from flops_fit.report import save_report

        return save_report(self.analysis, folder, command=command)

    def __repr__(self) -> str:
        return f"Result({self.predict(self.analysis.largest_budget)!r})"
