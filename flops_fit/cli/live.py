"""How far a sweep is, while it goes: one table on a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

from flops_fit.cli.table import MOST_NOTES, foremost, notes, painted, summary, table, went_wrong
from flops_fit.cli.terminal import Block, cut, has_colour, is_terminal, plain, say, size_of, width_of
from flops_fit.redaction import redacted
from flops_fit.runs.directory import RunState
from flops_fit.units import format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flops_fit.runs.directory import RunDirectory
    from flops_fit.sweep.progress import Progress, RunProgress

# Of a sweep of two hundred runs, whoever looks wants the running ones and the sum.
_MOST_ROWS = 12
_ENDED = (RunState.COMPLETED, RunState.FAILED, RunState.DIVERGED, RunState.INTERRUPTED)


class LiveTable:
    """Shows progress as it comes.

    Args:
        size_param: Name of the size parameter.
        unit: What the data is counted in.
        stream: Where to; standard error by default.
    """

    def __init__(self, size_param: str, unit: str, stream: TextIO | None = None) -> None:
        self._size_param, self._unit = size_param, unit
        self._stream = stream or sys.stderr
        self._block = Block(self._stream) if is_terminal(self._stream) else None
        self._before: dict[str, RunState] | None = None
        self._ended: list[str] = []
        self._share = 0.0
        self._last: tuple[RunProgress, ...] = ()

    def show(self, progress: Progress) -> None:
        """Say how far the sweep is."""
        is_first, changed = self._before is None, self._changed(progress)
        self._last = progress.runs
        if self._block is not None:
            self._block.show(self._lines(progress))
            return
        for run in changed:
            if run.state in _ENDED:
                say(_told(run, progress, self._unit), self._stream)
        share = progress.done_flops / progress.total_flops
        if is_first or (not changed and share - self._share >= 0.1):  # a long run ends once only
            say(summary(progress), self._stream)
        if is_first or changed or share - self._share >= 0.1:
            self._share = share

    @property
    def last(self) -> tuple[RunProgress, ...]:
        """The runs as they were shown last."""
        return self._last

    def leave(self, progress: Progress) -> None:
        """Say where the sweep stands when it is left before its end."""
        if self._block is not None:
            self._block.show(self._lines(progress))
        else:
            say(summary(progress), self._stream)

    def close(self) -> None:
        """Leave the table as it is."""
        if self._block is not None:
            self._block.close()

    def _changed(self, progress: Progress) -> list[RunProgress]:
        """Runs in another state than before; at the first look, none."""
        states = {run.experiment.experiment_id: run.state for run in progress.runs}
        before = states if self._before is None else self._before
        changed = [run for run in progress.runs if before.get(run.experiment.experiment_id) is not run.state]
        self._before = states
        self._ended += [run.experiment.experiment_id for run in changed if run.state is RunState.COMPLETED]
        return changed

    def _lines(self, progress: Progress) -> list[tuple[str, int]]:
        """As many lines as the terminal has room for, each with the columns it takes."""
        columns, rows = size_of(self._stream)
        width = columns - 1  # the last column would break the line on some terminals
        told = notes(went_wrong(progress.runs))[: max(0, min(MOST_NOTES, rows - 6))]
        last = summary(progress)
        told += textwrap.wrap(last, width)
        room = min(_MOST_ROWS, rows - 2 - len(told))
        shown = foremost(progress.runs, room, self._ended)
        colours = has_colour(self._stream)
        lines = table(shown, size_param=self._size_param, unit=self._unit, width=width, live=True) if shown else []
        out = [(painted(text, colour) if colours else text, width_of(text)) for text, colour in lines]
        out += [(cut(text, width), min(width, width_of(text))) for text in told]
        return out[: max(1, rows - 1)]


class LogFollower:
    """Shows what runs write to their logs, as they write it.

    Args:
        runs: Whose; what is there already is not shown.
    """

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        self._places = {run: run.log.stat().st_size if run.log.exists() else 0 for run in runs}

    def tell(self) -> None:
        """Say every line that is new."""
        for run, place in self._places.items():
            if not run.log.exists():
                continue
            with open(run.log, "rb") as file:
                file.seek(place)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._places[run] = place + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                say(f"{run.run_id}: {plain(line)}")


def _told(run: RunProgress, progress: Progress, unit: str) -> str:
    """The end of one run, in a line of a log."""
    parts = [f"{run.state.value} {run.experiment.experiment_id}"]
    if run.loss is not None and run.state is RunState.COMPLETED:
        parts.append(f"loss {run.loss:.4f}")
    if run.tokens_per_second is not None:
        parts.append(f"{format_count(run.tokens_per_second)} {unit}/s")
    if run.note:
        parts.append(plain(redacted(run.note.partition("\n")[0])))
    completed = progress.counts.get(RunState.COMPLETED, 0)
    share = progress.done_flops / progress.total_flops
    rest = f"{completed} of {progress.total_runs} runs, {share:.0%} of the FLOPs"
    left = f", about {format_duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return f"{', '.join(parts)} ({rest}{left})"
