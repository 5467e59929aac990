"""Questions put to an analysis: a budget, a size, an amount of data, a loss; one of them given, the others answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.diagnostics import disagreement, prediction_warnings
from flops_fit.fit.forms import SURFACE, Answer, SurfaceForm
from flops_fit.fit.prediction import Prediction
from flops_fit.laws import FloatArray

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis
    from flops_fit.fit.combine import Forecast

# Beyond this factor an answer on which the methods disagree is withheld: its interval stays, its middle means nothing.
FAR: Final = 100.0

# How far beyond and below the data an inverse question is looked for [factor].
_REACH: Final = 1e12
_STEP: Final = float(np.log(3.0))


def for_compute(analysis: ScalingAnalysis, compute_budget: float, level: float) -> Prediction:
    """The best model for a budget, and the loss it will reach."""
    C = _positive("compute_budget", compute_budget)
    size = _forecast(analysis, "num_params", C, level)
    assert size is not None  # every form has a size
    loss = _forecast(analysis, "loss", C, level)
    rest, q = np.log(C / analysis.rule.k), analysis.rule.q
    logs = {
        "num_params": (size.point, size.quantiles),
        "num_tokens": (rest - q * size.point, rest - q * size.quantiles[::-1]),
        "tokens_per_param": (rest - (1 + q) * size.point, rest - (1 + q) * size.quantiles[::-1]),
    }
    if loss is not None:
        logs["loss"] = (loss.point, loss.quantiles)
    extrapolation = C / analysis.largest_budget
    apart = {a for a, (_, beyond) in disagreement(analysis, C).items() if beyond} if extrapolation > FAR else set()
    value = {name: _number(point) for name, (point, _) in logs.items()}
    return Prediction(
        compute_budget=C,
        num_params=None if "num_params" in apart else value["num_params"],
        num_tokens=None if "num_params" in apart else value["num_tokens"],
        loss=None if "loss" in apart else value.get("loss"),
        ci={name: _interval(ends) for name, (_, ends) in logs.items() if ends[0] < ends[1]},
        level=level,
        extrapolation=extrapolation,
        methods=_methods(analysis, with_loss=loss is not None),
        warnings=tuple(prediction_warnings(analysis, C, size.quantiles)),
        unit=analysis.unit,
    )


def for_target(analysis: ScalingAnalysis, answer: str, target: float, level: float) -> Prediction:
    """The budget for which a size, or an amount of data, is the best, or which reaches a loss; then as for a budget.

    Args:
        analysis: The analysis.
        answer: "num_params", "num_tokens" or "loss".
        target: What it shall be.
        level: Coverage of the intervals.
    """
    wanted, rule = np.log(_positive(answer, target)), analysis.rule

    def told(log_C: float) -> FloatArray:
        """Low end, middle and high end of the answer's log at a budget, turned so that it rises with compute."""
        forecast = _forecast(analysis, "loss" if answer == "loss" else "num_params", float(np.exp(log_C)), level)
        if forecast is None:
            raise FitError("no method can tell the loss from these runs", hint="it takes 4 budgets, or a surface")
        values = np.array([forecast.quantiles[0], forecast.point, forecast.quantiles[1]])
        if answer == "num_params":
            return values
        return -values[::-1] if answer == "loss" else log_C - np.log(rule.k) - rule.q * values[::-1]

    goal = -wanted if answer == "loss" else wanted
    middle = np.log(analysis.largest_budget)
    found = _solve(lambda log_C: float(told(log_C)[1]), goal, middle - np.log(_REACH), middle + np.log(_REACH))
    if not np.isfinite(found):
        raise FitError(
            f"{answer} = {target:g} is the optimum of no budget within a factor {_REACH:.0e} of the data",
            hint="a loss below the irreducible one cannot be bought" if answer == "loss" else None,
        )
    prediction = for_compute(analysis, float(np.exp(found)), level)
    # Where an answer's high end meets the target is the low end of the budget's interval. Far away an end may turn
    # back, as an interval widens faster than its middle moves: the first meeting counts.
    low = _first_meeting(lambda log_C: goal - float(told(log_C)[2]), found, -_STEP)
    high = _first_meeting(lambda log_C: float(told(log_C)[0]) - goal, found, _STEP)
    ends = np.exp([low, high])
    ci = prediction.ci | {"compute_budget": (float(ends[0]), float(ends[1]))}
    ci.pop(answer, None)
    if answer == "loss":
        return replace(prediction, loss=float(target), ci=ci)
    # The other factor of the budget follows from the rule, its interval from the budget's.
    N, D = prediction.num_params, prediction.num_tokens
    # An end that no budget meets is 0 or infinite.
    with np.errstate(divide="ignore"):
        if answer == "num_params":
            N, D = float(target), float(rule.tokens(prediction.compute_budget, target))
            tokens = rule.tokens(ends, target)
            ci |= {"num_tokens": (tokens[0], tokens[1]), "tokens_per_param": (tokens[0] / N, tokens[1] / N)}
        else:
            sizes = (np.append(ends, prediction.compute_budget) / (rule.k * target)) ** (1 / rule.q)
            N, D = float(sizes[2]), float(target)
            ci |= {"num_params": (sizes[0], sizes[1]), "tokens_per_param": (D / sizes[1], D / sizes[0])}
    plain = {name: (float(v[0]), float(v[1])) for name, v in ci.items()}
    return replace(prediction, num_params=N, num_tokens=D, ci=plain)


