"""The runs of a sweep as a table that fits where it is shown, and the one line that sums them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flops_fit.cli.terminal import coloured, cut, plain, width_of
from flops_fit.redaction import redacted
from flops_fit.runs.directory import RunState
from flops_fit.sweep.progress import Progress, RunProgress
from flops_fit.units import format_count, format_duration, format_flops

# What people look for first stands first.
_ORDER = ("running", "failed", "diverged", "interrupted", "completed", "pending")
_COLOURS = {"running": "cyan", "failed": "red", "diverged": "red", "interrupted": "yellow", "completed": "green"}
_GAP = 2

# Runs that went wrong are told with their reason; where many did, these are enough to see why.
MOST_NOTES = 3

_CELLS: dict[str, Callable[[RunProgress], str]] = {
    "run": lambda r: r.experiment.experiment_id,
    "size": lambda r: str(r.experiment.size_param_value),
    "N": lambda r: format_count(r.experiment.num_params),
    "budget": lambda r: format_flops(r.experiment.compute_budget),
    "done": lambda r: f"{r.done_flops / r.experiment.flops:.0%}" if r.done_flops else "",
    "loss": lambda r: "" if r.loss is None else f"{r.loss:.4f}",
    "tokens/s": lambda r: "" if r.tokens_per_second is None else format_count(r.tokens_per_second),
    "left": lambda r: "" if r.seconds_left is None else format_duration(r.seconds_left),
}
_LEFT_ALIGNED = ("state", "run")

# Where there is no room for all columns, these go, in this order: a run's name says its budget and its size already.
_DROPPED = ("N", "budget", "size", "tokens/s", "done", "left", "loss")
_DROPPED_LIVE = ("run", "N", "tokens/s", "budget", "left", "done")


def table(
    runs: Sequence[RunProgress], *, size_param: str, unit: str, width: int | None = None, live: bool = False
) -> list[tuple[str, str | None]]:
    """A header and a line for each run.

    Args:
        runs: What to show.
        size_param: Heads the column of sizes.
        unit: What the data is counted in.
        width: Columns that there are; None for as many as it takes.
        live: For a look in passing, which needs no names of runs where there is little room.

    Returns:
        Each line with the colour of its first word.
    """
    heads = {name: name for name in ("state", *_CELLS)} | {"size": size_param, "tokens/s": f"{unit}/s"}
    rows = [{"state": run.state.value} | {name: cell(run) for name, cell in _CELLS.items()} for run in runs]
    kept = [name for name in heads if name == "state" or any(row[name] for row in rows)]
    widths = {name: max([width_of(heads[name]), *(width_of(row[name]) for row in rows)]) for name in kept}
    for name in _DROPPED_LIVE if live else _DROPPED:
        if width is None or sum(widths.values()) + _GAP * (len(widths) - 1) <= width:
            break
        widths.pop(name, None)
    lines = [_line(heads, widths), *(_line(row, widths) for row in rows)]
    colours = [None, *(_COLOURS.get(row["state"]) for row in rows)]
    return [(text if width is None else cut(text, width), colour) for text, colour in zip(lines, colours, strict=True)]


def _line(cells: dict[str, str], widths: dict[str, int]) -> str:
    parts = [
        cells[name] + " " * (width - width_of(cells[name]))
        if name in _LEFT_ALIGNED
        else " " * (width - width_of(cells[name])) + cells[name]
        for name, width in widths.items()
    ]
    return (" " * _GAP).join(parts).rstrip()


def painted(text: str, colour: str | None) -> str:
    """A line of the table with its state in colour."""
    state, space, rest = text.partition(" ")
    return coloured(state, colour) + space + rest


def notes(runs: Sequence[RunProgress]) -> list[str]:
    """What is to be said about single runs, a line each; hints and the like are in their state files."""
    first_lines = {r.experiment.experiment_id: plain(redacted(r.note.partition("\n")[0])) for r in runs if r.note}
    return [f"{name}: {text}" for name, text in first_lines.items()]


def summary(progress: Progress) -> str:
    """A whole sweep in one line."""
    counts = ", ".join(f"{progress.counts[s]} {s.value}" for s in _states() if progress.counts.get(s))
    share = progress.done_flops / progress.total_flops if progress.total_flops else 0.0
    parts = [counts, f"{share:.0%} of the FLOPs done"]
    if progress.seconds_left:
        parts.append(f"about {format_duration(progress.seconds_left)} left")
    return "; ".join(parts)


def _states() -> list[RunState]:
    return [RunState.COMPLETED, *(RunState(name) for name in _ORDER if name != "completed")]


def went_wrong(runs: Sequence[RunProgress]) -> list[RunProgress]:
    """Those that will not end well by themselves."""
    return [run for run in runs if run.state in (RunState.FAILED, RunState.DIVERGED)]


def foremost(runs: Sequence[RunProgress], most: int, ended: Sequence[str]) -> list[RunProgress]:
    """The runs to show where there is room for few: those that run, some that went wrong, those that ended last.

    Args:
        runs: All of them.
        most: How many.
        ended: Ids of those that ended while somebody looked, the last one last.
    """
    hidden = went_wrong(runs)[MOST_NOTES:]

    def rank(run: RunProgress) -> tuple[int, int, float]:
        name, state = run.experiment.experiment_id, run.state
        place = _ORDER.index(state.value)
        age = len(ended) - ended.index(name) if name in ended else len(ended) + 1
        return place, age if state is RunState.COMPLETED else 0, -run.experiment.flops

    return sorted((run for run in runs if run not in hidden), key=rank)[: max(0, most)]
