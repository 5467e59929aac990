"""Which of a run's processes this one is, under whatever started them: Lightning, torchrun, Slurm."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from flops_fit.errors import RunError

_LOSS_SECONDS = 1.0


def planned_world_size(trainer: dict[str, Any]) -> int | None:
    """Processes that the Trainer's arguments ask for; None where they leave it to the machine."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, (list, tuple)):
        count = len(devices)
    elif str(devices).isdigit():
        count = int(devices)
    elif isinstance(devices, str) and "," in devices:
        count = len([d for d in devices.split(",") if d.strip()])
    else:
        return None
    return count * int(trainer.get("num_nodes") or 1)


def rank_here(trainer: dict[str, Any]) -> int:
    """The global rank of this process, before there is a Trainer; a run on one device has no other."""
    if planned_world_size(trainer) == 1:
        return 0
    # torchrun sets RANK; srun SLURM_PROCID; Lightning, which starts its own ranks on each node, LOCAL_RANK.
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if _is_srun_world(trainer):
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("NODE_RANK", 0)) or int(os.environ.get("LOCAL_RANK", 0))


def cluster_plugins(trainer: dict[str, Any]) -> list[ClusterEnvironment]:
    """What keeps Lightning from misreading a Slurm allocation; empty where the user brought an environment.

    In one task of an allocation Lightning takes the task count for the world size, and trains on one device without a
    word where several were asked for.
    """
    own = any(isinstance(p, ClusterEnvironment) for p in trainer.get("plugins") or ())
    if own or "SLURM_JOB_ID" not in os.environ or TorchElasticEnvironment.detect():
        return []
    # Requeueing is the job script's: Lightning's own handler would save outside a step.
    return [SLURMEnvironment(auto_requeue=False)] if _is_srun_world(trainer) else [LightningEnvironment()]


def check_world_size(trainer: pl.Trainer, arguments: dict[str, Any]) -> None:
    """Refuse to train on another number of devices than was asked for.

    Raises:
        RunError: The cluster, or torchrun, has started another number of processes.
    """
    planned = planned_world_size(arguments)
    if planned is not None and trainer.world_size != planned:
        raise RunError(
            f"trainer asks for {planned} devices (devices x num_nodes), and there are {trainer.world_size} processes",
            hint="start as many tasks as devices (sbatch --ntasks-per-node, torchrun --nproc-per-node), or none at all",
        )


def is_follower() -> bool:
    """Whether another process has started this one as a further rank of its run, and waits for it."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def lost_rank(trainer: pl.Trainer) -> str | None:
    """Which of the ranks that this process has started was killed; None where none was."""
    processes = getattr(trainer.strategy.launcher, "procs", None) or []
    deadline = time.monotonic() + _LOSS_SECONDS  # its connections break a moment before its end is known
    while processes and time.monotonic() < deadline:
        for rank, process in enumerate(processes, start=1):
            if (process.poll() or 0) < 0:
                return f"rank {rank} was killed by {signal.Signals(-process.returncode).name}"
        time.sleep(0.05)
    return None


def _is_srun_world(trainer: dict[str, Any]) -> bool:
    """Whether srun has started the ranks of this run, one a device."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))
    planned = planned_world_size(trainer)
    is_step = "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ
    return is_step and planned not in (None, 1) and tasks.isdigit() and int(tasks) == planned
