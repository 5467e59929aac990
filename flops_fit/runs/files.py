"""Files that are whole or absent: atomic writes, an append-only CSV log, a lock."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flops_fit.errors import DataError, RunError

SCHEMA_VERSION = 1
TEMPORARY = ".tmp"


@contextlib.contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well: same folder, fsync, rename.

    At any moment ``path`` holds the old content or the new; where the old is kept, it or ``previous`` does.

    Args:
        path: What is replaced.
        previous: Where the old content goes; None to let go of it.

    Raises:
        RunError: The disk is full, read-only or broken; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except Exception as error:
        cause = disk_error(error)
        if cause is None:
            raise
        raise cannot_write(path, cause) from error
    finally:
        with contextlib.suppress(OSError):  # on a disk that has turned read-only, even this cannot be done
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file, atomically; see ``replacing``."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Have what was written to a file on the disk itself, where a power cut does not reach it."""
    if path.exists():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def disk_error(error: BaseException | None) -> OSError | None:
    """The system's complaint behind an error: torch, for one, hides it behind another of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def cannot_write(path: Path, error: OSError) -> RunError:
    """What is to be said about a file that the disk does not take."""
    remedy = "make room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make its folder writable"
    return RunError(
        f"{path} cannot be written: {error.strerror}",
        hint=f"{remedy}, then run the same command again, with --retry-failed for runs that failed by it",
    )


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

    def append(self, *rows: dict[str, Any]) -> None:
        """Add rows, all of them or none; missing values stay empty.

        Raises:
            RunError: The disk does not take it; the file is as it was.
        """
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, self.columns, lineterminator="\n")
        try:
            with open(self.path, "ab", buffering=0) as file:
                size = file.tell()
                if size == 0:
                    writer.writeheader()
                writer.writerows(row | {"schema_version": SCHEMA_VERSION} for row in rows)
                left = lines.getvalue().encode()
                try:
                    while left:  # a disk that is nearly full takes a part
                        left = left[file.write(left) :]
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise cannot_write(self.path, error) from error

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


def last_value(path: Path, column: str) -> float:
    """The last number in a column of a metrics file, read from its end; a row that is being written does not count.

    Raises:
        DataError: There is none.
        OSError: There is no such file.
    """
    text = path.read_text(errors="replace")
    names, *rows = text[: text.rfind("\n") + 1].splitlines() or [""]
    at = names.split(",").index(column) if column in names.split(",") else -1
    for row in reversed(rows if at >= 0 else ()):
        cells = row.split(",")
        if len(cells) > at and cells[at]:
            return float(cells[at])
    raise DataError(f"{path} has no {column}")


_held: set[int] = set()


def _let_go() -> None:
    """A forked process, of a data loader for example, would keep a lock that its killed parent held."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock for the block; the system releases it when the process ends, however it ends.

    The file says who holds it. It stays when the lock is released: deleting it would let two processes lock two files
    of one name.

    Raises:
        RunError: Another process holds it, or the disk does not take it.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    _held.add(handle)
    try:
        _lock(handle, path, what)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(holder).encode())
        yield
    finally:
        if handle in _held:  # not in a process forked meanwhile
            _held.remove(handle)
            os.close(handle)


def _lock(handle: int, path: Path, what: str) -> None:
    import fcntl

    for attempt in range(10):  # whoever only looks whether it is locked holds it for an instant
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == 9:
                hint = "wait for it to end, or stop it"
                raise RunError(f"{what} is in use by {_holder(path)}", hint=hint) from None
            time.sleep(0.02)
        except OSError as error:
            raise RunError(
                f"{path} cannot be locked: {error.strerror}",
                hint="use a file system with locks, or have this one mounted with them",
            ) from None


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


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
