"""One answer from all forms: the surface's own where its form holds, a combination by hold-out where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flops_fit.fit.forms import ADDITIVE, SURFACE, THROUGH_OPTIMA, Answer, Form, SurfaceForm
from flops_fit.fit.holdout import PRIOR_BUDGETS, Score
from flops_fit.laws import ComputeRule, FloatArray

COMBINATION: Final = "combination"

# Log evidence by which the best form's forecasts of hidden budgets beat the surface's. On sweeps drawn from the surface
# nine in ten stay below the first, under any noise; from the second on the surface does not answer at all.
_BEATEN_BY_LUCK: Final = 1.25
_BEATEN: Final = 2.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """An answer at C FLOPs, as logs.

    Attributes:
        point: The answer.
        quantiles: Of its distribution, at the probabilities asked for.
    """

    point: float
    quantiles: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Every form with what speaks for it.

    Where the surface's residuals show no misfit and no other form foretold hidden budgets better, the answer is the
    surface's, its interval that of the bootstrap (and, for the loss, of leaving out budgets, where that is wider).
    Otherwise it is the median of a mixture of all forms, each weighted by the evidence of its forecasts and by its
    precision at the compute that is asked about, and widened by the error that its forecasts lead one to expect. In
    between, quantiles are averaged.

    Attributes:
        forms: The candidates, by name.
        scores: How each did on the hidden budgets, by answer and name.
        misfit_doubt: Of the surface's form by its residuals, 0 to 1 (``misfit``); 1 where there is no surface.
        without_budget: theta of the surface with each budget left out, shape (budgets, 5); None where too few.
        rule: What training costs.
        smallest_budget: Below it, as beyond the largest, forms err by their form error [FLOPs].
        largest_budget: Compute of the largest budget, or run [FLOPs].
        seed: Of the form errors' draws.
    """

    forms: Mapping[str, Form]
    scores: Mapping[Answer, Mapping[str, Score]]
    misfit_doubt: float
    without_budget: FloatArray | None
    rule: ComputeRule
    smallest_budget: float
    largest_budget: float
    seed: int

    def doubt(self, answer: Answer) -> float:
        """How far the surface's own answer is replaced by the mixture, 0 to 1."""
        tried = {name: s.log_evidence for name, s in self.scores[answer].items() if s.n_hidden}
        gap = max(tried.values()) - tried[SURFACE] if SURFACE in tried else 0.0
        return max(self.misfit_doubt, float(np.clip((gap - _BEATEN_BY_LUCK) / (_BEATEN - _BEATEN_BY_LUCK), 0.0, 1.0)))

    def method(self, answer: Answer) -> str:
        """Which method gives the answer: the surface, or the combination."""
        return SURFACE if SURFACE in self.forms and self.doubt(answer) < 0.5 else COMBINATION

    def weights(self, answer: Answer) -> dict[str, float]:
        """What the hidden budgets say for each form, adding to 1; forms that cannot answer are left out."""
        able = [n for n, f in self.forms.items() if f.log_answer(answer, self.largest_budget, self.rule) is not None]
        evidence = np.array([self.scores[answer][name].log_evidence for name in able])
        share = np.exp(evidence - evidence.max(initial=-np.inf))
        if answer == "loss" and any(n in THROUGH_OPTIMA for n in able):
            # A misfit of the loss surface speaks against every additive form of it, whatever it foretold by luck, once
            # there are laws that do without a surface.
            share *= [1 - self.misfit_doubt if n in ADDITIVE else 1.0 for n in able]
        return dict(zip(able, (share / share.sum()).tolist(), strict=True))

    def forecast(self, answer: Answer, C: float, probabilities: Sequence[float]) -> Forecast | None:
        """The answer at C FLOPs, or None where no form has one.

        Args:
            answer: Which.
            C: Compute [FLOPs].
            probabilities: Quantiles wanted.
        """
        parts, doubt = [], self.doubt(answer)
        if SURFACE in self.forms and doubt < 1:
            parts.append((1 - doubt, self._surface(answer, C, probabilities)))
        if doubt > 0:
            mixture = self._mixture(answer, C, probabilities)
            if mixture is None:
                return None
            parts.append((doubt, mixture))
        total = sum(share for share, _ in parts)
        return Forecast(
            point=sum(share * f.point for share, f in parts) / total,
            quantiles=np.asarray(sum(share * f.quantiles for share, f in parts) / total),
        )

    def _surface(self, answer: Answer, C: float, probabilities: Sequence[float]) -> Forecast:
        from flops_fit.fit.uncertainty import jackknife_interval

        draws = self.forms[SURFACE].log_answer(answer, C, self.rule)
        assert draws is not None
        point = float(draws[0])
        q = np.nanquantile(draws[1:], probabilities) if len(draws) > 1 else np.full(len(probabilities), point)
        if answer == "loss" and self.without_budget is not None:
            thetas = np.column_stack([self.without_budget, np.zeros(len(self.without_budget))])
            without = SurfaceForm(theta=thetas).log_answer("loss", C, self.rule)
            p = np.asarray(probabilities)
            low, high = jackknife_interval(point, without, np.abs(2 * p - 1))
            q = np.where(p < 0.5, np.fmin(q, low), np.where(p > 0.5, np.fmax(q, high), q))
        return Forecast(point=point, quantiles=q)

    def _mixture(self, answer: Answer, C: float, probabilities: Sequence[float]) -> Forecast | None:
        weights = self.weights(answer)
        if not weights:
            return None
        distance = max(float(np.log(C / self.largest_budget)), float(np.log(self.smallest_budget / C)), 0.0)
        rng = np.random.default_rng(self.seed)
        values, shares = [], []
        for name, weight in weights.items():
            draws = self.forms[name].log_answer(answer, C, self.rule)
            assert draws is not None
            # It is the best fit whose forecasts were scored, so the draws stand round that.
            draws = draws[1:] - np.nanmedian(draws[1:]) + draws[0] if len(draws) > 1 else draws
            told = self.scores[answer][name]
            error = rng.standard_t(PRIOR_BUDGETS + told.n_hidden, len(draws)) * told.form_error * distance
            values.append(draws + error)
            precision = _precision(draws, told.form_error * max(distance, 1.0))
            shares.append(np.full(len(draws), weight * precision / len(draws)))
        q = _weighted_quantiles(np.concatenate(values), np.concatenate(shares), np.append(probabilities, 0.5))
        return Forecast(point=float(q[-1]), quantiles=q[:-1])


def _precision(draws: FloatArray, form_error: float) -> float:
    """Of a form's forecast, one over its variance.

    The form error is that of a factor e beyond the data at least: within them a form that fits badly may be very sure.
    Weights in proportion to it make the least error of a pool of unbiased forecasts (Bates and Granger, 1969). The
    draws' variance is that of their middle two thirds, since resamples have far outliers.
    """
    fine = draws[np.isfinite(draws)]
    low, high = np.quantile(fine, (0.16, 0.84)) if fine.size else (0.0, 0.0)
    return float(1 / ((high - low) ** 2 / 4 + form_error**2))


def _weighted_quantiles(values: FloatArray, weights: FloatArray, probabilities: FloatArray) -> FloatArray:
    fine = np.isfinite(values)
    order = np.argsort(values[fine])
    values, weights = values[fine][order], weights[fine][order]
    # Each value stands in the middle of its own weight.
    reached = np.cumsum(weights) - 0.5 * weights
    return np.asarray(np.interp(probabilities * weights.sum(), reached, values))
