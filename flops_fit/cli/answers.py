"""``analyze``, ``predict`` and ``report``: the verbs that need no torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.cli.main import GOOD, SOME_FAILED
from flops_fit.cli.words import amount, command_line, parser_of, say
from flops_fit.errors import FlopsFitError
from flops_fit.units import parse_count, parse_flops, parse_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from flops_fit.cli.words import Parser
    from flops_fit.fit import ScalingAnalysis
    from flops_fit.result import Result

_SOURCE = "a sweep's output_dir, or a table of runs: CSV, TSV, JSONL, each also .gz, or - for standard input"


def analyze(words: list[str]) -> int:
    """Fit the laws to a sweep or to anybody's table."""
    parser = parser_of("analyze")
    _add_reading(parser)
    parser.add_argument("--group-by", metavar="COLUMN", help="of a table: one analysis for each value of a column")
    parser.add_argument("--output", "-o", type=Path, help="folder for analysis.json and draws.npz, for `predict`")
    parser.add_argument("--strict", action="store_true", help="exit code 1 where the fit is not trustworthy")
    own = parser.parse_args(words)
    results = _grouped(own) if own.group_by else {"": _analyzed(own)}
    for name, result in results.items():
        if not own.json:
            print(f"{'' if name == next(iter(results)) else chr(10)}{own.group_by} {name}\n" if name else "", end="")
            print_answer(result)
        if own.output is not None:
            folder = own.output / name if name else own.output
            folder.mkdir(parents=True, exist_ok=True)
            result.analysis.save(folder)
    if own.json:
        groups = {name: r.analysis.to_dict() for name, r in results.items()}
        print(json.dumps({"schema_version": 1, "groups": groups} if own.group_by else groups[""]))
    return SOME_FAILED if own.strict and not all(r.analysis.trustworthy for r in results.values()) else GOOD


def predict(words: list[str]) -> int:
    """Answer one question from a saved analysis; nothing is fitted again."""
    parser = parser_of("predict")
    parser.add_argument("source", help="a sweep's output_dir, or the folder or analysis.json of `analyze --output`")
    parser.add_argument("--compute", type=amount(parse_flops), help='the best model for FLOPs: 1e21, "10 PF-days"')
    parser.add_argument("--params", type=amount(parse_count), help="the budget that calls for this size: 7B")
    parser.add_argument("--tokens", type=amount(parse_count), help="the budget that calls for this much data: 20B")
    parser.add_argument("--loss", type=float, help="the budget that reaches this loss")
    parser.add_argument("--tokens-per-param", type=amount(parse_ratio), help="with --compute: over-train at, say, 200x")
    parser.add_argument("--served", type=amount(parse_count), help="with --loss: tokens to be served count as well")
    parser.add_argument("--unique-tokens", type=amount(parse_count), help="with --compute: repeat so many tokens")
    parser.add_argument(
        "--emit-config", metavar="FILE", help="also write what to train next, ready for `flops-fit fit`; - for stdout"
    )
    own = parser.parse_args(words)
    question = _question(own)
    from flops_fit.fit import ScalingAnalysis

    analysis = ScalingAnalysis.load(own.source)
    answer = question(analysis)
    if own.emit_config is not None:
        _emit(own, analysis, answer)
        if own.emit_config == "-":
            return GOOD
    print(json.dumps(answer.to_dict()) if own.json else answer)
    if not own.json:
        for warning in answer.warnings:
            if warning not in analysis.warnings:
                say(f"warning: {warning}")
        if analysis.warnings:
            codes = ", ".join(dict.fromkeys(w.code for w in analysis.warnings))
            say(f"the fit itself comes with warnings, which `flops-fit analyze` prints: {codes}")
    return GOOD


def _emit(own: argparse.Namespace, analysis: ScalingAnalysis, answer: Any) -> None:
    """Write the config of the run that a prediction calls for."""
    from flops_fit.fit import Prediction
    from flops_fit.runs.files import write_atomic
    from flops_fit.suggestion import suggest

    if not isinstance(answer, Prediction):
        raise FlopsFitError(
            "flops-fit predict: --emit-config goes with --compute, --params, --tokens or --loss alone",
            hint="what is asked besides changes the run, and no config says so",
        )
    if own.emit_config == "-" and own.json:
        raise FlopsFitError("flops-fit predict: --emit-config - and --json both want the standard output")
    source = Path(own.source)
    run = suggest(analysis, source if source.is_dir() else source.parent, answer.compute_budget)
    if own.emit_config == "-":
        print(run.to_yaml(), end="")
        return
    path = Path(own.emit_config)
    if not path.parent.is_dir():
        raise FlopsFitError(f"--emit-config {path}: there is no folder {path.parent}")
    write_atomic(path, run.to_yaml())
    say(f"written: {path}" + ("" if run.size is not None else ", which names no model: only a table was analysed"))


