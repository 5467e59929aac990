"""Augmented samples are the same on any number of devices, micro-batches and workers, and after a resume."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from flops_fit.train.data import sweep_data
from flops_fit.train.seeding import drawing


class Augmented(Dataset):
    """Draws from all three generators."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.tensor([i, random.random(), np.random.rand(), torch.rand(()).item()]), torch.tensor(float(i))


def masked(samples):
    x, y = torch.utils.data.default_collate(samples)
    return x + torch.rand(()), y


def rows(source=None, start: int = 0, world: int = 1, accumulate: int = 1, seed: int = 3) -> torch.Tensor:
    """All samples from a step on, in the order in which the run sees them."""
    data = sweep_data(source or Augmented(), val=Augmented(), batch_size=8)
    ranks = [
        list(data.batches(8, 12, seed, start=start, rank=r, world=world, accumulate=accumulate)) for r in range(world)
    ]
    return torch.cat([x for micro in zip(*ranks, strict=True) for x, _ in micro])


def test_a_sample_draws_what_its_position_says() -> None:
    whole = rows()
    assert len(whole) == 96
    assert torch.equal(rows(world=2), whole)
    assert torch.equal(rows(accumulate=4), whole)
    assert torch.equal(rows(world=2, accumulate=2), whole)
    assert torch.equal(rows(start=7), whole[56:])


def test_workers_draw_the_same() -> None:
    assert torch.equal(rows(DataLoader(Augmented(), batch_size=8, num_workers=2)), rows())


def test_a_sample_draws_anew_in_every_epoch_and_for_every_seed() -> None:
    whole = rows()
    first = [row[1:] for row in whole if row[0] == 5]
    assert len(first) in (2, 3)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(rows(seed=4)[0], whole[0])


def test_nothing_is_missed_outside() -> None:
    data = sweep_data(Augmented(), val=Augmented(), batch_size=8)
    batches = iter(data.batches(8, 12, 0, start=0, rank=0, world=1, accumulate=1))
    states = random.getstate(), torch.get_rng_state()
    next(batches)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_collate_function_that_draws_is_resumed_exactly() -> None:
    loader = DataLoader([(torch.zeros(2), 0.0)] * 40, batch_size=8, collate_fn=masked)
    whole = rows(loader)
    assert torch.equal(rows(loader, start=5), whole[40:])
    assert len(whole[:, 0].unique()) == 12


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_drawing_is_noticed(draw) -> None:
    assert drawing(draw)[1]
    assert drawing(lambda: 3) == (3, False)
    assert not sweep_data([(torch.zeros(2), 0.0)] * 40, val=Augmented(), batch_size=8).is_random
