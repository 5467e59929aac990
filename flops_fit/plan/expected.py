"""The error that a set of runs is expected to leave in the answer at the target, before any of them is trained.

The surface will be fitted to the log losses of the runs by (nearly) least squares. Around each law that may hold, the
fit is linear in what it is given: with J the derivatives of log loss by theta, g those of the answer, and P a weak
prior, the answer errs by h' J' (misfit + scatter) - displacement with h = (J'J + P)^-1 g. Its expected square has a
variance, from the covariance of the scatter (noise of each run, discrepancy shared by neighbours), and a bias, from
the misfit of a law of another form and from where that law's own optimum lies. Averaged over the beliefs it is what a
design makes small. Adding or removing a run changes J'J by one product of vectors, so that every possible change of a
design is judged in a few array operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flops_fit.laws import ComputeRule, FloatArray, ParametricLaw
from flops_fit.plan.beliefs import Belief, Noise

# Standard deviations of theta, centred on the runs, that no law is believed to exceed: they only keep the expectation
# finite for fewer runs than parameters.
_PRIOR_SD: Final = np.array([10.0, 0.5, 10.0, 0.5, 2.0])


def answer_gradients(law: ParametricLaw, C: float, rule: ComputeRule) -> FloatArray:
    """Derivatives of log N_opt and of log L_opt at C FLOPs by (log A, alpha, log B, beta, log E), shape (2, 5)."""
    alpha, beta, q = law.alpha, law.beta, rule.q
    total, log_C = alpha + q * beta, np.log(C / rule.k)
    log_N = float(np.log(law.optimum(C, rule)[0]))
    size = [1, 1 / alpha - log_N, -1, log_C - 1 / beta - q * log_N, 0]
    # The loss is flat in N at its optimum, so that only the direct derivatives count.
    return np.stack([np.array(size) / total, law.log_loss_gradient(*law.optimum(C, rule))[0]])


@dataclass(frozen=True, slots=True)
class Moments:
    """What a set of runs has gathered, for each of K beliefs.

    Attributes:
        information: J'J + P, shape (K, 5, 5).
        scatter: J' (covariance) J + P, shape (K, 5, 5).
        misfit: J' (misfit), shape (K, 5).
        shared: J' (covariance with every run there might be), shape (K, runs, 5).
    """

    information: FloatArray
    scatter: FloatArray
    misfit: FloatArray
    shared: FloatArray


class ExpectedError:
    """Expected squared errors of ln N_opt and ln L_opt at a target, for any subset of a table of runs.

    Everything is in units of the noise of one run at the largest budget.

    Args:
        beliefs: Laws that may hold; the weights need not add to 1.
        N: Parameters of the runs there might be, shape (runs,).
        D: Their tokens.
        C: Their cost [FLOPs].
        target: Where the answer is wanted [FLOPs].
        noise: How runs scatter.
        largest: Cost at which ``noise.sigma`` holds [FLOPs].
        rule: What training at the target costs.
        worth: What an error of the loss counts, beside one of N_opt as large.
    """

    def __init__(
        self,
        beliefs: Sequence[Belief],
        N: FloatArray,
        D: FloatArray,
        C: FloatArray,
        *,
        target: float,
        noise: Noise,
        largest: float,
        rule: ComputeRule,
        worth: float,
    ) -> None:
        center = np.eye(5)
        center[0, 1], center[2, 3] = np.log(N).mean(), np.log(D).mean()
        self.weights = np.array([b.weight for b in beliefs]) / sum(b.weight for b in beliefs)
        self._J = np.stack([b.law.log_loss_gradient(N, D) @ center for b in beliefs]) / noise.sigma
        self._g = np.stack([answer_gradients(b.law, target, rule) @ center for b in beliefs])
        self._misfit = np.stack([b.misfit(N, D) for b in beliefs]) / noise.sigma
        self._displacement = np.stack([b.displacement(target, rule) for b in beliefs])
        self._K = noise.covariance(N, D, C, largest) / noise.sigma**2
        self._prior = np.diag(_PRIOR_SD**-2.0)
        self._worth = np.array([1.0, worth**2])

    def gather(self, runs: Iterable[int]) -> Moments:
        """The moments of some of the runs."""
        chosen = np.array(list(runs), int)
        J = self._J[:, chosen]
        Jt = np.swapaxes(J, 1, 2)
        return Moments(
            self._prior + Jt @ J,
            self._prior + Jt @ self._K[np.ix_(chosen, chosen)] @ J,
            (Jt @ self._misfit[:, chosen, None])[..., 0],
            np.einsum("ksi,sn->kni", J, self._K[chosen]),
        )

    def without(self, m: Moments, run: int) -> Moments:
        """The moments once a run is taken out again."""
        j, shared = self._J[:, run], m.shared[:, run]
        jj, cross = j[:, :, None] * j[:, None, :], j[:, :, None] * shared[:, None, :]
        return Moments(
            m.information - jj,
            m.scatter - cross - np.swapaxes(cross, 1, 2) + self._K[run, run] * jj,
            m.misfit - j * self._misfit[:, run, None],
            m.shared - j[:, None, :] * self._K[run][None, :, None],
        )

    def by_belief(self, m: Moments) -> FloatArray:
        """Expected squared errors of ln N_opt and ln L_opt under each belief, shape (K, 2)."""
        h = np.linalg.solve(m.information, np.swapaxes(self._g, 1, 2))
        bias = np.einsum("kiq,ki->kq", h, m.misfit) - self._displacement
        return np.asarray(np.einsum("kiq,kij,kjq->kq", h, m.scatter, h) + bias**2)

    def squares(self, m: Moments) -> FloatArray:
        """Expected squared errors of ln N_opt and ln L_opt, shape (2,)."""
        return np.asarray(self.weights @ self.by_belief(m))

    def loss(self, m: Moments) -> float:
        """What a design makes small: both squares, the loss's by its worth."""
        return float(self._worth @ self.squares(m))

    def losses_with(self, m: Moments) -> FloatArray:
        """``loss`` once a run is added, for every run there might be; shape (runs,)."""
        J, inverse = self._J, np.linalg.inv(m.information)
        moved = J @ inverse
        leverage = np.einsum("kni,kni->kn", J, moved)
        own = np.diag(self._K)
        total = np.zeros(J.shape[1])
        for q in range(2):
            h0 = np.einsum("kij,kj->ki", inverse, self._g[:, q])
            pull = (J @ h0[:, :, None])[..., 0] / (1 + leverage)
            h = h0[:, None] - moved * pull[..., None]
            along = np.einsum("kni,kni->kn", h, J)
            variance = np.einsum("kni,kni->kn", h @ m.scatter, h)
            variance += 2 * along * np.einsum("kni,kni->kn", h, m.shared) + own * along**2
            bias = (h @ m.misfit[:, :, None])[..., 0] + along * self._misfit - self._displacement[:, q, None]
            total += self._worth[q] * (self.weights @ (variance + bias**2))
        return total
