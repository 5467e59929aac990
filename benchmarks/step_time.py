"""Time of an optimiser step in a flops-fit run over that of a bare PyTorch loop: same model, data, optimizer, schedule.

    python benchmarks/step_time.py [--rounds 15]

Each round trains the same steps three ways, one after the other in this process: the bare loop, the engine as it is,
and the engine with a callback that watches single steps (automatic optimisation, one step a call). Rounds are short, a
few seconds, because a shared machine changes its pace within minutes. What is printed are medians and quartiles over
the rounds of the ratios to the round's own bare loop, and the engine's fastest round over the bare loop's fastest. The
bare loop logs nothing; the engine writes its metrics.csv, timing.csv and heartbeat as always.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import statistics
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.recipe import PythonRecipe, run_parts
from flops_fit.train.run import train_run

BATCH = 32


class Mlp(nn.Module):
    """Residual MLP: many small operations, as a small transformer has."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def data(width: int) -> TensorDataset:
    x = torch.randn(1024, 8, width, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.roll(1, dims=-1))


@dataclasses.dataclass
class Clock(pl.Callback):
    """Times the training loop; watches no step."""

    wall: float = 0.0
    cpu: float = 0.0

    def on_train_start(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


class Watcher(pl.Callback):
    """Watches single steps."""

    def on_train_batch_end(self, *_: object) -> None:
        pass


def bare(width: int, depth: int, steps: int) -> tuple[float, float]:
    torch.manual_seed(0)
    net, source = Mlp(width, depth), data(width)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    loader, done = DataLoader(source, batch_size=BATCH, shuffle=True), 0
    wall, cpu = time.perf_counter(), time.process_time()
    while done < steps:
        for x, y in loader:
            loss = loss_fn(net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - wall, time.process_time() - cpu


def engine(width: int, depth: int, steps: int, callbacks: list[pl.Callback]) -> tuple[float, float]:
    clock = Clock()
    recipe = PythonRecipe(
        model_cls=Mlp,
        model_kwargs={"depth": depth},
        loss_fn=loss_fn,
        dataset=data(width),
        val_dataset=data(width),
        batch_size=BATCH,
        module_kwargs={"lr": 1e-3},
        trainer_kwargs={"accelerator": "cpu", "callbacks": [clock, *callbacks]},
    )
    experiment = Experiment(
        experiment_id="step_time",
        compute_budget=1.0,
        size_param_value=width,
        num_params=Mlp(width, depth).num_params(),
        num_tokens=steps * BATCH,
        flops_per_token=1.0,
        steps=steps,
        seed=0,
    )
    facts = {"size_param": "width", "batch_size": BATCH, "checkpoint_interval": 60.0}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / experiment.experiment_id)
        state = train_run(run, experiment, lambda: run_parts(recipe, facts))
        assert state is RunState.COMPLETED, run.details()
    return clock.wall, clock.cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, medians of {options.rounds} paired rounds (quartiles)")
    print("width  depth  steps  bare ms           engine wall          engine cpu         single wall  fastest")
    for width, depth, steps in ((16, 2, 600), (16, 6, 300), (48, 6, 200), (96, 6, 100), (224, 6, 40)):
        ratios, times = [], []
        fastest = [math.inf, math.inf]
        for turn in range(options.rounds):
            gc.collect()
            # Bare before and after by turns: a machine that slows down in a round favours neither.
            first = bare(width, depth, steps) if turn % 2 else None
            chunked, single = engine(width, depth, steps, []), engine(width, depth, steps, [Watcher()])
            base = first or bare(width, depth, steps)
            times.append(base[0] / steps * 1e3)
            fastest = [min(fastest[0], base[0]), min(fastest[1], chunked[0])]
            ratios.append((chunked[0] / base[0], chunked[1] / base[1], single[0] / base[0]))
        told = []
        for column in zip(*ratios, strict=True):
            low, middle, high = statistics.quantiles(column, n=4)
            told.append(f"{middle:.3f} ({low:.3f}-{high:.3f})")
        line = f"{width:>5}  {depth:>5}  {steps:>5}  {statistics.median(times):>7.2f}  {'  '.join(told)}"
        print(f"{line}  {fastest[1] / fastest[0]:>7.3f}", flush=True)


if __name__ == "__main__":
    main()
