"""Designed sweeps against the usual grid: the same largest pilot, the target 100 times beyond it, real refits.

    python benchmarks/design.py [--part known wrong stages stated curve forms] [--sweeps 400] [--seed 0]

The usual grid has 5 budgets over two decades and 9 sizes within a factor 4 of the optimum that is expected. A design is
given 30 % of its FLOPs, two runs at the largest budget that are kept back included; sizes are whole numbers and runs
whole steps in both. In each sweep both are drawn with the same discrepancy field, and the surface is fitted to each.
Errors are root mean squares at the target; brackets hold 95 % of the ratios of resampled sweeps.

known   planned on the law that holds
wrong   planned on another law, as the grid is
stages  planned on another law; a first stage of 2 % corrects it, and what it cost is counted
stated  what plans state against what sweeps drawn from what they believe give
curve   error against cost, as a part of the grid's
forms   laws that are no surface, both designs analysed by the package's headline; error against cost
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from coverage import SURFACES as LAWS

from flops_fit.experiment import Experiment
from flops_fit.fit import analyze_runs
from flops_fit.fit.parametric import fit_parametric
from flops_fit.fit.uncertainty import draw_theta
from flops_fit.laws import ParametricLaw
from flops_fit.plan.beliefs import BentLaw, Noise, believe, representatives
from flops_fit.plan.cells import budget_ladder, candidate_cells, first_stage
from flops_fit.plan.design import design_cells

SURFACES = LAWS | {"chinchilla": ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)}
LARGEST, TARGET, BATCH = 1e19, 1e21, 1024
BUDGETS, FACTORS = np.geomspace(0.01, 1, 5), np.geomspace(1 / 4, 4, 9)
GRID_COST = float(BUDGETS.sum() * len(FACTORS))  # in units of the largest budget
GRID_FLOPS = GRID_COST * LARGEST
SHARE = 0.30

# Forms fitted to the 240 runs of Hoffmann et al. (2022) that Besiroglu et al. (2024), arXiv:2404.10102, read off their
# figure, with Huber's loss on log loss (delta 0.005); the sweep is put where those runs are.
CENTER = (20.5593, 23.5532)
FORMS = {
    "surface": BentLaw(theta=np.array([-0.979, 0.34924, -0.98955, 0.37192, 0.60101]), center=CENTER),
    "generalised mean": BentLaw(
        theta=np.array([-0.77756, 0.33062, -0.75935, 0.34268, 0.57201]), center=CENTER, g=0.7854
    ),
    "drifting beta": BentLaw(
        theta=np.array([-1.01339, 0.36172, -0.9974, 0.37538, 0.60971]), center=CENTER, drift=0.01005
    ),
}
FORMS_LARGEST = 1e20

# Widths of a transformer of twelve layers' shape; narrow ones too, since the asymmetric law's optima are tiny.
WIDTHS = {width: 24 * width**2 + 256 * width for width in range(2, 30_000)}

NOISES = {
    "constant": (0.0, 0.0, 1.0),
    "growing": (0.15, 0.0, 1.0),
    "field": (0.0, 0.003, np.log(30.0)),
    "short field": (0.0, 0.003, np.log(10.0)),
}
SIGMA, FEATURES = 0.003, 500

Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scatter:
    """One sweep's chance: noise of every run, and a smooth random function of (ln N, ln D) that all runs share."""

    growth: float
    field: float
    waves: np.ndarray
    rng: np.random.Generator

    @classmethod
    def of(cls, noise: str, rng: np.random.Generator) -> Scatter:
        growth, field, length = NOISES[noise]
        # Cosines of random waves: a Gaussian field in the limit (Rahimi & Recht 2007).
        waves = np.vstack([rng.standard_normal((2, FEATURES)) / length, rng.uniform(0, 2 * np.pi, (1, FEATURES))])
        return cls(growth, field, waves, rng)

    def losses(self, truth: Truth, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        noise = SIGMA * (6 * N * D / LARGEST) ** -self.growth * self.rng.standard_normal(len(N))
        phases = np.log(N)[:, None] * self.waves[0] + np.log(D)[:, None] * self.waves[1] + self.waves[2]
        shared = self.field * np.sqrt(2 / FEATURES) * np.cos(phases).sum(axis=1)
        return np.asarray(truth(N, D) * np.exp(noise + shared))


def arrays(runs: Sequence[Experiment]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e.num_params for e in runs], float), np.array([e.num_tokens for e in runs], float)


