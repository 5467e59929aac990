import numpy as np
import pytest
from sweeps import LAWS, columns, isoflop_sweep

from flops_fit.fit.bootstrap import bootstrap_weights, refit_weighted
from flops_fit.fit.parametric import fit_parametric


@pytest.fixture
def sweep():
    rng = np.random.default_rng(5)
    N, D = isoflop_sweep(LAWS["epoch"], np.logspace(18, 20, 5))
    return N, D, LAWS["epoch"].loss(N, D) * np.exp(0.004 * rng.standard_normal(N.size))


def test_weights_are_resamples_of_whole_runs():
    W = bootstrap_weights(45, 400, np.random.default_rng(0))
    assert W.shape == (400, 45)
    assert (W.sum(axis=1) == 45).all()
    assert W.mean() == 1.0
    # Each weight is binomial(45, 1/45).
    assert W.var() == pytest.approx(1 - 1 / 45, rel=0.05)


def test_same_seed_same_draws(sweep):
    fit = fit_parametric(*sweep)
    draws = [
        refit_weighted(
            *sweep,
            bootstrap_weights(45, 20, np.random.default_rng(7)),
            start=fit.theta,
            huber_delta=fit.huber_delta,
        )
        for _ in range(2)
    ]
    assert (draws[0] == draws[1]).all()


@pytest.mark.parametrize(
    "options",
    [{"huber_delta": 1e-3}, {"huber_delta": 0.005, "tied": True}, {"loss_kind": "log"}, {"loss_kind": "linear"}],
)
def test_a_replicate_is_the_fit_to_its_weights(sweep, options):
    W = bootstrap_weights(45, 6, np.random.default_rng(1))
    fit = fit_parametric(*sweep, **options)
    draws = refit_weighted(*sweep, W, start=fit.theta, **{"huber_delta": None} | options)
    for w, theta in zip(W, draws, strict=True):
        alone = fit_parametric(*sweep, weights=w, **options)
        assert theta == pytest.approx(alone.theta, rel=1e-5)


def test_a_weight_of_zero_hides_a_run(sweep):
    fit = fit_parametric(*sweep)
    shown = np.arange(45) % 5 != 0
    hidden = refit_weighted(*sweep, shown, start=fit.theta, huber_delta=fit.huber_delta)
    subset = fit_parametric(*(v[shown] for v in sweep), huber_delta=fit.huber_delta)
    assert hidden.shape == (1, 5)
    assert hidden[0] == pytest.approx(subset.theta, rel=1e-6)


def test_resamples_of_few_runs_are_finite(sweep):
    few = tuple(v[::6][:7] for v in sweep)
    fit = fit_parametric(*few)
    W = bootstrap_weights(7, 500, np.random.default_rng(0))
    assert np.isfinite(refit_weighted(*few, W, start=fit.theta, huber_delta=fit.huber_delta)).all()


@pytest.mark.slow
@pytest.mark.reference
def test_chinchilla_standard_errors_are_the_published_ones(published):
    runs = published("chinchilla_epoch.csv")
    data = columns(runs[~runs.fit_excluded])
    fit = fit_parametric(*data, huber_delta=1e-3)
    W = bootstrap_weights(240, 4000, np.random.default_rng(0))
    draws = refit_weighted(*data, W, start=fit.theta, huber_delta=1e-3)
    A, alpha, B, beta, E = draws.std(axis=0, ddof=1)
    A, B, E = (np.exp(draws[:, i]).std(ddof=1) for i in (0, 2, 4))
    # Besiroglu et al. (2024), arXiv:2404.10102: 4,000 resamples too; A and B have heavy tails.
    assert (E, alpha, beta) == pytest.approx((0.0257, 0.0154, 0.0206), rel=0.07)
    assert (A, B) == pytest.approx((124.5, 1293), rel=0.15)
