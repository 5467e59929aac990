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
IntArray = NDArray[np.intp]

LossKind = Literal["huber", "log", "linear"]

# Published exponents lie between 0.05 and 0.8. Below the lower bound a term is a constant over any sweep, above the
# upper one it is felt by the smallest size (or the shortest run) alone; the amplitude's bound is a term of 1e-11 of L.
LOWER = np.array([-25.0, 0.01, -25.0, 0.01, 0.0])
UPPER = np.array([1e3, 3.0, 1e3, 3.0, 1e3])

# log E of a law whose E is 0, relative to the mean log loss: keeps logs finite, far below any printed digit.
LOG_E_FLOOR = -30.0

# A replicate is done when a step promises less than this part of its objective; Newton's last step then gains the rest.
TOLERANCE = 1e-9
MAX_ITERATIONS = 400

# A step that moves the predictions by less is rounding.
ROUNDING = 1e-14

# Rows say which of (a, alpha, b, beta, e) move together.
FREE = np.eye(5)
TIED = np.array([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])


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
        e = np.where(log_e - y0 > LOG_E_FLOOR + 1e-9, np.exp(log_e - y0), 0.0)
        return np.stack([a - alpha * x0 - y0, alpha, b - beta * z0 - y0, beta, e], axis=-1)

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
        majoriser: Curvature of a quadratic that lies above the objective (iteratively reweighted least squares);
            positive semidefinite, shape (R, k, k).
    """

    value: FloatArray
    gradient: FloatArray
    hessian: FloatArray
    majoriser: FloatArray

    def where(self, keep: BoolArray, other: Expansion) -> Expansion:
        """This expansion where ``keep``, else the other."""
        return Expansion(
            np.where(keep, self.value, other.value),
            np.where(keep[:, None], self.gradient, other.gradient),
            np.where(keep[:, None, None], self.hessian, other.hessian),
            np.where(keep[:, None, None], self.majoriser, other.majoriser),
        )

    def __getitem__(self, index: BoolArray | IntArray) -> Expansion:
        return Expansion(self.value[index], self.gradient[index], self.hessian[index], self.majoriser[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Sum over runs of weight * rho(residual), for any number of vectors of weights.

    Attributes:
        runs: The n runs.
        delta: Huber's: rho(r) = r**2 / 2 up to delta, growing linearly beyond; infinity gives least squares.
        linear: Residuals of the loss instead of its log.
        tied: Keep alpha = beta; points then have 4 coordinates (a, alpha, b, e).
    """

    runs: Runs
    delta: float = np.inf
    linear: bool = False
    tied: bool = False

    @property
    def basis(self) -> FloatArray:
        """q = point @ basis."""
        return TIED if self.tied else FREE

    def point(self, q: FloatArray) -> FloatArray:
        """The coordinates that move; exponents that differ are averaged where they are tied."""
        return np.asarray(q @ self.basis.T / self.basis.sum(axis=1))

    def expand(self, point: FloatArray, weights: FloatArray) -> Expansion:
        """Objective, gradient and curvature.

        With terms u = (size, data) and s = u1 + u2 + e, the model of log L is log s: its derivatives by (a, b, e) are
        u1/s, u2/s, 1/s, those by alpha and beta carry a factor -x, -z, and its second derivatives are those of s over s
        less the product of the first.

        Args:
            point: Shape (R, 5), or (R, 4) where tied.
            weights: Of each run, shape (R, n).
        """
        q, basis = point @ self.basis, self.basis
        x, z = self.runs.x, self.runs.z
        J = np.empty((len(q), 5, x.size))
        size, data, rest = J[:, 0], J[:, 2], J[:, 4]
        np.exp(q[:, 0:1] - q[:, 1:2] * x, out=size)
        np.exp(q[:, 2:3] - q[:, 3:4] * z, out=data)
        s = size + data
        s += q[:, 4:5]
        if self.linear:
            r = np.exp(self.runs.y) - s
            rest[:] = 1.0
        else:
            r = self.runs.y - np.log(s)
            np.reciprocal(s, out=rest)
            size *= rest
            data *= rest
        np.multiply(size, -x, out=J[:, 1])
        np.multiply(data, -z, out=J[:, 3])

        if self.delta == np.inf:
            psi, inside, majorant = r, weights, weights
        else:
            psi = np.clip(r, -self.delta, self.delta)
            inside = weights * (psi == r)
            majorant = weights * (self.delta / np.maximum(np.abs(r), self.delta))
        value = np.einsum("rn,rn,rn->r", weights, psi, r - 0.5 * psi)
        pull = weights * psi
        gradient = -(J @ pull[:, :, None])[:, :, 0]
        Jt = J.transpose(0, 2, 1)
        majoriser = (J * majorant[:, None]) @ Jt
        hessian = (J * (inside if self.linear else inside + pull)[:, None]) @ Jt
        for i, v in ((0, x), (2, z)):
            hessian[:, i, i] += gradient[:, i]
            hessian[:, i, i + 1] += gradient[:, i + 1]
            hessian[:, i + 1, i] += gradient[:, i + 1]
            hessian[:, i + 1, i + 1] += (pull * J[:, i + 1]) @ v
        if self.tied:
            gradient, hessian, majoriser = gradient @ basis.T, basis @ hessian @ basis.T, basis @ majoriser @ basis.T
        return Expansion(value, gradient, hessian, majoriser)