def usual_grid(law: ParametricLaw, largest: float = LARGEST) -> tuple[np.ndarray, np.ndarray]:
    """Whole sizes nearest to those of the grid, whole steps."""
    counts = np.array(list(WIDTHS.values()), float)
    C = np.repeat(largest * BUDGETS, len(FACTORS))
    wanted = law.optimum(C)[0] * np.tile(FACTORS, len(BUDGETS))
    N = np.array([counts[np.abs(np.log(counts / n)).argmin()] for n in wanted])
    return N, np.round(C / (6 * N) / BATCH) * BATCH


def cells(laws: ParametricLaw | Sequence[ParametricLaw], largest: float = LARGEST) -> list[Experiment]:
    return candidate_cells(
        laws,
        budget_ladder(largest),
        sizes=list(WIDTHS),
        num_params=WIDTHS.get,
        tokens_per_step=BATCH,
        tokens_per_param=None,  # the asymmetric law's optima have millions of tokens per parameter
    )[0]


def errors_at_target(truth: ParametricLaw, N: np.ndarray, D: np.ndarray, L: np.ndarray) -> tuple[float, float]:
    law = fit_parametric(N, D, L).law
    size = np.log(law.optimum(TARGET)[0] / truth.optimum(TARGET)[0])
    return float(size), float(np.log(law.optimal_loss(TARGET) / truth.optimal_loss(TARGET)))


def ratio(plan: np.ndarray, grid: np.ndarray, rng: np.random.Generator) -> str:
    """Ratio of root mean squares over paired sweeps, and where 95 % of resampled sweeps have it."""
    picked = rng.integers(0, len(plan), (4000, len(plan)))
    low, high = np.quantile(np.sqrt((plan**2)[picked].mean(axis=1) / (grid**2)[picked].mean(axis=1)), [0.025, 0.975])
    return f"{rms(plan) / rms(grid):.2f} [{low:.2f}, {high:.2f}]"


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors), axis=0)))


def row(truth: ParametricLaw, sweep: Callable[[Scatter], dict[str, tuple]], noise: str, options) -> dict[str, object]:
    """One line: errors of the grid, of the design, and of the design with the runs kept back."""
    found = {name: [] for name in ("grid", "plan", "all")}
    shares = []
    start = time.perf_counter()
    for i in range(options.sweeps):
        scatter = Scatter.of(noise, np.random.default_rng([options.seed, i]))
        runs = sweep(scatter)
        for name, (N, D, L) in runs.items():
            found[name].append(errors_at_target(truth, N, D, L))
        shares.append([np.sum(6 * runs[name][0] * runs[name][1]) / GRID_FLOPS for name in ("plan", "all")])
    errors = {name: np.array(e) for name, e in found.items()}
    rng = np.random.default_rng(options.seed)
    alone, whole = np.mean(shares, axis=0)
    return {
        "noise": noise,
        "FLOPs": f"{alone:.3f}",
        "+ kept": f"{whole:.3f}",
        "N grid": f"{rms(errors['grid'][:, 0]):.3f}",
        "N plan": f"{rms(errors['plan'][:, 0]):.3f}",
        "ratio": ratio(errors["plan"][:, 0], errors["grid"][:, 0], rng),
        "ratio + kept": ratio(errors["all"][:, 0], errors["grid"][:, 0], rng),
        "L grid %": f"{100 * rms(errors['grid'][:, 1]):.2f}",
        "L plan %": f"{100 * rms(errors['plan'][:, 1]):.2f}",
        "L + kept %": f"{100 * rms(errors['all'][:, 1]):.2f}",
        "s": f"{time.perf_counter() - start:.0f}",
    }


def planned_once(prior: ParametricLaw, truth: ParametricLaw, options) -> pd.DataFrame:
    start = time.perf_counter()
    plan = design_cells(prior, cells(prior), target_compute=TARGET, max_flops=SHARE * GRID_FLOPS)
    seconds = time.perf_counter() - start
    print(f"{len(plan.cells)} runs, {seconds:.1f} s; states {plan.errors.size:.3f} and {100 * plan.errors.loss:.2f} %")
    points = {"grid": usual_grid(prior), "plan": arrays(plan.cells), "all": arrays((*plan.cells, *plan.holdout))}
    n = len(plan.cells)

    def sweep(scatter: Scatter) -> dict[str, tuple]:
        kept = scatter.losses(truth.loss, *points["all"])
        grid = scatter.losses(truth.loss, *points["grid"])
        return {"grid": (*points["grid"], grid), "plan": (*points["plan"], kept[:n]), "all": (*points["all"], kept)}

    return pd.DataFrame([row(truth, sweep, noise, options) for noise in options.noise])


