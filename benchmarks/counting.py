"""Count GPTs of 0.2M to 10B parameters on the meta device: time, memory, and what closed formulas say.

    python benchmarks/counting.py

Each size is counted in a process of its own, so that its memory is its own; the time is that of counting, the imports
come before it. Counted FLOPs are compared with 6 N_matmul D + 12 L T d D: causal attention counted in full.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

# d_model, n_layer, seq_len, vocab_size, head_dim
SHAPES = [
    (64, 4, 128, 256, 16),
    (128, 4, 128, 256, 32),
    (256, 6, 256, 256, 32),
    (512, 8, 512, 256, 64),
    (256, 6, 512, 50_257, 64),
    (768, 12, 1024, 50_257, 64),
    (2048, 24, 2048, 50_257, 128),
    (4096, 48, 4096, 50_257, 128),
]


def count(d_model: int, n_layer: int, seq_len: int, vocab_size: int, head_dim: int) -> dict[str, Any]:
    """Count one of them here."""
    import torch
    from torch import Tensor, nn

    from flops_fit.examples import GPT, next_token_loss
    from flops_fit.plan.count import SizeCounter, constructor

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return next_token_loss(model(batch[0]), batch[1])

    ids = torch.zeros(1, seq_len, dtype=torch.long)
    fixed = {"n_layer": n_layer, "seq_len": seq_len, "vocab_size": vocab_size, "head_dim": head_dim}
    start = time.perf_counter()
    counter = SizeCounter(constructor(GPT, "d_model", fixed), (ids, ids), loss, seq_len)
    size = counter(d_model)
    flops = counter.flops_per_token(d_model)
    seconds = time.perf_counter() - start
    formula = 6 * size.matmul + 12 * n_layer * seq_len * d_model
    return {
        "num_params_total": size.total,
        "num_params_matmul": size.matmul,
        "flops_per_token": flops,
        "counted_over_formula": flops / formula,
        "counted_over_6n": flops / (6 * size.num_params),
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "notes": counter.notes,
    }


def main() -> None:
    """Print the table, then all of it as JSON."""
    print(f"{'d':>5} {'L':>3} {'T':>5} {'vocab':>6} {'N total':>9} {'/formula':>9} {'/6N':>6} {'s':>6} {'MiB':>5}")
    rows = []
    for shape in SHAPES:
        words = [sys.executable, __file__, *map(str, shape)]
        row = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        d, layers, length, vocab, _ = shape
        print(
            f"{d:>5} {layers:>3} {length:>5} {vocab:>6} {row['num_params_total']:>9.3g}"
            f" {row['counted_over_formula']:>9.5f} {row['counted_over_6n']:>6.3f} {row['seconds']:>6.2f}"
            f" {row['peak_mib']:>5.0f}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(count(*map(int, sys.argv[1:]))))
    else:
        main()
