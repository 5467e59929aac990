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
    budgets, count = "compute_budgets=[3e8, 1e9, 3e9]", "count: int = 400_000"
    assert budgets in text
    assert count in text
    script = tmp_path / "mlp_regressor.py"
    script.write_text(text.replace(budgets, "compute_budgets=[3e7, 1e8]").replace(count, "count: int = 40_000"))
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