def minimise(
    objective: Objective, start: FloatArray, weights: FloatArray, *, damping: float = 1.0
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Minimise under R vectors of weights, each from a start of its own.

    A step solves (Hessian + damping * majoriser) step = -gradient among the coordinates that do not press against a
    bound. Small damping gives Newton's method, large damping a short step of iteratively reweighted least squares,
    which cannot fail to descend.

    Args:
        objective: What to minimise.
        start: Points q, shape (R, 5).
        weights: Shape (R, n).
        damping: The first; 1 for a start that is only near, less for one that is nearly right.

    Returns:
        Points q (R, 5), objectives (R,), and whether each converged (R,).
    """
    lower, upper = objective.point(LOWER), objective.point(UPPER)
    points = np.clip(objective.point(start), lower, upper)
    values, converged = np.empty(len(points)), np.zeros(len(points), bool)
    # Working memory is a dozen numbers per run and replicate: a few MB, which the caches hold.
    chunk = max(1, 32768 // objective.runs.x.size)
    for i in range(0, len(points), chunk):
        part = slice(i, i + chunk)
        points[part], values[part], converged[part] = _descend(
            objective, points[part], weights[part], lower, upper, damping
        )
    return points @ objective.basis, values, converged


def _descend(
    objective: Objective, start: FloatArray, weights: FloatArray, lower: FloatArray, upper: FloatArray, damping: float
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """``minimise`` for one chunk, points in the objective's own coordinates."""
    points, values, converged = start.copy(), np.empty(len(start)), np.zeros(len(start), bool)
    # What is still moving: which replicates, where, their weights and damping.
    active, p, w, damp = np.arange(len(start)), start, weights, np.full(len(start), damping)
    floor = ROUNDING**2 * weights.sum(axis=1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        here = objective.expand(p, w)
        for _ in range(MAX_ITERATIONS):
            pressed = ((p <= lower) & (here.gradient > 0)) | ((p >= upper) & (here.gradient < 0))
            step, promise = _step(here, damp, pressed)
            # A coordinate at a bound that the others would drag across it is held there too: its negative curvature, if
            # it has any, must not damp the others.
            dragged = ((p <= lower) & (step < 0)) | ((p >= upper) & (step > 0))
            rows = np.flatnonzero(dragged.any(axis=1))
            if rows.size:
                step[rows], promise[rows] = _step(here[rows], damp[rows], (pressed | dragged)[rows])
            # One that a step would carry to its bound stops there, and the others must know.
            stop = np.clip(p + step, lower, upper) - p
            crossing = (p + step < lower) | (p + step > upper)
            rows = np.flatnonzero(crossing.any(axis=1))
            if rows.size:
                held = (pressed | dragged | crossing)[rows]
                step[rows], _ = _step(here[rows], damp[rows], held, np.where(crossing, stop, 0.0)[rows])
            foreseen = -np.einsum("rk,rk->r", step, here.gradient) - 0.5 * np.einsum(
                "rk,rkl,rl->r", step, here.hessian, step
            )

            p_next = np.clip(p + step, lower, upper)
            there = objective.expand(p_next, w)
            better = there.value <= here.value
            # A damped step promises less than is left to gain.
            reached = promise * (1 + damp) <= np.maximum(TOLERANCE * here.value, floor)
            done = reached | (damp > 1e10)
            gain = (here.value - there.value) / np.maximum(foreseen, 1e-300)
            damp = damp * np.select([~better, gain > 0.7, gain > 0.2], [5.0, 0.2, 1.0], 3.0)
            damp = np.maximum(damp, 1e-9)
            p = np.where(better[:, None], p_next, p)
            here = there.where(better, here)
            if done.any():
                finished, rest = active[done], ~done
                points[finished], values[finished], converged[finished] = p[done], here.value[done], reached[done]
                if not rest.any():
                    return points, values, converged
                active, p, w, damp, floor, here = active[rest], p[rest], w[rest], damp[rest], floor[rest], here[rest]
        points[active], values[active] = p, here.value
    return points, values, converged


def _indefinite(matrices: FloatArray) -> IntArray:
    """Which of a stack of symmetric matrices are not positive definite."""
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        finite = np.isfinite(matrices).all(axis=(1, 2), keepdims=True)
        lowest = np.linalg.eigvalsh(np.where(finite, matrices, 0.0))[:, 0]
        return np.flatnonzero(lowest <= 0)
    return np.empty(0, int)


def _step(
    here: Expansion, damp: FloatArray, held: BoolArray, move: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Damped step with the coordinates ``held`` moving as told (or not at all), and its first-order promise."""
    free = ~held[:, :, None] & ~held[:, None, :]
    eye = np.eye(held.shape[1])
    # Runs that do not determine the law (a resample of few) leave directions without curvature.
    ridge = (1e-13 * np.trace(here.majoriser, axis1=1, axis2=2) + 1e-300)[:, None, None] * eye
    damped = damp[:, None, None] * here.majoriser + ridge
    full = here.hessian + damped
    matrix = np.where(free, full, held[:, :, None] * eye)
    saddle = _indefinite(matrix)
    full[saddle] = (here.majoriser + damped + 1e4 * ridge)[saddle]
    matrix[saddle] = np.where(free, full, held[:, :, None] * eye)[saddle]
    if move is None:
        right = np.where(held, 0.0, -here.gradient)
    else:
        right = np.where(held, move, -here.gradient - (full @ move[:, :, None])[:, :, 0])
    try:
        step = np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    except (
        np.linalg.LinAlgError
    ):  # a resample of so few runs that rounding eats the ridge: no step where nothing curves
        step = (np.linalg.pinv(np.nan_to_num(matrix), hermitian=True) @ right[:, :, None])[:, :, 0]
    # A factor of e in a term, or 1 in an exponent, is as far as an expansion may be trusted.
    step /= np.maximum(np.abs(step).max(axis=1, keepdims=True), 1.0)
    return step, -np.einsum("rk,rk->r", step, here.gradient)
