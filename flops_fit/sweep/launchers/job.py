"""What a launcher is given, and what it must do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flops_fit.runs.directory import RunDirectory

# What a fit of this process may have exported, or torchrun, or a cluster; a child must not take itself for a rank of
# it. By SLURM_NTASKS Lightning would take a run that starts its own ranks for one task of many, on one device.
_RANK_VARIABLES = (
    "RANK LOCAL_RANK NODE_RANK GROUP_RANK ROLE_RANK ROLE_NAME WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE"
    " ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT PL_GLOBAL_SEED SLURM_NTASKS SLURM_STEP_NUM_TASKS SLURM_PROCID"
    " SLURM_LOCALID SLURM_STEP_ID"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run to start.

    Attributes:
        run: Its directory.
        flops: Its cost, for ordering and progress [FLOPs].
        devices: Processes of one machine that train it together.
        num_params: Size of its model, from which its memory is judged [parameters].
    """

    run: RunDirectory
    flops: float
    devices: int = 1
    num_params: int = 0

    @property
    def folder(self) -> Path:
        """The run's directory, wherever the process that trains it is started."""
        return Path(self.run.path).resolve()

    @property
    def command(self) -> list[str]:
        """What trains the run, or goes on with it."""
        return [sys.executable, "-m", "flops_fit", "run", str(self.folder)]


class Launcher(Protocol):
    """Starts jobs and says when each has ended; how it ended, the run's directory says.

    To go on after an interruption is to call ``run`` again with what is left.
    """

    def run(self, jobs: Sequence[Job], on_done: Callable[[Job], bool], poll: Callable[[], None]) -> None:
        """Run all jobs, in order as far as there is room.

        Args:
            jobs: What to run.
            on_done: Called when a job's process has ended; True asks to start no more.
            poll: Called now and then, for progress.
        """

    def going_on(self) -> Collection[str]:
        """Ids of runs that an earlier call has started and that have outlived it; ``run`` waits for them."""
        return ()


def inherited_environment(threads: int | None = None) -> dict[str, str]:
    """The variables of this process that the process of a run should have.

    Args:
        threads: Cap for the thread pools of a run; None leaves them alone.
    """
    kept = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES and not k.startswith("TORCHELASTIC_")}
    if threads is not None:
        kept |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return kept
