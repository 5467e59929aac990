"""Sizes that cannot answer are left out or warned about, and every reason is told."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.experiment import SweepPlan
from flops_fit.plan.planner import make_planner, plan_sweep
from flops_fit.plan.sizes import SizeChoice
from flops_fit.shapes import Shapes


class Net(nn.Module):
    """N = 12 width^2, less where the width is odd."""

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide {width}")
        if width > 5000:
            raise OverflowError(f"{width} is too much")
        self.layer = nn.Linear(width if width % 2 == 0 else width // 2, 12 * width, bias=False)

    def num_params(self) -> int:
        return self.layer.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def plan(budgets: Any = (1e15, 3e15, 1e16), **options: Any) -> SweepPlan:
    return plan_sweep(Net, "width", options.pop("model_kwargs", None), budgets, **options)


def with_data(num_samples: int | None, budgets: Any = (1e15, 3e15, 1e16), **options: Any) -> SweepPlan:
    settings: dict[str, Any] = {
        "choice": SizeChoice(),
        "shapes": Shapes(size_param="width"),
        "model_name": "Net",
        "model_kwargs": {},
        "loss": None,
        "example_batch": None,
        "batch_size": 64,
        "unit": None,
        "flops": None,
        "flops_per_param_per_token": 6.0,
        "seeds": [0],
        "seeds_at": "small",
        "min_steps": 150,
    }
    return make_planner(Net, budgets, num_samples=num_samples, **settings | options).grid()


def cells(plan: SweepPlan, C: float) -> list[int]:
    return [e.num_params for e in plan.experiments if e.compute_budget == C]


# Sizes ---------------------------------------------------------------------------------------------------------------


def test_sizes_of_nearly_as_many_parameters_are_one_with_the_reason() -> None:
    p = plan(sizes=[300, 302, 308, 400, 600])
    assert [e.size_param_value for e in p.experiments if e.compute_budget == 1e15] == [300, 308, 400, 600]
    (dropped,) = [d for d in p.dropped if d.size == 302]
    assert dropped.compute_budget is None
    assert dropped.num_params == 12 * 302**2
    assert dropped.reason == "its 1.09M parameters are within 3 % of the 1.08M of size 300, which stands for both"


def test_a_model_that_does_not_grow_with_its_size_is_warned_about() -> None:
    p = plan(sizes=[300, 401, 500, 600])
    (warning,) = [w for w in p.warnings if "does not grow" in w]
    assert warning == (
        "the model does not grow with width: 1.08M parameters at 300, 962k at 401; check how the size enters the model"
    )
    assert not [w for w in plan().warnings if "does not grow" in w]


def test_sizes_that_all_fail_give_the_first_reason_of_each_kind_with_its_value() -> None:
    with pytest.raises(PlanError) as caught:
        plan(sizes=[7, 9, 11, 5001, 5003, 6000], model_kwargs={"heads": 2})
    reasons = caught.value.problem.partition(": ")[2].split("; ")
    assert reasons == [
        "size 7 cannot be built: ValueError: 2 heads do not divide 7",
        "size 6000 cannot be built: OverflowError: 6000 is too much",
    ]
    with pytest.raises(PlanError) as caught:
        plan(model_kwargs={"heads": 4096}, min_size=65)
    assert caught.value.problem == (
        "no size from 65 to 1024 can be built; size 72 cannot be built: ValueError: 4096 heads do not divide 72"
    )


# The grid ------------------------------------------------------------------------------------------------------------


def test_too_few_sizes_or_too_narrow_ones_are_warned_about() -> None:
    p = plan([1e15, 1.2e15, 1.5e15], sizes=[300, 400, 500, 600])
    assert p.warnings == [
        f"budget {C} has 4 sizes over 4 times in N; a sure minimum needs 5 over 8 times"
        for C in ("1e+15", "1.2e+15", "1.5e+15")
    ]
    narrow = plan([1e15, 3e15, 1e16], sizes=[300, 350, 400, 450, 500])
    assert "5 sizes over 2.8 times in N" in narrow.warnings[0]
    assert not plan([1e15, 1.2e15, 1.5e15], sizes=[210, 300, 400, 500, 600]).warnings


def test_where_the_large_sizes_have_too_few_steps_the_grid_moves_to_smaller_ones() -> None:
    p = plan(batch_size=2**18)
    for C in (1e15, 3e15, 1e16):
        N = cells(p, C)
        assert len(N) >= 5
        assert N[-1] / N[0] >= 8
    assert all(e.steps is not None and e.steps >= 150 for e in p.experiments)
    left_out = [d for d in p.dropped if d.compute_budget == 1e15]
    assert len(left_out) >= 3
    assert all(re.match(r"only \d+ optimiser steps", d.reason) for d in left_out), "what was left out is still told"


def test_where_the_small_sizes_ask_for_too_much_data_the_grid_moves_to_larger_ones() -> None:
    free = with_data(None, [1e16])
    scarce = with_data(min(e.num_tokens for e in free.experiments) // 4, [1e16])
    N = cells(scarce, 1e16)
    assert N[0] > cells(free, 1e16)[0]
    assert len(N) >= 5
    assert N[-1] / N[0] >= 8
    assert any("epochs: it asks for more data than exists" in d.reason for d in scarce.dropped)


def test_a_grid_within_the_users_bounds_is_not_moved_out_of_them() -> None:
    p = plan([1e15], batch_size=2**18, min_size=400)
    assert all(e.size_param_value >= 400 for e in p.experiments)


# Data ----------------------------------------------------------------------------------------------------------------


def test_repeated_data_is_told_with_its_number_of_epochs() -> None:
    tokens = max(e.num_tokens for e in with_data(None).experiments)
    assert not with_data(tokens).warnings
    (twice,) = with_data(tokens // 2).warnings
    assert re.fullmatch(
        r"\d+ cells go through the data more than once, at most 2 times \(budget 1e\+16, size \d+\);"
        r" repeated data teaches a little less than new",
        twice,
    )
    (often,) = with_data(tokens // 8).warnings
    assert "at most 8 times" in often
    assert "more than 4 times: repeated data teaches far less than new" in often


def test_cells_that_ask_for_more_data_than_exists_are_dropped_with_the_epochs() -> None:
    every = with_data(None)
    tokens = max(e.num_tokens for e in every.experiments)
    p = with_data(tokens // 20)
    assert p.num_experiments < every.num_experiments
    assert "20 epochs: it asks for more data than exists (repeated at most 16 times)" in {d.reason for d in p.dropped}


def test_a_budget_that_asks_for_more_data_than_exists_says_how_many_epochs() -> None:
    with pytest.raises(PlanError, match=r"\d+ epochs: it asks for more data than exists \(repeated at most 16 times\)"):
        with_data(1000, [1e15])


def test_sizes_are_counted_in_samples_where_that_is_the_unit() -> None:
    ids = torch.zeros(4, 64, dtype=torch.long)
    tokens = max(e.num_tokens for e in with_data(None, example_batch=(ids, ids)).experiments)
    assert "at most 2 times" in with_data(tokens // 128, example_batch=(ids, ids)).warnings[0]
