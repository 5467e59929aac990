"""The surface is found wrong where it is wrong, and not where it is right."""

import numpy as np
import pytest
from tables import generalised, sweep_table

from flops_fit.fit.misfit import Misfit, find_misfit
from flops_fit.fit.parametric import fit_parametric
from flops_fit.fit.rows import select_rows


def misfit(table):
    rows, _ = select_rows(table)
    return find_misfit(fit_parametric(rows.N, rows.D, rows.L), rows)


@pytest.mark.parametrize("name", ["epoch", "asymmetric"])
def test_sweeps_of_the_surface_are_rarely_doubted(name):
    found = [misfit(sweep_table(name, seed=seed)).statistic for seed in range(15)]
    assert np.median(found) < 0.5
    assert np.mean(np.array(found) > 2.5) <= 0.15


def test_sweeps_of_another_form_are_doubted():
    found = [misfit(sweep_table(truth=generalised, seed=seed)) for seed in range(10)]
    assert np.mean([m.doubt == 1.0 for m in found]) >= 0.8


def test_budgets_that_are_shifted_are_no_misfit_of_the_form():
    shifts = 0.01 * np.array([1, -1, 0.5, -0.5, 1])
    table = sweep_table(noise=0.002)
    table["loss"] *= np.exp(np.repeat(shifts, 9))
    found = misfit(table)
    assert found.shift_statistic > 10
    assert found.doubt < 0.5


def test_residuals_of_nothing_are_no_misfit():
    assert misfit(sweep_table(noise=0.0)) == Misfit(statistic=0.0, size=0.0, shift_statistic=0.0)


def test_doubt_grows_from_nothing_to_certainty():
    doubts = [Misfit(statistic=s, size=0.0, shift_statistic=0.0).doubt for s in (0.0, 0.5, 1.5, 2.5, 100.0)]
    assert doubts == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_thousands_of_runs_are_judged_by_some_of_them():
    assert misfit(sweep_table(sizes=200)).doubt < 1
    assert misfit(sweep_table(sizes=200, truth=generalised)).doubt == 1.0
