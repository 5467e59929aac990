"""From a model and budgets to a plan: the sizes that can answer, and the reason for every one left out."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.examples import GPT, next_token_loss
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.plan.grid import sensible_multiple
from flops_fit.plan.planner import make_planner, plan_sweep
from flops_fit.plan.sizes import SizeChoice
from flops_fit.shapes import Shapes

IDS = torch.zeros(4, 64, dtype=torch.long)
BUDGETS = [1e15, 3e15, 1e16]


class Net(nn.Module):
    """N = 12 width^2, where the heads divide the width; remembers which widths were built."""

    built: ClassVar[Counter[int]] = Counter()

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        Net.built[width] += 1
        if width % heads:
            raise ValueError(f"{heads} heads do not divide {width}")
        self.layer = nn.Linear(width, 12 * width, bias=False)

    def num_params(self) -> int:
        return self.layer.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def plan(budgets: Any = BUDGETS, **options: Any) -> SweepPlan:
    Net.built.clear()
    return plan_sweep(Net, "width", options.pop("model_kwargs", None), budgets, **options)


def sizes(plan: SweepPlan, budget: float) -> list[int]:
    return [e.size_param_value for e in plan.experiments if e.compute_budget == budget]


# Which sizes ---------------------------------------------------------------------------------------------------------


def test_every_budget_has_its_sizes_centred_on_twenty_tokens_per_parameter() -> None:
    p = plan([1e15, 1e18, 1e21])
    for C in p.compute_budgets:
        cells = [e for e in p.experiments if e.compute_budget == C]
        assert len(cells) == 7
        N = np.array([e.num_params for e in cells])
        assert math.exp(np.log(N).mean()) == pytest.approx(math.sqrt(C / 120), rel=0.15)
        assert N[-1] / N[0] == pytest.approx(16, rel=0.4)
        assert np.diff(np.log(N)) == pytest.approx(np.log(16) / 6, abs=0.25)
    assert not p.warnings
    assert not p.dropped


def test_six_n_d_is_the_budget() -> None:
    for e in plan().experiments:
        assert e.flops_per_token == 6 * e.num_params
        assert e.flops == pytest.approx(e.compute_budget, rel=1e-6)
        assert e.steps is None
    assert {e.flops_per_token / e.num_params for e in plan(flops_per_param_per_token=8.0).experiments} == {8.0}


def test_sizes_are_rounded_sensibly_and_never_doubled_in_a_budget() -> None:
    p = plan([1e12, 1e15, 1e19])
    assert all(e.size_param_value % sensible_multiple(e.size_param_value) == 0 for e in p.experiments)
    assert all(len(sizes(p, C)) == len(set(sizes(p, C))) for C in p.compute_budgets)
    assert all(s % 64 == 0 for s in sizes(p, 1e19))
    assert all(e.size_param_value % 48 == 0 for e in plan(size_multiple=48).experiments)


def test_the_same_size_may_serve_several_budgets_under_different_names() -> None:
    p = plan([1e15, 3e15], sizes=[300, 400, 500])
    assert sizes(p, 1e15) == sizes(p, 3e15) == [300, 400, 500]
    names = [e.experiment_id for e in p.experiments]
    assert len(set(names)) == len(names)


def test_explicit_sizes_win() -> None:
    p = plan(sizes=[400, 999, 600, 400], num_sizes_per_budget=2, min_size=1000, max_size=2000, size_multiple=64)
    assert all(sizes(p, C) == [400, 600, 999] for C in BUDGETS)
    assert set(Net.built) == {400, 600, 999}
    p = plan(sizes=np.array([400, 600, 800]))
    assert sizes(p, 1e15) == [400, 600, 800]
    assert all(type(e.size_param_value) is int for e in p.experiments)


def test_bounds_are_kept_and_filled() -> None:
    p = plan(min_size=352, max_size=640, num_sizes_per_budget=5)
    for C in BUDGETS:
        assert sizes(p, C)[0] == 352
        assert sizes(p, C)[-1] == 640
        assert len(sizes(p, C)) == 5
    assert all(s >= 200 for s in sizes(plan(min_size=200), 1e15))
    assert all(s <= 300 for s in sizes(plan(max_size=300), 1e16))
    assert sizes(plan(min_size=320, max_size=320), 1e15) == [320]


def test_few_sizes_are_built_for_many_budgets_of_a_large_model() -> None:
    p = plan(np.logspace(18, 22, 5))
    assert p.num_experiments == 35
    assert Net.built.total() == len(Net.built) < 75


def test_a_width_that_no_power_of_two_reaches_is_found() -> None:
    p = plan(model_kwargs={"heads": 12})
    assert all(e.size_param_value % 12 == 0 for e in p.experiments)
    assert all(len(sizes(p, C)) >= 5 for C in BUDGETS)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sizes": []}, "an empty list"),
        ({"sizes": [64, 0, -1, 2.5, True]}, r"sizes\[1\]=0, sizes\[2\]=-1, sizes\[3\]=2.5, sizes\[4\]=True"),
        ({"num_sizes_per_budget": 0}, "num_sizes_per_budget=0"),
        ({"size_multiple": 0.5}, "size_multiple=0.5"),
        ({"min_size": 64, "max_size": 32}, "min_size=64 is larger than max_size=32"),
    ],
)
def test_sizes_that_are_no_sizes_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        SizeChoice(**choice)


@pytest.mark.parametrize(("seeds", "shown"), [([], "none"), ([0, -1, 1.5, 2**32], "-1, 1.5, 4294967296")])
def test_seeds_that_are_no_seeds_are_refused(seeds: list[int], shown: str) -> None:
    with pytest.raises(PlanError, match=f"seeds must be whole numbers from 0 to .*; got {shown}"):
        plan(seeds=seeds)


def test_every_cell_is_trained_once_for_each_seed() -> None:
    p = plan([1e15], seeds=[3, 1, 3], sizes=[200])
    assert [(e.seed, e.experiment_id) for e in p.experiments] == [
        (3, "C1e+15_width200_s3"),
        (1, "C1e+15_width200_s1"),
    ]


@pytest.mark.parametrize(("budgets", "repeated"), [([1e15], 1), ([1e15, 3e15], 1), (BUDGETS, 1), ([*BUDGETS, 3e16], 2)])
def test_further_seeds_are_for_the_smaller_half_of_the_budgets(budgets: list[float], repeated: int) -> None:
    once, some = plan(budgets, sizes=[500, 600]), plan(budgets, sizes=[500, 600], seeds=[0, 1, 2])
    every = plan(budgets, sizes=[500, 600], seeds=[0, 1, 2], seeds_at="all")
    assert Counter(e.compute_budget for e in some.repeats) == dict.fromkeys(budgets[:repeated], 4)
    assert Counter(e.compute_budget for e in every.repeats) == dict.fromkeys(budgets, 4)
    # Whatever was trained for fewer is a part of what is trained for more.
    ids = [{e.experiment_id for e in p.experiments} for p in (once, some, every)]
    assert ids[0] < ids[1] <= ids[2]
    assert once.repeats == []


def test_where_seeds_go_is_one_of_two_words() -> None:
    with pytest.raises(PlanError, match="seeds_at='large' is unknown"):
        plan(seeds=[0, 1], seeds_at="large")


# What is left out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["-1e18", 0, -1e18, math.nan])
def test_budgets_are_refused_before_anything_is_built(budget: Any) -> None:
    with pytest.raises(PlanError, match="compute budgets must be a list of positive numbers of FLOPs"):
        plan([1e18, budget])
    assert not Net.built


def test_cells_that_teach_nothing_are_dropped_with_the_reason() -> None:
    p = plan([1e15], sizes=[32, 200, 1000, 1800, 5000])
    assert sizes(p, 1e15) == [200, 1000, 1800]
    reasons = {d.size: (d.reason, d.compute_budget, d.num_params) for d in p.dropped}
    assert reasons[32] == ("1.104e+06 tokens per parameter (at most 1000)", 1e15, 12 * 32**2)
    assert reasons[5000] == ("only 0.0019 tokens per parameter (at least 0.1)", 1e15, 12 * 5000**2)


def test_cells_of_too_few_steps_are_dropped_with_the_reason() -> None:
    p = plan([1e15], sizes=[1000, 1500], batch_size=2**17, min_steps=100)
    assert [e.steps for e in p.experiments] == [106]
    assert [d.reason for d in p.dropped] == ["only 47 optimiser steps (at least 100); a smaller batch would give more"]


def test_sizes_that_cannot_be_built_are_dropped_once_with_the_reason() -> None:
    p = plan(sizes=[360, 365, 480, 600], model_kwargs={"heads": 12})
    (dropped,) = p.dropped
    assert (dropped.size, dropped.compute_budget) == (365, None)
    assert dropped.reason == "size 365 cannot be built: ValueError: 12 heads do not divide 365"
    assert all(sizes(p, C) == [360, 480, 600] for C in BUDGETS)


def test_a_budget_without_a_cell_is_a_warning_that_says_why() -> None:
    p = plan([1e9, 1e15, 3e15], sizes=[200, 300, 400])
    assert p.compute_budgets == [1e9, 1e15, 3e15]
    assert not sizes(p, 1e9)
    (warning,) = [w for w in p.warnings if "1e+09" in w]
    assert warning.startswith("budget 1e+09 has no run: only ")
    assert "tokens per parameter (at least 0.1)" in warning


def test_no_cell_at_all_is_an_error_that_says_why() -> None:
    with pytest.raises(PlanError, match=r"no size can be trained at any of the budgets 1e\+09, 2e\+09: only") as caught:
        plan([1e9, 2e9], sizes=[200, 300, 400])
    assert "raise the budgets, or give other sizes" in str(caught.value)


def test_a_model_too_large_for_the_budget_at_every_size_is_told_so() -> None:
    with pytest.raises(PlanError, match="tokens per parameter"):
        plan([1e9], min_size=1000)


def test_a_model_that_never_can_be_built_says_why() -> None:
    with pytest.raises(
        PlanError,
        match=r"no size from 1 to 1024 can be built; size 1 cannot be built: ValueError: 5000 heads do not divide 1\n",
    ):
        plan(model_kwargs={"heads": 5000})
    with pytest.raises(PlanError, match="no size from 65 to 100 can be built; none is a multiple of 64"):
        plan(min_size=65, max_size=100, size_multiple=64)
    with pytest.raises(PlanError, match=r"no size can be trained .* size 7 cannot be built"):
        plan(sizes=[7], model_kwargs={"heads": 2})


def test_a_size_parameter_that_changes_nothing_is_told() -> None:
    with pytest.raises(PlanError, match=r"doubling the size parameter .* never gave a model of"):
        plan_sweep(lambda width: Net(8), "width", None, [1e18])


def test_thin_budgets_and_few_budgets_are_warned_about() -> None:
    p = plan([1e15], sizes=[200, 300])
    assert "budget 1e+15 has 2 sizes; a minimum needs at least 3, better 5" in p.warnings
    assert "1 budget: at least 3 are needed to check a forecast on held-out compute" in p.warnings
    assert any(w.startswith("2 budgets: at least 3") for w in plan([1e15, 2e15]).warnings)


def test_a_batch_that_leaves_few_steps_at_the_optimum_is_warned_about() -> None:
    p = plan(batch_size=2**17)
    assert any(w.startswith("budget 1e+15: ") and "use a smaller batch" in w for w in p.warnings)
    assert not plan(batch_size=2**10).warnings


def test_a_size_also_named_among_the_arguments_is_warned_about() -> None:
    assert "model_kwargs also sets width=8; the planned sizes win" in plan(model_kwargs={"width": 8}).warnings


def test_the_model_contract_is_proved_before_training() -> None:
    with pytest.raises(PlanError, match=r"has no method num_params\(\)"):
        plan_sweep(lambda width: nn.Linear(width, width), "width", None, BUDGETS)
    with pytest.raises(PlanError, match="does not take d_model"):
        plan_sweep(Net, "d_model", None, BUDGETS)


# Batches, units, FLOPs -----------------------------------------------------------------------------------------------


def test_steps_are_whole_batches_nearest_the_budget() -> None:
    p = plan_sweep(GPT, "d_model", None, [1e11, 3e11], example_batch=(IDS, IDS), batch_size=8, min_steps=1)
    assert (p.unit, p.tokens_per_sample, p.batch_size) == ("tokens", 64, 8)
    for e in p.experiments:
        exact = e.compute_budget / e.flops_per_token
        assert e.steps == max(1, round(exact / 512))
        assert e.num_tokens == e.steps * 512
        assert abs(e.flops - e.compute_budget) <= e.flops_per_token * 256


@pytest.mark.parametrize("batch_size", [0, -4, 2.5, True])
def test_a_batch_that_is_no_number_of_samples_is_refused(batch_size: Any) -> None:
    with pytest.raises(PlanError, match=f"batch_size={batch_size} must be a positive whole number"):
        plan(batch_size=batch_size)


def test_a_cell_smaller_than_a_batch_is_one_step() -> None:
    (e,) = plan([1e15], sizes=[1000], batch_size=2**30, min_steps=1).experiments
    assert (e.steps, e.num_tokens) == (1, 2**30)


def test_counted_flops_are_those_of_the_model() -> None:
    p = plan_sweep(
        GPT,
        "d_model",
        {"seq_len": 64},
        [1e11, 1e12],
        example_batch=(IDS, IDS),
        loss_fn=next_token_loss,
        flops="counted",
        num_sizes_per_budget=3,
    )
    assert p.flops_rule == "counted"
    for e in p.experiments:
        assert e.flops_per_token == pytest.approx(6 * e.num_params + 12 * 2 * 64 * e.size_param_value, rel=1e-12)
        assert e.flops == pytest.approx(e.compute_budget, rel=1e-3)
    ratios = [e.tokens_per_param for e in p.experiments if e.compute_budget == 1e12]
    assert ratios[0] > 20 > ratios[-1]


def test_mappings_are_counted_too() -> None:
    batch = {"input_ids": IDS, "labels": IDS}
    a, b = (
        plan_sweep(GPT, "d_model", None, [1e11], example_batch=x, loss_fn=next_token_loss, flops="counted", sizes=[32])
        for x in (batch, (IDS, IDS))
    )
    assert a.experiments == b.experiments


def test_samples_are_counted_by_default_where_6nd_would_be_wrong() -> None:
    x = torch.zeros(16, 3, 32)  # three places a sample: 6N a sample is a third of the truth

    class Places(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[..., :1].expand(*x.shape[:2], self.layer.in_features))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().mean()

    p = plan_sweep(Places, "width", None, [1e12], example_batch=(x, x), loss_fn=loss, sizes=[64, 100, 128])
    assert (p.unit, p.flops_rule, p.tokens_per_sample) == ("samples", "counted", 1)
    assert [e.flops_per_token / e.num_params for e in p.experiments] == [12.0] * 3  # no gradient of the inputs
    assert plan_sweep(Places, "width", None, [1e12], example_batch=(x, x), sizes=[100]).flops_rule == "6nd"


def test_flops_that_cannot_be_counted_are_an_error_only_where_they_are_asked_for() -> None:
    with pytest.raises(PlanError, match="FLOPs cannot be counted without an example batch and a loss"):
        plan(flops="counted")
    assert plan(flops="6nd").flops_rule == "6nd"


def test_a_stated_unit_wins() -> None:
    p = plan_sweep(GPT, "d_model", None, [1e11], example_batch=(IDS, IDS), unit="samples", batch_size=4, min_steps=1)
    assert (p.unit, p.tokens_per_sample) == ("samples", 1)


def automatic(**changes: Any) -> SweepPlan:
    options: dict[str, Any] = {
        "choice": SizeChoice(),
        "shapes": Shapes(size_param="width"),
        "model_name": "Net",
        "model_kwargs": {},
        "loss": None,
        "example_batch": None,
        "batch_size": None,
        "unit": None,
        "flops": None,
        "flops_per_param_per_token": 6.0,
        "seeds": [0],
        "seeds_at": "small",
        "min_steps": 150,
        "auto_batch": True,
    }
    return make_planner(Net, [1e15, 1e16], **options | changes).grid()


def test_the_batch_is_chosen_to_leave_a_thousand_steps_at_the_smallest_optimum() -> None:
    p = automatic()
    optimum = 20 * math.sqrt(1e15 / 120)
    assert p.batch_size == 2 ** math.floor(math.log2(optimum / 1000))
    near = min((e for e in p.experiments if e.compute_budget == 1e15), key=lambda e: abs(e.tokens_per_param - 20))
    assert near.steps is not None
    assert near.steps >= 800
    assert automatic(example_batch=(IDS, IDS)).batch_size == p.batch_size // 64
    assert automatic(batch_size=48).batch_size == 48
    assert automatic(auto_batch=False).batch_size is None


def test_tokens_of_a_batch_can_be_counted_by_the_user() -> None:
    p = automatic(example_batch=(IDS, IDS), count_tokens=lambda batch: 4 * 10)
    assert p.tokens_per_sample == 10


def test_a_plan_is_the_same_however_often_it_is_made() -> None:
    assert plan().to_dict() == plan().to_dict()
    assert all(isinstance(e, Experiment) for e in plan().experiments)
    order = [(e.compute_budget, e.size_param_value) for e in plan([1e16, 1e15]).experiments]
    assert order == sorted(order)
