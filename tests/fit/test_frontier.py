import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import FitError
from flops_fit.fit.frontier import FrontierStatus, fit_frontier, fit_frontier_draws
from flops_fit.laws import ParametricLaw

EPOCH = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)
BUDGETS = np.geomspace(1e18, 1e21, 7)


def noisy(sd, seed=0, budgets=BUDGETS):
    return EPOCH.optimal_loss(budgets) * np.exp(sd * np.random.default_rng(seed).standard_normal(len(budgets)))


@pytest.mark.parametrize("gamma", [0.05, 0.1785, 0.3, 0.4, 0.5, 1.0])
def test_a_noiseless_law_is_recovered_however_steep(gamma):
    # A bound of 1e5 on k in raw FLOPs, as another fitter has it, returns gamma .259 for .3 and says nothing.
    C = np.geomspace(1e18, 1e20, 5)
    fit = fit_frontier(C, 1 + 2 * (C / 1e18) ** -gamma)
    assert fit.gamma == pytest.approx(gamma, rel=1e-9)
    assert fit.l_inf == pytest.approx(1, abs=1e-9)
    assert np.log(fit.law.k) == pytest.approx(np.log(2) + gamma * np.log(1e18), abs=1e-8)
    assert fit.status is FrontierStatus.IDENTIFIED
    assert fit.r_squared == pytest.approx(1)
    assert fit.log_r_squared == pytest.approx(1)
    low, high = fit.gamma_interval()
    assert low <= gamma <= high
    assert high - low < 1e-6


def test_the_frontier_of_a_surface_is_its_law():
    fit = fit_frontier(BUDGETS, EPOCH.optimal_loss(BUDGETS))
    assert fit.l_inf == pytest.approx(EPOCH.E, rel=1e-7)
    assert fit.gamma == pytest.approx(EPOCH.frontier_exponent(), rel=1e-7)
    assert fit.law(1e25) == pytest.approx(EPOCH.optimal_loss(1e25), rel=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(7)), st.floats(1e-12, 1e12), st.floats(0.01, 100))
def test_order_and_units_change_only_the_unit(order, unit_C, unit_L):
    L, order = noisy(0.003), list(order)
    one, other = fit_frontier(BUDGETS, L), fit_frontier(BUDGETS[order] * unit_C, L[order] * unit_L)
    assert other.gamma == pytest.approx(one.gamma, rel=1e-5)
    assert other.l_inf == pytest.approx(one.l_inf * unit_L, rel=1e-5)
    assert other.status is one.status
    np.testing.assert_allclose(other.l_inf_interval(), np.multiply(one.l_inf_interval(), unit_L), rtol=1e-4)


def test_the_fit_is_a_minimum():
    L = noisy(0.003)
    fit = fit_frontier(BUDGETS, L)

    def rss(l_inf, log_k, gamma):
        return np.sum((l_inf + np.exp(log_k - gamma * np.log(BUDGETS)) - L) ** 2 / L**2)

    at = np.array([fit.l_inf, np.log(fit.law.k), fit.gamma])
    for step in 1e-3 * np.vstack([np.eye(3), -np.eye(3)]):
        assert rss(*(at + step)) > rss(*at)


@pytest.mark.slow
def test_intervals_cover_what_they_claim():
    # 95 %: binomial error over 400 repetitions is 1.1 points; the loss far beyond is the answer that people use.
    far, truth = 1e23, EPOCH.optimal_loss(1e23)
    for budgets, sd in ((BUDGETS, 0.003), (BUDGETS, 0.001), (np.geomspace(1e18, 1e20, 4), 0.003)):
        hits = np.zeros(3)
        for seed in range(400):
            fit = fit_frontier(budgets, noisy(sd, seed, budgets))
            for i, (interval, value) in enumerate(
                (
                    (fit.l_inf_interval(), EPOCH.E),
                    (fit.gamma_interval(), EPOCH.frontier_exponent()),
                    (fit.predict_interval(far), truth),
                )
            ):
                hits[i] += interval[0] <= value <= interval[1]
        assert np.all(hits / 400 >= 0.91), (len(budgets), sd, hits / 400)
        assert np.all(hits / 400 <= 0.99), (len(budgets), sd, hits / 400)


def test_a_wider_level_contains_a_narrower_and_both_the_estimate():
    fit = fit_frontier(BUDGETS, noisy(0.003))
    for wide, narrow, value in (
        (fit.gamma_interval(0.95), fit.gamma_interval(0.8), fit.gamma),
        (fit.l_inf_interval(0.95), fit.l_inf_interval(0.8), fit.l_inf),
        (fit.predict_interval(1e23, 0.95), fit.predict_interval(1e23, 0.8), fit.law(1e23)),
    ):
        assert wide[0] <= narrow[0] <= value <= narrow[1] <= wide[1]