def for_run(analysis: ScalingAnalysis, num_params: float, num_tokens: float, level: float) -> Prediction:
    """The loss of a run that need not be compute-optimal.

    The loss at the optimum of its compute is the headline's; what the run loses by being off it is the surface's. The
    interval is that of one run, which scatters round its law.
    """
    N, D = _positive("num_params", num_params), _positive("num_tokens", num_tokens)
    surface = analysis.combination.forms.get(SURFACE)
    if not isinstance(surface, SurfaceForm):
        raise FitError("the loss off the optimum needs the surface", hint=analysis.missing.get("parametric"))
    C = float(analysis.rule.flops(N, D))
    prediction = for_compute(analysis, C, level)
    fit = SurfaceForm(theta=surface.theta[:1])
    penalty = float((fit.log_loss(np.log(N), np.log(D)) - fit.log_answer("loss", C, analysis.rule))[0])
    loss, ci = prediction.loss, {}
    if loss is not None and "loss" in prediction.ci:
        scatter = NormalDist().inv_cdf(0.5 + level / 2) * analysis.parametric.scale if analysis.parametric else 0.0
        reach = np.hypot(np.log(prediction.ci["loss"]) - np.log(loss), scatter)
        ci["loss"] = _interval(np.log(loss) + penalty + reach * [-1, 1])
    loss = None if loss is None else loss * float(np.exp(penalty))
    return replace(prediction, num_params=N, num_tokens=D, loss=loss, ci=ci)


def _forecast(analysis: ScalingAnalysis, answer: Answer, C: float, level: float) -> Forecast | None:
    return analysis.combination.forecast(answer, C, (0.5 - level / 2, 0.5 + level / 2))


def _interval(log_ends: object) -> tuple[float, float]:
    with np.errstate(over="ignore"):
        low, high = np.exp(np.asarray(log_ends, float))
    return float(low), float(high)


def _number(log_value: float) -> float | None:
    """The value, or None where it is beyond all numbers."""
    with np.errstate(over="ignore", under="ignore"):
        value = float(np.exp(log_value))
    return value if 0 < value < np.inf else None


def _methods(analysis: ScalingAnalysis, *, with_loss: bool) -> dict[str, str]:
    size = analysis.combination.method("num_params")
    methods = {"num_params": size, "num_tokens": size}
    return methods | ({"loss": analysis.combination.method("loss")} if with_loss else {})


def _positive(name: str, value: float) -> float:
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise FitError(f"{name}={value!r} must be a positive finite number")
    return number


def _solve(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function meets a target; minus or plus infinity where it lies beyond an end."""
    if rising(low) > target:
        return -np.inf
    if rising(high) < target:
        return np.inf
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


def _first_meeting(ahead: Callable[[float], float], start: float, step: float) -> float:
    """Where a function first turns from negative on the way from ``start``; infinite where it does not within reach."""
    if ahead(start) >= 0:
        return start
    near, far = start, start + step
    while abs(far - start) <= np.log(_REACH):
        if ahead(far) >= 0:
            while abs(far - near) > 1e-7:
                middle = (near + far) / 2
                near, far = (near, middle) if ahead(middle) >= 0 else (middle, far)
            return far
        near, far = far, far + step
    return float(np.copysign(np.inf, step))
