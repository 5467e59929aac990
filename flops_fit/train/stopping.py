"""The wish to stop: SIGTERM from a scheduler and SIGINT from a keyboard are noted, and obeyed between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopWish:
    """Whether this process was asked to stop.

    Attributes:
        is_asked: Since it began to listen.
    """

    def __init__(self) -> None:
        self.is_asked = False

    def _ask(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.is_asked = True

    def listen(self) -> None:
        """Take note of the signals from now on, whoever has handled them before; only the main thread may say so."""
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                signal.signal(name, self._ask)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of the signals for the block; within another such block, and after ``listen``, go on with it."""
        before = {name: signal.getsignal(name) for name in _SIGNALS}
        is_first = before[signal.SIGTERM] != self._ask
        self.is_asked = self.is_asked and not is_first
        self.listen()
        try:
            yield
        finally:
            self.is_asked = self.is_asked and not is_first
            if threading.current_thread() is threading.main_thread():
                for name, handler in before.items():
                    signal.signal(name, handler)


# Signals come to a process, not to a part of it.
STOP = StopWish()