def test_three_budgets_do_not_identify_the_law():
    fit = fit_frontier(BUDGETS[:3], noisy(0)[:3])
    assert fit.status is FrontierStatus.NOT_IDENTIFIED
    assert "at least 4" in fit.reason
    assert fit.gamma_interval() is fit.l_inf_interval() is fit.predict_interval(1e23) is None


def test_noise_over_a_short_span_does_not_identify_the_law():
    budgets = np.geomspace(1e18, 1e19, 5)
    fit = fit_frontier(budgets, noisy(0.01, seed=1, budgets=budgets))
    assert fit.status is FrontierStatus.NOT_IDENTIFIED
    assert "reaches" in fit.reason


def test_a_pure_power_law_has_no_irreducible_loss():
    fit = fit_frontier(BUDGETS, 3 * (BUDGETS / 1e18) ** -0.07 * np.exp(0.003 * np.sin(np.arange(7) * 2)))
    assert fit.l_inf_interval()[0] == 0
    assert fit.status is FrontierStatus.NOT_IDENTIFIED
    assert fit.reason == "the 95 % interval of l_inf reaches 0"


def test_a_given_gamma_is_held():
    gamma = EPOCH.frontier_exponent()
    fit = fit_frontier(BUDGETS[:2], noisy(0)[:2], gamma=gamma)
    assert fit.status is FrontierStatus.GAMMA_GIVEN
    assert fit.gamma == gamma
    assert fit.l_inf == pytest.approx(EPOCH.E)
    assert fit.l_inf_interval() is None
    wide, narrow = fit_frontier(BUDGETS, noisy(0.003)), fit_frontier(BUDGETS, noisy(0.003), gamma=gamma)
    assert narrow.gamma_interval() is None
    assert np.ptp(narrow.predict_interval(1e23)) < 0.6 * np.ptp(wide.predict_interval(1e23))


def test_an_interval_with_gamma_given_is_that_of_linear_regression():
    from scipy import stats

    L, gamma = noisy(0.003), 0.15
    fit = fit_frontier(BUDGETS, L, gamma=gamma)
    X = np.stack([np.ones(7), (BUDGETS / 1e20) ** -gamma], axis=1) / L[:, None]
    beta, rss, *_ = np.linalg.lstsq(X, np.ones(7), rcond=None)
    half = stats.t.ppf(0.975, 5) * np.sqrt(rss[0] / 5 * np.linalg.inv(X.T @ X)[0, 0])
    np.testing.assert_allclose(fit.l_inf_interval(), (beta[0] - half, beta[0] + half), rtol=1e-6)


def test_a_prior_on_gamma_rules_where_data_are_few_and_fades_as_they_grow():
    prior = (0.3, 0.02)
    two = fit_frontier(BUDGETS[:2], noisy(0)[:2], gamma_prior=prior)
    assert two.gamma == pytest.approx(0.3, abs=1e-3)
    assert two.gamma_prior == prior
    assert two.status is FrontierStatus.NOT_IDENTIFIED
    low, high = two.gamma_interval()
    assert low < 0.28 < 0.32 < high
    many = np.geomspace(1e16, 1e24, 40)
    assert fit_frontier(many, noisy(0.001, 0, many), gamma_prior=prior).gamma == pytest.approx(
        EPOCH.frontier_exponent(), abs=0.01
    )


def test_a_prior_that_says_nothing_changes_nothing():
    L = noisy(0.003)
    free, vague = fit_frontier(BUDGETS, L), fit_frontier(BUDGETS, L, gamma_prior=(0.2, 100.0))
    assert vague.gamma == pytest.approx(free.gamma, rel=1e-4)


def test_draws_are_fits_one_by_one():
    L = np.array([noisy(0.003, seed) for seed in range(20)])
    L[3, 0] = np.nan
    L[4, 2:] = np.nan
    for options in ({}, {"gamma": 0.2}, {"gamma_prior": (0.2, 0.05)}):
        laws = fit_frontier_draws(BUDGETS, L, **options)
        for row in range(20):
            seen = np.isfinite(L[row])
            if seen.sum() < 3 and not options:
                assert np.isnan(laws.k[row])
                continue
            law = fit_frontier(BUDGETS[seen], L[row, seen], **options).law
            assert laws.offset[row] == pytest.approx(law.offset, abs=1e-4)
            assert laws(1e23)[row] == pytest.approx(law(1e23), rel=1e-5)


def test_what_has_no_such_law_is_refused():
    with pytest.raises(FitError, match="at least 3 different budgets"):
        fit_frontier(BUDGETS[:2], [3.0, 2.9])
    with pytest.raises(FitError, match="does not fall"):
        fit_frontier(BUDGETS[:4], [2.0, 2.1, 2.2, 2.3])
    with pytest.raises(FitError, match="positive"):
        fit_frontier(BUDGETS[:4], [2.0, 1.9, np.nan, 1.7])
    assert np.isnan(fit_frontier_draws(BUDGETS[:4], np.array([[2.0, 2.1, 2.2, 2.3]])).k).all()
