"""Many weighted fits of L(N, D) = E + A/N**alpha + B/D**beta at once: a batched, damped Newton method.

A fit to resampled, reweighted or partly hidden runs is the fit to all runs under another vector of weights, so that
replicates share the runs and can be solved side by side in a few array operations.

The solver works in coordinates q = (a, alpha, b, beta, e) in which the problem is well scaled: a and b are the logs of
the two terms at the geometric mean of N and of D, and e is E, all for losses divided by their geometric mean. The
condition number of the normal equations falls from 4e6 (logs, not centred) to 4e3. E itself and not its log, because E
does collapse on narrow noisy sweeps: E = 0 is then an ordinary bound, where log E would run away to minus infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flops_fit.laws import FloatArray

BoolArray = NDArray[np.bool_]

LossKind = Literal["huber", "log", "linear"]

# Published exponents lie between 0.05 and 0.8. Below the lower bound a term is a constant over any sweep, above the
# upper one it is felt by the smallest size (or the shortest run) alone; the amplitude's bound is a term of 1e-11 of L.
LOWER = np.array([-25.0, 0.01, -25.0, 0.01, 0.0])
UPPER = np.array([np.inf, 3.0, np.inf, 3.0, np.inf])

# log E of a law whose E is 0, relative to the mean log loss: keeps logs finite, far below any printed digit.
LOG_E_FLOOR = -30.0

_FREE = np.eye(5)
_TIED = np.array([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])


@dataclass(frozen=True, slots=True)
class Runs:
    """Finished runs in the solver's coordinates.

    Attributes:
        x: log N minus its mean, shape (n,).
        z: log D minus its mean, shape (n,).
        y: log L minus its mean, shape (n,).
        means: The three means.
    """

    x: FloatArray
    z: FloatArray
    y: FloatArray
    means: tuple[float, float, float]

    @classmethod
    def of(cls, N: ArrayLike, D: ArrayLike, L: ArrayLike) -> Self:
        """From N [parameters], D [tokens] and L [nats/token], each of shape (n,)."""
        logs = [np.log(np.asarray(v, float)) for v in (N, D, L)]
        means = [float(v.mean()) for v in logs]
        x, z, y = (v - m for v, m in zip(logs, means, strict=True))
        return cls(x, z, y, (means[0], means[1], means[2]))

    def coordinates(self, theta: FloatArray) -> FloatArray:
        """The solver's q of theta = (log A, alpha, log B, beta, log E), shape (..., 5)."""
        x0, z0, y0 = self.means
        a, alpha, b, beta, log_e = np.moveaxis(np.asarray(theta, float), -1, 0)
        return np.stack([a - alpha * x0 - y0, alpha, b - beta * z0 - y0, beta, np.exp(log_e - y0)], axis=-1)

    def theta(self, q: FloatArray) -> FloatArray:
        """The inverse of ``coordinates``."""
        x0, z0, y0 = self.means
        a, alpha, b, beta, e = np.moveaxis(q, -1, 0)
        log_e = np.log(np.maximum(e, np.exp(LOG_E_FLOOR)))
        return np.stack([a + alpha * x0 + y0, alpha, b + beta * z0 + y0, beta, log_e + y0], axis=-1)


@dataclass(frozen=True, slots=True)
class Expansion:
    """Second-order expansion of R objectives, each at a point of its own.

    Attributes:
        value: Objectives, shape (R,).
        gradient: Shape (R, k).
        hessian: Exact where it exists; may be indefinite, shape (R, k, k).
        majoriser: Curvature of a quadratic that lies above the objective (iteratively reweighted least squares):
            positive semidefinite, shape (R, k, k).
    """

    value: FloatArray
    gradient: FloatArray
    hessian: FloatArray
    majoriser: FloatArray

    def where(self, keep: BoolArray, other: Expansion) -> Expansion:
        """This expansion where ``keep``, else the other."""
        k1, k2 = keep[:, None], keep[:, None, None]
        return Expansion(
            np.where(keep, self.value, other.value),
            np.where(k1, self.gradient, other.gradient),
            np.where(k2, self.hessian, other.hessian),
            np.where(k2, self.majoriser, other.majoriser),
        )

    def __getitem__(self, index: BoolArray) -> Expansion:
        return Expansion(self.value[index], self.gradient[index], self.hessian[index], self.majoriser[index])


def expand(runs: Runs, q: FloatArray, weights: FloatArray, delta: float, linear: bool) -> Expansion:
    """Objective, gradient and curvature at points q.

    With u = (size term, data term) and s = u1 + u2 + e, the model of log L is log s and its derivatives by
    (a, b, e) are u1/s, u2/s, 1/s; those by alpha and beta carry a factor -x, -z.

    Args:
        runs: The n runs.
        q: Points, shape (R, 5).
        weights: Of each run in each replicate, shape (R, n) or (1, n).
        delta: Huber's; infinity gives least squares.
        linear: Residuals of the loss instead of its log.
    """
    x, z, n = runs.x, runs.z, runs.x.size
    J = np.empty((len(q), 5, n))
    size, data, rest = J[:, 0], J[:, 2], J[:, 4]
    np.exp(q[:, 0:1] - q[:, 1:2] * x, out=size)
    np.exp(q[:, 2:3] - q[:, 3:4] * z, out=data)
    s = size + data
    s += q[:, 4:5]
    if linear:
        r = np.exp(runs.y) - s
        rest[:] = 1.0
    else:
        r = runs.y - np.log(s)
        np.reciprocal(s, out=rest)
        size *= rest
        data *= rest
    np.multiply(size, -x, out=J[:, 1])
    np.multiply(data, -z, out=J[:, 3])

    psi = np.clip(r, -delta, delta)
    value = np.einsum("rn,rn->r", psi * (r - 0.5 * psi), np.broadcast_to(weights, r.shape))
    w_psi = weights * psi
    gradient = -(J @ w_psi[:, :, None])[:, :, 0]

    # majoriser: psi/r; Hessian: psi' J J' - psi d2(model), the latter of log s being diag(u/s) - (u/s)(u/s)'.
    majorant = weights * np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300)) if delta < np.inf else weights
    curvature = weights * (psi == r) if delta < np.inf else weights + 0.0 * r
    if not linear:
        curvature = curvature + w_psi
    Jt = J.transpose(0, 2, 1)
    majoriser = (J * np.broadcast_to(majorant, r.shape)[:, None]) @ Jt
    hessian = (J * curvature[:, None]) @ Jt
    for i, v in ((0, x), (2, z)):
        hessian[:, i, i] += gradient[:, i]
        hessian[:, i, i + 1] += gradient[:, i + 1]
        hessian[:, i + 1, i] += gradient[:, i + 1]
        hessian[:, i + 1, i + 1] += np.einsum("rn,rn,n->r", w_psi, J[:, i + 1], v)
    return Expansion(value, gradient, hessian, majoriser)


