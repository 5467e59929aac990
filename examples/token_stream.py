"""A stream without a length: files are read and cut into windows while the model trains. See token_stream.yaml.

The order is the stream's own, the same for every size; a resumed run passes over what it has seen. Where a data set
can have a length and an index, as in token_bin.py, it should.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import flops_fit
from flops_fit.examples import GPT, next_token_loss


class SourceStream(IterableDataset):
    """Windows of bytes and the bytes that follow, from .py files in a mixed order; every 16th file is held out."""

    def __init__(self, seq_len: int, held_out: bool = False) -> None:
        self.seq_len, self.held_out = seq_len, held_out

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        mine = [file for i, file in enumerate(files) if (i % 16 == 15) == self.held_out]
        left = b""
        for i in np.random.default_rng(0).permutation(len(mine)):
            left += mine[i].read_bytes() + b"\0"
            while len(left) > self.seq_len:
                window = torch.frombuffer(bytearray(left[: self.seq_len + 1]), dtype=torch.uint8).long()
                left = left[self.seq_len :]
                yield window[:-1], window[1:]


class Sources(pl.LightningDataModule):
    def __init__(self, seq_len: int = 32, batch_size: int = 8) -> None:
        super().__init__()
        self.seq_len, self.batch_size = seq_len, batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(SourceStream(self.seq_len), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(SourceStream(self.seq_len, held_out=True), batch_size=64)


def data() -> Sources:
    return Sources()


if __name__ == "__main__":
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
        output_dir="outputs/token_stream",
    )
    print(result.chinchilla_table().to_string(index=False))
