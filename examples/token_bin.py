"""Tokens in binary files, as nanoGPT's prepare.py writes them: made here from Python's own library, then swept over.

Bring files of your own to token_bin.yaml, which is the same from YAML.
"""

from pathlib import Path

import numpy as np

import flops_fit
from flops_fit.examples import GPT, next_token_loss
from flops_fit.examples.text import stdlib_bytes

FOLDER = Path("outputs/token_bin/data")


def write_tokens() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    train, val, _ = stdlib_bytes()
    for name, tokens in (("train", train), ("val", val)):
        tokens.numpy().astype("<u2").tofile(FOLDER / f"{name}.bin")


def data() -> flops_fit.TokenBin:
    return flops_fit.TokenBin(f"{FOLDER}/train.bin", f"{FOLDER}/val.bin", seq_len=32, batch_size=8, bytes_per_token=1)


if __name__ == "__main__":
    if not FOLDER.is_dir():
        write_tokens()
    print(f"{np.fromfile(FOLDER / 'train.bin', '<u2').size:,} training tokens")
    result = flops_fit.find_optimal(
        model_cls=GPT,
        model_size_param="d_model",
        model_kwargs={"n_layer": 1, "seq_len": 32},
        dataset=data,
        loss_fn=next_token_loss,
        compute_budgets=[3e9, 1e10, 3e10],
        sizes=[8, 12, 16, 24, 32],
        flops="counted",
        lr=0.7,
        output_dir="outputs/token_bin",
    )
    print(result.chinchilla_table().to_string(index=False))
