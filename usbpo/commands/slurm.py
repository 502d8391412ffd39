"""What Slurm's commands say and take: the queue, the partitions' time limits, and handing over a script."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from usbpo.errors import UsbpoError

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
_NEVER = re.compile(
    r"PartitionConfig|PartitionTimeLimit|BadConstraints|Invalid(Account|QOS)|DependencyNeverSatisfied|"
    r"(Assoc|QOS)\w*Per(Job|Node)\w*|QOSMin\w+"
)
"""Reasons of Slurm's for a job to wait that do not end by themselves"""


@dataclass(frozen=True)
class Job:
    """A job, or task of an array, that has not ended."""

    number: str
    """Of the job, or of the whole array"""
    index: str
    """Of the task within the array"""
    name: str
    reason: str
    """Why it waits, in Slurm's words"""
    script: Path

    @property
    def never_starts(self) -> bool:
        """Whether it waits for a reason that does not end by itself."""
        return _NEVER.fullmatch(self.reason) is not None


def queue() -> list[Job]:
    """This user's jobs that have not ended.

    Raises:
        UsbpoError: there is no Slurm here, or it does not answer.
    """
    found = []
    for line in _said("squeue", "--me", "--array", "--noheader", "--format=%F|%K|%j|%r|%o").splitlines():
        number, index, name, reason, command = (word.strip() for word in line.split("|", 4))
        found.append(Job(number, index, name, reason, Path(command)))
    return found


def hand_over(script: Path, folder: Path) -> str:
    """Hand a script to `sbatch`, typed in a folder; the number of its job.

    Raises:
        UsbpoError: there is no Slurm here, or it refuses the job.
    """
    return _said("sbatch", "--parsable", str(script.resolve()), folder=folder).strip().partition(";")[0]


def time_limit(partition: str | None) -> int | None:
    """Time limit of a partition, or of the default one, in minutes; None where it has none or nobody tells.

    Raises:
        UsbpoError: there is no such partition.
    """
    lines = [line.split() for line in _said("sinfo", "--noheader", "--format=%P %l").splitlines()]
    limits = {words[0]: words[1] for words in lines if len(words) == 2}
    if partition is not None and partition not in {name.rstrip("*") for name in limits}:
        known = ", ".join(sorted(name.rstrip("*") for name in limits)) or "none"
        raise UsbpoError(f"--partition {partition}: the cluster has no such partition; it has {known}.")
    wanted = [limit for name, limit in limits.items() if name in (partition, f"{partition}*") or not partition]
    default = [limit for name, limit in limits.items() if name.endswith("*")]
    limit = (wanted if partition else default or [""])[0]
    return minutes(limit)


def minutes(limit: str) -> int | None:
    """A time limit as Slurm writes it in whole minutes: MM:SS, HH:MM:SS, DAYS-HH:MM:SS; None where it is none."""
    if not _TIME.fullmatch(limit):
        return None
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, rest_minutes = [*parts, 0][:2]
        return 1440 * int(days) + 60 * hours + rest_minutes
    return {1: lambda: parts[0], 2: lambda: parts[0], 3: lambda: 60 * parts[0] + parts[1]}[len(parts)]()


def _said(*words: str, folder: Path = Path()) -> str:
    """What a command of Slurm's prints.

    Raises:
        UsbpoError: there is no such command, or it fails.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)
    except FileNotFoundError as error:
        raise UsbpoError(
            f"{words[0]}: there is no such command; go to a machine that Slurm's commands work on, or add --dry-run."
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise UsbpoError(f"{words[0]} failed: {said or f'exit code {done.returncode}'}; mend that and type it again.")
    return done.stdout
