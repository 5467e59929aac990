"""The answer: a table, predictions with intervals, figures, a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit.errors import FitError
from flops_fit.experiment import SweepPlan
from flops_fit.fit import Prediction, ScalingAnalysis
from flops_fit.fit.rates import rate_law_in
from flops_fit.fit.what_if import WhatIf, over_trained, repeated, served
from flops_fit.markup import html_lines, html_table
from flops_fit.redaction import redacted
from flops_fit.units import parse_flops

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flops_fit.next_run import NextRun
    from flops_fit.report import Recorded


@dataclass(frozen=True)
class Result:
    """What a sweep, or anybody's table of runs, says about compute-optimal training.

    Attributes:
        analysis: The fits.
        plan: The sweep they come from, or None for a table.
        mapping: Of a table: canonical column name to the table's own.
        notes: Of a table: what was assumed in reading it; of a designed sweep: how it foretold the runs kept back.
        table: The runs, with all that was read of them; None for an analysis that was loaded.
        directory: The sweep's directory, or None for a table.
    """

    analysis: ScalingAnalysis
    plan: SweepPlan | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    table: pd.DataFrame | None = field(default=None, compare=False)
    directory: Path | None = None

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
        if compute_budget is not None:
            compute_budget = _flops(compute_budget)
        return self.analysis.predict(compute_budget, params=params, tokens=tokens, loss=loss)

    def suggest_config(self, compute_budget: float | str) -> NextRun:
        """What to train with a budget: the nearest size that can be built, its data, steps and expected loss.

        ``print(result.suggest_config("1e21").to_yaml())`` shows it as a file. Nothing is built; a size that the sweep
        has not counted has an estimated N, and says so.

        Args:
            compute_budget: Such as 1e21 or "10 PF-days" [FLOPs].

        Raises:
            FitError: The best size at this budget is withheld.
        """
        from flops_fit.suggestion import suggest

        best = self.predict(compute_budget)
        return suggest(self.analysis, self.directory, best.compute_budget)

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

    def plot(self, *, compute_budget: float | str | None = None, references: Sequence[str] = ()) -> list[Figure]:
        """The figures: IsoFLOP curves, optima and loss against compute, what speaks for the laws, training.

        Args:
            compute_budget: A budget to mark in them, such as 1e21 or "10 PF-days" [FLOPs].
            references: Published laws to draw beside: "chinchilla", "besiroglu", "llama3", "20x".
        """
        from flops_fit.report import figures

        target = None if compute_budget is None else _flops(compute_budget)
        return figures(self.analysis, target=target, references=references, recorded=self._recorded(None))

    def report(
        self,
        folder: str | Path,
        *,
        command: str | None = None,
        compute_budget: float | str | None = None,
        references: Sequence[str] = (),
    ) -> Path:
        """Write figures, tables, one self-contained page, and a text to paste; returns the page.

        Args:
            folder: Where to.
            command: How the report was started, for the page.
            compute_budget: As in ``plot``; also what the page's first sentence answers, instead of the largest budget.
            references: As in ``plot``.
        """
        from flops_fit.report import save_report

        target = None if compute_budget is None else _flops(compute_budget)
        recorded = self._recorded(command)
        return save_report(self.analysis, folder, recorded=recorded, target=target, references=references)

    def _recorded(self, command: str | None) -> Recorded:
        """What is known of the runs beside the analysis, without what looks like a credential."""
        from flops_fit.report import Recorded

        if self.directory is None:
            return Recorded(command=command, table=self.table, mapping=self.mapping, notes=self.notes)
        from flops_fit.runs.directory import SweepDirectory
        from flops_fit.runs.records import read_config, read_curves, read_environments

        sweep = SweepDirectory(self.directory)
        config = read_config(sweep)
        return Recorded(
            name=self.directory.resolve().name,
            command=command,
            config=None if config is None else redacted(config),
            plan=sweep.plan,
            table=self.table,
            curves=read_curves(sweep),
            environments=tuple(read_environments(sweep)),
            rate_law=rate_law_in(sweep.rates_file),
        )

    def _repr_html_(self) -> str:
        """The answer in a sentence, the table, and the warnings, for notebooks."""
        from flops_fit.report.tables import answer_sentence, answer_table

        table = answer_table(self.analysis)
        shown = html_table(list(table.columns), table.to_numpy().tolist())
        warnings = html_lines(str(w) for w in self.analysis.warnings)
        return f"<p><b>{escape(answer_sentence(self.analysis))}</b></p>{shown}{warnings}"

    def __str__(self) -> str:
        """The whole answer, as ``flops-fit analyze`` prints it."""
        from flops_fit.report.tables import answer_text

        return answer_text(self.analysis)

    def __repr__(self) -> str:
        return f"Result({self.predict(self.analysis.largest_budget)!r})"


def _flops(value: float | str) -> float:
    try:
        return parse_flops(value)
    except ValueError as error:
        raise FitError(f"compute_budget: {error}") from None
