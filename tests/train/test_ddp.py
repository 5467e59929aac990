"""Several processes train one run as one process does, however they are started, and none outlives the run."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
import yaml

from flops_fit.api import find_optimal
from flops_fit.cli import main
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.recipe import PythonRecipe, write_run_config

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import torture

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

TESTS = str(Path(__file__).resolve().parents[1])
STEPS, BATCH = 100, 16
TWO = {"strategy": "ddp", "devices": 2}
# No sum of float32 numbers in another order gives the same bits.
ROUNDING = 1e-6


def write(folder: Path, trainer: dict[str, Any], steps: int = STEPS, interval: float = 1e9) -> RunDirectory:
    """A run without dropout whose gradients are clipped, every step of it logged."""
    experiment = Experiment(
        experiment_id="run",
        compute_budget=1e6,
        size_param_value=8,
        num_params=toy.Net(8).num_params(),
        num_tokens=steps * BATCH,
        flops_per_token=100.0,
        steps=steps,
    )
    recipe = PythonRecipe(
        model_cls=toy.Net,
        model_kwargs={},
        loss_fn=toy.squared_error,
        dataset=toy.regression,
        batch_size=BATCH,
        module_kwargs={"lr": 1e-2},
        trainer_kwargs={"accelerator": "cpu", "gradient_clip_val": 0.5} | trainer,
    )
    run = RunDirectory(folder / experiment.experiment_id)
    facts = {"size_param": "width", "batch_size": BATCH, "checkpoint_interval": interval}
    write_run_config(run, experiment, recipe.to_config(), facts)
    return run


def losses(metrics: Path) -> list[float]:
    """Of every row: the training losses, and last the evaluation's."""
    with open(metrics, newline="") as file:
        return [float(row["train_loss"] or row["val_loss"]) for row in csv.DictReader(file)]


