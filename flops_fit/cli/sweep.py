"""``fit`` and ``run``: the verbs that import what a config names, and torch."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.cli.answers import print_answer
from flops_fit.cli.main import GOOD, INTERRUPTED, SOME_FAILED
from flops_fit.cli.words import amount, command_line, parser_of, say
from flops_fit.errors import FitError, FlopsFitError
from flops_fit.runs.directory import RunState
from flops_fit.sweep.ranks import is_extra_rank
from flops_fit.train.stopping import STOP
from flops_fit.units import format_duration, format_flops, parse_flops

if TYPE_CHECKING:
    from collections.abc import Callable

    from flops_fit.cli.words import Parser
    from flops_fit.sweep.orchestrator import Outcome, Progress

_TO_DO = (RunState.PENDING, RunState.INTERRUPTED, RunState.RUNNING)


def fit(words: list[str]) -> int:
    """Plan, train what is not done, analyse, report."""
    own, rest = sweep_options("fit", words)
    if is_extra_rank():
        return GOOD
    from flops_fit.api import analyze
    from flops_fit.cli.config import SweepCLI
    from flops_fit.report.plan import repeats_lines
    from flops_fit.study import plan_study, train_study, write_sweep_yaml
    from flops_fit.sweep.orchestrator import Selection

    with quiet_libraries():
        cli = SweepCLI(own.config, rest, "fit")
        study = plan_study(cli.recipe, cli.sweep)
    path = study.directory.path
    cost = format_flops(study.plan.total_flops)
    say(f"{study.plan.num_experiments} runs at {len(study.plan.compute_budgets)} budgets, {cost} FLOPs, in {path}")
    for repeated in repeats_lines(study.plan):
        say(repeated)
    for warning in study.plan.warnings:
        say(f"note: {warning}")
    selection = Selection(
        only=own.only, retry_failed=own.retry_failed, max_flops=own.max_flops, max_hours=own.max_hours
    )
    line = ProgressLine()
    try:
        outcome = train_study(study, selection=selection, on_progress=line.show)
    finally:
        line.close()
    write_sweep_yaml(study, cli.text)
    code = _say_outcome(outcome, path)
    if cli.sweep.launcher == "commands" and any(outcome.counts.get(state) for state in _TO_DO):
        code = INTERRUPTED
    before = study.directory.analysis
    try:
        result = analyze(path)
    except FitError as error:
        if outcome.counts.get(RunState.COMPLETED, 0) == outcome.total_runs:
            raise
        say(f"no analysis yet: {error.problem}")
        return code
    print_answer(result, as_json=own.json)
    page = study.directory.report / "report.html"
    if study.directory.analysis != before or not page.exists():  # drawing the same again takes seconds
        result.report(page.parent, command=command_line("fit", words))
    say(f"report: {page}")
    return code


def run(words: list[str]) -> int:
    """Train one planned run in its directory, or go on with it."""
    parser = parser_of("run", json=False)
    parser.add_argument("run_dir", help="a folder with a config.yaml, as `fit` writes it")
    own = parser.parse_args(words)
    if not (Path(own.run_dir) / "config.yaml").is_file():
        raise FlopsFitError(
            f"{own.run_dir} is not a run directory: it has no config.yaml",
            hint="give OUTPUT_DIR/runs/RUN_ID of a sweep that `flops-fit fit` has started",
        )
    with STOP.listening():  # before the seconds that loading torch takes
        from flops_fit.train.main import train_directory

        return train_directory(own.run_dir)


def sweep_options(
    verb: str, words: list[str], add: Callable[[Parser], None] = lambda _: None
) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, those that a verb adds among them, and the rest: keys of the config."""
    parser = parser_of(verb)
    add(parser)
    parser.add_argument("--config", "-c", action="append", default=[], help="YAML of the sweep; several are stacked")
    if verb == "fit":
        parser.add_argument("--retry-failed", action="store_true", help="also runs that failed or diverged before")
        parser.add_argument(
            "--only", action="append", default=[], metavar="TEXT", help="only runs whose id contains it"
        )
        parser.add_argument("--max-flops", type=amount(parse_flops), help="spend at most this compute in this call")
        parser.add_argument("--max-hours", type=float, help="start no run after this long")
    parser.epilog = (
        "Every key of the config is an option too, such as --sweep.output_dir DIR or --trainer.devices 2;"
        " --print_config shows them all."
    )
    own, rest = parser.parse_known_args(words)
    if not own.config and "--print_config" not in rest:
        parser.error("--config sweep.yaml is needed")
    own.config = [Path(path) for path in own.config]
    for path in own.config:
        if not path.is_file():
            raise FlopsFitError(f"--config {path}: there is no such file")
    return own, rest


def _say_outcome(outcome: Outcome, path: Path) -> int:
    """Say where the sweep stands and what is left; the exit code for it."""
    counts = {state.value: n for state, n in outcome.counts.items()}
    say(f"{counts.get('completed', 0)} of {outcome.total_runs} runs completed")
    failed = {k: n for k, n in counts.items() if k in ("failed", "diverged")}
    if failed:
        say(", ".join(f"{n} {k}" for k, n in failed.items()) + f"; `flops-fit status {path}` says why")
    for line in outcome.left:
        say(line)
    return INTERRUPTED if outcome.unfinished else SOME_FAILED if failed else GOOD


class ProgressLine:
    """One line for the whole sweep: rewritten on a terminal, printed at every tenth elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._last = ""
        self._shown_share = -1.0

    def show(self, progress: Progress) -> None:
        """Say how far the sweep is."""
        share = progress.done_flops / progress.total_flops
        counts = {state.value: n for state, n in progress.counts.items()}
        parts = [f"{counts.get('completed', 0)}/{progress.total_runs} runs", f"{share:.0%} of FLOPs"]
        parts += [f"{counts[k]} {k}" for k in ("running", "failed", "diverged") if counts.get(k)]
        if progress.seconds_left:
            parts.append(f"about {format_duration(progress.seconds_left)} left")
        line = ", ".join(parts)
        if self._is_terminal:
            print(f"\r{line:<{len(self._last)}}", end="", file=sys.stderr, flush=True)
            self._last = line
        elif share - self._shown_share >= 0.1 or (share == 1 and self._shown_share < 1):
            self._shown_share = share
            say(line)

    def close(self) -> None:
        """Leave the line."""
        if self._last:
            say("")


class quiet_libraries(warnings.catch_warnings):  # noqa: N801
    """Keeps what libraries warn about while a config is read out of the answer."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
