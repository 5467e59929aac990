"""Strategies that shard the model pass through: each rank holds a part, the run resumes and ends as on one device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_run import experiment, final_weights

from flops_fit.runs.directory import RunDirectory
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import ConfigRecipe, write_run_config

STRATEGY = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {
        "data_parallel_size": 2,
        "tensor_parallel_size": 1,
        "save_distributed_checkpoint": False,
        "process_group_backend": "gloo",
    },
}


class Sharded(ScalingModule):
    """Shards the network's layers over the ranks."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        is_sharded = any("FSDP" in type(module).__name__ for module in self.net.modules())  # called for each stage
        if not is_sharded and self.device_mesh is not None:
            for layer in self.net.layers:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def config(trainer: dict) -> ConfigRecipe:
    model = {
        "class_path": "test_sharded.Sharded",
        "init_args": {"net": {"class_path": "toy.Net"}, "loss_fn": "toy.squared_error", "lr": 1e-2},
    }
    data = {"class_path": "toy.Module", "init_args": {"batch_size": 16}}
    return ConfigRecipe(
        {"model": model, "data": data, "trainer": {"accelerator": "cpu", "gradient_clip_val": 1.0} | trainer}
    )


def start(run: RunDirectory) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    command = [sys.executable, "-m", "flops_fit", "run", str(run.path)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.ddp
def test_a_sharded_run_is_killed_resumed_and_ends_as_on_one_device(tmp_path: Path) -> None:
    facts = {"size_param": "width", "batch_size": 16, "checkpoint_interval": 0.0}
    runs = []
    for name, trainer in (("one", {}), ("two", {"devices": 2, "strategy": STRATEGY})):
        run = RunDirectory(tmp_path / name)
        write_run_config(run, experiment(), config(trainer).to_config(), facts)
        runs.append(run)
    one, two = runs
    process = start(two)
    while not two.checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for run in runs:
        process = start(run)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert two.result()["loss"] == pytest.approx(one.result()["loss"], rel=1e-4)
    assert two.result()["world_size"] == 2
    assert {k: v.shape for k, v in final_weights(two).items()} == {k: v.shape for k, v in final_weights(one).items()}
