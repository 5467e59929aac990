"""What stands on a terminal: how wide it is, whether it takes colours, a block of lines that is rewritten in place."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TextIO

_COLOURS = {"green": 32, "yellow": 33, "red": 31, "cyan": 36}
_USUAL_SIZE = os.terminal_size((80, 24))

_standing: list[Block] = []


def is_terminal(stream: TextIO) -> bool:
    """Whether lines can be rewritten there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Whether colours are wanted there; https://no-color.org says how they are refused."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def size_of(stream: TextIO) -> os.terminal_size:
    """Columns and lines, now: a window may change at any time."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return _USUAL_SIZE
    # Some terminals do not say.
    return os.terminal_size((size.columns or _USUAL_SIZE.columns, size.lines or _USUAL_SIZE.lines))


def coloured(text: str, colour: str | None) -> str:
    """Text in a colour; as it is where there is none."""
    return text if colour is None else f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def plain(text: str) -> str:
    """Text without what would steer a terminal: file names and error messages are other people's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def width_of(text: str) -> int:
    """Columns that a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """As much of a text as there is room for; dots say that there was more."""
    if width_of(text) <= width:
        return text
    dots = "..."[: max(0, width)]
    while text and width_of(text) > width - len(dots):
        text = text[:-1]
    return text + dots


class Block:
    """Lines at the end of a terminal that are replaced by each ``show``.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._widths: list[int] = []

    def show(self, lines: Sequence[tuple[str, int]]) -> None:
        """Replace what stands there.

        Args:
            lines: Each with the columns it takes, which colours do not.
        """
        text = self._erasing() + "".join(f"{line}\n" for line, _ in lines)
        self._lines, self._widths = [line for line, _ in lines], [width for _, width in lines]
        if self not in _standing:
            _standing.append(self)
        self._write(text)

    def erase(self) -> None:
        """Take the lines away, until they are shown again."""
        self._write(self._erasing())

    def restore(self) -> None:
        """Show the same lines again, below what was written meanwhile."""
        self._write("".join(f"{line}\n" for line in self._lines))

    def close(self) -> None:
        """Leave the lines where they are."""
        if self in _standing:
            _standing.remove(self)
        self._lines, self._widths = [], []

    def _erasing(self) -> str:
        if not self._lines:
            return ""
        # A window that has become narrower has broken lines in two.
        columns = size_of(self._stream).columns
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        return f"\x1b[{rows}A\r\x1b[J"

    def _write(self, text: str) -> None:
        if text:
            with contextlib.suppress(OSError, ValueError):  # a terminal that is gone is no reason to stop training
                self._stream.write(text)
                self._stream.flush()


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Make room for lines of chatter above what stands on the terminal."""
    for block in _standing:
        block.erase()
    try:
        yield
    finally:
        for block in _standing:
            block.restore()


def say(text: str, stream: TextIO | None = None) -> None:
    """Chatter, which goes to standard error: results alone go to standard output."""
    with aside():
        print(text, file=stream or sys.stderr, flush=True)


class Chatter(logging.Handler):
    """What the library logs, as chatter."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        with contextlib.suppress(Exception):  # a log line is no reason to fail
            say(self.format(record))
