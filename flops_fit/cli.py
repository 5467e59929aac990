"""``flops-fit``: the edge, where errors become messages and exit codes.

Nothing heavy is imported before the verb is known: help, status, analyze and predict do not load torch.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flops_fit.errors import FlopsFitError
from flops_fit.units import format_duration, format_flops, parse_flops

if TYPE_CHECKING:
    from flops_fit.experiment import SweepPlan
    from flops_fit.sweep.orchestrator import Progress

GOOD, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75

_VERBS = {
    "fit": "plan, train what is not done, analyse, report: `fit --config sweep.yaml`; again to resume",
    "plan": "the plan and its cost; trains nothing: `plan --config sweep.yaml`",
    "run": "train one planned run, or resume it: `run OUTPUT_DIR/runs/RUN_ID`",
    "status": "state of every run, progress: `status OUTPUT_DIR`",
    "analyze": "fit the laws: `analyze OUTPUT_DIR` or `analyze runs.csv`",
    "predict": "the optimum for a budget: `predict OUTPUT_DIR --compute 1e21`",
    "report": "figures and one page: `report OUTPUT_DIR`",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlopsFitError(f"{self.prog}: {message}", hint=f"`{self.prog} --help` shows the options")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return GOOD if words else BAD_INPUT
    if words[0] == "--version":
        from flops_fit import __version__

        print(f"flops-fit {__version__}")
        return GOOD
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return _verb(words[0])(words[1:])
    except FlopsFitError as error:
        print(f"flops-fit: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nflops-fit: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, `| head` for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD


def _help() -> str:
    lines = "\n".join(f"  {verb:<9}{text}" for verb, text in _VERBS.items())
    return (
        "usage: flops-fit VERB ...\n\nGiven this much compute: how big a model, on how much data, and how sure?\n\n"
        f"{lines}\n\n`flops-fit VERB --help` shows a verb's options."
    )


def _verb(name: str) -> Callable[[list[str]], int]:
    verbs = {"fit": _fit, "plan": _plan, "run": _run, "status": _status}
    verbs |= {"analyze": _analyze, "predict": _predict, "report": _report}
    if name not in verbs:
        close = difflib.get_close_matches(name, verbs, n=1)
        raise FlopsFitError(
            f"{name!r} is no verb of flops-fit; there are {', '.join(verbs)}",
            hint=f"did you mean `flops-fit {close[0]}`?" if close else "`flops-fit --help` explains them",
        )
    return verbs[name]


def _parser(verb: str) -> _Parser:
    return _Parser(prog=f"flops-fit {verb}", description=_VERBS[verb], allow_abbrev=False)


def _amount(parse: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sweep_words(verb: str, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options apart from those of the config."""
    parser = _parser(verb)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    if verb == "fit":
        parser.add_argument("--retry-failed", action="store_true", help="also runs that failed or diverged before")
        parser.add_argument(
            "--only", action="append", default=[], metavar="TEXT", help="only runs whose id contains it"
        )
        parser.add_argument("--max-flops", type=_amount(parse_flops), help="spend at most this compute in this call")
        parser.add_argument("--max-hours", type=float, help="start no run after this long")
    parser.epilog = "Every key of the config is an option too: --sweep.output_dir DIR; --print_config shows them all."
    parser.add_argument("--config", "-c", action="append", default=[], help="YAML of the sweep; several are stacked")
    own, rest = parser.parse_known_args(words)
    if not own.config and "--print_config" not in words:
        parser.error("--config sweep.yaml is needed")
    for path in own.config:
        if not Path(path).is_file():
            raise FlopsFitError(f"--config {path}: there is no such file")
    own.config = [Path(path) for path in own.config]
    return own, rest


def _plan(words: list[str]) -> int:
    own, rest = _sweep_words("plan", words)
    from flops_fit.api import plan_study
    from flops_fit.sweep_cli import SweepCLI

    with _quiet_plan():
        cli = SweepCLI(own.config, rest, "plan")
        plan = plan_study(cli.recipe, cli.sweep).plan
    if own.json:
        print(json.dumps({"schema_version": 1} | plan.to_dict()))
    else:
        print(_plan_text(plan))
    return GOOD


def _plan_text(plan: SweepPlan) -> str:
    from flops_fit.report.plan import plan_table

    return plan_table(plan)


def _fit(words: list[str]) -> int:
    own, rest = _sweep_words("fit", words)
    from flops_fit.api import analyze_sweep, plan_study, train_study, write_sweep_yaml
    from flops_fit.sweep.orchestrator import Selection
    from flops_fit.sweep_cli import SweepCLI

    with _quiet_plan():
        cli = SweepCLI(own.config, rest, "fit")
        study = plan_study(cli.recipe, cli.sweep)
    plan = study.plan
    _say(
        f"{plan.num_experiments} runs at {len(plan.compute_budgets)} budgets, {format_flops(plan.total_flops)} FLOPs,"
        f" in {study.directory.path}"
    )
    for warning in plan.warnings:
        _say(f"note: {warning}")
    selection = Selection(
        only=own.only, retry_failed=own.retry_failed, max_flops=own.max_flops, max_hours=own.max_hours
    )
    meter = _ProgressLine()
    try:
        outcome = train_study(study, selection=selection, on_progress=meter.show)
    finally:
        meter.close()
    write_sweep_yaml(study, cli.text)
    failed = _say_outcome(outcome, study.directory.path)
    result = analyze_sweep(study.directory.path)
    _answer(result, own.json)
    if not own.json:
        page = result.report(study.directory.report)
        _say(f"report: {page}")
    return SOME_FAILED if failed else GOOD


