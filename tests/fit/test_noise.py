"""Repeats with further seeds: the noise they tell, the test they allow, and the intervals they do not narrow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tables import sweep_table

from flops_fit.fit import analyze_runs
from flops_fit.fit.isoflop import fit_isoflop
from flops_fit.fit.noise import find_noise, lack_of_fit
from flops_fit.fit.parametric import fit_parametric
from flops_fit.fit.rows import Rows, select_rows
from flops_fit.fit.uncertainty import draw_theta, sandwich_covariance
from flops_fit.report.tables import answer_text, noise_line

SD = 0.004


def repeated(rng, *, noise=SD, miss=0.0, seeds=3, budgets=4, sizes=5) -> pd.DataFrame:
    """A sweep whose smaller half of the budgets is trained with every seed; ``miss`` shifts whole cells."""
    once = sweep_table(noise=0.0, sizes=sizes, budgets=budgets, decades=1.5)
    once["loss"] *= np.exp(miss * rng.standard_normal(len(once)))
    again = once[once["compute_budget"] < once["compute_budget"].median()]
    tables = [once.assign(seed=0), *(again.assign(seed=s) for s in range(1, seeds))]
    table = pd.concat(tables, ignore_index=True).assign(run_id=lambda t: [f"run{i}" for i in t.index])
    return table.assign(loss=table["loss"] * np.exp(noise * rng.standard_normal(len(table))))


def redrawn(rows: Rows, rng, *, miss=0.0) -> Rows:
    """The same runs with other scatter, and cells shifted as a whole; ``rows`` are without either."""
    error = miss * rng.standard_normal(len(rows))[rows.cells] + SD * rng.standard_normal(len(rows))
    return replace(rows, L=rows.L * np.exp(error))


def rows_of(table: pd.DataFrame) -> Rows:
    return select_rows(table)[0]


def test_the_pooled_scatter_is_the_noise_and_its_interval_holds_it():
    rng, rows = np.random.default_rng(0), rows_of(repeated(np.random.default_rng(0), noise=0.0))
    found = [find_noise(redrawn(rows, rng)) for _ in range(300)]
    assert {(f.degrees_of_freedom, f.n_cells) for f in found} == {(20, 10)}
    assert np.mean([f.sd**2 for f in found]) == pytest.approx(SD**2, rel=0.05)
    # 285 of 300 +- 4 standard deviations.
    assert 270 <= sum(f.interval[0] <= SD <= f.interval[1] for f in found) <= 299


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(lambda t: t.drop(columns="seed"), id="unknown"),
        pytest.param(lambda t: t.assign(seed=0), id="all the same: they differ in something else"),
        pytest.param(lambda t: t.assign(seed=np.where(t["seed"] == 2, 1, t["seed"])), id="one twice"),
        pytest.param(lambda t: t[t["seed"] == 0], id="one"),
    ],
)
def test_only_runs_that_differ_in_their_seed_alone_tell_the_noise(seeds):
    table = seeds(repeated(np.random.default_rng(0)))
    rows = rows_of(table)
    assert find_noise(rows) is None
    assert lack_of_fit(fit_parametric(rows.N, rows.D, rows.L), rows) is None
    assert (rows.cells == np.arange(len(rows))).all()


def test_a_cell_is_the_same_whatever_the_order_of_the_rows():
    table = repeated(np.random.default_rng(0))
    shuffled = table.sample(frac=1, random_state=1)
    a, b = rows_of(table), rows_of(shuffled)
    assert find_noise(a).sd == pytest.approx(find_noise(b).sd)
    places = [dict(zip(r.run_id, r.cells, strict=True)) for r in (a, b)]
    together = [{frozenset(k for k in p if p[k] == cell) for cell in p.values()} for p in places]
    assert together[0] == together[1]


@pytest.mark.parametrize(("miss", "accused"), [(0.0, (0, 5)), (2 * SD, (54, 60))])
def test_a_surface_that_holds_is_hardly_accused_and_one_that_misses_is(miss, accused):
    rng, exact = np.random.default_rng(2), rows_of(repeated(np.random.default_rng(0), noise=0.0))
    found = []
    for _ in range(60):
        rows = redrawn(exact, rng, miss=miss)
        found.append(lack_of_fit(fit_parametric(rows.N, rows.D, rows.L), rows))
    assert {f.degrees_of_freedom for f in found} == {(15, 20)}
    assert accused[0] <= sum(f.p_value < 0.02 for f in found) <= accused[1]
    assert np.sqrt(np.mean([f.size**2 for f in found])) == pytest.approx(miss, rel=0.25, abs=SD / 2)


def test_repeats_that_agree_do_not_make_a_surface_surer_that_misses_their_cells():
    """Copies of a run, as noiseless seeds would be, leave the spread of the draws as it was without them."""
    rng = np.random.default_rng(3)
    table = repeated(rng, noise=0.0, miss=SD, seeds=9)
    spread = {}
    for name, part in (("once", table[table["seed"] == 0]), ("again", table)):
        rows = rows_of(part)
        fit = fit_parametric(rows.N, rows.D, rows.L)
        C = 10 * rows.C.max()
        for kind, cells in (("cells", rows.cells), ("runs", None)):
            draws = draw_theta(fit, rows.N, rows.D, rows.L, n_draws=300, rng=np.random.default_rng(0), cells=cells)
            spread[name, kind] = np.std(draws[:, 1] - draws[:, 3])
            spread[name, kind, "sandwich"] = sandwich_covariance(fit, rows.N, rows.D, rows.L, cells)[1, 1] ** 0.5
    assert C > 0
    assert spread["once", "cells"] == spread["once", "runs"]
    assert spread["again", "cells"] > 1.3 * spread["again", "runs"]
    assert spread["again", "cells", "sandwich"] > 1.3 * spread["again", "runs", "sandwich"]
    assert spread["again", "cells"] > 0.6 * spread["once", "cells"]


def test_no_optimum_is_surer_than_the_noise_allows():
    rows = rows_of(sweep_table(noise=0.0, sizes=5))
    lucky, told = (fit_isoflop(rows.N, rows.D, rows.L, rows.budget, noise=n) for n in (None, 0.01))
    for without, known in zip(lucky.budgets, told.budgets, strict=True):
        assert known.num_params == without.num_params
        assert known.log_n_se > 5 * without.log_n_se
    rng = np.random.default_rng(4)
    found = []
    for _ in range(60):
        L = rows.L * np.exp(0.003 * rng.standard_normal(len(rows)))
        found.append(fit_isoflop(rows.N, rows.D, L, rows.budget, noise=0.003).budgets[2])
    # The stated error is that of repetitions; five sizes alone would state anything from a tenth of it to the double.
    actual = np.std([np.log(b.num_params) for b in found])
    assert np.min([b.log_n_se for b in found]) > 0.6 * actual
    assert np.median([b.log_n_se for b in found]) == pytest.approx(actual, rel=0.35)


def test_three_sizes_have_an_error_where_seeds_tell_it():
    rows = rows_of(sweep_table(noise=0.0, sizes=3))
    assert all(b.log_n_se is None for b in fit_isoflop(rows.N, rows.D, rows.L, rows.budget).budgets)
    assert all(b.log_n_se > 0 for b in fit_isoflop(rows.N, rows.D, rows.L, rows.budget, noise=0.003).budgets)


def test_the_answer_says_how_noisy_runs_are_and_how_surely_that_is_known(tmp_path):
    analysis = analyze_runs(repeated(np.random.default_rng(5), miss=0.02), n_bootstrap=50, outliers="none")
    text, document = answer_text(analysis), analysis.to_dict()
    assert noise_line(analysis) in text
    assert f"noise between seeds: {100 * analysis.noise.sd:.2g} % of the loss" in text
    assert "20 degrees of freedom, from 10 cells" in text
    assert "the surface misses cells by more than that" in text
    assert [w.code for w in analysis.warnings].count("lack_of_fit") == 1
    assert document["noise"]["sd"] == pytest.approx(SD, rel=0.5)
    assert document["noise"]["degrees_of_freedom"] == 20
    assert list(document["lack_of_fit"]["degrees_of_freedom"]) == [15, 20]
    analysis.save(tmp_path)
    again = type(analysis).load(tmp_path)
    assert (again.noise, again.lack_of_fit) == (analysis.noise, analysis.lack_of_fit)
    assert noise_line(analyze_runs(sweep_table(), n_bootstrap=50)) is None
