"""A plan tried on a law that is known: what comes back is that law, and is marked wherever it goes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_cli import told, write

from flops_fit.cli import BAD_INPUT, GOOD
from flops_fit.errors import DataError, PlanError
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.laws import ParametricLaw
from flops_fit.simulation import analyzed, drawn_runs, errors_of, expected_errors, target_of, truth_for


def plan(budgets: tuple[float, ...] = (1e18, 3e18, 1e19, 3e19), sizes: int = 7) -> SweepPlan:
    """An IsoFLOP grid of C = 6ND, a factor 4 to either side of 20 tokens per parameter."""
    cells = [(C, math.sqrt(C / 120) * 4 ** (2 * i / (sizes - 1) - 1)) for C in budgets for i in range(sizes)]
    experiments = [
        Experiment(
            experiment_id=f"C{C:g}_w{i}",
            compute_budget=C,
            size_param_value=i + 1,
            num_params=round(N),
            num_tokens=round(C / (6 * round(N))),
            flops_per_token=6.0 * round(N),
        )
        for i, (C, N) in enumerate(cells)
    ]
    return SweepPlan(
        experiments=experiments, size_param="w", model_cls_name="Net", model_kwargs={}, compute_budgets=list(budgets)
    )


def test_the_default_law_has_its_optimum_where_the_plan_expects_it() -> None:
    truth = truth_for(plan())
    C = math.exp(np.mean(np.log(plan().compute_budgets)))
    N, D = truth.law.optimum(C, truth.rule)
    assert D / N == pytest.approx(20, rel=1e-3)
    assert 1.69 < truth.law.optimal_loss(C) < 4


def test_runs_without_noise_give_the_law_back() -> None:
    law = ParametricLaw(E=1.8, A=300.0, B=500.0, alpha=0.33, beta=0.3)
    truth = truth_for(plan(), law, noise=0.0)
    result = analyzed(drawn_runs(plan(), truth), plan(), n_bootstrap=0)
    errors = errors_of(result.analysis, truth, plan(), target_of(plan()))
    assert errors.exponent == pytest.approx(0, abs=2e-3)
    assert errors.num_params == pytest.approx(0, abs=1e-2)
    assert errors.loss == pytest.approx(0, abs=1e-3)


def test_more_noise_is_more_error_and_a_seed_decides_the_draws() -> None:
    quiet, loud = (
        expected_errors(plan(), truth_for(plan(), noise=noise), compute_budget=1e21, draws=2) for noise in (0.001, 0.02)
    )
    assert quiet.errors.num_params is not None
    assert loud.errors.num_params is not None
    assert quiet.errors.num_params < loud.errors.num_params
    truth = truth_for(plan())
    assert drawn_runs(plan(), truth, 3).equals(drawn_runs(plan(), truth, 3))
    assert not drawn_runs(plan(), truth, 3).equals(drawn_runs(plan(), truth, 4))


def test_too_small_a_plan_cannot_be_judged() -> None:
    small = plan((1e18, 3e18), sizes=2)
    with pytest.raises(DataError, match="4 runs; a scaling law needs at least 5"):
        expected_errors(small, truth_for(small), compute_budget=1e20, draws=2)
    with pytest.raises(PlanError, match="noise=1"):
        truth_for(plan(), noise=1.0)
    with pytest.raises(PlanError, match="compute=-1"):
        target_of(plan(), -1.0)


@pytest.mark.slow
def test_simulated_runs_are_marked_wherever_they_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "drawn"
    code, out, err = told(capsys, "simulate", "--config", write(tmp_path), "--output", folder, "--seed", 1)
    assert code == GOOD
    assert out.startswith("simulated, not trained: L = 1.69 + ")
    assert "12 of 12 runs are simulated: drawn from a law, not trained [simulated]" in out
    assert "against the truth:\n  exponent of N_opt over the budgets: " in out
    assert "simulated runs: " in err
    assert (folder / "runs.csv").read_text().count(",simulated\n") == 12
    assert "12 of 12 runs are simulated" in (folder / "report" / "report.html").read_text()
    assert not (tmp_path / "out").exists()
    for words in (["analyze", folder / "runs.csv"], ["predict", folder, "--compute", "1e8"]):
        code, out, _ = told(capsys, *words, "--json")
        assert code == GOOD
        assert "simulated" in [w["code"] for w in json.loads(out)["warnings"]]


@pytest.mark.slow
def test_json_of_a_simulation_and_of_a_simulated_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, law = write(tmp_path), "1.5,20,30,0.4,0.3"
    code, out, _ = told(capsys, "simulate", "--config", config, "--json", "--law", law, "--noise", "0")
    assert code == GOOD
    answer = json.loads(out)
    assert answer["simulated"] is True
    assert answer["truth"]["law"] == {"E": 1.5, "A": 20, "B": 30, "alpha": 0.4, "beta": 0.3}
    assert abs(answer["errors"]["loss"]) < 0.02
    assert answer["analysis"]["n_runs"] == 12
    code, out, _ = told(capsys, "plan", "--config", config, "--simulate", "--law", law, "--compute", "1e7")
    assert code == GOOD
    assert "simulated 20 times: rms error 0." in out
    assert "at 1e+07 FLOPs" in out
    assert "if the truth is L = 1.5 + 20/N^0.4 + 30/D^0.3, noise 0.5 %" in out


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("simulate", ["--law", "1,2,3"], "'1,2,3' is not a law"),
        ("simulate", ["--law", "1,2,3,x,4"], "is not a law"),
        ("simulate", ["--noise", "2"], "noise=2.0 must lie between 0 and 1"),
        ("simulate", ["--noise", "loud"], "'loud' is not a number"),
        ("simulate", ["--seed", "-1"], "'-1' is not a seed"),
        ("simulate", ["--compute", "much"], "'much' is not an amount of compute"),
        ("plan", ["--noise", "0.1", "--compute", "1e9"], "--noise, --compute goes with --simulate"),
    ],
)
def test_a_wrong_option_is_one_message(
    verb: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = told(capsys, verb, "--config", write(tmp_path), *options)
    assert (code, out) == (BAD_INPUT, "")
    assert message in err
    assert err.count("error") == 1
