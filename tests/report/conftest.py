"""One small analysis, and its report, for every test of the room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from flops_fit.fit import ScalingAnalysis, analyze_runs
from flops_fit.laws import ParametricLaw

LAW = ParametricLaw(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
EVIL = "<script>alert(1)</script>"


def make_sweep(budgets: int = 5, sizes: int = 6, noise: float = 0.003) -> pd.DataFrame:
    """A noisy IsoFLOP sweep; one run diverged and has a name that must be escaped."""
    C = np.repeat(1e17 * 10 ** (0.5 * np.arange(budgets)), sizes)
    N = np.sqrt(C / 120) * np.tile(np.geomspace(0.25, 4, sizes), budgets)
    D = C / (6 * N)
    loss = LAW.loss(N, D) * np.exp(np.random.default_rng(0).normal(0, noise, len(N)))
    frame = pd.DataFrame({"num_params": N, "num_tokens": D, "loss": loss})
    frame = frame.assign(run_id=[f"run {i}" for i in range(len(N))], state="completed")
    frame.loc[2, ["run_id", "state"]] = [EVIL, "diverged"]
    return frame


@pytest.fixture(scope="session")
def sweep() -> Callable[..., pd.DataFrame]:
    return make_sweep


@pytest.fixture(scope="session")
def analysis() -> ScalingAnalysis:
    return analyze_runs(make_sweep(), n_bootstrap=100)
