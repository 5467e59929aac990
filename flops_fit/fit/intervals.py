"""Intervals of the laws' own parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from flops_fit.laws import ComputeRule, FloatArray, ParametricLaw

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis

Intervals = dict[str, tuple[float, float]]

# Statistic of the budgets' shifts from which they count; below it in 19 of 20 sweeps that have none.
_SHIFTED: Final = 2.0


# An end that the runs do not bound is infinite.
@np.errstate(over="ignore")
def law_intervals(analysis: ScalingAnalysis, level: float = 0.95) -> dict[str, Intervals]:
    """Intervals by group: "parametric" (E, A, B, alpha, beta, a, b), "N_opt", "D_opt" and "L_opt".

    Those of the surface are the bootstrap's. E shifts with whole budgets like any loss; where budgets are seen to be
    shifted, so do A, B, alpha and beta (not a and b, which say where the optimum is). Those take the wider of the
    bootstrap's and the leave-one-budget-out jackknife's. Those of the power laws are the regression's, for L_opt the
    profile's.
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

    draws = _parameters(ParametricLaw.from_logs(theta), analysis.rule)
    found = {name: percentile_interval(values, level) for name, values in draws.items()}
    without = analysis.combination.without_budget
    if without is not None and analysis.parametric is not None and analysis.misfit is not None:
        left_out = _parameters(ParametricLaw.from_logs(without), analysis.rule)
        best = _parameters(analysis.parametric.law, analysis.rule)
        shifted = analysis.misfit.shift_statistic > _SHIFTED
        for name in ("E", "A", "B", "alpha", "beta") if shifted else ("E",):
            if name == "E":  # may be 0, where its log says nothing, and lies below every loss
                low, high = jackknife_interval(best[name], left_out[name], level)
                low, high = max(low, 0.0), min(high, max(float(analysis.rows.L.min()), found[name][1]))
            else:  # positive, A and B over decades: the logs are what is symmetric
                low, high = np.exp(jackknife_interval(np.log(best[name]), np.log(left_out[name]), level))
            found[name] = min(found[name][0], low), max(found[name][1], high)
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def _parameters(law: ParametricLaw, rule: ComputeRule) -> dict[str, Any]:
    a, b = law.exponents(rule)
    return {"E": law.E, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta, "a": a, "b": b}
