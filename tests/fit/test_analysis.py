"""analyze_runs: a runs table in, an analysis that answers out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flops_fit.errors import FitError
from flops_fit.fit import ScalingAnalysis, analyze_runs
from flops_fit.laws import ParametricLaw

LAW = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)


def sweep(
    law: ParametricLaw = LAW, *, noise: float = 0.003, seed: int = 0, sizes: int = 9, budgets: int = 5
) -> pd.DataFrame:
    """An IsoFLOP sweep: budgets 1e18 to 1e20, sizes within a factor 4 of each optimum."""
    rng = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e18, 1e20, budgets), sizes)
    N = law.optimum(C)[0] * np.tile(np.geomspace(0.25, 4, sizes), budgets)
    D = C / (6 * N)
    L = law.loss(N, D) * np.exp(noise * rng.standard_normal(C.size))
    return pd.DataFrame({"compute_budget": C, "num_params": N, "num_tokens": D, "loss": L})


def test_a_noiseless_sweep_is_extrapolated_exactly() -> None:
    analysis = analyze_runs(sweep(noise=0.0), n_bootstrap=20)
    N, D = LAW.optimum(1e23)
    answer = analysis.predict(1e23)
    assert answer.num_params == pytest.approx(N, rel=1e-4)
    assert answer.num_tokens == pytest.approx(D, rel=1e-4)
    assert answer.loss == pytest.approx(LAW.loss(N, D), rel=1e-5)
    assert answer.extrapolation == pytest.approx(1000)


def test_every_row_that_is_not_fitted_says_why() -> None:
    table = sweep().assign(state="completed")
    table["run_id"] = [f"run{i}" for i in range(len(table))]
    table.loc[0, "state"] = "diverged"
    table.loc[1, "state"] = "running"
    table.loc[2, "loss"] = np.nan
    table.loc[3, "loss"] = np.inf
    table = pd.concat([table, table.iloc[[10]], table.iloc[[11]].assign(num_tokens=1e6)])
    reasons = {(e.run_id, e.reason) for e in analyze_runs(table, n_bootstrap=20).excluded}
    assert reasons == {
        ("run0", "diverged"),
        ("run1", "not final: its state is 'running'"),
        ("run2", "loss is missing"),
        ("run3", "loss is not a positive finite number"),
        ("run10", "duplicate: the same row appears before"),
        ("run11", "not final: a row of the same run has as many tokens or more"),
    }


def test_too_few_runs_for_any_method_is_an_error_that_says_what_is_needed() -> None:
    with pytest.raises(FitError, match="7 runs"):
        analyze_runs(sweep().head(4))


def test_a_saved_analysis_answers_as_before(tmp_path: Path) -> None:
    analysis = analyze_runs(sweep(), n_bootstrap=50)
    analysis.save(tmp_path)
    loaded = ScalingAnalysis.load(tmp_path)
    assert loaded.predict(1e22) == analysis.predict(1e22)
    assert loaded.to_dict() == analysis.to_dict()
    pd.testing.assert_frame_equal(loaded.runs, analysis.runs)
