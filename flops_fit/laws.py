"""The formulas, numpy only.

A law's parameters may be floats or arrays of one shape: an array is a family of laws (bootstrap draws), and every
method broadcasts over it. Letters are the papers': N parameters, D tokens, C FLOPs, L loss.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def _quiet(array: Any) -> Any:
    """A 0-dimensional result as a plain float."""
    return array.item() if isinstance(array, (np.ndarray, np.generic)) and array.ndim == 0 else array


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRule:
    """What training costs: C = k * N**q * D.

    The papers' C = 6ND is k = 6, q = 1 (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Counted FLOPs of a small
    model exceed it, the more so the smaller it is, which a power q slightly below 1 follows well inside a sweep.

    Attributes:
        k: FLOPs per token at N = 1 [FLOPs].
        q: Power of N; 1 where cost per token is proportional to size.
    """

    k: float = 6.0
    q: float = 1.0

    def flops(self, N: ArrayLike, D: ArrayLike) -> Any:
        """Training compute of N parameters on D tokens [FLOPs]."""
        return _quiet(self.k * np.asarray(N, float) ** self.q * np.asarray(D, float))

    def tokens(self, C: ArrayLike, N: ArrayLike) -> Any:
        """Tokens that N parameters can see for C FLOPs."""
        return _quiet(np.asarray(C, float) / (self.k * np.asarray(N, float) ** self.q))


SIX_ND = ComputeRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class ParametricLaw:
    """L(N, D) = E + A / N**alpha + B / D**beta (Hoffmann et al. 2022, arXiv:2203.15556, section 3.3).

    Attributes:
        E: Irreducible loss [nats/token].
        A: Scale of the size term, for N in parameters.
        B: Scale of the data term, for D in tokens.
        alpha: Power of N.
        beta: Power of D.
    """

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any

    @classmethod
    def from_logs(cls, theta: FloatArray) -> Self:
        """From rows (log A, alpha, log B, beta, log E), shape (..., 5)."""
        theta = np.asarray(theta, float)
        a, alpha, b, beta, e = (_quiet(theta[..., i]) for i in range(5))
        return cls(E=_quiet(np.exp(e)), A=_quiet(np.exp(a)), B=_quiet(np.exp(b)), alpha=alpha, beta=beta)

    def __getitem__(self, index: Any) -> ParametricLaw:
        """One law, or some, of a family."""
        E, A, B, alpha, beta = (_quiet(np.asarray(v)[index]) for v in astuple(self))
        return ParametricLaw(E=E, A=A, B=B, alpha=alpha, beta=beta)

    def loss(self, N: ArrayLike, D: ArrayLike) -> Any:
        """Loss of N parameters trained on D tokens [nats/token]."""
        N, D = np.asarray(N, float), np.asarray(D, float)
        return _quiet(self.E + self.A * N**-self.alpha + self.B * D**-self.beta)

    def exponents(self, rule: ComputeRule = SIX_ND) -> tuple[Any, Any]:
        """Powers of C in N_opt and D_opt; they add to 1 only where C is proportional to N D."""
        a = self.beta / (self.alpha + rule.q * self.beta)
        return a, 1 - rule.q * a

    def optimum(self, C: ArrayLike, rule: ComputeRule = SIX_ND) -> tuple[Any, Any]:
        """The split (N, D) of C FLOPs with the lowest loss (Hoffmann et al. 2022, equation 4, for any rule)."""
        a, _ = self.exponents(rule)
        log_ratio = np.log(self.alpha) + np.log(self.A) - np.log(rule.q * self.beta) - np.log(self.B)
        log_N = log_ratio / (self.alpha + rule.q * self.beta) + a * np.log(np.asarray(C, float) / rule.k)
        N = np.exp(log_N)
        return _quiet(N), rule.tokens(C, N)

    def optimal_loss(self, C: ArrayLike, rule: ComputeRule = SIX_ND) -> Any:
        """Loss at the best split of C FLOPs [nats/token]."""
        return self.loss(*self.optimum(C, rule))

    def frontier_exponent(self, rule: ComputeRule = SIX_ND) -> Any:
        """gamma of L_opt(C) = E + k C**-gamma."""
        return self.alpha * self.exponents(rule)[0]

    def compute_for_loss(self, L: ArrayLike, rule: ComputeRule = SIX_ND) -> Any:
        """Least compute that reaches loss L [FLOPs]; infinite where L <= E."""
        L = np.asarray(L, float)
        above = np.asarray(self.optimal_loss(1.0, rule) - self.E)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            C = np.exp((np.log(above) - np.log(L - self.E)) / self.frontier_exponent(rule))
        return _quiet(np.where(L > self.E, C, np.inf))

    def tokens_for_loss(self, N: ArrayLike, L: ArrayLike) -> Any:
        """Tokens with which N parameters reach loss L; infinite where no number does."""
        return self._solve(L, self.A * np.asarray(N, float) ** -self.alpha, self.B, self.beta)

    def params_for_loss(self, D: ArrayLike, L: ArrayLike) -> Any:
        """Parameters that reach loss L on D tokens; infinite where no number does."""
        return self._solve(L, self.B * np.asarray(D, float) ** -self.beta, self.A, self.alpha)

    def _solve(self, L: ArrayLike, other: Any, scale: Any, power: Any) -> Any:
        rest = np.asarray(np.asarray(L, float) - self.E - other)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return _quiet(np.where(rest > 0, (np.asarray(scale) / rest) ** (1 / np.asarray(power)), np.inf))

    def log_loss_gradient(self, N: ArrayLike, D: ArrayLike) -> FloatArray:
        """Derivatives of log L by (log A, alpha, log B, beta, log E), shape (runs, 5); one law only."""
        N, D = np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float))
        size, data = self.A * N**-self.alpha, self.B * D**-self.beta
        total = self.E + size + data
        rows = (size, -size * np.log(N), data, -data * np.log(D), np.full_like(total, self.E))
        return np.asarray(np.stack(rows, axis=1) / total[:, None])

    def fisher_information(self, N: ArrayLike, D: ArrayLike, sigma: float) -> FloatArray:
        """Information of runs at (N, D) with log-loss noise sigma, for (log A, alpha, log B, beta, log E); (5, 5)."""
        J = self.log_loss_gradient(N, D)
        return np.asarray(J.T @ J / sigma**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """y = offset + k * C**exponent.

    Attributes:
        k: Value of the power term at C = 1, in the unit of y.
        exponent: Power of C; negative for a falling loss.
        offset: What remains at infinite compute; 0 for N_opt and D_opt, the irreducible loss for L_opt.
    """

    k: Any
    exponent: Any
    offset: Any = 0.0

    def __call__(self, C: ArrayLike) -> Any:
        """The law's value at C FLOPs."""
        log_k = np.log(np.asarray(self.k, float))
        return _quiet(self.offset + np.exp(log_k + self.exponent * np.log(np.asarray(C, float))))
