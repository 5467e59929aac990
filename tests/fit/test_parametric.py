import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from scipy.optimize import least_squares
from sweeps import LAWS, columns, isoflop_sweep, random_sweep, theta_of

from flops_fit.errors import FitError
from flops_fit.fit.newton import Objective, Runs, minimise
from flops_fit.fit.parametric import FitStatus, fit_parametric
from flops_fit.laws import ParametricLaw

# Published fits.


@pytest.mark.reference
def test_chinchilla_replication(published):
    runs = published("chinchilla_epoch.csv")
    fit = fit_parametric(*columns(runs[~runs.fit_excluded]), huber_delta=1e-3)
    assert fit.n_runs == 240
    assert fit.status is FitStatus.CONVERGED
    assert fit.objective <= 0.0010182740180 + 1e-13
    assert fit.law.E == pytest.approx(1.8172, abs=5e-5)
    assert fit.law.A == pytest.approx(477.8, abs=5e-2)
    assert fit.law.B == pytest.approx(2143, abs=5e-1)
    assert fit.law.alpha == pytest.approx(0.34731, abs=5e-6)
    assert fit.law.beta == pytest.approx(0.36717, abs=5e-6)
    assert fit.law.exponents()[0] == pytest.approx(0.51390, abs=5e-6)


@pytest.mark.reference
def test_chinchilla_replication_with_every_row(published):
    fit = fit_parametric(*columns(published("chinchilla_epoch.csv")), huber_delta=1e-3)
    assert fit.theta == pytest.approx([6.2060, 0.34931, 9.4608, 0.45305, 0.63728], abs=5e-5)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("tied", "theta", "objective"),
    [
        (False, [3.939787, 0.200265, 13.055103, 0.635662, 0.592258], 0.00502165),
        (True, [10.420252, 0.603387, 12.435556, 0.603387, 0.934152], 0.00524371),
    ],
)
def test_misfitting(published, tied, theta, objective):
    fit = fit_parametric(*columns(published("misfitting_fineweb_c4.csv")), huber_delta=1e-3, tied=tied)
    # The optimum is flat to the printed digits: they are another solver's.
    assert fit.theta == pytest.approx(theta, abs=3e-6)
    assert round(fit.objective, 8) == objective


@pytest.mark.reference
def test_misfitting_best_learning_rates(published):
    runs = published("misfitting_fineweb_c4.csv")
    best = runs.loc[runs.groupby(["num_params", "num_tokens"]).loss.idxmin()]
    fit = fit_parametric(*columns(best), huber_delta=1e-3)
    assert fit.n_runs == 81
    assert round(fit.law.A, 2) == 21.68
    assert fit.law.B == pytest.approx(8.812e5, abs=50)
    assert (round(fit.law.E, 3), round(fit.law.alpha, 4), round(fit.law.beta, 4)) == (1.398, 0.1382, 0.6699)
    assert (round(fit.law.exponents()[0], 3), round(fit.objective, 6)) == (0.829, 0.000886)


@pytest.mark.reference
def test_llama3(published):
    data = columns(published("llama3_isoflop.csv"))
    fit = fit_parametric(*data, loss_kind="linear")
    assert (round(fit.law.E, 5), round(fit.law.A, 3), round(fit.law.B, 3)) == (0.60467, 59.141, 155.114)
    assert (round(fit.law.alpha, 6), round(fit.law.beta, 6)) == (0.310006, 0.313643)
    assert round(fit.law.exponents()[0], 5) == 0.50292
    huber = fit_parametric(*data, huber_delta=1e-3).law
    assert (round(huber.E, 4), round(huber.alpha, 4), round(huber.beta, 4)) == (0.5942, 0.2835, 0.3157)
    assert round(huber.exponents()[0], 4) == 0.5268


