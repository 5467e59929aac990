"""The table of a sweep fits where it is shown, takes no more lines than there are, and leaves none behind."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
from on_disk import experiments

from flops_fit.cli.live import LiveTable
from flops_fit.cli.terminal import cut, plain, say, width_of
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunState
from flops_fit.sweep.progress import Progress, RunProgress

MANY = experiments(tuple(1e12 * 2**i for i in range(40)))  # 200 runs


def progress(planned: list[Experiment], ended: int, running: int = 2) -> Progress:
    """A sweep that is worked through in order; every ninth run fails, with a message that would steer a terminal."""
    runs = []
    for i, e in enumerate(planned):
        if i < ended and i % 9 == 5:
            runs.append(RunProgress(experiment=e, state=RunState.FAILED, note="RuntimeError: \x1b[2J bad shape\nmore"))
        elif i < ended:
            runs.append(RunProgress(experiment=e, state=RunState.COMPLETED, done_flops=e.flops, loss=2.5))
        elif i < ended + running:
            half = RunProgress(
                experiment=e, state=RunState.RUNNING, done_flops=e.flops / 2, tokens_per_second=1e4, seconds_left=75.0
            )
            runs.append(half)
        else:
            runs.append(RunProgress(experiment=e, state=RunState.PENDING))
    return Progress(
        counts=dict(Counter(r.state for r in runs)),
        total_runs=len(runs),
        done_flops=sum(r.done_flops for r in runs),
        total_flops=sum(e.flops for e in planned),
        seconds_left=3700.0,
        runs=tuple(runs),
    )


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, Callable[[int, int], None], Callable[[], str]]]:
    """A terminal: its stream, what sets its size, and what has been written to it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main, side = pty.openpty()
    os.set_blocking(main, False)

    def resize(columns: int, lines: int) -> None:
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def written() -> str:
        parts = []
        while True:
            try:
                parts.append(os.read(main, 1 << 16))
            except BlockingIOError:
                return b"".join(parts).decode().replace("\r\n", "\n")

    resize(80, 24)
    with open(side, "w") as stream:
        yield stream, resize, written
    os.close(main)


def lines_of(text: str) -> list[str]:
    """What stands on the screen: without moves and colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", text).splitlines()


@pytest.mark.parametrize(("columns", "lines"), [(200, 50), (80, 24), (40, 12), (25, 6), (12, 3)])
def test_two_hundred_runs_fit_any_terminal(terminal, columns: int, lines: int) -> None:
    stream, resize, written = terminal
    resize(columns, lines)
    view = LiveTable("width", "tokens", stream)
    view.show(progress(MANY, 150))
    shown = lines_of(written())
    assert len(shown) < lines
    assert max(map(width_of, shown)) < columns
    view.close()


def test_what_runs_stands_first_and_the_sum_last(terminal) -> None:
    stream, _, written = terminal
    view = LiveTable("width", "tokens", stream)
    view.show(progress(MANY, 150))
    shown = lines_of(written())
    assert shown[0].split() == "state width N budget done loss tokens/s left".split()
    assert [line.split()[0] for line in shown[1:3]] == ["running", "running"]
    assert "1 min 15 s" in shown[1]
    assert sum(line.startswith("failed") for line in shown) == 3  # of seventeen: enough to see why
    assert sum("RuntimeError: ?[2J bad shape" in line for line in shown) == 3
    assert not any("more" in line for line in shown)
    assert "133 completed" in " ".join(shown)
    assert "about 1 h 01 min left" in " ".join(shown)
    view.close()


def test_each_look_takes_the_place_of_the_one_before(terminal) -> None:
    stream, resize, written = terminal
    view = LiveTable("width", "tokens", stream)
    view.show(progress(MANY, 10))
    before = lines_of(written())
    view.show(progress(MANY, 11))
    assert f"\x1b[{len(before)}A\r\x1b[J" in written()
    view.show(progress(MANY, 11))
    text = written()
    now = lines_of(text)
    resize(40, 24)  # the terminal breaks every line that is wider
    view.show(progress(MANY, 11))
    broken = sum(max(1, -(-len(line) // 40)) for line in now)
    assert f"\x1b[{broken}A\r\x1b[J" in written()
    view.close()


def test_chatter_stands_above_the_table(terminal) -> None:
    stream, _, written = terminal
    view = LiveTable("width", "tokens", stream)
    view.show(progress(MANY, 10))
    first = lines_of(written())
    say("something else", stream)
    text = written()
    assert text.startswith(f"\x1b[{len(first)}A\r\x1b[J")
    assert lines_of(text) == ["something else", *first]
    view.close()
    say("after", stream)
    assert written() == "after\n"


def test_colours_can_be_refused(terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, _, written = terminal
    view = LiveTable("width", "tokens", stream)
    view.show(progress(MANY, 10))
    assert "\x1b[36mrunning\x1b[0m" in written()
    monkeypatch.setenv("NO_COLOR", "1")
    view.show(progress(MANY, 10))
    assert "m" not in re.findall(r"\x1b\[[0-9;]*([A-Za-z])", written())
    view.close()


def test_where_there_is_no_terminal_every_end_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    view = LiveTable("width", "tokens", stream)
    planned = MANY[:12]
    for ended in (0, 0, 1, 1, 6):
        view.show(progress(planned, ended))
    view.close()
    told = stream.getvalue().splitlines()
    assert told[0].startswith("2 running, 10 pending; ")
    assert [line.split(",")[0] for line in told[1:]] == [
        *(f"completed {e.experiment_id}" for e in planned[:5]),
        f"failed {planned[5].experiment_id}",
    ]
    assert "loss 2.5000 (1 of 12 runs" in told[1]
    assert "\x1b" not in stream.getvalue()


def test_text_is_cut_by_the_columns_it_takes() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abc..."
    assert cut("abc", 2) == ".."
    assert width_of(cut("模型模型模型", 8)) <= 8
    assert plain("a\x1b[31mb\tc\nd") == "a?[31mb?c?d"
