"""Runs of several kinds in one table."""

import numpy as np
import pytest
from tables import sweep_table

import flops_fit
from flops_fit.fit.mixed import find_kinds

RNG = np.random.default_rng(0)
LOG_N = np.tile(np.log(np.geomspace(1e7, 1e9, 10)), 6)
NOISE = 0.003 * RNG.standard_normal(60)
KINDS = np.array(["c4", "web", "code"])[np.arange(60) // 20]


def test_kinds_that_differ_are_found_with_their_distance():
    residuals = NOISE + 0.02 * (KINDS == "code") - 0.01 * (KINDS == "web")
    found = find_kinds(LOG_N, residuals, {"nothing": RNG.integers(0, 3, 60), "corpus": KINDS})
    assert (found.column, found.lowest, found.highest) == ("corpus", "web", "code")
    assert found.apart == pytest.approx(0.03, abs=0.004)


def test_columns_that_mean_nothing_are_no_kinds():
    rng = np.random.default_rng(1)
    found = [find_kinds(LOG_N, NOISE, {"x": rng.integers(0, 2 + i % 4, 60)}) for i in range(300)]
    assert sum(f is not None for f in found) <= 3


@pytest.mark.parametrize(
    "column",
    [
        LOG_N > LOG_N.mean(),  # follows the size
        np.arange(60),  # a name
        ["one"] * 60,
        np.where(np.arange(60) < 4, "rare", "usual"),
    ],
)
def test_what_is_not_comparable_is_no_kind(column):
    assert find_kinds(LOG_N, NOISE + 0.05 * (np.arange(60) < 4) + 0.05 * (LOG_N > LOG_N.mean()), {"x": column}) is None


def test_a_table_of_two_corpora_is_told_how_to_part_them():
    table = sweep_table(sizes=8).assign(**{"val set": np.tile(["c4", "<script>"], 20), "note": "same"})
    table.loc[table["val set"] == "<script>", "loss"] *= 1.05
    mixed = {w.code: w.message for w in flops_fit.analyze(table, n_bootstrap=20).analysis.warnings}["mixed_runs"]
    assert "where val set is <script> lie" in mixed
    assert "--group-by 'val set'" in mixed
    for kind in ("c4", "<script>"):
        alone = flops_fit.analyze(table[table["val set"] == kind], n_bootstrap=20)
        assert "mixed_runs" not in [w.code for w in alone.analysis.warnings]
