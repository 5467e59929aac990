"""More answers from one surface: the optimum when tokens are also served, and what over-training costs.

All functions broadcast over a family of laws, so intervals follow from bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flops_fit.errors import FitError
from flops_fit.laws import SIX_ND, ComputeRule, FloatArray, ParametricLaw

# A forward pass is a third of forward and backward: 2N of 6N FLOPs per token.
_FORWARD = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptimum:
    """The model that reaches a loss for the least compute, training and serving together.

    Attributes:
        num_params: N [parameters].
        num_tokens: D, to train on [tokens].
        loss: The loss reached.
        training_flops: Compute of training [FLOPs].
        serving_flops: Compute of the forward passes over the tokens served [FLOPs].
        saving: Share of the compute saved against training the compute-optimal model of that loss and serving it.
    """

    num_params: Any
    num_tokens: Any
    loss: Any
    training_flops: Any
    serving_flops: Any
    saving: Any

    @property
    def total_flops(self) -> Any:
        """Training and serving [FLOPs]."""
        return self.training_flops + self.serving_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTraining:
    """A model at a chosen D/N, against the compute-optimal one.

    Attributes:
        compute: What its training costs [FLOPs].
        num_params: N [parameters].
        num_tokens: D [tokens].
        loss: Its loss.
        optimal_loss: Loss of the best model for the same compute.
        optimal_compute: Compute for which the best model has the same loss as this one [FLOPs].
    """

    compute: Any
    num_params: Any
    num_tokens: Any
    loss: Any
    optimal_loss: Any
    optimal_compute: Any

    @property
    def extra_loss(self) -> Any:
        """What the ratio costs in loss at equal compute."""
        return self.loss - self.optimal_loss

    @property
    def extra_compute(self) -> Any:
        """What the ratio costs in compute at equal loss, as a share of the best model's; 0.3 is 30 % more."""
        return self.compute / self.optimal_compute - 1


def serving_optimum(
    law: ParametricLaw, loss: ArrayLike, served_tokens: ArrayLike, rule: ComputeRule = SIX_ND
) -> ServingOptimum:
    """Minimise the compute of training and serving at a given loss.

    For C = 6ND this is 6 N D + 2 N D_inf over all (N, D) with L(N, D) = loss (Sardana et al. 2024,
    arXiv:2401.00448, section 2). Serving costs a third of training per token under any rule.

    Args:
        law: The surface.
        loss: The loss to reach; above the law's E.
        served_tokens: Tokens to be served over the model's life, D_inf >= 0.
        rule: What training costs.

    Raises:
        FitError: The loss is not above E, or the tokens are negative.
    """
    reducible = _reducible(law, loss)
    served = _FORWARD * np.asarray(served_tokens, float)
    if not np.all(served >= 0):
        raise FitError(f"the number of tokens to serve cannot be negative: {served_tokens!r}")
    # The share s of the reducible loss that the data term takes fixes both N and D. At the minimum
    # (1 - s) / s * D / (D + D_inf / 3) = q beta / alpha, whose left side falls with s; without serving it is met at
    # s = alpha / (alpha + q beta), with serving at a smaller one: more tokens, fewer parameters.
    goal = np.log(rule.q * np.asarray(law.beta, float) / np.asarray(law.alpha, float))

    def log_tokens(log_share: FloatArray) -> FloatArray:
        return np.asarray((np.log(law.B) - np.log(reducible) - log_share) / law.beta)

    def excess(log_share: FloatArray) -> FloatArray:
        x = log_tokens(log_share)
        with np.errstate(divide="ignore"):
            trained = x - np.logaddexp(x, np.log(served))
        return np.asarray(goal - np.log(-np.expm1(log_share)) + log_share - trained)

    most = -np.log1p(np.exp(goal))
    log_share = _bisect(excess, np.broadcast_to(-200.0, np.broadcast_shapes(most.shape, served.shape)), most)
    D = np.exp(log_tokens(log_share))
    N = (law.A / (-np.expm1(log_share) * reducible)) ** (1 / np.asarray(law.alpha, float))
    N_train, D_train = law.optimum(law.compute_for_loss(loss, rule), rule)
    training, serving = rule.flops(N, D), rule.flops(N, served)
    before = rule.flops(N_train, D_train + served)
    return ServingOptimum(
        num_params=N,
        num_tokens=D,
        loss=law.loss(N, D),
        training_flops=training,
        serving_flops=serving,
        saving=1 - (training + serving) / before,
    )


def over_train(
    law: ParametricLaw, compute: ArrayLike, tokens_per_param: ArrayLike, rule: ComputeRule = SIX_ND
) -> OverTraining:
    """The model of a chosen D/N that costs a given compute.

    Args:
        law: The surface.
        compute: Training compute [FLOPs].
        tokens_per_param: D/N; 20 is near the optimum of published surfaces, Llama 3 8B had 1,900.
        rule: What training costs.
    """
    C, ratio = np.asarray(compute, float)[()], np.asarray(tokens_per_param, float)[()]
    N = (C / (rule.k * ratio)) ** (1 / (1 + rule.q))
    loss = law.loss(N, ratio * N)
    return OverTraining(
        compute=C,
        num_params=N,
        num_tokens=ratio * N,
        loss=loss,
        optimal_loss=law.optimal_loss(C, rule),
        optimal_compute=law.compute_for_loss(loss, rule),
    )


def over_train_to(
    law: ParametricLaw, loss: ArrayLike, tokens_per_param: ArrayLike, rule: ComputeRule = SIX_ND
) -> OverTraining:
    """The model of a chosen D/N that reaches a given loss, such as that of the optimum of some compute.

    Args:
        law: The surface.
        loss: The loss to reach; above the law's E.
        tokens_per_param: D/N.
        rule: What training costs.

    Raises:
        FitError: The loss is not above E.
    """
    reducible = _reducible(law, loss)
    log_ratio = np.log(np.asarray(tokens_per_param, float))
    log_A, log_B, goal = np.log(law.A), np.log(law.B), np.log(reducible)

    def excess(log_N: FloatArray) -> FloatArray:
        size, data = log_A - law.alpha * log_N, log_B - law.beta * (log_N + log_ratio)
        return np.asarray(goal - np.logaddexp(size, data))

    # Each term alone must be below the goal, and with both below half of it the loss is too.
    size, data = (log_A - goal) / law.alpha, (log_B - goal) / law.beta - log_ratio
    size_half, data_half = size + np.log(2) / law.alpha, data + np.log(2) / law.beta
    N = np.exp(_bisect(excess, np.maximum(size, data), np.maximum(size_half, data_half)))
    return over_train(law, rule.flops(N, np.exp(log_ratio) * N), tokens_per_param, rule)


def _reducible(law: ParametricLaw, loss: ArrayLike) -> FloatArray:
    reducible = np.asarray(np.asarray(loss, float) - np.asarray(law.E, float))
    if not np.all(reducible > 0):
        raise FitError(
            f"no model reaches the loss {loss!r}: it is not above the fitted irreducible loss {law.E!r}",
            hint="ask for a higher loss",
        )
    return reducible


def _bisect(rising: Callable[[FloatArray], FloatArray], low: ArrayLike, high: ArrayLike) -> FloatArray:
    """Where a rising function is 0, elementwise; it must lie between low and high."""
    low, high = np.broadcast_arrays(np.asarray(low, float), np.asarray(high, float))
    for _ in range(70):
        middle = (low + high) / 2
        above = rising(middle) > 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.asarray((low + high) / 2)[()]
