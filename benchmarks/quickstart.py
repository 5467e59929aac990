"""Wall time of the quick start over that of a bare, sequential PyTorch script of the same runs, both from the shell.

    python benchmarks/quickstart.py [--config configs/quickstart.yaml] [--rounds 1] [--threads N]

The bare script is this file's own second half: the same model, data, sizes and steps; AdamW, clipping and schedule in
a plain loop, one run after the other, with the threads that torch chooses by itself (or N); it logs nothing, saves
nothing and fits nothing. The command plans, trains, fits, and draws its report.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def train_bare(plan: dict) -> None:
    """Every run of the plan, in order, in this process."""
    import torch

    from flops_fit.examples import GPT, StdlibText, next_token_loss

    text = StdlibText(seq_len=64, batch_size=plan["batch_size"])
    for experiment in plan["experiments"]:
        torch.manual_seed(experiment["seed"])
        net = GPT(d_model=experiment["size_param_value"], **plan["model_kwargs"])
        optimizer = torch.optim.AdamW(net.param_groups(0.7), betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        steps = experiment["steps"]
        warmup = max(1, round(0.1 * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda s, w=warmup, n=steps: (s + 1) / w if s < w else 1 - min(1, (s - w) / max(1, n - w)),
        )
        done = 0
        while done < steps:
            for x, y in text.train_dataloader():
                loss = next_token_loss(net(x), y)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                done += 1
                if done == steps:
                    break
        net.eval()
        with torch.no_grad():
            losses = [(next_token_loss(net(x), y).item(), len(x)) for x, y in text.val_dataloader()]
        loss = sum(a * n for a, n in losses) / sum(n for _, n in losses)
        print(f"{experiment['experiment_id']}  {loss:.4f}", flush=True)


def timed(command: list[str], environment: dict[str, str] | None = None) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | (environment or {}))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(Path(__file__).parents[1] / "configs" / "quickstart.yaml"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of the bare script; torch's own choice when not given")
    parser.add_argument("--bare", metavar="PLAN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        train_bare(json.loads(Path(options.bare).read_text()))
        return
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "flops_fit"]
        text = subprocess.run(
            [*command, "plan", "--config", options.config, "--json"], check=True, capture_output=True, text=True
        ).stdout
        plan = Path(folder) / "plan.json"
        plan.write_text(text)
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
        for i in range(options.rounds):
            output = f"--sweep.output_dir={folder}/sweep{i}"
            ours = timed([*command, "fit", "--config", options.config, output])
            bare = timed([sys.executable, __file__, "--bare", str(plan)], threads)
            ratios.append(ours / bare)
            print(f"round {i + 1}: flops-fit {ours:.1f} s, bare {bare:.1f} s, ratio {ours / bare:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
