"""Real steps before the whole: what they cost, and what they find."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from test_cli import told, write

from flops_fit.cli import BAD_INPUT, GOOD


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trials are trained, to see that nothing stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_check_reports_both_ends_and_leaves_nothing(
    tmp_path: Path, own_temporary_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = told(capsys, "check", "--config", write(tmp_path))
    assert code == GOOD
    assert out.startswith("good: toy.Net, its data, its loss and its evaluation work together (32 samples a step)\n")
    assert "  width 3 (N = " in out
    assert "  width 8 (N = " in out
    assert ": 2 steps and an evaluation batch on cpu, loss " in out
    assert "not checked: the 2 sizes in between; the data beyond the first batches" in out
    assert not list(own_temporary_folder.glob("flops-fit-*"))
    assert not (tmp_path / "out").exists()


def test_a_check_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"sweep.sizes": [4], "sweep.compute_budgets": [1e6]}
    code, out, _ = told(capsys, "check", "--config", write(tmp_path, changes), "--json")
    assert code == GOOD
    answer = json.loads(out)
    assert [c["size"] for c in answer["checked"]] == [4]
    assert answer["checked"][0]["device"] == "cpu"
    assert "the data beyond the first batches" in answer["not_checked"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.init_args.net.class_path": "toy.Failing"},
            "size 3 cannot be trained: RuntimeError: this model always fails",
        ),
        ({"model.init_args.net.class_path": "toy.Exploding"}, "size 3 cannot be trained: the training loss is inf at"),
        ({"model.init_args.loss_fn": "toy.unreduced_error"}, "a loss is one number: reduce it"),
        ({"data.class_path": "toy.BrokenModule"}, "no shards in the bucket"),
        ({"trainer.max_steps": 5}, "trainer.max_steps cannot be set"),
        ({"sweep.launcher": "nearby"}, "nearby"),
    ],
)
def test_a_check_finds_what_a_sweep_would_stumble_over(
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    own_temporary_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"sweep.flops": "6nd"} | changes
    code, out, err = told(capsys, "check", "--config", write(tmp_path, changes))
    assert (code, out) == (BAD_INPUT, "")
    assert message in err
    assert err.count("error: ") == 1
    assert not list(own_temporary_folder.glob("flops-fit-*"))


@pytest.mark.slow
def test_a_benchmark_measures_time_and_memory(
    tmp_path: Path, own_temporary_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit.trial._SECONDS", 0.05)
    code, out, _ = told(capsys, "plan", "--config", write(tmp_path), "--benchmark", "--json")
    assert code == GOOD
    plan = json.loads(out)
    cost = plan["cost"]
    assert cost["is_measured"]
    assert cost["source"].startswith("measured: 0.05 s of steps of every size, 1 at a time, on ")
    assert cost["wall_seconds"] == pytest.approx(sum(r["seconds"] for r in cost["runs"]) + cost["seconds_around"])
    assert all(0 < r["seconds"] for r in cost["runs"])
    assert all(r["memory_bytes"] > 1e7 for r in cost["runs"])
    by_size: dict[int, list[tuple[int, float]]] = {}
    for e, r in zip(plan["experiments"], cost["runs"], strict=True):
        by_size.setdefault(e["size_param_value"], []).append((e["steps"], r["seconds"]))
    assert all(sorted(runs) == sorted(runs, key=lambda run: run[1]) for runs in by_size.values())
    assert not list(own_temporary_folder.glob("flops-fit-*"))
    assert not (tmp_path / "out").exists()


def test_a_benchmark_of_what_cannot_be_trained_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"model.init_args.net.class_path": "toy.FailingAtSix"}
    code, out, err = told(capsys, "plan", "--config", write(tmp_path, changes), "--benchmark")
    assert (code, out) == (BAD_INPUT, "")
    assert "size 6 cannot be trained: RuntimeError: width 6 always fails" in err
    assert "raised as RuntimeError at " in err
    code, _, err = told(capsys, "plan", "--config", write(tmp_path), "--benchmark", "--device-flops", "1e9")
    assert code == BAD_INPUT
    assert "give one of them" in err


@pytest.mark.slow
def test_a_benchmark_in_processes_of_their_own(
    tmp_path: Path, own_temporary_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flops_fit.trial._SECONDS", 0.2)
    config = write(tmp_path, {"sweep.launcher": "local"})
    code, out, _ = told(capsys, "plan", "--config", config, "--benchmark", "--jobs", "2")
    assert code == GOOD
    assert "with 2 runs at a time" in out
    assert "measured: 0.2 s of steps of every size, 2 at a time" in out
    assert not list(own_temporary_folder.glob("flops-fit-*"))
    code, out, _ = told(capsys, "check", "--config", config)
    assert code == GOOD
    assert "of memory at most" in out
    changes = {"sweep.launcher": "local", "model.init_args.net.class_path": "toy.Failing"}
    code, _, err = told(capsys, "check", "--config", write(tmp_path, changes))
    assert code == BAD_INPUT
    assert "this model always fails" in err
