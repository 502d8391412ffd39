"""A Slurm cluster of one node on this machine, from Debian's packages, for as long as a test needs it."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.workflow import environment, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where daemons lie, for users too

CONFIGURATION = """
ClusterName=usbpo-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=3
MinJobAge=600
OverTimeLimit=0
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000
PartitionName=short Nodes={host} Default=YES MaxTime=60 State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """What Slurm's commands need in their environment."""
        variables = environment(SLURM_CONF=str(self.folder / "slurm.conf"))
        return variables | {"PATH": f"{self.folder}/bin:{variables['PATH']}"}

    def said(self, *words: str, folder: Path | None = None, **changes: str) -> str:
        """What a command prints that must end well; `changes` are variables of the environment."""
        done = subprocess.run(
            words, env=self.variables | changes, cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def queue(self) -> list[str]:
        """NUMBER STATE of each job, or task of an array, that has not ended."""
        return self.said("squeue", "--array", "--noheader", "--format=%i %T").splitlines()

    def state(self, job: str) -> str:
        """The state that a job, `NUMBER` or `ARRAY_INDEX`, has or had."""
        return self.said("squeue", "--states=all", "--array", "--noheader", f"--jobs={job}", "--format=%T").strip()

    def wait_until_idle(self, seconds: float = 600) -> None:
        """Wait until no job is left."""
        wait_for(lambda: not self.queue(), seconds, f"an empty queue{self.logs()}")

    def logs(self) -> str:
        """The last words of the daemons."""
        return "".join(
            f"\n{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in sorted(self.folder.glob("*.log"))
        )


def missing() -> str:
    """Which program of Slurm's or munge's is not installed; '' where all are."""
    return ", ".join(program for program in PROGRAMS if shutil.which(program, path=PATH) is None)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and slurmd with everything they own below `folder`, and end them."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    controller, daemon = free_ports(2)
    found = Cluster(folder)
    # The executor plugin takes SLURM_CONF away from the environment of srun.
    srun = folder / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, controller=controller, daemon=daemon, user=user, folder=folder)
    )
    of_munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("pid-file", "seed-file", "log-file")]
    words = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *of_munge],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for program, *arguments in words:
            path = shutil.which(program, path=PATH)
            assert path is not None
            with open(folder / f"{program}.out", "wb") as out:
                daemons.append(
                    subprocess.Popen([path, *arguments], env=found.variables, stdout=out, stderr=out, cwd=folder)
                )
            if program == "munged":
                wait_for((folder / "munge.socket").exists, 30, "munged's socket")
        wait_for(lambda: _idle(found), 60, f"an idle node{found.logs()}")
        yield found
    finally:
        subprocess.run(["scancel", f"--user={user}"], env=found.variables, capture_output=True)
        for process in reversed(daemons):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(number: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _idle(found: Cluster) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env=found.variables, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip() == "idle"
