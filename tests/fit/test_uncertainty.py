import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.special import stdtr
from sweeps import LAWS, columns, isoflop_sweep

from flops_fit.fit import uncertainty
from flops_fit.fit.bootstrap import bootstrap_weights, refit_weighted
from flops_fit.fit.parametric import FitStatus, fit_parametric
from flops_fit.fit.uncertainty import (
    draw_theta,
    jackknife_groups,
    jackknife_interval,
    jackknife_se,
    n_replicates_for,
    normal_draws,
    percentile_interval,
    sandwich_covariance,
    student_reach,
)
from flops_fit.laws import ParametricLaw


@pytest.fixture
def sweep():
    rng = np.random.default_rng(5)
    N, D = isoflop_sweep(LAWS["epoch"], np.logspace(18, 21, 7), width=8.0)
    return N, D, LAWS["epoch"].loss(N, D) * np.exp(0.003 * rng.standard_normal(N.size))


@pytest.mark.parametrize(
    ("n_runs", "replicates"), [(7, 1000), (2000, 1000), (4000, 500), (15_000, 200), (20_000, 200), (20_001, 0)]
)
def test_replicates_shrink_with_the_runs(n_runs, replicates):
    assert n_replicates_for(n_runs, 1000) == replicates


def test_no_more_replicates_than_asked():
    assert n_replicates_for(15_000, 100) == 100


@pytest.mark.parametrize(
    "options", [{}, {"huber_delta": 1e-3}, {"loss_kind": "log"}, {"loss_kind": "linear"}, {"tied": True}]
)
def test_sandwich_agrees_with_the_bootstrap(sweep, options):
    fit = fit_parametric(*sweep, **options)
    covariance = sandwich_covariance(fit, *sweep)
    bootstrap = draw_theta(fit, *sweep, n_draws=600, rng=np.random.default_rng(0))
    assert np.sqrt(np.diag(covariance)) == pytest.approx(bootstrap.std(axis=0), rel=0.35)
    assert np.corrcoef(bootstrap.T) == pytest.approx(
        covariance / np.sqrt(np.outer(*2 * [np.diag(covariance)])), abs=0.1
    )


@pytest.mark.reference
def test_sandwich_agrees_with_the_bootstrap_on_real_noise(published):
    runs = published("chinchilla_epoch.csv")
    data = columns(runs[~runs.fit_excluded])
    fit = fit_parametric(*data)
    bootstrap = draw_theta(fit, *data, n_draws=1000, rng=np.random.default_rng(0))
    sandwich = normal_draws(fit.theta, sandwich_covariance(fit, *data), 20_000, np.random.default_rng(0))
    for quantity in (lambda law: law.exponents()[0], lambda law: np.log(law.optimum(5.76e23)[0])):
        assert quantity(ParametricLaw.from_logs(sandwich)).std() == pytest.approx(
            quantity(ParametricLaw.from_logs(bootstrap)).std(), rel=0.13
        )


def test_only_the_ratios_of_weights_matter_to_the_sandwich(sweep):
    fit = fit_parametric(*sweep, weights=np.linspace(0.5, 2.0, sweep[0].size), loss_kind="log")
    doubled = dataclasses.replace(fit, weights=2 * fit.weights)
    assert np.diag(sandwich_covariance(doubled, *sweep)) == pytest.approx(
        np.diag(sandwich_covariance(fit, *sweep)), rel=0.1
    )


def test_tied_exponents_vary_together(sweep):
    covariance = sandwich_covariance(fit_parametric(*sweep, tied=True), *sweep)
    assert covariance[1, 1] == pytest.approx(covariance[3, 3])
    assert covariance[1, 3] == pytest.approx(covariance[1, 1])


def test_a_parameter_at_its_bound_counts_as_known(sweep):
    N, D, _ = sweep
    L = ParametricLaw(E=-0.3, A=20.0, B=20.0, alpha=0.1, beta=0.1).loss(N, D)
    L = L * np.exp(1e-3 * np.random.default_rng(0).standard_normal(N.size))
    fit = fit_parametric(N, D, L)
    assert fit.status is FitStatus.E_NOT_IDENTIFIED
    covariance = sandwich_covariance(fit, N, D, L)
    assert np.isfinite(covariance).all()
    assert covariance[4, 4] == 0.0


