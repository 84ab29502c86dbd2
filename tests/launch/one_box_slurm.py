"""A Slurm of two virtual nodes on this machine, on loopback only, for as long as it is entered."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CONFIGURATION = """
ClusterName=box
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={port}
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
KillWait=60
ReturnToService=2
MinJobAge=600
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Slurm:
    """Starts the daemons, and stops them in the end. Skips the test where Slurm cannot be had or does not come up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Slurm:
        _install()
        (self.folder / "state").mkdir(parents=True)
        ports = [free_port() for _ in range(3)]
        path = self.folder / "slurm.conf"
        path.write_text(CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=self.folder,
                                             port=ports[0], first=ports[1], second=ports[2]))
        self.environment = {**os.environ, "SLURM_CONF": str(path)}
        commands = [["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
        for number, command in enumerate(commands):
            log = open(self.folder / f"daemon{number}.log", "w")  # noqa: SIM115 - lives as long as the daemon
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment))
        if not self.wait(lambda: self.run("sinfo", "-h", "-o", "%T %D").strip() == "idle 2", 30):
            self.__exit__()
            pytest.skip(f"Slurm does not come up here: {(self.folder / 'ctld.log').read_text()[-500:]}")
        return self

    def __exit__(self, *exception: object) -> None:
        self.run("scancel", "--full", "--signal=KILL", "--user=root")  # a daemon's end leaves its jobs running
        self.wait(lambda: not self.run("squeue", "-h").strip(), 20)
        for daemon in self._daemons:
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: object, **options: object) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=self.environment,
                              timeout=300, check=False, **options)
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED ..."""
        return self.shown(job, "JobState")

    def restarts(self, job: str) -> int:
        return int(self.shown(job, "Restarts"))

    def shown(self, job: str, field: str) -> str:
        """A field of `scontrol show job`."""
        return self.run("scontrol", "show", "job", job).partition(f"{field}=")[2].split(maxsplit=1)[0]

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.2)
        return False


def _install() -> None:
    if shutil.which("slurmctld"):
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        pytest.skip("Slurm is not installed, and only root can install Debian's slurm-wlm")
    packages = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "slurm-wlm")
    for command in (packages, ("apt-get", "update", "-qq"), packages):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if command == packages and done.returncode == 0:
            return
    pytest.skip(f"Debian's slurm-wlm cannot be installed here: {done.stderr[-300:]}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
