import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import FitError
from flops_fit.fit.budgets import fit_compute_rule, group_budgets, named_ratio
from flops_fit.laws import SIX_ND


def jittered(budgets, *, runs, jitter, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([C * (1 + rng.uniform(-jitter, jitter, runs)) for C in budgets])


def test_budgets_that_round_alike_stay_apart():
    C = np.repeat([1.5e19, 2.4e19], 5)
    np.testing.assert_array_equal(group_budgets(C), C)


@settings(max_examples=30, deadline=None)
@given(st.floats(1.3, 10), st.floats(0, 0.04), st.integers(3, 12), st.integers(0, 1000))
def test_jitter_of_some_percent_neither_splits_nor_merges(factor, jitter, runs, seed):
    budgets = 1e17 * factor ** np.arange(5)
    labels = group_budgets(jittered(budgets, runs=runs, jitter=jitter, seed=seed)).reshape(5, runs)
    assert np.all(labels == labels[:, :1])
    assert np.all(np.abs(labels[:, 0] / budgets - 1) <= jitter + 1e-12)


def test_runs_of_other_experiments_are_in_no_group():
    grid = jittered([1e18, 3e18, 1e19], runs=10, jitter=0.03)
    others = np.geomspace(5e17, 2e19, 30)
    labels = group_budgets(np.concatenate([grid, others]))
    assert len(np.unique(labels[:30])) == 3
    assert np.isfinite(labels[:30]).all()
    assert np.isnan(labels[30:]).sum() >= 15


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_any_compute_have_no_budgets(seed):
    C = 10 ** np.random.default_rng(seed).uniform(18, 20, 5000)
    assert np.isnan(group_budgets(C)).all()


def test_a_budget_of_two_runs_and_a_run_without_compute_are_in_no_group():
    labels = group_budgets([1e18, 1e18, 1e18, 5e18, 5e18, np.nan, np.inf, 0.0])
    np.testing.assert_array_equal(labels, [1e18] * 3 + [np.nan] * 5)
    assert group_budgets([]).shape == (0,)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.floats(1e-9, 1e9))
def test_groups_do_not_depend_on_row_order_or_unit(random, unit):
    C = np.concatenate([jittered([1e18, 3e18, 1e19], runs=8, jitter=0.03), np.geomspace(5e17, 2e19, 20)])
    order = np.array(random.sample(range(len(C)), len(C)))
    np.testing.assert_allclose(group_budgets(C[order] * unit), group_budgets(C)[order] * unit, rtol=1e-12)


@pytest.mark.reference
def test_llama3_budgets_are_found_exactly(published):
    runs = published("llama3_isoflop.csv")
    np.testing.assert_array_equal(group_budgets(runs.flops), runs.isoflop_budget)


@pytest.mark.reference
def test_chinchilla_budgets_are_found_among_other_experiments(published):
    runs = published("chinchilla_epoch.csv")
    labelled = runs.isoflop_budget.notna().to_numpy()
    nominal, found = runs.isoflop_budget.to_numpy()[labelled], group_budgets(runs.flops)[labelled]
    grouped = np.isfinite(found)
    assert grouped.mean() > 0.9
    # One group per nominal budget, and the other way round.
    pairs = set(zip(nominal[grouped], found[grouped], strict=True))
    assert len(pairs) == len(np.unique(nominal)) == len(np.unique(found[grouped])) == 9
    assert all(abs(np.log(group / budget)) < 0.1 for budget, group in pairs)


def cells(seed=0):
    rng = np.random.default_rng(seed)
    return 10 ** rng.uniform(6, 9, 40), 10 ** rng.uniform(8, 11, 40)


def test_six_nd_is_recognised_exactly():
    N, D = cells()
    assert fit_compute_rule(N, D, 6 * N * D) == SIX_ND
    assert fit_compute_rule(N, D, 6.02 * N * D) == SIX_ND
    jitter = np.random.default_rng(1).normal(1, 0.01, len(N))
    assert fit_compute_rule(N, D, 6 * N * D * jitter) == SIX_ND


def test_a_constant_ratio_keeps_q_at_one():
    N, D = cells()
    rule = fit_compute_rule(N, D, 2 * N * D)
    assert rule.q == 1
    assert rule.k == pytest.approx(2)
    same_size = fit_compute_rule(np.full(5, 1e7), D[:5], 7 * 1e7 * D[:5])
    assert (same_size.q, same_size.k) == (1, pytest.approx(7))


def test_counted_compute_gives_its_power():
    N, D = cells()
    rule = fit_compute_rule(N, D, 30 * N**0.93 * D)
    assert (rule.k, rule.q) == (pytest.approx(30), pytest.approx(0.93))
    with pytest.raises(FitError, match="falls with model size"):
        fit_compute_rule(N, D, D / N)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1 / 3, "C is 6ND/3: forward passes only?"),
        (3, "18ND"),
        (1 / 2, "multiply-adds"),
        (2, "12ND"),
        (np.log(2), "nats and bits"),
        (1e-9, "C is in GFLOPs"),
        (1e-15, "C is in PFLOPs"),
        (1 / 8.64e19, "PF-days"),
        (1e-9 / 3, "C is in GFLOPs; then C is 6ND/3"),
        (1.7, "1.7 x 6ND in every run"),
    ],
)
def test_a_constant_ratio_is_named(factor, words):
    N, D = cells()
    assert words in named_ratio(6 * N * D * factor, N, D)


def test_a_column_in_billions_is_named():
    N, D = cells()
    assert "N is in billions" in named_ratio(6 * N * D, N / 1e9, D)
    assert "D is in millions" in named_ratio(6 * N * D, N, D / 1e6)
    assert "N and D" in named_ratio(6 * N * D, N / 1e9, D / 1e9)


def test_nothing_is_said_of_six_nd_or_counted_compute():
    N, D = cells()
    assert named_ratio(6 * N * D, N, D) is None
    assert named_ratio(30 * N**0.93 * D, N, D) is None
    assert "GFLOPs" in named_ratio(30e-9 * N**0.93 * D, N, D)
