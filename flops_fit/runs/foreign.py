"""Anybody's table of training runs, read with care and with every decision told."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
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
)
from flops_fit.runs.formats import Cells, read_cells
from flops_fit.runs.rows import Table, require_enough, table_of_runs, unfinished
from flops_fit.units import format_count

LossUnit = Literal["nats", "bits", "bpb"]
Convention = Literal["total", "matmul", "non_embedding"]

# What a spreadsheet would run when it opens a table of ours that carries the cell on.
_FORMULA = re.compile(r"\s*(=|[+\-@][^\s\d.][^|!(]*[|!(])")


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
    Rows are repeated when run, N, D, loss and seed agree; where runs have no names, when every column does, or N, D,
    seed and a loss of more than four digits. Runs of different names that agree in N, D and loss are kept, and
    mentioned. Checkpoints are rows with one run_id, N, seed and budget and different D.

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
    if bytes_per_token is not None and not 0 < bytes_per_token < np.inf:
        raise DataError(f"bytes_per_token={bytes_per_token} must be a positive number")
    if n_convention is not None and n_convention not in get_args(Convention):
        raise DataError(f"n_convention={n_convention!r} is not one of {', '.join(get_args(Convention))}")
    cells = read_cells(source)
    _refuse_formulas(cells)
    taken = find_columns(list(cells.columns), columns or {})
    notes = ["numbers are read with decimal commas, as the semicolons suggest"] if cells.separator == ";" else []
    taken = _choose_size(taken, cells, n_convention, notes)
    _require(taken, cells)
    for rival in taken["loss"].rivals:
        notes.append(
            f"loss is read from {taken['loss'].name!r}, not from {rival!r}; say --map {quote(f'loss={rival}')} for that"
        )

    states = cells.columns[taken["state"].name] if "state" in taken else [None] * len(cells.places)
    finished = np.array([reason is None for reason in unfinished(states)])
    numbers = _numbers(cells, taken, finished, columns or {}, notes)
    unit = _convert_loss(numbers, cells, taken, loss_unit, bytes_per_token, notes)
    places = [f"{cells.place} {p}" for p in cells.places]
    ours = {"run_id": _run_ids(cells, taken, places)} | numbers | {"loss_unit": unit}
    frame = pd.DataFrame(ours | _carried(cells, taken, set(ours)), index=range(len(places)))
    frame = frame[[c for c in ALIASES if c in frame] + [c for c in frame if c not in ALIASES]]
    mapping = {name: taken[name].told for name in ALIASES if name in taken}
    table = table_of_runs(frame, states, places, named="run_id" in taken, mapping=mapping, notes=notes)
    require_enough(table, cells.name)
    return table


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
    """Refuse a table without a loss or without two of N, D and C."""
    sizes: list[str] = [q for q in ("num_params", "num_tokens") if q in taken]
    sizes += ["flops"] if any(c in taken for c in COMPUTE) else []
    problems = [] if "loss" in taken else ["no column of losses"]
    missing = [] if "loss" in taken else ["loss"]
    if len(sizes) < 2:
        has = f"only {sizes[0]}" if sizes else "none"
        problems.append(f"{has} of num_params, num_tokens and flops, where two are needed")
        missing += [q for q in ("num_params", "num_tokens", "flops") if q not in sizes]
    if not problems:
        return
    used = {column.name for column in taken.values()}
    near = {q: name for q in missing if (name := nearest(q, [n for n in cells.columns if n not in used]))}
    lines = [f"{cells.name} has {' and '.join(problems)}", f"columns seen: {listed(cells.columns)}"]
    lines += [f"is {name!r} the {q}? Then say --map {quote(f'{q}={name}')}" for q, name in near.items()]
    hint = None if near else f"name it with --map {missing[0]}=NAME, columns={{'{missing[0]}': 'NAME'}} in Python"
    raise DataError("\n".join(lines), hint=hint)


def _numbers(
    cells: Cells,
    taken: dict[str, Column],
    finished: NDArray[np.bool_],
    chosen: Mapping[str, str],
    notes: list[str],
) -> dict[str, NDArray[np.float64]]:
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
            if column.plus is not None:
                values[ours] = values[ours] + read_numbers(cells.columns[column.plus], ours).values * column.scale
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
    _complete(values, finished, cells, notes)
    return values


def _titled(ours: str, column: Column) -> str:
    return ours if ours == column.name else f"{ours} (column {column.name!r})"


def _complete(
    values: dict[str, NDArray[np.float64]],
    finished: NDArray[np.bool_],
    cells: Cells,
    notes: list[str],
) -> None:
    """Give every run N, D and C, by C = 6ND where one is not in the table."""
    compute = next((c for c in COMPUTE if c in values), None)
    with np.errstate(all="ignore"):
        if "num_tokens" not in values:
            values["num_tokens"] = values[compute or "flops"] / (6 * values["num_params"])
            notes.append(f"num_tokens = {compute} / (6 num_params); the table has no tokens")
        elif "num_params" not in values:
            values["num_params"] = values[compute or "flops"] / (6 * values["num_tokens"])
            notes.append(f"num_params = {compute} / (6 num_tokens); the table has no parameters")
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
    if "compute_budget" in values:
        _compare_budgets(values, finished, notes)
    for ours in ("num_params", "num_tokens"):
        largest = values[ours][finished].max(initial=0)
        if 0 < largest < 1000:
            notes.append(f"{ours} is at most {format_count(largest)}: is the column in millions or billions?")


def _compare_budgets(values: dict[str, NDArray[np.float64]], finished: NDArray[np.bool_], notes: list[str]) -> None:
    """Say where budgets are not the compute of their runs: then they are labels, counted otherwise."""
    with np.errstate(invalid="ignore", divide="ignore"):  # a ratio may be beyond all numbers; its logarithm is not
        logs = (np.log(values["compute_budget"]) - np.log(values["flops"]))[finished]
    logs = logs[np.isfinite(logs)]
    if len(logs) and abs(np.median(logs)) > 0.1:
        ratio = 10 ** (np.median(logs) / np.log(10)) if abs(np.median(logs)) < 700 else np.inf
        notes.append(f"compute_budget is about {ratio:.2g} times the flops of its runs: counted otherwise?")


def _convert_loss(
    values: dict[str, NDArray[np.float64]],
    cells: Cells,
    taken: dict[str, Column],
    asked: LossUnit | None,
    bytes_per_token: float | None,
    notes: list[str],
) -> str:
    """Turn the losses into nats where that is possible; returns the unit they end in."""
    stated = taken["loss"].loss_unit
    if "loss_unit" in taken and asked is None:
        written = {str(c).strip() for c in cells.columns[taken["loss_unit"].name]}
        units = {loss_unit_of(w) for w in written}
        if len(units) > 1 or None in units:
            raise DataError(
                f"{cells.name}: losses in {listed(sorted(written), 5)}; one of nats, bits and bpb is needed",
                hint="say --loss-unit, or split the table",
            )
        stated = next(iter(units))
    unit = asked or stated or "nats"
    if unit == "bits":
        values["loss"] = values["loss"] * np.log(2)
        notes.append("loss turned from bits into nats: times ln 2")
        return "nats"
    if unit == "bpb" and bytes_per_token is not None:
        values["loss"] = values["loss"] * np.log(2) * bytes_per_token
        notes.append(f"loss turned from bits per byte into nats per token: times ln 2 times {bytes_per_token:g}")
        return "nats"
    if unit == "bpb":
        notes.append("loss is in bits per byte, and so is E")
    return unit


def _run_ids(cells: Cells, taken: dict[str, Column], places: list[str]) -> list[str]:
    """Names of the runs; the place in the table where there is none."""
    if "run_id" not in taken:
        return places
    given = ("" if c is None or c is pd.NA or c != c else str(c).strip() for c in cells.columns[taken["run_id"].name])
    return [name or place for name, place in zip(given, places, strict=True)]


def _carried(cells: Cells, taken: dict[str, Column], ours: set[str]) -> dict[str, Any]:
    """Every other column as it is; text that is all numbers as numbers."""
    used = {column.name for name, column in taken.items() if name in ours}
    renamed = {column.name: name for name, column in taken.items() if name not in ours}
    reserved = {*ALIASES, "place", "reason"} - set(renamed.values())
    carried: dict[str, Any] = {}
    for theirs, column in cells.columns.items():
        if theirs not in used:
            name = renamed.get(theirs, theirs)
            # A canonical name that another column has taken.
            carried[f"original_{name}" if name in reserved else name] = _plain(column)
    return carried


def _plain(column: Sequence[Any] | pd.Series) -> Any:
    if isinstance(column, pd.Series):
        return column.array
    try:
        return np.fromiter((float(c) if c not in ("", None) else np.nan for c in column), float, len(column))
    except (ValueError, TypeError, OverflowError):
        return [json.dumps(c) if isinstance(c, (list, dict)) else c if c != "" else None for c in column]
