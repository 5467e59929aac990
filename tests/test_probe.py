"""lr: auto, from the plan to the runs: found once, used by every run, kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import toy
from test_cli import told, write
from test_coordinates import MupNet

import flops_fit
from flops_fit.cli import BAD_INPUT, GOOD, INTERRUPTED
from flops_fit.errors import FitError, PlanError
from flops_fit.experiment import SweepPlan
from flops_fit.fit.rates import RateLaw
from flops_fit.result import Result
from flops_fit.runs.directory import SweepDirectory
from flops_fit.train.module import ScalingModule

AUTO = {"model.init_args.lr": "auto", "sweep.compute_budgets": [4e5, 8e5], "sweep.sizes": [3, 4, 5]}


def sweep(folder: Path, **changes: Any) -> Result | SweepPlan:
    arguments = {
        "model_cls": toy.Net,
        "model_size_param": "width",
        "dataset": toy.regression(),
        "loss_fn": toy.squared_error,
        "compute_budgets": [4e5, 8e5],
        "output_dir": folder,
        "sizes": [3, 4, 5],
        "batch_size": 32,
        "min_steps": 5,
        "launcher": "inline",
    }
    return flops_fit.find_optimal(**arguments | changes)


def law_in(folder: Path) -> RateLaw:
    return RateLaw.from_dict(json.loads((folder / "learning_rate.json").read_text()))


def test_a_plan_tells_of_the_probe_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, AUTO)
    code, out, _ = told(capsys, "plan", "--config", config)
    assert code == GOOD
    assert "learning rate: auto: a probe finds it first, 10 runs of width 3 and width 4 for " in out
    assert "peak learning rate" not in out
    assert not (tmp_path / "out").exists()
    code, out, _ = told(capsys, "plan", "--config", config, "--json")
    planned = json.loads(out)
    flops = [sum(e["flops"] for e in planned[part]) for part in ("experiments", "probe")]
    assert planned["total_flops"] == pytest.approx(sum(flops)), "the probe is paid for, too"
    assert planned["cost"]["wall_seconds"] >= sum(r["seconds"] for r in planned["cost"]["probe"]) > 0
    assert len(planned["probe"]) == len(planned["cost"]["probe"]) == 10
    shortest = min(e["steps"] for e in planned["experiments"] if e["size_param_value"] in (3, 4))
    assert {e["steps"] for e in planned["probe"]} == {shortest}


@pytest.mark.slow
def test_every_run_is_trained_at_the_rate_of_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, AUTO)
    code, out, err = told(capsys, "fit", "--config", config)
    assert code == GOOD
    law = law_in(tmp_path / "out")
    assert [p.size for p in law.probes] == [3, 4]
    assert all(p.edge == 0 for p in law.probes)
    assert f"learning rate: {law.formula}; by a probe of {law.num_runs} runs" in err
    table = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert table["lr"].tolist() == [law.rate(N) for N in table["num_params"]]
    assert table["lr"].nunique() > 1
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("**/metrics.csv")}
    assert len(times) == 6 + law.num_runs
    assert str(law) in (tmp_path / "out" / "report" / "report.html").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "report" / "figures" / "learning_rate.csv")) == law.num_runs

    code, out, err = told(capsys, "fit", "--config", config)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("**/metrics.csv")} == times, "and only once"
    told(capsys, "fit", "--config", write(tmp_path, AUTO | {"sweep.compute_budgets": [4e5, 6e5, 8e5]}))
    assert len(list((tmp_path / "out").glob("runs/*/result.json"))) == 9, "a sweep grows at the rates it has"
    code, out, _ = told(capsys, "plan", "--config", config)
    assert str(law) in out


@pytest.mark.slow
def test_a_killed_probe_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, AUTO)
    plan = sweep(tmp_path / "other", train=False)
    assert isinstance(plan, SweepPlan)
    one = plan.probe[0].flops
    code, _, err = told(capsys, "fit", "--config", config, "--max-flops", f"{1.5 * one}")
    assert code == INTERRUPTED
    assert "the learning-rate probe is not finished" in err
    done = list((tmp_path / "out" / "probe").glob("runs/*/result.json"))
    assert 0 < len(done) < 10
    code, _, _ = told(capsys, "fit", "--config", config, "--max-flops", "1e12")
    assert code == GOOD
    assert {p.stat().st_mtime_ns for p in done} < {
        p.stat().st_mtime_ns for p in (tmp_path / "out").glob("probe/runs/*/result.json")
    }


@pytest.mark.slow
def test_rates_of_the_model_s_own_are_found_at_one_size(tmp_path: Path) -> None:
    result = sweep(tmp_path / "out", model_cls=MupNet)
    assert isinstance(result, Result)
    law = law_in(tmp_path / "out")
    assert [p.size for p in law.probes] == [4]
    assert law.exponent == 0
    assert pd.read_csv(tmp_path / "out" / "runs.csv")["lr"].nunique() == 1
    assert result.plan is not None
    assert result.plan.probe


class Indifferent(ScalingModule):
    """Its optimizer has a rate of its own."""

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.net.parameters()), "lr": 1e-2}]


@pytest.mark.slow
def test_a_probe_that_finds_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="ends the same whatever the rate"):
        sweep(tmp_path / "flat", module_cls=Indifferent)
    assert not (tmp_path / "flat" / "learning_rate.json").exists()
    assert not list((tmp_path / "flat").glob("runs/*")), "nothing is trained at a rate that nobody knows"


@pytest.mark.slow
def test_another_sweep_is_probed_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, AUTO)
    assert told(capsys, "fit", "--config", config)[0] == GOOD
    changed = write(tmp_path, AUTO | {"data.init_args.batch_size": 16})
    code, out, _ = told(capsys, "plan", "--config", changed)
    assert "a probe finds it first" in out, "that of another batch does not count"
    code, _, err = told(capsys, "fit", "--config", changed)
    assert code == BAD_INPUT
    assert "batch_size: 32 -> 16" in err
    file = SweepDirectory(tmp_path / "out").rates_file
    file.write_text('{"schema_version": 1}')
    code, _, err = told(capsys, "plan", "--config", config)
    assert code == BAD_INPUT
    assert "holds no learning rate" in err


@pytest.mark.slow
def test_a_check_steps_at_a_usual_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "check", "--config", write(tmp_path, AUTO))
    assert code == GOOD
    assert "lr 0.004): failed" in out
    assert "lr: auto" in out


def test_a_rate_is_a_positive_number_or_auto() -> None:
    for lr in ("fast", 0, -1.0, float("nan"), float("inf"), None):
        with pytest.raises(PlanError, match="must be positive"):
            ScalingModule(toy.Net, toy.squared_error, lr=lr)  # type: ignore[arg-type]
    module = ScalingModule(toy.Net, toy.squared_error)
    assert module.needs_lr
    with pytest.raises(PlanError, match='lr is "auto", and no rate has been found'):
        _ = module.lr
    module.lr = 0.1
    assert (module.lr, module.needs_lr) == (0.1, False)


@pytest.mark.slow
def test_one_rate_over_many_widths_is_carried_into_the_analysis(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"sweep.sizes": [2, 4, 10], "sweep.compute_budgets": [8e5, 1.2e6]}
    config = write(tmp_path, changes)
    assert told(capsys, "fit", "--config", config)[0] == GOOD
    _, out, _ = told(capsys, "analyze", tmp_path / "out", "--json")
    messages = [w["message"] for w in json.loads(out)["warnings"]]
    assert any("one learning rate, 0.01, for N = " in m and "5 times in width" in m for m in messages)
    told(capsys, "validate", tmp_path / "out", "--compute", "1.6e6")
    _, out, _ = told(capsys, "analyze", tmp_path / "out", "--json")
    messages = [w["message"] for w in json.loads(out)["warnings"]]
    assert any("one learning rate, 0.01" in m for m in messages), "one more run does not take it back"
