"""A command line of one's own round find_optimal: python examples/cli_wrapper.py 3e8 1e9 3e9 --width 12 16 24 36 52"""

import argparse
import logging
from functools import partial

from mlp_regressor import MLP, mean_squared_error, samples

import flops_fit


def main() -> int:
    parser = argparse.ArgumentParser(description="How wide should the regressor be, for this much compute?")
    parser.add_argument("budgets", nargs="+", help='training compute: 3e9, "2 GFLOP", "10 PF-days"')
    parser.add_argument("--width", type=int, nargs="+", help="widths to train; found when not given")
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--target", default="1e11", help="compute to answer for")
    parser.add_argument("--output", default="outputs/cli_wrapper")
    parser.add_argument("--plan", action="store_true", help="show the plan, train nothing")
    own = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        found = flops_fit.find_optimal(
            model_cls=MLP,
            model_size_param="width",
            sizes=own.width,
            compute_budgets=own.budgets,
            dataset=partial(samples, own.samples),
            loss_fn=mean_squared_error,
            batch_size=32,
            lr=own.lr,
            output_dir=own.output,
            train=not own.plan,
        )
    except flops_fit.FlopsFitError as error:  # what, where and what to do; anything else is a bug
        parser.exit(2, f"{error}\n")
    if isinstance(found, flops_fit.SweepPlan):
        print(found.to_frame()[["compute_budget", "size_param_value", "num_params", "num_tokens", "steps"]].to_string())
        return 0
    print(found.chinchilla_table().to_string(index=False))
    print(found.predict(own.target))
    print("report:", found.report(f"{own.output}/report"))
    return 0 if found.analysis.trustworthy else 1


if __name__ == "__main__":
    raise SystemExit(main())
