"""The commands themselves, for a scheduler that flops-fit does not know."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from flops_fit.runs.files import write_atomic
from flops_fit.sweep.launchers.job import Job, Launcher

logger = logging.getLogger(__name__)


class CommandsLauncher(Launcher):
    """Trains nothing: writes a shell command for each run that is still to do, the largest first.

    Args:
        file: Where to write them.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:  # noqa: ARG002
        write_atomic(self.file, "".join(shlex.join(job.command) + "\n" for job in jobs))
        logger.warning(
            "%d commands are in %s, one a run, for a shell in this folder; the same command again analyses the results",
            len(jobs),
            self.file,
        )
