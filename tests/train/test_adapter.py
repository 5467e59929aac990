"""Somebody's LightningModule, trained to budgets: its own steps and optimizer, the sweep's schedule and length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.regression import MeanAbsoluteError
from toy import FEATURES, regression

import flops_fit
from flops_fit import LightningAdapter, PlanError
from flops_fit.train.steps import watches_single_steps


class Plain(pl.LightningModule):
    """As it may have been written for ``Trainer.fit``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(FEATURES, width), nn.GELU(), nn.Linear(width, 1))
        self.mae = MeanAbsoluteError()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        loss = (self(x) - y).square().mean()
        self.log("train_loss", loss)
        self.log_dict({"twice": 2 * loss})
        return {"loss": loss}

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        self.mae.update(self(x), y)
        self.log("val_loss", (self(x) - y).abs().mean(), prog_bar=True)
        self.log("val_mae", self.mae, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.log("epochs_ended", 1.0)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(
            [{"params": self.layers[0].parameters(), "lr": 0.03}, {"params": self.layers[2].parameters()}], lr=0.01
        )
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.03, 0.01], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_end(self) -> None:
        raise AssertionError("not called")


class Returning(Plain):
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).abs().mean()


class WithoutValidation(Plain):
    validation_step = pl.LightningModule.validation_step


class Silent(Plain):
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("loss", 1.0)


class Stepless(Plain):
    training_step = pl.LightningModule.training_step


class Manual(Plain):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.automatic_optimization = False


class TwoOptimizers(Plain):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.layers[0], self.layers[2])]


class Failing(Plain):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1 / self.trainer.datamodule.batch_size)


class Listing(Plain):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


def adapted(cls: type, width: int = 8) -> LightningAdapter:
    module = LightningAdapter(cls)
    module.begin({"width": width}, 100)
    return module


def batch() -> tuple[Tensor, Tensor]:
    x, y = regression(64).tensors
    return x, y


def test_the_loss_is_that_of_the_modules_own_step() -> None:
    module = adapted(Plain)
    x, y = batch()
    assert module.compute_loss(module.net, (x, y)).item() == pytest.approx((module.net(x) - y).square().mean().item())
    module.net.eval()
    for cls, power in ((Plain, 1), (Returning, 1), (WithoutValidation, 2)):
        module = adapted(cls)
        module.net.eval()
        expected = (module.net(x) - y).abs().pow(power).mean().item()
        assert module.compute_loss(module.net, (x, y)).item() == pytest.approx(expected)


@pytest.mark.parametrize(("cls", "rates", "kind"), [(Plain, [0.03, 0.01], "SGD"), (Listing, [0.01], "Adam")])
def test_its_optimizer_is_kept_and_its_schedule_is_not(cls: type, rates: list[float], kind: str) -> None:
    module = adapted(cls)
    assert [group["lr"] for group in module.param_groups()] == rates
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert type(optimizer).__name__ == kind
    assert scheduler.base_lrs == rates
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 10 for rate in rates])
    assert module.lr == max(rates)
    assert watches_single_steps(module, {}) is None


def test_what_has_no_effect_is_told() -> None:
    told = adapted(Plain).remarks()
    assert len(told) == 2
    assert "Plain's own schedule is replaced by 'linear' with 10% of warm-up" in told[0]
    assert told[1] == "Plain's on_train_epoch_end is not called in a sweep"


def test_all_parameters_are_counted_where_it_does_not_count_them_itself() -> None:
    assert adapted(Plain, 8).net.num_params() == 9 * FEATURES + 8 - FEATURES + 9


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Manual, "takes its optimiser steps itself"),
        (TwoOptimizers, "returns 2 optimizers; a sweep needs one"),
        (Failing, "configure_optimizers fails: AttributeError"),
        (Silent, r"Silent.validation_step gives no loss: it returns NoneType and logs loss"),
        (nn.Linear, "is not a LightningModule that brings its own steps"),
        (Stepless, "Stepless has no training_step"),
    ],
)
def test_what_cannot_be_scaled_is_refused_when_planning(tmp_path: Path, cls: type, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        flops_fit.find_optimal(
            model_cls=cls,
            model_size_param="in_features" if cls is nn.Linear else "width",
            model_kwargs={"out_features": 1} if cls is nn.Linear else None,
            module_cls=LightningAdapter,
            dataset=regression(),
            compute_budgets=[1e6],
            sizes=[2, 4],
            batch_size=8,
            output_dir=tmp_path,
            train=False,
        )


@pytest.mark.slow
def test_a_lightning_module_goes_through_a_sweep(tmp_path: Path) -> None:
    result = flops_fit.find_optimal(
        model_cls=Plain,  # no loss, no num_params()
        model_size_param="width",
        dataset=regression,
        compute_budgets=[1.5e6, 3e6],
        sizes=[4, 8, 16],
        batch_size=8,
        min_steps=20,
        output_dir=tmp_path,
    )
    assert any("own schedule is replaced" in str(w) for w in result.analysis.warnings)
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    assert len(runs) == 6
    for run in runs:
        assert run["loss"] == pytest.approx(run["metrics"]["val_mae"], rel=1e-4)
        assert run["metrics"]["epochs_ended"] == 1
