"""The command line: its answers, its messages, its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flops_fit.cli import BAD_INPUT, GOOD, INTERRUPTED, SOME_FAILED, main

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "flops_fit.ScalingModule",
        "init_args": {"net": {"class_path": "toy.Net"}, "loss_fn": "toy.squared_error", "lr": 0.01},
    },
    "data": {"class_path": "toy.Module", "init_args": {"batch_size": 32}},
    "trainer": {"accelerator": "cpu"},
    "sweep": {
        "size_param": "width",
        "compute_budgets": [5e5, 1.5e6, 5e6],
        "sizes": [3, 4, 6, 8],
        "min_steps": 5,
        "launcher": "inline",
    },
}


def write(folder: Path, changes: dict[str, Any] | None = None, name: str = "sweep.yaml") -> Path:
    """CONFIG with dotted keys set, or removed where the value is None."""
    config = json.loads(json.dumps(CONFIG))
    config["sweep"]["output_dir"] = str(folder / "out")
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        if value is None:
            node.pop(last)
        else:
            node[last] = value
    file = folder / name
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that ``fit`` has trained and analysed."""
    folder = tmp_path_factory.mktemp("cli")
    assert main(["fit", "--config", str(write(folder))]) == GOOD
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    write(tmp_path / "copy")
    return tmp_path / "copy"


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_fit_leaves_everything_that_the_design_promises(finished: Path) -> None:
    out = finished / "out"
    names = {"sweep.yaml", "plan.json", "runs", "runs.csv", "analysis.json", "draws.npz", "report"}
    assert names <= {p.name for p in out.iterdir()}
    assert (out / "report" / "report.html").stat().st_size > 10_000
    run = next((out / "runs").iterdir())
    parts = {"config.yaml", "metrics.csv", "timing.csv", "state.json", "checkpoints", "result.json"}
    assert parts <= {p.name for p in run.iterdir()}


def test_the_saved_config_loads_again(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "plan", "--config", finished / "out" / "sweep.yaml", "--json")
    assert code == GOOD
    mine = json.loads((finished / "out" / "plan.json").read_text())
    assert [e["experiment_id"] for e in json.loads(out)["experiments"]] == [
        e["experiment_id"] for e in mine["experiments"]
    ]


def test_fit_again_trains_nothing_and_answers_the_same(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {p: p.stat().st_mtime_ns for p in (copied / "out").glob("runs/*/*.csv")}
    before = json.loads((copied / "out" / "analysis.json").read_text())
    code, out, err = told(capsys, "fit", "--config", copied / "sweep.yaml")
    assert code == GOOD
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert "12 of 12 runs completed" in err
    assert "tokens_per_param" in out
    assert json.loads((copied / "out" / "analysis.json").read_text())["parametric"] == before["parametric"]


def test_plan_shows_cost_and_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, {"sweep.compute_budgets": [1e6, 1e7]})
    code, out, _ = told(capsys, "plan", "--config", config)
    assert code == GOOD
    assert "toy.Net: 7 runs, D in samples" in out
    assert "FLOPs (counted on the model)" in out
    assert "left out at 1e+07: size 3: 1" in out
    assert "tokens per parameter (at most 1000)" in out
    assert not (tmp_path / "out").exists()


def test_status_tells_every_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "status", finished / "out")
    assert code == GOOD
    assert len(out.splitlines()) == 14
    assert out.splitlines()[-1] == "12 completed; 100% of the FLOPs done"
    code, out, _ = told(capsys, "status", finished / "out", "--json")
    status = json.loads(out)
    assert status["schema_version"] == 1
    assert status["counts"] == {"completed": 12}
    assert all(run["loss"] > 0 for run in status["runs"])


def test_analyze_and_predict_give_one_json_document(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "analyze", finished / "out", "--json")
    assert code == GOOD
    analysis = json.loads(out)
    assert analysis["n_runs"] + len(analysis["excluded"]) == 12  # some see their few samples too often
    keys = {"excluded", "parametric", "isoflop", "envelope", "holdout", "headline", "n_convention", "warnings"}
    assert keys <= set(analysis)
    code, out, _ = told(capsys, "predict", finished / "out", "--compute", "1e8", "--json")
    prediction = json.loads(out)
    assert prediction["compute_budget"] == 1e8
    low, high = prediction["ci"]["num_params"]
    assert low < prediction["num_params"] < high


