"""Sharing by DVC: what is finished is added and pushed, and a state is left that only needs committing."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from usbpo import config, layout, provenance
from usbpo.errors import UsbpoError
from usbpo.files import write_text
from usbpo.plan import Plan, Run
from usbpo.provenance import Entry
from usbpo.report.named import named_runs
from usbpo.report.runs import FILES
from usbpo.report.status import snakemake_started

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
    cycle has its own, else only those from which the next cycle goes on.

    Args:
        words: names or files of experiments, TASK/METHOD/seed-N, or folders of runs; none is the default experiment.
        root: the folder that holds data/.
        push: whether to push, too.
        remote: the name of DVC's remote; its default one if None.

    Raises:
        UsbpoError: a word names nothing, nothing is finished, Snakemake is at work, there is no DVC repository or
            remote, or DVC fails.
    """
    plans, runs = _chosen(words, root)
    _check(root, push, remote)
    for sentence in provenance.restore(root):  # where Snakemake has not been since the pull
        print(sentence)
    left_out, folders = [], {}
    for run in runs:
        if files := _finished(run, root):
            folders[run.folder] = files
        else:
            left_out.append(f"{run.name}: nothing of it is finished")
    for plan in plans:
        name = layout.RESULTS.format(experiment=plan.experiment.experiment)
        if files := _results(plan, name, root):
            folders[name] = files
        else:
            left_out.append(f"{name}: it is not complete here")
    if not folders:
        raise UsbpoError(f"nothing is published: {'; '.join(left_out)}; run snakemake first.")

    stages = _stages(root)
    tracked = _tracked(root, folders, stages)
    for folder, files in folders.items():
        added = _add(root, folder, files, tracked.get(folder), stages.get(folder))
        print(f"{folder}: {added or 'nothing'} new, {len(files.here)} files in all")
    if push:
        _dvc(root, "push", "--quiet", *(("--remote", remote) if remote else ()), *folders)
    for sentence in left_out:
        print(f"{sentence}; left out")
    print(f"{'Pushed' if push else 'Added'}. Now: git commit -m 'Publish …' && git push")


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
                keys = config.load_run(named.task, named.method, config.FOLDERS)
                runs[Run(named.task, named.method, named.seed, keys)] = None
    return plans, list(runs)


def _experiment(word: str | None) -> Plan | None:
    """The experiment of a word: a YAML file, the name of one, or the name of the default one; None where it is none."""
    is_file = word is not None and Path(word).suffix in (".yaml", ".yml")
    if word is None or is_file or any((folder / f"experiments/{word}.yaml").is_file() for folder in config.FOLDERS):
        return Plan.named(word)
    default = next((folder / "config.yaml" for folder in config.FOLDERS if (folder / "config.yaml").is_file()), None)
    if default is not None and config.read_yaml(default).get("experiment") == word:
        return Plan.named(None)
    return None


def _check(root: Path, push: bool, remote: str | None) -> None:
    """Refuse what could not be finished, before anything is done."""
    if snakemake_started(root) is not None:
        raise UsbpoError(f"{root}: a Snakemake is at work here; publish when it has ended.")
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


def _finished(run: Run, root: Path) -> Files | None:
    """What is finished of a run; None where nothing is."""
    folder = root / run.folder
    cycles = [int(path.name) for path in folder.glob("[0-9]" * 5) if path.is_dir()]
    names = [path for cycle in range(max(cycles, default=-1) + 1) for path in run.artifacts(cycle)]
    records = provenance.records(root, names)
    here = {name for name in records if (root / name).is_file()}
    rollouts = {run.path(layout.ROLLOUTS, cycle) for cycle in cycles} & set(names)
    if not rollouts <= here:
        last = max((cycle for cycle in cycles if run.path(layout.POLICY, cycle) in here), default=0)
        going_on = {*run.model_data(last), *(run.path(layout.ROLLOUTS, cycle) for cycle in cycles if cycle > last)}
        here -= rollouts - going_on
    return Files(records, frozenset(here)) if here else None


def _results(plan: Plan, folder: str, root: Path) -> Files | None:
    """The results of an experiment; None where they are not complete."""
    names = [f"{folder}/{name}" for name in FILES]
    records = provenance.records(root, names)
    complete = len(records) == len(names) and all((root / name).is_file() for name in names)
    return Files(records, frozenset(names)) if complete and not plan.left_behind(root) else None


def _add(root: Path, folder: str, files: Files, tracked: Tracked | None, stage: str | None) -> int:
    """Bring provenance and DVC's account of a folder up to date.

    Returns: how many files are new or changed, the provenance apart.
    """
    note = f"{folder}/{layout.PROVENANCE}"
    format_number, before = provenance.read(root / note)
    trusted = tracked is not None and note not in tracked.changed
    entries = dict(before)
    new = 0
    for name, record in files.records.items():
        known = before.get(name)
        if name in files.here:
            if tracked is None or name in tracked.changed:
                new += 1
            elif trusted and known is not None and known.sha256 is not None:
                entries[name] = Entry(record, known.sha256)
                continue
            entries[name] = Entry(record, provenance.sha256(root / name))
        else:
            same = known is not None and known.record == record
            entries[name] = Entry(record, known.sha256 if known is not None and same else None)
    if entries != before or format_number != provenance.format_number():
        provenance.write(root / note, entries)
    provenance.remember(root, folder)

    if stage is not None:
        _dvc(root, "commit", "--quiet", "--force", stage)
    else:
        shared = files.here | {note}
        _dvc(root, "add", "--quiet", *_targets(root, folder, shared, tracked))
    # DVC's own core.autostage leaves out what `dvc commit` writes. Without git there is nothing to be staged.
    of_git = "dvc.lock" if stage is not None else f"{folder}.dvc"
    subprocess.run(["git", "add", "--", of_git], cwd=root, capture_output=True)
    return new


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
    stages = (config.read_yaml(path) if path.is_file() else {}).get("stages", {})
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
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise UsbpoError(f"dvc {arguments[0]}: {' '.join(lines) or done.stderr.strip()}")
    return done.stdout
