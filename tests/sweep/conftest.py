"""Clusters of this machine, started once for all tests that need them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import loopback
import pytest
from launching import SLOW, inline, prepared

from flops_fit.sweep.launchers.slurm import SlurmLauncher

_HEAD = (
    "start --head --block --node-ip-address=127.0.0.1 --include-dashboard=false --num-cpus=2"
    " --object-store-memory=80000000 --disable-usage-stats"
).split()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real Slurm on loopback; the folder of its logs."""
    reason = loopback.missing()
    if reason:
        pytest.skip(reason)
    with loopback.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setattr(SlurmLauncher, "queue_seconds", 0.5)
        yield conf.parent


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Ray on loopback."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'flops-fit[ray]')")
    command = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new default, of which Ray would warn
        head = subprocess.Popen(
            [command, *_HEAD, f"--port={address.split(':')[1]}", f"--temp-dir={tmp_path_factory.mktemp('ray')}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _until_listening(address, head)
            yield address
        finally:
            head.terminate()  # it alone: it ends its own processes
            try:
                head.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()


def _until_listening(address: str, head: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    for _ in range(300):
        assert head.poll() is None, "the head of Ray has ended"
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the head of Ray does not listen")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slow run, trained in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    inline(prepared(folder, **SLOW))
    return folder / "runs"
