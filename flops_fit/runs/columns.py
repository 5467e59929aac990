"""Which column of a stranger's table is what, and the numbers in its cells."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flops_fit.errors import DataError
from flops_fit.units import parse_count, parse_flops

# Spellings seen in published tables and exports, best first, as `squeeze` writes them. Planned values are not here on
# purpose: what was planned is not what was trained. Neither is "size", which is a width as often as a count.
ALIASES: dict[str, tuple[str, ...]] = {
    "run_id": ("runid", "experimentid", "runname", "run", "displayname", "modeltag", "name", "id"),
    "compute_budget": ("computebudget", "budget", "flopsbudget", "flopbudget", "isoflopbudget", "targetflops"),
    "size": ("size", "sizeparamvalue"),
    "num_params": (
        *("numparams", "params", "nparams", "parametercount", "paramcount", "numparameters", "parameters"),
        *("modelsize", "modelparams", "paramsactiveprecise", "activeparams", "paramsactive", "n"),
    ),
    "num_params_matmul": ("numparamsmatmul", "paramsmatmul", "matmulparams"),
    "num_params_total": ("numparamstotal", "paramstotal", "totalparams", "totalparameters"),
    "num_params_non_embedding": (
        *("numparamsnonembedding", "paramsnonembedding", "nonembeddingparams", "nonembedparams", "nonembparams"),
        "paramstransformer",
    ),
    "num_tokens": (
        *("numtokens", "tokens", "ntokens", "trainingtokens", "traintokens", "totaltokens", "tokenstrained"),
        *("tokensseen", "throughputtotaltokens", "numsamples", "samplesseen", "d"),
    ),
    "flops": (
        *("flops", "compute", "trainingflop", "trainingflops", "trainflops", "totalflops", "trainingcompute"),
        *("throughputtotalgflops", "totalgflops", "gflops", "achievedflops", "flop", "c"),
    ),
    "unique_tokens": ("uniquetokens", "datasettokens"),
    "loss": (
        *("loss", "finalloss", "valloss", "validloss", "validationloss", "evalloss", "cdvalloss"),
        *("evalpalomamacroloss", "macroloss", "testloss", "crossentropy", "valbpb", "evalbpb", "bpb"),
        *("trainloss", "trainingloss", "l"),
    ),
    "loss_unit": ("lossunit",),
    "seed": ("seed", "randomseed", "rngseed"),
    "state": ("state", "runstate", "status"),
}
COMPUTE = ("flops", "compute_budget")
CONVENTIONS = ("matmul", "total", "non_embedding")
COUNTS = ("num_params", *(f"num_params_{c}" for c in CONVENTIONS), "num_tokens", "unique_tokens")
# Two columns that could equally be one of these are a question to the user; elsewhere neither is taken.
_DECISIVE = {"num_params", "num_tokens", "flops", "loss"}
_WORDS = {"thousand": "k", "million": "M", "billion": "B", "trillion": "T"}
_LOSS_UNITS = {"nats": "nats", "nat": "nats", "bits": "bits", "bit": "bits", "bpb": "bpb", "bitsperbyte": "bpb"}
_BLANK = {"", "nan", "na", "n/a", "null", "none", "<na>", "-", "--"}


def squeeze(name: str) -> str:
    """A name without case, spaces, slashes and the like: "Training FLOP" and "training_flop" are one."""
    return re.sub(r"[\W_]+", "", name).lower()


def nearest(wanted: str, names: Iterable[str]) -> str | None:
    """The name closest to one that is not there."""
    spelled = {squeeze(n): n for n in names}
    targets = (squeeze(wanted), *ALIASES.get(wanted, ()))
    scored = [
        (difflib.SequenceMatcher(None, t, s).ratio(), n) for t in targets if len(t) > 1 for s, n in spelled.items() if s
    ]
    score, name = max(scored, default=(0.0, ""))
    return name if score >= 0.6 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of theirs, taken for one of ours.

    Attributes:
        name: Its name in the table.
        scale: What its numbers are multiplied with: 1e9 for GFLOPs or "tokens (B)".
        loss_unit: The unit its name states, for a loss.
        rivals: Other columns that could have been meant.
        plus: A column to be added to it.
    """

    name: str
    scale: float = 1.0
    loss_unit: str | None = None
    rivals: tuple[str, ...] = ()
    plus: str | None = None

    @property
    def told(self) -> str:
        """What was taken, for the reader."""
        return self.name if self.plus is None else f"{self.name} + {self.plus}"


def find_columns(names: Sequence[str], chosen: Mapping[str, str]) -> dict[str, Column]:
    """Take columns for the canonical ones: as chosen, else by alias.

    A name is compared whole, then without a unit in brackets, then by its part after the last slash.

    Args:
        names: The table's columns.
        chosen: Canonical name to the name in the table, where the user said so.

    Raises:
        DataError: A chosen name does not exist, or two columns are equally good for a decisive quantity.
    """
    problems: list[str] = []
    found: dict[str, Column] = {}
    for ours, theirs in chosen.items():
        if ours not in ALIASES:
            near = difflib.get_close_matches(ours, ALIASES, n=1)
            problems.append(
                f"no quantity is called {ours!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; the quantities are {', '.join(ALIASES)}")
            )
        elif theirs not in names:
            near_name = nearest(theirs, names)
            problems.append(
                f"{ours}={theirs}: the table has no column {theirs!r}"
                + (f"; did you mean {near_name!r}?" if near_name else f"; its columns are {listed(names)}")
            )
        else:
            found[ours] = _described(ours, theirs)
    free = [n for n in names if n not in chosen.values()]
    bare = {n: _without_unit(n)[0] for n in free}
    spellings = [
        {n: squeeze(n) for n in free},
        {n: squeeze(bare[n]) for n in free},
        {n: squeeze(bare[n].rpartition("/")[2]) for n in free},
    ]
    for ours, aliases in ALIASES.items():
        for spelling in [] if ours in chosen else spellings:
            hits = {a: [n for n in free if spelling[n] == a] for a in aliases}
            ranked = [same for same in hits.values() if same]
            if not ranked:
                continue
            if len(ranked[0]) > 1 and ours in _DECISIVE:
                problems.append(f"which column is {ours}: {listed(ranked[0])}? Say --map {ours}=NAME")
            if len(ranked[0]) == 1:
                rivals = tuple(n for same in ranked[1:] for n in same)
                found[ours] = _described(ours, ranked[0][0], rivals)
            break
    if problems:
        raise DataError("\n".join(problems), hint=f"columns seen: {listed(names)}")
    heads = [n for n in free if squeeze(n) == "paramslmhead"]
    if heads and "num_params_matmul" not in found and "num_params_non_embedding" in found:
        # The output head is a matrix product, the embedding look-up is none.
        found["num_params_matmul"] = replace(found["num_params_non_embedding"], plus=heads[0])
    return found