def test_the_table_of_a_sweep_can_be_analysed_anywhere(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "analyze", finished / "out" / "runs.csv", "--json")
    assert code == GOOD
    assert json.loads(out)["n_runs"] >= 8


@pytest.mark.slow
def test_report_goes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(N, D, 1.8 + 480 / N**0.35 + 2100 / D**0.37) for N in (1e8, 3e8, 1e9) for D in (2e9, 6e9, 2e10)]
    lines = [f"{N},{D},{loss}" for N, D, loss in rows]
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n" + "\n".join(lines) + "\n")
    code, out, _ = told(capsys, "report", tmp_path / "runs.csv", "--output", tmp_path / "page")
    assert code == GOOD
    assert "tokens_per_param" in out, "the answer itself"
    assert out.splitlines()[-1] == f"report: {tmp_path / 'page' / 'report.html'}"
    assert (tmp_path / "page" / "report.html").exists()


def test_run_trains_one_directory_and_only_it(copied: Path) -> None:
    run = next((copied / "out" / "runs").iterdir())
    (run / "result.json").unlink()
    (run / "checkpoints" / "last.ckpt").unlink()
    before = (run / "metrics.csv").read_bytes()
    assert main(["run", str(run)]) == GOOD
    assert (run / "result.json").exists()
    assert (run / "metrics.csv").read_bytes() == before


def test_every_key_is_an_option_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sweep.sizes", "[4, 8]", "--model.init_args.lr", "0.5", "--sweep.compute_budgets", '["1 MFLOP"]']
    _code, out, _ = told(capsys, "plan", "--config", write(tmp_path), "--json", *words)
    plan = json.loads(out)
    assert {e["size_param_value"] for e in plan["experiments"]} == {4, 8}
    assert plan["compute_budgets"] == [1e6]


def test_predict_answers_questions_beside_the_optimum(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = finished / "out"
    for words in (["--params", "300"], ["--compute", "1e7", "--tokens-per-param", "200"], ["--loss", "6"]):
        code, text, _ = told(capsys, "predict", out, *words)
        assert code == GOOD
        assert "num_params" in text
    code, _, err = told(capsys, "predict", out, "--params", "300", "--tokens-per-param", "20")
    assert code == BAD_INPUT
    assert "--tokens-per-param is asked with --compute" in err


def test_configs_are_stacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "preset.yaml").write_text("sweep: {sizes: [5]}\n")
    words = ["--config", write(tmp_path), "--config", tmp_path / "preset.yaml", "--json"]
    _, out, _ = told(capsys, "plan", *words)
    assert {e["size_param_value"] for e in json.loads(out)["experiments"]} == {5}


def test_several_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, {"sweep.lancher": "local", "model.init_args.lrr": 1, "data.init_args.batchsize": 3})
    code, out, err = told(capsys, "fit", "--config", config)
    assert (code, out) == (BAD_INPUT, "")
    assert "3 mistakes" in err
    for meant in ("launcher", "lr", "batch_size"):
        assert f"(did you mean {meant}?)" in err
    assert not (tmp_path / "out").exists()


def test_a_metric_that_does_not_fit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": {"num_classes": 3}}
    code, _, err = told(capsys, "fit", "--config", write(tmp_path, {"model.init_args.metrics": {"a": metric}}))
    assert code == BAD_INPUT
    assert "a (MulticlassAccuracy) fails" in err
    assert "compute_outputs" in err


def test_what_the_users_own_code_raises_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, {"data.class_path": "toy.BrokenModule"})
    code, out, err = told(capsys, "fit", "--config", config)
    assert (code, out) == (BAD_INPUT, "")
    assert "ZeroDivisionError: no shards in the bucket" in err
    assert "toy.py, line" in err
    assert "in setup" in err
    assert "Traceback" not in err
    monkeypatch.setenv("FLOPS_FIT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--config", str(config)])


