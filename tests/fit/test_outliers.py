import numpy as np
import pytest
from sweeps import LAWS, columns, isoflop_sweep, random_sweep

from flops_fit.errors import FitError
from flops_fit.fit.outliers import find_outliers
from flops_fit.fit.parametric import fit_parametric


def clean_sweep(n, seed, noise=0.003):
    rng = np.random.default_rng(seed)
    N, D = isoflop_sweep(LAWS["epoch"], np.logspace(17, 20, 5), sizes=-(-n // 5))
    kept = rng.permutation(N.size)[:n]
    N, D = N[kept], D[kept]
    return N, D, LAWS["epoch"].loss(N, D) * np.exp(noise * rng.standard_normal(n))


def share_of_sweeps_that_lose_a_run(n_sweeps, seed):
    rng = np.random.default_rng(seed)
    lost = 0
    for i in range(n_sweeps):
        N, D, L, _ = random_sweep(rng, list(LAWS)[i % 4], contaminated=False)
        kept = rng.permutation(N.size)[: rng.integers(10, 78)]
        lost += bool(find_outliers(N[kept], D[kept], L[kept]))
    return lost / n_sweeps


def test_clean_sweeps_keep_their_runs():
    assert share_of_sweeps_that_lose_a_run(25, seed=1) <= 1 / 25


@pytest.mark.slow
def test_under_one_percent_of_clean_sweeps_lose_a_run():
    assert share_of_sweeps_that_lose_a_run(1500, seed=2) < 0.01


@pytest.mark.parametrize("n", [7, 8, 9])
def test_few_runs_cannot_convict_one(n):
    N, D, L = clean_sweep(n, seed=0)
    L[3] *= 1.5
    assert find_outliers(N, D, L) == []


@pytest.mark.parametrize("n", [15, 45, 100, 300])
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_went_wrong_is_found(n, seed):
    N, D, L = clean_sweep(n, seed)
    L[n // 2] *= 1.05
    ((index, reason),) = find_outliers(N, D, L)
    assert index == n // 2
    assert "above the surface through the other runs" in reason
    assert "standard errors" in reason


def test_several_cannot_hide_each_other():
    N, D, L = clean_sweep(50, seed=1)
    bad = [4, 11, 23, 42]
    L[bad] *= [1.05, 1.08, 0.95, 1.3]
    assert [i for i, _ in find_outliers(N, D, L)] == bad


def test_when_many_stand_out_none_is_to_blame_and_the_fit_copes():
    N, D, L = clean_sweep(100, seed=0)
    L[::6] *= 1.3
    assert find_outliers(N, D, L) == []
    assert fit_parametric(N, D, L).law.loss(N, D) == pytest.approx(LAWS["epoch"].loss(N, D), rel=0.005)


def test_exact_losses_have_no_outliers():
    N, D, _ = clean_sweep(45, seed=0)
    L = LAWS["epoch"].loss(N, D)
    assert find_outliers(N, D, L) == []
    assert find_outliers(N, D, np.round(L, 4)) == []
    L[7] *= 1.001
    assert [i for i, _ in find_outliers(N, D, L)] == [7]


def test_row_order_is_irrelevant():
    N, D, L = clean_sweep(45, seed=2)
    L[[3, 20]] *= 1.06
    order = np.random.default_rng(0).permutation(45)
    found = [i for i, _ in find_outliers(N[order], D[order], L[order])]
    assert sorted(order[found]) == [3, 20]


def test_quartile_rule_and_none():
    N, D, L = clean_sweep(45, seed=3)
    L[10] *= 1.05
    assert 10 in [i for i, _ in find_outliers(N, D, L, rule="iqr")]
    assert find_outliers(N, D, L, rule="none") == []
    with pytest.raises(FitError, match="outliers='sigma' is no rule"):
        find_outliers(N, D, L, rule="sigma")


@pytest.mark.reference
def test_the_runs_left_out_by_the_chinchilla_replication_are_found(published):
    # Besiroglu et al. (2024) left out the five highest losses by eye: the most over-sized models, trained briefly.
    runs = published("chinchilla_epoch.csv")
    found = [i for i, _ in find_outliers(*columns(runs))]
    assert set(np.flatnonzero(runs.fit_excluded)) <= set(found)
    assert len(found) <= 10
    # The few more that it finds are of the same kind.
    assert (runs.num_tokens / runs.num_params).iloc[found].max() < 1
