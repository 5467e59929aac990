"""Sizes round a number of parameters: exact for what transformers are, never beside what is known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.plan.nearest import params_at, sizes_near


def transformer(width, layers=6, vocab=5000):
    return 12 * layers * width**2 + 2 * vocab * width + 13 * width + 7


@pytest.mark.parametrize("width", [40, 96, 512, 4096, 16384])
def test_a_width_is_extrapolated_exactly(width):
    known = {w: transformer(w) for w in (64, 128, 192, 256)}
    assert params_at(known, width) == pytest.approx(transformer(width), rel=0.02 if 64 < width < 256 else 0.001)


def test_a_depth_with_its_width_is_extrapolated_exactly():
    known = {depth: transformer(64 * depth, depth) for depth in (2, 4, 6, 8)}
    assert params_at(known, 32) == pytest.approx(transformer(64 * 32, 32), rel=0.001)


@settings(max_examples=50)
@given(st.sets(st.integers(1, 60), min_size=1, max_size=8), st.floats(1e3, 1e12), st.sampled_from([None, 1, 8, 64]))
def test_the_two_sizes_are_multiples_and_enclose_the_target(widths, target, multiple):
    known = {8 * w: transformer(8 * w) for w in widths}
    below, above = sizes_near(known, target, multiple)
    step = multiple or math.gcd(*known)
    assert below > 0
    assert below % step == above % step == 0
    assert above == below + step
    if below > step:
        assert params_at(known, below) < target <= params_at(known, above) * (1 + 1e-9)


def test_n_rises_with_the_size_whatever_is_known():
    known = {16: 1000, 24: 1010, 32: 5000}  # no polynomial of the size
    values = [params_at(known, size) for size in range(8, 80)]
    assert values == sorted(values)
    assert [params_at(known, s) for s in known] == [1000, 1010, 5000]
    assert params_at({64: 1e6}, 128) == pytest.approx(4e6), "of one size nothing but the square is known"
