"""The forms that a scaling law may take beyond its data, all speaking one language: best N and loss at C FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flops_fit.laws import ComputeRule, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceForm:
    """L(N, D) = E + ((A / N**alpha)**(1/g) + (B / D**beta)**(1/g))**g; g = 1 is the additive surface.

    Attributes:
        name: Its name among the candidates.
        theta: (log A, alpha, log B, beta, log E, log g): the fit in row 0, draws below it; shape (1 + draws, 6).
    """

    name: str
    theta: FloatArray

    def log_optimum(self, C: float, rule: ComputeRule) -> tuple[FloatArray, FloatArray]:
        """log N_opt and log loss at C FLOPs, each of shape (1 + draws,)."""
        a, alpha, b, beta, _, log_g = self.theta.T
        # The generalised mean is monotone in the sum of its two terms, so the optimum is that of an additive law whose
        # terms are both raised to 1/g.
        slope = alpha + rule.q * beta
        ratio = np.exp(log_g) * np.log(alpha / (rule.q * beta)) + a - b
        log_N = (ratio + beta * np.log(C / rule.k)) / slope
        return log_N, self.log_loss(log_N, np.log(C / rule.k) - rule.q * log_N)

    def log_loss(self, log_N: Any, log_D: Any) -> FloatArray:
        """Log loss of a size on data; arguments broadcast against (1 + draws,)."""
        a, alpha, b, beta, e, log_g = self.theta.T
        g = np.exp(log_g)
        reducible = g * np.logaddexp((a - alpha * log_N) / g, (b - beta * log_D) / g)
        return np.asarray(np.logaddexp(reducible, e))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimaForm:
    """Power laws through the optima of the budgets: N_opt = k C**a, L_opt = l_inf + k C**-gamma.

    Attributes:
        name: Its name among the candidates.
        size: (log k, a), shape (1 + draws, 2); the fit in row 0.
        frontier: (l_inf, log k, gamma), shape (1 + draws, 3); None where the budgets cannot tell.
    """

    name: str
    size: FloatArray
    frontier: FloatArray | None = None

    def log_optimum(self, C: float, rule: ComputeRule) -> tuple[FloatArray, FloatArray | None]:  # noqa: ARG002
        """log N_opt and log loss at C FLOPs, each of shape (1 + draws,)."""
        log_N = self.size[:, 0] + self.size[:, 1] * np.log(C)
        if self.frontier is None:
            return log_N, None
        l_inf, log_k, gamma = self.frontier.T
        return log_N, np.log(l_inf + np.exp(log_k - gamma * np.log(C)))


Form = SurfaceForm | OptimaForm
