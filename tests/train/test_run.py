"""One run in one directory: exactly its budget, and the same numbers however often it was killed."""

from __future__ import annotations

import json
import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import toy

from flops_fit.errors import RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory, RunState
from flops_fit.train.main import train_directory
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import PythonRecipe, run_parts, write_run_config
from flops_fit.train.run import train_run

STEPS, BATCH = 40, 16


def experiment(model: type = toy.Net, steps: int = STEPS, **changes: object) -> Experiment:
    values = {
        "experiment_id": "C1e+06_width8_s0",
        "compute_budget": 1e6,
        "size_param_value": 8,
        "num_params": model(8).num_params(),
        "num_tokens": steps * BATCH,
        "flops_per_token": 100.0,
        "steps": steps,
    }
    return Experiment(**values | changes)


def recipe(model: type = toy.Net, trainer: dict | None = None, **model_kwargs: object) -> PythonRecipe:
    return PythonRecipe(
        model_cls=model,
        model_kwargs=model_kwargs,
        loss_fn=toy.squared_error,
        dataset=toy.regression,
        batch_size=BATCH,
        module_kwargs={"lr": 1e-2},
        trainer_kwargs={"accelerator": "cpu"} | (trainer or {}),
    )


FACTS = {"size_param": "width", "batch_size": BATCH, "checkpoint_interval": 60.0}


def write(folder: Path, planned: Experiment, source: PythonRecipe, interval: float = 60.0) -> RunDirectory:
    run = RunDirectory(folder / planned.experiment_id)
    write_run_config(run, planned, source.to_config(), FACTS | {"checkpoint_interval": interval})
    return run


def train(folder: Path, planned: Experiment | None = None, source: PythonRecipe | None = None) -> RunDirectory:
    planned, source = planned or experiment(), source or recipe()
    run = write(folder, planned, source)
    train_run(run, planned, partial(run_parts, source, FACTS))
    return run


def final_weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoint, weights_only=True)["state_dict"]


def test_a_run_sees_exactly_its_tokens_and_is_evaluated_with_its_final_weights(tmp_path: Path) -> None:
    run = train(tmp_path)
    assert run.state() is RunState.COMPLETED
    result = run.result()
    assert (result["steps"], result["num_tokens"]) == (STEPS, STEPS * BATCH)
    last = run.metrics.read_text().splitlines()[-1].split(",")
    assert last[:2] == [str(STEPS), str(STEPS * BATCH)]
    net = toy.Net(8)
    net.load_state_dict({k.removeprefix("net."): v for k, v in final_weights(run).items() if k.startswith("net.")})
    held_out = recipe().data().val
    outputs, targets = zip(*[(net.eval()(x), y) for x, y in held_out], strict=True)
    loss = toy.squared_error(torch.cat(outputs), torch.cat(targets)).item()
    assert result["loss"] == pytest.approx(loss, rel=1e-6)


def test_the_rate_ends_at_zero_at_the_runs_own_horizon(tmp_path: Path) -> None:
    run = train(tmp_path)
    rows = [line.split(",") for line in run.metrics.read_text().splitlines()[1:-1]]
    rates = [float(row[2]) for row in rows]
    assert len(rates) == STEPS
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(1e-2 / 4)  # a tenth of the run is warm-up
    assert rates[-1] == pytest.approx(1e-2 / 36)


def test_optimizer_state_is_dropped_after_success(tmp_path: Path) -> None:
    run = train(tmp_path)
    assert "optimizer_states" not in torch.load(run.checkpoint, weights_only=True)


def test_a_completed_run_is_left_alone(tmp_path: Path) -> None:
    run = train(tmp_path)
    before = run.metrics.stat().st_mtime_ns
    train(tmp_path)
    assert run.metrics.stat().st_mtime_ns == before


def test_training_goes_on_after_a_stop_as_if_nothing_had_been(tmp_path: Path) -> None:
    source = recipe(dropout=0.3)
    whole = train(tmp_path / "whole", source=source)
    run = write(tmp_path / "stopped", experiment(), source)

    for stop_at in (7, 8, 31):
        parts = run_parts(source, FACTS)
        parts.trainer["callbacks"] = [_StopAt(stop_at)]
        assert train_run(run, experiment(), lambda parts=parts: parts) is RunState.INTERRUPTED
        assert run.state() is RunState.INTERRUPTED
    assert train_run(run, experiment(), partial(run_parts, source, FACTS)) is RunState.COMPLETED
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    for name, weights in final_weights(whole).items():
        assert torch.equal(weights, final_weights(run)[name]), name


