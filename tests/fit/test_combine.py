"""One answer from all forms: the surface's where its form holds, the mixture's where it does not."""

from dataclasses import replace

import numpy as np
import pytest
from tables import generalised, sweep_table

from flops_fit.fit import analyze_runs

TAILS = (0.025, 0.1, 0.9, 0.975)


@pytest.fixture(scope="module")
def combination():
    return analyze_runs(sweep_table(), n_bootstrap=200).combination


def test_weights_add_to_one(combination):
    for answer in ("num_params", "loss"):
        assert sum(combination.weights(answer).values()) == pytest.approx(1)


def test_a_surface_that_is_not_doubted_answers_alone(combination):
    sure = replace(combination, misfit_doubt=0.0)
    assert sure.doubt("num_params") == 0
    told = sure.forecast("num_params", 1e22, TAILS)
    draws = sure.forms["surface"].log_answer("num_params", 1e22, sure.rule)
    assert told.point == draws[0]
    assert told.quantiles == pytest.approx(np.quantile(draws[1:], TAILS))


def test_doubt_moves_the_answer_from_the_surface_to_the_mixture(combination):
    told = [replace(combination, misfit_doubt=d).forecast("num_params", 1e22, TAILS) for d in (0.0, 0.5, 1.0)]
    assert told[1].point == pytest.approx((told[0].point + told[2].point) / 2)
    assert told[1].quantiles == pytest.approx((told[0].quantiles + told[2].quantiles) / 2)
    assert replace(combination, misfit_doubt=1.0).method("loss") == "combination"


def test_quantiles_rise_and_hold_the_point(combination):
    doubted = replace(combination, misfit_doubt=1.0)
    for answer in ("num_params", "loss"):
        for C in (1e17, 1e19, 1e22, 1e25):
            told = doubted.forecast(answer, C, TAILS)
            assert np.all(np.diff(told.quantiles) > 0)
            assert told.quantiles[0] < told.point < told.quantiles[-1]


def test_the_mixture_widens_below_the_data_and_beyond(combination):
    doubted = replace(combination, misfit_doubt=1.0)
    widths = [np.ptp(doubted.forecast("loss", C, TAILS).quantiles) for C in (1e19, 1e21, 1e23)]
    assert widths[0] < widths[1] < widths[2]
    assert np.ptp(doubted.forecast("loss", 1e16, TAILS).quantiles) > widths[0]


def test_a_form_that_is_not_sure_of_its_answer_hardly_moves_it(combination):
    doubted = replace(combination, misfit_doubt=1.0)

    class Vague:
        """The tied surface's answers three times as large, each draw known to a factor of five."""

        def log_answer(self, answer, C, rule):
            draws = combination.forms["tied"].log_answer(answer, C, rule)
            return draws + np.log(3) + np.append(0.0, np.random.default_rng(0).normal(0, 1.6, len(draws) - 1))

    score = combination.scores["num_params"]["tied"]
    scores = {name: {**told, "vague": score} for name, told in combination.scores.items()}
    with_vague = replace(doubted, forms={**combination.forms, "vague": Vague()}, scores=scores)
    told, before = (c.forecast("num_params", 1e22, TAILS).point for c in (with_vague, doubted))
    assert with_vague.weights("num_params")["vague"] > 0.1
    assert abs(told - before) < 0.03


def test_the_loss_takes_the_wider_of_bootstrap_and_jackknife(combination):
    sure = replace(combination, misfit_doubt=0.0)
    with_both = sure.forecast("loss", 1e22, TAILS).quantiles
    without = replace(sure, without_budget=None).forecast("loss", 1e22, TAILS).quantiles
    assert with_both[0] <= without[0]
    assert with_both[-1] >= without[-1]


def test_a_surface_that_others_beat_on_hidden_budgets_is_doubted():
    found = analyze_runs(sweep_table(truth=generalised, budgets=6), n_bootstrap=20).combination
    beaten = replace(found, misfit_doubt=0.0)
    best = max(s.log_evidence for s in found.scores["loss"].values())
    gap = best - found.scores["loss"]["surface"].log_evidence
    assert (beaten.doubt("loss") > 0) == (gap > 1.25)
