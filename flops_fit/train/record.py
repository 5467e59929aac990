"""What every run records of itself in ``result.json``, beside its plan: how it was trained, where, and how fast.

What was not measured is None, never 0.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from flops_fit.experiment import Experiment
from flops_fit.flops import flops_per_sample
from flops_fit.randomness import PrivateRandomness
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import read_metrics
from flops_fit.train.environment import cpu_name, versions
from flops_fit.train.evaluate import Evaluation
from flops_fit.train.module import ScalingModule
from flops_fit.train.order import RepeatedBatches

if TYPE_CHECKING:
    from flops_fit.train.attempt import RunParts

# The training loss is told as a mean over so much of the run: single batches scatter (Porian et al. 2024,
# arXiv:2406.19146, smooth over as much).
_SMOOTHED_SHARE = 0.05
# Of the facts that a run is started with, those that are no part of its record.
_NOT_RECORDED = ("checkpoint_interval", "loggers")

# NVIDIA's data sheet of the H200 SXM, without sparsity [FLOP/s].
_H200 = {
    torch.bfloat16: 989.5e12,
    torch.float16: 989.5e12,
    "tf32": 494.7e12,
    torch.float32: 67e12,
    torch.float64: 34e12,
}


class Effort(pl.Callback):
    """Wall and CPU seconds of a run's training, summed over the processes that went on with it one after the other.

    Evaluation and start-up are not in it, nor what a killed process did after its last checkpoint.

    Attributes:
        seconds: By the clock; None before any training.
        cpu_seconds: Of this process, its threads and its ended children; None where the system does not say.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.cpu_seconds: float | None = None
        self._running: tuple[float, float] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clocks."""
        self._running = time.monotonic(), _cpu_seconds()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop the clocks."""
        self._add_up()
        self._running = None

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        self._add_up()
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The sums, after a resume."""
        self.seconds, self.cpu_seconds = state_dict["seconds"], state_dict["cpu_seconds"]

    def recall(self, checkpoint: Mapping[str, Any]) -> None:
        """The sums from a checkpoint of a run whose training had ended."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved is not None:
            self.load_state_dict(saved)

    def _add_up(self) -> None:
        if self._running is not None:
            now = time.monotonic(), _cpu_seconds()
            self.seconds = (self.seconds or 0.0) + now[0] - self._running[0]
            self.cpu_seconds = (self.cpu_seconds or 0.0) + now[1] - self._running[1]
            self._running = now


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_record(
    run: RunDirectory,
    experiment: Experiment,
    parts: RunParts,
    trainer: pl.Trainer,
    *,
    evaluation: Evaluation,
    loader: object,
    accumulate: int,
    effort: Effort,
    largest_gradient_norm: float | None,
) -> dict[str, Any]:
    """All that ``result.json`` says of a run that was trained and evaluated, as plain values.

    Args:
        run: Its directory, with all rows of ``metrics.csv``.
        experiment: What was planned, which is what was trained.
        parts: What it was trained with.
        trainer: After training and evaluation.
        evaluation: On the held-out data.
        loader: What ``parts.data.batches`` returned.
        accumulate: Micro-batches a step and device.
        effort: Its clocks.
        largest_gradient_norm: Over all steps, before clipping.
    """
    module, data = parts.module, parts.data
    facts = {k: v for k, v in parts.facts.items() if k not in _NOT_RECORDED}
    samples = samples_in_pass(data.num_samples, loader)
    assert experiment.steps is not None
    trained_samples = experiment.steps * parts.batch_size
    per_sample = experiment.num_tokens // trained_samples
    tokens_in_pass = None if samples is None else samples * per_sample
    counted = _counted_flops(experiment, parts, facts.get("flops_rule"), experiment.num_tokens / trained_samples)
    tokens = facts.get("unit", "tokens") == "tokens"
    return (
        experiment.to_dict()
        | facts
        | {
            "loss": evaluation.loss,
            "bits_per_token": evaluation.loss / math.log(2) if tokens else None,
            "bits_per_byte": evaluation.loss / math.log(2) / data.bytes_per_token if data.bytes_per_token else None,
            "metrics": evaluation.metrics,
            "evaluation_tokens": evaluation.num_tokens,
            "unique_tokens": min(experiment.num_tokens, tokens_in_pass or experiment.num_tokens),
            "epochs": None if samples is None else trained_samples / samples,
            "data_fingerprint": data.fingerprint,
            "data_notes": list(data.notes),
            "batch_tokens": experiment.num_tokens // experiment.steps,
            "micro_batch": parts.batch_size // (accumulate * trainer.world_size),
            "accumulate": accumulate,
            "flops_6nd": 6.0 * experiment.num_params * experiment.num_tokens,
            "flops_counted": counted,
            "largest_gradient_norm": largest_gradient_norm,
        }
        | _training_loss(run)
        | _recipe(module, trainer)
        | _speed(experiment, trainer, counted, effort)
        | _machine(module, trainer)
    )


def samples_in_pass(num_samples: int | None, loader: object) -> int | None:
    """Samples that one pass through the training data sees; None where no pass has ended, and none has a length."""
    if isinstance(loader, RepeatedBatches) and loader.first_epoch is not None:
        return loader.first_epoch * loader.batch
    return num_samples


