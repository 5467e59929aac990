"""The shipped sweeps, trained for real: the smaller one gives a sane law of real text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit.cli import GOOD, main

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize(
    ("name", "budgets", "runs"),
    [("quickstart", [2e10, 6e10, 2e11, 6e11], 20), ("smoke", [1e10, 3e10, 1e11], 14)],
)
def test_the_configs_plan_what_they_say(
    name: str, budgets: list[float], runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--config", str(CONFIGS / f"{name}.yaml"), "--json"]) == GOOD
    plan = json.loads(capsys.readouterr().out)
    assert plan["compute_budgets"] == budgets
    assert plan["num_experiments"] == runs
    assert plan["flops_rule"] == "counted"
    for experiment in plan["experiments"]:
        assert experiment["steps"] >= 150
        assert experiment["flops"] == pytest.approx(experiment["compute_budget"], rel=0.01)


@pytest.mark.slow
def test_the_smoke_sweep_finds_a_sane_law(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flops_fit", "fit", "--config", str(CONFIGS / "smoke.yaml")]
    done = subprocess.run([*command, "--sweep.output_dir", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == GOOD, done.stderr
    assert "14 of 14 runs completed" in done.stderr
    analysis = json.loads((tmp_path / "out" / "analysis.json").read_text())
    optima = analysis["isoflop"]["budgets"]
    assert [budget["status"] for budget in optima] == ["ok"] * 3
    assert all(10 < budget["num_tokens"] / budget["num_params"] < 45 for budget in optima)
    losses = [budget["loss"] for budget in optima]
    assert losses == sorted(losses, reverse=True)
    assert 0.35 < analysis["isoflop"]["N_opt"]["exponent"] < 0.75
