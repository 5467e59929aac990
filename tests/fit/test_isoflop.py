import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.fit.budgets import group_budgets
from flops_fit.fit.isoflop import BudgetStatus, align_to_budgets, fit_isoflop, parabola_bias
from flops_fit.laws import ComputeRule, ParametricLaw

SYMMETRIC = ParametricLaw(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31)
CHINCHILLA = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
ASYMMETRIC = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155)
EPOCH = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)


def sweep(law, *, width, sizes=9, drift=1.0, rule=None, noise=0.0, seed=0):
    """Five budgets over four decades; sizes within a factor ``width`` of N_opt, off it by 1/drift to drift."""
    rule = rule or ComputeRule()
    budgets = np.logspace(17, 21, 5)[:, None]
    center = law.optimum(budgets, rule)[0] * drift ** np.linspace(-1, 1, 5)[:, None]
    N = (center * np.geomspace(1 / width, width, sizes)).ravel()
    C = np.repeat(budgets, sizes)
    D = rule.tokens(C, N)
    L = law.loss(N, D) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    return N, D, L, C


@pytest.mark.reference
def test_llama3_exponents_and_extrapolation_are_the_published_ones(published):
    runs = published("llama3_isoflop.csv")
    fit = fit_isoflop(runs.num_params, runs.num_tokens, runs.loss, group_budgets(runs.flops))
    assert len(fit.optima) == 10
    assert round(fit.D_opt.law.exponent, 5) == 0.53678
    assert round(fit.N_opt.law.exponent, 5) == 0.46322
    # Meta's text (arXiv:2407.21783, section 3.2.1) says 402B on 16.55T tokens, which is 4.0e25 FLOPs.
    expected = {3.8e25: (16.10, 393.3), 4.0e25: (16.55, 402.8)}
    for C, (tokens, params) in expected.items():
        assert round(fit.D_opt.law(C) / 1e12, 2) == tokens
        assert round(fit.N_opt.law(C) / 1e9, 1) == params


@pytest.mark.reference
def test_llama3_exponents_move_when_flagged_points_are_dropped(published):
    runs = published("llama3_isoflop.csv")
    kept = runs[runs.openathena_qc.fillna("none") == "none"]
    assert len(kept) == len(runs) - 17
    fit = fit_isoflop(kept.num_params, kept.num_tokens, kept.loss, kept.isoflop_budget)
    assert (round(fit.N_opt.law.exponent, 3), round(fit.D_opt.law.exponent, 3)) == (0.5, 0.5)


@pytest.mark.parametrize(("law", "b0"), [(CHINCHILLA, -0.578092), (ASYMMETRIC, -1.459957)])
def test_the_parabola_misses_a_wide_noiseless_grid_as_published(law, b0):
    # Table of Open-Athena/scaling-law-analysis, 15 points over a factor 16 either side: b0 = log10 of k in D_opt.
    N, D, L, C = sweep(law, width=16, sizes=15)
    D_opt = fit_isoflop(N, D, L, C).D_opt.law
    assert round(np.log10(D_opt.k), 6) == b0
    assert D_opt.exponent == pytest.approx(law.exponents()[1], abs=1e-12)


def test_the_parabola_is_exact_on_a_symmetric_surface():
    fit = fit_isoflop(*sweep(SYMMETRIC, width=16, sizes=15))
    assert fit.N_opt.law(1e24) == pytest.approx(SYMMETRIC.optimum(1e24)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("law", "width", "drift", "percent"),
    [
        (CHINCHILLA, 4, 1, 1.4),
        (CHINCHILLA, 16, 1, 5.8),
        (CHINCHILLA, 4, 3, 6.6),
        (EPOCH, 4, 3, 9.4),
        (ASYMMETRIC, 4, 1, 7.5),
        (ASYMMETRIC, 16, 1, 32.8),
        (ASYMMETRIC, 16, 3, 38.0),
    ],
)
def test_the_predicted_bias_is_the_error_of_the_noiseless_parabola(law, width, drift, percent):
    N, D, L, C = sweep(law, width=width, drift=drift)
    bias = parabola_bias(law, N, D, C, C)
    far = 1e24
    assert round(100 * np.expm1(bias.log_n_at(far)), 1) == percent
    fit = fit_isoflop(N, D, L, C)
    assert bias.log_n_at(far) == pytest.approx(np.log(fit.N_opt.law(far) / law.optimum(far)[0]), abs=1e-9)
    assert bias.log_n_at(far) == pytest.approx(bias.log_n + 3 * np.log(10) * bias.n_exponent)
    assert bias.n_exponent == pytest.approx(-bias.d_exponent, abs=1e-9)
    assert (abs(bias.n_exponent) < 1e-9) == (drift == 1)


