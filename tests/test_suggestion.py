"""From an answer to the next run: a size that can be built, and a config that trains it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from test_cli import CONFIG, finished, told

import flops_fit
from flops_fit.cli import BAD_INPUT, GOOD
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.fit import ScalingAnalysis, analyze_runs
from flops_fit.laws import ParametricLaw
from flops_fit.runs.directory import SweepDirectory
from flops_fit.suggestion import suggest

__all__ = ["finished"]

LAW = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
SIZES = (256, 512, 768, 1024)


def num_params(width: int) -> int:
    return 12 * 8 * width**2 + 2000 * width


def planned(size_kwargs: bool = False) -> SweepPlan:
    experiments = []
    for C in (1e17, 4e17, 1.6e18, 6.4e18):
        for width in SIZES:
            N = num_params(width)
            experiments.append(
                Experiment(
                    experiment_id=f"C{C:g}_w{width}",
                    compute_budget=C,
                    size_param_value=width,
                    num_params=N,
                    num_tokens=round(C / (6 * N)),
                    flops_per_token=6.0 * N,
                    size_kwargs={"d_model": width, "n_layer": 8} if size_kwargs else None,
                )
            )
    return SweepPlan(
        experiments=experiments,
        size_param="d_model",
        model_cls_name="my.GPT",
        model_kwargs={"n_layer": 8},
        compute_budgets=[1e17, 4e17, 1.6e18, 6.4e18],
        batch_size=32,
        tokens_per_sample=1024,
    )


@pytest.fixture(scope="module")
def analysis() -> ScalingAnalysis:
    frame = planned().to_frame()
    loss = LAW.loss(frame["num_params"], frame["num_tokens"])
    return analyze_runs(frame.assign(loss=loss * np.exp(np.random.default_rng(0).normal(0, 0.002, len(frame)))))


def sweep_in(folder: Path, analysis: ScalingAnalysis, *, size_kwargs: bool = False, **group: Any) -> Path:
    """A sweep's directory as ``fit`` leaves it, but for its runs, whose classes do not exist."""
    SweepDirectory(folder).open(planned(size_kwargs).to_dict(), {})
    net = {"class_path": "no_such_package.GPT", "init_args": {"n_layer": 8}}
    config = {
        "model": {"class_path": "flops_fit.ScalingModule", "init_args": {"net": net, "lr": 1e-3}},
        "data": {"class_path": "no_such_package.Text", "init_args": {"batch_size": 32}},
        "trainer": {"accelerator": "gpu", "precision": "bf16-mixed", "max_steps": -1, "strategy": "auto"},
        "sweep": {"size_param": "d_model", "compute_budgets": [1e17], "output_dir": str(folder), "jobs": 4} | group,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(config))
    analysis.save(folder)
    return folder


def test_the_nearest_size_is_put_into_the_sweeps_own_config(tmp_path: Path, analysis: ScalingAnalysis) -> None:
    run = suggest(analysis, sweep_in(tmp_path / "out", analysis), 1e21)
    best = analysis.predict(1e21)
    assert run.size is not None
    assert run.size % 256 == 0, "a multiple of what the sweep's sizes share"
    assert run.num_params == pytest.approx(num_params(run.size), rel=1e-3)
    assert abs(np.log(run.num_params / best.num_params)) < np.log(num_params(2048) / num_params(1792))
    assert not run.is_counted
    assert any("was not counted" in text for text in run.caveats)
    assert run.steps * 32 * 1024 == run.num_tokens == pytest.approx(1e21 / (6 * run.num_params), rel=1e-3)
    assert run.prediction.loss == pytest.approx(best.loss, rel=0.01)
    assert str(run) == run.to_yaml()
    config = yaml.safe_load(str(run))
    assert config["sweep"] == {
        "size_param": "d_model",
        "compute_budgets": [1e21],
        "sizes": [run.size],
        "min_steps": 1,
        "output_dir": f"{tmp_path / 'out'}_C1e+21",
    }
    assert config["model"]["init_args"]["net"]["class_path"] == "no_such_package.GPT"
    assert config["trainer"] == {"accelerator": "gpu", "precision": "bf16-mixed"}


def test_a_counted_size_is_taken_where_it_is_the_nearest(tmp_path: Path, analysis: ScalingAnalysis) -> None:
    C = float(analysis.predict(params=num_params(768)).compute_budget)
    run = suggest(analysis, sweep_in(tmp_path / "out", analysis), C)
    assert (run.size, run.num_params, run.is_counted) == (768, num_params(768), True)
    assert not any("was not counted" in text for text in run.caveats)
    finer = suggest(analysis, sweep_in(tmp_path / "fine", analysis, size_multiple=64), 1e21)
    assert finer.size is not None
    assert finer.size % 64 == 0
    assert abs(finer.num_params / finer.num_params_optimal - 1) < 0.1


def test_of_a_table_of_sizes_the_nearest_row_is_taken(tmp_path: Path, analysis: ScalingAnalysis) -> None:
    run = suggest(analysis, sweep_in(tmp_path / "out", analysis, size_kwargs=True), 1e21)
    assert run.config is not None
    assert run.config["sweep"]["sizes"] == [{"d_model": 1024, "n_layer": 8}]
    assert any("Put a row of the right size" in text for text in run.caveats)


