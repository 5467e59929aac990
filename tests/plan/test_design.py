"""The designed sweep: a law in, a plan out."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from flops_fit.errors import PlanError
from flops_fit.experiment import Experiment
from flops_fit.fit.parametric import fit_parametric
from flops_fit.laws import SIX_ND, ComputeRule, ParametricLaw
from flops_fit.plan.beliefs import (
    Belief,
    Noise,
    believe,
    laws_around,
    moved_law,
    representatives,
    rivals_of,
    usual_laws,
)
from flops_fit.plan.cells import FIRST_STAGE_SHARE, budget_ladder, candidate_cells, first_stage
from flops_fit.plan.design import DesignedSweep, design_cells
from flops_fit.plan.expected import ExpectedError, answer_gradients

LAW = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)
LARGEST, TARGET = 1e19, 1e21
BATCH = 1024


def num_params(width: int) -> int:
    return 24 * width**2 + 256 * width


def cells_of(law: ParametricLaw | list[ParametricLaw] = LAW, **options: object) -> list[Experiment]:
    # Few sizes and budgets: a plan then takes a tenth of a second.
    sizes = sorted({round(2 ** (0.5 * i)) for i in range(3, 28)})
    chosen = {"sizes": sizes, "num_params": num_params, "tokens_per_step": BATCH} | options
    return candidate_cells(law, budget_ladder(LARGEST, decades=2.5), **chosen)[0]


CELLS = cells_of()


@pytest.fixture(scope="module")
def plan() -> DesignedSweep:
    return design_cells(LAW, CELLS, target_compute=TARGET, max_flops=4e19)


def judge(cells: list[Experiment], beliefs: tuple[Belief, ...], noise: Noise | None = None) -> ExpectedError:
    N, D, C = (np.array([getattr(e, name) for e in cells], float) for name in ("num_params", "num_tokens", "flops"))
    return ExpectedError(
        beliefs, N, D, C, target=TARGET, noise=noise or Noise(), largest=LARGEST, rule=SIX_ND, worth=2.0
    )


def arrays(runs: tuple[Experiment, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([e.num_params for e in runs], float), np.array([e.num_tokens for e in runs], float)


def test_runs_are_whole_steps_of_sizes_that_can_be_built(plan: DesignedSweep) -> None:
    for e in (*plan.cells, *plan.holdout):
        assert e.num_params == num_params(e.size_param_value)
        assert e.steps is not None
        assert e.num_tokens == e.steps * BATCH
        assert e.flops == pytest.approx(e.compute_budget, rel=0.5 / e.steps)
    runs = (*plan.cells, *plan.holdout)
    assert len({e.experiment_id for e in runs}) == len(runs)
    assert plan.total_flops <= 4e19


def test_a_lack_of_fit_can_show_and_two_runs_are_kept_back_at_the_largest_budget(plan: DesignedSweep) -> None:
    assert len(plan.cells) >= 7
    for values in arrays(plan.cells):
        assert len(set(values)) >= 3
    assert [e.compute_budget for e in plan.holdout] == [LARGEST, LARGEST]
    best = LAW.optimum(LARGEST)[0]
    assert plan.holdout[0].num_params < best < plan.holdout[1].num_params
    assert plan.total_flops == pytest.approx(plan.flops + 2 * LARGEST, rel=1e-3)


def test_it_is_far_cheaper_than_the_usual_grid(plan: DesignedSweep) -> None:
    assert plan.errors.size < 0.7 * plan.usual_errors.size
    assert plan.errors.loss < plan.usual_errors.loss
    assert plan.usual_flops is None or plan.usual_flops > 8 * plan.flops
    assert plan.errors_with_holdout.size < plan.errors.size


def test_more_money_never_buys_a_larger_error(plan: DesignedSweep) -> None:
    for limit in np.geomspace(2.1e19, 4e20, 3):
        other = design_cells(LAW, CELLS, target_compute=TARGET, max_flops=limit)
        assert other.total_flops <= limit
        assert (other.errors.size <= plan.errors.size) == (limit >= plan.total_flops)
    errors = [p.errors.size for p in plan.curve]
    assert errors == sorted(errors, reverse=True)
    assert [p.flops for p in plan.curve] == sorted(p.flops for p in plan.curve)


def test_the_cheapest_design_that_has_the_error_is_taken(plan: DesignedSweep) -> None:
    cheap = design_cells(LAW, CELLS, target_compute=TARGET)
    assert cheap.errors.size <= 0.1
    assert cheap.flops == min(p.flops for p in plan.curve if p.errors.size <= 0.1)


def test_the_same_question_gets_the_same_plan(plan: DesignedSweep) -> None:
    assert design_cells(LAW, CELLS, target_compute=TARGET, max_flops=4e19) == plan
    assert {e.experiment_id for e in design_cells(LAW, CELLS[::-1], target_compute=TARGET, max_flops=4e19).cells} == {
        e.experiment_id for e in plan.cells
    }
    json.dumps(plan.to_dict())


def test_runs_done_already_are_information_and_never_chosen_again(plan: DesignedSweep) -> None:
    done = plan.cells[:12]
    rest = design_cells(LAW, CELLS, target_compute=TARGET, max_flops=4e19, done=done)
    assert not {e.experiment_id for e in done} & {e.experiment_id for e in (*rest.cells, *rest.holdout)}
    assert rest.n_done == 12
    assert rest.errors.size <= plan.errors.size * 1.02
    everything = design_cells(LAW, CELLS, target_compute=TARGET, done=[*plan.cells, *plan.holdout])
    assert everything.cells == everything.holdout == ()
    assert everything.errors.size == pytest.approx(plan.errors_with_holdout.size)


def test_without_a_check_two_runs_of_the_largest_budget_are_among_the_cells() -> None:
    whole = design_cells(LAW, CELLS, target_compute=TARGET, max_flops=4e19, holdout=False)
    assert whole.holdout == ()
    assert sum(e.compute_budget == LARGEST for e in whole.cells) >= 2
    assert whole.errors == whole.errors_with_holdout


def test_changes_are_judged_as_the_changed_design_would_be() -> None:
    beliefs = believe(LAW, *arrays(tuple(CELLS)), target=TARGET)
    expected = judge(CELLS, beliefs)
    chosen = [0, 8, 16, 21, 30, 35, 20, 33]
    moments = expected.gather(chosen)
    none = len(CELLS)
    after = expected.losses_after(moments, [21, none])
    assert after[1, none] == pytest.approx(expected.loss(moments))
    assert after[0, none] == pytest.approx(expected.loss(expected.gather([i for i in chosen if i != 21])))
    for new in (3, 25, 39):
        assert after[1, new] == pytest.approx(expected.loss(expected.gather([*chosen, new])))
        exchanged = [new if i == 21 else i for i in chosen]
        assert after[0, new] == pytest.approx(expected.loss(expected.gather(exchanged)))


@pytest.mark.parametrize("rule", [SIX_ND, ComputeRule(k=20.0, q=0.95)])
def test_gradients_of_the_answers(rule: ComputeRule) -> None:
    theta = np.array([math.log(LAW.A), LAW.alpha, math.log(LAW.B), LAW.beta, math.log(LAW.E)])
    for i, step in enumerate(1e-5 * np.eye(5)):
        up, down = (ParametricLaw.from_logs(theta + sign * step) for sign in (1, -1))
        size = math.log(up.optimum(TARGET, rule)[0] / down.optimum(TARGET, rule)[0])
        loss = math.log(up.optimal_loss(TARGET, rule) / down.optimal_loss(TARGET, rule))
        assert answer_gradients(LAW, TARGET, rule)[:, i] == pytest.approx([size / 2e-5, loss / 2e-5], abs=1e-6)


def test_other_forms_are_near_the_law_in_the_sweep_and_elsewhere_beyond() -> None:
    N, D = arrays(tuple(CELLS))
    for name, rival in rivals_of(LAW, N, D).items():
        belief = Belief(name=name, law=LAW, truth=rival)
        assert 0.001 < np.std(belief.misfit(N, D)) < 0.01
        size, loss = belief.displacement(TARGET)
        best = LAW.optimum(TARGET)[0] * math.exp(size)
        here, *around = (float(rival.loss(n, TARGET / (6 * n))) for n in best * np.array([1, 0.98, 1.02]))
        assert here <= min(around)
        assert math.log(here / LAW.optimal_loss(TARGET)) == pytest.approx(loss)
    assert not np.any(Belief(name="", law=LAW).misfit(N, D))
    assert not np.any(Belief(name="", law=LAW).displacement(TARGET))


def test_doubt_of_the_form_is_paid_for_with_scatter(plan: DesignedSweep) -> None:
    certain = design_cells(LAW, CELLS, target_compute=TARGET, max_flops=4e19, doubt=0.0)
    assert set(plan.errors_by_belief) - set(certain.errors_by_belief) == {
        "generalised mean",
        "rising beta",
        "falling beta",
    }
    beliefs = believe(LAW, *arrays(tuple(CELLS)), target=TARGET)
    index = {e.experiment_id: i for i, e in enumerate(CELLS)}
    expected = judge(CELLS, beliefs)
    bent, straight = (
        expected.by_belief(expected.gather([index[e.experiment_id] for e in p.cells])) for p in (plan, certain)
    )
    assert straight[0, 0] < bent[0, 0]
    assert bent[-2:, 0].max() < straight[-2:, 0].min()


def test_laws_that_stand_for_others() -> None:
    C = 1e18
    for law in laws_around(LAW, C)[1:]:
        assert law.loss(*LAW.optimum(C)) == pytest.approx(LAW.optimal_loss(C))
    moved = moved_law(LAW, C, 123456.0)
    assert moved.optimum(C)[0] == pytest.approx(123456.0)
    assert moved.optimal_loss(C) == pytest.approx(LAW.optimal_loss(C))
    usual = usual_laws(C, 5e6)
    assert usual[0].optimum(C)[0] == pytest.approx(5e6)
    assert sorted(round(law.optimum(C)[0] / 5e6, 3) for law in usual)[:: len(usual) - 1] == [0.25, 4.0]
    alphas = np.append(np.linspace(0.2, 0.5, 101), np.nan)
    family = ParametricLaw(E=1.8, A=400 * np.ones(102), B=2000.0 * np.ones(102), alpha=alphas, beta=0.3 * np.ones(102))
    family = dataclasses.replace(family, E=np.full(102, 1.8))
    few = representatives(family, TARGET)
    assert len(few) == 9
    assert few[0].alpha == pytest.approx(0.35, abs=0.01)
    assert all(np.isfinite(law.alpha) for law in few)


def test_a_law_without_irreducible_loss_can_be_planned_on() -> None:
    falling = dataclasses.replace(LAW, E=0.0)
    plan = design_cells(falling, CELLS, target_compute=TARGET, max_flops=4e19)
    assert 0 < plan.errors.size < plan.usual_errors.size


def test_of_draws_that_no_sweep_would_give_the_believable_are_taken() -> None:
    alphas = np.append(np.full(5, 0.011), np.linspace(0.3, 0.4, 50))
    family = ParametricLaw(E=np.full(55, 1.8), A=400 * np.ones(55), B=2e3 * np.ones(55), alpha=alphas, beta=alphas)
    assert min(law.alpha for law in representatives(family, TARGET)) >= 0.3
    assert len(representatives(family[:5], TARGET)) == 5


def test_first_stage_is_cheap_and_wide() -> None:
    stage = first_stage(CELLS, plan_flops=4e19)
    budgets = budget_ladder(LARGEST, decades=2.5)[:2]
    assert {e.compute_budget for e in stage} == set(budgets)
    assert len(stage) >= 8
    assert math.fsum(e.flops for e in stage) <= FIRST_STAGE_SHARE * 4e19
    for C in budgets:
        here = [e.num_params for e in CELLS if e.compute_budget == C]
        assert {min(here), max(here)} <= {e.num_params for e in stage if e.compute_budget == C}


def test_candidates_reach_beyond_every_law_and_say_what_they_leave_out() -> None:
    other = moved_law(LAW, LARGEST, LAW.optimum(LARGEST)[0] / 50)
    both = cells_of([LAW, other], tokens_per_param=None, sizes=range(2, 20000))
    top = [e.num_params for e in both if e.compute_budget == LARGEST]
    assert min(top) < 1.2 * other.optimum(LARGEST)[0] / 16
    assert max(top) > LAW.optimum(LARGEST)[0] * 16 / 1.2
    cells, dropped = candidate_cells(
        LAW, [1e13, 1e18], sizes=range(2, 20000), num_params=num_params, tokens_per_step=2**19
    )
    assert {e.compute_budget for e in cells} == {1e18}
    reasons = " ".join(d.reason for d in dropped)
    assert "optimiser steps" in reasons
    assert "tokens per parameter" in reasons


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_compute": 5e18}, "not beyond the pilots"),
        ({"target_error": 0.01}, "cannot be had from these budgets, whatever is paid; the least is 0.0"),
        ({"target_error": 0.07, "max_flops": 2.3e19}, "max_flops=2.3e+19 buys 0.1"),
        ({"max_flops": 1e19}, "buys no sweep: the cheapest that determines a law costs 2"),
        ({"target_error": -1.0, "max_flops": math.nan}, "target_error=-1.0, max_flops=nan must be positive"),
        ({"doubt": 1.0}, "doubt=1.0"),
        ({"noise": Noise(), "candidates": []}, "no run to choose from"),
        ({"candidates": CELLS[:5]}, "cannot determine a law"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_can(options: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        design_cells(LAW, options.pop("candidates", CELLS), **({"target_compute": TARGET} | options))
    assert said in caught.value.problem


def test_other_bad_input() -> None:
    with pytest.raises(PlanError, match="no noise"):
        Noise(sigma=0.0)
    with pytest.raises(PlanError, match="no run is feasible at the budgets 1e\\+10: "):
        candidate_cells(LAW, [1e10], sizes=[64, 128], num_params=num_params, tokens_per_step=1024)
    with pytest.raises(PlanError, match="buildable"):
        candidate_cells(LAW, [1e18], sizes=[64, 128], num_params=lambda size: None)
    with pytest.raises(PlanError, match="2% of"):
        first_stage(CELLS, plan_flops=1e17)
    with pytest.raises(PlanError, match="two budgets of at least 4 sizes"):
        first_stage(CELLS[:5], plan_flops=1e19)


@pytest.mark.slow
def test_the_stated_errors_are_those_of_refitted_sweeps(plan: DesignedSweep) -> None:
    rng = np.random.default_rng(0)
    noise, sweeps = Noise(), 150
    N, D = arrays(plan.cells)
    C = np.array([e.flops for e in plan.cells])
    root = np.linalg.cholesky(noise.covariance(N, D, C, LARGEST))
    beliefs = believe(LAW, *arrays(tuple(CELLS)), target=TARGET)
    for belief in beliefs:
        size, loss = belief.displacement(TARGET)
        errors = []
        for _ in range(sweeps):
            L = belief.law.loss(N, D) * np.exp(belief.misfit(N, D) + root @ rng.standard_normal(len(N)))
            law = fit_parametric(N, D, L).law
            errors.append(
                (
                    math.log(law.optimum(TARGET)[0] / belief.law.optimum(TARGET)[0]) - size,
                    math.log(law.optimal_loss(TARGET) / belief.law.optimal_loss(TARGET)) - loss,
                )
            )
        stated = plan.errors_by_belief[belief.name]
        rms = np.sqrt(np.mean(np.square(errors), axis=0))
        assert rms == pytest.approx([stated.size, stated.loss], rel=0.2)
