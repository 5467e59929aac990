"""Warnings: each where it belongs, and none on a clean sweep."""

import numpy as np
import pytest
from sweeps import LAWS
from tables import generalised, sweep_table

from flops_fit.fit import analyze_runs
from flops_fit.fit.diagnostics import GRAVE, disagreement, irreducible_loss

LAW = LAWS["epoch"]


def codes(table, **options):
    return {w.code for w in analyze_runs(table, n_bootstrap=50, **options).warnings}


@pytest.fixture(scope="module")
def clean():
    return analyze_runs(sweep_table(decades=3.0, budgets=6), n_bootstrap=200)


def test_a_clean_sweep_is_trusted_and_states_its_irreducible_loss(clean):
    assert clean.trustworthy
    assert not {w.code for w in clean.warnings} & GRAVE
    value, reason = irreducible_loss(clean)
    assert reason is None
    assert value == pytest.approx(LAW.E, rel=0.03)


def test_sizes_off_the_optimum_are_told():
    table = sweep_table()
    shifted = table.assign(num_params=table.num_params * 20, num_tokens=table.num_tokens / 20)
    shifted["loss"] = LAW.loss(shifted.num_params, shifted.num_tokens)
    assert "minimum_at_edge" in codes(shifted)
    assert not analyze_runs(shifted, n_bootstrap=50).trustworthy


def test_few_sizes_and_few_budgets_are_told():
    assert {"too_few_sizes", "too_few_budgets", "no_surface"} <= codes(sweep_table(budgets=2, sizes=3))
    assert "too_few_sizes" not in codes(sweep_table(budgets=4, sizes=5))


def test_scattered_runs_have_no_budgets():
    rng = np.random.default_rng(0)
    table = sweep_table().drop(columns="compute_budget")
    table["num_params"], table["num_tokens"] = np.exp(rng.uniform(18, 23, 45)), np.exp(rng.uniform(21, 27, 45))
    table["loss"] = LAW.loss(table.num_params, table.num_tokens) * np.exp(0.003 * rng.standard_normal(45))
    assert "no_budgets" in codes(table)


def test_compute_in_another_unit_is_named():
    table = sweep_table()
    assert "flops_ratio" in codes(table.assign(flops=3 * 6 * table.num_params * table.num_tokens))


def test_a_noisy_narrow_sweep_is_too_uncertain_to_act_on():
    assert "size_uncertain" in codes(sweep_table(noise=0.03, width=2.0, sizes=5, budgets=4))


def test_far_answers_say_how_far(clean):
    said = {w.code: w.message for w in clean.predict(1e25).warnings}
    assert "4.0 decades beyond the largest budget, on data that span 3.0 decades" in said["far_extrapolation"]
    assert "far_extrapolation" not in {w.code for w in clean.predict(1e22).warnings}


def test_another_form_is_no_contradiction_once_neither_method_answers_alone():
    found = analyze_runs(sweep_table(truth=generalised, noise=0.001), n_bootstrap=200)
    assert found.headline.method == "combination"
    assert "methods_contradict" not in {w.code for w in found.warnings}
    assert irreducible_loss(found)[0] is None


def test_the_known_bias_of_the_parabola_is_printed_and_no_contradiction():
    found = analyze_runs(sweep_table("asymmetric", noise=1e-4, width=16.0), n_bootstrap=200)
    assert "parabola_bias" in {w.code for w in found.warnings}
    apart, beyond = disagreement(found, 1e21)["num_params"]
    assert abs(apart) > 0.03
    assert not beyond
