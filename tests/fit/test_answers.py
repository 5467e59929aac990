"""Questions put to an analysis: a budget, a size, data, a loss."""

import numpy as np
import pytest
from sweeps import LAWS
from tables import generalised, sweep_table

from flops_fit.errors import FitError
from flops_fit.fit import analyze_runs

LAW = LAWS["epoch"]


@pytest.fixture(scope="module")
def analysis():
    return analyze_runs(sweep_table(), n_bootstrap=200)


@pytest.mark.parametrize("C", [3e18, 1e20, 1e22])
def test_a_question_turned_round_leads_back(analysis, C):
    told = analysis.predict(C)
    for question in ({"params": told.num_params}, {"tokens": told.num_tokens}, {"loss": told.loss}):
        back = analysis.predict(**question)
        assert back.compute_budget == pytest.approx(C, rel=1e-4)
        assert back.num_params == pytest.approx(told.num_params, rel=1e-4)
        assert back.num_tokens == pytest.approx(told.num_tokens, rel=1e-4)
        assert back.loss == pytest.approx(told.loss, rel=1e-4)
        low, high = back.ci["compute_budget"]
        assert low < C < high


def test_a_budget_is_enough_where_the_interval_first_lies_below_the_loss():
    # The forms part so far beyond the data that their interval widens faster than the loss falls.
    found = analyze_runs(sweep_table(truth=generalised, budgets=4, sizes=5), n_bootstrap=100)
    wanted = found.predict(1e21).loss
    low, high = found.predict(loss=wanted).ci["compute_budget"]
    assert low < 1e21 < high < np.inf
    assert found.predict(high).ci["loss"][1] == pytest.approx(wanted, rel=1e-5)
    assert found.predict(low).ci["loss"][0] == pytest.approx(wanted, rel=1e-5)
    assert found.predict(1e6 * high).ci["loss"][1] > wanted


def test_what_was_given_has_no_interval_and_the_rest_obeys_the_rule(analysis):
    told = analysis.predict(params=2e9)
    assert "num_params" not in told.ci
    assert 6 * told.num_params * told.num_tokens == pytest.approx(told.compute_budget, rel=1e-6)
    assert told.ci["num_tokens"][0] < told.num_tokens < told.ci["num_tokens"][1]
    assert told.ci["tokens_per_param"][0] < told.tokens_per_param < told.ci["tokens_per_param"][1]


def test_a_run_off_the_optimum_has_a_higher_loss_than_one_on_it(analysis):
    best = analysis.predict(1e21)
    N, D = best.num_params, best.num_tokens
    on, off = analysis.predict(params=N, tokens=D), analysis.predict(params=N / 4, tokens=4 * D)
    assert on.loss == pytest.approx(best.loss, rel=1e-6)
    assert off.loss > 1.001 * on.loss
    assert off.loss == pytest.approx(LAW.loss(N / 4, 4 * D), rel=0.01)
    assert off.ci["loss"][0] < off.loss < off.ci["loss"][1]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, "0 quantities"),
        ({"compute_budget": 1e20, "loss": 2.5}, "2 quantities"),
        ({"compute_budget": -1.0}, "positive"),
        ({"compute_budget": np.nan}, "positive"),
        ({"params": 0.0}, "positive"),
        ({"compute_budget": 1e20, "level": 1.5}, "level"),
        ({"loss": 0.01}, "no budget"),
    ],
)
def test_a_question_that_has_no_answer_says_why(analysis, question, message):
    with pytest.raises(FitError, match=message):
        analysis.predict(**question)


def test_far_answers_on_which_methods_contradict_are_withheld_with_their_interval():
    # Kaplan et al. (2020), equation 1.5: no irreducible loss, which the surface cannot help finding.
    def truth(N, D):
        return ((8.8e13 / N) ** (0.076 / 0.103) + 5.4e13 / D) ** 0.103

    found = analyze_runs(sweep_table(truth=truth, noise=1e-3, width=16.0), n_bootstrap=100)
    far = found.predict(1e23)
    assert found.predict(1e20).loss is not None
    assert far.loss is None
    assert "loss" in far.ci
    assert "withheld" in str(far)
    assert {"far_extrapolation"} <= {w.code for w in far.warnings}