def _without_unit(name: str) -> tuple[str, str]:
    """ "Tokens (B)" is "Tokens" and "B"."""
    match = re.fullmatch(r"([^()\[\]]*)[(\[]([^()\[\]]*)[)\]]\s*", name)
    return (match[1], match[2].strip()) if match else (name, "")


def _described(ours: str, theirs: str, rivals: tuple[str, ...] = ()) -> Column:
    bare, unit = _without_unit(theirs)
    if ours == "loss":
        stated = "bpb" if "bpb" in squeeze(theirs) else loss_unit_of(unit)
        return Column(name=theirs, loss_unit=stated, rivals=rivals)
    scale = 1.0
    if ours in COUNTS or ours in COMPUTE:
        if ours in COMPUTE and "gflop" in squeeze(bare):
            scale = 1e9
        short = _WORDS.get(unit.lower().rstrip("s"), unit)
        with contextlib.suppress(ValueError):  # "(total)" is a remark, not a unit
            scale *= (parse_count if ours in COUNTS else parse_flops)(f"1 {short}" if short[:1].isalpha() else short)
    return Column(name=theirs, scale=scale, rivals=rivals)


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names for a message, quoted and cut to a readable number."""
    all_ = [repr(n if len(n := str(name)) <= 60 else n[:57] + "...") for name in names]
    return ", ".join(all_[:most]) + (f" and {len(all_) - most} more" if len(all_) > most else "")


def loss_unit_of(text: str) -> str | None:
    """nats, bits or bpb, however it is written; None for anything else."""
    return _LOSS_UNITS.get(re.sub("(per)?(token|sample)$", "", squeeze(text)))


@dataclass(frozen=True, slots=True)
class Numbers:
    """The cells of a column as numbers.

    Attributes:
        values: One per cell; NaN for a blank or a cell that is no number.
        bad: Position of each cell that is no number, and what is wrong with it.
    """

    values: NDArray[np.float64]
    bad: dict[int, str]


def read_numbers(cells: Sequence[Any] | pd.Series, ours: str, *, decimal_comma: bool = False) -> Numbers:
    """Cells as numbers; those with a unit or thousands separators one by one, and each spelling once.

    Args:
        cells: Text, or numbers of any kind.
        ours: The canonical column they are for: counts and compute may carry units.
        decimal_comma: "2,31" is 2.31, as in the semicolon-separated files of half of Europe.
    """
    if isinstance(cells, pd.Series) and pd.api.types.is_numeric_dtype(cells.dtype):
        if not pd.api.types.is_bool_dtype(cells.dtype) and not pd.api.types.is_complex_dtype(cells.dtype):
            return Numbers(cells.to_numpy(dtype=float, na_value=np.nan), {})
    else:
        try:
            if all(type(c) is str for c in cells):
                return Numbers(np.fromiter(map(float, cells), float, len(cells)), {})
        except ValueError:
            pass
    known: dict[Any, float | str] = {}
    values = np.full(len(cells), np.nan)
    bad: dict[int, str] = {}
    for i, cell in enumerate(cells):
        key = cell if type(cell) is str else (type(cell), repr(cell))
        if key not in known:
            known[key] = _number(cell, ours, decimal_comma)
        if isinstance(number := known[key], str):
            bad[i] = number
        else:
            values[i] = number
    return Numbers(values, bad)


def _number(cell: Any, ours: str, decimal_comma: bool) -> float | str:
    """One cell as a number, or what is wrong with it."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return math.nan
    if isinstance(cell, (int, float, np.integer, np.floating, Decimal)) and not isinstance(cell, bool):
        try:
            return float(cell)
        except (OverflowError, ValueError):
            return "too large for a number"
    if not isinstance(cell, str):
        return f"{_shown(cell)} is not a number"
    text = cell.strip()
    if text.lower() in _BLANK:
        return math.nan
    if len(text) > 64:
        return f"{_shown(text)} is not a number"
    if "," in text:
        if decimal_comma:
            text = text.replace(",", ".") if text.count(",") == 1 and "." not in text else ""
        elif not re.match(r"[+-]?\d{1,3}(,\d{3})+(?![\d,])", text) or ours == "loss":
            text = ""
        if not text:
            return f"{_shown(cell)} is not a number: write decimals with a point and no thousands separators"
        text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    try:
        if ours in COUNTS:
            return parse_count(text)
        if ours in COMPUTE:
            return parse_flops(text)
    except ValueError as error:
        return str(error)
    return f"{_shown(text)} is not a number"


def _shown(cell: object) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "..."
