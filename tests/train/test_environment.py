"""What is recorded of machine and source is enough to repeat a run, and gives nobody's secrets away."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit.redaction import redacted_words
from flops_fit.runs.directory import RunDirectory
from flops_fit.train import environment as module
from flops_fit.train.environment import environment, git_state, origin, write_environment

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "model.py").write_text("size = 1\n")
    git(tmp_path, "add", "model.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


@needs_git
def test_the_commit_and_whether_it_was_changed_are_known(repository: Path) -> None:
    (repository / "outputs").mkdir()
    (repository / "outputs" / "new.txt").write_text("untracked: results do not make the source dirty")
    clean = git_state(repository / "outputs")
    assert clean == {"commit": git(repository, "rev-parse", "HEAD"), "branch": "trunk", "is_dirty": False}
    (repository / "model.py").write_text("size = 2\n")
    assert git_state(repository) == clean | {"is_dirty": True}
    git(repository, "add", "model.py")
    assert git_state(repository) == clean | {"is_dirty": True}
    git(repository, "checkout", "-q", "--force", "--detach")
    assert git_state(repository) == clean | {"branch": None}


@needs_git
def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert git_state(tmp_path) == {"commit": None, "branch": "trunk", "is_dirty": False}


def test_where_git_says_nothing_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "missing") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_a_git_that_hangs_does_not_hold_a_sweep_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "git"
    slow.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_GIT_SECONDS", 0.2)
    assert git_state(tmp_path) is None


@pytest.mark.parametrize(
    "words",
    [
        ["--wandb-key", "hunter2"],
        ["--hf_token=hunter2"],
        ["--data.init_args.api_key", "hunter2"],
        ['--sweep.loggers=[{"class_path": "x", "init_args": {"api_key": "hunter2"}}]'],
        ["--uri=https://me:hunter2@example.org/x"],
        ["--url", "postgres://me:hunter2@example.org/x?password=hunter2"],
        ["positional", "hf_hunter2hunter2"],
        ["ghp_hunter2hunter2hunter2"],
        ["-auth", "hunter2"],
    ],
)
def test_what_looks_like_a_credential_is_left_out(words: list[str]) -> None:
    clean = redacted_words(["flops-fit", *words])
    assert "hunter2" not in " ".join(clean)
    assert "[redacted]" in " ".join(clean)
    assert len(clean) == len(words) + 1


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config", "configs/a.yaml", "--sweep.compute_budgets", "[1e17, 3e17]"],
        ["--model.init_args.loss_fn", "flops_fit.examples.next_token_loss", "--tokens", "20B"],
        ["--model.init_args.unit=tokens", "--data.init_args.max_tokens=5", "C1e+10_d_model64_s0_3f2a9c1d"],
    ],
)
def test_an_ordinary_command_is_kept_as_it_was(words: list[str]) -> None:
    assert redacted_words(words) == words


def test_env_json_says_machine_and_source_and_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--token", "hunter2"])
    run = RunDirectory(tmp_path)
    write_environment(run, origin(tmp_path))
    text = (tmp_path / "env.json").read_text()
    values = json.loads(text)
    assert "hunter2" not in text
    assert values["schema_version"] == 1
    assert values["command"] == ["sweep.py", "--token", "[redacted]"]
    assert values["variables"]["OMP_NUM_THREADS"] == "1"
    assert values["versions"]["torch"]
    assert values["threads"] >= 1
    assert set(values) >= {"git", "python", "platform", "hostname", "cpu", "cores", "devices", "cuda"}
    write_environment(run, None)
    assert json.loads((tmp_path / "env.json").read_text())["git"] is None


def test_an_environment_is_plain_values() -> None:
    values = environment()
    assert json.loads(json.dumps(values)) == values
