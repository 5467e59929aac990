"""The presets stack on any sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flops_fit.cli import GOOD, main
from flops_fit.cli.config import SweepCLI
from flops_fit.sweep.config import RayOptions, SlurmOptions, SweepConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def _no_words_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["flops-fit"])  # Lightning warns where there are both


def stacked(*names: str, words: tuple[str, ...] = ()) -> SweepCLI:
    return SweepCLI([CONFIGS / f"{name}.yaml" for name in names], words, "plan")


@pytest.mark.slow
def test_a_sweep_under_a_preset_is_the_same_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plans = []
    for name in (None, "laptop", "one_node_8gpu", "slurm"):
        presets = ["--config", str(CONFIGS / f"{name}.yaml")] if name else []
        words = ["--config", str(CONFIGS / "smoke.yaml"), *presets, "--sweep.compute_budgets=[1e10]", "--json"]
        assert main(["plan", *words]) == GOOD
        plans.append({k: v for k, v in json.loads(capsys.readouterr().out).items() if k != "cost"})
    assert len(plans[0]["experiments"]) > 1
    assert all(other == plans[0] for other in plans)


def test_a_preset_says_how_and_leaves_what_to_the_sweep() -> None:
    alone = stacked("quickstart")
    on_laptop, on_node, on_slurm = (stacked("quickstart", name) for name in ("laptop", "one_node_8gpu", "slurm"))
    for cli in (on_laptop, on_node, on_slurm):
        assert cli.sweep.compute_budgets == alone.sweep.compute_budgets
        assert cli.sweep.output_dir == alone.sweep.output_dir
        assert cli.recipe.model_kwargs == alone.recipe.model_kwargs
        assert cli.recipe.basis() == alone.recipe.basis()
    assert (on_laptop.sweep.launcher, on_laptop.recipe.trainer()["accelerator"]) == ("local", "auto")
    assert (on_node.sweep.launcher, on_node.sweep.runs_per_gpu) == ("local", 4)
    assert on_slurm.sweep.launcher == "slurm"
    assert on_slurm.sweep.slurm == SlurmOptions(time_limit=4 * 3600, cpus=8, memory="32G")


def test_nested_options_can_be_set_by_a_word_and_loaded_again(tmp_path: Path) -> None:
    words = ("--sweep.slurm.partition=big", "--sweep.slurm.extra+=--qos=high", "--sweep.ray.gpus=0.25")
    cli = stacked("smoke", "slurm", words=words)
    assert (cli.sweep.slurm.partition, cli.sweep.slurm.extra) == ("big", ["--qos=high"])
    assert cli.sweep.ray == RayOptions(gpus=0.25)
    (tmp_path / "sweep.yaml").write_text(cli.text)
    assert SweepCLI([tmp_path / "sweep.yaml"], (), "plan").sweep == cli.sweep


def test_nested_options_may_be_mappings_in_python() -> None:
    config = SweepConfig(size_param="width", compute_budgets=[], slurm={"time_limit": "4h"}, ray=None)
    assert (config.slurm, config.ray) == (SlurmOptions(time_limit=14400), RayOptions())