def assert_same_losses(one: Path, other: Path) -> None:
    expected = losses(one)
    assert len(expected) >= STEPS
    assert losses(other)[:STEPS] == pytest.approx(expected[:STEPS], rel=ROUNDING)
    # Later, and over the whole held-out set, rounding has had time to grow.
    assert losses(other) == pytest.approx(expected, rel=100 * ROUNDING)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, env=environment
    )
    print(done.stdout, done.stderr, sep="\n")
    return done


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return command("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, *words)


def eventually(holds: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def members(group: int) -> list[int]:
    """The living processes of a group, without those whose end nobody has taken note of."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has just ended
                continue
            if int(its_group) == group and state not in "ZX":
                found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def forks() -> Iterator[torture.Forks]:
    server = torture.Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, forks: torture.Forks) -> RunDirectory:
    """The run, trained by one process."""
    run = write(tmp_path_factory.mktemp("alone"), {})
    assert torture.Started(run, forks).wait() == 0
    return run


# One run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [command, torchrun])
def test_two_processes_train_as_one_does(
    tmp_path: Path, alone: RunDirectory, start: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = write(tmp_path, TWO)
    assert start("-m", "flops_fit", "run", run.path).returncode == 0
    assert run.state() is RunState.COMPLETED
    assert run.result()["world_size"] == 2
    assert_same_losses(alone.metrics, run.metrics)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_batch_is_global(
    tmp_path: Path, alone: RunDirectory, forks: torture.Forks, devices: int, accumulate: int
) -> None:
    run = write(tmp_path, {"accumulate_grad_batches": accumulate} | (TWO if devices == 2 else {}))
    assert torture.Started(run, forks, devices).wait() == 0
    assert run.result()["world_size"] == devices
    assert run.result()["num_tokens"] == STEPS * BATCH
    assert_same_losses(alone.metrics, run.metrics)


@pytest.mark.parametrize(
    ("number", "to", "by_command"),
    [
        (signal.SIGTERM, "all ranks", False),
        (signal.SIGTERM, "rank 0", False),
        (signal.SIGINT, "all ranks", False),
        (signal.SIGINT, "rank 0", False),
        (signal.SIGTERM, "all ranks", True),  # Lightning, which then starts the ranks, watches how they end
    ],
)
def test_asked_to_stop_all_ranks_save_once_and_leave(
    tmp_path: Path, forks: torture.Forks, number: signal.Signals, to: str, by_command: bool
) -> None:
    run = write(tmp_path, TWO, steps=20_000)
    process = torture.Started(run, None if by_command else forks, 2)
    assert process.wait_for(lambda: torture.last_row(run) > 0)
    if to == "rank 0":
        os.kill(process.pid, number)
    else:
        process.kill(number)
    assert process.wait() == torture.INTERRUPTED
    assert run.state() is RunState.INTERRUPTED
    assert run.checkpoint.exists()
    assert eventually(lambda: not members(process.pid))


def test_when_one_rank_is_killed_the_other_ends_and_the_run_goes_on(tmp_path: Path, forks: torture.Forks) -> None:
    whole = write(tmp_path / "whole", TWO, steps=1000)
    assert torture.Started(whole, forks, 2).wait() == 0
    run = write(tmp_path, TWO, steps=1000, interval=0.2)
    for killed in (0, 1):
        process = torture.Started(run, None)  # Lightning starts the other rank
        try:
            assert process.wait_for(process.is_training)
            rows = torture.last_row(run)
            assert process.wait_for(lambda rows=rows: torture.last_row(run) > rows and run.checkpoint.exists())
            (other,) = (pid for pid in members(process.pid) if pid != process.pid)
            os.kill([process.pid, other][killed], signal.SIGKILL)
            assert eventually(lambda group=process.pid: not members(group)), f"rank {1 - killed} lives on"
        finally:
            process.kill(signal.SIGKILL)
            assert process.wait() != 0
        assert run.state() is RunState.INTERRUPTED, run.details()
    assert torture.Started(run, forks, 2).wait() == 0
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert torture.same_weights(run, whole)


# A sweep -------------------------------------------------------------------------------------------------------------

SIZES, BUDGETS, LR = [3, 4, 6, 8], [5e5, 1.5e6, 5e6], 1e-2
CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "flops_fit.ScalingModule",
        "init_args": {"net": {"class_path": "toy.Net"}, "loss_fn": "toy.squared_error", "lr": LR},
    },
    "data": {"class_path": "toy.Module", "init_args": {"batch_size": 32}},
    "trainer": {"accelerator": "cpu"},
    "sweep": {"size_param": "width", "compute_budgets": BUDGETS, "sizes": SIZES, "min_steps": 5},
}
SCRIPT = f"""
import sys
import toy
from flops_fit import find_optimal

if __name__ == "__main__":
    find_optimal(
        model_cls=toy.Net, model_size_param="width", dataset=toy.regression, loss_fn=toy.squared_error,
        compute_budgets={BUDGETS}, sizes={SIZES}, min_steps=5, batch_size=32, lr={LR}, output_dir=sys.argv[1],
        trainer={{"accelerator": "cpu", "strategy": "ddp", "devices": 2}},
    )
"""


def all_but_the_longest(folder: Path) -> RunDirectory:
    """Take a run out of the sweep in ``folder``, so that it must be trained again."""
    runs = [RunDirectory(path) for path in (folder / "out" / "runs").iterdir()]
    longest = max(runs, key=lambda run: run.result()["steps"] if run.state() is RunState.COMPLETED else 0)
    return RunDirectory(longest.path.rename(folder / longest.run_id))


def check_sweep(folder: Path, one: RunDirectory) -> None:
    two = RunDirectory(folder / "out" / "runs" / one.run_id)
    assert two.state() is RunState.COMPLETED
    assert two.result()["world_size"] == 2
    assert losses(two.metrics)[:STEPS] == pytest.approx(losses(one.metrics)[:STEPS], rel=ROUNDING)


@pytest.mark.parametrize("start", [command, torchrun])
def test_a_sweep_from_yaml_trains_its_runs_on_two_processes(
    tmp_path: Path, start: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    fit: list[object] = ["fit", "--config", config, "--sweep.output_dir", tmp_path / "out"]
    assert main([*map(str, fit), "--sweep.launcher", "inline"]) == 0
    one = all_but_the_longest(tmp_path)
    done = start("-m", "flops_fit", *fit, "--trainer.strategy", "ddp", "--trainer.devices", 2)
    assert done.returncode == 0
    check_sweep(tmp_path, one)
    assert done.stderr.count("report: ") == 1, "one process orchestrates, the others leave quietly"


def test_a_sweep_from_python_trains_its_runs_on_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    find_optimal(
        model_cls=toy.Net,
        model_size_param="width",
        dataset=toy.regression,
        loss_fn=toy.squared_error,
        compute_budgets=BUDGETS,
        sizes=SIZES,
        min_steps=5,
        batch_size=32,
        lr=LR,
        output_dir=tmp_path / "out",
        trainer={"accelerator": "cpu"},
        launcher="inline",
    )
    one = all_but_the_longest(tmp_path)
    assert command(script, tmp_path / "out").returncode == 0
    check_sweep(tmp_path, one)
