"""Intervals of the laws' own parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flops_fit.laws import FloatArray, ParametricLaw

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis

Intervals = dict[str, tuple[float, float]]


def law_intervals(analysis: ScalingAnalysis, level: float = 0.95) -> dict[str, Intervals]:
    """Intervals by group: "parametric" (E, A, B, alpha, beta, a, b), "N_opt", "D_opt" and "L_opt".

    Those of the surface are the bootstrap's; E, which like any loss shifts with a whole budget, takes the wider of it
    and the leave-one-budget-out jackknife. Those of the power laws are the regression's, and for L_opt the profile's.
    """
    found: dict[str, Intervals] = {}
    if analysis.draws is not None and len(analysis.draws):
        found["parametric"] = _surface(analysis, analysis.draws, level)
    if analysis.isoflop is not None:
        from scipy.special import stdtrit

        for name, fit in (("N_opt", analysis.isoflop.N_opt), ("D_opt", analysis.isoflop.D_opt)):
            if fit is not None and fit.exponent_se is not None and fit.log_k_se is not None:
                width = float(stdtrit(fit.n - 2, 0.5 + level / 2))
                log_k = float(np.log(fit.law.k))
                found[name] = {
                    "exponent": (
                        fit.law.exponent - width * fit.exponent_se,
                        fit.law.exponent + width * fit.exponent_se,
                    ),
                    "k": (float(np.exp(log_k - width * fit.log_k_se)), float(np.exp(log_k + width * fit.log_k_se))),
                }
    if analysis.frontier is not None:
        gamma, l_inf = analysis.frontier.gamma_interval(level), analysis.frontier.l_inf_interval(level)
        found["L_opt"] = {} if gamma is None else {"exponent": (-gamma[1], -gamma[0])}
        if l_inf is not None:
            found["L_opt"]["l_inf"] = l_inf
    return found


def _surface(analysis: ScalingAnalysis, theta: FloatArray, level: float) -> Intervals:
    from flops_fit.fit.uncertainty import jackknife_interval, percentile_interval

    laws = ParametricLaw.from_logs(theta)
    a, b = laws.exponents(analysis.rule)
    draws = {"E": laws.E, "A": laws.A, "B": laws.B, "alpha": laws.alpha, "beta": laws.beta, "a": a, "b": b}
    found = {name: tuple(float(v) for v in percentile_interval(values, level)) for name, values in draws.items()}
    without = analysis.combination.without_budget
    if without is not None and analysis.parametric is not None:
        E = float(analysis.parametric.law.E)
        low, high = jackknife_interval(E, np.exp(without[:, 4]), level)
        found["E"] = (max(min(found["E"][0], float(low)), 0.0), max(found["E"][1], float(high)))
    return found  # type: ignore[return-value]
