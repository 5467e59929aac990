"""``simulate``: a plan's runs drawn from a known law and analysed; nothing is trained."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flops_fit.cli.main import GOOD
from flops_fit.cli.sweep import quiet_libraries, sweep_options, verbosity
from flops_fit.cli.words import amount, command_line, say
from flops_fit.laws import ParametricLaw
from flops_fit.units import format_count, format_flops, parse_flops

if TYPE_CHECKING:
    from flops_fit.cli.words import Parser
    from flops_fit.experiment import SweepPlan
    from flops_fit.simulation import Errors, Expected, Truth

_LETTERS = "E,A,B,alpha,beta"


def simulate(words: list[str]) -> int:
    """Draw the plan's runs, analyse them, and say how far the answer is from the truth."""
    own, rest = sweep_options("simulate", words, _add_options)
    from flops_fit.cli.config import SweepCLI
    from flops_fit.report import answer_text
    from flops_fit.simulation import analyzed, drawn_runs, errors_of, target_of
    from flops_fit.study import plan_study

    with verbosity(own.verbose), quiet_libraries():
        cli = SweepCLI(own.config, rest, "simulate")
        plan = plan_study(cli.recipe, cli.sweep).plan
    truth = truth_of(own, plan)
    target = target_of(plan, own.compute)
    runs = drawn_runs(plan, truth, own.seed)
    result = analyzed(runs, plan, seed=own.seed)
    errors = errors_of(result.analysis, truth, plan, target)
    if own.output is not None:
        own.output.mkdir(parents=True, exist_ok=True)
        runs.to_csv(own.output / "runs.csv", index=False)
        result.analysis.save(own.output)
        say(f"simulated runs: {own.output / 'runs.csv'}")
        page = result.report(own.output / "report", command=command_line("simulate", words))
        say(f"report: {page}")
    if own.json:
        told = {"schema_version": 1, "simulated": True, "truth": truth.to_dict(), "seed": own.seed}
        told |= {"compute_budget": target, "errors": asdict(errors), "analysis": result.analysis.to_dict()}
        print(json.dumps(told))
    else:
        print(f"simulated, not trained: {truth}\n\n{answer_text(result.analysis)}\n")
        print("\n".join(_against_truth(errors, truth, target)))
    return GOOD


def add_truth_options(parser: Parser) -> None:
    """What simulated runs are drawn from."""
    parser.add_argument(
        "--law", type=_law, metavar=_LETTERS, help="of the loss; by default Chinchilla's, its optimum where expected"
    )
    parser.add_argument("--noise", type=float, help="scatter of the log loss between runs; 0.005 by default")
    parser.add_argument("--seed", type=_seed, default=0, help="of the draws")
    parser.add_argument(
        "--compute", type=amount(parse_flops), help="where errors are judged; ten times the largest budget by default"
    )


def truth_of(own: argparse.Namespace, plan: SweepPlan) -> Truth:
    """The truth that the options ask for."""
    from flops_fit.simulation import NOISE, truth_for

    return truth_for(plan, own.law, NOISE if own.noise is None else own.noise)


def expected_line(expected: Expected, truth: Truth) -> str:
    """What a plan's answers will be worth, in one sentence."""
    e = expected.errors
    return (
        f"simulated {expected.draws} times: rms error {_exponent(e.exponent, '')} in the exponent of N_opt,"
        f" {_percent(e.num_params, '')} in N_opt and {_percent(e.loss, '')} in the loss at"
        f" {format_flops(expected.compute_budget)} FLOPs"
        + (f" ({expected.answered} draws gave one)" if expected.answered < expected.draws else "")
        + f"\n  if the truth is {truth}"
    )


def _add_options(parser: Parser) -> None:
    add_truth_options(parser)
    parser.add_argument("--output", "-o", type=Path, help="folder for runs.csv, analysis.json and a report")


def _against_truth(errors: Errors, truth: Truth, target: float) -> list[str]:
    best_N, _ = truth.law.optimum(target, truth.rule)
    loss = truth.law.optimal_loss(target, truth.rule)
    exponent, _ = truth.law.exponents(truth.rule)
    return [
        "against the truth:",
        f"  exponent of N_opt over the budgets: {_exponent(errors.exponent)} (true {exponent:.3f})",
        f"  N_opt at {format_flops(target)} FLOPs: {_percent(errors.num_params)} (true {format_count(best_N)})",
        f"  loss at {format_flops(target)} FLOPs: {_percent(errors.loss)} (true {loss:.4f})",
    ]


def _exponent(error: float | None, sign: str = "+") -> str:
    return "withheld" if error is None else f"{error:{sign}.3f}"


def _percent(log_error: float | None, sign: str = "+") -> str:
    return "withheld" if log_error is None else f"{100 * math.expm1(log_error):{sign}.2g} %"


def _law(text: str) -> ParametricLaw:
    problem = f"{text!r} is not a law; write five positive numbers {_LETTERS}, for example 1.69,406,411,0.34,0.28"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(problem) from None
    if len(values) != 5 or not all(0 < v < math.inf for v in values):
        raise argparse.ArgumentTypeError(problem)
    names: dict[str, Any] = dict(zip(_LETTERS.split(","), values, strict=True))
    return ParametricLaw(**names)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: a whole number, not negative")
    return int(text)
