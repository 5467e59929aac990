"""``status``: reads files, nothing else, so that any machine that sees them can tell."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.cli.live import LiveTable
from flops_fit.cli.main import GOOD
from flops_fit.cli.table import notes, painted, summary, table
from flops_fit.cli.terminal import has_colour, is_terminal, size_of
from flops_fit.cli.words import amount, parser_of
from flops_fit.redaction import redacted
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.sweep.progress import Meter
from flops_fit.units import parse_duration

if TYPE_CHECKING:
    from flops_fit.sweep.progress import Progress, RunProgress

_WATCH_SECONDS = 2.0


def status(words: list[str]) -> int:
    """Tell the state of every run, and how much of the compute is done."""
    parser = parser_of("status")
    parser.add_argument("directory", help="the sweep's output_dir")
    parser.add_argument("--watch", action="store_true", help="go on telling until every run has ended, or Ctrl-C")
    parser.add_argument(
        "--interval", type=amount(parse_duration), default=_WATCH_SECONDS, help="between two looks of --watch: 2s, 1min"
    )
    own = parser.parse_args(words)
    sweep = SweepDirectory(Path(own.directory))
    meter = Meter(sweep, sweep.experiments())
    plan = sweep.plan
    if own.watch:
        return _watch(own, meter, plan)
    now = meter.read()
    if own.json:
        print(json.dumps(_document(now)))
        return GOOD
    width = size_of(sys.stdout).columns if is_terminal(sys.stdout) else None
    colours = has_colour(sys.stdout)
    for text, colour in table(now.runs, size_param=plan["size_param"], unit=plan["unit"], width=width):
        print(painted(text, colour) if colours else text)
    for text in notes(now.runs):
        print(text)
    print(summary(now))
    return GOOD


def _watch(own: argparse.Namespace, meter: Meter, plan: dict[str, Any]) -> int:
    """Tell again and again; Ctrl-C is the way out, and nothing that trains takes note of it."""
    view = LiveTable(plan["size_param"], plan["unit"], sys.stdout)
    last = None
    try:
        while True:
            now = meter.read()
            if own.json:
                document = _document(now)
                if document != last:
                    print(json.dumps(document), flush=True)
                last = document
            else:
                view.show(now)
            if not any(now.counts.get(s) for s in (RunState.PENDING, RunState.RUNNING, RunState.INTERRUPTED)):
                return GOOD
            time.sleep(own.interval)
    except KeyboardInterrupt:
        return GOOD
    finally:
        view.close()


def _document(now: Progress) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "counts": {state.value: n for state, n in now.counts.items()},
        "done_flops": now.done_flops,
        "total_flops": now.total_flops,
        "seconds_left": now.seconds_left,
        "runs": [_row(run) for run in now.runs],
    }


def _row(run: RunProgress) -> dict[str, Any]:
    experiment = run.experiment
    planned = ("compute_budget", "size_param_value", "num_params", "num_tokens", "seed", "flops")
    return {
        "run_id": experiment.experiment_id,
        "state": run.state.value,
        **{name: getattr(experiment, name) for name in planned},
        "done_flops": run.done_flops,
        "loss": run.loss if run.state is RunState.COMPLETED else None,
        "train_loss": None if run.state is RunState.COMPLETED else _finite(run.loss),
        "tokens_per_second": run.tokens_per_second,
        "seconds_left": run.seconds_left,
        "note": redacted(run.note),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN, which is what a diverged run's last loss may be."""
    return value if value is not None and math.isfinite(value) else None
