"""Anybody's table of training runs, read with care and with every decision told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flops_fit.errors import DataError
from flops_fit.runs.columns import (
    ALIASES,
    COMPUTE,
    CONVENTIONS,
    COUNTS,
    Column,
    find_columns,
    listed,
    loss_unit_of,
    nearest,
    read_numbers,
    squeeze,
)
from flops_fit.runs.formats import Cells, read_cells
from flops_fit.units import format_count

LossUnit = Literal["nats", "bits", "bpb"]
Convention = Literal["total", "matmul", "non_embedding"]

_FINISHED = {"completed", "complete", "finished", "done", "success", "succeeded", "ok"}
_MIN_RUNS = 5
_REPEATED = "the same run twice"
# What a spreadsheet would run when it opens a table of ours that carries the cell on.
_FORMULA = re.compile(r"\s*(=|[+\-@][^\s\d.][^|!(]*[|!(])")
# What C / 6ND is when somebody counted otherwise.
_FACTORS = {
    3.0: "three times 6ND",
    1 / 3: "2ND: the forward pass alone",
    2 / 3: "4ND: the backward pass alone",
    4 / 3: "8ND: the forward pass recomputed in the backward pass",
    1 / 6: "ND, without the factor 6",
    1e-9: "GFLOPs read as FLOPs",
    1e-12: "TFLOPs read as FLOPs",
    1e-15: "PFLOPs read as FLOPs",
    1e-18: "EFLOPs read as FLOPs",
    1 / 86400e15: "PF-days read as FLOPs",
    1e9: "N or D in billions, or FLOPs read as GFLOPs",
    1e6: "N or D in millions",
    1e15: "N in millions and D in billions",
    1e18: "N and D in billions",
    float(np.log(2)): "ln 2",
    1 / float(np.log(2)): "1 / ln 2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Finished runs under canonical names.

    Attributes:
        frame: One row per run: run_id, num_params, num_tokens, flops, loss, loss_unit, whichever of the other canonical
            columns the source had, then the source's other columns unchanged.
        mapping: Canonical name to the source's, for every column that was taken.
        notes: What was assumed or noticed, one sentence each.
        left_out: Rows that are not runs of their own, as in ``frame``, with a column ``reason``.
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
        return list(zip(self.left_out["run_id"].astype(str), self.left_out["reason"].astype(str), strict=True))

    def split(self, column: str) -> dict[str, Table]:
        """One table per value of a column, in order of appearance.

        A group may be too small for a fit, which only the fit can say. Rows left out as repeated are looked at anew:
        a run listed in two groups belongs to both.

        Raises:
            DataError: There is no such column.
        """
        name = column if column in self.frame.columns else self.mapping_of(column)
        if name is None:
            near = nearest(column, self.frame.columns)
            raise DataError(
                f"no column {column!r} to group by" + (f"; did you mean {near!r}?" if near else ""),
                hint=f"columns: {listed(self.frame.columns)}",
            )
        rows = pd.concat([self.frame, self.left_out]) if len(self.left_out) else self.frame.assign(reason=None)
        if "reason" not in rows:
            rows = rows.assign(reason=None)
        tables = {}
        for value, group in rows.groupby(name, sort=False, dropna=False):
            again = group["reason"].isna() | group["reason"].astype(str).str.endswith(_REPEATED)
            frame, repeated = _without_repeats(group[again].drop(columns="reason"))
            left_out = pd.concat([group[~again], repeated]) if len(repeated) else group[~again]
            if len(frame):
                tables[_label(value)] = replace(self, frame=frame.reset_index(drop=True), left_out=left_out)
        return tables

    def mapping_of(self, theirs: str) -> str | None:
        """The canonical name that a column of the source was taken for."""
        return next((ours for ours, name in self.mapping.items() if name == theirs), None)


def _label(value: object) -> str:
    return "(none)" if value is None or value is pd.NA or value != value else str(value)


def read_table(
    source: str | Path | pd.DataFrame | TextIO,
    *,
    columns: Mapping[str, str] | None = None,
    loss_unit: LossUnit | None = None,
    n_convention: Convention | None = None,
    bytes_per_token: float | None = None,
) -> Table:
    """Read anybody's runs.

    Needed are a loss and two of parameters, tokens and compute; the third follows from C = 6ND. Column names are
    matched without case, spaces, slashes and underscores against the spellings in published tables; cells may carry
    units ("1.3B", "20B tokens", "10 PF-days") and so may column names ("Tokens (B)").

    What is an error and what is left out: a row that says of itself that it did not finish (a state other than
    completed, finished, done, success, ok), a row that repeats another, and an earlier checkpoint of a run whose later
    one is there are left out, each with its reason. Everything else that cannot be a run is an error that names every
    such row, because only its owner can say what was meant: text, blanks, NaN, infinity, zero or less as N, D, C or
    loss. A diverged run is therefore left out where the table has a state that says so, and an error where it does not.
    Rows are repeated when run, N, D, loss and seed agree, or everything but the name, or N, D, seed and a
    loss of more than four digits (another name for the same run). Checkpoints are rows with one run_id, N, seed and
    budget and different D.

    Args:
        source: A path, "-" for standard input, an open text file, or a frame. The format is told by the content.
        columns: Canonical name to the source's, where the aliases do not find it or find the wrong one.
        loss_unit: Unit of the loss; bits become nats. By default what the table says, else nats.
        n_convention: Which count of parameters to fit, where the source has several.
        bytes_per_token: Turns bits per byte into nats per token; without it bits per byte stay as they are.

    Returns:
        At least five runs of at least two sizes and two token counts.

    Raises:
        DataError: The source cannot be read, lacks a column, or holds rows that cannot be runs; all problems at once.
    """
    if loss_unit is not None and loss_unit not in get_args(LossUnit):
        raise DataError(f"loss_unit={loss_unit!r} is not one of {', '.join(get_args(LossUnit))}")
    if n_convention is not None and n_convention not in get_args(Convention):
        raise DataError(f"n_convention={n_convention!r} is not one of {', '.join(get_args(Convention))}")
    cells = read_cells(source)
    _refuse_formulas(cells)
    taken = find_columns(list(cells.columns), columns or {})
    notes = [f"cells are separated by {cells.separator!r}, numbers have decimal commas"] if cells.separator == ";" else []
    taken = _choose_size(taken, cells, n_convention, notes)
    _require(taken, cells)
    for rival in taken["loss"].rivals:
        notes.append(f"loss is read from {taken['loss'].name!r}, not from {rival!r}; say --map loss={rival} for that one")

    reasons = _unfinished(cells, taken)
    finished = np.array([r is None for r in reasons])
    frame = _numbers(cells, taken, finished, columns or {}, notes)
    unit = _convert_loss(frame, cells, taken, loss_unit, bytes_per_token, notes)
    frame.insert(0, "run_id", _run_ids(cells, taken))
    frame["loss_unit"] = unit
    frame = pd.concat([frame, _carried(cells, taken, set(frame.columns))], axis=1)
    frame = frame[[c for c in ALIASES if c in frame] + [c for c in frame if c not in ALIASES]]

    left_out = [frame[~finished].assign(reason=[r for r in reasons if r is not None])]
    frame, repeated = _without_repeats(frame[finished])
    left_out.append(repeated)
    if "run_id" in taken:
        frame, earlier = _last_checkpoints(frame)
        left_out.append(earlier)
    if parts := [part for part in left_out if len(part)]:
        out = pd.concat(parts)
        places = [f"{cells.place} {cells.places[i]}" for i in out.index]
        out["reason"] = [f"{p}: {r}" for p, r in zip(places, out["reason"], strict=True)]
    else:
        out = pd.DataFrame()
    _require_enough(frame, out, cells)
    mapping = {ours: taken[ours].name for ours in ALIASES if ours in taken}
    return Table(frame=frame.reset_index(drop=True), mapping=mapping, notes=notes, left_out=out.reset_index(drop=True))


def _refuse_formulas(cells: Cells) -> None:
    problems = [f"column name {n[:60]!r}" for n in cells.columns if _FORMULA.match(n)]
    for name, column in cells.columns.items():
        if isinstance(column, pd.Series) and pd.api.types.is_numeric_dtype(column.dtype):
            continue
        rows = [i for i, c in enumerate(column) if isinstance(c, str) and c[:1] in "=+-@ \t" and _FORMULA.match(c)]
        if rows:
            problems.append(f"{name!r} in {cells.where(rows)}: {str(list(column)[rows[0]])[:40]!r}")
    if problems:
        raise DataError(
            f"{cells.name} holds cells that a spreadsheet would run as formulas: " + "; ".join(problems[:5]),
            hint="replace them by values",
        )


def _choose_size(
    taken: dict[str, Column], cells: Cells, convention: Convention | None, notes: list[str]
) -> dict[str, Column]:
    """Settle which count of parameters is num_params."""
    present = [c for c in CONVENTIONS if f"num_params_{c}" in taken]
    if convention is not None:
        if convention not in present:
            raise DataError(
                f"{cells.name} has no column of {convention} parameters"
                + (f"; it has {', '.join(present)}" if present else ""),
                hint=f"say --map num_params_{convention}=NAME; columns: {listed(cells.columns)}",
            )
        return taken | {"num_params": taken[f"num_params_{convention}"]}
    if "num_params" in taken or not present:
        return taken
    # The papers count everything, unless they say otherwise.
    chosen = "total" if "total" in present else present[0]
    if len(present) > 1:
        notes.append(f"num_params is the {chosen} count; --n-convention chooses another of {', '.join(present)}")
    return taken | {"num_params": taken[f"num_params_{chosen}"]}


def _require(taken: dict[str, Column], cells: Cells) -> None:
    compute = [c for c in COMPUTE if c in taken]
    have = [q for q in ("num_params", "num_tokens") if q in taken] + compute[:1]
    if "loss" in taken and len(have) >= 2:
        return
    missing = [] if "loss" in taken else ["loss"]
    if len(have) < 2:
        missing += [q for q in ("num_params", "num_tokens", *([] if compute else ["flops"])) if q not in taken]
    used = {c.name for c in taken.values()}
    free = [n for n in cells.columns if n not in used]
    near = {q: name for q in missing if (name := nearest(q, free))}
    lines = [f"{cells.name} has no column for {' and '.join(missing[:1] if 'loss' in missing else [])}".rstrip()]
    if "loss" not in taken and len(have) >= 2:
        lines = [f"{cells.name} has no column of losses"]
    elif "loss" in taken:
        lines = [f"{cells.name} needs two of num_params, num_tokens and flops; it has {have[0] if have else 'none'}"]
    else:
        lines = [f"{cells.name} has no column of losses and not two of num_params, num_tokens and flops"]
    lines.append(f"columns seen: {listed(cells.columns)}")
    lines += [f"{q}: did you mean {name!r}?" for q, name in near.items()]
    example = next(iter(near.items()), (missing[0], "NAME"))
    raise DataError("\n".join(lines), hint=f"name it: --map {example[0]}={example[1]}, columns={{...}} in Python")


def _unfinished(cells: Cells, taken: dict[str, Column]) -> list[str | None]:
    """Per row, why it is no finished run; None where it is, or where its state is blank."""
    if "state" not in taken:
        return [None] * len(cells.places)
    verdicts: dict[str, str | None] = {}

    def verdict(state: object) -> str | None:
        text = "" if state is None or state is pd.NA or state != state else str(state).strip()
        if text not in verdicts:
            verdicts[text] = f"its state is {text[:40]!r}" if text and squeeze(text) not in _FINISHED else None
        return verdicts[text]

    return [verdict(state) for state in cells.columns[taken["state"].name]]


def _numbers(
    cells: Cells,
    taken: dict[str, Column],
    finished: NDArray[np.bool_],
    chosen: Mapping[str, str],
    notes: list[str],
) -> pd.DataFrame:
    """The numeric columns, checked where the run finished; N, D and C complete."""
    given = [q for q in (*COUNTS, *COMPUTE, "loss", "seed") if q in taken]
    compute = next((c for c in COMPUTE if c in taken), None)
    both = "num_params" in taken and "num_tokens" in taken
    needed = {"num_params", "num_tokens", "loss"} | (set() if both or compute is None else {compute})
    problems: list[str] = []
    values: dict[str, NDArray[np.float64]] = {}
    for ours in given:
        column = taken[ours]
        numbers = read_numbers(cells.columns[column.name], ours, decimal_comma=cells.separator == ";")
        bad = [i for i in numbers.bad if finished[i]]
        if bad and ours not in needed and (ours == "seed" or ours not in chosen):
            # An alias led astray: it is carried along under its own name instead.
            if ours != "seed":
                notes.append(f"{column.name!r} is not taken for {ours}: {numbers.bad[bad[0]]}")
                del taken[ours]
            continue
        with np.errstate(over="ignore"):
            values[ours] = numbers.values * column.scale
        if bad:
            problems.append(f"{_titled(ours, column)}: {numbers.bad[bad[0]]} ({cells.where(bad)})")
        if ours == "seed":
            continue
        blank = np.isnan(values[ours]) & finished
        blank[list(numbers.bad)] = False
        faults = {
            "missing or NaN": blank if ours in needed else np.zeros_like(blank),
            "infinite": np.isinf(values[ours]) & finished,
            "zero or negative": (values[ours] <= 0) & finished & np.isfinite(values[ours]),
        }
        for fault, where in faults.items():
            if where.any():
                problems.append(f"{_titled(ours, column)}: {fault} in {cells.where(list(np.flatnonzero(where)))}")
    if problems:
        raise DataError(
            f"{cells.name}: " + "\n".join(problems),
            hint="correct or delete these rows; a state column with 'diverged' or 'failed' leaves a run out",
        )
    _complete(values, compute, finished, cells, notes)
    order = [q for q in ALIASES if q in values]
    return pd.DataFrame({q: values[q] for q in order})


def _titled(ours: str, column: Column) -> str:
    return ours if ours == column.name else f"{ours} (column {column.name!r})"


def _complete(
    values: dict[str, NDArray[np.float64]],
    compute: str | None,
    finished: NDArray[np.bool_],
    cells: Cells,
    notes: list[str],
) -> None:
    """Give every run N, D and C, by C = 6ND where one is not in the table."""
    with np.errstate(all="ignore"):
        if "num_tokens" not in values:
            values["num_tokens"] = values[compute or "flops"] / (6 * values["num_params"])
            notes.append(f"num_tokens = {compute} / (6 num_params); the table has no tokens")
        elif "num_params" not in values:
            values["num_params"] = values[compute or "flops"] / (6 * values["num_tokens"])
            notes.append(f"num_params = {compute} / (6 num_tokens); the table has no parameters")
        elif compute is not None:
            _compare_with_6nd(values, compute, finished, notes)
        by_rule = 6 * values["num_params"] * values["num_tokens"]
        if "flops" not in values:
            values["flops"] = by_rule
            notes.append("flops = 6 num_params num_tokens; the table has no measured compute")
        elif (blank := np.isnan(values["flops"]) & finished).any():
            values["flops"] = np.where(np.isnan(values["flops"]), by_rule, values["flops"])
            notes.append(f"flops = 6 num_params num_tokens in {blank.sum()} rows without measured compute")
    for ours in ("num_params", "num_tokens", "flops"):
        sound = np.isfinite(values[ours]) & (values[ours] > 0)
        if (where := ~sound & finished).any():
            raise DataError(f"{cells.name}: {ours} is beyond all numbers in {cells.where(list(np.flatnonzero(where)))}")
    for ours in ("num_params", "num_tokens"):
        largest = values[ours][finished].max(initial=0)
        if 0 < largest < 1000:
            notes.append(f"{ours} is at most {format_count(largest)}: is the column in millions or billions?")


def _compare_with_6nd(
    values: dict[str, NDArray[np.float64]], compute: str, finished: NDArray[np.bool_], notes: list[str]
) -> None:
    """Name a constant factor between the stated compute and 6ND: it is a convention or a slip, and shifts every answer."""
    ratio = values[compute] / (6 * values["num_params"] * values["num_tokens"])
    ratio = ratio[finished & np.isfinite(ratio) & (ratio > 0)]
    if not len(ratio):
        return
    middle, spread = float(np.median(ratio)), float(np.ptp(np.quantile(np.log(ratio), [0.05, 0.95])))
    if abs(np.log(middle)) < 0.02:
        return
    if spread < 0.05:
        name = next((f" ({what})" for f, what in _FACTORS.items() if abs(np.log(middle / f)) < 0.02), "")
        notes.append(f"{compute} is {middle:.4g} times 6ND in every run{name}")
    elif spread > 0:
        low, high = np.exp(np.quantile(np.log(ratio), [0.05, 0.95]))
        notes.append(f"{compute} is {low:.3g} to {high:.3g} times 6ND: it was counted otherwise than by 6ND")


def _convert_loss(
    frame: pd.DataFrame,
    cells: Cells,
    taken: dict[str, Column],
    asked: LossUnit | None,
    bytes_per_token: float | None,
    notes: list[str],
) -> str:
    """Turn the losses into nats where that is possible; returns the unit they end in."""
    stated = taken["loss"].loss_unit
    if "loss_unit" in taken:
        written = {str(c).strip() for c in cells.columns[taken["loss_unit"].name]}
        units = {loss_unit_of(w) for w in written}
        if asked is None and (len(units) > 1 or None in units):
            raise DataError(
                f"{cells.name}: losses in {listed(sorted(written), 5)}; one of nats, bits and bpb is needed",
                hint="say --loss-unit, or split the table",
            )
        stated = next(iter(units))
    unit = asked or stated or "nats"
    if stated and asked and stated != asked:
        notes.append(f"the table says {stated}; read as {asked}, as asked")
    if unit == "bits":
        frame["loss"] *= np.log(2)
        notes.append("loss turned from bits into nats, times ln 2")
        return "nats"
    if unit == "bpb" and bytes_per_token is not None:
        if not 0 < bytes_per_token < np.inf:
            raise DataError(f"bytes_per_token={bytes_per_token} must be a positive number")
        frame["loss"] *= np.log(2) * bytes_per_token
        notes.append(f"loss turned from bits per byte into nats per token, times ln 2 times {bytes_per_token:g}")
        return "nats"
    if unit == "bpb":
        notes.append("loss is in bits per byte, and so is E")
    return unit


def _run_ids(cells: Cells, taken: dict[str, Column]) -> list[str]:
    """Names of the runs; the place in the table where there is none."""
    places = [f"{cells.place} {p}" for p in cells.places]
    if "run_id" not in taken:
        return places
    given = ("" if c is None or c is pd.NA or c != c else str(c).strip() for c in cells.columns[taken["run_id"].name])
    return [name or place for name, place in zip(given, places, strict=True)]


def _carried(cells: Cells, taken: dict[str, Column], done: set[str]) -> pd.DataFrame:
    """Every column that is not a number of ours, as it is; text that is all numbers as numbers."""
    used = {column.name for ours, column in taken.items() if ours in done}
    names = {column.name: ours for ours, column in taken.items() if ours not in done}
    carried: dict[str, Any] = {}
    for name, column in cells.columns.items():
        if name in used:
            continue
        ours = names.get(name, name)
        # A column that has a canonical name but was passed over for another gives way.
        key = f"original_{ours}" if ours in done else ours
        carried[key] = np.asarray(column, dtype=object) if ours == "state" else _plain(column)
    return pd.DataFrame(carried, index=range(len(cells.places)))


def _plain(column: Sequence[Any] | pd.Series) -> Any:
    if isinstance(column, pd.Series):
        return column.array
    try:
        return np.fromiter((float(c) if c not in ("", None) else np.nan for c in column), float, len(column))
    except (ValueError, TypeError, OverflowError):
        return [json.dumps(c) if isinstance(c, (list, dict)) else c if c != "" else None for c in column]


def _without_repeats(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the first of equal runs; the others with the reason."""
    key = [c for c in ("num_params", "num_tokens", "loss", "seed") if c in frame]
    hashable = frame.select_dtypes(exclude="object").columns.union(key)
    with np.errstate(all="ignore"):
        loss = frame["loss"].to_numpy(float)
        step = 10.0 ** (np.floor(np.log10(np.abs(loss))) - 3)
        # Two runs may well share 2.31; sixteen equal digits are one run under two names.
        long = np.abs(loss / step - np.round(loss / step)) > 1e-6
    again = frame.duplicated(key) & long
    again |= frame.duplicated([*key, "run_id"])
    again |= frame.astype({c: str for c in frame.columns.difference(hashable)}).duplicated(
        [c for c in frame if c != "run_id"]
    )
    return frame[~again], frame[again].assign(reason=_REPEATED)


