"""``flops-fit run RUN_DIR``: what every launcher starts."""

from __future__ import annotations

import contextlib
import logging
import sys

from flops_fit.errors import FlopsFitError, RunError
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.environment import versions
from flops_fit.train.failure import failure_details
from flops_fit.train.ranks import is_follower
from flops_fit.train.recipe import ConfigRecipe, read_run_config
from flops_fit.train.run import EXIT_CODES, train_run
from flops_fit.train.stopping import STOP

_REFUSED = 2


def preload() -> None:
    """Build what every run needs and no run changes; called once in a process that forks others for the runs.

    Nothing is computed, and nothing of the user's is touched: such a process must have neither threads nor a device.
    """
    any_config = ConfigRecipe(
        {
            "model": {
                "class_path": "flops_fit.train.module.ScalingModule",
                "init_args": {"net": "torch.nn.Identity", "loss_fn": "torch.nn.functional.mse_loss"},
            },
            "data": {"class_path": "lightning.pytorch.LightningDataModule"},
            "trainer": {},
        }
    )
    any_config.module()  # the parser of configs looks every class up once, and remembers it
    any_config.trainer()
    versions()


def train_directory(path: str) -> int:
    """Train the run in a directory, or go on with it.

    Returns:
        0 done (or diverged), 1 failed, 2 refused: another process trains it, or the directory cannot be written,
        75 interrupted: start it again to go on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    with STOP.listening():
        return _train_directory(RunDirectory(path))


def _train_directory(run: RunDirectory) -> int:
    try:
        experiment, make_parts = read_run_config(run)
    except Exception as error:  # the config's, or of the user's modules that it names
        return _unreadable(run, error)
    try:
        state = train_run(run, experiment, make_parts)
    except RunError as error:
        print(f"flops-fit: {error}", file=sys.stderr)
        return _REFUSED
    if state is RunState.FAILED and not is_follower():
        print(f"flops-fit: {run.details().get('error')}", file=sys.stderr)
    if state is RunState.INTERRUPTED and is_follower():
        return 0  # or whoever has started this rank would kill the first one, which still saves
    return EXIT_CODES[state]


def _unreadable(run: RunDirectory, error: Exception) -> int:
    """A config that cannot be read is the run's failure, unless another process trains it all the same."""
    details = failure_details(error)
    print(
        f"flops-fit: {details['error'] if isinstance(error, FlopsFitError) else details['traceback']}", file=sys.stderr
    )
    if run.path.is_dir() and run.state() is not RunState.COMPLETED:
        with contextlib.suppress(RunError), run.claimed():
            run.end(RunState.FAILED, **details)
    return EXIT_CODES[RunState.FAILED]
