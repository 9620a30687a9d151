"""A SLURM of one node on the loopback interface, for as long as a test runs.

Everything it writes lies in a folder of its own (configuration, keys, sockets, state): a SLURM that is installed on
the machine, or running there, is neither read nor touched. No systemd, no cgroups, no accounting.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CPUS, MEMORY_MB, GPUS = 4, 16_000, 2
ACCOUNT, PARTITION = "lab", "long"  # that a profile has to name

CONFIGURATION = """\
ClusterName=onenode
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
# Without cgroups, this is what ends a job that takes more memory than it asked for.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
KillWait=5
MinJobAge=3600
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 \
RealMemory={memory} Gres=gpu:fake:{gpus}
PartitionName=short Nodes={host} Default=YES MaxTime=1 State=UP
PartitionName={partition} Nodes={host} MaxTime=1-00:00:00 State=UP
"""


def wait_until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    """Ask again and again; raises `TimeoutError` that says what did not happen."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class OneNode:
    """`with OneNode() as cluster:` starts munged, slurmctld and slurmd, and ends these three processes."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="onenode-")))
    host: str = field(default_factory=lambda: socket.gethostname().partition(".")[0])
    _daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """With which `sbatch`, `squeue` and the like find this cluster and no other."""
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "CUDA"))}
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return {**outside, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def __enter__(self) -> OneNode:
        try:
            self._configure()
            key, pid, log = (self.folder / f"munge.{what}" for what in ("key", "pid", "log"))
            munged = ["munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}"]
            seed = f"--seed-file={self.folder}/munge.seed"
            self._start(*munged, f"--pid-file={pid}", f"--log-file={log}", seed)
            wait_until((self.folder / "munge.socket").exists, seconds=30, what="munged has its socket")
            self._start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
            self._start("slurmd", "-D", "-N", self.host, "-f", str(self.folder / "slurm.conf"))
            wait_until(lambda: self.node_state() == "idle", seconds=90, what=f"the node is idle ({self.folder})")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.run("squeue", "--noheader"), seconds=60, what="the queue is empty")
        self._stop()
        shutil.rmtree(self.folder)

    def _configure(self) -> None:
        self.folder.chmod(0o755)  # munged wants its socket within everybody's reach
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge.key").chmod(0o400)
        devices = []
        for i in range(GPUS):  # SLURM hands out device files; what is behind them it does not ask
            device = self.folder / f"gpu{i}"
            os.mknod(device, mode=0o020666, device=os.makedev(1, 3))
            devices.append(f"NodeName={self.host} Name=gpu Type=fake File={device}\n")
        # Inside a job, Snakemake's plugin takes SLURM_CONF from the environment of the `srun` that it starts.
        (self.folder / "bin").mkdir()
        srun = self.folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        (self.folder / "gres.conf").write_text("AutoDetect=off\n" + "".join(devices))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=self.host,
                folder=self.folder,
                controller_port=free_port(),
                node_port=free_port(),
                cpus=CPUS,
                memory=MEMORY_MB,
                gpus=GPUS,
                partition=PARTITION,
            )
        )

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=out, stderr=out))

    def _stop(self) -> None:
        """The daemons in reverse order; each is a child of ours, so its number is no one else's."""
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def node_state(self) -> str:
        """As `sinfo` names it; empty while the controller does not answer."""
        command = ["sinfo", "--noheader", "--Node", "--partition", PARTITION, "--format=%T"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()
