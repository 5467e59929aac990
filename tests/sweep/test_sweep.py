"""Sweeps of real tiny models in real processes: what is done is never done again, whatever was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from flops_fit.errors import PlanError
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.table import read_runs
from flops_fit.study import Study, plan_study, train_study
from flops_fit.sweep.config import SweepConfig
from flops_fit.sweep.orchestrator import Selection
from flops_fit.sweep.progress import Progress
from flops_fit.train.recipe import PythonRecipe

BUDGETS = [3e5, 1e6, 3e6]


def study(folder: Path, budgets: list[float] = BUDGETS, **options: object) -> Study:
    options = {"sizes": [4, 6, 8], "launcher": "inline"} | options
    recipe = PythonRecipe(
        model_cls=options.pop("model_cls", toy.Net),
        model_kwargs={},
        loss_fn=toy.squared_error,
        dataset=toy.regression,
        batch_size=64,
        module_kwargs={"lr": options.pop("lr", 1e-2)},
        trainer_kwargs=options.pop("trainer", {}),
    )
    config = SweepConfig(
        size_param="width",
        compute_budgets=budgets,
        output_dir=folder,
        min_steps=5,
        **options,
    )
    return plan_study(recipe, config)


def trained(sweep: SweepDirectory) -> dict[str, int]:
    """When each result was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in sweep.path.glob("runs/*/result.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "out"
    outcome = train_study(study(folder))
    assert outcome.counts == {RunState.COMPLETED: 9}
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_every_run_spends_its_budget_to_within_half_a_batch(finished: Path) -> None:
    table = read_runs(SweepDirectory(finished))
    assert len(table) == 9
    batch = 64 * table["flops"] / table["num_tokens"]
    assert ((table["flops"] - table["compute_budget"]).abs() <= batch / 2 * (1 + 1e-9)).all()


def test_the_same_call_again_trains_nothing(copied: Path) -> None:
    before = trained(SweepDirectory(copied))
    train_study(study(copied))
    assert trained(SweepDirectory(copied)) == before


def test_a_deleted_run_is_the_only_one_trained(copied: Path) -> None:
    sweep = SweepDirectory(copied)
    before = trained(sweep)
    gone = sorted(before)[4]
    shutil.rmtree(sweep.run(gone).path)
    train_study(study(copied))
    assert {name for name, at in trained(sweep).items() if before[name] != at} == {gone}


def test_a_new_budget_trains_only_its_own_cells(copied: Path) -> None:
    sweep = SweepDirectory(copied)
    before = trained(sweep)
    train_study(study(copied, [*BUDGETS, 5e6]))
    after = trained(sweep)
    assert {name: after[name] for name in before} == before
    assert {name.partition("_")[0] for name in set(after) - set(before)} == {"C5e+06"}


def test_seeds_join_a_sweep_and_its_runs_stay(copied: Path) -> None:
    sweep = SweepDirectory(copied)
    before = trained(sweep)
    train_study(study(copied, seeds=[0, 1]))
    after = trained(sweep)
    assert {name: after[name] for name in before} == before
    assert {name.partition("_")[0] for name in set(after) - set(before)} == {"C3e+05"}  # the smaller half of three
    table = read_runs(sweep)
    pairs = table[table["compute_budget"] == 3e5].groupby("size")
    assert (pairs["seed"].nunique() == 2).all()
    assert (pairs["loss"].nunique() == 2).all()
    assert (pairs["num_tokens"].nunique() == 1).all()
    # Runs of seeds that are no longer asked for are neither trained again nor forgotten.
    more = study(copied, seeds=[0, 1], seeds_at="all")
    more.directory.open(more.plan.to_dict(), more.basis)
    train_study(study(copied, seeds=[0, 1]))
    assert trained(sweep) == after
    assert len(SweepDirectory(copied).experiments()) == 18


def test_another_rate_is_another_sweep_and_says_what_changed(copied: Path) -> None:
    with pytest.raises(PlanError, match=r"holds another sweep.*lr: 0\.01 -> 0\.02") as error:
        train_study(study(copied, lr=2e-2))
    assert "choose another output_dir" in str(error.value)


def test_an_output_dir_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlanError, match="cannot be written"):
        train_study(study(tmp_path / "file" / "out"))


