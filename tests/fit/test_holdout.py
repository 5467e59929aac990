"""Hidden budgets: who foretold them, and what that is worth."""

import numpy as np
import pandas as pd
import pytest
from sweeps import LAWS
from tables import generalised, sweep_table

from flops_fit.fit import analyze_runs
from flops_fit.fit.holdout import FORM_ERROR, HoldOut, HoldOutPoint, score


def points(errors, *, answer="loss", hidden=(3e20, 1e21), se=0.0):
    """One point per hidden budget, each from one factor e below; ``errors`` by name."""
    return [
        HoldOutPoint(
            visible=C / np.e,
            hidden=C,
            se={answer: se},
            errors={name: {answer: e[i]} for name, e in errors.items() if e[i] is not None},
        )
        for i, C in enumerate(hidden)
    ]


def test_the_better_forecast_has_the_better_evidence():
    scores = score(points({"good": (0.001, 0.001), "bad": (0.02, 0.02)}), ["good", "bad"], "loss")
    assert scores["good"].log_evidence > scores["bad"].log_evidence + 2
    assert scores["good"].form_error < FORM_ERROR["loss"] < scores["bad"].form_error
    assert scores["bad"].rms == pytest.approx(0.02)
    assert scores["bad"].n_hidden == 2


def test_errors_below_the_noise_of_the_hidden_optimum_do_not_tell():
    scores = score(points({"near": (0.001, 0.001), "far": (0.01, 0.01)}, se=0.1), ["near", "far"], "loss")
    assert scores["near"].log_evidence - scores["far"].log_evidence < 0.1


def test_a_form_that_was_tried_less_neither_wins_nor_loses_by_that():
    scores = score(points({"always": (0.004, 0.004), "once": (None, 0.004)}), ["always", "once"], "loss")
    assert scores["once"].n_hidden == 1
    assert scores["once"].log_evidence == pytest.approx(scores["always"].log_evidence)


def test_without_forecasts_all_forms_are_alike():
    scores = score([], ["one", "two"], "num_params")
    assert scores["one"] == scores["two"]
    assert scores["one"].rms is None
    assert scores["one"].form_error == FORM_ERROR["num_params"]


def test_recent_forecasts_count_more():
    early, late = (points({"a": e, "b": (0.004, 0.004)}, hidden=(1e18, 1e21)) for e in ((0.02, 0.0), (0.0, 0.02)))
    assert score(early, ["a", "b"], "loss")["a"].log_evidence > score(late, ["a", "b"], "loss")["a"].log_evidence


def test_every_cut_forecasts_every_larger_budget():
    found = analyze_runs(sweep_table(budgets=6, noise=0.001), n_bootstrap=20).holdout
    cuts = sorted({(p.visible, p.hidden) for p in found.points})
    assert len(cuts) == len(found.points) == 3 + 2 + 1
    assert all(p.hidden > p.visible for p in found.points)
    assert found.largest.hidden == pytest.approx(1e20)
    assert found.largest.visible == pytest.approx(10**19.6)
    assert set(found.headline) == {"num_params", "loss"}


def test_the_surface_foretells_its_own_noiseless_sweep_exactly():
    found = analyze_runs(sweep_table(noise=0.0, width=2.0), n_bootstrap=20).holdout
    assert isinstance(found, HoldOut)
    for p in found.points:
        # What is left is the bias of the hidden budget's own parabola.
        assert abs(p.errors["surface"]["loss"]) < 1e-3
        assert abs(p.errors["surface"]["num_params"]) < 0.02


def test_the_headline_errs_less_than_a_surface_of_the_wrong_form():
    found = analyze_runs(sweep_table(truth=generalised, budgets=6), n_bootstrap=20).holdout
    assert abs(found.headline["loss"]) < abs(found.largest.errors["surface"]["loss"])


def test_runs_of_one_budget_do_not_foretell_each_other():
    table = sweep_table(budgets=2, sizes=5)
    spent = table.num_params * table.num_tokens * 6
    table["num_tokens"] *= 1 + 0.01 * np.random.default_rng(0).standard_normal(len(table))  # to within a batch
    assert not np.allclose(table.num_params * table.num_tokens * 6, spent, rtol=1e-3)
    found = analyze_runs(table, n_bootstrap=20)
    assert found.holdout is None
    assert "too_few_budgets" in [w.code for w in found.warnings]


def test_runs_without_budgets_are_hidden_by_fifths_and_judged_by_their_losses():
    rng = np.random.default_rng(0)
    N, D = np.exp(rng.uniform(np.log(1e8), np.log(1e10), 40)), np.exp(rng.uniform(np.log(1e9), np.log(1e12), 40))
    loss = LAWS["epoch"].loss(N, D) * np.exp(0.002 * rng.standard_normal(40))
    found = analyze_runs(pd.DataFrame({"num_params": N, "num_tokens": D, "loss": loss}), n_bootstrap=20)
    assert found.isoflop is None or len(found.isoflop.optima) < 3
    # Three, four and then all fifths but the last are seen; what is hidden at each cut is every fifth beyond it.
    assert len(found.holdout.points) == 2 + 1
    for p in found.holdout.points:
        assert set(p.errors["surface"]) == {"loss"}
        assert abs(p.errors["surface"]["loss"]) < 0.02
