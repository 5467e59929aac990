import numpy as np
import pytest

from flops_fit.fit.parabola import fit_parabolas


def points(seed=0):
    x = np.linspace(12, 16, 9)
    return x, 2.5 + 0.03 * (x - 14.2) ** 2 + 0.002 * np.random.default_rng(seed).standard_normal(len(x))


def test_one_parabola_is_numpys():
    x, y = points()
    fit = fit_parabolas(x, y, np.ones((1, len(x))), np.array([True]))
    c2, c1, c0 = np.polyfit(x - 14, y, 2)
    assert fit.place[0] == pytest.approx(14 - c1 / (2 * c2), abs=1e-9)
    assert fit.minimum[0] == pytest.approx(c0 - c1**2 / (4 * c2), abs=1e-12)
    assert fit.curvature[0] == pytest.approx(2 * c2)
    assert fit.inside[0]


def test_errors_are_those_of_textbook_regression():
    x, y = points()
    fit = fit_parabolas(x, y, np.ones((1, len(x))), np.array([True]))
    # Written round the minimum, the intercept is the minimum's value and the slope over the curvature its place.
    _, cov = np.polyfit(x - fit.place[0], y, 2, cov=True)
    (place_se,), (minimum_se,) = fit.errors(np.ones((1, len(x))))
    assert place_se == pytest.approx(np.sqrt(cov[1, 1]) / fit.curvature[0])
    assert minimum_se == pytest.approx(np.sqrt(cov[2, 2]))


def test_weights_are_repetitions_and_their_scale_does_not_matter():
    x, y = points()
    counts = np.array([2, 1, 0, 1, 3, 1, 1, 1, 1])
    W = np.stack([counts, 10 * counts]).astype(float)
    fit = fit_parabolas(x, y, W, np.array([True, True]))
    repeated = fit_parabolas(np.repeat(x, counts), np.repeat(y, counts), np.ones((1, counts.sum())), np.array([True]))
    np.testing.assert_allclose(fit.place, repeated.place[0])
    place_se, _ = fit.errors(W)
    assert place_se[0] == pytest.approx(place_se[1])


def test_what_cannot_be_solved_is_never_inside():
    x, y = points()
    W = np.zeros((2, len(x)))
    W[0, :2] = 1
    W[1, :3] = 1
    fit = fit_parabolas(x, y, W, np.array([False, True]))
    assert not fit.inside.any()  # three points far left of the minimum see it outside
    assert np.isnan(fit.errors(W)[0]).all()  # and three points leave no scatter