def planned_twice(prior: ParametricLaw, truth: ParametricLaw, options) -> pd.DataFrame:
    first_cells = cells(prior)
    whole = design_cells(prior, first_cells, target_compute=TARGET, max_flops=SHARE * GRID_FLOPS)
    stage = first_stage(first_cells, plan_flops=whole.total_flops)
    spent = sum(e.flops for e in stage)
    informed = usual_grid(truth)
    print(f"first stage: {len(stage)} runs, {spent / GRID_FLOPS:.4f} of the grid's FLOPs; the grid knows the law")

    def sweep(scatter: Scatter) -> dict[str, tuple]:
        N, D = arrays(stage)
        L = scatter.losses(truth.loss, N, D)
        draws = draw_theta(fit_parametric(N, D, L), N, D, L, n_draws=200, rng=scatter.rng)
        laws = representatives(ParametricLaw.from_logs(draws), TARGET)
        plan = design_cells(laws, cells(laws), target_compute=TARGET, max_flops=SHARE * GRID_FLOPS - spent, done=stage)
        N2, D2 = arrays((*plan.cells, *plan.holdout))
        L2 = scatter.losses(truth.loss, N2, D2)
        N, D, L = np.append(N, N2), np.append(D, D2), np.append(L, L2)
        n = len(stage) + len(plan.cells)
        grid = scatter.losses(truth.loss, *informed)
        return {"grid": (*informed, grid), "plan": (N[:n], D[:n], L[:n]), "all": (N, D, L)}

    return pd.DataFrame([row(truth, sweep, noise, options) for noise in options.noise])


def stated(prior: ParametricLaw, options) -> pd.DataFrame:
    """By belief: the plan's own figures, and those of sweeps drawn from that belief with the noise it assumes."""
    candidates = cells(prior)
    plan = design_cells(prior, candidates, target_compute=TARGET, max_flops=SHARE * GRID_FLOPS)
    N, D = arrays(plan.cells)
    root = np.linalg.cholesky(Noise().covariance(N, D, 6 * N * D, LARGEST))
    rng = np.random.default_rng(options.seed)
    rows, squares, weights = [], [], []
    for belief in believe(prior, *arrays(candidates), target=TARGET):
        errors = []
        for _ in range(options.sweeps):
            L = belief.law.loss(N, D) * np.exp(belief.misfit(N, D) + root @ rng.standard_normal(len(N)))
            errors.append(errors_at_target(belief.law, N, D, L) - belief.displacement(TARGET))
        size, loss = (rms(e) for e in np.array(errors).T)
        of = plan.errors_by_belief[belief.name]
        rows.append((belief.name, of.size, size, 100 * of.loss, 100 * loss))
        squares.append((size**2, loss**2))
        weights.append(belief.weight)
    size, loss = np.sqrt(np.average(squares, axis=0, weights=weights))
    rows.append(("together", plan.errors.size, size, 100 * plan.errors.loss, 100 * loss))
    return pd.DataFrame(rows, columns=["belief", "N stated", "N found", "L % stated", "L % found"]).round(3)


def curve(law: ParametricLaw, options) -> pd.DataFrame:
    """What a design of each cost states, and what sweeps give, as parts of what the grid costs and errs."""
    grid = usual_grid(law)
    rows = []
    for share in (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0):
        plan = design_cells(law, cells(law), target_compute=TARGET, max_flops=share * GRID_FLOPS + 2.01 * LARGEST)
        points = arrays(plan.cells)
        line = {"FLOPs": plan.flops / GRID_FLOPS, "runs": len(plan.cells), "N stated": plan.errors.size}
        for noise in options.noise:
            errors = {"plan": [], "grid": []}
            for i in range(options.sweeps):
                scatter = Scatter.of(noise, np.random.default_rng([options.seed, i]))
                for name, (N, D) in (("plan", points), ("grid", grid)):
                    errors[name].append(errors_at_target(law, N, D, scatter.losses(law.loss, N, D)))
            plan_rms, grid_rms = (np.sqrt(np.mean(np.square(errors[name]), axis=0)) for name in ("plan", "grid"))
            line[f"{noise}: N"], line["L"] = plan_rms[0] / grid_rms[0], plan_rms[1] / grid_rms[1]
        rows.append(line)
    return pd.DataFrame(rows).round(3)


