"""Checkpoints are whole or absent, hold plain values only, and bring every random state back."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flops_fit.runs.directory import RunDirectory
from flops_fit.train.checkpoint import (
    AtomicCheckpointIO,
    drop_optimizer_state,
    load_checkpoint,
    random_states,
    restore_random_states,
    usable_checkpoint,
)


def draws() -> tuple[Any, ...]:
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.standard_normal(),
        torch.rand(2).tolist(),
    )


@pytest.mark.parametrize("half_used", [False, True])
def test_random_states_survive_a_file_that_is_loaded_without_unpickling(tmp_path: Path, half_used: bool) -> None:
    if half_used:  # a normal deviate is kept back by Python's and numpy's generators
        random.gauss(0, 1)
        np.random.standard_normal()
    AtomicCheckpointIO().save_checkpoint({"callbacks": {"states": random_states()}}, tmp_path / "last.ckpt")
    expected = draws()
    draws()
    restore_random_states(load_checkpoint(tmp_path / "last.ckpt")["callbacks"]["states"])
    assert draws() == expected


class Anything:
    """What no plain loader would accept."""


def test_what_a_user_saved_as_hyperparameters_does_not_stop_a_load(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    checkpoint = {
        "state_dict": {"w": torch.ones(2)},
        "global_step": 3,
        "hyper_parameters": {"net": Anything},
        "datamodule_hyper_parameters": Anything(),
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    loaded = load_checkpoint(file)
    assert loaded["global_step"] == 3
    assert torch.equal(loaded["state_dict"]["w"], torch.ones(2))
    assert not any("hyper" in key for key in loaded)
    assert "hyper_parameters" in checkpoint


def test_a_checkpoint_that_holds_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"state_dict": Anything()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, file)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"global_step": 2, "w": torch.zeros(10_000)}, file)
    assert load_checkpoint(file) == {"global_step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.fixture
def saved(tmp_path: Path) -> RunDirectory:
    """A run with two checkpoints, of steps 1 and 2."""
    run = RunDirectory(tmp_path / "r1")
    run.create()
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint({"global_step": step, "w": torch.randn(1000)}, run.checkpoint)
    return run


def steps(run: RunDirectory) -> dict[str, int]:
    return {p.name: load_checkpoint(p)["global_step"] for p in run.checkpoint.parent.iterdir()}


def test_the_previous_checkpoint_is_kept(saved: RunDirectory) -> None:
    assert steps(saved) == {"last.ckpt": 2, "previous.ckpt": 1}
    assert usable_checkpoint(saved) == (saved.checkpoint, [])


def test_a_run_without_checkpoints_starts_at_its_beginning(tmp_path: Path) -> None:
    assert usable_checkpoint(RunDirectory(tmp_path)) == (None, [])


DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "its end zeroed": lambda data: data[:-4096] + bytes(min(len(data), 4096)),
    "a page of it zeroed": lambda data: data[:512] + bytes(512) + data[1024:],
    "a bit flipped": lambda data: data[:1500] + bytes([data[1500] ^ 4]) + data[1501:],
    "longer": lambda data: data + b"more",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_told(saved: RunDirectory, damage: str) -> None:
    saved.checkpoint.write_bytes(DAMAGES[damage](saved.checkpoint.read_bytes()))
    path, notes = usable_checkpoint(saved)
    assert path == saved.previous_checkpoint
    assert [note.startswith("last.ckpt is damaged (") for note in notes] == [True]
    assert notes[0].endswith("went on from previous.ckpt")
    saved.previous_checkpoint.write_bytes(DAMAGES[damage](saved.previous_checkpoint.read_bytes()))
    path, notes = usable_checkpoint(saved)
    assert path is None
    assert "previous.ckpt is damaged" in notes[0]
    assert notes[0].endswith("started again from the beginning")


def test_no_flipped_bit_goes_unnoticed(saved: RunDirectory) -> None:
    data = bytearray(saved.checkpoint.read_bytes())
    for position in range(8 * len(data)):
        if position % 97:  # every bit would take too long
            continue
        data[position // 8] ^= 1 << position % 8
        saved.checkpoint.write_bytes(data)
        assert usable_checkpoint(saved)[0] == saved.previous_checkpoint, position
        data[position // 8] ^= 1 << position % 8
    saved.checkpoint.write_bytes(data)
    assert usable_checkpoint(saved) == (saved.checkpoint, [])


def test_a_damaged_file_does_not_push_out_the_whole_one_before_it(saved: RunDirectory) -> None:
    saved.checkpoint.write_bytes(b"")
    io = AtomicCheckpointIO()
    io.load_checkpoint(usable_checkpoint(saved)[0], weights_only=True)
    io.save_checkpoint({"global_step": 3}, saved.checkpoint)
    assert steps(saved) == {"last.ckpt": 3, "previous.ckpt": 1}
    io.save_checkpoint({"global_step": 4}, saved.checkpoint)
    assert steps(saved) == {"last.ckpt": 4, "previous.ckpt": 3}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_save_stopped_between_its_renames_leaves_something_to_load(
    saved: RunDirectory, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    io, replace, left = AtomicCheckpointIO(), os.replace, [renames]
    io.load_checkpoint(saved.checkpoint, weights_only=True)

    def stop(*paths: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(*paths)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"global_step": 3}, saved.checkpoint)
    path, notes = usable_checkpoint(saved)
    assert path is not None
    assert load_checkpoint(path)["global_step"] == 2
    assert notes == []


def test_a_checkpoint_is_written_after_the_rows_it_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced, fsync = tmp_path / "metrics.csv", [], os.fsync
    log.write_text("step\n1\n")
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    AtomicCheckpointIO(log, tmp_path / "not_there.csv").save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert synced == [log.stat().st_ino, (tmp_path / "last.ckpt").stat().st_ino]


def test_a_finished_run_keeps_its_weights_and_lets_go_of_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    weights = torch.randn(100)
    checkpoint = {
        "state_dict": {"w": weights},
        "global_step": 9,
        "optimizer_states": [{"m": torch.zeros(5000)}],
        "lr_schedulers": [{}],
        "loops": {"a": 1},
        "callbacks": {"rng": random_states()},
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    before = file.stat().st_size
    drop_optimizer_state(file)
    loaded = load_checkpoint(file)
    assert set(loaded) == {"state_dict", "global_step"}
    assert torch.equal(loaded["state_dict"]["w"], weights)
    assert file.stat().st_size < before / 5
    drop_optimizer_state(file)
    assert set(load_checkpoint(file)) == {"state_dict", "global_step"}