def test_failed_runs_wait_for_the_wish_to_retry(tmp_path: Path) -> None:
    failing = study(tmp_path / "out", model_cls=toy.Failing)
    outcome = train_study(failing)
    # The same error twice is the code's: the other seven runs would only repeat it.
    assert outcome.counts == {RunState.FAILED: 2, RunState.PENDING: 7}
    states = [failing.directory.run(e.experiment_id).state() for e in failing.plan.experiments]
    assert Selection().jobs(failing.directory, failing.plan.experiments, 1)
    assert len(Selection().jobs(failing.directory, failing.plan.experiments, 1)) == states.count(RunState.PENDING)
    assert len(Selection(retry_failed=True).jobs(failing.directory, failing.plan.experiments, 1)) == 9


def test_longest_first_and_only_what_is_chosen(tmp_path: Path) -> None:
    planned = study(tmp_path / "out")
    planned.directory.open(planned.plan.to_dict(), planned.basis)
    jobs = Selection().jobs(planned.directory, planned.plan.experiments, 1)
    assert [j.flops for j in jobs] == sorted((j.flops for j in jobs), reverse=True)
    chosen = Selection(only=["width4"]).jobs(planned.directory, planned.plan.experiments, 1)
    assert {j.run.run_id.split("_")[1] for j in chosen} == {"width4"}
    cheap = Selection(max_flops=2.4e6).jobs(planned.directory, planned.plan.experiments, 1)
    assert 0 < sum(j.flops for j in cheap) <= 2.4e6
    assert len(cheap) == 4


def test_progress_counts_compute_and_expects_an_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    train_study(study(tmp_path / "out", [3e5, 1e6]), on_progress=seen.append)
    shares = [p.done_flops / p.total_flops for p in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert seen[0].seconds_left is None
    assert any(p.seconds_left is not None and p.seconds_left > 0 for p in seen[1:-1])


@pytest.mark.slow
def test_processes_give_the_numbers_of_this_process(finished: Path, tmp_path: Path) -> None:
    outcome = train_study(study(tmp_path / "out", [3e5], launcher="local", jobs=2))
    assert outcome.counts == {RunState.COMPLETED: 3}
    for run in (tmp_path / "out" / "runs").iterdir():
        there = finished / "runs" / run.name
        assert (run / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_kill_nine_of_the_whole_group_in_mid_sweep(finished: Path, tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(toy.__file__).parent)!r}]\n"
        "from pathlib import Path\nfrom test_sweep import study\nfrom flops_fit.study import train_study\n"
        f"if __name__ == '__main__':\n    train_study(study(Path({str(tmp_path / 'out')!r}), launcher='local'))\n"
    )
    sweep = SweepDirectory(tmp_path / "out")
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    while not 2 <= len(trained(sweep)) < 9 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = trained(sweep)
    assert 2 <= len(before) < 9, "the sweep was not killed in its middle"
    assert subprocess.run([sys.executable, str(script)]).returncode == 0
    after = trained(sweep)
    assert len(after) == 9
    assert {name: after[name] for name in before} == before
    for run in (sweep.path / "runs").iterdir():
        assert (run / "metrics.csv").read_bytes() == (finished / "runs" / run.name / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_an_interrupt_saves_and_the_same_call_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(toy.__file__).parent)!r}]\n"
        "from pathlib import Path\nfrom test_sweep import study\nfrom flops_fit.study import train_study\n"
        "import toy\n"
        f"options = dict(sizes=[90, 110], launcher='local', model_cls=toy.Slower)\n"
        f"train_study(study(Path({str(folder)!r}), [2.5e9], **options))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    while not list(folder.glob("runs/*/timing.csv")):
        assert process.poll() is None, "the sweep ended before it could be interrupted"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    sweep = SweepDirectory(folder)
    states = {sweep.run(e.experiment_id).state() for e in sweep.experiments()}
    assert RunState.INTERRUPTED in states
    assert states <= {RunState.INTERRUPTED, RunState.PENDING}
    assert list(folder.glob("runs/*/checkpoints/last.ckpt"))
