"""What forecasts beyond the data are worth: published IsoFLOP sweeps with their largest budgets hidden.

    python benchmarks/extrapolation.py [--data ../shared/data] [--all-cuts] [--misspecified]

The truth is the hidden largest budget's own parabola. Errors are logs: of the loss in percent, of N_opt as they are;
brackets are the stated 95 % interval, on the same scale. With --all-cuts every smaller sweep is tried too, and every
budget up to a factor 12 beyond it; with --misspecified, synthetic sweeps whose law is not the fitted one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from flops_fit.fit import analyze_runs
from flops_fit.fit.isoflop import fit_isoflop
from flops_fit.laws import ParametricLaw

DATA = Path(os.environ.get("FLOPS_FIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def published(data: Path) -> Iterator[tuple[str, pd.DataFrame]]:
    """The two published sets that have budgets."""
    chinchilla = pd.read_csv(data / "chinchilla_epoch.csv")
    yield "chinchilla", chinchilla[~chinchilla.fit_excluded & chinchilla.isoflop_budget.notna()]
    llama = pd.read_csv(data / "llama3_isoflop.csv")
    yield "llama3", llama[llama.openathena_qc == "none"]


def forecasts(runs: pd.DataFrame, *, all_cuts: bool) -> Iterator[dict[str, object]]:
    """One row per cut and hidden budget."""
    runs = runs.rename(columns={"isoflop_budget": "compute_budget"})
    parabolas = fit_isoflop(runs.num_params, runs.num_tokens, runs.loss, runs.compute_budget)
    truth = [b for b in parabolas.optima if (b.log_n_se or 0) < 0.5]
    budgets = np.sort(runs.compute_budget.unique())
    for cut in range(3 if all_cuts else len(budgets) - 2, len(budgets)):
        visible = budgets[cut - 1]
        analysis = analyze_runs(runs[runs.compute_budget <= visible])
        hidden = [b for b in truth if visible < b.compute_budget <= 12 * visible]
        for b in hidden if all_cuts else [h for h in hidden if h.compute_budget == budgets[-1]]:
            told = analysis.predict(b.compute_budget)
            assert told.loss and told.num_params and b.loss and b.num_params, "both answers are always there"  # noqa: PT018
            loss, size = (np.log(v) for v in (b.loss, b.num_params))
            low, high = (100 * (np.log(v) - loss) for v in told.ci["loss"])
            n_low, n_high = (np.log(v) - size for v in told.ci["num_params"])
            yield {
                "hidden": len(budgets) - cut,
                "beyond": round(float(told.extrapolation), 1),
                "method": analysis.headline.method,
                "loss %": round(100 * (np.log(told.loss) - loss), 2),
                "loss interval": f"[{low:+.2f}, {high:+.2f}]",
                "ln N": round(float(np.log(told.num_params) - size), 3),
                "ln N interval": f"[{n_low:+.2f}, {n_high:+.2f}]",
                "inside": f"{'L' if low <= 0 <= high else '-'}{'N' if n_low <= 0 <= n_high else '-'}",
            }


def rival_truths() -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Laws that are not the surface: near what real runs prefer, and farther off."""
    law = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)

    def generalised(N: np.ndarray, D: np.ndarray) -> np.ndarray:
        g = 0.79
        return 1.75 + ((600 * N**-0.355) ** (1 / g) + (1350 * D**-0.335) ** (1 / g)) ** g

    def drifting(N: np.ndarray, D: np.ndarray) -> np.ndarray:
        return law.E + law.A * N**-law.alpha + law.B * D ** -(law.beta + 0.01 * np.log(N / 1e9))

    def kaplan(N: np.ndarray, D: np.ndarray) -> np.ndarray:
        return ((8.8e13 / N) ** (0.076 / 0.103) + 5.4e13 / D) ** 0.103

    return {"surface": law.loss, "generalised mean": generalised, "drifting beta": drifting, "kaplan": kaplan}


def misspecified(sweeps: int, noise: float = 0.003) -> pd.DataFrame:
    """Root mean square errors and coverage of 95 % intervals at 3, 10 and 100 times the data."""
    sizes, budgets = np.geomspace(1 / 4, 4, 9), np.geomspace(1e18, 1e20, 5)
    grid = np.geomspace(1e6, 1e13, 20001)
    rows = []
    for name, truth in rival_truths().items():
        best = {
            float(C): grid[np.argmin(truth(grid, C / (6 * grid)))]
            for C in [*budgets, *(budgets[-1] * np.array([3, 10, 100]))]
        }
        C = np.repeat(budgets, len(sizes))
        N = np.concatenate([best[b] * sizes for b in budgets])
        rng = np.random.default_rng(0)
        for i in range(sweeps):
            loss = truth(N, C / (6 * N)) * np.exp(noise * rng.standard_normal(len(N)))
            table = pd.DataFrame({"compute_budget": C, "num_params": N, "num_tokens": C / (6 * N), "loss": loss})
            analysis = analyze_runs(table, n_bootstrap=300, seed=i)
            for factor in (3, 10, 100):
                target = float(budgets[-1] * factor)
                told, size = analysis.predict(target), best[target]
                level = float(truth(np.array([size]), np.array([target / (6 * size)]))[0])
                pairs = (size, told.ci["num_params"]), (level, told.ci["loss"])
                inside = [low <= value <= high for value, (low, high) in pairs]
                errors = np.log(told.num_params / size), 100 * np.log(told.loss / level)
                rows.append((name, factor, analysis.headline.method != "surface", *errors, *inside))
    frame = pd.DataFrame(rows, columns=["truth", "beyond", "combination", "ln N rms", "loss % rms", "N in", "L in"])
    for column in ("ln N rms", "loss % rms"):
        frame[column] **= 2
    table = frame.groupby(["truth", "beyond"], sort=False).mean()
    for column in ("ln N rms", "loss % rms"):
        table[column] **= 0.5
    return table.round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--all-cuts", action="store_true")
    parser.add_argument("--misspecified", type=int, nargs="?", const=20, default=0, metavar="SWEEPS")
    options = parser.parse_args()
    for name, runs in published(options.data):
        print(f"\n{name}: {len(runs)} runs")
        print(pd.DataFrame(forecasts(runs, all_cuts=options.all_cuts)).to_string(index=False), flush=True)
    if options.misspecified:
        print(f"\n{options.misspecified} synthetic sweeps of 5 budgets x 9 sizes, 0.3 % noise")
        print(misspecified(options.misspecified).to_string())


if __name__ == "__main__":
    main()
