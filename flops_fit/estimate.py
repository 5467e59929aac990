"""What a planned sweep will cost at a rate that is assumed, and how it will be trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from flops_fit.plan.cost import Circumstances, SweepCost, assumed_cost
from flops_fit.randomness import PrivateRandomness
from flops_fit.sweep.launchers.build import build_launcher, devices_of, visible_gpus
from flops_fit.sweep.launchers.local import LocalLauncher
from flops_fit.train.record import peak_of_card

if TYPE_CHECKING:
    from flops_fit.study import Study

# Of its peak, what a large model on a GPU sustains: Llama 3's pre-training reached 38 to 43 % of bf16's
# (Grattafiori et al. 2024, arXiv:2407.21783, table 4).
_UTILISATION = 0.4
# NVIDIA's data sheet of the H100 SXM: bf16, dense [FLOP/s].
_H100 = 989.4e12
# What one core of a server sustains on GPTs of 10k to 200k parameters in 32 bits: the quick start [FLOP/s].
_CORE = 15e9

_GPU = ("gpu", "cuda")


def circumstances_of(
    study: Study, *, jobs: int | None = None, price_per_hour: float | None = None, seconds_around: float = 0.0
) -> Circumstances:
    """How a sweep will be trained.

    Args:
        study: The sweep.
        jobs: Runs at a time; None for what its launcher would do here, or all at once on a cluster.
        price_per_hour: Of one device.
        seconds_around: As in ``Circumstances``.
    """
    trainer = study.recipe.trainer()
    return Circumstances(
        jobs=jobs or study.config.jobs or _places(study, trainer),
        devices=devices_of(trainer) * int(trainer.get("num_nodes") or 1),
        price_per_hour=price_per_hour,
        samples_in_pass=study.num_samples,
        lr=_peak_rates(study),
        seconds_around=seconds_around,
    )


def assume(study: Study, circumstances: Circumstances, flops_per_second: float | None = None) -> SweepCost:
    """The cost at a rate that is assumed, and says so.

    Args:
        study: The sweep.
        circumstances: How it will be trained.
        flops_per_second: Of one device; None for what is usual on the device it will be trained on [FLOP/s].
    """
    trainer = study.recipe.trainer()
    precision = str(trainer.get("precision") or "32-true")
    if flops_per_second is None:
        flops_per_second, source = _usual_rate(study, trainer, precision)
    else:
        source = f"at {_rate(flops_per_second)} a device, as given"
    return assumed_cost(
        study.plan, circumstances, flops_per_second=flops_per_second, source=source, precision=precision
    )


def _places(study: Study, trainer: dict[str, Any]) -> int:
    """How many runs the sweep's launcher would train at a time."""
    if study.config.launcher == "inline":
        return 1
    launcher = _local_launcher(study, trainer)
    if launcher is None:
        return study.plan.num_experiments if study.config.launcher != "local" else 1
    return launcher.slots


def _local_launcher(study: Study, trainer: dict[str, Any]) -> LocalLauncher | None:
    """The launcher of the sweep, where it trains in processes of this machine."""
    if study.config.launcher != "local":
        return None
    launcher = build_launcher(
        study.config,
        trainer,
        sweep=study.directory,
        experiments=study.plan.experiments,
        train=lambda _: None,
        is_importable=study.recipe.to_config() is not None,
    )
    return launcher if isinstance(launcher, LocalLauncher) else None


def _usual_rate(study: Study, trainer: dict[str, Any], precision: str) -> tuple[float, str]:
    """What a device may sustain, and where that is from [FLOP/s]."""
    if visible_gpus(trainer):
        device, dtype = torch.device("cuda", 0), _dtype(precision)
        name = torch.cuda.get_device_name(device)
        peak = peak_of_card(name, dtype, lambda: get_available_flops(device, dtype))
        if peak is not None:
            return _UTILISATION * peak, _share_of(peak, name)
    if trainer.get("accelerator") in _GPU:
        return _UTILISATION * _H100, _share_of(_H100, "an H100 in bf16")
    launcher = _local_launcher(study, trainer)
    threads = launcher.threads if launcher else int(os.environ.get("OMP_NUM_THREADS") or 1)
    rate = threads * _CORE
    return rate, f"assumed: {_rate(_CORE)} a core, as small GPTs reach on a server's, {threads} a run"


def _share_of(peak: float, name: str) -> str:
    return (
        f"assumed: {_UTILISATION:.0%} of the {_rate(peak)} of {name}, as Llama 3 reached (arXiv:2407.21783);"
        " small models reach far less"
    )


def _rate(flops_per_second: float) -> str:
    if flops_per_second >= 1e12:
        return f"{flops_per_second / 1e12:.4g} TFLOP/s"
    return f"{flops_per_second / 1e9:.4g} GFLOP/s"


def _dtype(precision: str) -> torch.dtype:
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def _peak_rates(study: Study) -> dict[int, float]:
    """The highest peak rate among the parameter groups of every size; of sizes that need a real device, none."""
    rates: dict[int, float] = {}
    if study.needs_lr:
        return rates
    for size, experiment in {e.size_param_value: e for e in study.plan.experiments}.items():
        module = study.recipe.module()
        if experiment.lr is not None:
            module.lr = experiment.lr
        try:
            with PrivateRandomness(0), torch.device("meta"):
                module.net = module.build_network(**experiment.size_arguments(study.plan.size_param))
                rates[size] = max(float(group.get("lr", module.lr)) for group in module.param_groups())
        except Exception:  # the user's: a constructor that reads values, groups of another form
            continue
    return rates
