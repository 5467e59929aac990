"""What planning hands to training holds together, and survives being written down."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from torch import nn

from flops_fit.errors import DataError, FitError, FlopsFitError, PlanError, RunError
from flops_fit.experiment import DroppedCell, Experiment, SweepPlan

EXPERIMENT = Experiment(
    experiment_id="C1e+18_width64_s0",
    compute_budget=1e18,
    size_param_value=64,
    num_params=10_000_000,
    num_tokens=200_000_000,
    flops_per_token=6e7,
    steps=1000,
    num_params_total=12_000_000,
)


def plan(**changes: object) -> SweepPlan:
    values = {
        "experiments": [EXPERIMENT, replace(EXPERIMENT, experiment_id="b", num_tokens=400_000_000)],
        "size_param": "width",
        "model_cls_name": "Net",
        "model_kwargs": {"depth": 2},
        "compute_budgets": [1e18],
        "dropped": [DroppedCell(size=128, reason="too large", compute_budget=1e18)],
    }
    return SweepPlan(**values | changes)  # type: ignore[arg-type]


def test_derived_values_are_derived() -> None:
    assert EXPERIMENT.tokens_per_param == 20
    assert EXPERIMENT.flops == 1.2e16
    assert plan().num_experiments == 2
    assert plan().total_flops == pytest.approx(3.6e16)


def test_an_experiment_survives_being_written_down() -> None:
    assert Experiment.from_dict(json.loads(json.dumps(EXPERIMENT.to_dict()))) == EXPERIMENT
    assert EXPERIMENT.to_dict()["tokens_per_param"] == 20


def test_an_experiment_is_never_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EXPERIMENT.num_tokens = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "change", [{"num_params": 0}, {"num_tokens": -1}, {"flops_per_token": 0.0}, {"flops_per_token": float("nan")}]
)
def test_an_experiment_of_nothing_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=r"C1e\+18_width64_s0.*must be positive") as caught:
        replace(EXPERIMENT, **change)  # type: ignore[arg-type]
    assert "raise the budget or drop the size" in str(caught.value)


def test_a_plan_is_written_in_plain_types() -> None:
    kwargs = {"activation": nn.GELU, "norm": nn.LayerNorm(2), "sizes": (1, 2), "nested": {"p": 0.1}, "bias": None}
    values = json.loads(json.dumps(plan(model_kwargs=kwargs).to_dict()))
    assert values["model_kwargs"] == {
        "activation": "GELU",
        "norm": "LayerNorm",
        "sizes": [1, 2],
        "nested": {"p": 0.1},
        "bias": None,
    }
    assert [Experiment.from_dict(e) for e in values["experiments"]] == plan().experiments
    assert values["dropped"][0]["reason"] == "too large"
    assert values["num_experiments"] == 2


def test_a_frame_has_a_row_for_each_experiment() -> None:
    frame = plan().to_frame()
    assert list(frame["num_tokens"]) == [200_000_000, 400_000_000]
    assert {"experiment_id", "compute_budget", "tokens_per_param", "flops", "seed"} <= set(frame.columns)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(PlanError, ValueError), (DataError, ValueError), (RunError, RuntimeError), (FitError, ValueError)],
)
def test_errors_are_one_family_and_say_what_to_do(error: type[FlopsFitError], builtin: type[Exception]) -> None:
    caught = error("the width is 0", hint="give a positive width")
    assert isinstance(caught, FlopsFitError)
    assert isinstance(caught, builtin)
    assert str(caught) == "the width is 0\n\nhint: give a positive width"
    assert (caught.problem, caught.hint) == ("the width is 0", "give a positive width")
    assert str(error("the width is 0")) == "the width is 0"
