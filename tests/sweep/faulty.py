"""Models that die, fail and starve, and sweeps of them, importable by the processes that tests start."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
import toy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from flops_fit.runs.directory import RunDirectory
from flops_fit.study import Study, plan_study
from flops_fit.sweep.config import SweepConfig
from flops_fit.train.recipe import PythonRecipe


class Dying(toy.Net):
    """Killed by the system in its tenth training step, a number of times for each width named."""

    def __init__(self, width: int, graves: str = "", deaths: dict[str, int] | None = None) -> None:
        super().__init__(width)
        self.file, self.deaths, self.calls = Path(graves) / f"deaths{width}", (deaths or {}).get(str(width), 0), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += x.device.type != "meta" and self.training
        if self.calls == 10 and self.deaths > len(self.file.read_text() if self.file.exists() else ""):
            with open(self.file, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Greedy(toy.Net):
    """Wants more memory than there is."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            torch.empty(1 << 60, dtype=torch.uint8)
        return super().forward(x)


class Heavy(toy.Net):
    """The checkpoints of one size are large."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("ballast", torch.zeros(1_500_000 if width == 8 else 1))


class Waiting(toy.Net):
    """Goes no further than its third training step until a file is there."""

    def __init__(self, width: int, gate: str) -> None:
        super().__init__(width)
        self.gate, self.calls = Path(gate), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += x.device.type != "meta" and self.training
        while self.calls == 3 and not self.gate.exists():
            time.sleep(0.05)
        return super().forward(x)


def learnable(count: int = 2000, seed: int = 0) -> TensorDataset:
    """Any of these models improves on it at once."""
    x = torch.randn(count, toy.FEATURES, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, 3 + x.sum(dim=1))


class Data(toy.Module):
    """The same for a config."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(learnable(), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(learnable(256, seed=1), batch_size=64)


def recipe(model_cls: type = toy.Net, **model_kwargs: object) -> PythonRecipe:
    return PythonRecipe(
        model_cls=model_cls,
        model_kwargs=model_kwargs,
        loss_fn=toy.squared_error,
        dataset=learnable,
        batch_size=64,
        module_kwargs={"lr": 1e-2},
    )


def study(folder: Path, source: PythonRecipe, budgets: list[float], **options: object) -> Study:
    options = {"sizes": [4, 6, 8], "launcher": "inline", "checkpoint_interval": 0} | options
    config = SweepConfig(size_param="width", compute_budgets=budgets, output_dir=folder, min_steps=5, **options)
    return plan_study(source, config)


class At(pl.Callback):
    """Does something to the world before a training step, or before the evaluation, of the runs of a name."""

    def __init__(self, step: int | None, action: Callable[[], None], only: str = "") -> None:
        self.step, self.action, self.only = step, action, only

    def _act(self, trainer: pl.Trainer, step: int | None) -> None:
        if step == self.step and self.only in str(trainer.default_root_dir):
            self.action()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._act(trainer, trainer.global_step)

    def on_validation_start(self, trainer, module):
        self._act(trainer, None)


def config(
    folder: Path, net: str, launcher: str = "local", compute_budgets: tuple[float, ...] = (1e6, 2e6, 4e6), **arguments
) -> Path:
    """A sweep of one of these models, in a file."""
    net_config = {"class_path": net, "init_args": arguments}
    values = {
        "model": {
            "class_path": "flops_fit.ScalingModule",
            "init_args": {"net": net_config, "loss_fn": "toy.squared_error", "lr": 0.01},
        },
        "data": {"class_path": "faulty.Data", "init_args": {"batch_size": 32}},
        "trainer": {"accelerator": "cpu"},
        "sweep": {
            "size_param": "width",
            "compute_budgets": list(compute_budgets),
            "sizes": [4, 6, 8],
            "min_steps": 5,
            "launcher": launcher,
            "output_dir": str(folder / "out"),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sweep.yaml"
    file.write_text(json.dumps(values))
    return file


def numbers(run: RunDirectory) -> tuple[bytes, dict[str, Tensor]]:
    """What must not depend on what happened to a run."""
    return run.metrics.read_bytes(), torch.load(run.checkpoint, weights_only=True)["state_dict"]


def same(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether two runs have left the same bytes."""
    (rows, weights), (others, other_weights) = numbers(one), numbers(other)
    return rows == others and all(torch.equal(w, other_weights[name]) for name, w in weights.items())
