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
    "fit": ("sweep", "plan, train what is not done, analyse, report: `fit --config sweep.yaml`; again to resume"),
    "plan": ("plan", "the plan and its cost; trains nothing: `plan --config sweep.yaml`"),
    "check": ("check", "two steps of the smallest and the largest size: `check --config sweep.yaml`"),
    "simulate": ("simulate", "the plan tried on runs drawn from a known law: `simulate --config sweep.yaml`"),
    "run": ("sweep", "train one planned run, or resume it: `run OUTPUT_DIR/runs/RUN_ID`"),
    "status": ("status", "state of every run, progress: `status OUTPUT_DIR`"),
    "analyze": ("answers", "fit the laws: `analyze OUTPUT_DIR` or `analyze runs.csv`"),
    "predict": ("answers", "the optimum for a budget: `predict OUTPUT_DIR --compute 1e21`"),
    "validate": ("validate", "one run at the predicted optimum: `validate OUTPUT_DIR --compute 1e21`"),
    "report": ("answers", "the answer, figures and one page: `report OUTPUT_DIR` or `report runs.csv`"),
    "compare": ("compare", "two analyses at equal compute: `compare A B`"),
}


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
    except Exception as error:  # a model's, a data set's, a disk's; or ours
        if os.environ.get("FLOPS_FIT_TRACEBACK"):
            raise
        print(f"flops-fit: error: {_told(error)}", file=sys.stderr)
        return BAD_INPUT


def _told(error: Exception) -> str:
    """What no part of flops-fit expected: what, where, and how to see more."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error}\n  raised in {place.filename}, line {place.lineno}, in {place.name}"
        "\n\nhint: with FLOPS_FIT_TRACEBACK=1 in the environment the whole traceback is shown"
    )


def _help() -> str:
    lines = "\n".join(f"  {verb:<9}{text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: flops-fit VERB ...\n\nGiven this much compute: how big a model, on how much data, and how sure?\n\n"
        f"{lines}\n\n`flops-fit VERB --help` shows a verb's options."
    )


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        raise FlopsFitError(
            f"{name!r} is no verb of flops-fit; there are {', '.join(VERBS)}",
            hint=f"did you mean `flops-fit {close[0]}`?" if close else "`flops-fit --help` explains them",
        )
    verb: Callable[[list[str]], int] = getattr(importlib.import_module(f"flops_fit.cli.{VERBS[name][0]}"), name)
    return verb
