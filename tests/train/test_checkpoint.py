"""Checkpoints are whole or absent, hold plain values only, and bring every random state back."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flops_fit.train.checkpoint import (
    AtomicCheckpointIO,
    drop_optimizer_state,
    load_checkpoint,
    random_states,
    restore_random_states,
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
