"""Sharing by DVC: what is finished is added and pushed, and a state is left that only needs committing."""

import os
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from usbpo.artifacts import layout
from usbpo.artifacts.files import sha256
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS, experiment_file, read_layers
from usbpo.experiment.loading import load_run
from usbpo.experiment.named import named_runs
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.workspace import dvc_inside, lifetime, provenance
from usbpo.workspace.dvc_inside import Tracked
from usbpo.workspace.lifetime import snakemake_started
from usbpo.workspace.provenance import Entry
from usbpo.workspace.restoring import changed_jobs
from usbpo.workspace.snakemake_inside import Records, contents_read, format_number


def publish(words: Sequence[str], root: Path = Path(), *, push: bool = True, remote: str | None = None) -> None:
    """Add what is finished of runs and results to DVC, and push it; nothing that was published before is lost.

    A file of a run is finished when Snakemake has a record of it. Of the model rollouts all are published where every
    cycle has its own, else only those from which the next cycle goes on. Results are published when they are complete
    and all that they were drawn from is. Git is handed what DVC writes, and the configuration, once all is pushed.

    Args:
        words: names or files of experiments, TASK/METHOD/seed-N, or folders of runs; none is the default experiment.
        root: the folder that holds data/.
        push: whether to push, too.
        remote: the name of DVC's remote; its default one if None.

    Raises:
        UsbpoError: a word names nothing, nothing is finished, a file was changed after it was made, Snakemake is at
            work, there is no DVC repository or remote, or DVC fails.
    """
    plans, runs = _chosen(words, root)
    _check(root, [*(run.folder for run in runs), *(plan.results_folder for plan in plans)], push, remote)
    unusable = dict[str, str]()
    said = provenance.restore(root, unusable)  # where Snakemake has not been since the pull
    folders, told, left_out = _publishable(plans, runs, unusable, root)
    if not folders:
        raise UsbpoError(f"nothing is published: {'; '.join(left_out)}; run snakemake first.")

    known, stages = dvc_inside.tracked(root, folders, dvc_inside.stages(root)), dict[str, str]()
    prepared = {folder: _provenance_of(root, folder, files, known.get(folder)) for folder, files in folders.items()}
    drawn = [plan for plan in plans if plan.results_folder in folders]
    of_git = ["dvc.yaml"] if drawn else []
    try:
        for plan in drawn:
            _make_stage(plan, root)
        stages = dvc_inside.stages(root)
        of_git += [dvc_inside.note_of(folder, stages.get(folder)) for folder in folders]
        for folder, files in folders.items():
            entries, new = prepared[folder]
            _add(root, folder, files.here, known.get(folder), stages.get(folder), entries)
            print(f"{folder}: {new or 'nothing'} new, {len(files.here)} files here")
        if push:
            dvc_inside.call(root, "push", *(("--remote", remote) if remote else ()), *folders)
    except BaseException:
        # DVC has staged what it added (core.autostage), and nobody could pull it.
        for path in of_git:  # one by one: git refuses all where it does not know one
            _git(root, "restore", "--staged", "--", path)
        raise
    for sentence in [*said, *told, *(f"{sentence}; left out" for sentence in left_out)]:
        print(sentence)
    for path in [*of_git, *_configuration(plans, runs, root)]:
        _git(root, "add", "--", path)
    print("Pushed." if push else "Added.", _what_is_left(root))


@dataclass(frozen=True)
class Files:
    """The files of a folder that may be published."""

    records: Mapping[str, Mapping[str, Any]]
    """Snakemake's records by path, also of files that are not there any more"""
    here: frozenset[str]
    """Those that are there and are published"""


def _publishable(
    plans: Iterable[Plan], runs: Iterable[Run], unusable: Mapping[str, str], root: Path
) -> tuple[dict[str, Files], list[str], list[str]]:
    """What may be published of each folder; sentences about it; and what is left out, and why.

    Args:
        unusable: folders whose provenance cannot be used, and why.
    """
    folders, told, left_out = dict[str, Files](), list[str](), list[str]()
    for run in runs:
        if run.folder in unusable:
            left_out.append(unusable[run.folder].rstrip("."))
            continue
        files, why = _finished(run, root)
        told += [f"{run.name}: {why}; left out"] if why and files else []
        if files:
            folders[run.folder] = files
            told += _made_otherwise(run, files)
        else:
            left_out.append(f"{run.name}: {why or 'nothing of it is finished'}")
    published = {name for files in folders.values() for name in files.here}
    for plan in plans:
        if plan.results_folder in unusable:
            left_out.append(unusable[plan.results_folder].rstrip("."))
            continue
        files, why = _results(plan, root, published)
        if files:
            folders[plan.results_folder] = files
        else:
            left_out.append(f"{plan.results_folder}: {why}")
    return folders, told, left_out


