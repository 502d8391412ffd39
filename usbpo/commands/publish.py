"""Sharing by DVC: what is finished is added and pushed, and a state is left that only needs committing."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import yaml

from usbpo.artifacts import layout
from usbpo.artifacts.files import sha256, write_text
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS, experiment_file, read_layers
from usbpo.experiment.loading import load_run
from usbpo.experiment.named import named_runs
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.yaml_files import read_yaml
from usbpo.monitor.status import snakemake_started
from usbpo.workspace import lifetime, provenance
from usbpo.workspace.provenance import Entry
from usbpo.workspace.restoring import changed_jobs

NOT_SHARED = ("logs", "benchmarks")
"""Folders beside the artifacts that stay where they were written, as .dvcignore says."""


@dataclass(frozen=True)
class Tracked:
    """How a folder differs from what DVC last heard of it; paths from the workspace."""

    changed: frozenset[str]
    """Files that are new or have another content"""
    missing: frozenset[str]
    """Files that are tracked and not there: not pulled, or let go"""


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
    said = provenance.restore(root)  # where Snakemake has not been since the pull
    folders: dict[str, Files] = {}
    left_out = []
    for run in runs:
        files, why = _finished(run, root)
        said += [f"{run.name}: {why}; left out"] if why and files else []
        if files:
            folders[run.folder] = files
            said += _made_otherwise(run, files, root)
        else:
            left_out.append(f"{run.name}: {why or 'nothing of it is finished'}")
    published = {name for files in folders.values() for name in files.here}
    for plan in plans:
        files, why = _results(plan, root, published)
        if files:
            folders[plan.results_folder] = files
        else:
            left_out.append(f"{plan.results_folder}: {why}")
    if not folders:
        raise UsbpoError(f"nothing is published: {'; '.join(left_out)}; run snakemake first.")

    stages = _stages(root)
    tracked = _tracked(root, folders, stages)
    prepared = {folder: _provenance_of(root, folder, files, tracked.get(folder)) for folder, files in folders.items()}
    of_git = ["dvc.lock" if folder in stages else f"{folder}.dvc" for folder in folders]
    try:
        for folder, files in folders.items():
            entries, new = prepared[folder]
            _add(root, folder, files.here, tracked.get(folder), stages.get(folder), entries)
            print(f"{folder}: {new or 'nothing'} new, {len(files.here)} files here")
        if push:
            _dvc(root, "push", *(("--remote", remote) if remote else ()), *folders)
    except BaseException:
        # DVC has staged what it added (core.autostage), and nobody could pull it.
        _git(root, "restore", "--staged", "--", *of_git)
        raise
    for sentence in [*said, *(f"{sentence}; left out" for sentence in left_out)]:
        print(sentence)
    _git(root, "add", "--", *of_git)
    for path in _configuration(plans, runs, root):
        _git(root, "add", "--", path)
    print("Pushed." if push else "Added.", _what_is_left(root))


@dataclass(frozen=True)
class Files:
    """The files of a folder that may be published."""

    records: Mapping[str, Mapping[str, Any]]
    """Snakemake's records by path, also of files that are not there any more"""
    here: frozenset[str]
    """Those that are there and are published"""


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
    if snakemake_started(root) is not None:
        raise UsbpoError(f"{root}: a Snakemake is at work here; publish when it has ended.")
    for folder in sorted(lifetime.held_names(root, folders)):  # one with --nolock
        raise UsbpoError(f"{folder}: a Snakemake is at work on it; publish when it has ended.")
    listed = _dvc(root, "remote", "list")
    if not listed or not push:
        _dvc(root, "root")  # no repository is the greater fault
    if push and remote is None and "(default)" not in listed:
        raise UsbpoError(
            "no remote is known to DVC: `dvc remote add --default NAME URL` names one (docs/sharing.md), "
            "and --no-push publishes without."
        )
    if push and remote is not None and remote not in (line.split()[0] for line in listed.splitlines()):
        raise UsbpoError(f"--remote {remote}: DVC knows no such remote; `dvc remote list` says which it knows.")


def _finished(run: Run, root: Path) -> tuple[Files | None, str]:
    """What is finished of a run, None where nothing is; and what else is there, in words."""
    folder = root / run.folder
    cycles = [int(path.name) for path in folder.glob("[0-9]" * 5) if path.is_dir()]
    names = [path for cycle in range(max(cycles, default=-1) + 1) for path in run.artifacts(cycle)]
    records = provenance.records(root, names)
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


