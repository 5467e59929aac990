"""The generalised mean: finds its g, and the surface where that is the truth."""

import numpy as np
import pytest
from sweeps import LAWS, isoflop_sweep, theta_of

from flops_fit.fit.forms import SurfaceForm
from flops_fit.fit.generalised import fit_generalised
from flops_fit.fit.parametric import fit_parametric

N, D = isoflop_sweep(LAWS["epoch"], np.geomspace(1e18, 1e21, 6), sizes=9, width=16.0)


def fit(loss):
    return fit_generalised(N, D, loss, fit_parametric(N, D, loss))


def test_a_noiseless_surface_has_g_of_one():
    found = fit(LAWS["epoch"].loss(N, D))
    assert found.theta[5] == pytest.approx(0, abs=1e-3)
    assert found.theta[:5] == pytest.approx(theta_of(LAWS["epoch"]), rel=1e-2)


@pytest.mark.parametrize("log_g", [-0.5, 0.4])
def test_a_noiseless_generalised_mean_is_found(log_g):
    truth = SurfaceForm(theta=np.append(theta_of(LAWS["epoch"]), log_g)[None])
    found = fit(np.exp(truth.log_loss(np.log(N), np.log(D))))
    assert found.theta[5] == pytest.approx(log_g, abs=0.02)


def test_draws_have_the_covariance():
    loss = LAWS["epoch"].loss(N, D) * np.exp(0.003 * np.random.default_rng(0).standard_normal(N.size))
    found = fit(loss)
    draws = found.draws(4000, np.random.default_rng(1))
    assert draws.mean(axis=0) == pytest.approx(found.theta, abs=4 * np.sqrt(found.covariance.diagonal().max() / 4000))
    assert np.sqrt(found.covariance[5, 5]) == pytest.approx(draws[:, 5].std(), rel=0.1)
    # Under noise from the surface itself, g = 1 is within a few standard errors.
    assert abs(found.theta[5]) < 4 * np.sqrt(found.covariance[5, 5])
