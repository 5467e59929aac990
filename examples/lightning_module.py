"""A LightningModule that knows nothing of sweeps, scaled as it is: its own steps, optimizer and metrics.

Its schedule is replaced, since every run's must end with its own budget; the plan says so. See lightning_module.yaml
for the same from YAML.
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import flops_fit
from flops_fit.examples import StdlibText


class ByteGRU(pl.LightningModule):
    """Guesses the next byte with a recurrent network, as it might have been written for ``Trainer.fit``."""

    def __init__(self, hidden: int, learning_rate: float = 4e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(256, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 256)
        self.accuracy = MulticlassAccuracy(num_classes=256, average="micro")

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(ids))[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        ids, targets = batch
        loss = F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        ids, targets = batch
        logits = self(ids).flatten(0, 1)
        self.accuracy.update(logits, targets.flatten())
        self.log("val_loss", F.cross_entropy(logits, targets.flatten()), prog_bar=True)
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.RAdam(self.parameters(), lr=self.hparams.learning_rate)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.learning_rate, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data() -> StdlibText:
    return StdlibText(seq_len=32, batch_size=8, val_windows=256)


if __name__ == "__main__":
    result = flops_fit.find_optimal(
        model_cls=ByteGRU,  # no loss_fn: a LightningModule brings its own
        model_size_param="hidden",
        dataset=data,
        compute_budgets=[3e9, 1e10, 3e10],
        sizes=[8, 12, 16, 24, 32],
        output_dir="outputs/lightning_module",
    )
    print(result.chinchilla_table().to_string(index=False))
