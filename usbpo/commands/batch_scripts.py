"""The batch scripts of `usbpo submit`: what each job is asked to do, and what it asks of the cluster."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import usbpo
from usbpo.errors import UsbpoError
from usbpo.experiment.plan import Plan
from usbpo.monitor.duration import duration
from usbpo.monitor.estimate import MANY_BYTES, PLANNED_BYTES, Line

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
RUNS = "runs=("
"""The line of a script after which each line names the runs of a task of the array, up to `)`"""


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
    longest = line.longest(1)
    seconds = max(line.longest(max(1, cores // runs)), runs * longest / cores) + PLANNING * runs * line.jobs / line.runs
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


def runs_of(script: str) -> list[list[str]]:
    """The runs of each task of the array that a batch script is for; none where it is for no array."""
    lines = script.splitlines()
    if RUNS not in lines:
        return []
    begin = lines.index(RUNS) + 1
    words = [shlex.split(line)[0] for line in lines[begin : lines.index(")", begin)]]
    return [json.loads(word.removeprefix("only=")) for word in words]
