"""``flops-fit plan``: what a sweep will cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import told, write

from flops_fit.cli import BAD_INPUT, GOOD


def test_every_run_has_its_cost_within_a_hundred_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    code, out, _ = told(capsys, "plan", "--config", config, "--jobs", 3, "--price-per-hour", 2, "--device-flops", "1e9")
    assert code == GOOD
    head = next(line for line in out.splitlines() if line.lstrip().startswith("budget"))
    assert head.split() == "budget width N D D/N steps FLOPs off epochs memory time".split()
    assert max(map(len, out.splitlines()[:18])) <= 100
    assert "with 3 runs at a time" in out
    assert "at 1 GFLOP/s a device, as given" in out
    assert "at 2 a device-hour" in out
    assert "peak learning rate: 0.01" in out
    assert "without activations" in out


def test_details_are_there_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, wide, _ = told(capsys, "plan", "--config", write(tmp_path, {"sweep.launcher": "local"}), "-v")
    assert "N matmul  N total  N non-emb  C/6ND" in wide
    assert "assumed: 15 GFLOP/s a core" in wide


def test_it_says_what_further_seeds_add_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    _, once, _ = told(capsys, "plan", "--config", config)
    _, out, _ = told(capsys, "plan", "--config", config, "--sweep.seeds", "[0, 1, 2]")
    assert "seeds:" not in once
    assert "seeds: 1, 2 again at 5e+05: 8 more runs, " in out
    assert "more FLOPs; their scatter is the noise that the fit is judged by" in out
    _, out, _ = told(capsys, "plan", "--config", config, "--sweep.seeds", "[0, 1, 2]", "--sweep.seeds_at", "all")
    assert "seeds: 1, 2 again at all budgets: 24 more runs, 2e+02% more FLOPs" in out


def test_json_carries_the_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "plan", "--config", write(tmp_path), "--json", "--device-flops", "1e9")
    assert code == GOOD
    plan = json.loads(out)
    cost = plan["cost"]
    assert [r["experiment_id"] for r in cost["runs"]] == [e["experiment_id"] for e in plan["experiments"]]
    assert cost["runs"][0]["lr"] == 0.01
    assert cost["runs"][0]["epochs"] == pytest.approx(plan["experiments"][0]["num_tokens"] / 4000)
    assert sum(r["seconds"] for r in cost["runs"]) == pytest.approx(plan["total_flops"] / 1e9)
    assert cost["jobs"] == 1  # the config says inline
    assert cost["price"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--jobs", "two"], "'two' is not a whole number"),
        (["--price-per-hour", "-1"], "price_per_hour=-1.0"),
        (["--device-flops", "fast"], "'fast' is not an amount of compute"),
        (["--device-flops", "0"], "trains nothing"),
    ],
)
def test_a_wrong_option_is_one_message(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = told(capsys, "plan", "--config", write(tmp_path), *options)
    assert (code, out) == (BAD_INPUT, "")
    assert message in err
    assert err.count("error") == 1