def test_normal_draws_have_the_moments_asked_for():
    theta = np.array([6.0, 0.35, 7.0, 0.36, 0.6])
    root = np.diag([0.2, 0.01, 0.3, 0.01, 0.02]) + 0.001
    draws = normal_draws(theta, root @ root.T, 50_000, np.random.default_rng(0))
    assert draws.mean(axis=0) == pytest.approx(theta, abs=0.01)
    assert np.cov(draws.T) == pytest.approx(root @ root.T, abs=0.002)


def test_draws_come_from_the_sandwich_where_there_are_too_many_runs(sweep, monkeypatch):
    monkeypatch.setattr(uncertainty, "LARGEST_BOOTSTRAP_RUNS", 10)
    fit = fit_parametric(*sweep)
    draws = draw_theta(fit, *sweep, n_draws=500, rng=np.random.default_rng(0))
    assert draws.shape == (500, 5)
    assert (draws == normal_draws(fit.theta, sandwich_covariance(fit, *sweep), 500, np.random.default_rng(0))).all()


def test_jackknife_leaves_one_group_out(sweep):
    fit = fit_parametric(*sweep)
    budgets = np.repeat(np.arange(7), 9)[::-1]
    thetas = jackknife_groups(*sweep, budgets, fit)
    for budget, theta in zip(np.unique(budgets), thetas, strict=True):
        kept = tuple(v[budgets != budget] for v in sweep)
        assert theta == pytest.approx(fit_parametric(*kept, huber_delta=fit.huber_delta).theta, rel=1e-5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 40])
def test_the_reach_of_students_distribution_is_the_librarys(degrees):
    levels = [0.01, 0.5, 0.8, 0.95, 0.9999]
    within = [2 * stdtr(degrees, student_reach(degrees, level)) - 1 for level in levels]
    assert within == pytest.approx(levels, abs=1e-14)  # older scipys invert it to 1e-9 only


def test_jackknife_error_of_a_mean_is_the_usual_one():
    values = np.random.default_rng(0).standard_normal((12, 2))
    without = (values.sum(axis=0) - values) / 11
    assert jackknife_se(without) == pytest.approx(values.std(axis=0, ddof=1) / np.sqrt(12))
    low, high = jackknife_interval(values.mean(axis=0), without, 0.9)
    for column in (0, 1):
        expected = stats.ttest_1samp(values[:, column], 0).confidence_interval(0.9)
        assert (low[column], high[column]) == pytest.approx((expected.low, expected.high))
    levels = np.array([0.8, 0.95])
    lows, highs = jackknife_interval(1.0, [0.9, 1.0, 1.1], levels)
    for level, a, b in zip(levels, lows, highs, strict=True):
        assert (a, b) == pytest.approx(jackknife_interval(1.0, [0.9, 1.0, 1.1], level))
    assert jackknife_interval(1.0, [0.9, 1.1], np.array([]))[0].size == 0


def test_percentile_interval():
    assert percentile_interval(np.arange(1001), 0.8) == (100, 900)
    low, high = percentile_interval(np.array([1.0, 2.0, 3.0, np.inf, np.nan]), 0.95)
    assert (low, high) == (1.0, np.inf)
    low, high = percentile_interval(np.stack([np.arange(101), -np.arange(101)], axis=1), 0.9)
    assert (list(low), list(high)) == ([5, -95], [95, -5])


def test_weights_emphasise_in_every_replicate(sweep):
    emphasis = np.linspace(0.5, 2.0, sweep[0].size)
    fit = fit_parametric(*sweep, weights=emphasis)
    draws = draw_theta(fit, *sweep, n_draws=5, rng=np.random.default_rng(3))
    W = bootstrap_weights(sweep[0].size, 5, np.random.default_rng(3)) * emphasis
    assert draws == pytest.approx(refit_weighted(*sweep, W, start=fit.theta, huber_delta=fit.huber_delta), rel=1e-9)