def _say_outcome(outcome: Progress, path: Path) -> bool:
    counts = {state.value: n for state, n in outcome.counts.items()}
    _say(f"{counts.get('completed', 0)} of {outcome.total_runs} runs completed")
    failed = {k: n for k, n in counts.items() if k in ("failed", "diverged")}
    if failed:
        _say(", ".join(f"{n} {k}" for k, n in failed.items()) + f"; `flops-fit status {path}` says why")
    return bool(failed)


def _answer(result: Any, as_json: bool) -> None:
    from flops_fit.report.tables import answer_text

    print(json.dumps(result.analysis.to_dict()) if as_json else answer_text(result.analysis))


class _ProgressLine:
    """One line for the whole sweep: rewritten on a terminal, printed now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._last = ""
        self._shown_share = -1.0

    def show(self, progress: Progress) -> None:
        share = progress.done_flops / progress.total_flops
        counts = {state.value: n for state, n in progress.counts.items()}
        parts = [f"{counts.get('completed', 0)}/{progress.total_runs} runs", f"{share:.0%} of FLOPs"]
        parts += [f"{counts[k]} {k}" for k in ("running", "failed", "diverged") if counts.get(k)]
        if progress.seconds_left is not None:
            parts.append(f"about {format_duration(progress.seconds_left)} left")
        line = ", ".join(parts)
        if self._is_terminal:
            print(f"\r{line:<{len(self._last)}}", end="", file=sys.stderr, flush=True)
            self._last = line
        elif share - self._shown_share >= 0.1 or (share == 1 and self._shown_share < 1):
            self._shown_share = share
            _say(line)

    def close(self) -> None:
        if self._last:
            print(file=sys.stderr)


def _run(words: list[str]) -> int:
    parser = _parser("run")
    parser.add_argument("run_dir", help="a folder with a config.yaml, as `fit` writes it")
    own = parser.parse_args(words)
    if not (Path(own.run_dir) / "config.yaml").is_file():
        raise FlopsFitError(
            f"{own.run_dir} is not a run directory: it has no config.yaml",
            hint="give OUTPUT_DIR/runs/RUN_ID of a sweep that `flops-fit fit` has started",
        )
    from flops_fit.train.main import train_directory

    return train_directory(own.run_dir)


def _status(words: list[str]) -> int:
    parser = _parser("status")
    parser.add_argument("directory", help="the sweep's output_dir")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    own = parser.parse_args(words)
    from flops_fit.runs.directory import SweepDirectory
    from flops_fit.sweep.orchestrator import progress

    sweep = SweepDirectory(Path(own.directory))
    experiments = sweep.experiments()
    now = progress(sweep, experiments)
    runs = [
        {"run_id": e.experiment_id, "flops": e.flops} | _run_status(sweep.run(e.experiment_id)) for e in experiments
    ]
    if own.json:
        counts = {state.value: n for state, n in now.counts.items()}
        head = {"schema_version": 1, "counts": counts, "done_flops": now.done_flops, "total_flops": now.total_flops}
        print(json.dumps(head | {"runs": runs}))
        return GOOD
    width = max(len(str(r["run_id"])) for r in runs)
    for row in runs:
        print(f"{row['run_id']:<{width}}  {row['state']:<11}  {row['note']}".rstrip())
    share = now.done_flops / now.total_flops
    print(", ".join(f"{n} {state.value}" for state, n in now.counts.items()) + f"; {share:.0%} of the FLOPs done")
    return GOOD


def _run_status(run: Any) -> dict[str, Any]:
    state = run.state().value
    if state == "completed":
        return {"state": state, "loss": run.result()["loss"], "note": f"loss {run.result()['loss']:.4f}"}
    details = run.details()
    note = details.get("error") or (f"step {details['step']}" if "step" in details else "")
    return {"state": state, "loss": None, "note": str(note)}


def _analyze(words: list[str]) -> int:
    parser = _parser("analyze")
    parser.add_argument("source", help="a sweep's output_dir, or a table of runs (CSV, TSV, JSONL, .gz, - for stdin)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    own = parser.parse_args(words)
    from flops_fit.api import analyze

    _answer(analyze(own.source), own.json)
    return GOOD


def _predict(words: list[str]) -> int:
    parser = _parser("predict")
    parser.add_argument("source", help="a sweep's output_dir, or an analysis.json")
    parser.add_argument(
        "--compute", type=_amount(parse_flops), required=True, help='FLOPs, such as 1e21 or "10 PF-days"'
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    own = parser.parse_args(words)
    from flops_fit.api import load

    prediction = load(own.source).predict(own.compute)
    print(json.dumps({"schema_version": 1} | prediction.to_dict()) if own.json else str(prediction))
    return GOOD


def _report(words: list[str]) -> int:
    parser = _parser("report")
    parser.add_argument("source", help="a sweep's output_dir, or a table of runs")
    parser.add_argument("--output", "-o", help="folder to write; OUTPUT_DIR/report for a sweep, report for a table")
    own = parser.parse_args(words)
    from flops_fit.api import analyze

    folder = own.output or (Path(own.source) / "report" if Path(own.source).is_dir() else Path("report"))
    print(analyze(own.source).report(folder))
    return GOOD


class _quiet_plan(warnings.catch_warnings):  # noqa: N801
    """Keeps what libraries warn about while a config is read out of the answer."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
