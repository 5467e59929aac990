"""Plain values become objects, or one message says why not."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from flops_fit.errors import PlanError
from flops_fit.train.class_path import build, check_arguments, find_class


def test_a_class_is_found_by_its_path_or_at_home() -> None:
    assert find_class({"class_path": "torch.nn.Linear"}, "it", nn.Module) is nn.Linear
    assert find_class({"class_path": "Linear"}, "it", nn.Module, "torch.nn") is nn.Linear
    assert find_class(OrderedDict(class_path="collections.OrderedDict"), "it", dict) is OrderedDict


def test_an_object_is_built_with_its_arguments() -> None:
    made = build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}, "it", nn.Module)
    assert made.weight.shape == (3, 2)
    assert isinstance(build({"class_path": "torch.nn.ReLU", "init_args": None}, "it", nn.Module), nn.ReLU)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "it is 3, not a mapping with class_path"),
        ({"init_args": {}}, "not a mapping with class_path"),
        ({"class_path": 3}, "not a mapping with class_path"),
        ({"class_path": "Linear"}, "it: the path has no Linear"),
        ({"class_path": "torch.nn.Linaer"}, "torch.nn has no Linaer\n\nhint: did you mean Linear?"),
        ({"class_path": "torch.nope.Linear"}, "torch.nope.Linear cannot be imported"),
        ({"class_path": "torch.nn.functional.relu"}, "is not a Module\n\nhint: name a subclass of torch.nn"),
        ({"class_path": "torch.Generator"}, "torch.Generator is not a Module"),
        ({"class_path": "torch.nn.ReLU", "init_arg": {}}, "the key 'init_arg'\n\nhint: did you mean init_args?"),
        ({"class_path": "torch.nn.ReLU", "init_args": {1: 2}}, "init_args is {1: 2}, not a mapping of names to values"),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_feature": 1}}, "hint: did you mean in_features?"),
        ({"class_path": "torch.nn.Linear"}, "Linear: missing a required argument: 'in_features'"),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": "x", "out_features": 1}},
            "it: Linear cannot be built: TypeError",
        ),
    ],
)
def test_what_cannot_be_built_is_told(spec: Any, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        build(spec, "it", nn.Module)
    assert message in str(caught.value)


class Open:
    """Hands everything on."""

    def __init__(self, project: str = "", **rest: Any) -> None:
        pass


def test_where_anything_is_taken_only_slips_are_refused() -> None:
    check_arguments(Open, {"entity": "a", "notes": "b"}, "it")
    with pytest.raises(PlanError, match="did you mean project"):
        check_arguments(Open, {"projct": "a"}, "it")


def test_arguments_that_are_added_count_as_given() -> None:
    with pytest.raises(PlanError, match="missing a required argument"):
        check_arguments(nn.Linear, {"in_features": 1}, "it")
    check_arguments(nn.Linear, {"in_features": 1}, "it", {"out_features": 2})
    check_arguments(torch.Generator, None, "it")  # cannot be inspected
