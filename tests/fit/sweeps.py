"""Synthetic sweeps of known laws, for the tests of the surface."""

import numpy as np

from flops_fit.laws import ParametricLaw

LAWS = {
    "symmetric": ParametricLaw(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31),
    "chinchilla": ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "asymmetric": ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155),
    "epoch": ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672),
}


def isoflop_sweep(law, budgets, *, sizes=9, width=4.0, drift=1.0):
    """N and D: sizes within a factor ``width`` of N_opt at each budget, its centre off by 1/drift to drift."""
    budgets = np.asarray(budgets, float)[:, None]
    centers = law.optimum(budgets)[0] * drift ** np.linspace(-1, 1, len(budgets))[:, None]
    N = centers * np.geomspace(1 / width, width, sizes)
    return N.ravel(), (budgets / (6 * N)).ravel()


def random_sweep(rng, name, *, contaminated=True):
    """A noisy sweep of the kind that users have: 3 to 7 budgets, 4 to 11 sizes, 0.1 to 3 % noise, 5 % bad runs."""
    law = LAWS[name]
    budgets = np.geomspace(1e17, 10 ** rng.uniform(19, 21), rng.integers(3, 8))
    width, noise = rng.choice([2.0, 4.0, 16.0]), rng.choice([0.001, 0.003, 0.01, 0.03])
    N, D = isoflop_sweep(law, budgets, sizes=rng.integers(4, 12), width=width, drift=10 ** rng.uniform(0, 0.5))
    error = noise * rng.standard_normal(N.size)
    if contaminated:
        error += (rng.random(N.size) < 0.05) * rng.exponential(0.05, N.size)
    return N, D, law.loss(N, D) * np.exp(error), noise


def theta_of(law):
    """(log A, alpha, log B, beta, log E)."""
    return np.array([np.log(law.A), law.alpha, np.log(law.B), law.beta, np.log(law.E)])


def columns(runs):
    """N, D and L of a published table."""
    return tuple(runs[name].to_numpy(float) for name in ("num_params", "num_tokens", "loss"))
