"""A run trains on as many devices as were asked for, or says why not: a cluster never reduces them without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from test_run import FACTS, experiment, recipe

from flops_fit.errors import RunError
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.ranks import check_world_size, cluster_plugins, planned_world_size, rank_here
from flops_fit.train.recipe import run_parts
from flops_fit.train.run import train_run

TWO: dict[str, Any] = {"accelerator": "cpu", "strategy": "ddp", "devices": 2}
VARIABLES = "JOB_ID JOB_NAME NTASKS NTASKS_PER_NODE STEP_NUM_TASKS STEP_ID PROCID LOCALID NODEID"


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(f"SLURM_{v}" for v in VARIABLES.split()), "RANK", "LOCAL_RANK", "NODE_RANK"]:
        monkeypatch.delenv(name, raising=False)


def inside(monkeypatch: pytest.MonkeyPatch, **variables: int) -> None:
    """In a task of an allocation."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 1),
        ({"devices": 4, "num_nodes": 2}, 8),
        ({"devices": "3"}, 3),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0,2,"}, 2),
        ({"devices": "auto"}, None),
        ({"devices": -1}, None),
    ],
)
def test_the_processes_asked_for(arguments: dict[str, Any], expected: int | None) -> None:
    assert planned_world_size(arguments) == expected


def test_what_slurm_would_reduce_ends_the_run_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside(monkeypatch, NTASKS=1, PROCID=0, LOCALID=0, NODEID=0)
    asked = TWO | {"plugins": [SLURMEnvironment(auto_requeue=False)]}  # as Lightning would choose it by itself
    assert pl.Trainer(**asked, logger=False).world_size == 1, "nothing would have been said"
    run = RunDirectory(tmp_path / "run")
    assert train_run(run, experiment(), lambda: run_parts(recipe(trainer=asked), FACTS)) is RunState.FAILED
    error = run.details()["error"]
    assert "trainer asks for 2 devices (devices x num_nodes), and there are 1 processes" in error
    assert "--ntasks-per-node" in error


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_task_that_is_no_rank_of_the_run_starts_its_own(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    inside(monkeypatch, NTASKS=tasks, STEP_NUM_TASKS=tasks, STEP_ID=0, PROCID=0, LOCALID=0)
    (plugin,) = cluster_plugins(TWO)
    assert isinstance(plugin, LightningEnvironment)
    trainer = pl.Trainer(**TWO, plugins=[plugin], logger=False)
    assert trainer.world_size == 2
    check_world_size(trainer, TWO)


def test_tasks_that_are_the_ranks_are_taken_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    inside(monkeypatch, NTASKS=2, NTASKS_PER_NODE=2, STEP_NUM_TASKS=2, STEP_ID=0, PROCID=1, LOCALID=1, NODEID=0)
    (plugin,) = cluster_plugins(TWO)
    assert isinstance(plugin, SLURMEnvironment)
    assert rank_here(TWO) == 1
    with pytest.raises(RunError, match=r"asks for 4 devices .* there are 2 processes"):
        check_world_size(pl.Trainer(**TWO, plugins=[plugin], logger=False), TWO | {"devices": 4})


def test_outside_of_a_cluster_lightning_decides() -> None:
    assert cluster_plugins(TWO) == []
    assert rank_here(TWO) == 0
