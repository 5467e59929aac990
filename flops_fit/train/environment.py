"""Where a run was trained and from which source, recorded from an allow-list: never the whole environment."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from flops_fit.redaction import redacted_words
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import write_json

_GIT_SECONDS = 3.0
_PACKAGES = ("flops-fit", "torch", "lightning", "torchmetrics", "numpy")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUBLAS_WORKSPACE_CONFIG",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "RAY_JOB_ID",
)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether tracked files differ from the commit, of the repository a folder is in.

    Returns:
        ``commit`` and ``branch`` (None before the first commit, or where none is checked out) and ``is_dirty``; None
        outside a repository, without git, or where git does not answer within seconds.
    """
    # Neither may a look at the state take git's lock, nor may the repository's settings start a program.
    command = ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(folder), "status"]
    options = ["--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all"]
    try:
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return None
    lines = done.stdout.splitlines()
    head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch.") and line.count(" ") >= 2)
    commit, branch = head.get("branch.oid"), head.get("branch.head")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "is_dirty": any(not line.startswith("#") for line in lines),
    }


def origin(folder: Path) -> dict[str, Any]:
    """What started a sweep: the git state of the folder it was started in, and the command; taken once a call."""
    return {"git": git_state(folder), "command": redacted_words(sys.argv)}


def environment() -> dict[str, Any]:
    """This process's machine and software, as plain values; what is not there is None."""
    # Asking the devices would start CUDA in runs that do not use it.
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "pid": os.getpid(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "cuda": torch.version.cuda,
        "versions": versions(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of what decides numbers."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def cpu_name() -> str | None:
    """The processor's model, or at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine() or None)


def write_environment(run: RunDirectory, started_by: dict[str, Any] | None) -> None:
    """Write ``env.json``.

    Args:
        run: Where to.
        started_by: What ``origin`` said where the sweep was started; None where a run is started by itself.
    """
    started_by = started_by or {"git": None, "command": redacted_words(sys.argv)}
    write_json(run.path / "env.json", environment() | started_by)
