"""A wish to stop is noted, kept until it is obeyed, and forgotten afterwards."""

from __future__ import annotations

import os
import signal
import threading

from flops_fit.train.stopping import StopWish


def test_a_signal_is_noted_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    wish = StopWish()
    for name in (signal.SIGTERM, signal.SIGINT):
        with wish.listening():
            assert not wish.is_asked
            os.kill(os.getpid(), name)
            assert wish.is_asked
            with wish.listening():
                assert wish.is_asked, "a block within goes on with it"
            assert wish.is_asked
        assert not wish.is_asked
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_another_handler_set_meanwhile_is_replaced() -> None:
    wish = StopWish()
    with wish.listening():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Lightning does
        wish.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert wish.is_asked


def test_other_threads_leave_the_signals_alone() -> None:
    before, wish = signal.getsignal(signal.SIGTERM), StopWish()

    def block() -> None:
        with wish.listening():
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