def _question(own: argparse.Namespace) -> Callable[[ScalingAnalysis], Any]:
    """What the options ask of an analysis."""
    beside = {"tokens_per_param": "compute", "served": "loss", "unique_tokens": "compute"}
    asked = [name for name in beside if getattr(own, name) is not None]
    given = [name for name in ("compute", "params", "tokens", "loss") if getattr(own, name) is not None]
    if not asked and not given:
        raise FlopsFitError(
            "give --compute, or --params, --tokens or --loss instead",
            hint='for example `flops-fit predict outputs --compute "10 PF-days"`',
        )
    if not asked:
        return lambda a: a.predict(own.compute, params=own.params, tokens=own.tokens, loss=own.loss)
    needed = beside[asked[0]]
    if len(asked) > 1 or given != [needed]:
        option = "--" + asked[0].replace("_", "-")
        raise FlopsFitError(f"{option} is asked with --{needed}, and with nothing else")
    from flops_fit.fit.what_if import over_trained, repeated, served

    questions: dict[str, Callable[[ScalingAnalysis], Any]] = {
        "tokens_per_param": lambda a: over_trained(a, own.compute, own.tokens_per_param),
        "served": lambda a: served(a, own.loss, own.served),
        "unique_tokens": lambda a: repeated(a, own.compute, own.unique_tokens),
    }
    return questions[asked[0]]


def report(words: list[str]) -> int:
    """Answer, draw figures and write one self-contained page."""
    parser = parser_of("report", json=False)
    _add_reading(parser)
    parser.add_argument("--output", "-o", help="folder to write; OUTPUT_DIR/report for a sweep, report for a table")
    parser.add_argument(
        "--compute", type=amount(parse_flops), help='the budget to answer for and to mark: "10 PF-days"'
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        choices=("chinchilla", "besiroglu", "llama3", "20x"),
        help="a published law to draw beside the optima; may be given several times",
    )
    own = parser.parse_args(words)
    folder = own.output or (Path(own.source) / "report" if Path(own.source).is_dir() else Path("report"))
    command = command_line("report", words)
    result = _analyzed(own)
    print_answer(result)
    page = result.report(folder, command=command, compute_budget=own.compute, references=own.reference)
    print(f"\nreport: {page}")
    return GOOD


def print_answer(result: Result, *, as_json: bool = False) -> None:
    """The whole answer on standard output; how a table was read, on standard error."""
    from flops_fit.report import answer_text

    if result.mapping:
        say("columns: " + ", ".join(f"{ours} = {theirs}" for ours, theirs in result.mapping.items()))
    for note in result.notes:
        say(f"note: {note}")
    print(json.dumps(result.analysis.to_dict()) if as_json else answer_text(result.analysis))


def _add_reading(parser: Parser) -> None:
    """The source, how it is read, and how it is fitted."""
    parser.add_argument("source", help=_SOURCE)
    parser.add_argument("--map", action="append", default=[], metavar="NAME=COLUMN", help="of a table: loss=val_bpb")
    parser.add_argument("--loss-unit", choices=("nats", "bits", "bpb"), help="of a table's loss")
    parser.add_argument("--bytes-per-token", type=float, help="turns bits per byte into nats per token")
    parser.add_argument("--n-convention", choices=("total", "matmul", "non_embedding"), help="which count is N")
    parser.add_argument(
        "--outliers", choices=("surface", "iqr", "none"), default="surface", help="rule to leave runs out"
    )
    parser.add_argument("--huber-delta", type=float, help="of the surface; 1e-3 is the papers', default: adaptive")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples; 0 for instant intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling")
    parser.add_argument("--no-priors", action="store_true", help="no candidate that leans on published exponents")


def _reading(own: argparse.Namespace) -> dict[str, Any]:
    pairs = [text.partition("=") for text in own.map]
    if any(not (ours and theirs) for ours, _, theirs in pairs):
        raise FlopsFitError(f"--map {' '.join(own.map)}: write NAME=COLUMN, for example loss=eval/loss")
    columns = {ours: theirs for ours, _, theirs in pairs}
    reading = {"columns": columns, "loss_unit": own.loss_unit, "bytes_per_token": own.bytes_per_token}
    return reading | {"n_convention": own.n_convention}


def _fitting(own: argparse.Namespace) -> dict[str, Any]:
    options = {"outliers": own.outliers, "huber_delta": own.huber_delta, "n_bootstrap": own.bootstrap}
    return options | {"seed": own.seed, "priors": not own.no_priors}


def _analyzed(own: argparse.Namespace) -> Result:
    from flops_fit.api import analyze

    return analyze(own.source, **_reading(own), **_fitting(own))


def _grouped(own: argparse.Namespace) -> dict[str, Result]:
    from flops_fit.api import analyze_table
    from flops_fit.runs.foreign import read_table

    if Path(own.source).is_dir():
        raise FlopsFitError("--group-by is for tables; a sweep is one group")
    table = read_table(own.source, **_reading(own))
    return {name: analyze_table(part, **_fitting(own)) for name, part in table.split(own.group_by).items()}
