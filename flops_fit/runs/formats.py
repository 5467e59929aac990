"""Files of every usual kind as cells: what the table says, before anybody asks what it means."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import pandas as pd

from flops_fit.errors import DataError

# A runs table has one row per run: a hundred thousand of them with fifty columns are a tenth of this.
MAX_BYTES = 1 << 29
MAX_LINE = 1 << 20
# Records may each have keys of their own; their union times their number must stay a table.
_MAX_CELLS = 50_000_000
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A table as written.

    Attributes:
        columns: Name to cells, all of one length: text from a delimited file, anything from JSON or a frame.
        places: Where each row is: its line in the file as an editor counts, its record, or its label in the frame.
        place: What ``places`` counts: "line", "record" or "row".
        name: The source, for messages.
        separator: What was between the cells of a delimited file.
    """

    columns: Mapping[str, Sequence[Any] | pd.Series]
    places: Sequence[Any]
    place: str
    name: str
    separator: str | None = None

    def where(self, positions: Sequence[int], most: int = 10) -> str:
        """Rows for a message: "lines 3, 7 and 12 more"."""
        some = ", ".join(str(self.places[i]) for i in positions[:most])
        rest = f" and {len(positions) - most} more" if len(positions) > most else ""
        return f"{self.place}{'s' if len(positions) > 1 else ''} {some}{rest}"


def read_cells(source: str | Path | pd.DataFrame | TextIO) -> Cells:
    """Read a table; the format is told by its content, never by its name.

    Delimited text (commas, tabs, semicolons or bars), a JSON document, one JSON object per line, parquet where
    pyarrow is installed, any of these gzipped; "-" is standard input. Nothing is ever unpickled.

    Raises:
        DataError: There is no such file, or it holds no table.
    """
    if isinstance(source, pd.DataFrame):
        return _from_frame(source, "the frame")
    name, data = _read_bytes(source)
    if data[:4] == b"PAR1":
        return _from_parquet(data, name)
    text = _decode(data, name)
    head = text.lstrip()[:1]
    if not head:
        raise DataError(f"{name} is empty", hint="a runs table needs a line of column names and one row per run")
    cells = _from_json(text, name) if head in "{[" else _from_delimited(text, name)
    if not cells.places:
        raise DataError(f"{name} has column names but no rows")
    return cells


def _read_bytes(source: str | Path | TextIO) -> tuple[str, bytes]:
    """The name and the content of a source, unzipped."""
    stream: IO[Any]
    try:
        if isinstance(source, (str, Path)) and str(source) != "-":
            name = str(source)
            with open(source, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        else:
            stream = sys.stdin if isinstance(source, (str, Path)) else source
            name = "standard input" if stream is sys.stdin else "the stream"
            content = getattr(stream, "buffer", stream).read(MAX_BYTES + 1)
            data = content.encode() if isinstance(content, str) else content
    except IsADirectoryError as error:
        raise DataError(f"{name} is a directory, not a table") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name[:200]!r} cannot be read: {reason}") from error
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as unzipped:
                data = unzipped.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name} is a damaged or cut gzip file: {error}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{name} holds more than {MAX_BYTES >> 20} MB; a runs table has one row per run")
    return name, data


def _decode(data: bytes, name: str) -> str:
    if data[:2] == b"PK":
        raise DataError(f"{name} is a ZIP or spreadsheet file, not text", hint="save the sheet as CSV")
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is binary or not in UTF-8 (byte {error.start})", hint="give a CSV, TSV or JSON file in UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{name} is binary, not text", hint="give a CSV, TSV, JSON or JSONL file")
    return text


def _from_frame(frame: pd.DataFrame, name: str) -> Cells:
    if any(label is not None for label in frame.index.names):
        with contextlib.suppress(ValueError):  # the frame has such a column already
            frame = frame.reset_index()
    names = [str(c) for c in frame.columns]
    _refuse_repeated(names, name)
    return Cells(
        columns={n: frame.iloc[:, i] for i, n in enumerate(names)}, places=list(frame.index), place="row", name=name
    )


def _from_parquet(data: bytes, name: str) -> Cells:
    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise DataError(f"{name} is a parquet file, which needs pyarrow", hint="pip install pyarrow") from error
    except Exception as error:  # pyarrow raises its own family, and it may not be installed
        raise DataError(f"{name} is a damaged parquet file: {error}") from error
    return _from_frame(frame, name)


def _refuse_repeated(names: Sequence[str], where: str) -> None:
    repeated = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise DataError(f"{where} has more than one column called {', '.join(map(repr, repeated[:5]))}")