def test_a_width_follows_its_depth(tmp_path: Path, analysis: ScalingAnalysis) -> None:
    width = {"param": "n_embd", "aspect_ratio": 1.0, "head_dim": 64}
    run = suggest(analysis, sweep_in(tmp_path / "out", analysis, size_kwargs=True, width=width), 1e21)
    assert run.size_arguments == {"d_model": run.size, "n_embd": run.size}
    assert run.config is not None
    assert run.config["sweep"]["width"] == width


def test_a_sweep_from_python_gives_arguments_of_find_optimal(tmp_path: Path, analysis: ScalingAnalysis) -> None:
    folder = sweep_in(tmp_path / "out", analysis)
    (folder / "sweep.yaml").unlink()
    arguments = yaml.safe_load(suggest(analysis, folder, 1e21).to_yaml())["find_optimal"]
    assert arguments["model_cls"] == "my.GPT"
    assert arguments["model_size_param"] == "d_model"
    assert arguments["batch_size"] == 32
    with pytest.raises(TypeError, match="no_such_argument"):
        flops_fit.find_optimal(**arguments, no_such_argument=1)


def test_a_table_gives_n_d_and_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = planned().to_frame()
    runs = pd.DataFrame({"params": frame["num_params"], "tokens": frame["num_tokens"]})
    result = flops_fit.analyze(runs.assign(loss=LAW.loss(runs["params"], runs["tokens"])), n_bootstrap=50)
    run = result.suggest_config("1e21")
    assert (run.size, run.config) == (None, None)
    assert run.steps * run.batch_tokens == run.num_tokens == pytest.approx(result.predict(1e21).num_tokens, rel=0.01)
    assert "there is no model to configure" in run.to_yaml()
    assert yaml.safe_load(run.to_yaml())["steps"] == run.steps
    result.analysis.save(tmp_path)
    code, _, err = told(capsys, "predict", tmp_path, "--compute", "1e21", "--emit-config", tmp_path / "next.yaml")
    assert code == GOOD
    assert "names no model" in err
    assert yaml.safe_load((tmp_path / "next.yaml").read_text())["steps"] == run.steps


def test_emitting_imports_neither_torch_nor_what_the_config_names(tmp_path: Path, analysis: ScalingAnalysis) -> None:
    folder = sweep_in(tmp_path / "out", analysis)
    program = (
        "import sys; from flops_fit.cli import main;"
        f"code = main(['predict', {str(folder)!r}, '--compute', '1e21', '--emit-config', '-']);"
        "print(code, *({'torch', 'lightning', 'no_such_package'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["0"]
    assert yaml.safe_load(done.stdout)["sweep"]["compute_budgets"] == [1e21]


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch owned']", "[1, 2", "sweep: 3", ""])
def test_a_damaged_or_hostile_config_runs_nothing(
    tmp_path: Path, analysis: ScalingAnalysis, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    folder = sweep_in(tmp_path / "out", analysis)
    (folder / "sweep.yaml").write_text(text)
    code, out, err = told(capsys, "predict", folder, "--compute", "1e21", "--emit-config", "-")
    assert (code, out) == (BAD_INPUT, "")
    assert "sweep.yaml" in err
    assert not Path("owned").exists()


def test_what_cannot_be_emitted_is_said(
    tmp_path: Path, analysis: ScalingAnalysis, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis.save(tmp_path)
    asked = ("predict", tmp_path, "--compute", "1e21", "--emit-config")
    for words, said in (
        ((*asked, "-", "--json"), "both want the standard output"),
        ((*asked, tmp_path / "nowhere" / "x.yaml"), "there is no folder"),
        ((*asked, "-", "--tokens-per-param", "100"), "goes with --compute, --params, --tokens or --loss alone"),
    ):
        code, out, err = told(capsys, *words)
        assert (code, out) == (BAD_INPUT, "")
        assert said in err


@pytest.mark.slow
def test_the_emitted_config_trains_the_one_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(capsys, "predict", finished / "out", "--params", 150, "--emit-config", "next.yaml")[0] == GOOD
    config = yaml.safe_load(Path("next.yaml").read_text())
    assert config["sweep"]["sizes"] == [8]
    assert config["model"]["init_args"]["lr"] == CONFIG["model"]["init_args"]["lr"]
    code, out, _ = told(capsys, "plan", "--config", "next.yaml", "--json")
    assert code == GOOD
    (experiment,) = json.loads(out)["experiments"]
    steps = next(line.split()[2] for line in Path("next.yaml").read_text().splitlines() if line.startswith("# steps"))
    assert (experiment["num_params"], experiment["steps"]) == (153, int(steps.replace(",", "")))
    code, out, err = told(capsys, "fit", "--config", "next.yaml", "--sweep.output_dir", "one")
    assert code == GOOD, err
    assert out.startswith("loss ")
    code, out, _ = told(capsys, "fit", "--config", "next.yaml", "--sweep.output_dir", "one", "--json")
    assert json.loads(out)["num_params"] == 153
