"""Whether this process is the one that conducts a sweep, where something has started its command several times."""

from __future__ import annotations

import os


def is_extra_rank() -> bool:
    """Whether torchrun or srun has started this command several times and this is not the first.

    A sweep is conducted by one process; each of its runs starts its own ranks. The others have nothing to do.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("RANK", 0)) > 0
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    return tasks > 1 and int(os.environ.get("SLURM_PROCID", 0)) > 0
