"""The forms that a scaling law may take beyond its data, all answering one question: best N and loss at C FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from flops_fit.laws import ComputeRule, FloatArray

if TYPE_CHECKING:
    from flops_fit.fit.local import LocalLaw

Answer = Literal["num_params", "loss"]
ANSWERS: Final[tuple[Answer, ...]] = ("num_params", "loss")

SURFACE: Final = "surface"
ADDITIVE: Final = (SURFACE, "tied", "near_optimum")
THROUGH_OPTIMA: Final = ("parabola", "local_law")

# For derivatives by theta, whose entries are of order 1.
_STEP: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceForm:
    """L(N, D) = E + ((A / N**alpha)**(1/g) + (B / D**beta)**(1/g))**g; g = 1 is the additive surface.

    Attributes:
        theta: (log A, alpha, log B, beta, log E, log g): the fit in row 0, draws below it; shape (1 + draws, 6).
        linear: The draws are those of a normal distribution, which stands for the fit's errors only near the fit:
            answers follow them along their derivatives there, not into parameters that no sweep would give.
    """

    theta: FloatArray
    linear: bool = False

    def log_answer(self, answer: Answer, C: float, rule: ComputeRule) -> FloatArray:
        """Log of the best size, or of its loss, at C FLOPs; shape (1 + draws,)."""
        if self.linear and len(self.theta) > 1:
            fit = self.theta[0]
            steps = _STEP * np.concatenate([np.eye(6), -np.eye(6)])
            near = SurfaceForm(theta=np.vstack([fit, fit + steps])).log_answer(answer, C, rule)
            slope = (near[1:7] - near[7:]) / (2 * _STEP)
            return np.append(near[0], near[0] + (self.theta[1:] - fit) @ slope)
        a, alpha, b, beta, _, log_g = self.theta.T
        # The mean is monotone in the sum of its two terms, so the optimum is that of an additive law whose terms are
        # both raised to 1/g.
        ratio = np.exp(log_g) * np.log(alpha / (rule.q * beta)) + a - b
        log_N = (ratio + beta * np.log(C / rule.k)) / (alpha + rule.q * beta)
        if answer == "num_params":
            return np.asarray(log_N)
        return self.log_loss(log_N, np.log(C / rule.k) - rule.q * log_N)

    def log_loss(self, log_N: Any, log_D: Any) -> FloatArray:
        """Log loss of a size on data; arguments broadcast against (1 + draws,)."""
        a, alpha, b, beta, e, log_g = self.theta.T
        g = np.exp(log_g)
        reducible = g * np.logaddexp((a - alpha * log_N) / g, (b - beta * log_D) / g)
        return np.asarray(np.logaddexp(reducible, e))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParabolaForm:
    """Power laws through the budgets' optima: N_opt = k C**a, L_opt = l_inf + k C**-gamma.

    Attributes:
        size: (log k, a), shape (1 + draws, 2); the fit in row 0.
        frontier: (l_inf, log k, gamma), shape (1 + other draws, 3); None where the budgets cannot tell.
    """

    size: FloatArray
    frontier: FloatArray | None = None

    def log_answer(self, answer: Answer, C: float, rule: ComputeRule) -> FloatArray | None:  # noqa: ARG002
        """Log of the best size, or of its loss, at C FLOPs; shape (1 + draws,), None where there is no law."""
        if answer == "num_params":
            return np.asarray(self.size[:, 0] + self.size[:, 1] * np.log(C))
        if self.frontier is None:
            return None
        l_inf, log_k, gamma = self.frontier.T
        return np.asarray(np.log(l_inf + np.exp(log_k - gamma * np.log(C))))


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalForm:
    """Laws through the budgets' optima whose exponents may drift, with weak priors (``local``).

    Attributes:
        size: Of log N_opt.
        loss: Of L_opt.
    """

    size: LocalLaw
    loss: LocalLaw

    def log_answer(self, answer: Answer, C: float, rule: ComputeRule) -> FloatArray:  # noqa: ARG002
        """Log of the best size, or of its loss, at C FLOPs: the median of the draws, then the draws; (1 + draws,)."""
        # Far beyond the data a drifting loss may fall to nothing; a hundredth of the usual loss stands for that.
        floor = 0.01 * self.loss.scale
        draws = self.size(C) if answer == "num_params" else np.log(np.maximum(self.loss(C), floor))
        return np.append(np.median(draws), draws)


Form = SurfaceForm | ParabolaForm | LocalForm
