"""analyze_runs: a runs table in, an analysis that answers out."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sweeps import LAWS
from tables import generalised, sweep_table

from flops_fit.errors import DataError, FitError
from flops_fit.fit import analyze_runs
from flops_fit.fit.isoflop import fit_isoflop

LAW = LAWS["epoch"]


@pytest.fixture(scope="module")
def analysis():
    return analyze_runs(sweep_table(), n_bootstrap=200)


@pytest.fixture(scope="module")
def wrong():
    """Of runs that no additive surface fits."""
    return analyze_runs(sweep_table(truth=generalised), n_bootstrap=50)


def log_ratio(left, right):
    return abs(float(np.log(left / right)))


def test_a_noiseless_sweep_is_extrapolated_exactly():
    answer = analyze_runs(sweep_table(noise=0.0), n_bootstrap=20).predict(1e23)
    N, D = LAW.optimum(1e23)
    assert answer.num_params == pytest.approx(N, rel=1e-4)
    assert answer.num_tokens == pytest.approx(D, rel=1e-4)
    assert answer.loss == pytest.approx(LAW.loss(N, D), rel=1e-5)
    assert answer.extrapolation == pytest.approx(1000)


def test_intervals_hold_the_answer_and_widen_with_distance_and_level(analysis):
    near, far, wide = analysis.predict(1e21), analysis.predict(1e22), analysis.predict(1e22, level=0.99)
    for name in ("num_params", "num_tokens", "loss", "tokens_per_param"):
        low, high = far.ci[name]
        assert low < getattr(far, name) < high
        assert np.log(high / low) > np.log(near.ci[name][1] / near.ci[name][0])
        assert wide.ci[name][0] < low
        assert high < wide.ci[name][1]


def test_the_same_seed_gives_the_same_analysis(analysis):
    again = analyze_runs(sweep_table(), n_bootstrap=200)
    assert again.to_dict() == analysis.to_dict()
    assert again.predict(1e22) == analysis.predict(1e22)


def test_row_order_does_not_matter(analysis):
    shuffled = analyze_runs(sweep_table().sample(frac=1, random_state=1), n_bootstrap=200)
    assert log_ratio(shuffled.predict(1e22).num_params, analysis.predict(1e22).num_params) < 1e-3
    assert log_ratio(shuffled.predict(1e22).loss, analysis.predict(1e22).loss) < 1e-4


def test_units_of_params_and_tokens_move_only_themselves(analysis):
    table = sweep_table()
    rescaled = analyze_runs(
        table.assign(num_params=table.num_params * 1e3, num_tokens=table.num_tokens / 1e3), n_bootstrap=200
    )
    assert log_ratio(rescaled.predict(1e22).num_params, 1e3 * analysis.predict(1e22).num_params) < 1e-3
    assert log_ratio(rescaled.predict(1e22).loss, analysis.predict(1e22).loss) < 1e-4


def test_budgets_are_found_where_no_column_names_them(analysis):
    found = analyze_runs(sweep_table().drop(columns="compute_budget"), n_bootstrap=200)
    assert np.allclose(found.rows.budget, analysis.rows.budget)
    assert found.predict(1e22) == analysis.predict(1e22)


def test_budgets_whose_labels_are_not_their_compute_go_by_their_compute(analysis):
    table = sweep_table()
    labelled = analyze_runs(table.assign(compute_budget=table.compute_budget / 3), n_bootstrap=200)
    assert labelled.largest_budget == pytest.approx(1e20)
    assert [w.code for w in labelled.warnings if w.code == "budget_label"]
    assert log_ratio(labelled.predict(1e22).num_params, analysis.predict(1e22).num_params) < 1e-6


def test_parameters_can_be_counted_by_another_convention(analysis):
    table = sweep_table()
    doubled = table.assign(num_params_total=2 * table.num_params)
    other = analyze_runs(doubled, n_convention="num_params_total", n_bootstrap=0)
    assert other.n_convention == "num_params_total"
    assert log_ratio(other.parametric.law.A, analysis.parametric.law.A * 2**LAW.alpha) < 0.5
    with pytest.raises(DataError, match="num_params_matmul"):
        analyze_runs(table, n_convention="num_params_matmul")


def test_no_bootstrap_means_instant_intervals_of_about_the_same_width(analysis):
    instant = analyze_runs(sweep_table(), n_bootstrap=0)
    for name in ("alpha", "beta", "a"):
        widths = [np.ptp(x.ci["parametric"][name]) for x in (instant, analysis)]
        assert widths[0] == pytest.approx(widths[1], rel=0.35)


def test_six_runs_are_answered_without_a_surface():
    few = analyze_runs(sweep_table(budgets=2, sizes=3), n_bootstrap=50)
    assert few.parametric is None
    assert "7 runs" in few.missing["parametric"]
    assert few.predict(1e21).num_params == pytest.approx(LAW.optimum(1e21)[0], rel=0.5)
    assert few.headline.method == "combination"


def test_too_few_runs_for_any_method_is_an_error_that_says_what_is_needed():
    with pytest.raises(FitError, match="7 runs"):
        analyze_runs(sweep_table().head(4))


def test_a_form_that_fits_answers_alone_and_one_that_does_not_is_combined(analysis, wrong):
    assert analysis.headline.method == "surface"
    assert analysis.predict(1e21).methods["loss"] == "surface"
    assert wrong.headline.method == "combination"
    assert "form does not hold" in wrong.headline.why
    assert "surface_misfit" in {w.code for w in wrong.warnings}


def test_priors_can_be_switched_off(wrong):
    assert wrong.priors
    without = analyze_runs(sweep_table(truth=generalised), n_bootstrap=50, priors=False)
    assert not without.priors
    assert "local_law" not in without.combination.forms


def test_runs_that_repeat_their_data_often_are_left_out_and_used_for_what_repetition_is_worth():
    table = sweep_table().assign(unique_tokens=lambda t: np.where(t.index < 5, t.num_tokens / 10, t.num_tokens))
    found = analyze_runs(table, n_bootstrap=20)
    assert [e.run_id for e in found.excluded if "repeats its data 10 times" in e.reason] == [
        f"run{i}" for i in range(5)
    ]
    assert found.repetition is not None
    assert found.repetition.n_repeated == 5
    assert "repeated_data" in {w.code for w in found.warnings}


def test_the_summary_has_the_documented_keys_and_is_strict_json(analysis):
    document = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert document["schema_version"] == 1
    assert document["n_runs"] == 45
    assert set(document["parametric"]) >= {
        *"EAB",
        "alpha",
        "beta",
        "a",
        "b",
        "objective",
        "huber_delta",
        "status",
        "ci",
    }
    assert set(document["parametric"]["ci"]) == {"E", "A", "B", "alpha", "beta", "a", "b"}
    assert set(document["isoflop"]) == {"budgets", "N_opt", "D_opt", "L_opt"}
    assert set(document["isoflop"]["budgets"][0]) >= {"compute_budget", "num_params", "num_tokens", "loss", "status"}
    assert set(document["isoflop"]["N_opt"]) >= {"k", "exponent", "r_squared", "ci"}
    assert set(document["isoflop"]["L_opt"]) >= {"k", "exponent", "l_inf", "r_squared", "ci"}
    assert document["envelope"] is None
    assert set(document["headline"]) == {"method", "why"}
    assert {"name", "scores"} == set(document["candidates"][0])
    assert {"excluded", "holdout", "n_convention", "warnings", "leave_one_out"} <= set(document)
    keys = {"compute_budget", "num_params", "num_tokens", "loss", "tokens_per_param", "ci", "extrapolation", "warnings"}
    assert keys <= set(json.loads(json.dumps(analysis.predict(1e22).to_dict(), allow_nan=False)))


def test_importing_the_room_loads_neither_torch_nor_matplotlib_nor_scipy():
    code = (
        "import sys, flops_fit.fit; print([m for m in ('torch', 'matplotlib', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.reference
def test_chinchilla_with_the_papers_loss_gives_the_published_surface(published):
    runs = published("chinchilla_epoch.csv")
    found = analyze_runs(runs[~runs.fit_excluded], huber_delta=1e-3, outliers="none", n_bootstrap=200)
    law = found.parametric.law
    assert found.n_runs == 240
    assert found.parametric.objective <= 0.0010182740180
    assert [f"{v:.4g}" for v in (law.E, law.A, law.alpha, law.beta)] == ["1.817", "477.8", "0.3473", "0.3672"]


@pytest.mark.reference
def test_llama3_has_both_methods_and_says_that_they_disagree(published):
    runs = published("llama3_isoflop.csv").rename(columns={"isoflop_budget": "compute_budget"})
    found = analyze_runs(runs, n_bootstrap=200)
    assert found.isoflop.N_opt.law.exponent == pytest.approx(0.4632, abs=1e-3)
    assert found.parametric.law.exponents()[0] == pytest.approx(0.504, abs=0.01)
    said = [w.message for w in found.warnings if w.code == "methods_disagree"]
    assert any("N_opt is +2" in message for message in said)


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("name", ["chinchilla_epoch.csv", "llama3_isoflop.csv"])
@pytest.mark.parametrize("hidden", [1, 2])
def test_hidden_largest_budgets_are_foretold_within_their_intervals(published, name, hidden):
    runs = published(name).rename(columns={"isoflop_budget": "compute_budget"})
    keep = ~runs.fit_excluded if "fit_excluded" in runs else runs.openathena_qc == "none"
    runs = runs[keep & runs.compute_budget.notna()]
    budgets = np.sort(runs.compute_budget.unique())
    truth = fit_isoflop(runs.num_params, runs.num_tokens, runs.loss, runs.compute_budget).budgets[-1]
    told = analyze_runs(runs[runs.compute_budget <= budgets[-1 - hidden]], n_bootstrap=300).predict(budgets[-1])
    assert log_ratio(told.loss, truth.loss) < 0.004
    assert log_ratio(told.num_params, truth.num_params) < 0.2
    assert told.ci["loss"][0] < truth.loss < told.ci["loss"][1]
    assert told.ci["num_params"][0] < truth.num_params < told.ci["num_params"][1]


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 24))])
def test_any_table_is_answered_in_strict_json_or_refused_in_words(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 30))
    table = pd.DataFrame({"num_params": 10 ** rng.uniform(3, 11, k), "num_tokens": 10 ** rng.uniform(4, 13, k)})
    noise = rng.choice([0.0, 0.05, 0.5]) * rng.standard_normal(k)
    table["loss"] = LAW.loss(table.num_params, table.num_tokens) * np.exp(noise)
    if seed % 3 == 0:
        table["loss"] = rng.uniform(0.1, 10, k)
    if seed % 4 == 0:
        table["compute_budget"] = 1e18
    try:
        found = analyze_runs(table, n_bootstrap=20)
    except FitError:
        return
    json.dumps(found.to_dict(), allow_nan=False)
    for C in (1e10, found.largest_budget, 1e30):
        json.dumps(found.predict(C).to_dict(), allow_nan=False)
