"""The surface without each budget and each size."""

import numpy as np
import pytest
from sweeps import LAWS
from tables import sweep_table

from flops_fit.fit import analyze_runs


def test_without_noise_nothing_depends_on_what_is_left_out():
    table = analyze_runs(sweep_table(noise=0.0), n_bootstrap=20).leave_one_out
    budgets = [row for row in table if row.what == "budget"]
    assert [row.value for row in budgets] == pytest.approx(np.geomspace(1e18, 1e20, 5))
    assert {row.n_runs for row in budgets} == {9}
    assert sum(row.n_runs for row in table if row.what == "size") == 45
    a, _ = LAWS["epoch"].exponents()
    for row in table:
        assert row.exponent == pytest.approx(a, rel=1e-4)
        assert row.num_params == pytest.approx(LAWS["epoch"].optimum(1e21)[0], rel=1e-3)


def test_a_budget_that_is_off_stands_out():
    table = sweep_table(noise=0.001)
    table.loc[table.compute_budget == table.compute_budget.max(), "loss"] *= 1.03
    rows = [r for r in analyze_runs(table, n_bootstrap=20).leave_one_out if r.what == "budget"]
    losses = np.array([r.loss for r in rows])
    assert np.abs(losses - np.median(losses)).argmax() == len(rows) - 1
