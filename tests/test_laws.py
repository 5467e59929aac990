"""The formulas: optimal where they say so, as published, and the same for one law as for a family of draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit.laws import SIX_ND, ComputeRule, ParametricLaw, PowerLaw

# Hoffmann et al. 2022, arXiv:2203.15556, equation 10; Besiroglu et al. 2024, arXiv:2404.10102, table 1.
CHINCHILLA = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
REPLICATION = ParametricLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
CHINCHILLA_COMPUTE = 5.76e23  # section 4.1: the budget of Gopher, 70B parameters and 1.4T tokens

powers = st.floats(0.1, 1.0)
laws = st.builds(
    ParametricLaw, E=st.floats(0.0, 4.0), A=st.floats(1.0, 1e5), B=st.floats(1.0, 1e5), alpha=powers, beta=powers
)
rules = st.builds(ComputeRule, k=st.floats(1.0, 100.0), q=st.floats(0.6, 1.3))
budgets = st.floats(1e10, 1e26)


@given(laws, rules, budgets, st.floats(0.1, 10.0))
def test_no_split_of_the_budget_beats_the_optimum(
    law: ParametricLaw, rule: ComputeRule, C: float, shift: float
) -> None:
    N, D = law.optimum(C, rule)
    assert rule.flops(N, D) == pytest.approx(C)
    assert law.loss(N * shift, rule.tokens(C, N * shift)) >= law.loss(N, D) * (1 - 1e-12)
    assert law.optimal_loss(C, rule) == law.loss(N, D)


@given(laws, budgets)
def test_the_optimum_is_equation_4_of_hoffmann(law: ParametricLaw, C: float) -> None:
    G = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    a, b = law.beta / (law.alpha + law.beta), law.alpha / (law.alpha + law.beta)
    assert law.optimum(C) == pytest.approx((G * (C / 6) ** a, (C / 6) ** b / G))
    assert law.exponents() == pytest.approx((a, b))
    assert sum(law.exponents()) == pytest.approx(1)


@given(laws, rules, budgets, st.floats(1.5, 100.0))
def test_the_exponents_are_the_slopes_of_the_optimum(
    law: ParametricLaw, rule: ComputeRule, C: float, ratio: float
) -> None:
    (n, d), (N, D) = law.optimum(C, rule), law.optimum(C * ratio, rule)
    slopes = np.log([N / n, D / d]) / np.log(ratio)
    assert slopes == pytest.approx(law.exponents(rule), abs=1e-9)


@given(laws, rules, budgets)
def test_the_frontier_is_a_power_law_above_what_is_irreducible(law: ParametricLaw, rule: ComputeRule, C: float) -> None:
    law = replace(law, E=0.0)  # else most digits of what is above E are lost
    reducible = [law.optimal_loss(c, rule) for c in (C, 2 * C)]
    assert reducible[1] / reducible[0] == pytest.approx(2 ** -law.frontier_exponent(rule), rel=1e-6)


def test_published_exponents_and_tokens_per_parameter() -> None:
    assert CHINCHILLA.exponents() == pytest.approx((0.46, 0.54), abs=0.01)  # table 2, approach 3
    assert REPLICATION.exponents()[0] == pytest.approx(0.512, abs=0.002)
    N, D = REPLICATION.optimum(CHINCHILLA_COMPUTE)
    assert D / N == pytest.approx(20, rel=0.25)  # both papers' rule of thumb, at Chinchilla's own budget
    assert N == pytest.approx(70e9, rel=0.1)


@given(laws, rules, st.floats(1e12, 1e24))
def test_inverse_questions_invert(law: ParametricLaw, rule: ComputeRule, C: float) -> None:
    N, D = law.optimum(C, rule)
    L = law.loss(N, D)
    if L - law.E < 1e-6 * L:  # the loss no longer tells how far above E it is
        return
    assert law.compute_for_loss(L, rule) == pytest.approx(C, rel=1e-3)
    assert law.loss(law.params_for_loss(D, L), D) == pytest.approx(L)
    assert law.loss(N, law.tokens_for_loss(N, L)) == pytest.approx(L)


@pytest.mark.parametrize("L", [0.5, 1.69])
def test_a_loss_that_cannot_be_reached_takes_infinitely_much(L: float) -> None:
    assert CHINCHILLA.compute_for_loss(L) == np.inf
    assert CHINCHILLA.tokens_for_loss(1e9, L) == np.inf
    assert CHINCHILLA.params_for_loss(1e9, L) == np.inf


def test_a_loss_out_of_reach_of_one_size_takes_infinitely_many_tokens() -> None:
    small = 1e6
    best = CHINCHILLA.loss(small, np.inf)
    assert CHINCHILLA.tokens_for_loss(small, best * 0.999) == np.inf
    assert np.isfinite(CHINCHILLA.tokens_for_loss(small, best * 1.001))


def test_amounts_beyond_all_floats_are_infinite_without_a_warning() -> None:
    flat = replace(CHINCHILLA, alpha=0.01, beta=0.01)
    L = flat.E + 1e-3
    assert flat.compute_for_loss(L) == np.inf
    assert flat.params_for_loss(np.inf, L) == np.inf


@given(laws, st.floats(1e-3, 1e3))
def test_the_unit_of_size_moves_only_its_scale(law: ParametricLaw, unit: float) -> None:
    rescaled = replace(law, A=law.A * unit**law.alpha)
    assert rescaled.loss(1e8 * unit, 1e10) == pytest.approx(law.loss(1e8, 1e10))


def test_a_family_of_draws_answers_like_each_of_its_laws() -> None:
    rng = np.random.default_rng(0)
    theta = np.log([406.4, 1.0, 410.7, 1.0, 1.69]) * [1, 0, 1, 0, 1] + [0, 0.34, 0, 0.28, 0]
    draws = theta + 0.02 * rng.standard_normal((6, 5))
    family = ParametricLaw.from_logs(draws)
    C = np.array([1e18, 1e21])[:, None]
    rule = ComputeRule(k=8.0, q=0.97)
    losses = family.optimal_loss(C, rule)
    assert losses.shape == (2, 6)
    assert family.compute_for_loss(2.5).shape == (6,)
    for i in range(6):
        one = family[i]
        assert isinstance(one.E, float)
        assert one == ParametricLaw.from_logs(draws[i])
        assert losses[:, i] == pytest.approx(one.optimal_loss(C[:, 0], rule))
        assert family.tokens_for_loss(1e9, 2.5)[i] == pytest.approx(one.tokens_for_loss(1e9, 2.5))
    assert family[1:3].alpha == pytest.approx(draws[1:3, 1])


def test_scalar_questions_have_plain_answers() -> None:
    answers = [CHINCHILLA.loss(1e9, 2e10), *CHINCHILLA.optimum(1e21), CHINCHILLA.compute_for_loss(2.0)]
    answers += [SIX_ND.flops(1e9, 2e10), SIX_ND.tokens(1e21, 1e9), PowerLaw(k=2.0, exponent=0.5)(1e18)]
    assert all(type(a) is float for a in answers)


def test_fisher_information_is_that_of_finite_differences() -> None:
    N, D = np.array([1e8, 1e9, 1e10, 3e9]), np.array([2e10, 1e9, 5e10, 3e11])
    theta = np.array([np.log(406.4), 0.34, np.log(410.7), 0.28, np.log(1.69)])
    step = 1e-5
    jacobian = np.empty((len(N), 5))
    for j, unit in enumerate(np.eye(5)):
        up, down = (np.log(ParametricLaw.from_logs(theta + s * unit).loss(N, D)) for s in (step, -step))
        jacobian[:, j] = (up - down) / (2 * step)
    law = ParametricLaw.from_logs(theta)
    assert law.log_loss_gradient(N, D) == pytest.approx(jacobian, rel=1e-6)
    information = law.fisher_information(N, D, sigma=0.02)
    assert information == pytest.approx(jacobian.T @ jacobian / 0.02**2, rel=1e-6)
    assert law.fisher_information(N[::-1], D[::-1], sigma=0.02) == pytest.approx(information)
    assert law.fisher_information(N, D, sigma=0.01) == pytest.approx(4 * information)


@given(st.floats(0.1, 10.0), st.floats(-0.5, 1.0), st.floats(0.0, 3.0), st.floats(1e10, 1e25))
def test_a_power_law_is_straight_above_its_offset(k: float, exponent: float, offset: float, C: float) -> None:
    law = PowerLaw(k=k, exponent=exponent, offset=offset)
    assert law(C) == pytest.approx(offset + k * C**exponent)
    assert PowerLaw(k=k, exponent=exponent)(C) == pytest.approx(law(C) - offset, rel=1e-6, abs=1e-9)


def test_a_family_of_power_laws_broadcasts() -> None:
    family = PowerLaw(k=np.array([1.0, 2.0]), exponent=np.array([0.5, 0.4]))
    values = family(np.array([[1e18], [1e20], [1e22]]))
    assert values.shape == (3, 2)
    assert values[1, 1] == pytest.approx(2 * 1e20**0.4)
