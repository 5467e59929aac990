"""The shipped sweeps of images: planned as they say, and trained, with budgets cut so that it takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit.cli import BAD_INPUT, GOOD, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runs"), [("glyphs", 14), ("vit_cifar10", 13)])
def test_the_configs_plan_what_they_say(
    name: str, runs: int, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--data.init_args.path", str(corpora / "cifar10_subset.npz")] if name == "vit_cifar10" else []
    assert main(["plan", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--json", *images]) == GOOD
    plan = json.loads(capsys.readouterr().out)
    assert (plan["num_experiments"], len(plan["compute_budgets"])) == (runs, 3)
    assert (plan["flops_rule"], plan["unit"]) == ("counted", "samples")
    for experiment in plan["experiments"]:
        assert experiment["steps"] >= 150
        assert experiment["flops"] == pytest.approx(experiment["compute_budget"], rel=0.01)


def test_a_sweep_without_its_archive_ends_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(ROOT / "configs" / "vit_cifar10.yaml")]) == BAD_INPUT
    told = capsys.readouterr().err
    assert f"there are no images at {tmp_path / 'cifar-10-binary.tar.gz'}" in told
    assert "Traceback" not in told
    assert not list(tmp_path.rglob("runs/*"))


def trained(command: list[str], tmp_path: Path, output: str, **environment: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode in (GOOD, 1), done.stderr  # 1: so short a sweep is not to be trusted
    return [json.loads(p.read_text()) for p in (tmp_path / output).glob("runs/*/result.json")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glyphs", "vit_cifar10"])
def test_the_configs_train(name: str, tmp_path: Path, corpora: Path) -> None:
    command = ["-m", "flops_fit", "fit", "--config", str(ROOT / "configs" / f"{name}.yaml"), "--sweep.min_steps", "20"]
    command += ["--sweep.compute_budgets", "[2e9, 4e9]", "--sweep.sizes", "[4, 8, 12]"]
    if name == "vit_cifar10":
        command += ["--data.init_args.path", str(corpora / "cifar10_subset.npz")]
    results = trained(command, tmp_path, f"outputs/{name}")
    assert len(results) == 6
    assert all(0 < result["metrics"]["accuracy"] < 1 for result in results)


@pytest.mark.slow
def test_the_script_trains(tmp_path: Path, corpora: Path) -> None:
    text = (ROOT / "examples" / "vit_cifar10.py").read_text()
    cuts = {"compute_budgets=[3e10, 1e11, 3e11]": "compute_budgets=[2e9, 4e9], min_steps=20"}
    cuts |= {"num_sizes_per_budget=5": "sizes=[4, 8, 12]"}
    for whole, cut in cuts.items():
        assert whole in text
        text = text.replace(whole, cut)
    (tmp_path / "script.py").write_text(text)
    results = trained(
        ["script.py"], tmp_path, "outputs/vit_cifar10_smoothed", CIFAR10=str(corpora / "cifar10_subset.npz")
    )
    assert len(results) == 6
