"""Making again what a run has let go or lost, without running those that have read it already.

Snakemake runs every reader of a file that it makes again, and all that follows, whatever the file's bytes turn out to
be; `ancient()` changes nothing about that where the file was missing when it planned. So the readers that stand, and
need not run, are not shown who makes the files that they miss (`before_update()` in the rules). When all is done, the
checksums of what was made are compared with those that the readers have read (`read_otherwise`).
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from usbpo.plan import Plan, Run

Job = tuple[str, int]
"""A stage and its cycle, or `block` and its number"""

Records = Callable[[str], Any]
"""Snakemake's record of an artifact, with the `params` and the `input` of its job; None where there is none"""


def restoring(plan: Plan, records: Records, named: Collection[str] = (), root: Path = Path()) -> dict[str, set[Job]]:
    """The runs, by name, in which something is made again that standing jobs have read, each with the jobs that run.

    None where the experiment keeps everything: what is missing there was lost and not let go, perhaps because it was
    spoilt, and its readers run again.

    Args:
        named: the artifacts that shall be made; empty: what the experiment keeps.
    """
    found: dict[str, set[Job]] = {}
    if plan.experiment.artifacts.keep == "all":
        return found
    for run, cycles in plan.cycles.items():
        there = files_of(run, root)
        wanted = [path for path in named if path.startswith(f"{run.folder}/")] if named else plan.kept(run, root)
        if not there:
            continue
        to_run = jobs_to_run(run, cycles, wanted, there, changed_jobs(run, cycles, there, records))
        made = {path for stage, cycle in to_run for path in run.jobs(cycle)[stage] if path not in there}
        if any(not made.isdisjoint(run.inputs(*job)) for job in _jobs(run, cycles) if job not in to_run):
            found[run.name] = to_run
    return found


def read_otherwise(
    plan: Plan, restored: Mapping[str, set[Job]], records: Records, checksum: Callable[[Path], str], root: Path = Path()
) -> list[str]:
    """The files that were made again, and are there, with other bytes than standing jobs have read.

    Args:
        restored: what `restoring` gave before they were made.
        records: as they are now.
        checksum: SHA-256 of a file, in hexadecimal digits.
    """
    known: dict[str, str] = {}
    found = set()
    for run, cycles in plan.cycles.items():
        if run.name not in restored:
            continue
        jobs = _jobs(run, cycles)
        made = {path for job in restored[run.name] for path in jobs[job] if (root / path).is_file()}
        for job in jobs.keys() - restored[run.name]:
            record = next(filter(None, map(records, jobs[job])), None)
            sums = getattr(record, "input_checksums", None) or {}
            for path in made & {of for of, read in sums.items() if read}:
                if path not in known:
                    known[path] = checksum(root / path)
                if sums[path].removeprefix("sha256:") != known[path]:
                    found.add(path)
    return sorted(found)


def is_hidden(path: str, run: Run, job: Job, restored: Mapping[str, set[Job]], root: Path = Path()) -> bool:
    """Whether a job is not shown who makes one of its inputs: the input is missing, but the job need not run."""
    return run.name in restored and job not in restored[run.name] and not (root / path).exists()


def jobs_to_run(
    run: Run, cycles: int, wanted: Iterable[str], there: Collection[str], changed: Iterable[Job] = ()
) -> set[Job]:
    """The jobs that make the missing ones of `wanted`, those that have changed, and what follows from these.

    From a missing file follows the job that makes it, and from any job what it reads and is missing; from a job that
    has changed all that read what it makes.

    Args:
        cycles: of the run, after cycle 0.
        there: the paths that exist.
    """
    missing, follow = [path for path in wanted if path not in there], list(changed)
    if not missing and not follow:
        return set()
    jobs = _jobs(run, cycles)
    makers = {path: job for job, paths in jobs.items() for path in paths}
    found: set[Job] = set()
    if follow:
        readers = defaultdict(list)
        for job in jobs:
            for path in run.inputs(*job):
                readers[path].append(job)
        while follow:
            job = follow.pop()
            if job not in found:
                found.add(job)
                follow += [reader for path in jobs[job] for reader in readers[path]]
        missing += [path for job in found for path in run.inputs(*job) if path not in there]
    while missing:
        maker = makers.get(missing.pop())
        if maker is not None and maker not in found:
            found.add(maker)
            missing += [path for path in run.inputs(*maker) if path not in there]
    return found


def changed_jobs(run: Run, cycles: int, there: Collection[str], records: Records) -> set[Job]:
    """The jobs of which something stands, or is recorded, that was made with other parameters, code or inputs."""
    changed = set()
    for (stage, cycle), paths in _jobs(run, cycles).items():
        record = next(filter(None, map(records, paths)), None)
        if record is None:
            same = not any(path in there for path in paths)
        else:
            params, inputs = map(repr, run.params(stage, cycle)), run.inputs(stage, cycle)
            same = sorted(record.params or ()) == sorted(params) and sorted(record.input or ()) == sorted(inputs)
        if not same:
            changed.add((stage, cycle))
    return changed


def files_of(run: Run, root: Path) -> set[str]:
    """The paths of a run's artifacts below `root`."""
    found: set[str] = set()
    for place, folders, names in os.walk(root / run.folder):
        folders[:] = [name for name in folders if name not in ("logs", "benchmarks")]
        below = os.path.relpath(place, root)
        found |= {f"{below}/{name}" for name in names}
    return found


def _jobs(run: Run, cycles: int) -> dict[Job, list[str]]:
    """All jobs of a run, each with what it leaves behind."""
    return {(stage, cycle): paths for cycle in range(cycles + 1) for stage, paths in run.jobs(cycle).items()}