def test_compute_need_not_be_six_nd():
    rule = ComputeRule(k=60, q=0.9)
    N, D, L, C = sweep(CHINCHILLA, width=2, rule=rule)
    fit = fit_isoflop(N, D, L, C)
    a, b = CHINCHILLA.exponents(rule)
    assert fit.N_opt.law.exponent == pytest.approx(a, abs=1e-3)
    assert fit.D_opt.law.exponent == pytest.approx(b, abs=1e-3)
    assert a + b > 1.02
    assert parabola_bias(CHINCHILLA, N, D, C, C).log_n == pytest.approx(0, abs=0.01)


def test_every_budget_says_why_it_has_no_optimum():
    x = np.log([1e6, 2e6, 4e6, 8e6])
    shapes = {
        BudgetStatus.OK: (x, (x - x[1] - 0.1) ** 2),
        BudgetStatus.NOT_CONVEX: (x, -((x - x[1]) ** 2)),
        BudgetStatus.MINIMUM_OUTSIDE: (x, (x - x[3] - 0.1) ** 2),
        BudgetStatus.TOO_FEW_SIZES: (x[[0, 0, 1, 1]], (x - x[1]) ** 2),
    }
    budgets = 1e15 * 10.0 ** np.arange(len(shapes))
    N = np.exp(np.concatenate([sizes for sizes, _ in shapes.values()]))
    L = np.concatenate([3 + 0.1 * y for _, y in shapes.values()])
    C = np.repeat(budgets, 4)
    fit = fit_isoflop(N, C / (6 * N), L, C)
    assert [b.status for b in fit.budgets] == list(shapes)
    assert fit.N_opt is fit.D_opt is None
    ok, *others = fit.budgets
    assert ok.num_params == pytest.approx(2e6 * np.exp(0.1))
    assert ok.loss == pytest.approx(3)
    assert ok.curvature == pytest.approx(0.2)
    assert all(b.num_params is b.num_tokens is b.loss is b.log_n_se is None for b in others)
    assert others[1].argmin_at_edge
    assert not ok.argmin_at_edge


def test_neighbouring_sizes_are_not_one_size_for_being_many():
    N, D, L, C = sweep(SYMMETRIC, width=4, sizes=501)
    fit = fit_isoflop(N, D, L, C)
    assert all(budget.status is BudgetStatus.OK for budget in fit.budgets)
    assert all(budget.n_sizes > 100 for budget in fit.budgets)


def test_runs_of_no_group_are_left_alone():
    N, D, L, C = sweep(CHINCHILLA, width=4, noise=0.002)
    strange = np.append(C, np.nan)
    assert fit_isoflop(np.append(N, 1e9), np.append(D, 1e9), np.append(L, 9.0), strange) == fit_isoflop(N, D, L, C)


def test_seeds_repeated_at_one_size_count_as_one_size_and_as_weights():
    N, D, L, C = sweep(EPOCH, width=4, sizes=5, noise=0.003)
    counts = np.random.default_rng(3).integers(1, 4, len(N))
    repeated = fit_isoflop(*(np.repeat(v, counts) for v in (N, D, L, C)))
    weighted = fit_isoflop(N, D, L, C, weights=counts)
    assert repeated.N_opt.law.exponent == pytest.approx(weighted.N_opt.law.exponent)
    assert repeated.N_opt.law.k == pytest.approx(weighted.N_opt.law.k)
    assert [b.n_sizes for b in repeated.budgets] == [5] * 5
    assert sum(b.n_runs for b in repeated.budgets) == counts.sum()


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([1e-9, 1e-3, 1e3, 1e9]), st.sampled_from([1e-9, 1e9]))
def test_row_order_and_units_change_nothing_but_the_unit(random, unit_N, unit_D):
    N, D, L, C = sweep(EPOCH, width=4, noise=0.003)
    order = np.array(random.sample(range(len(N)), len(N)))
    one = fit_isoflop(N, D, L, C)
    other = fit_isoflop(N[order] * unit_N, D[order] * unit_D, L[order], C[order])
    for a, b in zip(one.budgets, other.budgets, strict=True):
        assert b.num_params == pytest.approx(a.num_params * unit_N, rel=1e-9)
        assert b.num_tokens == pytest.approx(a.num_tokens * unit_D, rel=1e-9)
        assert (b.loss, b.log_n_se) == (pytest.approx(a.loss), pytest.approx(a.log_n_se))
    assert other.N_opt.law.exponent == pytest.approx(one.N_opt.law.exponent, abs=1e-9)


