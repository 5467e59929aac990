import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import huber

from flops_fit.errors import FitError
from flops_fit.fit.repeated import PUBLISHED_R_D, PUBLISHED_R_N, RepeatedDataLaw, RepetitionStatus, fit_repetition
from flops_fit.laws import ParametricLaw

# Muennighoff et al. 2023: the base law of the published fit, alpha = beta.
BASE = ParametricLaw.from_logs(np.array([6.255414, 0.3526596, 7.3049974, 0.3526596, 0.6254804]))

counts = st.floats(1e6, 1e12)


@settings(max_examples=50, deadline=None)
@given(counts, counts, st.floats(1, 1e4), st.floats(0.5, 100))
def test_repetition_never_beats_fresh_data_nor_loses_to_one_epoch(N, U, epochs, R):
    law = RepeatedDataLaw(base=BASE, R_D=R)
    worth = law.effective_tokens(U * epochs, U)
    assert U * (1 - 1e-12) <= worth <= U * epochs * (1 + 1e-12)
    assert worth <= U * (1 + R) * (1 + 1e-12)
    assert law.loss(N, U * epochs, U) >= BASE.loss(N, U * epochs) * (1 - 1e-12)


def test_one_epoch_of_a_model_of_fitting_size_is_the_base_law():
    law = RepeatedDataLaw(base=BASE)
    N, D = BASE.optimum(1e20)
    assert law.effective_params(0.9 * N, D) == pytest.approx(0.9 * N)
    assert law.effective_params(10 * N, D) < 10 * N
    assert law.loss(0.9 * N, D, D) == pytest.approx(BASE.loss(0.9 * N, D))
    assert law.effective_tokens(D, 5 * D) == D
    # Four epochs are nearly as good as fresh data, forty are not (the paper's headline).
    assert law.effective_tokens(4 * D, D) > 3.6 * D
    assert law.effective_tokens(40 * D, D) < 16 * D


@pytest.fixture
def runs(published):
    table = published("datablations.csv")
    return table[table.in_published_fit]


def columns(runs):
    return (runs[name].to_numpy(float) for name in ("num_params", "num_tokens", "unique_tokens", "loss"))


def r_squared(L, predicted):
    return 1 - np.sum((L - predicted) ** 2) / np.sum((L - L.mean()) ** 2)


@pytest.mark.reference
def test_the_published_point_has_its_published_objective_and_r_squared(runs):
    N, D, U, L = columns(runs)
    law = RepeatedDataLaw(base=BASE)
    assert (law.R_D, law.R_N) == (PUBLISHED_R_D, PUBLISHED_R_N) == (15.387756, 5.309743)
    objective = huber(1e-3, np.log(law.loss(N, D, U)) - np.log(L)).sum()
    assert objective == pytest.approx(0.0158259366, abs=1e-8)
    assert round(r_squared(L, law.loss(N, D, U)), 7) == 0.7722046
    assert round(r_squared(L, BASE.loss(N, D)), 7) == 0.4451684


@pytest.mark.reference
def test_the_fit_is_no_worse_than_the_published_point_and_says_it_is_weak(runs):
    fit = fit_repetition(*columns(runs), BASE)
    assert fit.published_objective == pytest.approx(0.0158259366, abs=1e-8)
    assert fit.objective <= 0.015804663  # the lowest found by many starts (published data's notes)
    assert not fit.law.borrowed
    assert fit.status is RepetitionStatus.NOT_IDENTIFIED
    low, high = fit.R_D_range
    assert low < PUBLISHED_R_D < high
    assert fit.n_repeated == 153


@pytest.mark.reference
def test_the_published_point_is_next_to_a_local_minimum(runs):
    N, D, U, L = columns(runs)

    def objective(R_D, R_N):
        return huber(1e-3, np.log(RepeatedDataLaw(base=BASE, R_D=R_D, R_N=R_N).loss(N, D, U)) - np.log(L)).sum()

    R_D, R_N = 15.3718, 5.3151
    around = [objective(R_D * f, R_N * g) for f in (0.998, 1, 1.002) for g in (0.998, 1, 1.002)]
    assert min(around) == around[4]
    assert around[4] <= objective(PUBLISHED_R_D, PUBLISHED_R_N)


def synthetic(noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    N, U = 10 ** rng.uniform(7, 9.5, 120), 10 ** rng.uniform(8, 10, 120)
    D = U * 2 ** rng.uniform(0, 6, 120)
    L = RepeatedDataLaw(base=BASE, R_D=8.0, R_N=3.0).loss(N, D, U)
    return N, D, U, L * np.exp(noise * rng.standard_normal(120))


def test_noiseless_runs_return_their_constants():
    fit = fit_repetition(*synthetic(), BASE)
    assert (fit.law.R_D, fit.law.R_N) == (pytest.approx(8, rel=1e-4), pytest.approx(3, rel=1e-4))
    assert fit.status is RepetitionStatus.IDENTIFIED


def test_noisy_runs_return_ranges_that_hold_the_truth():
    fit = fit_repetition(*synthetic(0.005, 1), BASE)
    assert fit.R_D_range[0] <= 8 <= fit.R_D_range[1]
    assert fit.R_N_range[0] <= 3 <= fit.R_N_range[1]
    assert fit.R_D_range[0] <= fit.law.R_D <= fit.R_D_range[1]
    assert fit.objective < fit.published_objective


def test_more_runs_than_needed_cost_little_and_change_little():
    values = [np.tile(v, 50) for v in synthetic(0.005, 2)]
    fit = fit_repetition(*values, BASE)
    assert fit.law.R_D == pytest.approx(8, rel=0.1)
    assert fit.law.R_N == pytest.approx(3, rel=0.1)


def test_row_order_does_not_matter():
    values = synthetic(0.005)
    order = np.random.default_rng(1).permutation(120)
    one, other = fit_repetition(*values, BASE), fit_repetition(*(v[order] for v in values), BASE)
    assert other.law.R_D == pytest.approx(one.law.R_D, rel=1e-4)


def test_without_repeats_the_published_constants_are_borrowed():
    N, D, _, L = synthetic()
    fit = fit_repetition(N, D, D, L, BASE)
    assert fit.status is RepetitionStatus.NO_REPEATS
    assert fit.law.borrowed
    assert fit.law == RepeatedDataLaw(base=BASE)
    assert fit.R_D_range is None


def test_bad_values_are_refused():
    N, D, U, L = synthetic()
    with pytest.raises(FitError, match="positive and finite"):
        fit_repetition(N, D, -U, L, BASE)
