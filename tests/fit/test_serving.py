import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import FitError
from flops_fit.fit.serving import over_train, over_train_to, serving_optimum
from flops_fit.laws import SIX_ND, ComputeRule, ParametricLaw

LAW = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
COUNTED = ComputeRule(k=30.0, q=0.93)

losses, served = st.floats(1.9, 3.5), st.floats(0, 1e16)
rules = st.sampled_from([SIX_ND, COUNTED])


@settings(max_examples=50, deadline=None)
@given(losses, served, rules, st.floats(0.6, 1.6))
def test_no_other_size_of_the_same_loss_costs_less(loss, tokens, rule, factor):
    best = serving_optimum(LAW, loss, tokens, rule)
    assert best.loss == pytest.approx(loss)
    N = best.num_params * factor
    other = rule.flops(N, LAW.tokens_for_loss(N, loss) + tokens / 3)
    assert other >= best.total_flops * (1 - 1e-9)


def test_served_tokens_cost_two_flops_per_parameter():
    best = serving_optimum(LAW, 2.5, 1e12)
    assert best.serving_flops == pytest.approx(2 * best.num_params * 1e12)
    assert best.training_flops == pytest.approx(6 * best.num_params * best.num_tokens)


@settings(max_examples=20, deadline=None)
@given(losses, rules)
def test_without_serving_it_is_the_training_optimum(loss, rule):
    best = serving_optimum(LAW, loss, 0.0, rule)
    N, D = LAW.optimum(LAW.compute_for_loss(loss, rule), rule)
    assert (best.num_params, best.num_tokens) == (pytest.approx(N, rel=1e-9), pytest.approx(D, rel=1e-9))
    assert best.saving == pytest.approx(0, abs=1e-9)


def test_the_more_is_served_the_smaller_and_longer_trained_the_model():
    best = serving_optimum(LAW, 2.3, np.geomspace(1e9, 1e15, 13))
    assert np.all(np.diff(best.num_params) < 0)
    assert np.all(np.diff(best.num_tokens) > 0)
    assert np.all(np.diff(best.saving) > 0)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e17, 1e25), st.floats(0.1, 1e4), rules)
def test_no_ratio_beats_the_optimum(compute, ratio, rule):
    over = over_train(LAW, compute, ratio, rule)
    assert rule.flops(over.num_params, over.num_tokens) == pytest.approx(compute)
    assert over.num_tokens / over.num_params == pytest.approx(ratio)
    assert over.extra_loss >= -1e-12
    assert over.extra_compute >= -1e-9
    assert LAW.optimal_loss(over.optimal_compute, rule) == pytest.approx(over.loss)


def test_the_optimal_ratio_costs_nothing():
    N, D = LAW.optimum(1e21)
    over = over_train(LAW, 1e21, D / N)
    assert over.num_params == pytest.approx(N)
    assert (over.extra_loss, over.extra_compute) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-9))


@settings(max_examples=30, deadline=None)
@given(st.floats(1e17, 1e25), st.floats(0.1, 1e4), rules)
def test_reaching_a_loss_at_a_ratio_inverts_the_loss_at_that_ratio(compute, ratio, rule):
    over = over_train(LAW, compute, ratio, rule)
    assert over_train_to(LAW, over.loss, ratio, rule).compute == pytest.approx(compute, rel=1e-6)


def test_what_it_takes_to_match_the_optimum_at_a_ratio():
    over = over_train_to(LAW, LAW.optimal_loss(1e21), 1000.0)
    assert over.optimal_compute == pytest.approx(1e21)
    assert over.extra_compute == pytest.approx(over.compute / 1e21 - 1)
    assert 0.5 < over.extra_compute < 1.5


def test_draws_are_laws_one_by_one():
    family = ParametricLaw(
        E=np.array([1.69, 1.8]),
        A=np.array([406.4, 480.0]),
        B=np.array([410.7, 2100.0]),
        alpha=np.array([0.34, 0.35]),
        beta=np.array([0.28, 0.37]),
    )
    best = serving_optimum(family, 2.5, 1e12)
    over, reached = over_train(family, 1e20, 100), over_train_to(family, 2.5, 100)
    for i in range(2):
        assert best.num_params[i] == pytest.approx(serving_optimum(family[i], 2.5, 1e12).num_params)
        assert over.extra_compute[i] == pytest.approx(over_train(family[i], 1e20, 100).extra_compute)
        assert reached.compute[i] == pytest.approx(over_train_to(family[i], 2.5, 100).compute)


def test_a_loss_below_the_irreducible_is_refused():
    for attempt in (lambda: serving_optimum(LAW, 1.6, 1e12), lambda: over_train_to(LAW, 1.69, 20)):
        with pytest.raises(FitError, match="irreducible"):
            attempt()
    with pytest.raises(FitError, match="negative"):
        serving_optimum(LAW, 2.5, -1.0)
