"""What a stranger's sweep directory may do to whoever looks at it: nothing; and what it may tell of its owner."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from on_disk import complete, fail, write_sweep
from test_cli import told

from flops_fit.cli import GOOD
from flops_fit.runs.directory import SweepDirectory

SECRETS = ("hf_abcdefghijklmnop", "ghp_0123456789abcdefghij", "hunter2", "sk-verysecretverysecret")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepDirectory:
    """A whole sweep, one of whose runs failed; the working directory is empty."""
    sweep = write_sweep(tmp_path / "out")
    for e in sweep.experiments()[:-1]:
        complete(sweep.run(e.experiment_id), e)
    fail(sweep.run(sweep.experiments()[-1].experiment_id), "RuntimeError: no")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return sweep


def look_at(sweep: SweepDirectory, capsys: pytest.CaptureFixture[str], page: Path) -> str:
    """Everything that can be asked of a directory without trusting it; all that is printed and written."""
    printed = []
    for words in (
        ["status", sweep.path],
        ["status", sweep.path, "--json"],
        ["status", sweep.path, "--watch", "--interval", "0"],
        ["analyze", sweep.path, "--bootstrap", 20],
        ["predict", sweep.path, "--compute", "1e14"],
        ["report", sweep.path, "--bootstrap", 20, "--output", page],
    ):
        code, out, err = told(capsys, *words)
        assert code == GOOD, err
        printed += [out, err]
    return "".join(printed) + "".join(p.read_text() for p in page.rglob("*") if p.suffix in (".html", ".md", ".csv"))


@pytest.mark.slow
def test_a_hostile_directory_runs_nothing(
    sweep: SweepDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "hacked"
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "evil.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).write_text('x')\nclass Net: ...\n")
    hostile = {
        "schema_version": 1,
        "experiment": {"__reduce__": "os.system"},
        "recipe": {"kind": "config", "model": {"class_path": "evil.Net"}, "data": {"class_path": "evil.Net"}},
        "import_path": [str(trap)],
    }
    for run in (sweep.path / "runs").iterdir():
        (run / "config.yaml").write_text(json.dumps(hostile))
        (run / "evil.py").write_text((trap / "evil.py").read_text())
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]\n"
    (sweep.path / "sweep.yaml").write_text(f"model: {tag}sweep: {{size_param: evil.Net}}\nimport_path: [{trap}]\n")
    (sweep.path / "env.json").write_text(json.dumps({"command": [f"touch {marker}"]}))
    plan = json.loads(sweep.plan_file.read_text())
    plan |= {"model_cls_name": "evil.Net", "model_kwargs": {"class_path": "evil.Net"}, "basis": {"class": "evil.Net"}}
    sweep.plan_file.write_text(json.dumps(plan))
    for name in ("sitecustomize.py", "numpy.py", "evil.py"):
        shutil.copy(trap / "evil.py", sweep.path / name)
    before = list(sys.path)
    look_at(sweep, capsys, tmp_path / "page")
    assert sys.path == before
    assert "evil" not in sys.modules
    assert not marker.exists()


@pytest.mark.slow
def test_a_hostile_analysis_builds_nothing(
    sweep: SweepDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "hacked"
    assert told(capsys, "analyze", sweep.path, "--bootstrap", 20)[0] == GOOD
    analysis = json.loads((sweep.path / "analysis.json").read_text())
    analysis["state"] = {"class": "os.system", "fields": {"command": f"touch {marker}"}}
    (sweep.path / "analysis.json").write_text(json.dumps(analysis))
    code, out, err = told(capsys, "predict", sweep.path, "--compute", "1e14")
    assert (code, out) == (2, "")
    assert "is damaged" in err
    assert not marker.exists()


@pytest.mark.slow
def test_no_credential_is_told(
    sweep: SweepDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the environment, nor of git's remote, nor of what a run or a command line said."""
    token, other, password, key = SECRETS
    for name, value in (("HF_TOKEN", token), ("GITHUB_TOKEN", other), ("WANDB_API_KEY", key), ("AWS_SECRET", password)):
        monkeypatch.setenv(name, value)
    if shutil.which("git"):
        remote = f"https://me:{password}@example.org/repo.git"
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", remote], check=True)
    failed = sweep.run(sweep.experiments()[-1].experiment_id)
    fail(failed, f"OSError: https://me:{password}@example.org/data?token={token} refused api_key={key}")
    from flops_fit.train.environment import origin, write_environment

    monkeypatch.setattr(sys, "argv", ["flops-fit", "fit", "--data.init_args.token", token, f"--key={key}"])
    for e in sweep.experiments():
        write_environment(sweep.run(e.experiment_id), origin(tmp_path))
    told_of = look_at(sweep, capsys, tmp_path / "page")
    told_of += "".join(p.read_text() for p in sweep.path.glob("runs/*/env.json"))
    assert "[redacted]" in told_of
    for secret in SECRETS:
        assert secret not in told_of
