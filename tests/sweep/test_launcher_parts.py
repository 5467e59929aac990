"""Parts of the launchers, each alone; what launchers must do alike is in test_launchers.py."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit.errors import PlanError, RunError
from flops_fit.runs.directory import SweepDirectory
from flops_fit.sweep.config import RayOptions, SlurmOptions, SweepConfig
from flops_fit.sweep.launchers.cards import CONTEXT_BYTES, CardBook, Peak, parse_free_memory
from flops_fit.sweep.launchers.commands import CommandsLauncher
from flops_fit.sweep.launchers.job import Job, inherited_environment
from flops_fit.sweep.launchers.local import LocalLauncher
from flops_fit.sweep.launchers.ray import RayLauncher
from flops_fit.sweep.launchers.slurm import SlurmLauncher

GIB = 1 << 30


def jobs_in(folder: Path, names: str, **fields: int) -> list[Job]:
    jobs = [Job(run=SweepDirectory(folder).run(name), flops=1.0, **fields) for name in names]
    for job in jobs:
        job.run.create()
    return jobs


def entered(launcher: LocalLauncher, jobs: list[Job], path: Path) -> list[str]:
    """Run jobs, entries being importable from a folder; ids in the order they ended."""
    ended: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(path), prepend=os.pathsep)
        launcher.run(jobs, lambda job: bool(ended.append(job.run.run_id)), lambda: None)
    return ended


def test_a_job_is_one_directory_and_one_command(tmp_path: Path) -> None:
    job = jobs_in(tmp_path, "a")[0]
    assert job.run.path == tmp_path / "runs" / "a"
    assert job.command == [sys.executable, "-m", "flops_fit", "run", str(tmp_path.resolve() / "runs" / "a")]


def test_a_child_does_not_take_itself_for_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "MASTER_PORT", "SLURM_NTASKS", "SLURM_TMPDIR"):
        monkeypatch.setenv(name, "1")
    inherited = inherited_environment(3)
    assert not {"LOCAL_RANK", "MASTER_PORT", "SLURM_NTASKS"} & set(inherited)
    assert inherited["SLURM_TMPDIR"] == "1"
    assert inherited["OMP_NUM_THREADS"] == inherited["MKL_NUM_THREADS"] == "3"


def test_threads_are_shared_between_slots() -> None:
    cores = len(os.sched_getaffinity(0))
    assert LocalLauncher("").slots == cores
    assert LocalLauncher("").threads == 1
    assert LocalLauncher("", 1).threads == cores
    assert LocalLauncher("", cards=CardBook(["0"])).threads == cores


# --- which run goes onto which card


def test_every_run_has_a_card_of_its_own_while_memory_is_unknown() -> None:
    book = CardBook(["0", "1"], capacity=80 * GIB, runs_per_card=4)
    assert [book.enter(name, 10) for name in "abc"] == ["0", "1", None]
    book.leave("a")
    assert book.enter("c", 10) == "0"


def test_runs_known_to_fit_share_a_card_up_to_the_cap() -> None:
    book = CardBook(["0", "1"], capacity=80 * GIB, runs_per_card=3, peaks=[Peak(100, GIB)])
    assert [book.enter(name, 50) for name in "abcdefg"] == ["0", "1", "0", "1", "0", "1", None]


def test_a_run_that_would_not_fit_waits() -> None:
    book = CardBook(["0"], capacity=10 * GIB, runs_per_card=9, peaks=[Peak(100, 3 * GIB), Peak(200, 7 * GIB)])
    assert book.memory(100) == 3 * GIB + CONTEXT_BYTES
    assert book.enter("a", 100) == "0"
    assert book.enter("b", 150) is None  # bounded by the run of 200: 8 + 4 GiB
    assert book.enter("c", 90) == "0"
    assert book.enter("d", 90) is None


def test_nothing_joins_a_run_of_unknown_memory_until_one_as_large_has_completed() -> None:
    book = CardBook(["0"], capacity=80 * GIB, runs_per_card=2, peaks=[Peak(100, GIB)])
    assert book.enter("large", 1000) == "0"
    assert book.enter("small", 10) is None
    book.learn(Peak(1000, 5 * GIB))
    assert book.enter("small", 10) == "0"


def test_a_smaller_run_that_needed_more_is_believed() -> None:
    book = CardBook(["0"], capacity=80 * GIB, peaks=[Peak(100, 9 * GIB), Peak(200, 5 * GIB), Peak(400, 20 * GIB)])
    assert book.memory(150) == 9 * GIB + CONTEXT_BYTES
    assert book.memory(50) == 9 * GIB + CONTEXT_BYTES
    assert book.memory(401) is None


def test_no_card_is_shared_where_its_memory_is_unknown() -> None:
    book = CardBook(["0"], capacity=None, runs_per_card=4, peaks=[Peak(100, 1)])
    assert book.room == 1
    assert [book.enter(name, 10) for name in "ab"] == ["0", None]


def test_free_memory_is_that_of_the_fullest_card_asked_for() -> None:
    answer = "0, GPU-a, 81000\n1, GPU-b, 40000\n2, GPU-c, [N/A]\n"
    assert parse_free_memory(answer, ["0", "1"]) == 40000 << 20
    assert parse_free_memory(answer, ["GPU-a"]) == 81000 << 20
    assert parse_free_memory(answer, ["0", "2"]) is None
    assert parse_free_memory(answer, ["MIG-x"]) is None
    assert parse_free_memory("", []) is None


# --- processes of this machine


def entry(folder: Path, body: str) -> str:
    """An entry that trains nothing; its name for a launcher."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    (folder / "entry.py").write_text(f"import os, signal, sys\nfrom pathlib import Path\n\n\ndef main(run):\n{lines}\n")
    return "entry:main"


