"""The scripts in examples/ do what their first lines say; budgets are cut so that they do it in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_a_model_that_the_package_does_not_know(tmp_path: Path) -> None:
    text = (EXAMPLES / "mlp_regressor.py").read_text()
    cuts = {
        "compute_budgets=[3e8, 1e9, 3e9]": "compute_budgets=[2e7, 6e7]",
        "sizes=[12, 16, 24, 36, 52, 80]": "sizes=[8, 12, 16, 24]",
        "count: int = 400_000": "count: int = 40_000",
    }
    for whole, cut in cuts.items():
        assert whole in text
        text = text.replace(whole, cut)
    script = tmp_path / "mlp_regressor.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tokens_per_param" in done.stdout
    assert (tmp_path / "outputs" / "mlp_regressor" / "analysis.json").exists()


@pytest.mark.slow
def test_a_subclass_of_scaling_module_used_through_yaml(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flops_fit", "fit", "--config", str(EXAMPLES / "nadam_gpt.yaml")]
    command += ["--sweep.compute_budgets", "[1e9, 2e9]", "--sweep.sizes", "[4, 8, 12]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/nadam_gpt/runs/*/result.json")]
    assert len(results) == 6
    assert all(0 < result["metrics"]["accuracy"] < 1 for result in results)
    assert "accuracy" in (tmp_path / "outputs" / "nadam_gpt" / "runs.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_a_command_line_of_ones_own_round_find_optimal(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "cli_wrapper.py"), "3e7", "9e7", "--samples", "40000"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)

    planned = run("--plan")
    assert planned.returncode == 0, planned.stderr
    assert "num_tokens" in planned.stdout
    assert not (tmp_path / "outputs").exists()
    done = run("--width", "8", "12", "16", "24", "--target", "1e9")
    assert done.returncode == 1, done.stderr  # two budgets are too few to be trusted
    assert (tmp_path / "outputs" / "cli_wrapper" / "report" / "report.html").is_file()
    wrong = run("--width", "0")
    assert wrong.returncode == 2
    assert "positive whole numbers" in wrong.stderr
    assert "Traceback" not in wrong.stderr
