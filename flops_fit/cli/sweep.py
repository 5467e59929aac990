"""``fit`` and ``run``: the verbs that import what a config names, and torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.cli.answers import print_answer
from flops_fit.cli.live import LiveTable, LogFollower
from flops_fit.cli.main import GOOD, INTERRUPTED, SOME_FAILED
from flops_fit.cli.terminal import Chatter
from flops_fit.cli.words import amount, command_line, parser_of, say
from flops_fit.errors import FitError, FlopsFitError
from flops_fit.report.plan import design_lines
from flops_fit.runs.directory import VERBOSE, RunState
from flops_fit.sweep.progress import progress
from flops_fit.sweep.ranks import is_extra_rank
from flops_fit.train.stopping import STOP
from flops_fit.units import format_flops, parse_duration, parse_flops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from flops_fit.cli.words import Parser
    from flops_fit.experiment import SweepPlan
    from flops_fit.runs.directory import RunDirectory, SweepDirectory
    from flops_fit.study import Study
    from flops_fit.sweep.orchestrator import Outcome, Selection
    from flops_fit.sweep.progress import Progress

# What the YAML and the command line may set beside our own options.
_GROUPS = ("model", "data", "trainer", "sweep", "seed_everything", "print_config")

_TO_DO = (RunState.PENDING, RunState.INTERRUPTED, RunState.RUNNING)


def fit(words: list[str]) -> int:
    """Plan, train what is not done, analyse, report."""
    own, rest = sweep_options("fit", words)
    if is_extra_rank():
        return GOOD
    with verbosity(own.verbose):
        return _fit(own, rest, words)


def _fit(own: argparse.Namespace, rest: list[str], words: list[str]) -> int:
    from flops_fit.api import analyze
    from flops_fit.cli.config import SweepCLI
    from flops_fit.probe import UnfinishedProbeError
    from flops_fit.report.plan import repeats_lines
    from flops_fit.rounds import check_kept, conduct
    from flops_fit.study import plan_study, write_sweep_yaml
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
    try:
        study = _with_rates(study, selection)
    except UnfinishedProbeError as error:
        say(f"{error.problem}; {error.hint}")
        return INTERRUPTED
    followed = [study.directory.run(e.experiment_id) for e in study.plan.experiments] if own.verbose else []
    with progress_of(study.directory, study.plan.size_param, study.plan.unit, followed) as show:
        study, outcome = conduct(study, selection=selection, extend=own.extend, on_progress=show, on_plan=_say_round)
    write_sweep_yaml(study, cli.text)
    code = _say_outcome(outcome, path)
    if cli.sweep.launcher == "commands" and any(outcome.counts.get(state) for state in _TO_DO):
        code = INTERRUPTED
    before = study.directory.analysis
    try:
        result = analyze(path)
    except FitError as error:
        if outcome.counts.get(RunState.COMPLETED, 0) == outcome.total_runs > 1:
            raise
        if outcome.counts.get(RunState.COMPLETED, 0) == outcome.total_runs:  # it is but one
            result_of_one = study.directory.run(study.plan.experiments[0].experiment_id).result()
            print(json.dumps(result_of_one) if own.json else f"loss {result_of_one['loss']:.4f}")
            return code
        say(f"no analysis yet: {error.problem}")
        return code
    print_answer(result, as_json=own.json)
    for kept in check_kept(study):
        say(str(kept))
    page = study.directory.report / "report.html"
    if study.directory.analysis != before or not page.exists():  # drawing the same again takes seconds
        result.report(page.parent, command=command_line("fit", words))
    say(f"report: {page}")
    return code


def _with_rates(study: Study, selection: Selection) -> Study:
    """The sweep with its learning rates, found first where that is asked; what it cost is taken off the selection."""
    from flops_fit.probe import done_flops, find_rates
    from flops_fit.report import rate_lines

    for told in rate_lines(study.plan, study.rate_law):
        say(told)
    if not study.needs_lr:
        return study
    before = done_flops(study)
    with progress_of(study.directory.probe, study.plan.size_param, study.plan.unit) as show:
        study = find_rates(study, selection=selection, on_progress=show)
    if selection.max_flops is not None:
        selection.max_flops = max(0.0, selection.max_flops - (done_flops(study) - before))
    assert study.rate_law is not None
    notes = [f"note: {warning}" for warning in study.rate_law.warnings([e.num_params for e in study.plan.experiments])]
    for told in [*rate_lines(study.plan, study.rate_law), *notes]:
        say(told)
    return study


def run(words: list[str]) -> int:
    """Train one planned run in its directory, or go on with it."""
    parser = parser_of("run", json=False)
    parser.add_argument("run_dir", help="a folder with a config.yaml, as `fit` writes it")
    add_verbose(parser)
    own = parser.parse_args(words)
    if not (Path(own.run_dir) / "config.yaml").is_file():
        raise FlopsFitError(
            f"{own.run_dir} is not a run directory: it has no config.yaml",
            hint="give OUTPUT_DIR/runs/RUN_ID of a sweep that `flops-fit fit` has started",
        )
    with verbosity(own.verbose), STOP.listening():  # before the seconds that loading torch takes
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
        parser.add_argument("--max-hours", type=amount(_hours), help="start no run after this long: 8, 45min")
        parser.add_argument(
            "--extend", action="store_true", help="one round more: what the results ask for, sizes or further runs"
        )
    if verb != "plan":
        add_verbose(parser)
    parser.add_argument(
        "--help-all", action="store_true", help="this help, and every key of model, data, trainer and sweep"
    )
    parser.epilog = (
        f"{parser.epilog}\n\nEvery key of the config is an option too, such as --sweep.output_dir DIR or"
        " --trainer.devices 2; --print_config shows them with their values."
    )
    own, rest = parser.parse_known_args(words)
    if own.help_all:
        from flops_fit.cli.config import print_keys

        parser.print_help()
        print_keys()
        raise SystemExit(GOOD)
    _refuse_strangers(parser, rest)
    if not own.config and not any(word.startswith("--print_config") for word in rest):
        raise FlopsFitError("--config is needed", hint=f"for example `{parser.prog} --config sweep.yaml`")
    own.config = [Path(path) for path in own.config]
    return own, rest


def add_verbose(parser: Parser) -> None:
    """The option that shows what Lightning says."""
    parser.add_argument(
        "--verbose", "-v", action="store_true", help="what Lightning and the runs say, which run.log holds otherwise"
    )


@contextlib.contextmanager
def verbosity(verbose: bool) -> Iterator[None]:
    """Whether Lightning is heard, in the block and in the processes that are started there."""
    before = os.environ.get(VERBOSE)
    if verbose:
        os.environ[VERBOSE] = "1"
    try:
        yield
    finally:
        if verbose and before is None:
            del os.environ[VERBOSE]


def _refuse_strangers(parser: Parser, rest: Sequence[str]) -> None:
    """Words that are neither options of ours nor keys of the config, nor a value of one."""
    from flops_fit.cli.keys import group_of

    is_value = False
    for word in rest:
        is_option = word.startswith("-") and not word[1:2].isdigit()
        name = word.partition("=")[0].lstrip("-").rstrip("+")
        if (is_option and name.partition(".")[0] not in _GROUPS) or not (is_option or is_value):
            if not is_option and Path(word).suffix in (".yaml", ".yml"):
                raise FlopsFitError(f"{word!r} is one word too many", hint=f"write --config {word}")
            problem, hint = parser.unknown(word, also=[f"--{group}" for group in _GROUPS])
            if group := group_of(name.partition(".")[0]):
                hint = f"did you mean --{group}.{name}?"
            raise FlopsFitError(problem, hint=hint or f"`{parser.prog} --help` shows the options")
        is_value = is_option and "=" not in word


def _hours(text: str) -> float:
    """Hours, where nothing else is said."""
    try:
        return float(text)
    except ValueError:
        return parse_duration(text) / 3600


def _say_round(plan: SweepPlan) -> None:
    """Announce the runs that the results so far ask for."""
    latest = max(e.round for e in plan.experiments)
    new = [e for e in plan.experiments if e.round == latest]
    say(f"round {latest}: {len(new)} further runs, {format_flops(sum(e.flops for e in new))} FLOPs")
    for text in design_lines(plan):
        say(text)


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


@contextlib.contextmanager
def progress_of(
    directory: SweepDirectory, size_param: str, unit: str, followed: Sequence[RunDirectory] = ()
) -> Iterator[Callable[[Progress], None]]:
    """What shows the progress of a sweep that is trained in the block, and where it stands if it is interrupted.

    Args:
        directory: The sweep's.
        size_param: Name of the size parameter.
        unit: What its data is counted in.
        followed: Runs whose logs are shown, too.
    """
    view, follower = LiveTable(size_param, unit), LogFollower(followed)

    def show(now: Progress) -> None:
        follower.tell()
        view.show(now)

    try:
        with _announced_stop(), _runs_log_for_themselves():
            yield show
        follower.tell()
    except KeyboardInterrupt:
        view.close()  # what the keyboard and the handler have written stands below it
        view.leave(progress(directory, [run.experiment for run in view.last]))
        raise
    finally:
        view.close()


@contextlib.contextmanager
def _runs_log_for_themselves() -> Iterator[None]:
    """What a run that is trained in this process logs is in its run.log; here it would tear the table apart."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, Chatter)]

    def is_ours(record: logging.LogRecord) -> bool:
        return not record.name.startswith("flops_fit.train")

    for handler in handlers:
        handler.addFilter(is_ours)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_ours)


@contextlib.contextmanager
def _announced_stop() -> Iterator[None]:
    """Ctrl-C, or a scheduler's SIGTERM, is answered at once, and obeyed when the runs of this machine have saved."""

    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping: runs of this machine save what they have first\n")
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


class quiet_libraries(warnings.catch_warnings):  # noqa: N801
    """Keeps what libraries warn about while a config is read out of the answer, unless it is asked for."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        if not os.environ.get(VERBOSE):
            warnings.simplefilter("ignore")
        return entered
