"""Which rows of a runs table are fitted, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flops_fit.errors import DataError, FitError
from flops_fit.laws import SIX_ND, ComputeRule, FloatArray, ParametricLaw

if TYPE_CHECKING:
    import pandas as pd

CONVENTIONS = ("num_params", "num_params_matmul", "num_params_total", "num_params_non_embedding")
_FINISHED = frozenset({"completed", "finished", "done", "simulated", ""})


@dataclass(frozen=True, slots=True)
class Excluded:
    """A run that is not fitted.

    Attributes:
        run_id: Its name.
        reason: Why, in words.
        num_params: Its size, for figures [parameters]; this and the rest are None where unknown.
        num_tokens: Its data [tokens or samples].
        flops: Its compute [FLOPs].
        loss: Its loss [nats/token].
        compute_budget: The budget it belongs to [FLOPs].
    """

    run_id: str
    reason: str
    num_params: float | None = None
    num_tokens: float | None = None
    flops: float | None = None
    loss: float | None = None
    compute_budget: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The runs that are fitted, one array per column.

    Attributes:
        run_id: Names, shape (runs,).
        N: Parameters under the convention asked for.
        D: Tokens or samples.
        L: Loss [nats/token].
        C: Training compute [FLOPs].
        budget: Label of the budget each run belongs to [FLOPs]; NaN where it belongs to none.
        unique: Distinct tokens of the data set, or NaN where unknown.
        seed: Of weights and data order, or NaN where unknown.
    """

    run_id: Any
    N: FloatArray
    D: FloatArray
    L: FloatArray
    C: FloatArray
    budget: FloatArray
    unique: FloatArray
    seed: FloatArray

    def __len__(self) -> int:
        return len(self.L)

    def take(self, which: Any) -> Rows:
        """Some of the rows."""
        return Rows(**{name: getattr(self, name)[which] for name in self.__slots__})

    @property
    def cells(self) -> NDArray[np.intp]:
        """Which cell each run belongs to: numbers from 0 in order of appearance, shape (runs,).

        Runs of one size on as much data are one cell where their seeds are known and all different. Where one seed
        comes twice they differ in something else too (a learning rate, perhaps), and each is a cell of its own.
        """
        if np.unique(self.seed[np.isfinite(self.seed)]).size < 2:
            return np.arange(len(self))
        places = np.round(np.log(np.stack([self.N, self.D])) * 1e3)
        _, place = np.unique(places, axis=1, return_inverse=True)
        place = place.ravel()
        known = np.isfinite(self.seed)
        runs = np.bincount(place)
        seeds = np.unique(np.stack([place, np.where(known, self.seed, -1.0)]), axis=1)[0].astype(int)
        alone = (np.bincount(seeds) != runs) | (np.bincount(place, ~known) > 0)
        label = np.where(alone[place], len(runs) + np.arange(len(self)), place)
        _, first, cell = np.unique(label, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[cell.ravel()]

    def excluded(self, which: Any, reasons: Iterable[str]) -> list[Excluded]:
        """Some of the rows as runs that are not fitted, one for each reason."""
        part = self.take(which)
        names = {"num_params": "N", "num_tokens": "D", "flops": "C", "loss": "L", "compute_budget": "budget"}
        known = ({k: _known(getattr(part, v)[i]) for k, v in names.items()} for i in range(len(part)))
        told = zip(part.run_id, reasons, known, strict=True)
        return [Excluded(str(run), reason, **values) for run, reason, values in told]

    def thinned(self, most: int) -> Rows:
        """At most that many rows, evenly over compute and in order of it; the rows themselves where they are few."""
        if len(self) <= most:
            return self
        order = np.lexsort((self.N, self.C))
        return self.take(order[np.linspace(0, len(order) - 1, most).round().astype(int)])

    def with_others(self, others: Rows) -> Rows:
        """These rows and then the others."""
        return Rows(**{n: np.concatenate([getattr(self, n), getattr(others, n)]) for n in self.__slots__})

    def on_budget(self, law: ParametricLaw, rule: ComputeRule) -> Rows:
        """Runs moved along a law to exactly their budget's compute; runs of no budget stay as they are.

        Whole batches and figures read off leave runs a few percent off their budget, which moves their loss by as
        much as the noise of a careful sweep. The move is so short that the law's form does not matter.
        """
        inside = np.isfinite(self.budget)
        D = np.where(inside, rule.tokens(np.where(inside, self.budget, 1.0), self.N), self.D)
        L = self.L * law.loss(self.N, D) / law.loss(self.N, self.D)
        return replace(self, D=D, L=L, C=np.where(inside, self.budget, self.C))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) and value > 0 else None