def minimise(
    runs: Runs,
    start: FloatArray,
    weights: FloatArray,
    *,
    delta: float,
    linear: bool = False,
    tied: bool = False,
    damping: float = 1e-3,
    tolerance: float = 1e-9,
    max_iterations: int = 200,
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Minimise R weighted objectives, each from a start of its own.

    A step solves (Hessian + damping * majoriser) step = -gradient among the coordinates that do not press against a
    bound. Small damping gives Newton's method, large damping a short step of iteratively reweighted least squares,
    which cannot fail to descend.

    Args:
        runs: The n runs.
        start: Points q, shape (R, 5).
        weights: Shape (R, n).
        delta: Huber's, in log loss; infinity gives least squares.
        linear: Residuals of the loss instead of its log.
        tied: Keep alpha = beta.
        damping: First damping.
        tolerance: A replicate is done when a step promises less than this part of its objective.
        max_iterations: Then it is left as it is.

    Returns:
        Points (R, 5), objectives (R,), and whether each converged (R,).
    """
    basis = _TIED if tied else _FREE
    lower, upper = (basis @ v / basis.sum(1) for v in (LOWER, np.where(np.isfinite(UPPER), UPPER, 1e9)))
    points = np.clip(start @ basis.T / basis.sum(1), lower, upper)
    values, converged = np.empty(len(points)), np.zeros(len(points), bool)
    chunk = max(1, 8192 // runs.x.size)
    for i in range(0, len(points), chunk):
        part = slice(i, i + chunk)
        points[part], values[part], converged[part] = _minimise_chunk(
            runs, points[part], weights[part], basis, lower, upper, delta, linear, damping, tolerance, max_iterations
        )
    return points @ basis, values, converged


def _project(e: Expansion, basis: FloatArray) -> Expansion:
    if len(basis) == 5:
        return e
    return Expansion(e.value, e.gradient @ basis.T, basis @ e.hessian @ basis.T, basis @ e.majoriser @ basis.T)


def _minimise_chunk(
    runs: Runs,
    start: FloatArray,
    weights: FloatArray,
    basis: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    delta: float,
    linear: bool,
    damping: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[FloatArray, FloatArray, BoolArray]:
    best, values = start.copy(), np.empty(len(start))
    converged = np.zeros(len(start), bool)
    active = np.arange(len(start))
    q, w = start.copy(), weights
    damp = np.full(len(start), damping)
    eye = np.eye(len(lower))
    # Objectives below this are rounding: residuals of 1e-13.
    floor = 1e-26 * weights.sum(1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        here = _project(expand(runs, q @ basis, w, delta, linear), basis)
        for _ in range(max_iterations):
            pressed = ((q <= lower) & (here.gradient > 0)) | ((q >= upper) & (here.gradient < 0))
            free = ~pressed
            both = free[:, :, None] & free[:, None, :]
            gradient = np.where(free, here.gradient, 0.0)
            scale = np.trace(here.majoriser, axis1=1, axis2=2)[:, None, None]
            ridge = (1e-13 * scale + 1e-300) * eye + pressed[:, :, None] * eye
            matrix = np.where(both, here.hessian + damp[:, None, None] * here.majoriser, 0.0) + ridge
            step = -np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
            promise = -np.einsum("rk,rk->r", step, gradient)
            uphill = np.flatnonzero(promise < 0)
            if uphill.size:
                safe = np.where(both[uphill], here.majoriser[uphill], 0.0) + ridge[uphill] + 1e-9 * scale[uphill] * eye
                step[uphill] = -np.linalg.solve(safe, gradient[uphill, :, None])[:, :, 0]
                promise[uphill] = -np.einsum("rk,rk->r", step[uphill], gradient[uphill])
            step /= np.maximum(np.abs(step).max(axis=1, keepdims=True), 1.0)
            there_q = np.clip(q + step, lower, upper)
            there = _project(expand(runs, there_q @ basis, w, delta, linear), basis)
            better = there.value <= here.value
            stuck = damp > 1e10
            done = (promise <= tolerance * np.maximum(here.value, floor)) | stuck
            q = np.where(better[:, None], there_q, q)
            here = there.where(better, here)
            damp = np.where(better, np.maximum(0.2 * damp, 1e-9), 5.0 * damp)
            if done.any():
                finished = active[done]
                best[finished], values[finished] = q[done], here.value[done]
                converged[finished] = True
                rest = ~done
                if not rest.any():
                    return best, values, converged
                active, q, damp, w, floor, here = active[rest], q[rest], damp[rest], w[rest], floor[rest], here[rest]
        best[active], values[active] = q, here.value
    return best, values, converged
