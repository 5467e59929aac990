"""A run's record says how it was trained, where and how fast; what was not measured is missing, never nothing."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import toy
from test_evaluate import trainer as quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

from flops_fit.examples import GPT, next_token_loss
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.runs.directory import RunDirectory, SweepDirectory
from flops_fit.runs.files import CsvLog
from flops_fit.runs.foreign import read_table
from flops_fit.runs.table import COLUMNS, read_runs, write_runs
from flops_fit.train.attempt import RunParts
from flops_fit.train.callbacks import METRICS
from flops_fit.train.data import SweepData, sweep_data
from flops_fit.train.environment import origin
from flops_fit.train.evaluate import evaluate
from flops_fit.train.main import train_directory
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import PythonRecipe, write_run_config
from flops_fit.train.record import Effort, is_compiled, peak_memory_bytes, peak_of_card, run_record, samples_in_pass

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
]

STEPS, BATCH, LENGTH = 20, 8, 8


class Bytes(toy.Words):
    """Its tokens are pairs of bytes."""

    bytes_per_token = 2.0


def experiment(width: int = 16, budget: float = 1e6) -> Experiment:
    count = GPT(d_model=width, vocab_size=16, n_layer=1).num_params()
    return Experiment(
        experiment_id=f"C{budget:g}_d_model{width}_s3",
        compute_budget=budget,
        size_param_value=width,
        num_params=count,
        num_tokens=STEPS * BATCH * LENGTH,
        flops_per_token=6.0 * count,
        seed=3,
        steps=STEPS,
        num_params_total=count,
    )


def net(d_model: int) -> nn.Module:
    return GPT(d_model=d_model, vocab_size=16, n_layer=1)


def trained(folder: Path, planned: Experiment | None = None, data: SweepData | None = None, **facts: Any) -> Any:
    """A run trained by a bare Trainer, and its record."""
    planned = planned or experiment()
    run = RunDirectory(folder / "runs" / planned.experiment_id)
    run.create()
    module = ScalingModule(net, next_token_loss, lr=0.01, weight_decay=0.1)
    parts = RunParts(
        module=module,
        data=data or sweep_data(Bytes(), toy.Words(50), BATCH),
        size_param="d_model",
        batch_size=BATCH,
        facts={"size_param": "d_model", "batch_size": BATCH, "checkpoint_interval": 60.0, "unit": "tokens"} | facts,
    )
    module.begin({"d_model": planned.size_param_value}, STEPS)
    effort = Effort()
    fitted = quiet_trainer(max_steps=STEPS, max_epochs=-1, callbacks=[effort], gradient_clip_val=1.0)
    loader = parts.data.batches(BATCH, STEPS, 3, start=0, rank=0, world=1, accumulate=1)
    fitted.fit(module, train_dataloaders=loader)
    evaluation = evaluate(fitted, module, parts.data)
    log = CsvLog(run.metrics, METRICS)
    for step in range(1, STEPS + 1):
        log.append({"step": step, "train_loss": 3 - 0.1 * step + (1.0 if step > 15 else 0.0)})
    log.append({"step": STEPS, "val_loss": evaluation.loss})
    record = run_record(
        run,
        planned,
        parts,
        fitted,
        evaluation=evaluation,
        loader=loader,
        accumulate=1,
        effort=effort,
        largest_gradient_norm=1.5,
    )
    return run, record


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("run"))[1]


def test_a_record_is_plain_values_and_holds_the_plan(record: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record)) == record
    planned = experiment().to_dict()
    assert {k: record[k] for k in planned} == planned
    assert "checkpoint_interval" not in record


def test_the_loss_is_told_in_every_unit(record: dict[str, Any]) -> None:
    assert record["bits_per_token"] == pytest.approx(record["loss"] / math.log(2))
    assert record["bits_per_byte"] == pytest.approx(record["bits_per_token"] / 2)
    assert record["evaluation_tokens"] == 50 * LENGTH


def test_the_training_loss_is_smoothed_at_its_end_and_its_minimum(record: dict[str, Any]) -> None:
    assert record["train_loss"] == pytest.approx(2.0)
    assert record["train_loss_min"] == pytest.approx(1.5)


def test_tokens_steps_and_epochs_are_known(record: dict[str, Any]) -> None:
    assert (record["steps"], record["batch_tokens"], record["num_tokens"]) == (STEPS, 64, STEPS * 64)
    assert record["epochs"] == pytest.approx(STEPS * BATCH / 2000)
    assert record["unique_tokens"] == STEPS * 64
    assert (record["micro_batch"], record["accumulate"], record["world_size"]) == (BATCH, 1, 1)


def test_compute_is_told_by_formula_and_counted(record: dict[str, Any], tmp_path: Path) -> None:
    assert record["flops_6nd"] == 6 * record["num_params"] * record["num_tokens"]
    assert 0.5 < record["flops_counted"] / record["flops_6nd"] < 5
    by_plan = trained(tmp_path, flops_rule="counted")[1]
    assert by_plan["flops_counted"] == by_plan["flops"], "the plan has counted it"


def test_the_recipe_is_complete(record: dict[str, Any]) -> None:
    assert (record["schedule"], record["horizon_steps"], record["warmup_steps"]) == ("linear", STEPS, 2)
    assert record["decay_steps"] == STEPS - 2
    assert (record["optimizer"], record["lr"], record["clip"], record["clip_algorithm"]) == ("AdamW", 0.01, 1.0, "norm")
    rates = {group["lr"] for group in net(16).param_groups(0.01)}
    assert {group["lr"] for group in record["param_groups"]} == rates, "peak rates, not those of the last step"
    assert sum(group["num_params"] for group in record["param_groups"]) == sum(p.numel() for p in net(16).parameters())
    assert record["param_groups"][0]["betas"] == [0.9, 0.95]
    assert record["param_groups"][0]["weight_decay"] == 0.1
    assert record["seed"] == 3
    assert len(record["data_fingerprint"]) >= 64


def test_speed_and_machine_are_measured_and_what_was_not_is_missing(record: dict[str, Any]) -> None:
    assert 0 < record["seconds"] < 60
    assert record["cpu_seconds"] > 0
    assert record["tokens_per_second"] == pytest.approx(record["num_tokens"] / record["seconds"], rel=0.05)
    assert record["flops_per_second"] == pytest.approx(record["flops_counted"] / record["seconds"], rel=0.05)
    assert record["peak_flops_per_second"] is None
    assert record["utilisation"] is None
    assert record["peak_memory_bytes"] > 1e7
    assert record["device"] == "cpu"
    assert record["device_name"]
    assert record["precision"] == "32-true"
    assert record["threads"] >= 1
    assert record["is_compiled"] is False
    assert all(record[name] for name in ("python", "torch", "lightning", "flops_fit"))


def test_samples_have_no_bits_and_data_without_a_length_no_epochs(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self):
            return iter(toy.Words(400))

    data = sweep_data(Stream(), toy.Words(50), BATCH)
    record = trained(tmp_path, data=data, unit="samples")[1]
    assert record["bits_per_token"] is None
    assert record["bits_per_byte"] is None
    assert record["epochs"] is None
    assert record["unique_tokens"] == record["num_tokens"]


# What a scaling study has to know of every run to be repeated, checked and fitted again under another convention.
LISTED = (
    "num_params_matmul num_params_total num_params_non_embedding num_params size_param size_param_value"
    " compute_budget flops flops_6nd flops_counted num_tokens steps batch_tokens batch_size epochs unique_tokens"
    " schedule horizon_steps warmup_steps decay_steps lr param_groups optimizer clip seed"
    " data_fingerprint data_notes evaluation_tokens loss bits_per_token bits_per_byte train_loss train_loss_min"
    " largest_gradient_norm seconds cpu_seconds tokens_per_second flops_per_second peak_flops_per_second utilisation"
    " device_name precision threads is_compiled python torch lightning flops_fit origin state metrics notes"
).split()


def test_a_run_from_the_command_records_all_that_is_listed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "C1e+06_width8_s0")
    planned = replace(experiment(), experiment_id=run.run_id, size_param_value=8, num_tokens=STEPS * BATCH)
    planned = replace(planned, num_params=toy.Net(8).num_params())
    recipe = PythonRecipe(
        model_cls=toy.Net,
        model_kwargs={},
        loss_fn=toy.squared_error,
        dataset=toy.regression,
        batch_size=BATCH,
        module_kwargs={"lr": 1e-2},
    )
    facts = {"size_param": "width", "batch_size": BATCH, "checkpoint_interval": 60.0, "unit": "samples"}
    write_run_config(run, planned, recipe.to_config(), facts | {"origin": origin(tmp_path)})
    assert train_directory(run.path) == 0
    found = json.loads((run.path / "result.json").read_text())
    assert not set(LISTED) - set(found)
    assert found["state"] == "completed"
    assert set(found["origin"]) == {"git", "command"}
    assert "is held out" in found["data_notes"][0]
    assert found["largest_gradient_norm"] > 0
    assert found["metrics_sha256"]


def test_repeated_data_counts_once() -> None:
    data = sweep_data(toy.regression(40), toy.regression(10), 8)
    assert samples_in_pass(data.num_samples, object()) == 40
    own = sweep_data(DataLoader(toy.Stream(), batch_size=8), toy.regression(10))
    repeated = own.batches(8, 600, 0, start=0, rank=0, world=1, accumulate=2)
    assert samples_in_pass(own.num_samples, repeated) is None
    for _ in repeated:
        pass
    assert samples_in_pass(own.num_samples, repeated) == 4000


def test_the_clocks_of_a_run_go_on_after_a_resume() -> None:
    first = Effort()
    assert first.state_dict() == {"seconds": None, "cpu_seconds": None}
    nothing: Any = None
    first.on_train_start(nothing, nothing)
    _use_the_processor()
    saved = first.state_dict()
    assert saved["seconds"] > 0
    assert saved["cpu_seconds"] > 0
    again = Effort()
    again.recall({"callbacks": {again.state_key: saved}})
    assert again.state_dict() == saved
    again.on_train_start(nothing, nothing)
    _use_the_processor()
    again.on_train_end(nothing, nothing)
    assert again.seconds is not None
    assert again.seconds > saved["seconds"]
    ended = again.state_dict()
    _use_the_processor()
    assert again.state_dict() == ended, "evaluation is not training"
    again.recall({})
    assert again.state_dict() == ended


def _use_the_processor() -> None:
    before = os.times()
    while os.times().user - before.user + os.times().system - before.system < 0.02:
        sum(range(10_000))


class Halving(ScalingModule):
    """A schedule and an optimizer of its own."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=torch.tensor(0.5))
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10)]


