"""Laws whose exponents may drift: data rule where there are many, priors where there are few."""

import numpy as np
import pytest

from flops_fit.fit.local import GAMMA, SIZE_EXPONENT, fit_local_loss, fit_local_size

X = np.log(np.geomspace(1e18, 1e21, 7))


def rng():
    return np.random.default_rng(0)


def test_many_sure_optima_outvote_the_prior():
    law = fit_local_size(X, 0.3 * X + 2, np.full(7, 0.01), 2000, rng())
    assert np.median(law(1e22)) == pytest.approx(0.3 * np.log(1e22) + 2, abs=0.1)


def test_two_optima_follow_the_prior_where_they_are_unsure():
    x = X[:2]
    law = fit_local_size(x, np.array([20.0, 20.0 + 1.0 * (x[1] - x[0])]), np.full(2, 0.3), 4000, rng())
    slope = (np.median(law(1e22)) - np.median(law(1e21))) / np.log(10)
    assert slope == pytest.approx(SIZE_EXPONENT[0], abs=0.05)


def test_intervals_widen_beyond_the_data():
    law = fit_local_size(X, 0.5 * X, np.full(7, 0.03), 2000, rng())
    widths = [np.std(law(C)) for C in (1e21, 1e22, 1e24)]
    assert widths[0] < widths[1] < widths[2]


def test_inside_the_data_the_law_passes_near_the_optima():
    y = 0.5 * X + 0.1 * np.array([0, 1, 2, 2.5, 2.5, 2, 1])
    law = fit_local_size(X, y, np.full(7, 0.01), 500, rng())
    for x, value in zip(X, y, strict=True):
        assert np.median(law(np.exp(x))) == pytest.approx(value, abs=0.06)


def test_the_loss_law_finds_its_own_gamma_and_otherwise_the_published_one():
    truth = 1.7 + 300.0 * np.exp(-0.13 * X)
    law = fit_local_loss(X, truth, np.full(7, 0.0005), 2000, rng())
    assert np.median(law(1e23)) == pytest.approx(1.7 + 300.0 * 1e23**-0.13, rel=0.01)
    published = 1.7 + 1800.0 * np.exp(-GAMMA[0] * X[:3])
    law = fit_local_loss(X[:3], published, np.full(3, 0.002), 4000, rng())
    assert np.median(law(1e21)) == pytest.approx(1.7 + 1800.0 * 1e21 ** -GAMMA[0], rel=0.02)


@pytest.mark.parametrize("decades", [9, 17])
def test_a_sweep_of_many_decades_keeps_its_law(decades):
    # exp(-gamma d) spans so many orders that covariances found by subtraction are lost in rounding.
    x = np.linspace(30, 30 + decades * np.log(10), 20)
    law = fit_local_loss(x, 1.7 + 0.5 * np.exp(-0.16 * (x - x[-1])), np.full(20, 1e-3), 2000, rng())
    assert law.values[:, 2].mean() == pytest.approx(0.16, rel=0.1)
    assert law(np.exp(x[-1]))[0] == pytest.approx(2.2, rel=0.005)
    assert np.median(law(np.exp(x[-1] + 20))) == pytest.approx(1.72, rel=0.05)


def test_the_same_generator_gives_the_same_draws():
    first, second = (fit_local_loss(X, 2 + np.exp(-0.1 * (X - X[0])), np.full(7, 0.01), 50, rng()) for _ in range(2))
    assert np.array_equal(first(1e23), second(1e23))
