"""Sweeps in rounds: what the results ask for is trained, and only that; the same call again does nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toy
from torch.utils.data import TensorDataset

from flops_fit.errors import PlanError
from flops_fit.experiment import SweepPlan
from flops_fit.fit import analyze_runs
from flops_fit.laws import ParametricLaw
from flops_fit.plan.beyond import plan_beyond
from flops_fit.plan.designed import design_sweep
from flops_fit.report.plan import plan_table
from flops_fit.rounds import check_kept, conduct, open_sides, with_recorded
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.study import Study, plan_study
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.orchestrator import Selection
from flops_fit.train.recipe import PythonRecipe

LAW = ParametricLaw(E=1.8, A=40.0, B=300.0, alpha=0.35, beta=0.37)


def plenty() -> TensorDataset:
    return toy.regression(60_000)


def study(folder: Path, **options: object) -> Study:
    recipe = PythonRecipe(
        model_cls=toy.Net,
        model_kwargs={},
        loss_fn=toy.squared_error,
        dataset=plenty,
        batch_size=options.pop("batch_size", 16),
        module_kwargs={"lr": 1e-2},
    )
    settings = {"min_steps": 5, "launcher": "inline", "size_multiple": 2} | options
    return plan_study(recipe, SweepConfig(size_param="width", output_dir=folder, **settings))


def small_grid(folder: Path, **options: object) -> Study:
    return study(folder, compute_budgets=[6e6, 2e7], num_sizes_per_budget=3, size_multiple=1, **options)


def designed(folder: Path, **options: object) -> Study:
    budgets = [1e6, 3e6, 1e7, 3e7]
    settings = {"target_compute": 1e8, "max_flops": 1.5e8, "noise": 0.05, "min_steps": 20} | options
    return study(folder, plan="designed", compute_budgets=budgets, min_size=4, **settings)


def trained(sweep: SweepDirectory) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in sweep.path.glob("runs/*/result.json")}


def table(sizes: dict[float, list[float]]) -> pd.DataFrame:
    """Noiseless runs of these N at each budget."""
    rows = [(C, N, C / (6 * N)) for C, here in sizes.items() for N in here]
    frame = pd.DataFrame(rows, columns=["compute_budget", "num_params", "num_tokens"])
    return frame.assign(loss=LAW.loss(frame["num_params"], frame["num_tokens"]))


def test_a_minimum_outside_the_sizes_says_on_which_side_it_lies() -> None:
    best = {C: float(LAW.optimum(C)[0]) for C in (1e15, 1e16, 1e17)}
    factors = {1e15: (1.5, 3, 6, 12), 1e16: (0.25, 0.5, 1, 2, 4), 1e17: (1 / 12, 1 / 6, 1 / 3, 1 / 1.5)}
    runs = table({C: [best[C] * f for f in factors[C]] for C in best})
    assert open_sides(analyze_runs(runs, n_bootstrap=0)) == {1e15: "smaller", 1e17: "larger"}


def test_further_sizes_continue_those_of_a_budget(tmp_path: Path) -> None:
    small = small_grid(tmp_path)
    further = plan_beyond(small.planner, small.plan, {2e7: "smaller"}, round=2)
    new = [e for e in further.experiments if e.round == 2]
    before = {e.experiment_id for e in small.plan.experiments}
    assert {e.experiment_id for e in further.experiments} - {e.experiment_id for e in new} == before
    assert new
    assert {e.compute_budget for e in new} == {2e7}
    there = [e.size_param_value for e in small.plan.experiments if e.compute_budget == 2e7]
    assert max(e.size_param_value for e in new) < min(there)
    # The user allows no smaller size, and the plan says so.
    small = small_grid(tmp_path, min_size=min(there))
    none = plan_beyond(small.planner, small.plan, {2e7: "smaller"}, round=2)
    assert len(none.experiments) == len(small.plan.experiments)
    assert "wants smaller sizes, and none can be trained" in none.warnings[-1]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[SweepPlan], Path]:
    folder = tmp_path_factory.mktemp("rounds") / "out"
    plans: list[SweepPlan] = []
    done, outcome = conduct(small_grid(folder, rounds=2), on_plan=plans.append)
    assert set(outcome.counts) == {RunState.COMPLETED}
    return done, plans, folder


@pytest.mark.slow
def test_a_second_round_trains_the_missing_sizes_and_the_same_call_nothing(
    extended: tuple[Study, list[SweepPlan], Path],
) -> None:
    done, plans, folder = extended
    assert len(plans) == 1  # the smallest width is the best at both budgets
    new = [e for e in done.plan.experiments if e.round == 2]
    assert new
    sweep, before = done.directory, trained(done.directory)
    assert set(before) == {e.experiment_id for e in done.plan.experiments}
    again, outcome = conduct(small_grid(folder, rounds=2), on_plan=plans.append)
    assert trained(sweep) == before
    assert {e.experiment_id for e in again.plan.experiments} == set(before)
    assert outcome.counts == {RunState.COMPLETED: len(before)}
    assert len(plans) == 1


@pytest.mark.slow
def test_a_round_that_was_cut_short_goes_on_as_it_was_planned(
    extended: tuple[Study, list[SweepPlan], Path], tmp_path: Path
) -> None:
    done, _, folder = extended
    shutil.copytree(folder, tmp_path / "out")
    sweep = SweepDirectory(tmp_path / "out")
    lost = next(e.experiment_id for e in done.plan.experiments if e.round == 2)
    before = trained(sweep)
    shutil.rmtree(sweep.run(lost).path)
    # A plain call, without a second round in its config, resumes what was planned as well.
    conduct(small_grid(tmp_path / "out"))
    after = trained(sweep)
    assert {name for name in after if before[name] != after[name]} == {lost}


@pytest.mark.slow
def test_what_may_be_spent_holds_for_all_rounds_together(tmp_path: Path) -> None:
    grid = small_grid(tmp_path / "out", rounds=2)
    limit = grid.plan.total_flops * 1.01
    done, outcome = conduct(grid, selection=Selection(max_flops=limit))
    assert outcome.done_flops <= limit
    assert outcome.left
    assert any(e.round == 2 for e in done.plan.experiments)


@pytest.mark.slow
def test_a_designed_sweep_learns_from_its_first_round_and_foretells_what_it_kept_back(tmp_path: Path) -> None:
    outline = designed(tmp_path / "out")
    design = outline.plan.design
    assert design is not None
    assert not design.is_final
    first = {e.experiment_id for e in outline.plan.experiments if e.round == 1}
    assert sum(e.flops for e in outline.plan.experiments if e.round == 1) <= 0.15 * outline.plan.total_flops
    plans: list[SweepPlan] = []
    done, outcome = conduct(outline, on_plan=plans.append)
    assert outcome.counts == {RunState.COMPLETED: len(done.plan.experiments)}
    assert len(plans) == 1
    final = done.plan.design
    assert final is not None
    assert final.is_final
    assert f"first {len(first)} runs" in final.prior
    assert done.plan.total_flops <= 1.5e8 * 1.01
    assert first < {e.experiment_id for e in done.plan.experiments}
    kept = [e for e in done.plan.experiments if e.experiment_id in final.holdout]
    assert [e.compute_budget for e in kept] == [3e7, 3e7]
    checks = check_kept(done)
    assert {k.run_id for k in checks} == set(final.holdout)
    assert all(abs(k.error) < 0.5 for k in checks)

    before = trained(done.directory)
    again, _ = conduct(designed(tmp_path / "out"), on_plan=plans.append)
    assert trained(done.directory) == before
    assert again.plan.design == final
    assert len(plans) == 1
    json.dumps(again.plan.to_dict(), allow_nan=False)
    # Another question on the same runs is planned anew, and pays only for what is missing.
    other, _ = conduct(designed(tmp_path / "out", max_flops=1.6e8), on_plan=plans.append)
    assert {name: trained(done.directory)[name] for name in before} == before
    assert other.plan.total_flops <= 1.6e8 * 1.01


def test_an_outline_tells_the_error_to_expect_beside_the_usual_grid(tmp_path: Path) -> None:
    plan = designed(tmp_path / "out").plan
    text = plan_table(plan)
    assert "design: expected error at 1e+08 FLOPs" in text
    assert "the usual grid of 5 budgets and 9 sizes" in text
    assert "the others are chosen anew" in text
    assert all(e.steps is not None and e.steps >= 20 for e in plan.experiments)
    assert all(e.num_tokens <= 4 * 60_000 for e in plan.experiments)  # no run repeats the data often
    assert not (tmp_path / "out").exists()


def test_a_plan_alone_needs_no_data() -> None:
    plan = design_sweep(toy.Net, "width", target_compute="1 PFLOP", max_flops="200 TFLOP", sizes=range(4, 4000, 4))
    assert plan.design is not None
    assert plan.total_flops <= 2e14 * 1.01
    assert max(e.compute_budget for e in plan.experiments) == pytest.approx(1e13)
    for e in plan.experiments:
        assert e.num_params == toy.Net(e.size_param_value).num_params()
        assert e.flops == pytest.approx(e.compute_budget, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_compute": 2e7}, "not beyond the pilots"),
        ({"max_flops": 1e6}, "buys no sweep: the cheapest that determines a law costs"),
        ({"target_error": 1e-4}, "cannot be had from these budgets"),
        ({"target_error": 0.45, "max_flops": 8e7}, "max_flops=8e+07 buys"),
        ({"target_compute": None}, "needs target_compute"),
        ({"rounds": 2}, "plans its own second round"),
        ({"seeds": [0, 1]}, "trains every run once"),
        ({"noise": -1.0}, "noise=-1.0 must be positive"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        designed(tmp_path / "out", **options)
    assert said in caught.value.problem
    assert not (tmp_path / "out").exists()


def test_options_of_a_designed_sweep_are_refused_for_a_grid(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="target_compute is for a designed sweep"):
        small_grid(tmp_path, target_compute=1e12)
    with pytest.raises(PlanError, match="plan='best' is unknown"):
        small_grid(tmp_path, plan="best")


def test_a_sweep_on_another_basis_lends_no_runs(tmp_path: Path) -> None:
    grid = small_grid(tmp_path / "out")
    grid.directory.open(grid.plan.to_dict() | {"design": None}, grid.basis)
    extra = dataclasses.replace(grid.plan.experiments[0], experiment_id="more", round=2)
    more = dataclasses.replace(grid.plan, experiments=[*grid.plan.experiments, extra])
    grid.directory.open(more.to_dict(), grid.basis)
    assert "more" in {e.experiment_id for e in with_recorded(grid).plan.experiments}
    other = dataclasses.replace(grid, basis=grid.basis | {"data_fingerprint": "another"})
    assert with_recorded(other).plan == grid.plan
    assert np.isfinite(grid.plan.total_flops)
