"""Which rows of a table are runs: not the unfinished, the repeated, or the earlier checkpoints of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from flops_fit.errors import DataError
from flops_fit.runs.columns import ALIASES, listed, nearest, squeeze
from flops_fit.units import format_count

MIN_RUNS = 5
_FINISHED = {"completed", "complete", "finished", "done", "success", "succeeded", "ok", "simulated"}
_REPEATED = "the same run as another row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Finished runs under canonical names.

    Attributes:
        frame: One row per run: run_id (all different), num_params, num_tokens, flops, loss, loss_unit, whichever of the
            other canonical columns the source had, then the source's other columns unchanged.
        mapping: Canonical name to the source's, for every column that was taken.
        notes: What was assumed or noticed, one sentence each.
        left_out: Rows that are not runs of their own: the columns of ``frame``, ``place`` in the source, ``reason``.
    """

    frame: pd.DataFrame
    mapping: dict[str, str]
    notes: list[str] = field(default_factory=list)
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """Run and reason of every row left out."""
        if self.left_out.empty:
            return []
        columns = (self.left_out[c] for c in ("run_id", "place", "reason"))
        return [(run, f"{place}: {reason}") for run, place, reason in zip(*columns, strict=True)]

    def further(self, run_ids: Iterable[str]) -> dict[str, list[Any]]:
        """What the source says of some runs besides what was taken, by column."""
        some = self.frame.set_index("run_id").loc[list(run_ids)]
        return {str(name): column.tolist() for name, column in some.items() if name not in ALIASES}

    def split(self, column: str) -> dict[str, Table]:
        """One table per value of a column, in order of appearance.

        A group may be too small for a fit, which only the fit can say. Rows left out as repeated are looked at anew:
        a run listed in two groups belongs to both.

        Args:
            column: A column of ``frame``, or a name in the source.

        Raises:
            DataError: There is no such column.
        """
        names = list(self.frame.columns)
        source = {theirs: ours for ours, theirs in self.mapping.items()}
        name = column if column in names else source.get(column)
        if name is None:
            near = nearest(column, names)
            raise DataError(
                f"no column {column!r} to group by" + (f"; did you mean {near!r}?" if near else ""),
                hint=f"columns: {listed(names)}",
            )
        rows = self.frame.assign(place=None, reason=None).astype({"place": object, "reason": object})
        if len(self.left_out):
            rows = pd.concat([rows, self.left_out], ignore_index=True)
        tables = {}
        for value, group in rows.groupby(name, sort=False, dropna=False):
            runs = group.loc[group["reason"].isna() | (group["reason"] == _REPEATED), names]
            runs = runs[~repeats(runs, named="run_id" in self.mapping)]
            if len(runs):
                others = group.drop(runs.index)
                label = "(none)" if pd.isna(value) else str(value)
                tables[label] = replace(self, frame=runs.reset_index(drop=True), left_out=others.reset_index(drop=True))
        return tables


def table_of_runs(
    frame: pd.DataFrame,
    states: Sequence[Any] | pd.Series,
    places: Sequence[str],
    *,
    named: bool,
    mapping: dict[str, str],
    notes: list[str],
) -> Table:
    """Keep the rows that are runs of their own, and the others with the reason.

    Args:
        frame: All rows under canonical names.
        states: What each row says of its state, as ``unfinished`` reads it.
        places: Where each row is in the source.
        named: Whether ``run_id`` comes from the source, so that rows can be checkpoints of one run.
        mapping: As in ``Table``.
        notes: As in ``Table``.
    """
    reason = pd.Series(unfinished(states), index=frame.index, dtype=object)
    runs = frame[reason.isna()]
    reason[runs.index[repeats(runs, named=named)]] = _REPEATED
    if named:
        runs = frame[reason.isna()]
        early = runs[before_the_end(runs)]
        reason[early.index] = [f"a checkpoint at {format_count(t)} tokens, before the end" for t in early["num_tokens"]]
    kept = reason.isna()
    place = pd.Series(list(places), index=frame.index, dtype=object)
    left_out = frame[~kept].assign(place=place[~kept], reason=reason[~kept])
    runs = frame[kept].reset_index(drop=True)
    if "state" in runs:
        # One word for done, whatever theirs was; that a run was simulated stays visible.
        runs["state"] = ["simulated" if squeeze(str(s)) == "simulated" else "completed" for s in runs["state"]]
    if named and (again := runs.duplicated(_outcome(runs)).sum()):
        notes = [*notes, f"{again} runs have N, D and loss of another run under another name; they are kept as runs"]
    if (shared := runs["run_id"].duplicated(keep=False)).any():
        notes = [*notes, f"{shared.sum()} runs share their names; their place in the table tells them apart"]
        runs["run_id"] = runs["run_id"].where(~shared, runs["run_id"] + " (" + place[kept].reset_index(drop=True) + ")")
    return Table(frame=runs, mapping=mapping, notes=notes, left_out=left_out.reset_index(drop=True))


