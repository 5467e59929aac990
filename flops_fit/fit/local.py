"""Laws through the budgets' optima that hold locally: a power law whose exponent may drift, with weak priors.

No published law is exact: over a few decades the local exponents of N_opt(C) and L_opt(C) move by more than the noise
of a sweep. What lies just beyond the data is best told by the largest budgets, and what two or three budgets cannot
tell is best taken from the published laws. Both are one linear Gaussian model,

    y(x) = H(x) b + f(x) + noise,   x = log C,

with H b the law, f an integrated random walk that starts at the largest budget (so the exponent drifts, the more the
farther), Gaussian priors on b, and the rest (gamma, noise beyond the standard errors, drift) integrated out over a
grid. The priors fade as budgets are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flops_fit.laws import FloatArray

# Published exponents of N_opt: Hoffmann et al. (2022) 0.46 to 0.50, their data refitted 0.51 (Besiroglu et al. 2024),
# Llama 3 0.46, DeepSeek 0.52, tied surfaces (Gadre et al., Muennighoff et al. 2024) 0.50. One in five sweeps is taken
# to be of another kind.
SIZE_EXPONENT: Final = (0.50, 0.05)
_OTHER_KIND = (0.2, 0.3)

# Published gamma of L_opt, 0.11 to 0.18 (0.30 once): the surfaces of the papers above and of Li et al. (2025);
# median and standard deviation of its logarithm.
GAMMA: Final = (0.16, 0.25)

# How far an exponent drifts within a factor e of compute. The exponent of N_opt moved by 0.1 to 0.2 over the two to
# three decades of published sweeps.
_SIZE_DRIFT = np.array([0.04, 0.08, 0.16])
_LOSS_DRIFT = np.array([0.0, 0.001, 0.002, 0.004, 0.008])

# Scatter of the optima beyond their own standard errors, and the least standard error that is believed.
_SIZE_SCATTER = np.array([0.0, 0.03, 0.06, 0.12, 0.25, 0.5])
_LOSS_SCATTER = np.array([0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016])
_SIZE_FLOOR, _LOSS_FLOOR = 0.03, 0.0005

_GAMMAS = np.geomspace(0.03, 0.8, 40)


@dataclass(frozen=True, slots=True)
class LocalLaw:
    """Draws of y(x) = level + slope * shape(x) + f(x).

    Attributes:
        x: log C of the budgets, ascending, shape (budgets,).
        values: Per draw (level, slope, gamma, drift, a standard normal number that continues f), shape (draws, 5);
            row 0 is the posterior mean. gamma 0 stands for a straight line, shape(x) = x - x_last; else
            shape(x) = exp(-gamma (x - x_last)).
        pull: Per draw, what f within the data is made of, shape (draws, budgets).
        scale: y is in units of this.
    """

    x: FloatArray
    values: FloatArray
    pull: FloatArray
    scale: float = 1.0

    def __call__(self, C: float) -> FloatArray:
        """y at C FLOPs, one value per draw."""
        level, slope, gamma, drift, normal = self.values.T
        d = np.log(C) - self.x[-1]
        with np.errstate(over="ignore"):
            y = level + slope * np.where(gamma == 0, d, np.exp(-gamma * d))
        if d > 0:
            return np.asarray((y + drift * np.sqrt(d**3 / 3) * normal) * self.scale)
        return np.asarray((y + drift**2 * (self.pull @ _walk(np.array([-d]), self.x[-1] - self.x)[0])) * self.scale)


def fit_local_size(
    x: FloatArray, log_N: FloatArray, se: FloatArray, n_draws: int, rng: np.random.Generator
) -> LocalLaw:
    """The law of log N_opt in x = log C; ``se`` are the standard errors of log_N."""
    level = (float(log_N.mean()), 10.0)
    kinds = [(SIZE_EXPONENT, np.log(1 - _OTHER_KIND[0])), ((SIZE_EXPONENT[0], _OTHER_KIND[1]), np.log(_OTHER_KIND[0]))]
    parts = [
        _posterior(x, log_N, np.maximum(se, _SIZE_FLOOR), 0.0, (level, slope), log_prior, _SIZE_SCATTER, _SIZE_DRIFT)
        for slope, log_prior in kinds
    ]
    return _sample(x, parts, n_draws, rng)


def fit_local_loss(x: FloatArray, L: FloatArray, se: FloatArray, n_draws: int, rng: np.random.Generator) -> LocalLaw:
    """The law of L_opt in x = log C; ``se`` are the relative standard errors of L."""
    scale = float(L.mean())
    parts = []
    for gamma in _GAMMAS:
        # Student's t with 4 degrees of freedom: a sweep of another kind may outvote the published laws.
        log_prior = -2.5 * np.log1p((np.log(gamma / GAMMA[0]) / GAMMA[1]) ** 2 / 4)
        prior = ((0.5, 1.0), (0.5, 1.0))
        se_used = np.maximum(se, _LOSS_FLOOR)
        parts.append(_posterior(x, L / scale, se_used, gamma, prior, log_prior, _LOSS_SCATTER, _LOSS_DRIFT))
    return _sample(x, parts, n_draws, rng, scale)


def _walk(u: FloatArray, v: FloatArray) -> FloatArray:
    """Covariance of an integrated random walk (unit drift) at distances u and v from its start, shape (u, v)."""
    near, far = np.minimum(u[:, None], v), np.maximum(u[:, None], v)
    return np.asarray(near**2 * (3 * far - near) / 6)


def _posterior(
    x: FloatArray,
    y: FloatArray,
    se: FloatArray,
    gamma: float,
    prior: tuple[tuple[float, float], tuple[float, float]],
    log_prior: float,
    scatters: FloatArray,
    drifts: FloatArray,
) -> dict[str, Any]:
    """Log evidence, posterior mean and covariance of b at every (scatter, drift) of the grid."""
    d = x - x[-1]
    H = np.stack([np.ones_like(d), d if gamma == 0 else np.exp(-gamma * d)], axis=1)
    mean, variance = np.array([p[0] for p in prior]), np.diag([p[1] ** 2 for p in prior])
    scatter, drift = (v.ravel() for v in np.meshgrid(scatters, drifts, indexing="ij"))
    noise = np.eye(len(x)) * (se**2 + scatter[:, None] ** 2)[:, None, :]
    around = noise + drift[:, None, None] ** 2 * _walk(-d, -d)
    r = y - H @ mean
    # By the precision, scaled to a unit diagonal: the far end of a long sweep determines one coefficient 10^6 times as
    # well as the other, and a covariance of y, or one found by subtraction, would be lost in rounding.
    informed = np.linalg.solve(around, np.broadcast_to(H, around.shape[:1] + H.shape))
    precision = np.linalg.inv(variance) + H.T @ informed
    width = 1 / np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
    between = width[:, :, None] * width[:, None, :]
    covariance = np.linalg.inv(precision * between) * between
    shift = (covariance @ (informed.transpose(0, 2, 1) @ r)[:, :, None])[..., 0]
    b, away = mean + shift, r - shift @ H.T
    squares = (away * np.linalg.solve(around, away[:, :, None])[..., 0]).sum(axis=1)
    squares += shift**2 @ (1 / np.diag(variance))
    log_volume = np.linalg.slogdet(around)[1] + np.log(np.diag(variance)).sum()
    log_volume += np.linalg.slogdet(precision * between)[1] - 2 * np.log(width).sum(axis=1)
    log_evidence = log_prior - 0.5 * (squares + log_volume)
    if gamma > 0:
        # An irreducible loss below zero is no law.
        log_evidence = np.where(b[:, 0] > 0, log_evidence, -np.inf)
    return {
        "log_evidence": log_evidence,
        "b": b,
        "covariance": covariance,
        "gamma": np.full(len(b), gamma),
        "drift": drift,
        "around": around,
        "H": np.broadcast_to(H, (len(b), *H.shape)),
        "y": np.broadcast_to(y, (len(b), len(y))),
    }


def _sample(
    x: FloatArray, parts: list[dict[str, Any]], n_draws: int, rng: np.random.Generator, scale: float = 1.0
) -> LocalLaw:
    cells = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    weight = np.exp(cells["log_evidence"] - cells["log_evidence"].max())
    weight /= weight.sum()
    best = int(weight.argmax())
    chosen = np.append(best, rng.choice(len(weight), n_draws, p=weight))
    covariance = cells["covariance"][chosen]
    # Where the two coefficients cannot be told apart, rounding may make it indefinite.
    roots = np.linalg.cholesky(covariance * (1 + 1e-10 * np.eye(2)))
    b = cells["b"][chosen] + (roots @ rng.standard_normal((len(chosen), 2, 1)))[..., 0]
    normal = rng.standard_normal(len(chosen))
    b[0], normal[0] = cells["b"][best], 0.0
    away = cells["y"][chosen] - (cells["H"][chosen] @ b[:, :, None])[..., 0]
    pull = np.linalg.solve(cells["around"][chosen], away[..., None])[..., 0]
    values = np.column_stack([b, cells["gamma"][chosen], cells["drift"][chosen], normal])
    return LocalLaw(x=x, values=values, pull=pull, scale=scale)


def named_priors() -> dict[str, Any]:
    """The priors in plain types, for every output that used them."""
    return {
        "N_opt_exponent": {"mean": SIZE_EXPONENT[0], "sd": SIZE_EXPONENT[1], "source": "published IsoFLOP exponents"},
        "gamma": {"median": GAMMA[0], "sd_of_log": GAMMA[1], "source": "published surfaces"},
    }