class _StopAt:
    """Built per test: a callback that sends this process the signal a scheduler would."""

    def __new__(cls, step: int):
        import lightning.pytorch as pl

        class Stop(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                if trainer.global_step == step:
                    os.kill(os.getpid(), signal.SIGTERM)

        return Stop()


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    parts = train(tmp_path / "parts", source=recipe(trainer={"accumulate_grad_batches": 4}))
    assert parts.result()["num_tokens"] == STEPS * BATCH
    assert len(parts.metrics.read_text().splitlines()) == len(whole.metrics.read_text().splitlines())
    assert parts.result()["loss"] == pytest.approx(whole.result()["loss"], rel=1e-4)


def test_a_diverged_run_is_kept_and_flagged(tmp_path: Path) -> None:
    run = train(tmp_path, source=recipe(toy.Exploding))
    assert run.state() is RunState.DIVERGED
    assert "loss is" in run.details()["error"]


def test_a_run_that_ends_above_where_it_began_has_diverged(tmp_path: Path) -> None:
    source = recipe()
    source.module_kwargs = {"lr": 30.0}
    run = train(tmp_path, source=source)
    assert run.state() is RunState.DIVERGED
    assert re.search(r"the loss ended at \S+, above the \S+ it started from", run.details()["error"])
    assert run.checkpoint.exists()


def test_a_failing_run_keeps_its_traceback(tmp_path: Path) -> None:
    run = write(tmp_path, experiment(), recipe(toy.Failing))
    assert train_directory(str(run.path)) == 1
    assert run.state() is RunState.FAILED
    assert run.details()["error"] == "RuntimeError: this model always fails"
    assert "in forward" in run.details()["traceback"]


def test_a_model_of_another_size_than_planned_is_an_error(tmp_path: Path) -> None:
    run = train(tmp_path, experiment(num_params=5))
    assert run.state() is RunState.FAILED
    assert "the plan says 5" in run.details()["error"]


def test_other_tokens_than_planned_are_an_error_not_a_result(tmp_path: Path) -> None:
    run = train(tmp_path, experiment(num_tokens=STEPS * BATCH + 1))
    assert run.state() is RunState.FAILED
    assert f"not on the {STEPS * BATCH + 1} planned" in run.details()["error"]


def test_a_run_killed_between_its_last_step_and_its_result_is_only_evaluated(tmp_path: Path) -> None:
    source = recipe(dropout=0.3)
    run = train(tmp_path, source=source)
    before = run.metrics.read_bytes()
    (run.path / "result.json").unlink()
    assert run.state() is RunState.INTERRUPTED
    assert train_run(run, experiment(), partial(run_parts, source, FACTS)) is RunState.COMPLETED
    assert run.metrics.read_bytes() == before


def test_one_process_at_a_time(tmp_path: Path) -> None:
    from flops_fit.runs.files import exclusive

    run = write(tmp_path, experiment(), recipe())
    with exclusive(run.lock, "the run"), pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        train_run(run, experiment(), partial(run_parts, recipe(), FACTS))


def test_a_run_of_live_objects_says_who_can_train_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "live")
    source = recipe()
    source.loss_fn = lambda outputs, targets: (outputs - targets).abs().mean()
    assert source.to_config() is None
    write_run_config(run, experiment(), source.to_config(), FACTS)
    assert train_directory(str(run.path)) == 1
    assert "run your script or notebook again" in run.details()["error"]


def test_the_config_is_complete_and_says_what_it_is(tmp_path: Path) -> None:
    run = write(tmp_path, experiment(), recipe())
    config = json.loads(run.config.read_text())
    assert config["schema_version"] == 1
    assert config["recipe"]["model_cls"] == "toy:Net"
    assert config["experiment"]["num_tokens"] == STEPS * BATCH


def test_further_validation_metrics_reach_the_result(tmp_path: Path) -> None:
    source = recipe()
    source.module_cls = _WithMetric
    run = train(tmp_path, source=source)
    assert run.result()["metrics"]["absolute_error"] > 0


class _WithMetric(ScalingModule):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("absolute_error", (self(batch[0]) - batch[1]).abs().mean(), on_epoch=True, batch_size=len(batch[0]))


def test_a_logger_of_the_users_is_shown_every_row(tmp_path: Path) -> None:
    run = write(tmp_path, experiment(), recipe())
    spec = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
    facts = FACTS | {"loggers": [spec], "group": "sweep"}
    source = recipe()
    source.module_cls = _WithMetric
    assert train_run(run, experiment(), partial(run_parts, source, facts)) is RunState.COMPLETED, run.details()
    shown = [path.read_text() for path in (run.path / "loggers").rglob("metrics.csv")]
    assert len(shown) == 1
    lines = shown[0].splitlines()
    assert {"train_loss", "val_loss", "absolute_error", "num_tokens", "lr"} <= set(lines[0].split(","))
    assert len(lines) >= len(run.metrics.read_text().splitlines())
