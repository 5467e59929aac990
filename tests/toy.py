"""A model, data and losses small enough to train in a second, importable by the processes that tests start."""

from __future__ import annotations

import time

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flops_fit.examples import GPT

FEATURES = 8


class Net(nn.Module):
    """An MLP with dropout, so that a resume which loses a random state shows."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.GELU()
        )
        self.head = nn.Linear(width, 1)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).squeeze(-1)


class Exploding(Net):
    """Its outputs overflow once it has learned a little."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1e38 * 1e38


class Failing(Net):
    """Cannot be trained."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            raise RuntimeError("this model always fails")
        return super().forward(x)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def unreduced_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """No scalar, which no loss may be."""
    return (outputs - targets).square()


def regression(count: int = 4000, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    directions = torch.randn(FEATURES, 16, generator=torch.Generator().manual_seed(7))
    return TensorDataset(x, (x @ directions).sin().sum(dim=1) + 0.1 * torch.randn(count, generator=generator))


class Stream(IterableDataset):
    """The same samples without a length."""

    def __iter__(self):
        return iter(regression())


def loader() -> DataLoader:
    return DataLoader(regression(), batch_size=16, shuffle=True)


class Module(pl.LightningDataModule):
    """Training and validation loaders."""

    def __init__(self, batch_size: int = 16, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def train_dataloader(self) -> DataLoader:
        return DataLoader(regression(), batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(regression(256, seed=1), batch_size=64)


class BrokenModule(Module):
    """Fails where only its author can mend it."""

    def setup(self, stage: str) -> None:
        raise ZeroDivisionError("no shards in the bucket")


class Words(Dataset):
    """Random token ids: inputs of rank 2 once batched."""

    def __init__(self, count: int = 2000, length: int = 8) -> None:
        self.ids = torch.randint(0, 16, (count, length + 1), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.ids[i, :-1], self.ids[i, 1:]


class Slow(Net):
    """Takes its time, so that a run can be caught in its middle."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            time.sleep(0.004)
        return super().forward(x)


class Slower(Net):
    """Takes so long that a run is in its middle still when a busy machine comes to look; nobody waits for its end."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            time.sleep(0.03)
        return super().forward(x)


class FailingAtSix(Net):
    """One of its sizes cannot be trained."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta" and self.head.in_features == 6:
            raise RuntimeError("width 6 always fails")
        return super().forward(x)


class StandardGPT(GPT):
    """The example's GPT in the standard parametrisation: weights by fan-in, one rate for all of them."""

    param_groups = None  # type: ignore[assignment]

    def __init__(self, d_model: int, n_layer: int = 2, vocab_size: int = 256, seq_len: int = 64) -> None:
        super().__init__(d_model, n_layer, vocab_size, seq_len)
        nn.init.normal_(self.head.weight, std=d_model**-0.5)
        for block in self.blocks:
            block.attention_scale **= 0.5

    def forward(self, ids: Tensor) -> Tensor:
        return self.d_model * super().forward(ids)
