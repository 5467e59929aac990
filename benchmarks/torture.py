"""Kill runs at random moments, start them again until they are done, compare them with undisturbed ones, bit by bit.

    python benchmarks/torture.py [--kills 40] [--seed 0] [--only TEXT] [--folder DIR]

Every case trains the same small run undisturbed, and then again in new folders, killed with its whole process group at
random moments and started with the same command until it is done, until ``--kills`` signals have met a living run.
``metrics.csv`` must be the same bytes and the final weights the same bits. Exit code 1 if any differ, if a run ended
with another code than 75 after SIGTERM or SIGINT, or if something is left among its checkpoints.

Most cases start their runs by forking a process that has torch loaded, as a sweep does, so that kills meet training
and not imports; those named "command" start ``python -m flops_fit run RUN_DIR`` each time.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.runs.files import write_atomic
from flops_fit.train.main import train_directory
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import PythonRecipe, write_run_config

BATCH, FEATURES = 16, 8
INTERRUPTED = 75
GIVE_UP_SECONDS = 60.0

# What is trained ------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """An MLP with dropout, so that a lost random state shows."""

    def __init__(self, width: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU()
        )
        self.head = nn.Linear(width, 1)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).squeeze(-1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


class OwnStep(ScalingModule):
    """A user's own step, which draws numbers of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        inputs, targets = batch
        noise = 0.1 * torch.randn_like(inputs) + 0.1 * random.gauss(0, 1)
        return self.compute_loss(self.net, (inputs + noise, targets))


def regression(count: int = 4000, seed: int = 0) -> TensorDataset:
    x = torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sin().sum(dim=1))


def few() -> TensorDataset:
    """Three batches and a rest: epochs end inside a batch."""
    return regression(3 * BATCH + 2)


def held_out() -> TensorDataset:
    return regression(256, seed=1)


class Slow(Dataset[Any]):
    """Takes a while to read, so that a kill finds the evaluation."""

    def __init__(self, count: int) -> None:
        self.data = regression(count, seed=1)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        time.sleep(0.0002)
        return self.data[i]


def large_held_out() -> Slow:
    return Slow(2000)


def two_workers() -> DataLoader[Any]:
    return DataLoader(regression(), batch_size=BATCH, num_workers=2)


class Augmented(Dataset[Any]):
    """Draws noise for every sample it reads."""

    def __init__(self) -> None:
        self.data = regression(200)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        x, y = self.data[i]
        return x + 0.1 * torch.randn_like(x) + 0.1 * random.gauss(0, 1), y


def augmented() -> Augmented:
    return Augmented()


def augmented_by_workers() -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=BATCH, num_workers=2)


def shuffled() -> DataLoader[Any]:
    return DataLoader(regression(200), batch_size=BATCH, shuffle=True)


class Drawn(Sampler[int]):
    """A user's own order: another draw in every epoch, some samples twice and others not at all."""

    def __len__(self) -> int:
        return 200

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randint(0, 200, (200,)).tolist())


def own_sampler() -> DataLoader[Any]:
    return DataLoader(regression(200), batch_size=BATCH, sampler=Drawn())


class Stream(IterableDataset[Any]):
    """Without a length, with noise of its own."""

    def __iter__(self) -> Iterator[Any]:
        for x, y in regression(200):
            yield x + 0.1 * torch.randn_like(x), y


class Bookmarked(DataLoader[Any]):
    """A loader that knows its place: a new order in every epoch, and ``state_dict`` says how many batches were read."""

    built = 0  # batches, by this process
    pause = 0.0  # for each of them [s]

    def __init__(self) -> None:
        super().__init__(regression(200), batch_size=BATCH)
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        per_epoch = 200 // BATCH
        while True:
            epoch, place = divmod(self.read, per_epoch)
            order = torch.randperm(200, generator=torch.Generator().manual_seed(epoch))
            self.read += 1
            Bookmarked.built += 1
            time.sleep(self.pause)
            yield self.collate_fn([self.dataset[i] for i in order[place * BATCH :][:BATCH].tolist()])
            if place == per_epoch - 1:
                return

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.read = state["read"]


def stream() -> Stream:
    return Stream()


def bookmarked() -> Bookmarked:
    return Bookmarked()


