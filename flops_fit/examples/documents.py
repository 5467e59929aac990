"""Texts, a document at a time: from text, JSONL and parquet files, folders of them, and from a hub of data sets."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flops_fit import DataError

# What a folder is searched for; a file that is named is read as text where its suffix says nothing else.
TEXT, JSONL, PARQUET = (".txt", ".text", ".md"), (".jsonl", ".ndjson"), (".parquet",)
# A text without separators is cut at the first blank line beyond this length, at the latest at twice that [characters]:
# long against a window, and many in a book, so that the share that is held out is nearly the one asked for.
_PART = 2**14
_EXTRA = "pip install 'flops-fit[examples]'"


def input_files(where: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that a path, a folder (searched to the bottom) or several of them name, in an order of their own.

    Raises:
        DataError: One is not there, or a folder holds nothing that can be read.
    """
    files: list[Path] = []
    for given in [where] if isinstance(where, (str, Path)) else where:
        path = Path(given).expanduser()
        known = TEXT + JSONL + PARQUET
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
            if not inside:
                raise DataError(
                    f"the folder {path} holds no text", hint=f"it is searched for files ending in {', '.join(known)}"
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(
                f"there is no file or folder {path} (in {Path.cwd()})",
                hint="path is a text, JSONL or parquet file, a folder of them, or a list of these",
            )
    return list(dict.fromkeys(files))


def read_documents(files: Sequence[Path], field: str, separator: str) -> Iterator[str]:
    """Every document that is not empty.

    Args:
        files: What ``input_files`` found.
        field: Of JSONL and parquet files, what holds the text.
        separator: What stands between two documents of a text file; a text without any is cut at blank lines into
            parts of about 16 thousand characters.

    Raises:
        DataError: A file cannot be read, is empty, is not UTF-8, or has no such field.
    """
    for path in files:
        suffix = path.suffix.lower()
        found = False
        try:
            if suffix in JSONL:
                documents = _from_jsonl(path, field)
            elif suffix in PARQUET:
                documents = _from_parquet(path, field)
            else:
                documents = _from_text(path, separator)
            for document in documents:
                if document.strip():
                    found = True
                    yield document
        except UnicodeDecodeError:
            raise DataError(
                f"{path} is not UTF-8: byte {_first_bad_byte(path):,} cannot be read",
                hint=f"convert it, for example with `iconv -f latin1 -t utf8 {path.name}`",
            ) from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        if not found:
            raise DataError(f"{path} holds no text", hint="leave it out, or write it again")


def _from_text(path: Path, separator: str) -> Iterator[str]:
    parts: list[str] = []
    length = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        while line := file.readline(_PART):  # a text may be one line
            if separator in line:
                before, *others = line.split(separator)
                yield "".join([*parts, before])
                yield from others[:-1]
                parts, length = [others[-1]], len(others[-1])
                continue
            parts.append(line)
            length += len(line)
            if length >= 2 * _PART or (length >= _PART and not line.strip()):
                yield "".join(parts)
                parts, length = [], 0
    yield "".join(parts)


def _from_jsonl(path: Path, field: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: no JSON: {error.msg}", hint="write one object on each line"
                ) from None
            yield _text_of(row, field, f"{path}, line {number}")


def _text_of(row: Any, field: str, where: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__}, not an object with the field {field!r}")
    if field not in row:
        fields = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"{where}: there is no field {field!r}; there is {fields}", hint="name the text's field: field=..."
        )
    if not isinstance(row[field], str):
        raise DataError(f"{where}: the field {field!r} holds {type(row[field]).__name__}, not text")
    return str(row[field])


def _from_parquet(path: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path} cannot be read without pyarrow", hint=_EXTRA) from None
    try:
        with ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise DataError(
                    f"{path}: there is no field {field!r}; there is {', '.join(columns) or 'none'}",
                    hint="name the text's field: field=...",
                )
            for batch in file.iter_batches(columns=[field]):
                for text in batch.column(0).to_pylist():
                    yield _text_of({field: text or ""}, field, str(path))
    except ArrowException as error:
        raise DataError(f"{path} is no parquet file, or not a whole one: {error}") from None


def _first_bad_byte(path: Path) -> int:
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return done - pending + error.start
            done += len(block)
    return done  # it ends within a character


def hub_documents(name: str, split: str, field: str) -> Iterator[str]:
    """Every document of a data set of the Hugging Face hub, or of a folder that ``datasets`` can load.

    Raises:
        DataError: ``datasets`` is not installed, the data set cannot be loaded, or it has no such field.
    """
    offline = "or give path=...: a text, JSONL or parquet file, or a folder of them, and nothing is downloaded"
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} is read through the package datasets, which is not installed", hint=f"{_EXTRA}, {offline}"
        ) from None
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # its own errors, those of the hub's client, and those of the network
        said = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"the data set {name} (split {split}) cannot be loaded: {type(error).__name__}: {said}",
            hint=f"check its name and the network, {offline}",
        ) from error
    columns = list(loaded.column_names)
    if field not in columns:
        raise DataError(
            f"{name}: there is no field {field!r}; there is {', '.join(columns)}",
            hint="name the text's field: field=...",
        )
    for row in loaded.select_columns([field]):
        document = _text_of(row, field, name)
        if document.strip():
            yield document
