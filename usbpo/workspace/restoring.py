"""Making again what a run has let go or lost, without running those that have read it already.

Snakemake runs every reader of a file that it makes again, and all that follows, whatever the file's bytes turn out to
be; `ancient()` changes nothing about that where the file was missing when it planned. So the readers that stand, and
need not run, are not shown who makes the files that they miss (`without_maker` in the rules). When all is done, the
checksums of what was made are compared with those that the readers have read (`read_otherwise`). Where readers have
read different contents of a file, so that it was spoilt for some of them, all of them run.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.workspace.snakemake_inside import contents_read, same_input, same_params

Job = tuple[str, int]
"""A stage and its cycle, or `block` and its number"""

Records = Callable[[str], Any]
"""Snakemake's record of an artifact, with the `params` and the `input` of its job; None where there is none"""


class Again(NamedTuple):
    """The jobs of a run that will run, and all that they make."""

    jobs: set[Job]
    made: set[str]

    def hides(self, path: str, job: Job) -> bool:
        """Whether a job is not shown who makes an input: it is made again, but the job need not run for it."""
        return path in self.made and job not in self.jobs


class Restored(NamedTuple):
    """What is made again, though jobs that stand have read it already."""

    runs: dict[str, Again]
    """The runs in which that is so, by name"""
    for_results: set[str]
    """What the results of the experiment are drawn from, where they need not be drawn again for it"""


def restoring(plan: Plan, records: Records, named: Collection[str] = (), root: Path = Path()) -> Restored:
    """What a command will make again although it has been read, and all that has to run for it.

    Args:
        named: the artifacts of runs that shall be made; empty: what the experiment keeps, and its results.
    """
    found: dict[str, Again] = {}
    for_results: set[str] = set()
    results = not named and results_stand(plan, records, root)
    for run, cycles in plan.cycles.items():
        there = files_of(run, root)
        wanted = [path for path in named if path.startswith(f"{run.folder}/")] if named else plan.kept(run, root)
        if not there:
            results = False
            continue
        jobs = _jobs(run, cycles)
        changed = changed_jobs(run, cycles, there, records)
        again = _again(jobs, jobs_to_run(run, cycles, wanted, there, changed))
        while _is_hiding(again, run, jobs):
            spoilt = disputed(again.made, jobs, records)
            more = {job for job in again.jobs - changed if not spoilt.isdisjoint(jobs[job])}
            if not more:
                found[run.name] = again
                break
            changed |= more
            again = _again(jobs, jobs_to_run(run, cycles, wanted, there, changed))
        for_results |= again.made
        results &= not changed
    return Restored(found, for_results.intersection(plan.result_inputs(root)) if results else set())


def _again(jobs: Mapping[Job, list[str]], to_run: set[Job]) -> Again:
    return Again(to_run, {path for job in to_run for path in jobs[job]})


def _is_hiding(again: Again, run: Run, jobs: Iterable[Job]) -> bool:
    return bool(again.made) and any(again.hides(path, job) for job in jobs for path in run.inputs(*job))


def disputed(paths: Collection[str], jobs: Mapping[Job, list[str]], records: Records) -> set[str]:
    """Those of the paths that jobs have read with different contents: some of them with one that nobody made.

    A job that fails keeps its earlier record.
    """
    read = defaultdict(set)
    for made in jobs.values():
        record = _record_of(made, records)
        for path, digits in contents_read(getattr(record, "input_checksums", None)).items():
            if path in paths:
                read[path].add(digits)
    return {path for path, contents in read.items() if len(contents) > 1}


def results_stand(plan: Plan, records: Records, root: Path = Path()) -> bool:
    """Whether the results of the experiment are there, and were drawn with its parameters from what it has now."""
    files = plan.result_files()
    record = _record_of(files, records)
    if record is None or not all((root / path).is_file() for path in files):
        return False
    same = same_input(record.input, plan.result_inputs(root))
    return same and same_params(record.params, plan.result_params().values())


def read_otherwise(
    plan: Plan, restored: Restored, records: Records, checksum: Callable[[Path], str], root: Path = Path()
) -> list[str]:
    """The files that were made again, and are there, with other bytes than standing jobs have read.

    Args:
        restored: what `restoring` gave before they were made.
        records: as they are now.
        checksum: SHA-256 of a file, in hexadecimal digits.
    """
    known: dict[str, str] = {}

    def otherwise(outputs: Iterable[str], made: set[str]) -> set[str]:
        """Those of `made` that the job with these outputs has read with other bytes."""
        record = _record_of(outputs, records)
        sums = contents_read(getattr(record, "input_checksums", None))
        read = made & sums.keys()
        known.update({path: checksum(root / path) for path in read - known.keys()})
        return {path for path in read if sums[path] != known[path]}

    def there(paths: set[str]) -> set[str]:
        return {path for path in paths if (root / path).is_file()}

    found = otherwise(plan.result_files(), there(restored.for_results))
    for run, cycles in plan.cycles.items():
        again = restored.runs.get(run.name)
        if again is not None:
            jobs, made = _jobs(run, cycles), there(again.made)
            for job in jobs.keys() - again.jobs:
                found |= otherwise(jobs[job], made)
    return sorted(found)


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
        record = _record_of(paths, records)
        if record is None:
            same = not any(path in there for path in paths)
        else:
            same = same_params(record.params, run.params(stage, cycle))
            same = same and same_input(record.input, run.inputs(stage, cycle))
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


def _record_of(outputs: Iterable[str], records: Records) -> Any:
    """The record of the job with these outputs, or None."""
    return next(filter(None, map(records, outputs)), None)


def _jobs(run: Run, cycles: int) -> dict[Job, list[str]]:
    """All jobs of a run, each with what it leaves behind."""
    return {(stage, cycle): paths for cycle in range(cycles + 1) for stage, paths in run.jobs(cycle).items()}
