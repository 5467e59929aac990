"""Out of memory, a run goes on with smaller micro-batches and comes to the same result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_run import experiment, recipe, train, write
from torch import Tensor

from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.run import is_out_of_memory

# A script, so that it can be started again for each rank. The address space is cut to what there is at the start of
# training and so many MiB more.
_CHILD = """
import resource, sys
sys.path[:0] = {path!r}
import test_memory
from flops_fit.train.main import train_directory
import lightning.pytorch as pl, torch
begin = pl.Trainer.fit
def limited(*args, **kwargs):
    torch.zeros(8, requires_grad=True).sum().backward()  # its threads are there before the limit is
    if not limited.done:
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + {room} * 2**20, resource.RLIM_INFINITY))
        limited.done = True
    return begin(*args, **kwargs)
limited.done = False
pl.Trainer.fit = limited
sys.exit(train_directory({run!r}))
"""


class Hungry(torch.nn.Module):
    """Holds 8 MiB of activations for each sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, width)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        wide = self.layer(x).mean(dim=1, keepdim=True).expand(-1, 2**20) * 1.0 if self.training else self.layer(x)
        return wide.sin().mean(dim=1) if self.training else wide.mean(dim=1).sin()


def run_with(folder: Path, room: int, **trainer: object) -> tuple[RunDirectory, subprocess.CompletedProcess[str]]:
    run = write(folder, experiment(Hungry, steps=12), recipe(Hungry, trainer=trainer), interval=60.0)
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = folder / "limited.py"
    script.write_text(_CHILD.format(path=tests, room=room, run=str(run.path)))
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}  # each thread's own would count, used or not
    return run, subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="an address space can be limited on Linux only")
def test_micro_batches_are_halved_until_they_fit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", experiment(Hungry, steps=12), recipe(Hungry))
    run, done = run_with(tmp_path, room=100)
    assert done.returncode == 0, done.stderr
    assert "out of memory with micro-batches of 16 samples: going on with smaller ones" in done.stderr
    assert run.result()["micro_batch"] < 16
    assert run.result()["loss"] == pytest.approx(whole.result()["loss"], rel=1e-5)
    assert len(run.metrics.read_text().splitlines()) == len(whole.metrics.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.skipif(sys.platform != "linux", reason="an address space can be limited on Linux only")
def test_several_processes_start_again_with_smaller_ones(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", experiment(Hungry, steps=12), recipe(Hungry))
    two = {"devices": 2, "strategy": "ddp"}
    run, done = run_with(tmp_path, room=160, **two)
    starts = 1
    while done.returncode != 0 and starts < 5:
        assert run.state() is RunState.INTERRUPTED, (done.returncode, done.stderr[-3000:])
        run, done = run_with(tmp_path, room=160, **two)
        starts += 1
    assert starts > 1
    assert run.result()["micro_batch"] < 8
    assert run.result()["world_size"] == 2
    assert run.result()["loss"] == pytest.approx(whole.result()["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="an address space can be limited on Linux only")
def test_a_run_that_fits_in_no_way_fails_and_says_so(tmp_path: Path) -> None:
    run, done = run_with(tmp_path, room=4)
    assert done.returncode == 1
    assert run.state() is RunState.FAILED
    assert "micro-batch of 1 samples, which cannot be halved" in run.details()["error"]


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
