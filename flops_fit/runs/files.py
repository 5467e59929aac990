"""Files that are whole or absent: atomic writes, an append-only CSV log, a lock."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flops_fit.errors import DataError, RunError

SCHEMA_VERSION = 1


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that, at any moment, it holds the old content or the new: same folder, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write one JSON object, with the schema version, atomically."""
    write_atomic(path, json.dumps({"schema_version": SCHEMA_VERSION} | values, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DataError: The file is not a JSON object, or of a newer schema.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="restore the file, or delete it") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, not a JSON object")
    if values.get("schema_version", 0) > SCHEMA_VERSION:
        raise DataError(f"{path} was written by a newer flops-fit", hint="upgrade flops-fit to read it")
    return values


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class CsvLog:
    """An append-only CSV file with a fixed header; every row reaches the disk when it is added.

    Args:
        path: The file.
        columns: Its columns; the schema version is added as the last one.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, [*columns, "schema_version"]

    def append(self, row: dict[str, Any]) -> None:
        """Add one row; missing values stay empty."""
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row | {"schema_version": SCHEMA_VERSION})

    def rewind(self, step: int, required: str | None = None) -> None:
        """Drop, atomically, what was written after a step: a resumed run writes it again.

        Args:
            step: The last one to keep; the first column holds it.
            required: Rows from the first on that lacks this column are dropped too.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = lines[:1] if lines and lines[0].endswith("\n") else []
        for line in lines[1:]:
            cells = line.rstrip("\n").split(",")
            if not line.endswith("\n") or not cells[0].isdigit() or int(cells[0]) > step:
                break
            if required is not None and not cells[self.columns.index(required)]:
                break
            kept.append(line)
        write_atomic(self.path, "".join(kept))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics file.

    Raises:
        DataError: The file is missing or cut short.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    rows = list(csv.DictReader(text.splitlines()))
    if not rows or not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
        raise DataError(
            f"{path} is cut short", hint=f"delete {path.parent} and run the sweep again: only this run is trained"
        )
    return rows


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for the block; the system releases it when the process ends, however it ends.

    Raises:
        RunError: Another process holds it.
    """
    import fcntl

    with open(path, "w") as file:
        for attempt in range(10):  # whoever only looks whether it is locked holds it for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if attempt == 9:
                    hint = "wait for it to end, or stop it"
                    raise RunError(f"{what} is in use by another process", hint=hint) from None
                time.sleep(0.02)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock."""
    import fcntl

    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
