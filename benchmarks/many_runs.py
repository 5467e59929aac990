"""Two hundred tiny runs in one sweep: memory and open files of the process that conducts it, and the time of status.

python benchmarks/many_runs.py [--runs 200]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit.study import plan_study, train_study
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.progress import Progress
from flops_fit.train.recipe import PythonRecipe


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 1))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def data() -> TensorDataset:
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x.sin().sum(dim=1))


def used() -> tuple[float, int]:
    """Resident memory [MB] and open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    recipe = PythonRecipe(
        model_cls=Net, model_kwargs={}, loss_fn=loss_fn, dataset=data, batch_size=16, module_kwargs={"lr": 1e-3}
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SweepConfig(
            size_param="width",
            compute_budgets=[2e5, 4e5],
            sizes=[8, 10, 12, 14, 16],
            seeds=list(range(options.runs // 10)),
            seeds_at="all",
            min_steps=5,
            output_dir=Path(folder) / "sweep",
        )
        study = plan_study(recipe, config)
        samples: list[tuple[int, float, int]] = []

        def sample(progress: Progress) -> None:
            ended = sum(n for state, n in progress.counts.items() if state.value in ("completed", "diverged"))
            samples.append((ended, *used()))

        began = time.perf_counter()
        outcome = train_study(study, on_progress=sample)
        seconds = time.perf_counter() - began
        print(f"{study.plan.num_experiments} runs in {seconds:.0f} s, {outcome.unfinished} unfinished")
        early = next(s for s in samples if s[0] >= options.runs // 20)
        late = samples[-1]
        memory = [m for _, m, _ in samples if m]
        print(f"memory [MB]: {early[1]:.0f} after {early[0]} runs, {late[1]:.0f} at the end, {max(memory):.0f} at most")
        print(
            f"open files: {early[2]} after {early[0]} runs, {late[2]} at the end, {max(s[2] for s in samples)} at most"
        )
        command = [sys.executable, "-m", "flops_fit", "status", str(config.output_dir)]
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
        print(f"flops-fit status: {statistics.median(times):.2f} s (median of 5)")


if __name__ == "__main__":
    main()
