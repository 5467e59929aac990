"""Two analyses of known laws: the compute-equivalent gain is the one that was built in."""

import numpy as np
import pandas as pd
import pytest
from sweeps import LAWS, isoflop_sweep

from flops_fit.errors import FitError
from flops_fit.fit import analyze_runs
from flops_fit.fit.comparison import compare_analyses
from flops_fit.laws import ParametricLaw

LAW = LAWS["chinchilla"]
GAIN = 1.5


def better(law: ParametricLaw, gain: float) -> ParametricLaw:
    """The law whose loss at C is the other's at ``gain`` C: each parameter and each token is worth more."""
    each = gain**0.5
    return ParametricLaw(E=law.E, A=law.A * each**-law.alpha, B=law.B * each**-law.beta, alpha=law.alpha, beta=law.beta)


def analysis(law, *, low=1e17, high=1e19, budgets=5, noise=0.002, seed=0, draws=100):
    N, D = isoflop_sweep(law, np.geomspace(low, high, budgets), sizes=7)
    loss = law.loss(N, D) * np.exp(noise * np.random.default_rng(seed).standard_normal(N.size))
    runs = pd.DataFrame({"num_params": N, "num_tokens": D, "loss": loss})
    return analyze_runs(runs, n_bootstrap=draws)


@pytest.fixture(scope="module")
def a():
    return analysis(LAW)


@pytest.fixture(scope="module")
def b():
    return analysis(better(LAW, GAIN), low=3e17, high=3e19, seed=1)


def test_a_built_in_gain_is_found_with_its_interval(a, b):
    compared = compare_analyses(a, b)
    assert compared.overlap == pytest.approx((3e17, 1e19), rel=0.01)
    for row in compared.rows:
        assert row.gain.low < GAIN < row.gain.high
        assert row.loss_a.low < LAW.optimal_loss(row.compute_budget) < row.loss_a.high
        assert row.difference.value == pytest.approx(row.loss_b.value / row.loss_a.value - 1)
    widths = [row.gain.high / row.gain.low for row in compared.rows]
    assert widths[-1] > widths[-2] > widths[-3], "the farther, the less is known"
    assert [row.extrapolated for row in compared.rows] == [True, False, False, False, False, True, True]
    assert "b needs 1." not in compared.sentence
    assert "B needs 1." in compared.sentence
    assert "less compute than A" in compared.sentence


def test_the_second_against_the_first_is_the_inverse(a, b):
    forth = compare_analyses(a, b, compute_budgets=[3e18]).rows[0]
    back = compare_analyses(b, a, compute_budgets=[3e18 / forth.gain.value]).rows[0]
    assert back.gain.value == pytest.approx(1 / forth.gain.value, rel=0.01)
    assert back.difference.value < 0.1
    assert compare_analyses(b, a).rows[1].difference.value > 0


def test_nothing_is_better_than_itself(a):
    compared = compare_analyses(a, a)
    for row in compared.rows:
        assert row.gain.value == pytest.approx(1, rel=0.005)
        assert row.gain.low < 1 < row.gain.high
        assert row.difference.value == 0
    assert "cannot be told apart" in compared.sentence


def test_sweeps_without_a_common_budget_are_all_extrapolation(a):
    far = analysis(better(LAW, GAIN), low=1e20, high=1e22, seed=2)
    compared = compare_analyses(a, far)
    assert compared.overlap is None
    assert all(row.extrapolated for row in (*compared.rows, *compared.curve))
    assert "beyond the data" in compared.sentence


def test_a_loss_that_cannot_be_reached_bounds_nothing(a):
    floor = ParametricLaw(E=4 * LAW.E, A=LAW.A, B=LAW.B, alpha=LAW.alpha, beta=LAW.beta)
    row = compare_analyses(a, analysis(floor, seed=3), compute_budgets=[1e19]).rows[0]
    assert row.gain.value is None, "no compute takes the second below its irreducible loss"
    assert row.gain.high is None or row.gain.high < 1e-3
    assert row.difference.value > 1
    assert compare_analyses(a, a, compute_budgets=[1e18]).to_dict()["rows"][0]["compute_budget"] == 1e18


@pytest.mark.parametrize("bad", [0.0, -1e18, np.inf, np.nan])
def test_a_budget_is_a_positive_number(a, bad):
    with pytest.raises(FitError, match="positive finite"):
        compare_analyses(a, a, compute_budgets=[bad])


@pytest.mark.slow
def test_the_interval_of_the_gain_covers_what_it_claims():
    # 40 pairs: 95 % less three binomial standard errors is 85 %.
    inside = {"middle": 0, "beyond": 0}
    for seed in range(40):
        first = analysis(LAW, noise=0.005, seed=100 + seed, draws=200)
        second = analysis(better(LAW, GAIN), noise=0.005, seed=500 + seed, draws=200)
        for name, row in zip(inside, compare_analyses(first, second, compute_budgets=[1e18, 1e20]).rows, strict=True):
            inside[name] += row.gain.low < GAIN < (row.gain.high or np.inf)
    assert inside["middle"] >= 34
    assert inside["beyond"] >= 34
