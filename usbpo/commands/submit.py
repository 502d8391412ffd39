"""Runs as jobs of a Slurm cluster: the verb `usbpo submit`.

A chained job costs a batch system many seconds, whatever it does, so a job here is a pilot: some runs from beginning to
end, by a Snakemake of its own with the warm worker. The jobs of one task and method are an array, since all of them
take the same. Its batch script is its only record: the queue names the script, and the script the runs.
"""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import usbpo
from usbpo.artifacts.files import write_text
from usbpo.errors import UsbpoError
from usbpo.experiment.plan import Plan
from usbpo.monitor.duration import duration
from usbpo.monitor.estimate import MANY_BYTES, PLANNED_BYTES, Line, estimate
from usbpo.workspace import lifetime
from usbpo.workspace.restoring import files_of

SCRIPTS = Path(".snakemake/usbpo/submit")
"""Folder of the batch scripts and of what their jobs say"""
SNAKEMAKE = 300
"""MB of a Snakemake without jobs, and as many of the warm worker"""
RESULTS = 1000
"""MB of the rule that draws the results"""
RESULTS_OF_MANY = 8000
"""MB of drawing them from many runs"""
MARGIN = 2.0
"""How many times the time that a job is estimated to take it may take"""
PLANNING = 0.004
"""Seconds for each job that Snakemake plans"""
START = 600
"""Seconds for all that has no estimate: imports on a slow file system, a node that is busy with other jobs"""
WARNING = 120
"""Seconds before its time limit at which a job is interrupted, so that it begins no further stage"""
SHORTEST = 5
"""Minutes that a job needs at least: to start, to do something, and to end after the interruption"""
TURN = Path(".snakemake/usbpo-submit.lock")
"""Locked from the look into the queue to the last `sbatch`, so that two people do not submit the same"""
RUNS = "runs=("
"""The line of a script after which each line names the runs of a task of the array, up to `)`"""

_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
_NEVER = re.compile(
    r"PartitionConfig|PartitionTimeLimit|BadConstraints|Invalid(Account|QOS)|DependencyNeverSatisfied|"
    r"(Assoc|QOS)\w*Per(Job|Node)\w*|QOSMin\w+"
)
"""Reasons of Slurm's for a job to wait that do not end by themselves"""


@dataclass(frozen=True)
class Request:
    """What a person asks for; None where it shall follow from the size of the runs."""

    runs_per_job: int = 1
    cores: int | None = None
    """Of a job; as many as it has runs where it is None"""
    gpus: int | None = None
    """Of a job; one where it is None and the runs can be computed on nothing else (`device: cuda`)"""
    partition: str | None = None
    time: str | None = None
    everything: bool = False
    """Runs whose files all stand, too"""
    results: bool = True


@dataclass(frozen=True)
class Workspace:
    """Where jobs work, and on what: the words of Snakemake's command line that say so."""

    folder: Path
    experiment: Path
    scale: float | None = None

    def command(self, target: str, cores: int, resources: Sequence[str] = (), only: str = "") -> str:
        """The command line of a job, which replaces its shell so that Slurm's signals reach Snakemake.

        Args:
            only: the entry `only=…` of the configuration, as the shell shall read it.
        """
        words = [str(Path(sys.prefix) / "bin/snakemake"), target, "--nolock", "--cores", str(cores)]
        if resources:
            words += ["--resources", *resources]
        if not (self.folder / "Snakefile").is_file():
            words += ["--snakefile", str(project_file("Snakefile"))]
        words += ["--configfile", self._named(self.experiment)]
        changed = [] if self.scale is None else [f"scale={self.scale}"]
        config = shlex.join(["--config", *changed]) if changed or only else ""
        return " ".join(filter(None, [f"exec {shlex.join(words)}", config, only]))

    def _named(self, path: Path) -> str:
        path, folder = path.resolve(), self.folder.resolve()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def project_file(name: str) -> Path:
    """A file of the project that this package is installed from.

    Raises:
        UsbpoError: the package is not installed from a project's folder.
    """
    path = Path(usbpo.__file__).parents[1] / name
    if not path.exists():
        raise UsbpoError(f"{name} is neither in this folder nor beside the package; go to the project's folder.")
    return path


def submit(plan: Plan, workspace: Workspace, request: Request, dry_run: bool) -> None:
    """Write a batch script for each task and method that has unfinished runs, and hand it to `sbatch`.

    Runs that are in the queue already are left alone. A last job draws the results once all others have ended well.
    Who submits in the same folder meanwhile waits, and then finds these jobs in the queue.

    Args:
        dry_run: print the scripts instead.

    Raises:
        UsbpoError: there is no Slurm here, it refuses a job, or a request cannot be met.
    """
    if request.time is not None:
        check_time(request.time)
    if dry_run:
        _submit(plan, workspace, request, None, [], dry_run)
        return
    limit = time_limit(request.partition)
    if request.time is not None and limit is not None and _minutes(request.time) > limit:
        raise UsbpoError(
            f"--time {request.time}: the partition allows {duration(60 * limit)}; give no more than that, or a "
            "--partition that allows it."
        )
    with lifetime.in_turn(workspace.folder / TURN):
        _submit(plan, workspace, request, limit, queue(workspace.folder), dry_run)


