"""Which rows are fitted, and the reasons of the others."""

import numpy as np
import pandas as pd
import pytest
from sweeps import LAWS
from tables import sweep_table

from flops_fit.errors import DataError, FitError
from flops_fit.fit.rows import select_rows
from flops_fit.laws import SIX_ND, ComputeRule


def test_every_row_that_is_not_fitted_says_why():
    table = sweep_table().assign(state="completed")
    table.loc[0, "state"] = "diverged"
    table.loc[1, "state"] = "running"
    table.loc[2, "loss"] = np.nan
    table.loc[3, "loss"] = np.inf
    table.loc[4, "num_tokens"] = 0.0
    table = pd.concat([table, table.iloc[[10]], table.iloc[[11]].assign(num_tokens=1e6)])
    rows, excluded = select_rows(table)
    assert {(e.run_id, e.reason) for e in excluded} == {
        ("run0", "diverged"),
        ("run1", "not final: its state is 'running'"),
        ("run2", "loss is missing"),
        ("run3", "loss is not a positive finite number"),
        ("run4", "num_tokens is not a positive finite number"),
        ("run10", "duplicate: the same row appears before"),
        ("run11", "not final: a row of the same run has as many tokens or more"),
    }
    assert len(rows) == 40


def test_compute_not_given_is_six_nd():
    table = sweep_table()
    rows, _ = select_rows(table)
    assert pytest.approx(SIX_ND.flops(rows.N, rows.D)) == rows.C
    counted, _ = select_rows(table.assign(flops=7 * table.num_params * table.num_tokens))
    assert counted.C / rows.C == pytest.approx(np.full(len(rows), 7 / 6))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.drop(columns="loss"), DataError, "no column loss"),
        (lambda t: t.assign(loss="text"), DataError, "not numeric"),
        (lambda t: t.assign(loss=-1.0), FitError, "none of the 45 rows"),
        (lambda t: t.head(0), FitError, "empty"),
    ],
)
def test_a_table_that_cannot_be_fitted_says_why(change, error, message):
    with pytest.raises(error, match=message):
        select_rows(change(sweep_table()))


def test_runs_moved_onto_their_budget_have_the_loss_of_their_law_there():
    law, rule = LAWS["epoch"], ComputeRule()
    table = sweep_table(noise=0.0)
    table["num_tokens"] *= np.exp(np.random.default_rng(0).uniform(-0.1, 0.1, len(table)))
    table["loss"] = law.loss(table.num_params, table.num_tokens)
    moved = select_rows(table)[0].on_budget(law, rule)
    assert pytest.approx(moved.budget) == rule.flops(moved.N, moved.D)
    assert pytest.approx(law.loss(moved.N, moved.D)) == moved.L


def test_thinning_keeps_the_ends_and_the_number_asked_for():
    rows, _ = select_rows(sweep_table())
    assert rows.thinned(100) is rows
    few = rows.thinned(10)
    assert len(few) == 10
    assert (few.C.min(), few.C.max()) == (rows.C.min(), rows.C.max())
