"""Everything that can go wrong with a run or its machine, each made to happen, and what must be left after it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from disks import fill, mount, small_disk, turn_read_only, unmount
from faulty import At, Greedy, config, recipe, same, study

from flops_fit.cli import BAD_INPUT, GOOD, INTERRUPTED, SOME_FAILED, main
from flops_fit.errors import RunError
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory
from flops_fit.runs.files import read_metrics
from flops_fit.study import Study, train_study
from flops_fit.sweep.launchers import Job
from flops_fit.sweep.outcome import Call
from flops_fit.train.checkpoint import usable_checkpoint
from flops_fit.train.main import train_directory
from flops_fit.train.recipe import run_parts, write_run_config
from flops_fit.train.run import train_run

pytestmark = pytest.mark.slow

BUDGET, LONG = 1e6, 4e6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A sweep that nothing has happened to."""
    whole = study(tmp_path_factory.mktemp("whole") / "out", recipe(), [BUDGET, LONG], sizes=[4, 6])
    train_study(whole)
    return whole


def planned(undisturbed: Study, start: str) -> RunDirectory:
    names = [e.experiment_id for e in undisturbed.plan.experiments]
    return undisturbed.directory.run(next(name for name in names if name.startswith(start)))


@pytest.fixture
def one(undisturbed: Study) -> RunDirectory:
    return planned(undisturbed, "C1e+06_width6")


def attempt(run: RunDirectory, undisturbed: Study, *callbacks: At, interval: float = 0.0) -> RunState:
    """Train, or go on with, a run of the undisturbed sweep in a directory of its own, as one process would."""
    experiment = next(e for e in undisturbed.plan.experiments if e.experiment_id == run.run_id)
    facts = {"size_param": "width", "batch_size": undisturbed.plan.batch_size, "checkpoint_interval": interval}
    parts = run_parts(undisturbed.recipe, facts)
    parts.trainer["callbacks"] = list(callbacks)
    return train_run(run, experiment, lambda: parts)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# Damaged checkpoints


