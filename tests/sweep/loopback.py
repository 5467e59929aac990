"""A real Slurm on the loopback interface: one controller and two nodes of this machine, without munge or systemd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONF = """\
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
MinJobAge=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    if shutil.which("slurmctld") is None or shutil.which("slurmd") is None:
        return "slurmctld and slurmd are not installed (Debian: slurmctld slurmd slurm-client)"
    return None if os.getuid() == 0 else "the loopback cluster's daemons need root"


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """A running cluster; the path of its slurm.conf, for SLURM_CONF."""
    (folder / "state").mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, folder=folder, ports=_free_ports(3)))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    try:
        subprocess.run(["slurmctld", "-c"], env=environment, check=True)
        for node in ("n1", "n2"):
            subprocess.run(["slurmd", "-c", "-N", node], env=environment, check=True)
        deadline = time.monotonic() + 60
        while True:
            asked = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True)
            if asked.stdout.split() == ["idle", "idle"]:
                break
            assert time.monotonic() < deadline, f"no cluster: {asked.stdout}{asked.stderr}"
            time.sleep(0.1)
        yield conf
    finally:
        subprocess.run(["scancel", "-u", str(os.getuid())], env=environment, check=False)
        _until_empty(environment)
        for file in folder.glob("*.pid"):
            os.kill(int(file.read_text()), signal.SIGTERM)


def _until_empty(environment: dict[str, str]) -> None:
    """Wait for cancelled tasks to end: a step that outlives its daemon lingers."""
    for _ in range(150):
        asked = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True)
        if not asked.stdout.strip():
            return
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
