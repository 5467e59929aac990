"""Runs tables of synthetic sweeps, for the tests of the analysis."""

import numpy as np
import pandas as pd
from sweeps import LAWS, isoflop_sweep


def sweep_table(name="epoch", *, noise=0.003, seed=0, sizes=9, budgets=5, decades=2.0, width=4.0, truth=None):
    """Budgets from 1e18 FLOPs up; losses of the named law, or of ``truth(N, D)`` on the same grid."""
    law = LAWS[name]
    C = np.geomspace(1e18, 10 ** (18 + decades), budgets)
    N, D = isoflop_sweep(law, C, sizes=sizes, width=width)
    error = noise * np.random.default_rng(seed).standard_normal(N.size)
    loss = (truth or law.loss)(N, D) * np.exp(error)
    columns = {"compute_budget": np.repeat(C, sizes), "num_params": N, "num_tokens": D, "loss": loss}
    return pd.DataFrame({"run_id": [f"run{i}" for i in range(N.size)]} | columns)


def generalised(N, D):
    """A law that is near what published sweeps prefer, and not the additive surface."""
    g = 0.6
    return 1.75 + ((600 * N**-0.355) ** (1 / g) + (1350 * D**-0.335) ** (1 / g)) ** g