def test_an_optimizer_of_the_users_own_is_recorded_as_it_is() -> None:
    from flops_fit.train.record import _recipe

    module = Halving(toy.Net, toy.squared_error, lr=1e-2)
    module.begin({"width": 8}, STEPS)
    found = _recipe(module, quiet_trainer())
    assert (found["optimizer"], found["schedule"], found["warmup_steps"]) == ("SGD", "Halving, its own", None)
    assert [g["lr"] for g in found["param_groups"]] == [0.5]
    assert found["param_groups"][0]["betas"] is None
    assert found["clip"] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_part_is_noticed() -> None:
    plain, compiled = toy.Net(4), toy.Net(4)
    compiled.layers.compile()
    assert not is_compiled(plain)
    assert is_compiled(compiled)
    assert is_compiled(torch.compile(plain))


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H200", torch.bfloat16, 989.5e12),
        ("NVIDIA H200", torch.float32, 67e12),
        ("NVIDIA L40S", torch.bfloat16, None),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
    ],
)
def test_the_peak_of_a_card_is_known_or_missing(name: str, dtype: torch.dtype, expected: float | None) -> None:
    assert peak_of_card(name, dtype, lambda: 312e12) == expected


def test_a_card_that_lightning_cannot_read_has_no_peak() -> None:
    def fails() -> float:
        raise IndexError("list index out of range")

    assert peak_of_card("NVIDIA GeForce RTX", torch.float32, fails) is None


