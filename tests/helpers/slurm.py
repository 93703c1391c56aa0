"""A real Slurm cluster of one node, with its own daemons, key and ports, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
WHERE = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
START = 30
"""The seconds that a daemon may take to start."""

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/node
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=30
KillWait=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=only Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return the reason why Slurm cannot run here, or None."""
    lost = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name, path=WHERE) is None]
    if lost:
        return f"not installed: {', '.join(lost)}"
    return None if os.geteuid() == 0 else "slurmd starts jobs as root only"


@contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Start the daemons and set SLURM_CONF; stop all of them at the end."""
    for name in ("node", "state"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    ports = _free_ports(2)
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    config.write_text(
        CONFIG.format(folder=folder, host=host, user="root", controller=ports[0], node=ports[1])
    )
    (folder / "cgroup.conf").write_text("")
    environment = {**os.environ, "PATH": WHERE, "SLURM_CONF": str(config)}
    munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file")]
    commands = (
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--seed-file={folder}/seed", *munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-c"],
    )
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        patch.setenv("PATH", WHERE)
        for command in commands:
            output = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            stack.callback(_end, daemon)
            if command[0] == "munged":
                _until(lambda: (folder / "munge.socket").exists(), folder)
        _until(lambda: "idle" in _output("sinfo", "-h", "-o", "%T"), folder)
        yield folder
        subprocess.run(["scancel", "--signal=KILL", "--partition=only"], check=False)


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout


def _until(ready, folder: Path) -> None:
    end = time.monotonic() + START
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"Slurm did not start:\n{logs}")
        time.sleep(0.2)


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
