import numpy as np
import pytest
from sweeps import LAWS, isoflop_sweep, random_sweep, theta_of

from flops_fit.fit.newton import LOWER, Objective, Runs, minimise


@pytest.fixture
def runs():
    N, D, L, _ = random_sweep(np.random.default_rng(0), "epoch")
    return Runs.of(N, D, L)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("delta", "linear"), [(np.inf, False), (np.inf, True), (0.01, False)])
def test_derivatives_are_those_of_the_value(runs, delta, linear, tied):
    rng = np.random.default_rng(1)
    objective = Objective(runs=runs, delta=delta, linear=linear, tied=tied)
    point = objective.point(runs.coordinates(theta_of(LAWS["chinchilla"])))
    weights = rng.uniform(0, 2, (1, runs.x.size))
    here = objective.expand(point[None], weights)
    for k, step in enumerate(1e-6 * np.eye(point.size)):
        up, down = (objective.expand((point + s)[None], weights) for s in (step, -step))
        assert here.gradient[0, k] == pytest.approx((up.value[0] - down.value[0]) / 2e-6, rel=1e-5)
        slope = (up.gradient - down.gradient)[0] / 2e-6
        assert here.hessian[0, k] == pytest.approx(slope, rel=1e-5, abs=1e-5 * np.abs(here.hessian).max())


def test_majoriser_is_positive_definite(runs):
    objective = Objective(runs=runs)
    q = runs.coordinates(theta_of(LAWS["epoch"]))[None]
    here = objective.expand(q, np.ones((1, runs.x.size)))
    assert np.linalg.eigvalsh(here.majoriser[0])[0] > 0


def test_coordinates_and_theta_are_inverse(runs):
    theta = np.stack([theta_of(law) for law in LAWS.values()])
    assert runs.theta(runs.coordinates(theta)) == pytest.approx(theta, rel=1e-12)


def test_far_starts_reach_the_same_minimum():
    law = LAWS["epoch"]
    N, D = isoflop_sweep(law, np.logspace(17, 21, 5), width=16.0)
    runs = Runs.of(N, D, law.loss(N, D) * np.exp(0.003 * np.random.default_rng(0).standard_normal(N.size)))
    starts = runs.coordinates(theta_of(law)) + np.random.default_rng(1).normal(0, [1, 0.2, 1, 0.2, 0.1], (40, 5))
    q, value, converged = minimise(Objective(runs=runs, delta=0.004), starts, np.ones((40, N.size)))
    assert converged.all()
    assert value == pytest.approx(np.full(40, value.min()), rel=1e-9)
    assert q == pytest.approx(np.tile(q[0], (40, 1)), abs=1e-4)


def test_each_replicate_is_solved_alone(runs):
    rng = np.random.default_rng(2)
    weights = rng.integers(0, 3, (30, runs.x.size)).astype(float)
    start = np.tile(runs.coordinates(theta_of(LAWS["epoch"])), (30, 1))
    objective = Objective(runs=runs, delta=0.01)
    together, _, _ = minimise(objective, start, weights)
    alone = np.vstack([minimise(objective, start[i : i + 1], weights[i : i + 1])[0] for i in range(30)])
    assert together == pytest.approx(alone, rel=1e-8)


def test_a_vanishing_term_ends_at_its_bound_in_few_steps():
    N, D = isoflop_sweep(LAWS["epoch"], np.logspace(17, 20, 5))
    runs = Runs.of(N, D, 20 * N**-0.1 + 20 * D**-0.1)
    q, value, converged = minimise(Objective(runs=runs), np.array([[-1.0, 0.3, -1.0, 0.3, 0.3]]), np.ones((1, N.size)))
    assert converged.all()
    assert q[0, 4] == LOWER[4]
    assert value[0] < 1e-20