def test_errors_of_an_optimum_are_its_scatter_over_repetitions():
    # Narrow enough for the parabola to be right; the scatter of estimates is what their standard errors claim.
    fits = [fit_isoflop(*sweep(EPOCH, width=3, noise=0.002, seed=seed)) for seed in range(100)]
    middle = [fit.budgets[2] for fit in fits]
    rows = [(np.log(b.num_params), b.log_n_se, b.loss, b.loss_se) for b in middle]
    place, place_se, loss, loss_se = np.array(rows).T
    # A standard deviation of a hundred is known to 7 %.
    assert np.sqrt(np.mean(place_se**2)) == pytest.approx(place.std(), rel=0.2)
    assert np.sqrt(np.mean(loss_se**2)) == pytest.approx(loss.std(), rel=0.2)
    assert np.median([b.residual_rms for b in middle]) == pytest.approx(0.002, rel=0.15)


def test_log_loss_moves_a_narrow_optimum_little():
    N, D, L, C = sweep(CHINCHILLA, width=2)
    plain, logs = fit_isoflop(N, D, L, C), fit_isoflop(N, D, L, C, log_loss=True)
    for a, b in zip(plain.budgets, logs.budgets, strict=True):
        assert b.num_params == pytest.approx(a.num_params, rel=0.02)
        assert b.loss == pytest.approx(a.loss, rel=1e-4)


def off_budget(law, budgets, *, rule=None, jitter=0.08):
    rule = rule or ComputeRule()
    N, D, _, C = sweep(law, width=3, rule=rule)
    D = D * np.random.default_rng(0).uniform(1 - jitter, 1 + jitter, len(N))
    return N, D, law.loss(N, D), rule.flops(N, D), C * budgets


@pytest.mark.parametrize("nominal", [1.0, 1.05])
@pytest.mark.parametrize("rule", [ComputeRule(), ComputeRule(k=60, q=0.9)])
def test_runs_off_their_budget_are_moved_to_it_along_their_ratio(nominal, rule):
    N, D, L, C, budget = off_budget(EPOCH, nominal, rule=rule)
    moved_N, moved_D, moved_L = align_to_budgets(N, D, L, C, budget)
    np.testing.assert_allclose(rule.flops(moved_N, moved_D), budget, rtol=1e-3)
    np.testing.assert_allclose(moved_D / moved_N, D / N)
    # What is left of the error is the slope's change away from the optimum.
    before, after = L - EPOCH.loss(moved_N, moved_D), moved_L - EPOCH.loss(moved_N, moved_D)
    assert np.sqrt(np.mean(after**2)) < 0.12 * np.sqrt(np.mean(before**2))
    raw, moved = fit_isoflop(N, D, L, budget), fit_isoflop(moved_N, moved_D, moved_L, budget)
    for a, b in zip(raw.budgets, moved.budgets, strict=True):
        assert b.residual_rms < 0.4 * a.residual_rms
        assert b.loss == pytest.approx(EPOCH.optimal_loss(b.compute_budget, rule), rel=1e-3)


def test_runs_on_their_budget_stay_where_they_are():
    N, D, L, C = sweep(EPOCH, width=4, noise=0.003)
    for moved, original in zip(align_to_budgets(N, D, L, C, C), (N, D, L), strict=True):
        np.testing.assert_allclose(moved, original, rtol=1e-12)


def test_runs_are_not_moved_to_budgets_of_another_unit_nor_where_loss_rises():
    N, D, L, C, budget = off_budget(EPOCH, 1.0)
    rising = L + 10 * (np.log(budget) - np.log(budget[0]))
    for attempt in ((N, D, L, C, budget / 3), (N, D, rising, C, budget), (N, D, L, C, np.full(len(N), np.nan))):
        for moved, original in zip(align_to_budgets(*attempt), attempt, strict=False):
            np.testing.assert_array_equal(moved, original)


def test_a_table_column_with_any_index_is_an_array():
    N, D, L, C = sweep(EPOCH, width=4)
    frame = pd.DataFrame({"N": N, "D": D, "L": L, "C": C})[::-1]
    fit = fit_isoflop(frame.N, frame.D, frame.L, frame.C)
    assert fit.N_opt.law.exponent == pytest.approx(fit_isoflop(N, D, L, C).N_opt.law.exponent)