def check_time(time: str) -> None:
    """Refuse what is no time limit of Slurm's, and one that is too short for a job to do anything.

    Raises:
        UsbpoError: it is one of these.
    """
    if not _TIME.fullmatch(time):
        raise UsbpoError(f"--time {time} is no time limit; give minutes, HH:MM:SS or DAYS-HH:MM.")
    if _minutes(time) < SHORTEST:
        raise UsbpoError(
            f"--time {time} is too short, since a job is interrupted {WARNING // 60} minutes before its limit; give "
            f"{SHORTEST} minutes or more."
        )


def _submit(
    plan: Plan, workspace: Workspace, request: Request, limit: int | None, queued: Sequence["Queued"], dry_run: bool
) -> None:
    """What `submit` does, with the partition's time limit in minutes and the jobs that are in the queue."""
    own = {run.name for run in plan.cycles}
    busy = {run for job in queued for run in job.runs} & own
    submitted = sorted({job.number for job in queued if own & set(job.runs)}, key=int)
    root = workspace.folder
    waiting = [
        run
        for run in plan.cycles
        if run.name not in busy and (request.everything or not files_of(run, root).issuperset(plan.kept(run, root)))
    ]
    if busy:
        number = "1 run" if len(busy) == 1 else f"{len(busy)} runs"
        print(f"In the queue already, with {number}: {', '.join(submitted)}. A job keeps the options it was given.")
    stuck = {job.number: job.reason for job in queued if own & set(job.runs) and _NEVER.fullmatch(job.reason)}
    for number, reason in stuck.items():
        print(
            f"Job {number} cannot start: {reason}, which does not end by itself. To change its options, "
            f"scancel {number} first, then type this again."
        )
    name = f"usbpo-{plan.experiment.experiment}-results"
    drawn = all((root / path).is_file() for path in plan.result_files())
    draws = request.results and (bool(waiting) or not drawn)
    draws = draws and (bool(waiting) or all(job.name != name for job in queued))
    if not waiting and not draws:
        if not stuck:
            print(
                "Nothing is left to submit. Whether changed keys or code make files anew, `snakemake -n` says; then "
                "--all."
            )
        return
    lines = estimate(plan, root, request.everything)
    for line in lines:
        runs = [run for run in waiting if (run.task, run.method) == (line.task, line.method)]
        if runs:
            names = [run.name for run in runs]
            sets = [names[i : i + request.runs_per_job] for i in range(0, len(names), request.runs_per_job)]
            gpus = int(runs[0].config.device == "cuda") if request.gpus is None else request.gpus
            script = pilot(line, sets, workspace, replace(request, gpus=gpus), limit)
            submitted.append(_submitted(f"usbpo-{line.task}-{line.method}", script, root, dry_run))
    jobs = sum(line.jobs for line in lines)
    if draws:
        note = "# In place of names sbatch wants the numbers of these jobs, which it prints when they are submitted."
        script = last(name, plan, jobs, workspace, request, submitted, note if dry_run else "")
        _submitted(name, script, root, dry_run)


# ---- scripts -----------------------------------------------------------------------------------------------------


def pilot(
    line: Line,
    sets: Sequence[Sequence[str]],
    workspace: Workspace,
    request: Request,
    limit: int | None,
) -> str:
    """The batch script of an array: a task of it for each set of runs of one task and method.

    Args:
        line: what the runs take.
        limit: the partition's time limit in minutes, if it has one.
    """
    most = max(map(len, sets))
    cores = request.cores or most
    at_work = megabytes_at_work(line, cores)
    planned = most * line.jobs / line.runs
    memory = at_work + snakemake_megabytes(planned)
    resources = [f"mem_mb={at_work}", *([f"gpu={request.gpus}"] if request.gpus else [])]
    time = request.time or str(minutes(line, most, cores, limit))
    head = {
        "job-name": f"usbpo-{line.task}-{line.method}",
        "array": f"0-{len(sets) - 1}",
        **_head(cores, memory, time, request, "%x-%A_%a"),
    }
    if request.gpus:
        head["gpus"] = str(request.gpus)
    named = [f"  {shlex.quote('only=' + json.dumps(list(runs)))}" for runs in sets]
    return "\n".join(
        [
            *_directives(head),
            "# What each task of the array does.",
            RUNS,
            *named,
            ")",
            workspace.command("runs", cores, resources, only='"${runs[SLURM_ARRAY_TASK_ID]}"'),
            "",
        ]
    )