@pytest.fixture
def stopped(tmp_path: Path, undisturbed: Study, one: RunDirectory) -> RunDirectory:
    """A run stopped half way, with two checkpoints."""
    run = RunDirectory(tmp_path / one.run_id)
    assert attempt(run, undisturbed, At(12, stop)) is RunState.INTERRUPTED
    assert run.previous_checkpoint.exists()
    return run


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def test_a_truncated_checkpoint_costs_a_step_and_no_number(
    stopped: RunDirectory, undisturbed: Study, one: RunDirectory
) -> None:
    cut(stopped.checkpoint)
    assert attempt(stopped, undisturbed) is RunState.COMPLETED
    assert same(stopped, one)
    note = "last.ckpt is damaged (cut short or overwritten); went on from previous.ckpt"
    assert stopped.result()["notes"] == [note]
    assert [f.name for f in stopped.checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_a_run_without_a_whole_checkpoint_starts_again_and_says_so(
    stopped: RunDirectory, undisturbed: Study, one: RunDirectory
) -> None:
    for file in (stopped.checkpoint, stopped.previous_checkpoint):
        cut(file)
    assert attempt(stopped, undisturbed, At(8, stop)) is RunState.INTERRUPTED
    assert "started again from the beginning" in stopped.details()["notes"][0]
    assert attempt(stopped, undisturbed) is RunState.COMPLETED
    assert same(stopped, one)
    assert "started again from the beginning" in stopped.result()["notes"][0]


def test_a_torn_row_and_a_torn_state_are_forgotten(
    stopped: RunDirectory, undisturbed: Study, one: RunDirectory
) -> None:
    with open(stopped.metrics, "a") as file:
        file.write("13,8")
    os.truncate(stopped.path / "state.json", 0)
    assert stopped.state() is RunState.INTERRUPTED
    assert attempt(stopped, undisturbed) is RunState.COMPLETED
    assert same(stopped, one)


# A full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "2M") as folder:
        yield folder


# The step, what is left free and the time between checkpoints decide which file is the first that does not fit.
FULL = {
    r"last\.ckpt": (12, 12 << 10, 0.0),
    r"metrics\.csv|timing\.csv": (12, 0, 3600.0),  # a row is torn where the page that it begins in ends
    r"last\.ckpt|result\.json": (None, 0, 3600.0),
}


@pytest.mark.parametrize("what", FULL)
def test_a_disk_that_fills_up_leaves_whole_files_and_a_run_that_can_go_on(
    disk: Path, undisturbed: Study, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    step, leave, interval = FULL[what]
    one = planned(undisturbed, "C4e+06_width4")
    run = RunDirectory(disk / one.run_id)
    assert attempt(run, undisturbed, At(step, partial(fill, disk, leave)), interval=interval) is RunState.FAILED
    assert re.search(rf"({what}) cannot be written: No space left on device\n\nhint: make room", caplog.text)
    assert run.state() in (RunState.FAILED, RunState.INTERRUPTED)  # the latter where not even that could be written
    if run.state() is RunState.FAILED:
        assert "No space left on device" in run.details()["error"]
        assert run.details().get("cause") is None
    assert usable_checkpoint(run)[1] == []
    assert read_metrics(run.metrics)
    assert not list(run.path.rglob("*.tmp"))
    (disk / "ballast").unlink()
    assert attempt(run, undisturbed) is RunState.COMPLETED
    assert same(run, one)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process group of its own that can import the models of these tests."""
    here, started = Path(__file__).parent, []
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flops_fit", *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"PYTHONPATH": path}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def told(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Code, output and messages of the command."""

    def told(*words: object) -> tuple[int, str, str]:
        process = start(*words)
        out, err = process.communicate()
        return process.returncode, out, err

    return told


def run_of(folder: Path, start: str) -> RunDirectory:
    (path,) = folder.glob(f"out/runs/{start}*")
    return RunDirectory(path)


def states(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What ``status`` says, which must know an answer whatever has happened."""
    capsys.readouterr()
    assert main(["status", str(folder / "out"), "--json"]) == GOOD
    answer = json.loads(capsys.readouterr().out)
    states = {run["run_id"].rpartition("_s0")[0]: run["state"] for run in answer["runs"]}
    assert answer["counts"] == Counter(states.values())
    return states


def test_a_sweep_on_a_full_disk_does_what_fits_and_then_the_rest(
    tmp_path: Path, told: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(config(tmp_path / "whole", "faulty.Heavy", "inline", [1e6]))])
    with small_disk(tmp_path / "disk", "64M") as disk:
        file = config(disk, "faulty.Heavy", compute_budgets=[1e6])
        fill(disk, leave=4 << 20)  # enough for everything but the checkpoints of one size
        code, _, err = told("fit", "--config", file)
        assert code == SOME_FAILED, err
        assert "1 failed" in err
        heavy = {"C1e+06_width8": "failed"}
        assert states(disk, capsys) == {"C1e+06_width4": "completed", "C1e+06_width6": "completed"} | heavy
        run = run_of(disk, "C1e+06_width8")
        assert "No space left on device" in run.details()["error"]
        assert "No space left on device" in run.log.read_text()
        (disk / "ballast").unlink()
        main(["fit", "--config", str(file), "--retry-failed", "--sweep.launcher", "inline"])
        for there in (tmp_path / "whole" / "out" / "runs").iterdir():
            assert same(RunDirectory(disk / "out" / "runs" / there.name), RunDirectory(there))


# A disk that is read-only


def test_a_read_only_output_directory_gets_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(tmp_path, "toy.Net", "inline")
    with small_disk(tmp_path / "out", "2M") as out:
        mount("-o", "remount,ro", out)
        assert main(["fit", "--config", str(file)]) == BAD_INPUT
        _, err = capsys.readouterr()
        assert f"output_dir {out} cannot be written: Read-only file system" in err
        assert "Traceback" not in err
        assert not list(out.iterdir())


def test_a_run_directory_that_turns_read_only_stops_no_other_run(
    tmp_path: Path, undisturbed: Study, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = [e.experiment_id for e in undisturbed.plan.experiments]
    broken = next(name for name in names if name.startswith("C1e+06_width6"))
    path = tmp_path / "out" / "runs" / broken
    source = recipe()
    source.trainer_kwargs = {"callbacks": [At(12, partial(turn_read_only, path), only=broken)]}
    sweep = study(tmp_path / "out", source, [BUDGET, LONG], sizes=[4, 6])
    try:
        outcome = train_study(sweep)
        assert outcome.counts == {RunState.COMPLETED: 3, RunState.INTERRUPTED: 1}
        assert outcome.left == [f"{broken} is left as it is: {path} cannot be written"]
        assert outcome.unfinished == 1
        assert "cannot be written: Read-only file system" in caplog.text
        assert states(tmp_path, capsys)[broken.rpartition("_s0")[0]] == "interrupted"
        with pytest.raises(RunError, match="cannot be written: Read-only file system"):
            train_study(sweep)
    finally:
        unmount(path)
    source.trainer_kwargs = {}
    assert train_study(sweep).counts == {RunState.COMPLETED: 4}
    for name in names:
        assert same(sweep.directory.run(name), undisturbed.directory.run(name))


# Processes that are killed


def test_a_killed_run_is_started_again_but_not_for_ever(
    tmp_path: Path, told: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(config(tmp_path / "whole", "faulty.Dying", "inline", [1e6]))])
    deaths = {"4": 1, "6": 3}
    file = config(tmp_path, "faulty.Dying", compute_budgets=[1e6], graves=str(tmp_path), deaths=deaths)
    code, _, err = told("fit", "--config", file)
    assert code == INTERRUPTED, err
    dead = run_of(tmp_path, "C1e+06_width6")
    assert (
        f"{dead.run_id} is left as it is: its process was killed, or could not write its end, 3 times in this call"
        in err
    )
    assert states(tmp_path, capsys) == {
        "C1e+06_width4": "completed",
        "C1e+06_width6": "interrupted",
        "C1e+06_width8": "completed",
    }
    assert [len((tmp_path / f"deaths{width}").read_text()) for width in (4, 6)] == [1, 3]
    main(["fit", "--config", str(file), "--sweep.launcher", "inline"])
    for width in (4, 6, 8):
        assert same(run_of(tmp_path, f"C1e+06_width{width}"), run_of(tmp_path / "whole", f"C1e+06_width{width}"))


# Exceptions


def test_runs_that_fail_alike_in_two_sizes_stop_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(tmp_path, "toy.Failing", "inline")
    assert main(["fit", "--config", str(file)]) == SOME_FAILED
    _, err = capsys.readouterr()
    assert "runs of 2 sizes failed with the same RuntimeError at " in err
    assert re.search(
        r"toy\.py:\d+ \(RuntimeError: this model always fails\), and none has completed; not started: ", err
    )
    found = states(tmp_path, capsys)
    assert Counter(found.values()) == {"failed": 2, "pending": 7}
    failed = [run_of(tmp_path, name) for name, state in found.items() if state == "failed"]
    assert len({run.details()["cause"] for run in failed}) == 1
    assert all("in forward" in run.details()["traceback"] for run in failed)


def test_want_of_memory_stops_no_other_run(tmp_path: Path) -> None:
    source = recipe(Greedy)
    source.batch_size = 2  # micro-batches are halved until they cannot be
    sweep = study(tmp_path / "out", source, [1e6], sizes=[4, 6])
    outcome = train_study(sweep)
    assert outcome.counts == {RunState.FAILED: 2}
    runs = [sweep.directory.run(e.experiment_id) for e in sweep.plan.experiments]
    assert all("out of memory" in run.details()["error"] and run.details()["cause"] is None for run in runs)
    assert outcome.left == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}"])
def test_a_run_whose_config_cannot_be_read_has_failed(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.config.write_bytes(content)
    assert train_directory(str(run.path)) == 1
    assert run.state() is RunState.FAILED
    assert run.details()["cause"]
    assert "Traceback" in run.details()["traceback"]
    run.set_state(RunState.INTERRUPTED)
    with run.claimed():  # while another process trains it, its state is not ours to write
        assert train_directory(str(run.path)) == 1
    assert run.state() is RunState.INTERRUPTED


@pytest.fixture
def call(tmp_path: Path) -> Call:
    sweep = SweepDirectory(tmp_path)
    for name in "abcd":
        sweep.run(name).create()
    return Call(sweep=sweep, sizes={"a": 4, "b": 6, "c": 8, "d": 4})


def failed(call: Call, name: str, cause: str | None) -> None:
    call.sweep.run(name).set_state(RunState.FAILED, error="boom", cause=cause)
    call.ended(Job(run=call.sweep.run(name), flops=1.0))


def test_only_the_same_mistake_in_several_sizes_stops_a_sweep(call: Call) -> None:
    failed(call, "a", "KeyError at net.py:3")
    failed(call, "d", "KeyError at net.py:3")  # the same size
    failed(call, "b", "KeyError at net.py:4")  # another place
    failed(call, "c", None)  # the machine's
    assert call.stop is None
    failed(call, "c", "KeyError at net.py:4")
    assert call.stop is not None


def test_a_run_killed_before_it_has_begun_is_started_again_twice(call: Call) -> None:
    job = Job(run=call.sweep.run("a"), flops=1.0)
    for again in ([job], [job], []):
        call.ended(job)
        assert call.killed() == again
    assert call.unfinished == 1
    assert (
        "a is left as it is: its process was killed, or could not write its end, 3 times in this call"
        in call.left([job])[0]
    )


def test_a_sweep_of_which_a_run_has_completed_is_not_stopped(call: Call) -> None:
    (call.sweep.run("d").path / "result.json").write_text("{}")
    for name in "abc":
        failed(call, name, "KeyError at net.py:3")
    assert call.stop is None


# Several processes on one directory


def until(condition: Callable[[], Any], *processes: subprocess.Popen[str]) -> None:
    while not condition():
        assert not processes or any(process.poll() is None for process in processes)
        time.sleep(0.05)


def test_a_second_orchestrator_is_refused_until_the_first_is_gone(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    told: Callable[..., tuple[int, str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate = tmp_path / "gate"
    file = config(tmp_path, "faulty.Waiting", compute_budgets=[1e6], gate=str(gate))
    first = start("fit", "--config", file)
    until(lambda: list(tmp_path.glob("out/runs/*/metrics.csv")), first)
    plan = (tmp_path / "out" / "plan.json").read_bytes()
    code, out, err = told("fit", "--config", file, "--sweep.compute_budgets", "[1e6, 3e6]")
    assert (code, out) == (BAD_INPUT, "")
    assert f"sweep {tmp_path / 'out'} is in use by process {first.pid} on {socket.gethostname()} since 20" in err
    assert (tmp_path / "out" / "plan.json").read_bytes() == plan
    assert "running" in states(tmp_path, capsys).values()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    until(lambda: "running" not in states(tmp_path, capsys).values())  # its children end when they have noticed
    gate.touch()
    main(["fit", "--config", str(file), "--sweep.launcher", "inline"])
    assert set(states(tmp_path, capsys).values()) == {"completed"}


def test_a_run_started_twice_is_trained_once(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    told: Callable[..., tuple[int, str, str]],
) -> None:
    gate = tmp_path / "gate"
    file = config(tmp_path, "faulty.Waiting", "commands", compute_budgets=[1e6], gate=str(gate))
    main(["fit", "--config", str(file)])
    run = run_of(tmp_path, "C1e+06_width4")
    processes = [start("run", run.path) for _ in range(2)]
    until(lambda: any(process.poll() is not None for process in processes), *processes)
    gate.touch()
    answers = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [GOOD, BAD_INPUT], answers
    trainer = processes[codes.index(GOOD)]
    refusal = answers[codes.index(BAD_INPUT)][1]
    assert f"run {run.run_id} is in use by process {trainer.pid} on {socket.gethostname()} since 20" in refusal
    before = (run.path / "result.json").stat().st_mtime_ns, run.metrics.read_bytes()
    assert told("run", run.path)[0] == GOOD
    assert ((run.path / "result.json").stat().st_mtime_ns, run.metrics.read_bytes()) == before


def test_a_run_whose_process_goes_away_meanwhile_is_taken_over(tmp_path: Path, undisturbed: Study) -> None:
    held = RunDirectory(tmp_path / "out" / "runs" / planned(undisturbed, "C1e+06_width6").run_id)
    code = (
        "import sys, time; from flops_fit.runs.directory import RunDirectory, RunState\n"
        "run = RunDirectory(sys.argv[1])\n"
        "with run.claimed():\n    run.set_state(RunState.RUNNING); print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(held.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        def end() -> None:
            other.kill()
            other.wait()

        source = recipe()
        source.trainer_kwargs = {"callbacks": [At(None, end)]}
        outcome = train_study(study(tmp_path / "out", source, [BUDGET], sizes=[4, 6]))
    assert outcome.counts == {RunState.COMPLETED: 2}
    assert same(held, planned(undisturbed, held.run_id))


# Clocks that jump


@pytest.mark.parametrize("jump", [1e8, -1e8])
def test_a_run_begun_by_another_clock_is_gone_on_with(
    tmp_path: Path, undisturbed: Study, one: RunDirectory, jump: float
) -> None:
    run = RunDirectory(tmp_path / one.run_id)
    experiment = next(e for e in undisturbed.plan.experiments if e.experiment_id == run.run_id)
    facts = {"size_param": "width", "batch_size": undisturbed.plan.batch_size, "checkpoint_interval": 0.0}
    write_run_config(run, experiment, undisturbed.recipe.to_config(), facts)
    code = (
        f"import os, signal, sys, time\nclock = time.time\ntime.time = lambda: clock() + {jump}\n"
        "from flops_fit.runs.files import CsvLog\nappend = CsvLog.append\n"
        "def die(log, row):\n    append(log, row)\n    row['step'] == 12 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "CsvLog.append = die\nfrom flops_fit.train.main import train_directory\ntrain_directory(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)])
    assert done.returncode == -signal.SIGKILL
    assert abs(run.details()["heartbeat"] - time.time()) > 1e7
    assert run.state() is RunState.INTERRUPTED
    assert attempt(run, undisturbed) is RunState.COMPLETED
    assert same(run, one)


# What is said of it all


def spoil(run: RunDirectory, file: str, content: bytes | None) -> None:
    if content is None:
        (run.path / file).unlink()
    else:
        (run.path / file).write_bytes(content)


@pytest.mark.parametrize("content", [None, b"", b"\0" * 500, b"{", b"step,num_tokens\n\xff"])
@pytest.mark.parametrize("file", ["result.json", "metrics.csv", "state.json", "config.yaml", "run.log"])
def test_status_tells_what_is_wrong_with_one_run_and_all_about_the_others(
    tmp_path: Path, undisturbed: Study, capsys: pytest.CaptureFixture[str], file: str, content: bytes | None
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed.directory.path, out)
    run = run_of(tmp_path, "C1e+06_width6")
    (run.path / "run.log").touch()
    spoil(run, file, content)
    found = states(tmp_path, capsys)
    assert found == dict.fromkeys(found, "completed") | (
        {"C1e+06_width6": "interrupted"} if (file, content) == ("result.json", None) else {}
    )
    main(["status", str(out)])
    told = " ".join(line for line in capsys.readouterr().out.splitlines() if run.run_id in line)
    is_broken = file in ("result.json", "metrics.csv") and (file, content) != ("result.json", None)
    assert (file in told) == is_broken
    (run.path / "result.json").unlink(missing_ok=True)  # and the same for one that has not completed
    assert states(tmp_path, capsys)["C1e+06_width6"] in ("interrupted", "pending")
    shutil.rmtree(run.path)
    assert states(tmp_path, capsys)["C1e+06_width6"] == "pending"


# What a call may spend


def test_a_call_that_may_not_spend_all_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", str(config(tmp_path, "toy.Net", "inline", compute_budgets=[1e6, 2e6]))]
    assert main([*words, "--max-flops", "3.5e6"]) == GOOD
    _, err = capsys.readouterr()
    assert "3 of 6 runs completed" in err
    assert re.search(r"this call may spend 3\.5e\+06 FLOPs; not started: 3 runs of [56]\.?\d*e\+06 FLOPs", err)
    assert "no analysis yet: " in err
    done = {name for name, state in states(tmp_path, capsys).items() if state == "completed"}
    assert {name.partition("_")[0] for name in done} == {"C1e+06"}  # the most runs for it
    assert main([*words, "--max-hours", "1e-9"]) == GOOD
    _, err = capsys.readouterr()
    assert "4 of 6 runs completed" in err
    assert re.search(r"the 1e-09 hours of this call are over; not started: 2 runs of .* FLOPs", err)
    left = [name for name, state in states(tmp_path, capsys).items() if state == "pending"]
    assert main([*words, "--only", left[0]]) == GOOD
    assert [name for name, state in states(tmp_path, capsys).items() if state == "pending"] == left[1:]


def test_what_failed_is_tried_again_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", str(config(tmp_path, "toy.Net", "inline", compute_budgets=[1e6]))]
    main([*words, "--max-flops", "1"])
    run = run_of(tmp_path, "C1e+06_width4")
    run.set_state(RunState.FAILED, error="the disk was full")
    capsys.readouterr()
    assert main(words) == SOME_FAILED
    assert "2 of 3 runs completed\n1 failed" in capsys.readouterr().err
    assert run.state() is RunState.FAILED
    main([*words, "--retry-failed"])
    assert run.state() is RunState.COMPLETED