def _counted_flops(experiment: Experiment, parts: RunParts, rule: str | None, tokens_per_sample: float) -> float | None:
    """Training compute counted on the model; None where it cannot be counted."""
    if rule == "counted":
        return experiment.flops
    module = parts.module
    try:
        with PrivateRandomness(0), torch.device("meta"):
            net = module.build_network(**experiment.size_arguments(parts.size_param))
            flops = flops_per_sample(net, module.compute_loss, parts.data.example)
    except Exception:  # a model that does not run there is a model all the same
        return None
    return flops / tokens_per_sample * experiment.num_tokens if flops else None


def _training_loss(run: RunDirectory) -> dict[str, Any]:
    """The training loss at the end of the run, and where it was lowest, as means over a twentieth of the rows."""
    losses = [float(row["train_loss"]) for row in read_metrics(run.metrics) if row["train_loss"]]
    width = max(1, round(_SMOOTHED_SHARE * len(losses)))
    means = [math.fsum(losses[i : i + width]) / width for i in range(len(losses) - width + 1)]
    return {"train_loss": means[-1] if means else None, "train_loss_min": min(means, default=None)}


def _recipe(module: ScalingModule, trainer: pl.Trainer) -> dict[str, Any]:
    """How the run was optimised."""
    kind = type(module)
    is_ours = kind.lr_factor is ScalingModule.lr_factor and (
        kind.configure_optimizers is ScalingModule.configure_optimizers
    )
    taker = module.step_taker
    clip = (taker.clip, taker.algorithm) if taker else (trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
    optimizer = _optimizer(module, trainer)
    warmup = max(1, round(module.warmup_fraction * module.total_steps))
    groups = [] if optimizer is None else optimizer.param_groups
    return {
        "schedule": module.schedule if is_ours else f"{kind.__qualname__}, its own",
        "horizon_steps": module.total_steps,
        "warmup_steps": warmup if is_ours else None,
        "decay_steps": (0 if module.schedule == "constant" else module.total_steps - warmup) if is_ours else None,
        "optimizer": None if optimizer is None else type(optimizer).__name__,
        "lr": module.lr,
        "param_groups": [
            {
                "lr": _plain(group.get("initial_lr", group["lr"])),
                "weight_decay": _plain(group.get("weight_decay")),
                "betas": [_plain(b) for b in group["betas"]] if "betas" in group else None,
                "num_params": sum(p.numel() for p in group["params"]),
            }
            for group in groups
        ],
        "clip": clip[0] or None,
        "clip_algorithm": str(getattr(clip[1], "value", clip[1]) or "norm") if clip[0] else None,
    }


def _optimizer(module: ScalingModule, trainer: pl.Trainer) -> torch.optim.Optimizer | None:
    """What trained the run; where an earlier process has, what would."""
    found: Any = trainer.optimizers or module.configure_optimizers()
    while isinstance(found, (Mapping, Sequence)) and found:
        found = found.get("optimizer") if isinstance(found, Mapping) else found[0]
    return found if isinstance(found, torch.optim.Optimizer) else None


def _plain(value: Any) -> Any:
    """A number that may be a tensor, as capturable optimizers keep their rates."""
    return value.item() if isinstance(value, torch.Tensor) else value


def _speed(experiment: Experiment, trainer: pl.Trainer, counted: float | None, effort: Effort) -> dict[str, Any]:
    """Time, and what was done with it."""
    seconds, flops = effort.seconds, counted or experiment.flops
    peak = _peak_flops(trainer)
    rate = flops / seconds if seconds else None
    return {
        "seconds": None if seconds is None else round(seconds, 3),
        "cpu_seconds": None if effort.cpu_seconds is None else round(effort.cpu_seconds, 3),
        "tokens_per_second": experiment.num_tokens / seconds if seconds else None,
        "flops_per_second": rate,
        "peak_flops_per_second": peak,
        "utilisation": rate / peak if rate and peak else None,
    }


def _peak_flops(trainer: pl.Trainer) -> float | None:
    """What the run's devices could do at its precision, by their makers' tables; None where there is none."""
    device, precision = trainer.strategy.root_device, str(trainer.precision)
    names = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64, "transformer": torch.bfloat16}
    dtype = next((d for name, d in names.items() if precision.startswith(name)), torch.float32)
    if device.type != "cuda":
        return None
    peak = peak_of_card(torch.cuda.get_device_name(device), dtype, lambda: get_available_flops(device, dtype))
    return None if peak is None else peak * trainer.world_size


def peak_of_card(name: str, dtype: torch.dtype, lightnings: Callable[[], float | None]) -> float | None:
    """The most that a card can do with dense matrices [FLOP/s]; None where that is not known.

    Lightning's table holds the H200 by names that no driver gives, and with what only sparse matrices reach; it takes
    an L40 for an L4.

    Args:
        name: As the driver gives it.
        dtype: What is multiplied.
        lightnings: What Lightning's table says.
    """
    if "L40" in name:
        return None
    if "H200" in name:
        is_tf32 = dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
        return _H200["tf32" if is_tf32 else dtype]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return lightnings()
        except Exception:  # a name of another form than it expects
            return None


def _machine(module: ScalingModule, trainer: pl.Trainer) -> dict[str, Any]:
    """What the run was trained on; ``env.json`` says more."""
    device = trainer.strategy.root_device
    on_cuda = device.type == "cuda"
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "is_compiled": is_compiled(module),
        "peak_memory_bytes": peak_memory_bytes(device),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
        "lightning": versions()["lightning"],
        "flops_fit": versions()["flops-fit"],
    }


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether the network, or a part of it, goes through ``torch.compile``."""
    return any(
        type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that was taken: of a GPU's memory by this process, elsewhere of the main memory [bytes]."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device)) or None
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
