"""The launcher that a config asks for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flops_fit.errors import PlanError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.launchers.cards import CardBook, free_memory
from flops_fit.sweep.launchers.commands import CommandsLauncher
from flops_fit.sweep.launchers.inline import InlineLauncher
from flops_fit.sweep.launchers.job import Job, Launcher
from flops_fit.sweep.launchers.local import LocalLauncher, peak_of
from flops_fit.sweep.launchers.ray import RayLauncher
from flops_fit.sweep.launchers.slurm import SlurmLauncher

logger = logging.getLogger(__name__)

_ENTRY = "flops_fit.train.main:train_directory"
_GPU = ("gpu", "cuda")


def build_launcher(
    config: SweepConfig,
    trainer: Mapping[str, Any],
    *,
    sweep: SweepDirectory,
    experiments: Sequence[Experiment],
    train: Callable[[RunDirectory], object],
    is_importable: bool,
) -> Launcher:
    """Build the launcher that a config asks for.

    Args:
        config: What was asked for.
        trainer: Arguments of the Trainer.
        sweep: Where the runs are.
        experiments: The runs, from whose results the memory of others is judged.
        train: Trains one run in this process.
        is_importable: Whether another process can import model, loss and data.

    Raises:
        PlanError: It cannot train such runs.
    """
    devices, num_nodes = devices_of(trainer), int(trainer.get("num_nodes") or 1)
    if num_nodes > 1 and config.launcher not in ("slurm", "commands"):
        raise PlanError(
            f"trainer.num_nodes={num_nodes}: launcher {config.launcher} trains a run on one machine",
            hint="use launcher: slurm, or commands and start each under your own scheduler",
        )
    if not is_importable and config.launcher not in ("inline", "local"):
        raise PlanError(
            f"launcher {config.launcher} starts other processes, and they cannot import this model, loss or data",
            hint="define them in a module or in the script, and give data as a function without arguments",
        )
    if not is_importable or config.launcher == "inline":
        if config.launcher == "local":
            logger.warning("training in this process: model, loss or data cannot be imported by another one")
        if devices > 1:
            raise PlanError(
                f"{devices} devices a run need processes of their own, and this sweep is trained inline",
                hint="use launcher: local, with model, loss and data that can be imported",
            )
        return InlineLauncher(train)
    asked_gpus = devices if trainer.get("accelerator") in _GPU else 0
    if config.launcher == "slurm":
        return SlurmLauncher(
            config.slurm,
            sweep.path / "slurm",
            config.jobs,
            devices=devices,
            num_nodes=num_nodes,
            gpus=asked_gpus if config.slurm.gpus is None else config.slurm.gpus,
        )
    if config.launcher == "ray":
        gpus = asked_gpus if config.ray.gpus is None else config.ray.gpus
        return RayLauncher(config.ray, config.jobs, gpus=gpus)
    if config.launcher == "commands":
        return CommandsLauncher(sweep.path / "commands.txt")
    cards = _cards(config, visible_gpus(trainer), devices, sweep, experiments)
    jobs = config.jobs or (1 if cards is None and _is_apple_gpu(trainer) else None)
    return LocalLauncher(_ENTRY, jobs, devices=devices, cards=cards)


def devices_of(trainer: Mapping[str, Any]) -> int:
    """Devices that train one run together on one machine."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, (list, tuple)):
        return len(devices)
    return int(devices) if str(devices).lstrip("-").isdigit() and int(devices) > 0 else 1


def visible_gpus(trainer: Mapping[str, Any]) -> list[str]:
    """Ids of the NVIDIA GPUs of this machine that runs may use; none where runs train elsewhere."""
    import torch

    if trainer.get("accelerator", "auto") not in ("auto", *_GPU) or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def _is_apple_gpu(trainer: Mapping[str, Any]) -> bool:
    """Whether runs train on the one GPU of an Apple machine, where side by side they would only be slower."""
    import torch

    return trainer.get("accelerator", "auto") in ("auto", "gpu", "mps") and torch.backends.mps.is_available()


def _cards(
    config: SweepConfig, gpus: Sequence[str], devices: int, sweep: SweepDirectory, experiments: Sequence[Experiment]
) -> CardBook | None:
    if not gpus:
        return None
    groups = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
    if not groups:
        raise PlanError(f"trainer.devices={devices}, and {len(gpus)} GPUs can be seen", hint="ask for fewer devices")
    if config.runs_per_gpu == 1 or devices > 1:
        return CardBook(groups)
    capacity = free_memory(gpus)
    if capacity is None:
        logger.warning("runs_per_gpu: nvidia-smi does not tell the memory of %s, so runs share none", ", ".join(gpus))
    runs = [Job(run=sweep.run(e.experiment_id), flops=e.flops, num_params=e.num_params) for e in experiments]
    peaks = [peak_of(job) for job in runs if job.run.state() is RunState.COMPLETED]
    return CardBook(
        groups, capacity=capacity, runs_per_card=config.runs_per_gpu, peaks=[p for p in peaks if p is not None]
    )
