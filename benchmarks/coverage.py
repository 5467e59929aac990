"""How often stated intervals hold the truth: sweeps drawn from a known surface under four kinds of noise.

    python benchmarks/coverage.py [--sweeps 200] [--draws 400] [--noise gauss outlier hetero shift] [--surface epoch]

Each sweep has 5 budgets from 1e18 to 1e20 FLOPs and 9 sizes within a factor 4 of each optimum. Printed per kind of
noise: coverage in percent of intervals that claim 80 and 95, and the median width of the latter.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from flops_fit.fit import ScalingAnalysis, analyze_runs
from flops_fit.laws import ParametricLaw

SURFACES = {
    "epoch": ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672),
    "asymmetric": ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155),
}
BUDGETS, SIZES = np.geomspace(1e18, 1e20, 5), np.geomspace(1 / 4, 4, 9)
NOISES = ("gauss", "outlier", "hetero", "shift")
LEVELS = (0.80, 0.95)


def draw_sweep(law: ParametricLaw, noise: str, rng: np.random.Generator) -> pd.DataFrame:
    """One sweep: 0.3 % Gaussian noise, or that with 5 % of runs far too high, or less of it at larger budgets, or less
    of it with a shift of 0.2 % of each budget as a whole."""
    budget = np.repeat(np.arange(len(BUDGETS)), len(SIZES))
    C = BUDGETS[budget]
    N = law.optimum(C)[0] * np.tile(SIZES, len(BUDGETS))
    unit = rng.standard_normal(len(C))
    error = {
        "gauss": lambda: 0.003 * unit,
        "outlier": lambda: 0.003 * unit + (rng.random(len(C)) < 0.05) * rng.exponential(0.03, len(C)),
        "hetero": lambda: 0.003 * np.linspace(2, 0.5, len(BUDGETS))[budget] * unit,
        "shift": lambda: 0.0022 * unit + 0.002 * rng.standard_normal(len(BUDGETS))[budget],
    }[noise]()
    D = C / (6 * N)
    return pd.DataFrame({"compute_budget": C, "num_params": N, "num_tokens": D, "loss": law.loss(N, D) * np.exp(error)})


def stated(analysis: ScalingAnalysis, law: ParametricLaw) -> dict[str, tuple[float, list[tuple[float, float]]]]:
    """Truth and intervals at both levels, by quantity: of the surface alone, and of ``predict``."""
    from flops_fit.fit.intervals import law_intervals

    found = {}
    groups = [law_intervals(analysis, level)["parametric"] for level in LEVELS]
    a, b = law.exponents()
    for name, truth in (("alpha", law.alpha), ("beta", law.beta), ("a", a), ("b", b), ("E", law.E)):
        found[f"surface {name}"] = (truth, [group[name] for group in groups])
    form = analysis.combination.forms["surface"]
    for factor in (10, 100):
        C = factor * BUDGETS[-1]
        N, D = law.optimum(C)
        answers = [analysis.predict(C, level=level).ci for level in LEVELS]
        draws = np.exp(form.log_answer("num_params", C, analysis.rule)[1:])
        alone = [tuple(np.quantile(draws, [0.5 - lv / 2, 0.5 + lv / 2])) for lv in LEVELS]
        found[f"surface N {factor}x"] = (N, alone)
        found[f"predict N {factor}x"] = (N, [ci["num_params"] for ci in answers])
        found[f"predict L {factor}x"] = (law.loss(N, D), [ci["loss"] for ci in answers])
    return found


def coverage(law: ParametricLaw, noise: str, sweeps: int, draws: int, seed: int = 0) -> pd.DataFrame:
    """Percent covered at each level, and the median width of the wider interval's logarithm, per quantity."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(sweeps):
        analysis = analyze_runs(draw_sweep(law, noise, rng), n_bootstrap=draws, seed=i)
        for quantity, (truth, intervals) in stated(analysis, law).items():
            inside = [low <= truth <= high for low, high in intervals]
            rows.append((quantity, *inside, _log_width(*intervals[-1])))
        rows.append(("combination used", *[analysis.headline.method != "surface"] * 2, np.nan))
    frame = pd.DataFrame(rows, columns=["quantity", "in80", "in95", "width95"])
    grouped = frame.groupby("quantity", sort=False)
    return pd.DataFrame(
        {
            "80": 100 * grouped["in80"].mean(),
            "95": 100 * grouped["in95"].mean(),
            "width95": grouped["width95"].median(),
        }
    )


def _log_width(low: float, high: float) -> float:
    return float(np.log(high / low)) if low > 0 else float("inf")  # an irreducible loss may reach down to 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=NOISES)
    parser.add_argument("--surface", nargs="+", choices=tuple(SURFACES), default=("epoch",))
    options = parser.parse_args()
    for surface in options.surface:
        for noise in options.noise:
            start = time.perf_counter()
            table = coverage(SURFACES[surface], noise, options.sweeps, options.draws)
            print(f"\n{surface}, {noise}: {options.sweeps} sweeps, {time.perf_counter() - start:.0f} s")
            print(table.round({"80": 0, "95": 0, "width95": 3}).to_string(), flush=True)


if __name__ == "__main__":
    main()
