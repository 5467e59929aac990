"""A stream of random numbers that is lent and given back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from flops_fit.randomness import PrivateRandomness


def draw() -> tuple[Any, ...]:
    return random.random(), np.random.rand(), np.random.standard_normal(), torch.rand(2).tolist()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_blocks_draw_one_stream_that_the_seed_decides() -> None:
    drawn = []
    for outer_seed, seed in ((1, 7), (2, 7), (1, 8)):
        seed_all(outer_seed)
        stream, own = PrivateRandomness(seed), []
        for _ in range(3):
            with stream:
                own.append(draw())
            draw()
        drawn.append(own)
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def disturb() -> None:
    seed_all(99)
    draw()
    raise KeyError


def test_nothing_is_missed_outside_even_after_an_error() -> None:
    seed_all(3)
    expected = [draw(), draw()]
    seed_all(3)
    found = [draw()]
    with pytest.raises(KeyError), PrivateRandomness(0):
        disturb()
    found.append(draw())
    assert found == expected


def test_streams_nest() -> None:
    a, b = PrivateRandomness(0), PrivateRandomness(1)
    with a:
        first = draw()
        with b:
            inner = draw()
        second = draw()
    alone, other = PrivateRandomness(0), PrivateRandomness(1)
    with alone:
        assert [draw(), draw()] == [first, second]
    with other:
        assert draw() == inner