@pytest.mark.reference
def test_over_training_extrapolates_as_published(published):
    # Gadre et al. (2024), arXiv:2403.08540: five small runs, tokens counted as 20 m N.
    runs = published("gadre_overtrain.csv")
    runs = runs[runs.family == "rpj"]
    small = [f"rpj-{shape}-1.0" for shape in ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")]
    fitted = runs[runs.run_id.isin([*small, "rpj-d=96_l=8_h=4-16.0"])]
    N, _, L = columns(fitted)
    fit = fit_parametric(N, N * fitted.tokens_per_param_nominal, L, loss_kind="linear", tied=True)
    assert (round(fit.law.A, 2), round(fit.law.B, 2)) == (166.21, 287.17)
    assert (round(fit.law.alpha, 5), round(fit.law.E, 4)) == (0.27285, 1.8366)
    for run_id, percent in (("rpj-open_lm_1b-32.0", 0.71034), ("rpj-open_lm_7b-1.0", 0.73205)):
        (run,) = runs[runs.run_id == run_id].itertuples()
        error = abs(fit.law.loss(run.num_params, run.num_params * run.tokens_per_param_nominal) / run.loss - 1)
        assert round(100 * error, 5) == percent


# The solver.


@pytest.mark.parametrize("name", ["symmetric", "chinchilla", "asymmetric"])
@pytest.mark.parametrize("width", [4.0, 16.0])
@pytest.mark.parametrize("drift", [1.0, 3.0])
@pytest.mark.parametrize("options", [{}, {"huber_delta": 1e-3}, {"loss_kind": "log"}, {"loss_kind": "linear"}])
def test_noiseless_runs_return_their_law(name, width, drift, options):
    law = LAWS[name]
    N, D = isoflop_sweep(law, np.logspace(17, 21, 5), width=width, drift=drift)
    fit = fit_parametric(N, D, law.loss(N, D), **options)
    assert fit.status is FitStatus.CONVERGED
    assert fit.law.optimum(1e24)[0] == pytest.approx(law.optimum(1e24)[0], rel=1e-9)
    assert fit.theta == pytest.approx(theta_of(law), rel=1e-9)


def worst_gap_to_rivals(n_sweeps, seed, far=100, near=20):
    """Largest relative excess of our objective over the best from the truth, from starts near and far."""
    rng = np.random.default_rng(seed)
    # Hoffmann et al. (2022): alpha, beta, log E, log A, log B.
    grid = itertools.product(*2 * [np.arange(0, 2.5, 0.5)], np.arange(-1, 1.5, 0.5), *2 * [np.arange(0, 30, 5)])
    grid = np.array(list(grid), float)[:, [3, 0, 4, 1, 2]]
    worst = 0.0
    for i in range(n_sweeps):
        name = list(LAWS)[i % 4]
        N, D, L, noise = random_sweep(rng, name)
        runs = Runs.of(N, D, L)
        for delta in (1e-3, 1.345 * noise):
            objective = Objective(runs=runs, delta=delta)
            starts = np.vstack([theta_of(LAWS[name]), grid[rng.choice(len(grid), far, replace=False)]])
            q, value, _ = minimise(objective, runs.coordinates(starts), np.ones((far + 1, N.size)))
            around = runs.theta(q[np.nanargmin(value)]) + 0.3 * rng.standard_normal((near, 5))
            _, again, _ = minimise(objective, runs.coordinates(around), np.ones((near, N.size)))
            best = min(np.nanmin(value), np.nanmin(again))
            worst = max(worst, fit_parametric(N, D, L, huber_delta=delta).objective / best - 1)
    return worst


def test_no_rival_start_finds_a_lower_objective():
    assert worst_gap_to_rivals(2, seed=11, far=6, near=4) < 1e-6


@pytest.mark.slow
def test_no_rival_start_finds_a_lower_objective_in_480_fits():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert max(pool.map(worst_gap_to_rivals, [120, 120], [11, 12])) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_an_independent_solver_finds_the_same_minimum(seed):
    rng = np.random.default_rng(seed)
    law = LAWS["epoch"]
    N, D = isoflop_sweep(law, np.logspace(17, 20, 5), width=8.0)
    L = law.loss(N, D) * np.exp(0.005 * rng.standard_normal(N.size))
    fit = fit_parametric(N, D, L, huber_delta=0.004)

    def residuals(theta):
        a, alpha, b, beta, e = theta
        terms = a - alpha * np.log(N), b - beta * np.log(D), np.full(N.size, e)
        return np.log(L) - np.logaddexp.reduce(terms)

    other = least_squares(
        residuals, theta_of(law), loss="huber", f_scale=0.004, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    assert fit.objective <= other.cost * (1 + 1e-9)
    assert fit.theta == pytest.approx(other.x, rel=1e-4)


def test_fit_is_polished_from_a_given_start():
    N, D, L, _ = random_sweep(np.random.default_rng(3), "chinchilla")
    fit = fit_parametric(N, D, L, huber_delta=0.01)
    again = fit_parametric(N, D, L, huber_delta=0.01, start=fit.theta + 0.05)
    assert again.objective == pytest.approx(fit.objective, rel=1e-8)


# Properties.


@pytest.fixture
def sweep():
    rng = np.random.default_rng(5)
    N, D = isoflop_sweep(LAWS["epoch"], np.logspace(18, 20, 5), sizes=7)
    return N, D, LAWS["epoch"].loss(N, D) * np.exp(0.004 * rng.standard_normal(N.size))


OPTIONS = [{}, {"huber_delta": 1e-3}, {"loss_kind": "linear"}, {"loss_kind": "log", "tied": True}, {"tied": True}]


@pytest.mark.parametrize("options", OPTIONS)
def test_row_order_is_irrelevant(sweep, options):
    N, D, L = sweep
    order = np.random.default_rng(0).permutation(N.size)
    fit, shuffled = fit_parametric(N, D, L, **options), fit_parametric(N[order], D[order], L[order], **options)
    assert shuffled.theta == pytest.approx(fit.theta, rel=1e-6)
    assert shuffled.residuals == pytest.approx(fit.residuals[order], abs=1e-7)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("unit", [1e3, 1e9])
def test_another_unit_moves_only_the_scale_of_its_term(sweep, options, unit):
    N, D, L = sweep
    fit = fit_parametric(N, D, L, **options)
    in_N, in_D = fit_parametric(N / unit, D, L, **options), fit_parametric(N, D / unit, L, **options)
    for other, index in ((in_N, 0), (in_D, 2)):
        expected = fit.theta.copy()
        expected[index] -= fit.theta[index + 1] * np.log(unit)
        assert other.theta == pytest.approx(expected, rel=1e-6)
        assert other.objective == pytest.approx(fit.objective, rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_another_unit_of_loss_scales_the_terms(sweep, options):
    N, D, L = sweep
    fit, bits = fit_parametric(N, D, L, **options), fit_parametric(N, D, L / np.log(2), **options)
    assert bits.theta - fit.theta == pytest.approx(-np.log(np.log(2)) * np.array([1, 0, 1, 0, 1]), abs=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_weight_of_two_is_a_run_given_twice(sweep, options):
    N, D, L = sweep
    weights = np.random.default_rng(1).integers(1, 4, N.size)
    fit = fit_parametric(N, D, L, weights=weights, **options)
    repeated = fit_parametric(*(np.repeat(v, weights) for v in (N, D, L)), **options)
    assert fit.theta == pytest.approx(repeated.theta, rel=1e-6)
    assert fit.objective == pytest.approx(repeated.objective, rel=1e-9)
    assert fit.scale == pytest.approx(repeated.scale, rel=1e-6)
    if fit.huber_delta is not None:
        assert fit.huber_delta == pytest.approx(repeated.huber_delta, rel=1e-6)


def test_objective_is_the_stated_sum(sweep):
    N, D, L = sweep
    linear, log, huber = (fit_parametric(N, D, L, loss_kind=kind) for kind in ("linear", "log", "huber"))
    assert linear.objective == pytest.approx(0.5 * np.sum((L - linear.law.loss(N, D)) ** 2))
    assert log.objective == pytest.approx(0.5 * np.sum(np.log(L / log.law.loss(N, D)) ** 2))
    r, delta = np.abs(huber.residuals), huber.huber_delta
    assert huber.objective == pytest.approx(np.sum(np.where(r <= delta, r**2 / 2, delta * (r - delta / 2))))


def test_tied_exponents_are_equal_and_cost_something(sweep):
    free, tied = fit_parametric(*sweep, loss_kind="log"), fit_parametric(*sweep, loss_kind="log", tied=True)
    assert tied.law.alpha == tied.law.beta
    assert tied.objective >= free.objective


def test_adaptive_delta_follows_the_noise():
    rng = np.random.default_rng(2)
    N, D = isoflop_sweep(LAWS["epoch"], np.logspace(17, 21, 9), sizes=15)
    error = rng.standard_normal(N.size)
    fits = [fit_parametric(N, D, LAWS["epoch"].loss(N, D) * np.exp(s * error)) for s in (0.002, 0.02)]
    assert [f.scale for f in fits] == pytest.approx([0.002, 0.02], rel=0.2)
    assert [f.huber_delta for f in fits] == pytest.approx([0.00269, 0.0269], rel=0.2)


# What the runs do not determine.


def test_a_vanishing_irreducible_loss_is_reported(sweep):
    N, D, _ = sweep
    L = ParametricLaw(E=-0.3, A=20.0, B=20.0, alpha=0.1, beta=0.1).loss(N, D)
    fit = fit_parametric(N, D, L * np.exp(1e-3 * np.random.default_rng(0).standard_normal(N.size)))
    assert fit.status is FitStatus.E_NOT_IDENTIFIED
    assert np.isfinite(fit.theta).all()
    assert fit.law.E < 1e-9
    assert fit.law.loss(N, D) == pytest.approx(L, rel=0.01)


def test_an_exponent_at_its_bound_is_reported():
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e8, 5), np.geomspace(1e9, 1e10, 5)))
    fit = fit_parametric(N, D, 2.0 + (1e7 / N) ** 6 + (1e9 / D) ** 0.3)
    assert fit.status is FitStatus.AT_BOUND
    assert fit.law.alpha == 3.0


@pytest.mark.parametrize("trend", [0.0, 0.1])
def test_losses_that_do_not_fall_are_no_crash(trend):
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7, 9, 30), 10 ** rng.uniform(9, 11, 30)
    fit = fit_parametric(N, D, 3.0 * (N * D) ** (trend / 10) * np.exp(0.01 * rng.standard_normal(30)))
    assert fit.status is not FitStatus.CONVERGED
    assert np.isfinite(fit.theta).all()


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (6, {}, "at least 7 runs .* there are 6 runs with 6 distinct N and 6 distinct D"),
        (4, {"tied": True}, "at least 5 runs .* there are 4 runs"),
        (9, {"weights": [1, 1, 1, 1, 1, 1, 0, 0, 0]}, "there are 6 runs"),
    ],
)
def test_too_few_runs(n, options, message):
    N = np.geomspace(1e7, 1e9, n)
    with pytest.raises(FitError, match=message) as error:
        fit_parametric(N, 20 * N, N**-0.1, **options)
    assert "train more" in error.value.hint


def test_too_few_sizes():
    N = np.tile([1e7, 1e8], 5)
    with pytest.raises(FitError, match="10 runs with 2 distinct N and 10 distinct D"):
        fit_parametric(N, np.geomspace(1e9, 1e11, 10), np.linspace(3, 4, 10))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_impossible_values(sweep, bad, column):
    data = [v.copy() for v in sweep]
    data[column][3] = bad
    with pytest.raises(FitError, match=f"{'NDL'[column]} must be positive and finite; run 3 has {bad}"):
        fit_parametric(*data)


def test_columns_of_unequal_length(sweep):
    N, D, L = sweep
    with pytest.raises(FitError, match="of one length"):
        fit_parametric(N, D[:-1], L)
    with pytest.raises(FitError, match="weights must be"):
        fit_parametric(N, D, L, weights=-np.ones(N.size))


def test_unknown_options(sweep):
    with pytest.raises(FitError, match="loss_kind='l1' is unknown") as error:
        fit_parametric(*sweep, loss_kind="l1")
    assert "huber, log, linear" in error.value.hint
    with pytest.raises(FitError, match=r"huber_delta=0\.0 must be positive"):
        fit_parametric(*sweep, huber_delta=0.0)