def _chosen(words: Sequence[str], root: Path) -> tuple[list[Plan], list[Run]]:
    """The experiments and the runs that words name; an experiment's runs are those that are on disk."""
    plans, runs = list[Plan](), dict[Run, None]()
    asked: Sequence[str | None] = words or [None]
    for word in asked:
        if (plan := _experiment(word)) is not None:
            plans.append(plan)
            runs |= dict.fromkeys(plan.cycles)
        else:
            for named in named_runs([str(word)], root):
                keys = load_run(named.task, named.method, FOLDERS)
                runs[Run(named.task, named.method, named.seed, keys)] = None
    return plans, list(runs)


def _experiment(word: str | None) -> Plan | None:
    """The experiment of a word: a YAML file, the name of one, or the name of the default one; None where it is none."""
    try:
        file = experiment_file(word)
    except UsbpoError:
        return None
    return Plan.named(str(file))


def _check(root: Path, folders: Iterable[str], push: bool, remote: str | None) -> None:
    """Refuse what could not be finished, before anything is done."""
    folders = list(folders)
    dvc_inside.check_folders(root, folders)
    if snakemake_started(root) is not None:
        raise UsbpoError(f"{root}: a Snakemake is at work here; publish when it has ended.")
    for folder in sorted(lifetime.held_names(root, folders)):  # one with --nolock
        raise UsbpoError(f"{folder}: a Snakemake is at work on it; publish when it has ended.")
    known, has_default = dvc_inside.remotes(root)
    if not known or not push:
        dvc_inside.require_repository(root)  # the greater fault
    if push and remote is None and not has_default:
        raise UsbpoError(
            "no remote is known to DVC: `dvc remote add --default NAME URL` names one (docs/sharing.md), "
            "and --no-push publishes without."
        )
    if push and remote is not None and remote not in known:
        raise UsbpoError(f"--remote {remote}: DVC knows no such remote; `dvc remote list` says which it knows.")


def _finished(run: Run, root: Path) -> tuple[Files | None, str]:
    """What is finished of a run, None where nothing is; and what else is there, in words."""
    folder = root / run.folder
    cycles = [int(path.name) for path in folder.glob("[0-9]" * 5) if path.is_dir()]
    names = [path for cycle in range(max(cycles, default=-1) + 1) for path in run.artifacts(cycle)]
    records = Records(root).finished(names)
    there = {name for name in names if (root / name).is_file()}
    here, unknown = there & records.keys(), sorted(there - records.keys())
    why = ""
    if unknown:
        more = f" and {len(unknown) - 1} more have" if len(unknown) > 1 else " has"
        why = f"{unknown[0]}{more} no record of the job that made it (delete it, and snakemake makes it again)"
    rollouts = {run.path(layout.ROLLOUTS, cycle) for cycle in cycles} & set(names)
    if not rollouts <= here:
        last = max((cycle for cycle in cycles if run.path(layout.POLICY, cycle) in here), default=0)
        going_on = {*run.model_data(last), *(run.path(layout.ROLLOUTS, cycle) for cycle in cycles if cycle > last)}
        here -= rollouts - going_on
    return (Files(records, frozenset(here)) if here else None), why


def _made_otherwise(run: Run, files: Files) -> list[str]:
    """A sentence where files were made with other parameters, code or inputs than the configuration asks for now."""
    cycles = max(layout.cycle_of(name) or 0 for name in files.here)
    records = {name: SimpleNamespace(**files.records[name]) for name in files.here}
    jobs = changed_jobs(run, cycles, files.here, records.get)
    if not jobs:
        return []
    return [
        f"{run.name}: what {len(jobs)} of its jobs made has other parameters or code than there are here now; "
        "whoever pulls it will make that anew."
    ]


