"""kill -9, SIGTERM and SIGINT at random moments change no bit: the short form of ``benchmarks/torture.py``."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest

from flops_fit.runs.directory import RunState
from flops_fit.train.recipe import read_run_config
from flops_fit.train.run import train_run

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import torture

SEED = 0
# The real command takes seconds to start; of processes that Lightning starts itself see test_ddp.
SHORT = [case for case in torture.CASES if case.name != "ddp, command"]


@pytest.fixture(scope="module")
def forks() -> Iterator[torture.Forks]:
    server = torture.Forks()
    yield server
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_kills_at_random_moments_change_no_bit(
    tmp_path: Path, forks: torture.Forks, case: torture.Case, record_property: pytest.RecordProperty
) -> None:
    record_property("seed", SEED)
    kills = 1 if case.command else 2
    outcome = torture.torture(case, tmp_path, kills, forks, random.Random(f"{SEED} {case.name}"))
    print(f"seed {SEED}\n{torture.table([outcome])}")
    assert not outcome.problems
    assert outcome.metrics == outcome.runs, "metrics.csv differs"
    assert outcome.weights == outcome.runs, "weights differ"
    assert outcome.kills >= kills


def test_a_loader_with_a_state_goes_on_from_its_place_and_reads_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, stop = 60, 40
    monkeypatch.setattr("flops_fit.train.order._NOTE_SECONDS", 0.0)  # its place is noted now and then, else
    run = torture.Case(name="bookmark", data=torture.bookmarked, steps=steps, interval=1e9).write(tmp_path)

    class Stop(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

    def built(*callbacks: pl.Callback) -> int:
        experiment, make_parts = read_run_config(run)
        parts = make_parts()
        parts.trainer["callbacks"] = list(callbacks)
        before = torture.Bookmarked.built
        train_run(run, experiment, lambda: parts)
        return torture.Bookmarked.built - before

    looked_at = 2  # to see what a batch is
    assert stop <= built(Stop()) <= stop + 1 + looked_at
    assert run.state() is RunState.INTERRUPTED
    assert built() <= steps - stop + looked_at
    assert run.state() is RunState.COMPLETED