# How it is trained and killed -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train, and one way to be stopped.

    Attributes:
        name: For the table.
        data: Training data.
        held_out: Validation data.
        steps: Optimiser steps.
        width: Of the network.
        module: What trains it.
        trainer: Arguments of the Trainer.
        interval: Between checkpoints [s].
        moment: When it is killed: at any time, while a file is being written among the checkpoints, or while the run
            is evaluated.
        signals: One of them is drawn for each kill.
        command: Start the real command each time.
    """

    name: str
    data: Callable[[], Any] = regression
    held_out: Callable[[], Any] = held_out
    steps: int = 600
    width: int = 8
    module: type[ScalingModule] = ScalingModule
    trainer: dict[str, Any] = field(default_factory=dict)
    interval: float = 0.05
    moment: str = "any"
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,)
    command: bool = False

    def write(self, folder: Path) -> RunDirectory:
        """A new run directory."""
        experiment = Experiment(
            experiment_id="run",
            compute_budget=1e6,
            size_param_value=self.width,
            num_params=Net(self.width).num_params(),
            num_tokens=self.steps * BATCH,
            flops_per_token=100.0,
            steps=self.steps,
        )
        recipe = PythonRecipe(
            model_cls=Net,
            model_kwargs={},
            loss_fn=squared_error,
            dataset=self.data,
            val_dataset=self.held_out,
            batch_size=BATCH,
            module_cls=self.module,
            module_kwargs={"lr": 1e-2},
            trainer_kwargs={"accelerator": "cpu"} | self.trainer,
        )
        facts = {"size_param": "width", "batch_size": BATCH, "checkpoint_interval": self.interval}
        run = RunDirectory(folder / experiment.experiment_id)
        write_run_config(run, experiment, recipe.to_config(), facts)
        return run


DDP = {"strategy": "ddp", "devices": 2}
ANY_SIGNAL = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CASES = [
    Case(name="dropout"),
    Case(name="dropout, command", command=True),
    Case(name="dropout, 2 workers", data=two_workers),
    Case(name="any signal", signals=ANY_SIGNAL),
    Case(name="any signal, 2 workers", data=two_workers, signals=ANY_SIGNAL),
    Case(name="no checkpoint", interval=1e9),
    Case(name="every step a checkpoint", interval=0, steps=200),
    Case(name="accumulation", trainer={"accumulate_grad_batches": 4}, steps=200),
    Case(name="accumulation, any signal", trainer={"accumulate_grad_batches": 4}, steps=200, signals=ANY_SIGNAL),
    Case(name="many epochs", data=few),
    Case(name="checkpoint being written", interval=0, width=1000, steps=20, moment="checkpoint"),
    Case(name="evaluation", held_out=large_held_out, steps=200, moment="evaluation"),
    Case(name="evaluation, any signal", held_out=large_held_out, steps=200, moment="evaluation", signals=ANY_SIGNAL),
    Case(name="augmentation", data=augmented),
    Case(name="augmentation, 2 workers", data=augmented_by_workers),
    Case(name="shuffled loader", data=shuffled),
    Case(name="own sampler", data=own_sampler),
    Case(name="iterable", data=stream),
    Case(name="loader with a state", data=bookmarked),
    Case(name="own training_step", module=OwnStep),
    Case(name="own training_step, own sampler", module=OwnStep, data=own_sampler),
    Case(name="ddp", trainer=DDP, steps=300),
    Case(name="ddp, command", trainer=DDP, steps=300, command=True, signals=ANY_SIGNAL),
    Case(name="ddp, any signal", trainer=DDP, steps=300, signals=ANY_SIGNAL),
]


class Forks:
    """A process with torch loaded, as a sweep has it, that forks one process a run."""

    def __init__(self) -> None:
        here = str(Path(__file__).parent)
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._server = subprocess.Popen(
            [sys.executable, "-m", "flops_fit.sweep.forkserver", "torture:train_in_session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._orders, self._answers = self._server.stdin, self._server.stdout
        self._answers.readline()  # that it is ready
        self._codes: dict[str, int] = {}

    def start(self, run: Path, devices: int) -> int:
        """Train a run; returns the process, which leads a group of its own."""
        self._codes.pop(str(run), None)
        file = run.parent / "pid"
        file.unlink(missing_ok=True)
        order = {"run": str(run), "environment": {"TORTURE_DEVICES": str(devices)}}
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()
        while not file.exists():
            time.sleep(0.002)
        return int(file.read_text())

    def code(self, run: Path) -> int | None:
        """The exit code of a run's process, None while it lives."""
        while select.select([self._answers], [], [], 0)[0]:
            answer = json.loads(self._answers.readline())
            self._codes[answer["run"]] = answer["code"]
        return self._codes.get(str(run))

    def close(self) -> None:
        self._orders.close()
        self._server.wait()
        self._answers.close()


