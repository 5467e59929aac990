"""The error that a set of runs is expected to leave in the answer at the target, before any of them is trained.

The surface will be fitted to the log losses of the runs by (nearly) least squares. Around each law that may hold, the
fit is linear in what it is given: with J the derivatives of log loss by theta, g those of the answer, and P a weak
prior, the answer errs by h' J' (misfit + scatter) - displacement with h = (J'J + P)^-1 g. Its expected square has a
variance, from the covariance of the scatter (noise of each run, discrepancy shared by neighbours), and a bias, from
the misfit of a law of another form and from where that law's own optimum lies. Averaged over the beliefs it is what a
design makes small. A run more or less changes J'J by one product of vectors (Sherman & Morrison 1950), so that all
changes of a design are judged together.
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
        shared: J' (covariance with every run there might be, and with no run), shape (K, runs + 1, 5).
    """

    information: FloatArray
    scatter: FloatArray
    misfit: FloatArray
    shared: FloatArray


class ExpectedError:
    """Expected squared errors of ln N_opt and ln L_opt at a target, for any subset of a table of runs.

    Everything is in units of the noise of one run at the largest budget. A last run, of which nothing can be learnt, is
    appended: taking it out or putting it in changes nothing.

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
        pad = ((0, 0), (0, 1))
        J = np.stack([b.law.log_loss_gradient(N, D) @ center for b in beliefs]) / noise.sigma
        self._J = np.pad(J, (*pad, (0, 0)))
        self._g = np.stack([answer_gradients(b.law, target, rule) @ center for b in beliefs])
        self._misfit = np.pad(np.stack([b.misfit(N, D) for b in beliefs]) / noise.sigma, pad)
        self._displacement = np.stack([b.displacement(target, rule) for b in beliefs])
        self._K = np.pad(noise.covariance(N, D, C, largest) / noise.sigma**2, ((0, 1), (0, 1)))
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

    def losses_after(self, m: Moments, out: Iterable[int]) -> FloatArray:
        """``loss`` once a run is taken out and another put in, shape (out, runs + 1); the last column puts none in.

        Args:
            m: Moments of the runs there are.
            out: Which of them may be taken out; the number of all runs stands for none.
        """
        r = np.array(list(out), int)
        J, K, shared, misfit = self._J, self._K, m.shared, self._misfit
        inverse = np.linalg.inv(m.information)
        # With u = (J'J + P)^-1 j, what h becomes is h + c u_out - t u_in, and all products of these are needed.
        U = J @ inverse
        UB, Ut = U @ m.scatter, np.swapaxes(U, 1, 2)
        cross = J[:, r] @ Ut
        own = np.einsum("kni,kni->kn", J, U)
        left = 1 - own[:, r, None]
        uBu = UB[:, r] @ Ut
        uBu_own = np.einsum("kni,kni->kn", UB, U)
        u_shared_in, u_shared_out = U[:, r] @ np.swapaxes(shared, 1, 2), shared[:, r] @ Ut
        u_shared_own = np.einsum("kni,kni->kn", U, shared)
        u_misfit = (U @ m.misfit[:, :, None])[..., 0]
        total = np.zeros((len(r), J.shape[1]))
        for q in range(2):
            h = inverse @ self._g[:, q, :, None]
            a, hBu, h_shared = ((V @ h)[..., 0] for V in (J, UB, shared))
            t = (a[:, None] + cross * a[:, r, None] / left) / (1 + own[:, None] + cross**2 / left)
            c = (a[:, r, None] - t * cross) / left
            along_in = a[:, None] + c * cross - t * own[:, None]
            along_out = a[:, r, None] + c * own[:, r, None] - t * cross
            shared_in = h_shared[:, None] + c * u_shared_in - t * u_shared_own[:, None]
            shared_out = h_shared[:, r, None] + c * u_shared_own[:, r, None] - t * u_shared_out
            variance = np.swapaxes(h, 1, 2) @ m.scatter @ h + 2 * c * hBu[:, r, None] - 2 * t * hBu[:, None]
            variance += c**2 * uBu_own[:, r, None] - 2 * c * t * uBu + t**2 * uBu_own[:, None]
            variance += np.diag(K) * along_in**2 + 2 * along_in * (shared_in - along_out * K[r])
            variance += np.diag(K)[r, None] * along_out**2 - 2 * along_out * shared_out
            bias = m.misfit[:, None, :] @ h + c * u_misfit[:, r, None] - t * u_misfit[:, None]
            bias += along_in * misfit[:, None] - along_out * misfit[:, r, None] - self._displacement[:, q, None, None]
            total += self._worth[q] * np.einsum("k,kri->ri", self.weights, variance + bias**2)
        return total
