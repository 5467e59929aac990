"""Questions beside the optimum, answered by the surface: over-training, serving, repeated data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit.errors import FitError
from flops_fit.fit.prediction import SCHEMA_VERSION, Warning_
from flops_fit.fit.repeated import RepeatedDataLaw
from flops_fit.fit.serving import over_train, serving_optimum
from flops_fit.fit.uncertainty import percentile_interval
from flops_fit.laws import ParametricLaw
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis

_FLOPS = ("training_flops", "serving_flops")
_COUNTS = ("num_params", "num_tokens", "unique_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Answers of the surface to one question.

    Attributes:
        question: What was asked, in words.
        values: The answers by name, in the units of a Prediction.
        ci: Their intervals over the surface's draws; the surface's form is taken as right.
        warnings: What to know before using them.
    """

    question: str
    values: dict[str, float]
    ci: dict[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[Warning_, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        head = {"schema_version": SCHEMA_VERSION, "question": self.question}
        return head | self.values | {"ci": self.ci, "warnings": [w.to_dict() for w in self.warnings]}

    def __str__(self) -> str:
        def said(name: str, value: float) -> str:
            form = format_count if name in _COUNTS else format_flops if name in _FLOPS else "{:.4g}".format
            ends = self.ci.get(name)
            return f"{name} {form(value)}" + (f" ({form(ends[0])} to {form(ends[1])})" if ends else "")

        return f"{self.question}: " + ", ".join(said(name, value) for name, value in self.values.items())


def over_trained(
    analysis: ScalingAnalysis, compute_budget: float, tokens_per_param: float, level: float = 0.95
) -> WhatIf:
    """The model of a given D/N for a budget: its loss, and what the same loss costs at the optimum.

    Raises:
        FitError: There is no surface, or a value is not positive.
    """
    _positive(compute_budget=compute_budget, tokens_per_param=tokens_per_param)

    def answers(law: ParametricLaw) -> dict[str, Any]:
        model = over_train(law, compute_budget, tokens_per_param, analysis.rule)
        return {
            "loss": model.loss,
            "optimal_loss": model.optimal_loss,
            "extra_compute": model.extra_compute,
        }

    model = over_train(_surface(analysis), compute_budget, tokens_per_param, analysis.rule)
    known = {"num_params": float(model.num_params), "num_tokens": float(model.num_tokens)}
    question = f"{tokens_per_param:g} tokens per parameter for {format_flops(compute_budget)} FLOPs"
    ratio = analysis.rows.D / analysis.rows.N
    beyond = not ratio.min() <= tokens_per_param <= ratio.max()
    text = f"{tokens_per_param:g} tokens per parameter lie outside the runs' {ratio.min():.3g} to {ratio.max():.3g}"
    return _answered(analysis, question, known, answers, level, [Warning_("ratio_beyond_data", text)] if beyond else [])


def served(analysis: ScalingAnalysis, loss: float, served_tokens: float, level: float = 0.95) -> WhatIf:
    """The model that reaches a loss for the least compute when tokens served are counted too.

    Raises:
        FitError: There is no surface, or the loss is not above its E.
    """
    _positive(loss=loss, served_tokens=served_tokens)

    def answers(law: ParametricLaw) -> dict[str, Any]:
        best = serving_optimum(law, loss, served_tokens, analysis.rule)
        names = ("num_params", "num_tokens", "training_flops", "serving_flops", "saving")
        return {name: getattr(best, name) for name in names}

    question = f"loss {loss:g} and {format_count(served_tokens)} tokens to serve"
    return _answered(analysis, question, {}, answers, level, [], keep=lambda law: law.E < loss)


def repeated(analysis: ScalingAnalysis, compute_budget: float, unique_tokens: float) -> WhatIf:
    """The best split of a budget when only so many tokens are unique (Muennighoff et al. 2023, arXiv:2305.16264).

    Raises:
        FitError: There is no surface, or a value is not positive.
    """
    _positive(compute_budget=compute_budget, unique_tokens=unique_tokens)
    surface = _surface(analysis)
    fitted = None if analysis.repetition is None else analysis.repetition.law
    law = RepeatedDataLaw(base=surface) if fitted is None else fitted
    N, D = law.optimum(compute_budget, unique_tokens, analysis.rule)
    values = {
        "num_params": N,
        "num_tokens": D,
        "epochs": D / unique_tokens,
        "loss": float(law.loss(N, D, unique_tokens)),
    }
    values["loss_of_fresh_data"] = float(surface.optimal_loss(compute_budget, analysis.rule))
    notes = list(_about_the_surface(analysis))
    if law.borrowed:
        text = f"what repetition is worth is borrowed from published runs (R_D* = {law.R_D:.3g}, R_N* = {law.R_N:.3g})"
        notes.append(Warning_("repetition_borrowed", text))
    question = f"{format_flops(compute_budget)} FLOPs and {format_count(unique_tokens)} unique tokens"
    return WhatIf(question=question, values=values, warnings=tuple(notes))


def _answered(
    analysis: ScalingAnalysis,
    question: str,
    known: dict[str, float],
    answers: Any,
    level: float,
    notes: list[Warning_],
    keep: Any = None,
) -> WhatIf:
    values = {name: float(value) for name, value in answers(_surface(analysis)).items()}
    ci = {}
    draws = analysis.draws
    if draws is not None and len(draws):
        laws = ParametricLaw.from_logs(draws)
        laws = laws if keep is None else laws[keep(laws)]
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # a draw may be far out; its rank counts
            ci = {name: percentile_interval(np.asarray(v, float), level) for name, v in answers(laws).items()}
    plain = {name: (float(low), float(high)) for name, (low, high) in ci.items()}
    return WhatIf(question=question, values=known | values, ci=plain, warnings=(*_about_the_surface(analysis), *notes))


def _surface(analysis: ScalingAnalysis) -> ParametricLaw:
    if analysis.parametric is None:
        raise FitError(
            "this question needs the surface L(N, D), and it could not be fitted: "
            + analysis.missing.get("surface", analysis.missing.get("parametric", "too few runs")),
            hint="train at least 7 runs with 3 sizes and 3 token counts",
        )
    return analysis.parametric.law


def _about_the_surface(analysis: ScalingAnalysis) -> list[Warning_]:
    if analysis.headline.method == "surface":
        return []
    text = "the surface answers this question, though its form is not what the optimum is answered by"
    return [Warning_("surface_only", text)]


def _positive(**values: float) -> None:
    bad = [f"{name}={value!r}" for name, value in values.items() if not 0 < value < np.inf]
    if bad:
        raise FitError(f"{', '.join(bad)} must be positive numbers")
