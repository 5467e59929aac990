"""From the launch of a run to its first step, fresh and resumed; and how much work a kill costs.

    python benchmarks/launch.py [--rounds 9]

Runs of the quick start's GPT are started by a warm fork server, as the local launcher does it. Each round starts a
fresh run, kills it after a checkpoint, and starts it again: paired, medians, seconds from the order to the
first optimiser step that is new, as the run's own timing.csv tells.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory
from flops_fit.train.recipe import ConfigRecipe, write_run_config

WIDTH, STEPS, INTERVAL = 32, 2000, 0.5


def recipe() -> ConfigRecipe:
    net = {"class_path": "flops_fit.examples.GPT", "init_args": {"n_layer": 2, "vocab_size": 256, "seq_len": 64}}
    loss = "flops_fit.examples.next_token_loss"
    model = {"class_path": "flops_fit.ScalingModule", "init_args": {"net": net, "loss_fn": loss, "lr": 0.7}}
    data = {"class_path": "flops_fit.examples.StdlibText", "init_args": {"seq_len": 64, "batch_size": 4}}
    return ConfigRecipe({"model": model, "data": data, "trainer": {"accelerator": "cpu"}})


def planned(folder: Path, name: str) -> RunDirectory:
    from flops_fit.examples import GPT

    experiment = Experiment(
        experiment_id=name,
        compute_budget=1.0,
        size_param_value=WIDTH,
        num_params=GPT(WIDTH).num_params(),
        num_tokens=STEPS * 4 * 64,
        flops_per_token=1.0,
        steps=STEPS,
    )
    run = RunDirectory(folder / name)
    facts = {"size_param": "d_model", "batch_size": 4, "checkpoint_interval": INTERVAL}
    write_run_config(run, experiment, recipe().to_config(), facts)
    return run


class Server:
    """A warm fork server."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "flops_fit.sweep.forkserver", "flops_fit.train.main:train_directory"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def start(self, run: RunDirectory) -> float:
        """Order a run; returns when it was ordered [Unix time]."""
        assert self.process.stdin is not None
        at = time.time()
        self.process.stdin.write(json.dumps({"run": str(run.path.resolve()), "environment": {}}).encode() + b"\n")
        self.process.stdin.flush()
        return at

    def wait(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.readline()


def rows(run: RunDirectory) -> list[tuple[int, float]]:
    if not run.timing.exists():
        return []
    with open(run.timing, newline="") as file:
        return [(int(row["step"]), float(row["unix_time"])) for row in csv.DictReader(file) if row["unix_time"]]


def first_step(run: RunDirectory, at: float) -> float:
    """Seconds from the order to the first row written after it; that step's row may be some steps late."""
    while True:
        new = [when for _, when in rows(run) if when >= at]
        if new:
            return new[0] - at
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    fresh, resumed, lost = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder, server = Path(name), Server()
        warm = planned(folder, "warm")
        first_step(warm, server.start(warm))
        os.kill(json.loads((warm.path / "state.json").read_text())["pid"], signal.SIGKILL)
        server.wait()
        for i in range(options.rounds):
            run = planned(folder, f"run{i}")
            fresh.append(first_step(run, server.start(run)))
            while not run.checkpoint.exists():
                time.sleep(0.01)
            time.sleep(INTERVAL / 2)
            before = rows(run)[-1][1]
            os.kill(json.loads((run.path / "state.json").read_text())["pid"], signal.SIGKILL)
            server.wait()
            saved = run.checkpoint.stat().st_mtime
            lost.append(before - saved)
            resumed.append(first_step(run, server.start(run)))
            os.kill(json.loads((run.path / "state.json").read_text())["pid"], signal.SIGKILL)
            server.wait()
        assert server.process.stdin is not None
        server.process.stdin.close()
        server.process.wait()
    print(f"medians of {options.rounds} rounds [s]")
    print(f"order to first step, fresh    {statistics.median(fresh):.3f}  (largest {max(fresh):.3f})")
    print(f"order to first step, resumed  {statistics.median(resumed):.3f}  (largest {max(resumed):.3f})")
    print(f"resumed over fresh            {statistics.median(r - f for r, f in zip(resumed, fresh, strict=True)):+.3f}")
    print(
        f"work lost by a kill           {statistics.median(lost):.3f}  (largest {max(lost):.3f}; interval {INTERVAL})"
    )


if __name__ == "__main__":
    main()
