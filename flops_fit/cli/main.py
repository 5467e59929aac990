"""``flops-fit VERB``: nothing heavy is imported before the verb is known."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from flops_fit.errors import FlopsFitError

GOOD, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75

# Verb: where it lives, and its line of help.
VERBS = {
    "fit": ("sweep", "plan, train what is not done, analyse, report; the same command again resumes"),
    "plan": ("plan", "the plan and its cost; trains nothing"),
    "check": ("check", "two steps of the smallest and the largest size"),
    "simulate": ("simulate", "the plan tried on runs drawn from a known law"),
    "run": ("sweep", "train one planned run, or resume it"),
    "status": ("status", "state of every run, progress, time left; reads files only"),
    "analyze": ("answers", "fit the laws to a sweep or to anybody's table of runs"),
    "predict": ("answers", "the optimum for a budget, or the budget for a size, an amount of data, a loss"),
    "validate": ("validate", "one run at the predicted optimum, against its forecast"),
    "report": ("answers", "the answer, figures and one self-contained page"),
    "compare": ("compare", "two analyses at equal compute"),
}

# Words after ``flops-fit VERB``; the first is what a message proposes.
EXAMPLES = {
    "fit": ["--config sweep.yaml", "--config sweep.yaml --config laptop.yaml", "--config sweep.yaml --max-hours 8h"],
    "plan": ["--config sweep.yaml", "--config sweep.yaml --benchmark --price-per-hour 2"],
    "check": ["--config sweep.yaml"],
    "simulate": ["--config sweep.yaml", "--config sweep.yaml --noise 0.01 --compute 1e21"],
    "run": ["outputs/runs/RUN_ID"],
    "status": ["outputs", "outputs --watch", "outputs --json"],
    "analyze": ["outputs", "runs.csv --output analysis", "runs.csv --map loss=eval/loss --json"],
    "predict": [
        'outputs --compute "10 PF-days"',
        "outputs --params 7B",
        "outputs --compute 1e21 --tokens-per-param 200x",
    ],
    "validate": ["outputs --compute 1e21"],
    "report": ["outputs", "runs.csv --output report"],
    "compare": ["outputs/gpt outputs/moe", "a.csv b.csv --json"],
}
# What other tools call it.
_ALSO_CALLED = {"train": "fit", "resume": "fit", "dry-run": "plan", "test": "check", "optimal": "predict"}
_TRAINING = ("fit", "run", "validate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    Args:
        argv: Words after ``flops-fit``; None for those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return GOOD if words else BAD_INPUT
    if words[0] == "--version":
        from flops_fit import __version__

        print(f"flops-fit {__version__}")
        return GOOD
    from flops_fit.cli.terminal import Chatter

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[Chatter()])
    try:
        return _verb(words[0])(words[1:])
    except FlopsFitError as error:
        _complain(words[0], error.problem, error.hint)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\nflops-fit: interrupted{_how_to_go_on(words)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, `| head` for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except Exception as error:  # a model's, a data set's, a disk's; or ours
        if os.environ.get("FLOPS_FIT_TRACEBACK"):
            raise
        _complain(words[0], _told(error), None if isinstance(error, OSError) and error.filename else _MORE)
        return BAD_INPUT


_MORE = "with FLOPS_FIT_TRACEBACK=1 in the environment the whole traceback is shown"


def _complain(verb: str, problem: str, hint: str | None) -> None:
    """What is wrong, and what to do about it, a line each."""
    program = f"flops-fit {verb}" if verb in VERBS else "flops-fit"
    print(f"{program}: error: {problem}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)


def _how_to_go_on(words: list[str]) -> str:
    if words[0] not in _TRAINING:
        return ""
    import shlex

    from flops_fit.redaction import redacted_words

    return "; the same command goes on where it stopped:\n  " + shlex.join(["flops-fit", *redacted_words(words)])


def _told(error: Exception) -> str:
    """What no part of flops-fit expected: what, and where."""
    from flops_fit.redaction import redacted

    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename}, line {place.lineno}, in {place.name}"
    return f"{type(error).__name__}: {redacted(str(error))} (raised in {where})"


def _help() -> str:
    lines = "\n".join(f"  {verb:<10}{text}" for verb, (_, text) in VERBS.items())
    return f"""usage: flops-fit VERB ...

Given this much compute: how big a model, on how much data, and how sure?

{lines}

examples:
  flops-fit fit --config sweep.yaml
  flops-fit status outputs --watch
  flops-fit predict outputs --compute "10 PF-days"

`flops-fit VERB --help` shows a verb's options and examples."""


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        close = difflib.get_close_matches(name.lower(), VERBS, n=1)
        close = [_ALSO_CALLED[name.lower()]] if name.lower() in _ALSO_CALLED else close
        hint = f"did you mean `flops-fit {close[0]}`?" if close else "`flops-fit --help` explains them"
        if name.startswith("-"):
            hint = "options stand after the verb, for example `flops-fit status outputs --json`"
        raise FlopsFitError(f"{name!r} is no verb of flops-fit; there are {', '.join(VERBS)}", hint=hint)
    verb: Callable[[list[str]], int] = getattr(importlib.import_module(f"flops_fit.cli.{VERBS[name][0]}"), name)
    return verb