def select_rows(runs: pd.DataFrame, *, n_convention: str = "num_params") -> tuple[Rows, list[Excluded]]:
    """Split a runs table into rows that can be fitted and rows that cannot.

    Args:
        runs: Columns num_params (or the convention's own), num_tokens, loss; optional run_id, flops, compute_budget,
            state, seed, unique_tokens.
        n_convention: The column that counts parameters.

    Raises:
        DataError: A column is missing, or holds what is no number.
        FitError: No row is left.
    """
    import pandas as pd

    if n_convention not in CONVENTIONS:
        raise DataError(f"n_convention={n_convention!r} is none of {', '.join(CONVENTIONS)}")
    missing = [name for name in (n_convention, "num_tokens", "loss") if name not in runs.columns]
    if missing:
        raise DataError(
            f"the runs table has no column {' or '.join(missing)}; it has {', '.join(map(str, runs.columns))}",
            hint="one row per run: num_params, num_tokens, loss; rename your columns to these",
        )

    def column(name: str) -> FloatArray:
        if name not in runs.columns:
            return np.full(len(runs), np.nan)
        try:
            return np.asarray(pd.to_numeric(runs[name]), float)
        except (ValueError, TypeError) as error:
            raise DataError(f"column {name} of the runs table is not numeric: {error}") from error

    N, D, L, C = column(n_convention), column("num_tokens"), column("loss"), column("flops")
    named = "run_id" in runs.columns
    run_id = np.asarray(runs["run_id"].astype(str) if named else [f"row {i + 1}" for i in range(len(runs))], object)
    C = np.where(np.isfinite(C) & (C > 0), C, SIX_ND.flops(N, D))
    budget, unique = column("compute_budget"), column("unique_tokens")
    rows = Rows(run_id=run_id, N=N, D=D, L=L, C=C, budget=budget, unique=unique, seed=column("seed"))

    reasons = np.full(len(runs), "", dtype=object)

    def mark(which: Any, reason: Any) -> None:
        free = np.asarray(which) & (reasons == "")
        reasons[free] = reason if isinstance(reason, str) else reason[free]

    if "state" in runs:
        state = runs["state"].fillna("").astype(str).str.strip().str.lower()
        mark(state == "diverged", "diverged")
        words = np.array([f"not final: its state is {s!r}" for s in state], dtype=object)
        mark(~state.isin(_FINISHED).to_numpy(), words)
    for name, values in ((n_convention, N), ("num_tokens", D), ("loss", L)):
        mark(np.isnan(values), f"{name} is missing")
        mark(~np.isfinite(values) | (values <= 0), f"{name} is not a positive finite number")
    mark(runs.duplicated().to_numpy(), "duplicate: the same row appears before")
    if named:
        # Several rows of one run are its training curve; only its end was trained with the whole schedule.
        order = np.lexsort((np.arange(len(runs)), -np.where(np.isfinite(D), D, -np.inf), reasons != ""))
        repeats = pd.Series(run_id[order]).duplicated().to_numpy()
        later = np.zeros(len(runs), bool)
        later[order] = repeats
        mark(later, "not final: a row of the same run has as many tokens or more")

    keep = reasons == ""
    excluded = rows.excluded(~keep, reasons[~keep])
    if not keep.any():
        said = "; ".join(sorted({e.reason for e in excluded})) or "the table is empty"
        raise FitError(f"none of the {len(runs)} rows can be fitted: {said}")
    return rows.take(keep), excluded
