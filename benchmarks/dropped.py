"""What was left out on purpose, measured against what is done instead. docs/method.md quotes it.

    python benchmarks/dropped.py [--part linear bounds iqr parabola sgd] [--sweeps 400] [--seed 0]

linear    power laws of N_opt fitted in linear space with a baseline, against log space; error 100 times beyond the data
bounds    L_opt(C) with bounds on its raw coefficient, against the same law searched over gamma; no noise
iqr       clean sweeps that lose a point to the interquartile rule, against the package's own
parabola  error of parabolas alone at 10 and 100 times the largest budget, on losses without noise
sgd       plain SGD at many rates against AdamW with u-muP's groups, the same small GPTs on the same batches
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from coverage import SURFACES
from scipy.optimize import least_squares

from flops_fit.fit.frontier import fit_frontier
from flops_fit.fit.isoflop import parabola_bias
from flops_fit.fit.outliers import find_outliers
from flops_fit.fit.powerlaw import fit_power_law
from flops_fit.laws import SIX_ND, FloatArray, ParametricLaw


def linear(sweeps: int, rng: np.random.Generator) -> None:
    C = np.geomspace(1e18, 1e20, 5)
    target, truth = 100 * C[-1], 0.1 * np.sqrt(C)

    def in_linear_space(N: FloatArray) -> float:
        x = C / np.sqrt(C[0] * C[-1])

        def residual(p: FloatArray) -> FloatArray:
            return np.asarray((p[0] + np.exp(p[1]) * x ** p[2] - N) / N.mean())

        best = least_squares(residual, [0.0, np.log(N[2]), 0.5], bounds=([0.0, -np.inf, 0.01], [np.inf, np.inf, 2.0]))
        base, log_k, a = best.x
        return float(base + np.exp(log_k) * (target / np.sqrt(C[0] * C[-1])) ** a)

    print("scatter of N_opt  rms log error at 100x: linear space, baseline   log space   ratio")
    for scatter in (0.05, 0.2):
        errors = []
        for _ in range(sweeps):
            N = truth * np.exp(scatter * rng.standard_normal(C.size))
            forecast = in_linear_space(N), float(fit_power_law(C, N).law(target))
            errors.append(np.log(np.array(forecast) / (0.1 * np.sqrt(target))))
        far, near = np.sqrt(np.mean(np.square(errors), axis=0))
        print(f"{scatter:15.0%}  {far:44.3f}  {near:10.3f}  {far / near:6.1f}")


def bounds(sweeps: int, rng: np.random.Generator) -> None:  # noqa: ARG001
    C = np.geomspace(1e18, 1e21, 7)
    print("true gamma, l_inf  coefficient bounded by 1e5: gamma, l_inf   searched over gamma: gamma, l_inf")
    for gamma in (0.2, 0.3, 0.4, 0.5):
        L = 1 + 2 * (C / 1e18) ** -gamma

        def residual(p: FloatArray, L: FloatArray = L) -> FloatArray:
            return np.asarray(p[0] + 10 ** p[1] * C ** -p[2] - L)

        held = least_squares(residual, [0.5, 2.0, 0.1], bounds=([0, -10, 1e-4], [10, 5, 1]), x_scale=[1, 1, 0.1]).x
        free = fit_frontier(C, L)
        print(f"{gamma:10.2f} 1.00  {held[2]:31.3f} {held[0]:6.3f}  {free.gamma:28.3f} {free.l_inf:6.3f}")


def iqr(sweeps: int, rng: np.random.Generator) -> None:
    law = SURFACES["epoch"]
    print("noise  sweeps without any outlier that lose a budget (iqr of a log-log line) or a run (the package's rule)")
    for n_budgets, noise in ((5, 0.01), (7, 0.01), (9, 0.01), (9, 0.003)):
        C = np.geomspace(1e18, 1e21, n_budgets)
        lost_budget = lost_run = 0
        for sweep in range(sweeps):
            L = law.optimal_loss(C) * np.exp(noise * rng.standard_normal(C.size))
            line = fit_power_law(C, L).law
            low, high = np.quantile(L - line(C), [0.25, 0.75])
            lost_budget += bool(np.any(np.abs(L - line(C) - (low + high) / 2) > 2 * (high - low)))
            if sweep < sweeps // 4:  # the slower of the two
                N, D = _grid(law, C, 4.0, 1.0)
                L = law.loss(N, D) * np.exp(noise * rng.standard_normal(N.size))
                lost_run += bool(find_outliers(N, D, L))
        print(f"{noise:5.1%}  {n_budgets} budgets: {lost_budget / sweeps:4.0%}, {lost_run / (sweeps // 4):6.1%}")


def parabola(sweeps: int, rng: np.random.Generator) -> None:  # noqa: ARG001
    print("surface     grid                                    N_opt at 10x  at 100x")
    for name, law in SURFACES.items():
        C = np.geomspace(1e18, 1e20, 5)
        for reach, drift in ((4.0, 1.0), (16.0, 1.0), (4.0, 3.0)):
            N, D = _grid(law, C, reach, drift)
            bias = parabola_bias(law, N, D, SIX_ND.flops(N, D), np.repeat(C, 9))
            assert bias is not None
            told = [f"{np.expm1(bias.log_n_at(f * C[-1])):+.1%}" for f in (10, 100)]
            where = "centred" if drift == 1 else f"centre drifting from 1/{drift:g} to {drift:g}"
            print(f"{name:<11} 9 sizes within {reach:2.0f}x, {where:<22} {told[0]:>10}  {told[1]:>7}")


def _grid(law: ParametricLaw, C: FloatArray, reach: float, drift: float) -> tuple[FloatArray, FloatArray]:
    centre = law.optimum(C)[0] * np.geomspace(1 / drift, drift, C.size)
    N = (centre[:, None] * np.geomspace(1 / reach, reach, 9)).ravel()
    return N, np.repeat(C, 9) / (6 * N)


def sgd(sweeps: int, rng: np.random.Generator) -> None:  # noqa: ARG001
    import torch

    from flops_fit.examples import GPT, next_token_loss
    from flops_fit.examples.text import Windows, stdlib_bytes

    torch.set_num_threads(1)
    train, held_out, _ = stdlib_bytes()
    windows, val = Windows(train, 64), Windows(held_out, 64, count=256)
    ids, targets = (torch.stack(v) for v in zip(*val.__getitems__(list(range(len(val)))), strict=True))

    def trained(d_model: int, steps: int, optimizer: Callable[[GPT], torch.optim.Optimizer]) -> float:
        torch.manual_seed(0)
        net = GPT(d_model=d_model)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
        opt = optimizer(net)
        warm = round(0.1 * steps)
        rate = torch.optim.lr_scheduler.LambdaLR(
            opt, lambda s: (s + 1) / warm if s < warm else (steps - s) / (steps - warm)
        )
        for step in range(steps):
            x, y = (
                torch.stack(v) for v in zip(*windows.__getitems__(order[4 * step : 4 * step + 4].tolist()), strict=True)
            )
            next_token_loss(net(x), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            rate.step()
        with torch.no_grad():
            return float(next_token_loss(net(ids), targets))

    print("loss [nats/byte]; plain SGD by rate")
    for d_model, steps in ((16, 530), (32, 530)):
        adam = trained(
            d_model, steps, lambda net: torch.optim.AdamW(net.param_groups(0.7), betas=(0.9, 0.95), weight_decay=0)
        )
        rates = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
        plain = {r: trained(d_model, steps, lambda net, r=r: torch.optim.SGD(net.parameters(), lr=r)) for r in rates}
        print(
            f"d={d_model}, {steps} steps: AdamW {adam:.3f}; SGD "
            + ", ".join(f"{r:g}: {v:.3f}" for r, v in plain.items())
        )


PARTS = {"linear": linear, "bounds": bounds, "iqr": iqr, "parabola": parabola, "sgd": sgd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    for part in own.part:
        print(f"== {part}")
        PARTS[part](own.sweeps, np.random.default_rng(own.seed))


if __name__ == "__main__":
    main()