def unfinished(states: Sequence[Any] | pd.Series) -> list[str | None]:
    """Per row, why it is no finished run; None where it is one, or where nothing is said."""
    verdicts: dict[str, str | None] = {}

    def verdict(state: object) -> str | None:
        text = "" if state is None or state is pd.NA or state != state else str(state).strip()
        if text not in verdicts:
            verdicts[text] = f"its state is {text[:40]!r}" if text and squeeze(text) not in _FINISHED else None
        return verdicts[text]

    return [verdict(state) for state in states]


def repeats(frame: pd.DataFrame, *, named: bool) -> pd.Series:
    """Rows that are a run again: all but the first.

    With names, rows of one name and equal N, D, loss and seed: another name is taken at its word. Without, rows equal
    in every column, or in N, D, seed and a loss of more than four digits: two runs may well share 2.31, sixteen equal
    digits are one run listed twice.
    """
    key = _outcome(frame)
    if named:
        return frame.duplicated(["run_id", *key])
    loss = frame["loss"].to_numpy(float)
    with np.errstate(all="ignore"):  # a loss of 1e-320 has no fourth digit
        digits = loss / 10.0 ** (np.floor(np.log10(loss)) - 3)
        long = np.abs(digits - np.round(digits)) > 1e-6
    # Cells of any kind, compared as they print.
    return frame.drop(columns="run_id").astype(str).duplicated() | (frame.duplicated(key) & long)


def _outcome(frame: pd.DataFrame) -> list[str]:
    return [c for c in ("num_params", "num_tokens", "loss", "seed") if c in frame]


def before_the_end(frame: pd.DataFrame) -> pd.Series:
    """Rows whose run has a row with more tokens: losses from before the learning rate came down."""
    key = ["run_id", "num_params", *(c for c in ("seed", "compute_budget") if c in frame)]
    return frame["num_tokens"] < frame.groupby(key, dropna=False, sort=False)["num_tokens"].transform("max")


def require_enough(table: Table, name: str) -> None:
    """Refuse what cannot determine any law.

    Raises:
        DataError: Fewer than five runs, or all of one size or one number of tokens.
    """
    frame, reasons = table.frame, table.left_out.get("reason")
    found = f"{name} has {len(frame)} run{'' if len(frame) == 1 else 's'}"
    if reasons is not None and len(reasons):
        kinds = "; ".join(f"{reason} ({count}x)" for reason, count in reasons.value_counts().head(3).items())
        found += f", {len(reasons)} rows left out: {kinds}"
    if len(frame) < MIN_RUNS:
        raise DataError(f"{found}; a scaling law needs at least {MIN_RUNS}, better 20")
    for ours, what in (("num_params", "size"), ("num_tokens", "number of tokens")):
        values = frame[ours]
        if values.max() <= values.min() * (1 + 1e-9):
            raise DataError(
                f"{found}, all of one {what}, {format_count(values.iloc[0])}; a law in N and D needs both to vary"
            )
