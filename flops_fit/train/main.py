"""``flops-fit run RUN_DIR``: what every launcher starts."""

from __future__ import annotations

import logging
import sys

from flops_fit.errors import FlopsFitError
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.recipe import read_run_config
from flops_fit.train.run import EXIT_CODES, train_run


def train_directory(path: str) -> int:
    """Train the run in a directory, or go on with it.

    Returns:
        0 done (or diverged), 1 failed, 75 interrupted: start it again to go on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    run = RunDirectory(path)
    try:
        experiment, make_parts = read_run_config(run)
    except FlopsFitError as error:
        print(f"flops-fit: {error}", file=sys.stderr)
        if run.path.is_dir():
            run.set_state(RunState.FAILED, error=str(error))
        return 1
    try:
        state = train_run(run, experiment, make_parts)
    except FlopsFitError as error:
        print(f"flops-fit: {error}", file=sys.stderr)
        return 1
    if state is RunState.FAILED:
        print(f"flops-fit: {run.details()['error']}", file=sys.stderr)
    return EXIT_CODES[state]