def forms(options) -> pd.DataFrame:
    """Error against cost for other truths, by the headline and by the surface alone; all runs fitted, the kept too."""
    prior = SURFACES["epoch"]
    designs = {"grid": usual_grid(prior, FORMS_LARGEST)}
    candidates, target = cells(prior, FORMS_LARGEST), 100 * FORMS_LARGEST
    for share in (0.17, 0.2, SHARE, 0.5, 1.0):
        limit = share * GRID_COST * FORMS_LARGEST
        plan = design_cells(prior, candidates, target_compute=target, max_flops=limit)
        designs[f"plan {share:g}"] = arrays((*plan.cells, *plan.holdout))
    sizes = np.geomspace(1e6, 1e13, 40001)
    budgets = np.array(budget_ladder(FORMS_LARGEST))
    rows = []
    for name, truth in FORMS.items():
        at_target = np.asarray(truth.loss(sizes, target / (6 * sizes)))
        best, least = sizes[np.argmin(at_target)], float(at_target.min())
        for design, (N, D) in designs.items():
            errors, withheld = [], 0
            for i in range(options.sweeps):
                rng = np.random.default_rng([options.seed, i])
                table = pd.DataFrame({"num_params": N, "num_tokens": D})
                table["loss"] = truth.loss(N, D) * np.exp(SIGMA * rng.standard_normal(len(N)))
                table["compute_budget"] = budgets[np.abs(np.log(np.divide.outer(6 * N * D, budgets))).argmin(axis=1)]
                analysis = analyze_runs(table, n_bootstrap=100, seed=i)
                withheld += analysis.predict(target).num_params is None
                told = [analysis.combination.forecast(answer, target, ()) for answer in ("num_params", "loss")]
                law = fit_parametric(N, D, table["loss"]).law
                alone = law.optimum(target)[0], law.optimal_loss(target)
                errors.append(np.array([*(t.point for t in told), *np.log(alone)]) - np.log([best, least] * 2))
            percent = np.array([1, 100, 1, 100])
            cost = float(np.sum(6 * N * D)) / (GRID_COST * FORMS_LARGEST)
            square, bias = np.mean(np.square(errors), axis=0), np.mean(errors, axis=0)
            share = withheld / options.sweeps
            rows.append((name, design, len(N), cost, *np.sqrt(square) * percent, *bias * percent, share))
    parts = [f"{kind}{what}" for kind in ("", "bias ") for what in ("N", "L %", "N surface", "L % surface")]
    return pd.DataFrame(rows, columns=["truth", "design", "runs", "FLOPs", *parts, "withheld"]).round(3)


PARTS = ("known", "wrong", "stages", "stated", "curve", "forms")


def show(title: str, table: pd.DataFrame) -> None:
    print(f"{title}\n{table.to_string(index=False)}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=["known"])
    parser.add_argument("--noise", nargs="+", choices=tuple(NOISES), default=list(NOISES))
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{options.sweeps} sweeps, seed {options.seed}; the grid costs {GRID_FLOPS:.3g} FLOPs\n")
    others = [("chinchilla", "epoch"), ("epoch", "chinchilla"), ("asymmetric", "epoch"), ("epoch", "asymmetric")]
    for part in options.part:
        if part == "known":
            for name in ("epoch", "asymmetric"):
                show(f"known: {name}", planned_once(SURFACES[name], SURFACES[name], options))
        if part in ("wrong", "stages"):
            planned = planned_once if part == "wrong" else planned_twice
            for prior, truth in others:
                show(f"{part}: {prior} believed, {truth} true", planned(SURFACES[prior], SURFACES[truth], options))
        if part in ("stated", "curve"):
            for name in ("epoch", "asymmetric"):
                show(f"{part}: {name}", (stated if part == "stated" else curve)(SURFACES[name], options))
        if part == "forms":
            show("forms", forms(options))


if __name__ == "__main__":
    main()
