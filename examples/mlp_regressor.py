"""How wide should this MLP be, and on how many samples? A model and data that flops-fit knows nothing about."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flops_fit


class MLP(nn.Module):
    def __init__(self, width: int, features: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(-1)


def samples(count: int = 400_000, features: int = 8) -> TensorDataset:
    """A noisy sum of random sine features: smooth, and too rich for a small network."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, features, generator=generator)
    directions = torch.randn(features, 256, generator=generator) / features**0.5
    phases = 2 * torch.pi * torch.rand(256, generator=generator)
    weights = torch.randn(256, generator=generator) / 128**0.5
    y = (x @ directions + phases).sin() @ weights
    return TensorDataset(x, y + 0.05 * torch.randn(count, generator=generator))


class Samples(pl.LightningDataModule):
    """The same for mlp_regressor.yaml; no validation data, so every 20th or so sample is held out."""

    def __init__(self, count: int = 400_000, batch_size: int = 32) -> None:
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(samples(self.count), batch_size=self.batch_size, shuffle=True)


def mean_squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).square().mean()


if __name__ == "__main__":
    result = flops_fit.find_optimal(
        model_cls=MLP,
        model_size_param="width",
        dataset=samples,  # a function, so that other processes can make the data too
        loss_fn=mean_squared_error,
        compute_budgets=[3e8, 1e9, 3e9],
        sizes=[12, 16, 24, 36, 52, 80],
        batch_size=32,
        lr=3e-3,
        output_dir="outputs/mlp_regressor",
    )
    print(result.chinchilla_table().to_string(index=False))
    print(result.predict(1e11))