def _results(plan: Plan, root: Path, published: Collection[str]) -> tuple[Files | None, str]:
    """The results of an experiment; None where they are not complete, or drawn from what is not published, and why."""
    names = plan.result_files()
    records = Records(root).finished(names)
    if len(records) < len(names) or not all((root / name).is_file() for name in names) or plan.left_behind(root):
        return None, "it is not complete here"
    missing = sorted({name for record in records.values() for name in record["input"]} - set(published))
    if missing:
        return None, f"it is drawn from {missing[0]}, which is not published"
    return Files(records, frozenset(names)), ""


def _provenance_of(root: Path, folder: str, files: Files, tracked: Tracked | None) -> tuple[dict[str, Entry], int]:
    """The entries of a folder's provenance, and how many of its files are new or changed.

    Raises:
        UsbpoError: a file has another content than the job left that made it.
    """
    note = f"{folder}/{layout.PROVENANCE}"
    before = provenance.read(root / note)[1]
    trusted = tracked is not None and note not in tracked.changed
    read: dict[str, str] = {}
    for record in files.records.values():
        read |= contents_read(record["input_checksums"])
    entries = dict(before)
    changed = provenance.changed_since(root, files.here)
    new, spoilt = 0, []
    for name, record in files.records.items():
        known = before.get(name)
        same = known is not None and known.record == record
        if name not in files.here:
            entries[name] = Entry(record, known.sha256 if known is not None and same else None)
            continue
        if tracked is None or name in tracked.changed:
            new += 1
        elif trusted and known is not None and known.sha256 is not None:
            entries[name] = Entry(record, known.sha256)
            continue
        entries[name] = Entry(record, sha256(root / name))
        left = known.sha256 if known is not None and same else read.get(name)
        if name in changed and left and left != entries[name].sha256:
            spoilt.append(name)
    if spoilt:
        more = f" and {len(spoilt) - 1} more have" if len(spoilt) > 1 else " has"
        raise UsbpoError(
            f"{sorted(spoilt)[0]}{more} another content than the job left that made it; delete it, and snakemake makes "
            "it again."
        )
    return entries, new


def _add(
    root: Path, folder: str, here: frozenset[str], tracked: Tracked | None, stage: str | None, entries: dict[str, Entry]
) -> None:
    """Bring provenance and DVC's account of a folder up to date."""
    note = f"{folder}/{layout.PROVENANCE}"
    if (format_number(), entries) != provenance.read(root / note):
        provenance.write(root / note, entries)
    provenance.remember(root, folder)
    dvc_inside.add(root, folder, here | {note}, [note], tracked, stage)


def _make_stage(plan: Plan, root: Path) -> None:
    """Give an experiment its stage in dvc.yaml: the default one, and others where one stands with its command alone.

    A plain `dvc repro` runs every stage, and another experiment may take days.
    """
    default = Path(plan.source) == experiment_file(None)
    dvc_inside.make_stage(
        root,
        plan.experiment.experiment,
        plan.results_folder,
        parameters=_configuration([plan], plan.cycles, root),
        command="snakemake --cores all" if default else None,
        description=f"The default experiment, {plan.source}",
    )


def _configuration(plans: Iterable[Plan], runs: Iterable[Run], root: Path) -> list[str]:
    """The configuration files of experiments and runs, as far as they lie below `root`."""
    kinds: tuple[Literal["tasks", "algorithms"], ...] = ("tasks", "algorithms")
    named = {(kind, name) for run in runs for kind, name in zip(kinds, (run.task, run.method), strict=True)}
    layers = [path for kind, name in sorted(named) for path, _ in read_layers(kind, name, FOLDERS)]
    paths = {Path(os.path.abspath(path)) for path in [*(Path(plan.source) for plan in plans), *layers]}
    above = Path(os.path.abspath(root))
    return sorted(path.relative_to(above).as_posix() for path in paths if path.is_relative_to(above))


def _what_is_left(root: Path) -> str:
    """What the user still has to do."""
    staged = _git(root, "diff", "--cached", "--name-only", "--relative", "-z").split("\0")
    if not any(staged):
        return "There is nothing to commit."
    files = ", ".join(path for path in staged if path.startswith("config/"))
    return f"Now: git commit -m 'Publish …' && git push{f' (with {files})' if files else ''}"


def _git(root: Path, *arguments: str) -> str:
    """Run git in the workspace, and return what it prints; without git there is nothing to be staged."""
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, errors="replace").stdout
    except FileNotFoundError:
        return ""
