"""Which launcher a config becomes, and how the user's objects reach other processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import toy
from launching import prepared
from test_sweep import study

from flops_fit.cli import GOOD, main
from flops_fit.cli.main import INTERRUPTED
from flops_fit.errors import PlanError
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.study import train_study
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.launchers import Launcher
from flops_fit.sweep.launchers.build import build_launcher, visible_gpus
from flops_fit.sweep.launchers.inline import InlineLauncher
from flops_fit.sweep.launchers.local import LocalLauncher
from flops_fit.sweep.launchers.ray import RayLauncher
from flops_fit.sweep.launchers.slurm import SlurmLauncher
from flops_fit.train.main import train_directory


def built(folder: Path, trainer: dict[str, object], is_importable: bool = True, **options: object) -> Launcher:
    config = SweepConfig(size_param="width", compute_budgets=[], output_dir=folder, **options)
    return build_launcher(
        config,
        trainer,
        sweep=SweepDirectory(folder),
        experiments=[],
        train=lambda run: None,
        is_importable=is_importable,
    )


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")  # no nvidia-smi


@pytest.mark.parametrize(
    ("trainer", "options", "gpus"),
    [
        ({}, {}, 0),
        ({"accelerator": "gpu", "devices": 4}, {}, 4),
        ({"accelerator": "gpu"}, {"slurm": {"gpus": 0}, "ray": {"gpus": 0}}, 0),
        ({"accelerator": "auto"}, {"slurm": {"gpus": 2}, "ray": {"gpus": 2}}, 2),
    ],
)
def test_a_cluster_is_asked_for_the_gpus_that_the_trainer_wants(
    tmp_path: Path, trainer: dict[str, object], options: dict[str, object], gpus: int
) -> None:
    on_slurm = built(tmp_path, trainer, launcher="slurm", **options)
    on_ray = built(tmp_path, trainer, launcher="ray", **options)
    assert isinstance(on_slurm, SlurmLauncher)
    assert isinstance(on_ray, RayLauncher)
    assert on_slurm.gpus == on_ray.gpus == gpus


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_a_slot_and_none_is_shared_while_its_memory_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = built(tmp_path, {}, runs_per_gpu=4)
    assert isinstance(launcher, LocalLauncher)
    assert launcher.slots == 2
    assert "nvidia-smi does not tell the memory of 0, 1, so runs share none" in caplog.text
    pair = built(tmp_path, {"accelerator": "gpu", "devices": 2})
    assert isinstance(pair, LocalLauncher)
    assert pair.slots == 1
    with pytest.raises(PlanError, match=r"devices=4, and 2 GPUs can be seen"):
        built(tmp_path, {"accelerator": "gpu", "devices": 4})


@pytest.mark.usefixtures("two_gpus")
def test_the_gpus_are_those_this_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus({"accelerator": "cpu"}) == []
    assert visible_gpus({}) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a")
    assert visible_gpus({"accelerator": "cuda"}) == ["3", "GPU-a"]


def test_the_one_gpu_of_an_apple_machine_trains_one_run_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    launchers = [built(tmp_path, {"accelerator": name}) for name in ("auto", "mps", "cpu")]
    assert [launcher.slots == 1 for launcher in launchers if isinstance(launcher, LocalLauncher)][:2] == [True, True]


@pytest.mark.parametrize("launcher", ["local", "inline", "ray"])
def test_several_machines_a_run_need_slurm(tmp_path: Path, launcher: str) -> None:
    with pytest.raises(PlanError, match=f"num_nodes=2: launcher {launcher} trains a run on one machine"):
        built(tmp_path, {"num_nodes": 2}, launcher=launcher)


# --- the user's objects: by name, from a script (tests/test_api.py), or only in this process


def test_what_a_module_holds_is_named_in_the_config(tmp_path: Path) -> None:
    job = prepared(tmp_path, budgets=[1e6], sizes=[4])[0]
    recipe = json.loads(job.run.config.read_text())["recipe"]
    assert (recipe["model_cls"], recipe["loss_fn"]) == ("toy:Net", "toy:squared_error")


def test_live_objects_are_trained_in_this_process_and_it_is_said_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Live(toy.Net):
        pass

    planned = study(tmp_path, [1e6], sizes=[4], launcher="local", model_cls=Live)
    with caplog.at_level(logging.WARNING):
        assert train_study(planned).counts == {RunState.COMPLETED: 1}
    told = [r.getMessage() for r in caplog.records if r.name.startswith("flops_fit.sweep")]
    assert told == ["training in this process: model, loss or data cannot be imported by another one"]


def test_another_process_says_that_live_objects_are_not_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Live(toy.Net):
        pass

    run = prepared(tmp_path, budgets=[1e6], sizes=[4], model_cls=Live)[0].run
    assert train_directory(str(run.path)) == 1
    assert "run your script or notebook again; it resumes" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["slurm", "ray", "commands"])
def test_live_objects_reach_no_other_machine(tmp_path: Path, launcher: str) -> None:
    with pytest.raises(PlanError, match=f"launcher {launcher} starts other processes"):
        built(tmp_path, {}, is_importable=False, launcher=launcher)


def test_live_objects_are_trained_on_one_device(tmp_path: Path) -> None:
    assert isinstance(built(tmp_path, {}, is_importable=False), InlineLauncher)
    with pytest.raises(PlanError, match="2 devices a run need processes of their own"):
        built(tmp_path, {"devices": 2}, is_importable=False)


# --- commands, from the command line


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``fit`` of a small sweep in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["flops-fit"])  # Lightning warns where there are both
    Path("sweep.yaml").write_text(SWEEP)
    return ["fit", "--config", "sweep.yaml"]


def test_commands_are_written_and_it_is_said_where(
    words: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([*words, "--sweep.launcher=commands"]) == INTERRUPTED
    lines = Path("out/commands.txt").read_text().splitlines()
    assert len(lines) == 9
    assert "9 commands are in out/commands.txt" in caplog.text
    err = capsys.readouterr().err
    assert "no analysis yet: no run of out is completed" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_same_command_analyses_what_the_commands_have_left(words: list[str]) -> None:
    main([*words, "--sweep.launcher=inline", "--only=width4"])
    assert main([*words, "--sweep.launcher=commands"]) == INTERRUPTED
    lines = Path("out/commands.txt").read_text().splitlines()
    assert len(lines) == 6
    assert not any("width4" in line for line in lines)
    assert main([*words, "--sweep.launcher=inline"]) == GOOD
    analysis = Path("out/analysis.json").read_bytes()
    assert main([*words, "--sweep.launcher=commands"]) == GOOD
    assert Path("out/analysis.json").read_bytes() == analysis


SWEEP = """
model:
  class_path: flops_fit.ScalingModule
  init_args: {net: toy.Net, loss_fn: toy.squared_error, lr: 0.01}
data: {class_path: toy.Module, init_args: {batch_size: 64}}
trainer: {accelerator: cpu}
sweep: {size_param: width, sizes: [4, 6, 8], compute_budgets: [5e5, 1e6, 2e6], min_steps: 5, output_dir: out}
"""
