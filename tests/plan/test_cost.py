"""The cost of a plan: packing, totals, memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit.errors import PlanError
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.plan.cost import Circumstances, SizeTiming, assumed_cost, measured_cost, memory_estimate, packed

lengths = st.lists(st.floats(0.1, 100), min_size=1, max_size=20)


def plan() -> SweepPlan:
    cells = [(1e6, 4, 100, 10), (1e6, 8, 200, 5), (3e6, 4, 100, 30), (3e6, 8, 200, 15)]
    experiments = [
        Experiment(
            experiment_id=f"C{C:g}_w{size}",
            compute_budget=C,
            size_param_value=size,
            num_params=N,
            num_tokens=16 * steps,
            flops_per_token=C / (16 * steps) * 1.02,
            steps=steps,
        )
        for C, size, N, steps in cells
    ]
    budgets = [1e6, 3e6]
    return SweepPlan(
        experiments=experiments, size_param="w", model_cls_name="Net", model_kwargs={}, compute_budgets=budgets
    )


@given(lengths, st.integers(1, 8))
def test_packing_is_never_shorter_than_the_work_and_never_idle_while_there_is_any(
    seconds: list[float], jobs: int
) -> None:
    wall = packed(seconds, jobs)
    assert wall >= max(max(seconds), sum(seconds) / jobs) - 1e-9
    assert wall <= sum(seconds) / jobs + max(seconds)
    assert packed(seconds, 1) == pytest.approx(sum(seconds))
    assert packed(seconds, len(seconds)) == pytest.approx(max(seconds))


def test_an_assumed_rate_gives_time_hours_and_money() -> None:
    circumstances = Circumstances(jobs=2, devices=4, price_per_hour=3.0, samples_in_pass=320)
    cost = assumed_cost(plan(), circumstances, flops_per_second=1e4, source="assumed", precision="32-true")
    assert [run.seconds for run in cost.runs] == pytest.approx([25.5, 25.5, 76.5, 76.5])
    assert cost.wall_seconds == pytest.approx(102)
    assert cost.device_hours == pytest.approx(204 * 4 / 3600)
    assert cost.price == pytest.approx(3 * cost.device_hours)
    assert [run.deviation for run in cost.runs] == pytest.approx([0.02] * 4)
    assert [run.epochs for run in cost.runs] == pytest.approx([0.5, 0.25, 1.5, 0.75])
    assert cost.to_dict()["wall_seconds"] == cost.wall_seconds
    assert not cost.is_measured


def test_measured_steps_win_over_any_rate() -> None:
    timings = {
        4: SizeTiming(step_seconds=0.1, other_seconds=1.0, memory_bytes=5),
        8: SizeTiming(step_seconds=0.3, other_seconds=2.0),
    }
    circumstances = Circumstances(seconds_around=10.0)
    cost = measured_cost(plan(), circumstances, timings, source="measured", precision="32-true")
    assert [run.seconds for run in cost.runs] == pytest.approx([2.0, 3.5, 4.0, 6.5])
    assert cost.wall_seconds == pytest.approx(26.0)
    assert [run.memory_bytes for run in cost.runs] == [5, memory_estimate(200, "32-true")] * 2
    assert cost.price is None


@pytest.mark.parametrize(
    ("precision", "width"), [("32-true", 16), ("bf16-mixed", 16), ("16-mixed", 16), ("bf16-true", 8), ("64-true", 32)]
)
def test_memory_goes_by_what_precision_keeps_the_weights_in(precision: str, width: int) -> None:
    assert memory_estimate(1000, precision) == width * 1000


@pytest.mark.parametrize(
    "wrong", [{"jobs": 0}, {"devices": 0}, {"price_per_hour": -1.0}, {"price_per_hour": float("nan")}]
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=next(iter(wrong))):
        Circumstances(**wrong)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="FLOP/s"):
        assumed_cost(plan(), Circumstances(), flops_per_second=0.0, source="", precision="32")
