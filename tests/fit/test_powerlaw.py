import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import FitError
from flops_fit.fit.powerlaw import fit_power_law, log_log_line

C = np.geomspace(1e17, 1e19, 6)


def noisy(seed=0, sd=0.1):
    return 0.1 * C**0.5 * np.exp(sd * np.random.default_rng(seed).standard_normal(len(C)))


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1), st.floats(1e-9, 1e9))
def test_points_on_a_power_law_return_it(exponent, k):
    fit = fit_power_law(C, k * C**exponent)
    assert fit.law.exponent == pytest.approx(exponent, abs=1e-12)
    np.testing.assert_allclose(fit.law(1e24), k * 1e24**exponent, rtol=1e-9)


def test_errors_are_those_of_textbook_regression():
    y = noisy()
    fit = fit_power_law(C, y)
    (slope, intercept), cov = np.polyfit(np.log(C), np.log(y), 1, cov=True)
    assert fit.law.exponent == pytest.approx(slope)
    assert np.log(fit.law.k) == pytest.approx(intercept)
    assert fit.exponent_se == pytest.approx(np.sqrt(cov[0, 0]))
    assert fit.log_k_se == pytest.approx(np.sqrt(cov[1, 1]))
    assert fit.r_squared == pytest.approx(np.corrcoef(np.log(C), np.log(y))[0, 1] ** 2)
    np.testing.assert_allclose(fit.covariance, np.diag([fit.level_se**2, fit.exponent_se**2]))


def test_repeated_points_are_weights():
    y, weights = noisy(), np.array([1, 2, 1, 3, 1, 0])
    weighted, repeated = (
        fit_power_law(C, y, weights=weights),
        fit_power_law(np.repeat(C, weights), np.repeat(y, weights)),
    )
    assert weighted.law.exponent == pytest.approx(repeated.law.exponent)
    assert weighted.law.k == pytest.approx(repeated.law.k)
    assert weighted.n == 5


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(len(C))), st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_order_and_units_change_only_the_scale(order, unit_C, unit_y):
    y, order = noisy(), list(order)
    one, other = fit_power_law(C, y), fit_power_law(C[order] * unit_C, y[order] * unit_y)
    assert other.law.exponent == pytest.approx(one.law.exponent, abs=1e-10)
    assert other.exponent_se == pytest.approx(one.exponent_se, rel=1e-6)
    assert other.law(1e22 * unit_C) == pytest.approx(one.law(1e22) * unit_y)


def test_intervals_cover_the_law():
    target, hits = 1e21, 0
    for seed in range(400):
        low, high = fit_power_law(C, noisy(seed)).predict_interval(target, 0.9)
        hits += low <= 0.1 * target**0.5 <= high
    assert 0.86 <= hits / 400 <= 0.94


def test_two_points_give_a_line_and_no_errors():
    fit = fit_power_law([1e18, 1e19], [1.0, 10.0])
    assert fit.law.exponent == pytest.approx(1)
    assert fit.r_squared is fit.exponent_se is fit.log_k_se is fit.covariance is None
    assert np.isnan(fit.predict_interval(1e20)).all()


def test_what_has_no_line_is_refused():
    with pytest.raises(FitError, match="two different budgets"):
        fit_power_law([1e18, 1e18], [1.0, 2.0])
    with pytest.raises(FitError, match="positive"):
        fit_power_law([1e18, 1e19, 1e20], [1.0, -2.0, 3.0])


def test_many_lines_at_once_are_the_lines_one_by_one():
    x, z = np.log(C), np.log([noisy(1), noisy(2), noisy(3)])
    z[1, 2] = np.nan
    z[2, 1:] = np.nan
    center, level, slope = log_log_line(x, z, np.isfinite(z).astype(float))
    for row in (0, 1):
        seen = np.isfinite(z[row])
        law = fit_power_law(C[seen], np.exp(z[row, seen])).law
        assert slope[row] == pytest.approx(law.exponent)
        assert level[row] - slope[row] * center[row] == pytest.approx(np.log(law.k))
    assert np.isnan(slope[2])
