"""A forecast is written down, then one run is trained at the optimum, and the two are compared."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from test_cli import finished, told, write

from flops_fit.cli import BAD_INPUT, GOOD
from flops_fit.runs.directory import SweepDirectory
from flops_fit.validation import Validation

__all__ = ["finished"]


@pytest.fixture
def sweep(finished: Path, tmp_path: Path) -> Path:
    """A trained and analysed sweep that may be changed, its sizes free."""
    shutil.copytree(finished, tmp_path / "copy")
    write(tmp_path / "copy")
    config = tmp_path / "copy" / "out" / "sweep.yaml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path / "copy")))
    return tmp_path / "copy" / "out"


@pytest.mark.slow
def test_a_run_at_the_optimum_is_compared_with_its_forecast(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {e.experiment_id for e in SweepDirectory(sweep).experiments()}
    code, out, err = told(capsys, "validate", sweep, "--compute", "1e7", "--json")
    assert code == GOOD, err
    answer = json.loads(out)
    assert answer["compute_budget"] == 1e7
    assert answer["experiment_id"] not in before
    assert abs(math.log(answer["num_params"] / answer["num_params_predicted"])) < math.log(2)
    assert answer["error"] == pytest.approx(answer["loss_predicted"] / answer["loss"] - 1)
    low, high = answer["ci"]
    assert answer["is_inside"] == (low <= answer["loss"] <= high)

    run = SweepDirectory(sweep).run(answer["experiment_id"])
    trained = (run.path / "result.json").stat().st_mtime_ns
    assert told(capsys, "analyze", sweep)[0] == GOOD  # the run now counts, and another analysis would foretell other
    code, out, _ = told(capsys, "validate", sweep, "--compute", "1e7", "--json")
    assert json.loads(out) == answer, "a forecast that was once made stays"
    assert (run.path / "result.json").stat().st_mtime_ns == trained


@pytest.mark.slow
def test_without_a_config_or_an_analysis_it_is_said(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "analysis.json").unlink()
    code, _, err = told(capsys, "validate", sweep, "--compute", "1e7")
    assert code == BAD_INPUT
    assert "holds no analysis.json" in err
    (sweep / "sweep.yaml").unlink()
    code, _, err = told(capsys, "validate", sweep, "--compute", "1e7")
    assert code == BAD_INPUT
    assert "holds no sweep.yaml" in err


def test_a_forecast_and_its_outcome_in_words() -> None:
    forecast = Validation(
        compute_budget=1e21,
        experiment_id="a",
        num_params=3_000_000_000,
        num_params_predicted=2.9e9,
        loss_predicted=2.0,
        ci=(1.9, 2.1),
    )
    assert (forecast.error, forecast.is_inside) == (None, None)
    outcome = dataclasses.replace(forecast, loss=2.2)
    assert outcome.is_inside is False
    assert "measured loss  2.2: the forecast is off by -9.09%, outside the interval" in str(outcome)
    assert "predicted loss 2 (1.9 to 2.1)" in str(outcome)
