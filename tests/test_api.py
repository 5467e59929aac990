"""find_optimal on a model and data that no file of the package knows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import flops_fit
from flops_fit import DataError, PlanError, Result, RunError, SweepPlan, find_optimal

BUDGETS = [5e5, 1.5e6, 5e6]


def sweep(output_dir: Path, **changes: object) -> Result | SweepPlan:
    arguments = {
        "model_cls": toy.Net,
        "model_size_param": "width",
        "dataset": toy.regression(),
        "loss_fn": toy.squared_error,
        "compute_budgets": BUDGETS,
        "output_dir": output_dir,
        "sizes": [3, 4, 6, 8],
        "batch_size": 32,
        "min_steps": 5,
        "lr": 1e-2,
        "launcher": "inline",
    }
    return find_optimal(**arguments | changes)


@pytest.mark.slow
def test_a_result_answers_with_a_table_predictions_and_figures(tmp_path: Path) -> None:
    result = sweep(tmp_path / "out")
    assert isinstance(result, Result)
    table = result.chinchilla_table()
    first = ["compute_budget", "num_params", "num_tokens", "loss", "tokens_per_param"]
    assert list(table.columns[:5]) == first
    assert table["compute_budget"].tolist() == [*BUDGETS, 5e7, 5e8]
    assert table["extrapolated"].tolist() == [False, False, False, True, True]
    prediction = result.predict(5e7)
    assert prediction.extrapolation == pytest.approx(10)
    assert result.predict("50 MFLOP") == prediction
    low, high = prediction.ci["num_params"]
    assert low < prediction.num_params < high
    assert result.plan is not None
    assert result.plan.num_experiments == 12
    assert len(result.plot()) >= 3
    again = flops_fit.analyze(tmp_path / "out")
    assert again.predict(5e7).num_params == prediction.num_params
    best = result.analysis.runs.groupby("compute_budget")["loss"].min()
    assert (np.diff(best) < 0).all()


def test_progress_is_logged_for_those_who_listen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="flops_fit.api"):
        sweep(tmp_path / "out", compute_budgets=[4e5, 8e5], sizes=[3, 4, 5])
    told = [r.message for r in caplog.records if "of the compute" in r.message]
    assert told[0] == "0 of 6 runs, 0 % of the compute"
    assert told[-1] == "6 of 6 runs, 100 % of the compute"


def test_the_held_out_part_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = sweep(tmp_path / "out", train=False)
    assert any("every 20th sample is held out" in w for w in plan.warnings)


def test_without_training_the_plan_is_returned_and_nothing_written(tmp_path: Path) -> None:
    plan = sweep(tmp_path / "out", train=False)
    assert isinstance(plan, SweepPlan)
    assert plan.unit == "samples"
    assert plan.flops_rule == "counted"
    assert not (tmp_path / "out").exists()
    for missing in ({"dataset": None}, {"loss_fn": None}):
        assert isinstance(sweep(tmp_path / "out", **missing), SweepPlan)


@pytest.mark.parametrize(
    "data",
    [
        toy.Stream(),
        *(
            pytest.param(data, marks=pytest.mark.slow)
            for data in (toy.regression, toy.loader(), toy.Module(), toy.loader)
        ),
    ],
    ids=["iterable", "function", "loader", "datamodule", "function of a loader"],
)
def test_any_form_of_data(tmp_path: Path, data: object) -> None:
    result = sweep(tmp_path / "out", dataset=data, compute_budgets=[4e5, 8e5], sizes=[3, 4, 5])
    assert isinstance(result, Result)
    assert len(result.analysis.rows) == 6


def test_tokens_are_the_unit_of_integer_sequences(tmp_path: Path) -> None:
    class Bigram(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(16, width)
            self.head = torch.nn.Linear(width, 16)

        def num_params(self) -> int:
            return sum(p.numel() for p in self.parameters())

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(ids)).flatten(0, 1)

    plan = sweep(
        tmp_path / "out",
        model_cls=Bigram,
        dataset=toy.Words(),
        loss_fn=lambda logits, ids: torch.nn.functional.cross_entropy(logits, ids.flatten()),
        train=False,
    )
    assert (plan.unit, plan.tokens_per_sample, plan.flops_rule) == ("tokens", 8, "6nd")


def test_the_budgets_can_be_written_with_units(tmp_path: Path) -> None:
    plan = sweep(tmp_path / "out", compute_budgets=["1e6", "3 MFLOP", 1e7], train=False)
    assert plan.compute_budgets == [1e6, 3e6, 1e7]


def test_an_unknown_option_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="compute_budget"):
        sweep(tmp_path / "out", compute_budget=[1e6])


class NoCount(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(toy.FEATURES, width)


class Zero(toy.Net):
    def num_params(self) -> int:
        return 0


class Fraction(toy.Net):
    def num_params(self) -> float:
        return 12.0


class Triples(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.zeros(3)


BAD = {
    "a model without num_params": ({"model_cls": NoCount}, PlanError, r"NoCount has no method num_params\(\)"),
    "one that returns 0": ({"model_cls": Zero}, PlanError, r"Zero.num_params\(\) returned 0"),
    "one that returns a float": ({"model_cls": Fraction}, PlanError, r"returned 12.0; it must be a positive int"),
    "an instance of a model": ({"model_cls": toy.Net(4)}, PlanError, "instance of Net"),
    "a size parameter it does not take": ({"model_size_param": "depth"}, PlanError, "Net does not take depth"),
    "another argument": ({"model_kwargs": {"dropuot": 0.1}}, PlanError, "Net does not take dropuot"),
    "a loss class": ({"loss_fn": torch.nn.MSELoss}, PlanError, "class MSELoss, not an instance"),
    "a loss of one argument": ({"loss_fn": lambda outputs: outputs.mean()}, PlanError, "cannot be called with"),
    "items that are no pairs": ({"dataset": Triples()}, DataError, "not a pair"),
    "an empty data set": ({"dataset": TensorDataset(torch.zeros(0, 8), torch.zeros(0))}, DataError, "is empty"),
    "too small a data set": ({"dataset": toy.regression(40), "batch_size": 64}, DataError, "fewer than one batch"),
    "no data at all": ({"dataset": 3}, DataError, "int, not a data set"),
    "a data class": ({"dataset": toy.Words}, DataError, "a class, not data"),
    "no budget": ({"compute_budgets": []}, PlanError, "must be a list of positive numbers"),
    "a budget of 0": ({"compute_budgets": [0]}, PlanError, "positive numbers of FLOPs; got 0"),
    "a negative budget": ({"compute_budgets": [-1e6]}, PlanError, "got -1000000"),
    "a budget of NaN": ({"compute_budgets": [float("nan")]}, PlanError, "got nan"),
    "a budget of text": ({"compute_budgets": ["lots"]}, PlanError, "'lots' is not an amount of compute"),
    "budgets too small": ({"compute_budgets": [10.0]}, PlanError, "no size can be trained"),
    "an unknown launcher": ({"launcher": "cloud"}, PlanError, "launcher='cloud' is unknown"),
    "a Trainer option that is ours": ({"trainer": {"max_steps": 3}}, PlanError, "max_steps cannot be set"),
    "a logger that is none": ({"loggers": [{"class_path": "CSVLoger"}]}, PlanError, "did you mean CSVLogger"),
    "loggers that are no list": ({"loggers": {"class_path": "CSVLogger"}}, PlanError, "loggers is dict, not a list"),
    "a metric that is none": ({"metrics": {"a": 3}}, PlanError, "metrics: a is 3, not a mapping with class_path"),
    "a set that is none": ({"val_dataset": {"a": toy.regression(9), "b": 3}}, DataError, "'b' is int, not a data set"),
    "a batch that is no number": ({"batch_size": 0}, DataError, "batch_size=0 must be a positive"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_message_and_writes_nothing(tmp_path: Path, name: str) -> None:
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        sweep(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in str(caught.value)


def test_runs_that_all_fail_say_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="this model always fails"):
        sweep(tmp_path / "out", model_cls=toy.Failing)


@pytest.mark.slow
def test_a_script_is_trained_by_processes_that_load_it_again(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "answered" in done.stdout
    assert "training in this process" not in done.stderr


@pytest.mark.slow
def test_sets_metrics_and_loggers_reach_runs_in_processes_of_their_own(tmp_path: Path) -> None:
    result = sweep(
        tmp_path / "out",
        dataset=toy.regression,
        val_dataset={"near": toy.loader, "far": toy.regression},
        metrics={"mae": {"class_path": "MeanAbsoluteError"}},
        loggers=[{"class_path": "CSVLogger"}],
        launcher="local",
    )
    assert isinstance(result, Result)
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert table[["mae", "loss/far", "mae/far", "tokens_per_second", "train_loss"]].notna().all(axis=None)
    assert table["loss/far"].tolist() == pytest.approx(table["loss"].tolist(), rel=1e-4), "the same data twice"
    for run in table["run_id"]:
        folder = tmp_path / "out" / "runs" / run
        logged = pd.read_csv(folder / "loggers" / "CSVLogger" / "metrics.csv")
        assert logged["train_loss"].notna().sum() == pd.read_csv(folder / "metrics.csv")["train_loss"].notna().sum()
        assert json.loads((folder / "env.json").read_text())["command"]


@pytest.mark.slow
def test_a_call_outside_of_main_is_told_where_to_go(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "put the call under" in done.stderr


SCRIPT = """
import torch
import flops_fit

class Line(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.GELU(), torch.nn.Linear(width, 1))
    def num_params(self):
        return sum(p.numel() for p in self.parameters())
    def forward(self, x):
        return self.layers(x).squeeze(-1)

def data():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, x.sin().prod(dim=1))

def loss(outputs, targets):
    return (outputs - targets).square().mean()

if __name__ == "__main__":
    result = flops_fit.find_optimal(
        model_cls=Line, model_size_param="width", dataset=data, loss_fn=loss, compute_budgets=[1e6, 3e6],
        sizes=[4, 8, 16], batch_size=16, min_steps=5, jobs=2,
    )
    print("answered", result.predict(1e7))
"""


@pytest.mark.slow
def test_data_loader_settings_survive(tmp_path: Path) -> None:
    loader = DataLoader(toy.regression(), batch_size=16, num_workers=0, collate_fn=_doubling)
    result = sweep(tmp_path / "out", dataset=loader, compute_budgets=[4e5, 8e5], sizes=[3, 4, 5])
    assert isinstance(result, Result)
    assert _doubling.calls > 0


def _doubling(items: list) -> list[torch.Tensor]:
    _doubling.calls += 1
    return torch.utils.data.default_collate(items)


_doubling.calls = 0
