"""Runs as jobs of a Slurm cluster: the verb `usbpo submit`.

A chained job costs a batch system many seconds, whatever it does, so a job here is a pilot: some runs from beginning to
end, by a Snakemake of its own with the warm worker. The jobs of one task and method are an array, since all of them
take the same. Its batch script is its only record: the queue names the script, and the script the runs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from usbpo.artifacts.files import write_text
from usbpo.commands import slurm
from usbpo.commands.batch_scripts import SCRIPTS, WARNING, Request, Workspace, last, pilot, runs_of
from usbpo.errors import UsbpoError
from usbpo.experiment.plan import Plan
from usbpo.monitor.duration import duration
from usbpo.monitor.estimate import estimate
from usbpo.workspace import lifetime
from usbpo.workspace.restoring import files_of

SHORTEST = 5
"""Minutes that a job needs at least: to start, to do something, and to end after the interruption"""
TURN = Path(".snakemake/usbpo-submit.lock")
"""Locked from the look into the queue to the last `sbatch`, so that two people do not submit the same"""


@dataclass(frozen=True)
class Queued:
    """A job of this workspace, or task of an array, that has not ended."""

    number: str
    """Of the job, or of the whole array"""
    name: str
    runs: Sequence[str]
    """None where it draws results"""
    reason: str = ""
    """Why it waits, in Slurm's words"""
    never_starts: bool = False


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
    limit = slurm.time_limit(request.partition)
    asked = slurm.minutes(request.time) if request.time else None
    if asked is not None and limit is not None and asked > limit:
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
    minutes = slurm.minutes(time)
    if minutes is None:
        raise UsbpoError(f"--time {time} is no time limit; give minutes, HH:MM:SS or DAYS-HH:MM.")
    if minutes < SHORTEST:
        raise UsbpoError(
            f"--time {time} is too short, since a job is interrupted {WARNING // 60} minutes before its limit; give "
            f"{SHORTEST} minutes or more."
        )


def _submit(
    plan: Plan, workspace: Workspace, request: Request, limit: int | None, queued: Sequence[Queued], dry_run: bool
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
    stuck = {job.number: job.reason for job in queued if own & set(job.runs) and job.never_starts}
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


def queue(folder: Path) -> list[Queued]:
    """The jobs of the workspace `folder` that have not ended, by their scripts.

    Raises:
        UsbpoError: there is no Slurm here, or it does not answer.
    """
    found = []
    for job in slurm.queue():
        if job.script.parent == (folder / SCRIPTS).resolve() and job.script.is_file():
            runs = runs_of(job.script.read_text(encoding="utf-8"))
            found.append(
                Queued(job.number, job.name, runs[int(job.index)] if runs else (), job.reason, job.never_starts)
            )
    return found


def _submitted(name: str, script: str, folder: Path, dry_run: bool) -> str:
    """Hand a script to `sbatch`: the number of its job, or in a dry run its name.

    A script's name holds a hash of what it says, so that none is written over while a job of it is in the queue.
    """
    path = SCRIPTS / f"{name}-{hashlib.blake2b(script.encode(), digest_size=4).hexdigest()}.sh"
    if dry_run:
        print(f"# {path}\n{script}")
        return name
    write_text(folder / path, script)
    number = slurm.hand_over(folder / path, folder)
    print(f"{name}: job {number}, {path}")
    return number