def last(
    name: str, plan: Plan, jobs: int, workspace: Workspace, request: Request, after: Sequence[str], note: str = ""
) -> str:
    """The batch script of the job that draws the results once the jobs `after` have ended well.

    Snakemake draws them, and makes what may be missing; where it would hold very many jobs to find out that nothing is,
    they are drawn without it.

    Args:
        note: a comment on `after`, if they are any.
    """
    many = jobs * PLANNED_BYTES > MANY_BYTES
    memory = RESULTS_OF_MANY if many else RESULTS + snakemake_megabytes(jobs)
    time = ceil((START + PLANNING * jobs * MARGIN) / 60)
    head = {
        "job-name": name,
        **({"dependency": "afterok:" + ":".join(after), "kill-on-invalid-dep": "yes"} if after else {}),
        **_head(1, memory, str(time), request, "%x-%j"),
    }
    experiment = plan.experiment.experiment
    words = [str(Path(sys.prefix) / "bin/usbpo"), "results", "--experiment", experiment]
    options = plan.result_params()
    words += ["--output", plan.results_folder, "--runs", *options["runs"]]
    words += ["--returns", *options["returns"]] if options["returns"] else []
    command = f"exec {shlex.join(words)}" if many else workspace.command("all", 1)
    return "\n".join([*_directives(head), *([note] if note and after else []), command, ""])


def snakemake_megabytes(jobs: float) -> int:
    """Memory of a Snakemake that has planned so many jobs, and of its worker, a multiple of 100 MB."""
    return 100 * ceil((2 * SNAKEMAKE + jobs * PLANNED_BYTES / 1e6) / 100)


def megabytes_at_work(line: Line, cores: int) -> int:
    """Memory of as many of the largest jobs as there are cores, MB."""
    return ceil(cores * line.memory / 1e6)


def minutes(line: Line, runs: int, cores: int, limit: int | None) -> int:
    """Time limit of a job of so many runs, a multiple of ten minutes: twice what they take, and a beginning."""
    seconds = max(line.longest, runs * line.longest / cores) + PLANNING * runs * line.jobs / line.runs
    wanted = 10 * ceil((MARGIN * seconds + START) / 600)
    if limit is None or wanted <= limit:
        return wanted
    print(
        f"{line.task}/{line.method}: a job would take about {duration(seconds)} and is given {duration(60 * wanted)}, "
        f"but the partition allows {duration(60 * limit)}; what is not finished then goes on when this command is "
        "typed again."
    )
    return limit


def _head(cores: int, memory: int, time: str, request: Request, log: str) -> dict[str, str]:
    named = {"partition": request.partition} if request.partition else {}
    return named | {
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(cores),
        "mem": f"{memory}M",
        "time": time,
        "signal": f"B:INT@{WARNING}",
        "requeue": "",
        "open-mode": "append",
        "output": str(SCRIPTS / f"{log}.log"),
    }


def _directives(head: dict[str, str]) -> list[str]:
    return [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}" for key, value in head.items()),
    ]


# ---- Slurm -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queued:
    """A job, or task of an array, that has not ended."""

    number: str
    """Of the job, or of the whole array"""
    name: str
    runs: Sequence[str]
    """None where it draws results"""
    reason: str = ""
    """Why it waits, in Slurm's words"""


def queue(folder: Path) -> list[Queued]:
    """The jobs of the workspace `folder` that have not ended.

    Raises:
        UsbpoError: there is no Slurm here, or it does not answer.
    """
    found = []
    for line in _said("squeue", "--me", "--array", "--noheader", "--format=%F|%K|%j|%r|%o").splitlines():
        number, index, name, reason, command = (word.strip() for word in line.split("|", 4))
        script = Path(command)
        if script.parent == (folder / SCRIPTS).resolve() and script.is_file():
            runs = runs_of(script.read_text(encoding="utf-8"))
            found.append(Queued(number, name, runs[int(index)] if runs else (), reason))
    return found


def runs_of(script: str) -> list[list[str]]:
    """The runs of each task of the array that a batch script is for; none where it is for no array."""
    lines = script.splitlines()
    if RUNS not in lines:
        return []
    begin = lines.index(RUNS) + 1
    words = [shlex.split(line)[0] for line in lines[begin : lines.index(")", begin)]]
    return [json.loads(word.removeprefix("only=")) for word in words]


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
    return _minutes(limit) if _TIME.fullmatch(limit) else None


def _minutes(limit: str) -> int:
    """A time limit of Slurm's in whole minutes: MM:SS, HH:MM:SS, DAYS-HH:MM:SS."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, mins = [*parts, 0][:2]
        return 1440 * int(days) + 60 * hours + mins
    return {1: lambda: parts[0], 2: lambda: parts[0], 3: lambda: 60 * parts[0] + parts[1]}[len(parts)]()


def _submitted(name: str, script: str, folder: Path, dry_run: bool) -> str:
    """Hand a script to `sbatch`: the number of its job, or in a dry run its name.

    A script's name holds a hash of what it says, so that none is written over while a job of it is in the queue.
    """
    path = SCRIPTS / f"{name}-{hashlib.blake2b(script.encode(), digest_size=4).hexdigest()}.sh"
    if dry_run:
        print(f"# {path}\n{script}")
        return name
    write_text(folder / path, script)
    number = _said("sbatch", "--parsable", str((folder / path).resolve()), folder=folder).strip().partition(";")[0]
    print(f"{name}: job {number}, {path}")
    return number


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
