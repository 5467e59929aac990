"""Which sizes at which budgets: numbers in, numbers out."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import PlanError
from flops_fit.plan.grid import (
    MAX_BATCH_TOKENS,
    bracket,
    checked_budgets,
    ladder,
    largest_batch,
    log_spaced,
    pick_sizes,
    sensible_multiple,
    why_dropped,
)


@pytest.mark.parametrize(
    ("budgets", "shown"),
    [
        ([1e17, 0], "0"),
        ([-1e18], "-1e+18"),
        ([math.nan], "nan"),
        ([math.inf], "inf"),
        ([True], "True"),
        ([None], "None"),
        ([], "none"),
        (1e18, "1e+18"),
        ("1e18", "'1e18'"),
        ([0, "1e18", -2.5, "-3e18"], "0, -2.5, -3e+18"),
    ],
)
def test_budgets_that_are_no_positive_numbers_are_refused_all_at_once(budgets: list[float], shown: str) -> None:
    with pytest.raises(PlanError) as caught:
        checked_budgets(budgets)
    assert caught.value.problem == f"compute budgets must be a list of positive numbers of FLOPs; got {shown}"
    assert "compute_budgets=[1e17, 3e17, 1e18]" in str(caught.value)


def test_text_that_is_no_amount_of_compute_says_so() -> None:
    with pytest.raises(PlanError, match="compute_budgets: 'x' is not an amount of compute"):
        checked_budgets([1e18, "x"])


def test_budgets_are_ascending_and_distinct() -> None:
    assert checked_budgets([3e18, 1e18, 3e18]) == [1e18, 3e18]
    assert checked_budgets(["1 PF-days", 1e18]) == [1e18, 8.64e19]
    assert checked_budgets(np.array([10**18, 3 * 10**18])) == [1e18, 3e18]
    assert checked_budgets(np.logspace(17, 19, 3)) == pytest.approx([1e17, 1e18, 1e19])
    assert checked_budgets(b for b in (2e18, 1e18)) == [1e18, 2e18]
    # A run's name holds six digits of its budget: what floating point makes of 0.3e18 must not be a second run of it.
    assert len(checked_budgets([3e17, 3e17 * (1 + 1e-15)])) == 1


@pytest.mark.parametrize(
    ("size", "multiple"),
    [(1, 1), (7, 1), (15, 1), (16, 2), (63, 4), (64, 8), (128, 16), (256, 32), (512, 64), (12_288, 64), (2**20, 1024)],
)
def test_small_sizes_are_rounded_finely_and_large_ones_to_64(size: int, multiple: int) -> None:
    assert sensible_multiple(size) == multiple


@given(st.integers(1, 5000), st.integers(1, 5000), st.one_of(st.none(), st.integers(1, 300)))
def test_a_ladder_rises_within_its_ends_on_sensible_sizes(smallest: int, largest: int, multiple: int | None) -> None:
    sizes = ladder(largest, multiple, smallest)
    assert all(a < b for a, b in pairwise(sizes))
    assert all(smallest <= s <= largest and s % (multiple or sensible_multiple(s)) == 0 for s in sizes)


def test_a_ladder_of_millions_is_short() -> None:
    assert len(ladder(10**9, None)) < 25_000


@given(st.floats(1.0, 1e9), st.floats(1.0, 1e4), st.integers(2, 9))
def test_log_spacing_is_even_and_keeps_its_ends(low: float, ratio: float, count: int) -> None:
    values = log_spaced(low, low * ratio, count)
    assert (values[0], values[-1]) == pytest.approx((low, low * ratio))
    assert np.diff(np.log(values)) == pytest.approx(np.log(ratio) / (count - 1), abs=1e-9)
    assert log_spaced(low, low * ratio, 1) == pytest.approx([low * math.sqrt(ratio)])


class Widths:
    """N = 12 n_layer d^2 + vocab d, where d divides by the heads; remembers what was built."""

    def __init__(self, heads: int = 1, n_layer: int = 12, vocab: int = 0) -> None:
        self.heads, self.n_layer, self.vocab = heads, n_layer, vocab
        self.built: set[int] = set()

    def __call__(self, size: int) -> int | None:
        self.built.add(size)
        return None if size % self.heads else 12 * self.n_layer * size**2 + self.vocab * size


@settings(max_examples=30)
@given(st.floats(1e6, 1e10), st.integers(2, 9), st.sampled_from([0, 50_000]))
def test_picked_sizes_are_distinct_and_near_their_targets(centre: float, count: int, vocab: int) -> None:
    num_params = Widths(vocab=vocab)
    targets = log_spaced(centre / 4, centre * 4, count)
    candidates = ladder(20_000, None)
    chosen = pick_sizes(targets, candidates, num_params)
    assert len(chosen) == len(set(chosen)) == count
    every = np.array([num_params(s) for s in candidates])
    for size, target in zip(chosen, targets, strict=True):
        nearest = np.abs(np.log(every / target)).min()
        assert abs(math.log(num_params(size) / target)) <= nearest + 0.1  # type: ignore[operator]


def test_few_sizes_are_built_to_pick_some() -> None:
    num_params = Widths(vocab=50_000)
    pick_sizes(log_spaced(1e9, 16e9, 7), ladder(20_000, None), num_params)
    assert len(num_params.built) < 25


def test_no_size_is_taken_far_from_every_target() -> None:
    num_params = Widths()
    chosen = pick_sizes(log_spaced(num_params(256) or 0, num_params(512) or 0, 7), [64, 256, 512, 4096], num_params)
    assert chosen == [256, 512]


def test_sizes_that_cannot_be_built_are_passed_over() -> None:
    num_params = Widths(heads=12)
    candidates = [s for s in ladder(3072, None) if s >= 12]
    chosen = pick_sizes(log_spaced(1e7, 1.6e8, 7), candidates, num_params)
    assert len(chosen) >= 5
    assert all(size % 12 == 0 for size in chosen)


def test_bracket_doubles_until_the_model_is_large_enough() -> None:
    assert bracket(Widths(), 144 * 1000**2) == 1024
    assert bracket(Widths(heads=12), 144 * 1000**2, start=12) == 1536
    assert bracket(Widths(), 1.0) == 1


def test_a_size_parameter_that_changes_nothing_is_told() -> None:
    with pytest.raises(
        PlanError, match=r"never gave a model of 1e\+09 parameters; the largest .* has 1e\+03"
    ) as caught:
        bracket(lambda size: 1000, 1e9)
    assert "check the size parameter" in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "steps", "reason"),
    [
        (99.0, None, r"only 0\.099 tokens per parameter \(at least 0\.1\)"),
        (1_000_001.0, None, r"1000 tokens per parameter \(at most 1000\)"),
        (2_500_000.0, None, r"2500 tokens per parameter \(at most 1000\)"),
        (20_000.0, 149, r"only 149 optimiser steps \(at least 150\); a smaller batch would give more"),
    ],
)
def test_a_cell_that_teaches_nothing_is_dropped_with_the_reason(tokens: float, steps: int | None, reason: str) -> None:
    assert re.fullmatch(reason, why_dropped(1000, tokens, steps, 150) or "kept")


@pytest.mark.parametrize(("tokens", "steps"), [(100.0, None), (1_000_000.0, 150), (20_000.0, 1000)])
def test_a_cell_that_teaches_is_kept(tokens: float, steps: int | None) -> None:
    assert why_dropped(1000, tokens, steps, 150) is None


@given(st.floats(1e3, 1e13), st.integers(1, 4096))
def test_the_batch_leaves_a_thousand_steps(tokens: float, per_sample: int) -> None:
    batch = largest_batch(tokens, per_sample)
    assert batch & (batch - 1) == 0
    if batch > 1:
        assert tokens / (batch * per_sample) >= 1000
        assert batch * per_sample <= MAX_BATCH_TOKENS
    assert tokens / (2 * batch * per_sample) < 1000 or 2 * batch * per_sample > MAX_BATCH_TOKENS
