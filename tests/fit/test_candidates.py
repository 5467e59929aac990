"""Forms of the law beyond the data: one language, closed optima, draws round the fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import LAWS, theta_of
from tables import sweep_table

from flops_fit.fit.candidates import fit_candidates
from flops_fit.fit.forms import LocalForm, ParabolaForm, SurfaceForm
from flops_fit.fit.isoflop import fit_isoflop
from flops_fit.fit.optima import Optima
from flops_fit.fit.parametric import fit_parametric
from flops_fit.fit.rows import select_rows
from flops_fit.laws import SIX_ND, ComputeRule

LAW = LAWS["asymmetric"]


def candidates(table, **options):
    rows, _ = select_rows(table)
    settings = {"rule": SIX_ND, "priors": True, "n_draws": 50, "rng": np.random.default_rng(0)} | options
    surface = fit_parametric(rows.N, rows.D, rows.L) if len(rows) > 6 else None
    isoflop = fit_isoflop(rows.N, rows.D, rows.L, rows.budget)
    return fit_candidates(rows, parametric=surface, parametric_draws=None, isoflop=isoflop, **settings)


@given(st.floats(1e17, 1e25), st.floats(0.5, 1.2))
@settings(max_examples=30, deadline=None)
def test_with_g_of_one_the_generalised_mean_is_the_surface(C, q):
    rule = ComputeRule(k=6.0, q=q)
    form = SurfaceForm(theta=np.append(theta_of(LAW), 0.0)[None])
    assert form.log_answer("num_params", C, rule)[0] == pytest.approx(np.log(LAW.optimum(C, rule)[0]))
    assert form.log_answer("loss", C, rule)[0] == pytest.approx(np.log(LAW.optimal_loss(C, rule)))


@given(st.floats(1e17, 1e25), st.floats(-1, 1), st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_no_split_of_the_budget_beats_the_generalised_optimum(C, log_g, shift):
    form = SurfaceForm(theta=np.append(theta_of(LAW), log_g)[None])
    log_N = form.log_answer("num_params", C, SIX_ND)
    away = form.log_loss(log_N + shift, np.log(C / 6) - log_N - shift)
    assert away[0] >= form.log_answer("loss", C, SIX_ND)[0] - 1e-12


def test_linear_draws_stand_round_the_fit_and_follow_it_nearby():
    fit = np.append(theta_of(LAW), 0.0)
    draws = fit + 1e-3 * np.random.default_rng(0).standard_normal((20, 6))
    answers = [
        SurfaceForm(theta=np.vstack([fit, draws]), linear=linear).log_answer("loss", 1e21, SIX_ND)
        for linear in (True, False)
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)


def test_every_form_foretells_a_noiseless_sweep():
    # With alpha = beta all forms but the parabola's contain the truth, and its bias is small on a narrow grid.
    table = sweep_table("symmetric", noise=0.0, width=2.0)
    forms = candidates(table)
    N, D = LAWS["symmetric"].optimum(1e21)
    assert set(forms) == {"surface", "tied", "generalised_mean", "near_optimum", "parabola", "local_law"}
    for form in forms.values():
        assert form.log_answer("num_params", 1e21, SIX_ND)[0] == pytest.approx(np.log(N), abs=0.05)
        loss = form.log_answer("loss", 1e21, SIX_ND)[0]
        assert loss == pytest.approx(np.log(LAWS["symmetric"].loss(N, D)), abs=0.01)


def test_small_sweeps_have_the_forms_they_can_carry():
    assert set(candidates(sweep_table(budgets=2, sizes=3))) == {"tied", "parabola", "local_law"}
    assert set(candidates(sweep_table(budgets=3, sizes=4), priors=False)) == {"surface", "tied", "parabola"}
    three = candidates(sweep_table(budgets=3, sizes=5))
    assert isinstance(three["parabola"], ParabolaForm)
    assert three["parabola"].log_answer("loss", 1e20, SIX_ND) is None
    assert isinstance(three["local_law"], LocalForm)


def test_vague_optima_are_left_out_and_unknown_errors_are_the_usual_ones():
    table = sweep_table(noise=0.001)
    rows, _ = select_rows(table)
    # One budget of three runs has no standard error; one of pure noise has too large a one.
    keep = np.ones(len(table), bool)
    keep[:9] = np.isin(np.arange(9), [0, 4, 8])
    loss = rows.L.copy()
    loss[9:18] = 2.9 * np.exp(0.02 * np.random.default_rng(3).standard_normal(9))
    best = Optima.of(fit_isoflop(rows.N[keep], rows.D[keep], loss[keep], rows.budget[keep]))
    assert len(best.C) in (3, 4)
    assert np.all(best.log_size_se <= 0.5)
    if best.C[0] == 1e18:
        assert best.log_size_se[0] == pytest.approx(np.median(best.log_size_se[1:]))