def _made_otherwise(run: Run, files: Files, root: Path) -> list[str]:
    """A sentence where files were made with other parameters, code or inputs than the configuration asks for now."""
    cycles = max(int(Path(name).parent.name) for name in files.here if Path(name).parent.name.isdecimal())
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
    records = provenance.records(root, names)
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
    read = {of: digits for record in files.records.values() for of, digits in (record["input_checksums"] or {}).items()}
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
        left = known.sha256 if known is not None and same else (read.get(name) or "").removeprefix("sha256:")
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
    if (provenance.format_number(), entries) != provenance.read(root / note):
        provenance.write(root / note, entries)
    provenance.remember(root, folder)
    if stage is not None:
        _dvc(root, "commit", "--force", stage)
    else:
        _dvc(root, "add", *_targets(root, folder, here | {note}, tracked))


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
    staged = _git(root, "diff", "--cached", "--name-only", "--relative").split()
    if not staged:
        return "There is nothing to commit."
    files = ", ".join(path for path in staged if path.startswith("config/"))
    return f"Now: git commit -m 'Publish …' && git push{f' (with {files})' if files else ''}"


def _git(root: Path, *arguments: str) -> str:
    """Run git in the workspace, and return what it prints; without git there is nothing to be staged."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout


def _targets(root: Path, folder: str, shared: Iterable[str], tracked: Tracked | None) -> list[str]:
    """What `dvc add` is told, so that all of `shared` and nothing else is added, and nothing tracked is dropped.

    The folder itself, where it holds nothing else; DVC then looks at it once. Else the folders of cycles and single
    files in it, which DVC lays into what it has.
    """
    shared = set(shared)
    found = _files_below(root, folder)
    missing = tracked.missing if tracked else frozenset[str]()
    if found <= shared and not missing:
        return [folder]
    if tracked is None:
        note = root / f"{folder}.dvc"
        write_text(note, yaml.safe_dump({"outs": [{"hash": "md5", "path": Path(folder).name}]}))
    changed = shared if tracked is None else (tracked.changed & shared) | {f"{folder}/{layout.PROVENANCE}"}
    targets: dict[str, None] = {}
    for name in sorted(changed):
        parent = name.rpartition("/")[0]
        whole = parent != folder and _within(parent, found) <= shared and not _within(parent, missing)
        targets[parent if whole else name] = None
    return [t for t in targets if not any(t.startswith(f"{other}/") for other in targets)]


def _within(folder: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith(f"{folder}/")}


def _files_below(root: Path, folder: str) -> set[str]:
    """Every file of a folder but those that are not shared."""
    paths = (path.relative_to(root) for path in (root / folder).rglob("*") if not path.is_dir())
    depth = len(Path(folder).parts)
    return {path.as_posix() for path in paths if path.parts[depth] not in NOT_SHARED}


def _tracked(root: Path, folders: Iterable[str], stages: Mapping[str, str]) -> dict[str, Tracked]:
    """How the folders that DVC tracks already differ from what it tracks."""
    lock = root / "dvc.lock"
    locked = lock.read_text(encoding="utf-8").split() if stages and lock.is_file() else []
    known = {folder for folder in folders if (root / f"{folder}.dvc").is_file() or folder in locked}
    if not known:
        return {}
    said = json.loads(_dvc(root, "data", "status", "--granular", "--json", *sorted(known)) or "{}")
    difference = said.get("uncommitted", {})
    renamed = difference.get("renamed", [])
    changed = {*difference.get("added", []), *difference.get("modified", []), *(each["new"] for each in renamed)}
    missing = {*difference.get("deleted", []), *(each["old"] for each in renamed)}
    return {
        folder: Tracked(frozenset(_within(folder, changed)), frozenset(_within(folder, missing))) for folder in known
    }


def _stages(root: Path) -> dict[str, str]:
    """The stage of dvc.yaml that has a folder as its output, by folder."""
    path = root / "dvc.yaml"
    stages = (read_yaml(path) if path.is_file() else {}).get("stages", {})
    return {
        folder.rstrip("/"): name
        for name, stage in stages.items()
        for out in stage.get("outs", [])
        for folder in ([out] if isinstance(out, str) else out)
    }


def _dvc(root: Path, *arguments: str) -> str:
    """Run DVC in the workspace and return what it prints.

    Raises:
        UsbpoError: it fails; the sentence is DVC's own.
    """
    done = subprocess.run([sys.executable, "-P", "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and "Having any troubles" not in line]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        said = (errors or lines or ["it failed without a word."])[0].removeprefix("ERROR: ").strip()
        cure = " Take either side, commit it, run snakemake and publish again." if "merge conflict" in said else ""
        raise UsbpoError(f"dvc {arguments[0]}: {said}{cure}")
    return done.stdout
