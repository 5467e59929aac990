"""What the plan decides cannot be set on the Trainer, and the error names the key that is ours."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch import callbacks

from flops_fit.errors import PlanError
from flops_fit.train.guard import OWNED, check_trainer


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"max_steps": 3}, "sweep.compute_budgets"),
        ({"max_epochs": 1}, "sweep.compute_budgets"),
        ({"max_time": "00:01:00:00"}, "sweep.compute_budgets"),
        ({"min_epochs": 1}, "sweep.compute_budgets"),
        ({"limit_train_batches": 5}, "sweep.compute_budgets"),
        ({"overfit_batches": 1}, "sweep.compute_budgets"),
        ({"fast_dev_run": True}, "sweep.compute_budgets"),
        ({"logger": True}, "sweep.loggers"),
        ({"logger": [object()]}, "sweep.loggers"),
        ({"enable_checkpointing": True}, "sweep.checkpoint_interval"),
        ({"default_root_dir": "here"}, "sweep.output_dir"),
        ({"barebones": True}, "the evaluation"),
        ({"val_check_interval": 0.5}, "val_dataset"),
        ({"check_val_every_n_epoch": 2}, "val_dataset"),
    ],
)
def test_an_argument_that_is_ours_is_refused_with_our_key(arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_trainer(arguments)
    assert f"trainer.{next(iter(arguments))} cannot be set: " in str(caught.value)
    assert key in str(caught.value)
    assert "hint: remove it" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "precision": "bf16-mixed", "num_nodes": 2},
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5, "deterministic": True, "limit_val_batches": 10},
        {"callbacks": [callbacks.TQDMProgressBar(), callbacks.ModelSummary()]},
        {"callbacks": callbacks.LambdaCallback()},
        {"callbacks": [{"class_path": "my_package.Missing"}, {"class_path": "nonsense"}, {"init_args": {}}]},
        {"logger": False, "enable_checkpointing": False, "use_distributed_sampler": False, "max_steps": -1},
        {name: parameter.default for name, parameter in inspect.signature(pl.Trainer).parameters.items()},
    ],
)
def test_everything_else_is_the_users(arguments: dict[str, Any]) -> None:
    check_trainer(arguments)


class Patient(callbacks.EarlyStopping):
    """A subclass of the user's own."""


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.EarlyStopping("val_loss"),
        Patient("val_loss"),
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}},
        {"class_path": "EarlyStopping"},
        {"class_path": f"{__name__}.Patient"},
    ],
)
def test_early_stopping_is_refused_with_the_reason(callback: Any) -> None:
    for given in ([callback], callback):
        with pytest.raises(PlanError, match="a run cut short breaks the IsoFLOP constraint"):
            check_trainer({"callbacks": given})


@pytest.mark.parametrize(
    ("callback", "key"),
    [
        (callbacks.ModelCheckpoint(), "sweep.checkpoint_interval"),
        (callbacks.OnExceptionCheckpoint("."), "sweep.checkpoint_interval"),
        (callbacks.Timer("00:00:01:00"), "sweep.compute_budgets"),
        (callbacks.GradientAccumulationScheduler({4: 2}), "trainer.accumulate_grad_batches"),
        (callbacks.BatchSizeFinder(), "batch_size"),
        (callbacks.LearningRateFinder(), "the model's lr"),
        (callbacks.LearningRateMonitor(), "sweep.loggers"),
    ],
)
def test_other_callbacks_that_would_change_a_run_name_our_key(callback: Any, key: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_trainer({"callbacks": [callbacks.ModelSummary(), callback]})
    assert f"trainer.callbacks cannot hold {type(callback).__name__}: " in str(caught.value)
    assert key in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    arguments = {"max_steps": 3, "logger": True, "callbacks": [Patient("val_loss"), callbacks.ModelCheckpoint()]}
    with pytest.raises(PlanError) as caught:
        check_trainer(arguments)
    message = str(caught.value)
    assert all(word in message for word in ("max_steps", "logger", "Patient", "ModelCheckpoint", "remove them"))


def test_every_argument_that_is_ours_is_one_of_lightnings() -> None:
    assert set(OWNED) <= set(inspect.signature(pl.Trainer).parameters)