def test_memory_is_that_of_this_process() -> None:
    assert (peak_memory_bytes(torch.device("cpu")) or 0) > 1e7


def test_the_runs_table_shows_what_training_recorded(record: dict[str, Any], tmp_path: Path) -> None:
    cells = [(width, steps) for width in (8, 12, 16) for steps in (20, 40)]
    planned = [replace(experiment(width, 1e6 * steps), num_tokens=64 * steps, steps=steps) for width, steps in cells]
    sweep = SweepDirectory(tmp_path)
    plan = SweepPlan(
        experiments=planned, size_param="d_model", model_cls_name="GPT", model_kwargs={}, compute_budgets=[2e7, 4e7]
    )
    sweep.open(plan.to_dict(), {})
    for i, e in enumerate(planned[:-1]):
        run = sweep.run(e.experiment_id)
        run.create()
        CsvLog(run.metrics, METRICS).append({"step": STEPS, "val_loss": 2 + 0.1 * i})
        run.finish(record | e.to_dict() | {"metrics": {"accuracy": 0.25, "loss/far": 9.0}})
    table = read_runs(sweep)
    assert list(table.columns[: len(COLUMNS)]) == COLUMNS
    shown = "accuracy loss/far tokens_per_second epochs bits_per_byte train_loss optimizer device lr batch_size".split()
    assert set(shown) <= set(table.columns)
    assert table["state"].tolist() == ["completed"] * 5 + ["pending"]
    assert not {"experiment_id", "metrics_sha256", "param_groups"} & set(table.columns)
    assert table["schema_version"].tolist() == [1] * 6
    write_runs(sweep, table)
    assert pd.read_csv(tmp_path / "runs.csv")["loss"].tolist()[:5] == table["loss"].tolist()[:5]
    foreign = read_table(tmp_path / "runs.csv").frame
    assert foreign["loss"].tolist() == pytest.approx(table["loss"].tolist()[:5], rel=1e-12)
    for name in ("num_params", "num_tokens", "flops", "compute_budget"):
        assert foreign[name].tolist() == table[name].tolist()[:5]