def test_what_a_card_is_called_reaches_the_process_of_its_run(tmp_path: Path) -> None:
    main = entry(tmp_path, "Path(run, 'seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\nreturn 0")
    jobs = jobs_in(tmp_path, "abc")
    launcher = LocalLauncher(main, cards=CardBook(["7", "GPU-x"]))
    assert sorted(entered(launcher, jobs, tmp_path)) == ["a", "b", "c"]
    seen = {job.run.run_id: (job.run.path / "seen").read_text() for job in jobs}
    assert {seen["a"], seen["b"]} == {"7", "GPU-x"}
    assert seen["c"] in ("7", "GPU-x")


@pytest.mark.parametrize(("device", "known"), [("cuda:0", 123 + CONTEXT_BYTES), ("cpu", None)])
def test_what_a_completed_run_has_used_of_a_gpu_lets_others_join_it(
    tmp_path: Path, device: str, known: int | None
) -> None:
    main = entry(
        tmp_path,
        "from flops_fit.runs.directory import RunDirectory\n"
        "Path(run, 'metrics.csv').write_text('step,val_loss\\n1,2\\n')\n"
        f"RunDirectory(run).finish({{'peak_memory_bytes': 123, 'device': {device!r}}})\nreturn 0",
    )
    book = CardBook(["0"], capacity=80 * GIB, runs_per_card=2)
    entered(LocalLauncher(main, cards=book), jobs_in(tmp_path, "ab", num_params=10), tmp_path)
    assert book.memory(10) == known


def test_a_child_that_dies_by_a_signal_frees_its_slot(tmp_path: Path) -> None:
    main = entry(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert entered(LocalLauncher(main, 1), jobs_in(tmp_path, "abc"), tmp_path) == ["a", "b", "c"]


def test_what_an_entry_raises_is_in_the_log_of_its_run(tmp_path: Path) -> None:
    main = entry(tmp_path, "print('begun')\nraise ZeroDivisionError('no')")
    job = jobs_in(tmp_path, "a")[0]
    entered(LocalLauncher(main), [job], tmp_path)
    assert job.run.log.read_text().startswith("begun\n")
    assert "ZeroDivisionError: no" in job.run.log.read_text()


def test_an_entry_that_cannot_be_imported_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ended with code 1 before it could start any"):
        entered(LocalLauncher("no_such_module:main"), jobs_in(tmp_path, "a"), tmp_path)


@pytest.mark.slow
def test_a_killed_fork_server_is_replaced_and_its_runs_are_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main = entry(
        tmp_path,
        "from flops_fit.runs.files import exclusive\nimport time\n"
        "with exclusive(Path(run, 'lock'), 'run'):\n"
        "    if run.endswith('a'):\n        os.kill(os.getppid(), signal.SIGKILL)\n        time.sleep(1)\n"
        "    Path(run, 'seen').write_text('')\nreturn 0",
    )
    jobs = jobs_in(tmp_path, "abc")
    seen: dict[str, bool] = {}

    def note(job: Job) -> bool:
        seen[job.run.run_id] = (job.run.path / "seen").exists()
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        LocalLauncher(main, 1).run(jobs, note, lambda: None)
    assert seen == {"a": True, "b": True, "c": True}
    assert "was killed (code -9); another one takes over" in caplog.text


def test_two_hundred_runs_leave_nothing_behind_in_the_process_that_starts_them(tmp_path: Path) -> None:
    main = entry(tmp_path, "Path(run, 'result.json').write_text('{}')\nreturn 0")
    jobs = [Job(run=SweepDirectory(tmp_path).run(str(i)), flops=1.0) for i in range(200)]
    for job in jobs:
        job.run.create()
    used: list[tuple[int, int]] = []

    def note(job: Job) -> bool:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        used.append((resident, len(os.listdir("/proc/self/fd"))))
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        before = len(os.listdir("/proc/self/fd"))
        LocalLauncher(main, 4).run(jobs, note, lambda: None)
    assert len(used) == 200
    assert all((job.run.path / "result.json").exists() for job in jobs)
    assert used[-1][0] - used[19][0] < 20e6
    assert {files for _, files in used} == {used[0][1]}
    assert len(os.listdir("/proc/self/fd")) == before


# --- commands, options


def test_the_commands_survive_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $(odd) "%a"'
    jobs = jobs_in(folder, "ab")
    CommandsLauncher(folder / "commands.txt").run(jobs, lambda _: False, lambda: None)
    lines = (folder / "commands.txt").read_text().splitlines()
    assert [shlex.split(line) for line in lines] == [job.command for job in jobs]
    printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {lines[0]}"], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == jobs[0].command


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"launcher": "cloud"}, "'cloud' is unknown"),
        ({"runs_per_gpu": 0}, "runs_per_gpu=0"),
        ({"slurm": {"time_limit": "2min"}}, "too short"),
        ({"slurm": {"extra": ["account=lab"]}}, "account=lab is no option"),
        ({"slurm": {"cpus": 0}}, "slurm.cpus=0"),
        ({"slurm": {"queue": "x"}}, "slurm: .*queue"),
        ({"ray": {"gpus": -1}}, "ray.gpus=-1"),
    ],
)
def test_nonsense_is_refused_in_words(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        SweepConfig(size_param="width", compute_budgets=[], **wrong)


def test_slurm_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="needs squeue, which is not on this machine"):
        SlurmLauncher(SlurmOptions(), tmp_path / "slurm").run(jobs_in(tmp_path, "a"), lambda _: False, lambda: None)


def test_ray_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match="not installed") as error:
        RayLauncher(RayOptions()).run(jobs_in(tmp_path, "a"), lambda _: False, lambda: None)
    assert "pip install 'flops-fit[ray]'" in str(error.value)