def test_an_output_dir_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = told(capsys, "fit", "--config", write(tmp_path, {"sweep.output_dir": str(tmp_path / "file" / "x")}))
    assert code == BAD_INPUT
    assert "cannot be written" in err


def test_an_output_dir_of_another_sweep(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "fit", "--config", copied / "sweep.yaml", "--model.init_args.lr", "0.02")
    assert code == BAD_INPUT
    assert "holds another sweep" in err
    assert "lr: 0.01 -> 0.02" in err


def test_too_few_runs_for_any_method_say_what_each_one_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(1e8, 2e9, 3.0), (1e8, 3e9, 2.9), (1e8, 5e9, 2.8), (1e9, 6e9, 2.7), (1e9, 7e9, 2.65)]
    table = tmp_path / "runs.csv"
    table.write_text("params,tokens,loss\n" + "".join(f"{N},{D},{loss}\n" for N, D, loss in rows))
    code, out, err = told(capsys, "analyze", table, "--output", tmp_path / "saved")
    assert (code, out) == (BAD_INPUT, "")
    assert "5 runs cannot carry any scaling law" in err
    assert "train at least 7 runs" in err
    assert not (tmp_path / "saved").exists()


def test_a_metrics_file_cut_short(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = next((copied / "out" / "runs").glob("*/metrics.csv"))
    metrics.write_bytes(metrics.read_bytes()[:-7])
    for verb in ("analyze", "report"):
        code, _, err = told(capsys, verb, copied / "out")
        assert code == BAD_INPUT
        assert f"{metrics} is cut short" in err
        assert "only this run is trained" in err
    code, out, _ = told(capsys, "status", copied / "out")
    assert code == GOOD
    assert f"{metrics} is cut short" in out


def test_failed_runs_give_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    code, _, err = told(capsys, "fit", "--config", write(tmp_path, {"model.init_args.net.class_path": "toy.Failing"}))
    assert code in (SOME_FAILED, BAD_INPUT)
    assert "this model always fails" in err or "2 failed" in err


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "--help")
    assert code == GOOD
    for verb in ("fit", "plan", "run", "status", "analyze", "predict", "report"):
        assert f"  {verb} " in out


@pytest.mark.slow
def test_help_all_names_the_keys_that_a_sweep_may_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        told(capsys, "fit", "--help-all")
    out = capsys.readouterr().out
    assert ended.value.code == GOOD
    for key in ("sweep.compute_budgets", "sweep.slurm.partition", "model", "data", "trainer.devices"):
        assert f"  --{key} " in out
    for refused in ("max_steps", "logger", "enable_checkpointing", "default_root_dir"):
        assert f"--trainer.{refused}" not in out


@pytest.mark.parametrize(
    "words",
    [
        *(pytest.param(w, marks=pytest.mark.slow) for w in (["--help"], ["predict", "--help"], ["status", "{out}"])),
        ["analyze", "{out}"],
    ],
)
def test_light_verbs_do_not_load_torch(finished: Path, words: list[str]) -> None:
    code = (
        "import sys\nfrom flops_fit.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "loaded = {'torch', 'lightning', 'matplotlib'} & set(sys.modules)\nsys.exit(str(loaded) if loaded else 0)"
    )
    arguments = [w.format(out=finished / "out") for w in words]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ctrl_c_exits_with_75(tmp_path: Path) -> None:
    import os
    import signal
    import time

    slow = {"model.init_args.net.class_path": "toy.Slow", "sweep.compute_budgets": [1e8], "sweep.sizes": [16, 20]}
    config = write(tmp_path, slow | {"sweep.launcher": "local"})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-m", "flops_fit", "fit", "--config", str(config)],
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    while not list((tmp_path / "out").glob("runs/*/timing.csv")):
        assert process.poll() is None, "the sweep ended before it could be interrupted"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert b"stopping: runs of this machine save what they have first" in errors
    assert f"flops-fit fit --config {config}".encode() in errors
    assert b"Traceback" not in errors