def _last_checkpoints(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keep the last row of every run: an earlier one is a loss before the learning rate came down."""
    key = ["run_id", "num_params", *(c for c in ("seed", "compute_budget") if c in frame)]
    last = frame.groupby(key, dropna=False, sort=False)["num_tokens"].transform("max")
    early = frame["num_tokens"] < last
    reasons = [f"a checkpoint before the end at {format_count(t)} tokens" for t in last[early]]
    return frame[~early], frame[early].assign(reason=reasons)


def _require_enough(frame: pd.DataFrame, left_out: pd.DataFrame, cells: Cells) -> None:
    found = f"{cells.name} has {len(frame)} run{'' if len(frame) == 1 else 's'}"
    if len(left_out):
        kinds = left_out["reason"].str.partition(": ")[2].value_counts()
        found += f" ({len(left_out)} rows left out: " + "; ".join(f"{n} x {r}" for r, n in kinds.head(3).items()) + ")"
    if len(frame) < _MIN_RUNS:
        raise DataError(f"{found}; a scaling law needs at least {_MIN_RUNS}, and better 20")
    for ours, what in (("num_params", "size"), ("num_tokens", "number of tokens")):
        values = frame[ours]
        if values.max() <= values.min() * (1 + 1e-9):
            raise DataError(
                f"{found}, all of one {what}, {format_count(values.iloc[0])}; a law in N and D needs both to vary"
            )