def _lines(text: str, name: str) -> Iterator[str]:
    """Lines as an editor counts them, none of absurd length."""
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if len(line) > MAX_LINE:
            raise DataError(f"{name}, line {number} is longer than {MAX_LINE >> 20} MB; this is not a runs table")
        yield line


def _from_delimited(text: str, name: str) -> Cells:
    """Comma-, tab-, semicolon- or bar-separated text; leading lines that start with # are remarks."""
    remarks = 0
    for line in _lines(text, name):
        if line.strip() and not line.startswith("#"):
            break
        remarks += 1
    else:
        raise DataError(f"{name} holds remarks only")

    def width(separator: str) -> int:
        try:
            return len(next(csv.reader([line], delimiter=separator)))
        except csv.Error:
            return 0

    separator = max(_SEPARATORS, key=width)
    reader = csv.reader(_lines(text, name), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        header: list[str] = []
        rows, places, wrong = [], [], []
        for row in reader:
            if reader.line_num <= remarks or not any(row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
            elif len(row) == len(header) or (len(row) > len(header) and not any(row[len(header) :])):
                rows.append(row[: len(header)])
                places.append(reader.line_num)
            else:
                wrong.append(f"line {reader.line_num} has {len(row)} cells, the header {len(header)}")
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}", hint="is the file cut in mid-line?") from error
    _check_header(header, name, separator)
    if wrong:
        more = f"\nand {len(wrong) - 5} more lines" if len(wrong) > 5 else ""
        raise DataError(f"{name}: " + "\n".join(wrong[:5]) + more, hint="is the file cut in mid-line?")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=False)) if rows else {}
    # The index that pandas writes and the separator at the end of a line have no name.
    columns.pop("", None)
    return Cells(columns=columns, places=places, place="line", name=name, separator=separator)


def _check_header(header: Sequence[str], name: str, separator: str) -> None:
    named = [n for n in header if n]
    if len(named) < 2:
        raise DataError(
            f"{name} has one column only, {header[0][:60]!r}" if header else f"{name} has no header",
            hint="separate the cells with " + ", ".join(_SEPARATORS.values()),
        )

    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    if all(map(is_number, named)):
        raise DataError(
            f"{name} starts with numbers, not with column names: {separator.join(header)[:80]!r}",
            hint="add a first line such as num_params,num_tokens,loss",
        )
    _refuse_repeated(named, name)


def _from_json(text: str, name: str) -> Cells:
    """A JSON document (records, columns, or one list of records under any key), or one object per line."""
    text = text.strip("\ufeff")
    try:
        try:
            value, end = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip()))
            whole = not text[end:].strip()
        except ValueError as error:
            # The first value is broken. In a file of one object per line that is a line; else the document.
            raise DataError(f"{name} is not valid JSON: {error}", hint="is the file cut in mid-line?") from error
        return _from_document(value, name) if whole else _from_json_lines(text, name)
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply for a table") from error


def _from_json_lines(text: str, name: str) -> Cells:
    records, places = [], []
    for number, line in enumerate(_lines(text, name), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{name}, line {number} is not valid JSON: {error}", hint="is the file cut in mid-line?"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number} is not a JSON object of one run's values")
        records.append(record)
        places.append(number)
    return _from_records(records, places, "line", name)


def _from_document(value: Any, name: str) -> Cells:
    if isinstance(value, dict):
        tables = [v for v in value.values() if _is_records(v)]
        if len(tables) == 1:
            value = tables[0]
        elif value and all(isinstance(v, (list, dict)) for v in value.values()):
            # By column, as pandas writes: lists, or objects keyed by row.
            columns = {k: list(v.values()) if isinstance(v, dict) else v for k, v in value.items()}
            lengths = {k: len(v) for k, v in columns.items()}
            if len(set(lengths.values())) > 1:
                raise DataError(f"{name}: columns of different length: {lengths}"[:500])
            count = next(iter(lengths.values()))
            return Cells(columns=columns, places=range(1, count + 1), place="record", name=name)
        else:
            value = [value]
    if not _is_records(value):
        raise DataError(f"{name} holds no list of runs", hint='write [{"num_params": ..., "loss": ...}, ...]')
    return _from_records(value, range(1, len(value) + 1), "record", name)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict) for r in value)


def _from_records(records: list[dict[str, Any]], places: Sequence[int], place: str, name: str) -> Cells:
    names = list(dict.fromkeys(key for record in records for key in record))
    if len(names) * len(records) > _MAX_CELLS:
        raise DataError(f"{name} has {len(names)} different keys in {len(records)} records; this is not a runs table")
    columns = {n: [record.get(n) for record in records] for n in names}
    return Cells(columns=columns, places=places, place=place, name=name)
