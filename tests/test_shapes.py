"""A size may set one argument, a whole row of them, or a depth with its width; runs are named after what they set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import Net, regression, squared_error

from flops_fit import find_optimal, plan_sweep
from flops_fit.errors import PlanError
from flops_fit.examples import GPT
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.runs.directory import SweepDirectory
from flops_fit.shapes import WidthRule, shapes_of

ROWS = [{"d_model": 64, "n_layer": 2}, {"d_model": 64, "n_layer": 4}, {"d_model": 128, "n_layer": 4}]


def test_one_integer_is_the_size_parameter() -> None:
    shapes = shapes_of("width", [4, 8])
    assert (shapes.values, shapes.names, shapes.extra(4)) == ([4, 8], ["width"], None)
    assert (shapes.arguments(4), shapes.name(4)) == ({"width": 4}, "width4")
    assert shapes_of("width", None).values is None


def test_the_rows_of_a_table_are_told_apart_by_the_size_parameter_or_by_their_place() -> None:
    shapes = shapes_of("d_model", ROWS)
    assert shapes.values == [1, 2, 3]
    assert shapes.arguments(2) == {"d_model": 64, "n_layer": 4}
    assert shapes.name(2) == "d_model64_n_layer4"
    own = shapes_of("d_model", ROWS[1:])
    assert own.values == [64, 128]
    assert own.arguments(64) == {"d_model": 64, "n_layer": 4}
    assert shapes_of("size", [dict.fromkeys(("a", "b"), np.int64(i)) for i in (3, 4)]).arguments(1) == {"a": 3, "b": 3}


def test_a_row_that_is_no_name_is_named_by_what_it_holds() -> None:
    names = [shapes_of("n", [{"dims": dims, "act": "re lu"}]).name(1) for dims in ([1, 2], [1, 3], [1, 2])]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("size1_") for name in names)


def test_width_follows_depth_in_whole_heads() -> None:
    rule = WidthRule(param="d_model", aspect_ratio=64, head_dim=128)
    assert [rule.width(depth) for depth in (1, 2, 3, 4, 12, 13)] == [128, 128, 256, 256, 768, 768]
    shapes = shapes_of("n_layer", None, {"param": "d_model", "aspect_ratio": 40, "head_dim": 16})
    assert shapes.arguments(3) == {"n_layer": 3, "d_model": 128}
    assert shapes.name(3) == "n_layer3_d_model128"


@pytest.mark.parametrize(
    ("sizes", "width", "message"),
    [
        ([{"a": 1}, {"b": 2}], None, r"sizes\[1\]=\{'b': 2\}: a table of sizes has the same arguments in every row"),
        ([{"a": 1}, 64], None, r"sizes\[1\]=64: a table of sizes"),
        ([{}], None, r"sizes\[0\]=\{\}"),
        ([{"a": object()}], None, "holds more than plain values"),
        ([{"a": 1}], {"param": "d"}, "nor stand beside a table of sizes"),
        (None, {"param": "n_layer"}, r"width.param='n_layer' follows n_layer"),
        (None, {"param": "d", "head_dim": 0}, "head_dim=0 must be positive"),
        (None, {"parameter": "d"}, "width: .*unexpected keyword argument 'parameter'"),
    ],
)
def test_what_is_no_size_is_refused(sizes: Any, width: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        shapes_of("n_layer", sizes, width)


def test_a_table_is_planned_and_wins_over_the_arguments() -> None:
    p = plan_sweep(GPT, "d_model", {"n_layer": 9, "vocab_size": 64}, [1e13, 3e13, 1e14], sizes=ROWS)
    first = [e for e in p.experiments if e.compute_budget == 1e13]
    assert [e.experiment_id for e in first][:2] == ["C1e+13_d_model64_n_layer2_s0", "C1e+13_d_model64_n_layer4_s0"]
    assert [e.size_kwargs for e in first] == ROWS
    assert first[0].num_params == 64 * 64 + 12 * 2 * 64**2
    assert "model_kwargs also sets n_layer=9; the planned sizes win" in p.warnings
    assert not [w for w in p.warnings if "does not grow" in w]
    again = Experiment.from_dict(first[0].to_dict())
    assert again == first[0]
    assert again.size_arguments("d_model") == ROWS[0]


def test_arguments_of_a_table_that_the_model_does_not_take_are_told() -> None:
    with pytest.raises(PlanError, match="GPT does not take depth; it takes d_model"):
        plan_sweep(GPT, "d_model", None, [1e13], sizes=[{"d_model": 64, "depth": 2}])


def test_depths_are_found_with_the_width_they_ask_for() -> None:
    p = plan_sweep(GPT, "n_layer", {"head_dim": 64}, [1e15, 1e16, 1e17], width={"param": "d_model", "head_dim": 64})
    assert {len([e for e in p.experiments if e.compute_budget == C]) for C in p.compute_budgets} <= {4, 5, 6, 7}
    for e in p.experiments:
        assert e.size_kwargs == {"n_layer": e.size_param_value, "d_model": 64 * e.size_param_value}


def test_without_either_an_experiment_is_written_as_ever() -> None:
    (e,) = plan_sweep(GPT, "d_model", None, [1e11], sizes=[32]).experiments
    assert "size_kwargs" not in e.to_dict()
    assert e.size_arguments("d_model") == {"d_model": 32}


@pytest.mark.slow
def test_other_processes_train_the_rows_of_a_table(tmp_path: Path) -> None:
    rows = [{"width": w, "dropout": 0.125} for w in (2, 4, 6)]
    options: dict[str, Any] = {
        "model_cls": Net,
        "model_size_param": "width",
        "compute_budgets": [1e6, 2e6, 4e6],
        "dataset": regression,
        "loss_fn": squared_error,
        "lr": 1e-2,
        "batch_size": 16,
        "min_steps": 1,
        "sizes": rows,
        "output_dir": tmp_path,
    }
    planned = find_optimal(**options, train=False)
    assert isinstance(planned, SweepPlan)
    find_optimal(**options, launcher="local", jobs=2)
    sweep = SweepDirectory(tmp_path)
    for e in planned.experiments:
        assert "dropout0.125" in e.experiment_id
        assert sweep.run(e.experiment_id).state().value == "completed"