def train_in_session(path: str) -> int:
    """Train in a session of its own, with all ranks in it; what a forked process does."""
    os.setsid()
    write_atomic(Path(path).parent / "pid", str(os.getpid()))
    devices = int(os.environ["TORTURE_DEVICES"])
    if devices > 1:  # as torchrun does
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(devices), "LOCAL_RANK": "0"}
        for rank in range(1, devices):
            if os.fork() == 0:
                os.environ["LOCAL_RANK"] = str(rank)
                break
    return train_directory(path)


class Started:
    """A process group that trains a run: by the real command, or forked where a server for that is given."""

    def __init__(self, run: RunDirectory, forks: Forks | None, devices: int = 1) -> None:
        self._run, self._forks, self._born = run, forks, time.monotonic()
        self._seen = _changed(run)
        if forks is None:
            words = [sys.executable, "-m", "flops_fit", "run", str(run.path)]
            with open(run.log, "ab") as log:
                self._process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
            self.pid = self._process.pid
        else:
            self.pid = forks.start(run.path, devices)

    def code(self) -> int | None:
        """The exit code, None while it lives."""
        return self._process.poll() if self._forks is None else self._forks.code(self._run.path)

    def wait(self) -> int:
        """Its exit code, in the end; that of SIGKILL if it did not end by itself."""
        while (code := self.code()) is None:
            if time.monotonic() - self._born > GIVE_UP_SECONDS:
                self.kill(signal.SIGKILL)
            time.sleep(0.002)
        return code

    def wait_for(self, seen: Callable[[], bool], pause: float = 0.002) -> bool:
        """Wait until something is seen; False if the process ended before."""
        while not seen():
            if self.code() is not None or time.monotonic() - self._born > GIVE_UP_SECONDS:
                return False
            time.sleep(pause)
        return True

    def is_training(self) -> bool:
        """Whether this process, not an earlier one, has said that it trains."""
        return _changed(self._run) != self._seen

    def kill(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _changed(run: RunDirectory) -> int:
    """Changes with everything that a run says of itself."""
    try:
        return (run.path / "state.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _half_written(run: RunDirectory) -> list[str]:
    return [name for name in os.listdir(run.checkpoint.parent) if not name.endswith(".ckpt")]


def last_row(run: RunDirectory) -> int:
    """The last step that was logged, 0 before there is any."""
    try:
        rows = list(csv.DictReader(io.StringIO(run.metrics.read_text())))
    except FileNotFoundError:
        return 0
    return max((int(row["step"]) for row in rows if row["step"].isdigit() and row.get("train_loss")), default=0)


def _saved_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    files = run.checkpoint.parent.glob("*.ckpt")
    return max((int(torch.load(f, weights_only=True, map_location="cpu")["global_step"]) for f in files), default=0)


def weights(run: RunDirectory) -> dict[str, Tensor]:
    """What a completed run has learned."""
    state: dict[str, Tensor] = torch.load(run.checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    return state


def same_weights(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether every bit is the same."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].numpy().tobytes() == b[k].numpy().tobytes()
        for k in a
    )


@dataclass
class Outcome:
    """What a case came to.

    Attributes:
        kills: Signals that met a living run.
        runs: Runs that were killed again and again until they were done.
        metrics: Of these, with the same metrics.csv.
        weights: Of these, with the same final weights.
        lost: Most logged steps that a kill undid.
        half_written: Kills that left a half-written checkpoint behind.
        problems: Everything else that was wrong.
    """

    case: Case
    kills: int = 0
    runs: int = 0
    metrics: int = 0
    weights: int = 0
    lost: int = 0
    half_written: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether no kill changed anything."""
        return self.metrics == self.weights == self.runs and not self.problems


def torture(case: Case, folder: Path, kills: int, forks: Forks, rng: random.Random) -> Outcome:
    """Kill runs of a case until so many kills have met a living one.

    Args:
        case: What to train.
        folder: Where to.
        kills: How many signals must meet a living run.
        forks: Starts the runs of cases that do not ask for the command.
        rng: Draws the moments.
    """
    outcome = Outcome(case)
    devices = case.trainer.get("devices", 1)

    def start(run: RunDirectory) -> Started:
        return Started(run, None if case.command else forks, devices)

    whole = case.write(folder / "whole")
    process = start(whole)
    process.wait_for(process.is_training)
    began = time.monotonic()
    process.wait_for(lambda: last_row(whole) == case.steps, pause=0.02)
    trained = time.monotonic()
    process.wait_for(lambda: whole.state() is RunState.COMPLETED)
    seconds = time.monotonic() - (trained if case.moment == "evaluation" else began)
    if process.wait() or whole.state() is not RunState.COMPLETED:
        outcome.problems.append(f"the undisturbed run is {whole.state()}: {whole.details().get('error')}")
        return outcome

    while outcome.kills < kills:
        run = case.write(folder / f"killed{outcome.runs}")
        while run.state() is not RunState.COMPLETED:
            process = start(run)
            was_struck = outcome.kills < kills and _strike(case, run, process, seconds, rng, outcome)
            if process.wait() and not was_struck:
                break
        outcome.runs += 1
        if run.state() is not RunState.COMPLETED:
            outcome.problems.append(f"{run.path} is {run.state()}: {run.details().get('error')}")
            return outcome
        outcome.metrics += run.metrics.read_bytes() == whole.metrics.read_bytes()
        outcome.weights += same_weights(run, whole)
        if left := _half_written(run):
            outcome.problems.append(f"left behind: {', '.join(left[:3])}{' ...' * (len(left) > 3)} ({len(left)})")
    return outcome


def _strike(
    case: Case, run: RunDirectory, process: Started, seconds: float, rng: random.Random, outcome: Outcome
) -> bool:
    """Wait for the moment and send a signal; False if the run ended before."""
    before = set(_half_written(run))
    if case.moment == "any" and not case.command and rng.random() < 0.1:
        time.sleep(rng.uniform(0, 0.2))  # while it starts
    elif not process.wait_for(process.is_training):
        return False
    elif case.moment == "checkpoint":
        if not process.wait_for(lambda: not before.issuperset(_half_written(run)), pause=0.0002):
            return False
        time.sleep(rng.uniform(0, 0.002))
    elif case.moment == "evaluation":
        if not process.wait_for(lambda: last_row(run) == case.steps):
            return False
        time.sleep(rng.uniform(0, seconds))
    else:  # in what is left to train, and sometimes later than that
        left = max(0.3, 1 - _saved_step(run) / case.steps)
        time.sleep(rng.uniform(0, seconds * left))
    number = rng.choice(case.signals)
    was_training = process.is_training()
    if process.code() is not None:
        return False
    process.kill(number)
    code = process.wait()
    is_done = run.state() is RunState.COMPLETED
    if was_training and not is_done:
        outcome.kills += 1
        outcome.half_written += not before.issuperset(_half_written(run))
        outcome.lost = max(outcome.lost, last_row(run) - _saved_step(run))
    expected = {INTERRUPTED} if number != signal.SIGKILL else {-signal.SIGKILL}
    if was_training and code not in expected and not (is_done and code == 0):
        outcome.problems.append(f"exit code {code} after {signal.Signals(number).name}")
    return True


def table(outcomes: list[Outcome]) -> str:
    """A line a case."""
    head = ("case", "kills", "runs", "same metrics.csv", "same weights", "steps lost at most", "half written")
    lines = [head] + [
        (o.case.name, *map(str, (o.kills, o.runs, o.metrics, o.weights, o.lost, o.half_written))) for o in outcomes
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="for each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="only cases whose name contains it")
    parser.add_argument("--folder", type=Path, help="where to keep the runs; a temporary one otherwise")
    own = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    forks = Forks()
    folder = own.folder or Path(tempfile.mkdtemp(prefix="torture"))
    chosen = [c for c in CASES if not own.only or any(text in c.name for text in own.only)]
    outcomes = []
    print(f"seed {own.seed}, {own.kills} kills a case, in {folder}", flush=True)
    for case in chosen:
        began = time.monotonic()
        here = folder / case.name.replace(", ", "-").replace(" ", "_")
        shutil.rmtree(here, ignore_errors=True)
        outcomes.append(torture(case, here, own.kills, forks, random.Random(f"{own.seed} {case.name}")))
        print(f"{case.name}: {'good' if outcomes[-1].is_good else 'BAD'}, {time.monotonic() - began:.0f} s", flush=True)
        for problem, times in Counter(outcomes[-1].problems).items():
            print(f"  {problem}" + f" ({times} times)" * (times > 1), flush=True)
    print(table(outcomes))
    print(f"{sum(o.kills for o in outcomes)} kills met a living run")
    forks.close()
    good = all(o.is_good for o in outcomes)
    if own.folder is None and good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
