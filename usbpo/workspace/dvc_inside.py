"""All that rests on the inside of DVC: what it tracks of a folder, and how `dvc add` lays parts of one into it.

`dvc add RUN` tracks what is in the folder at that moment, and drops what was not pulled; `dvc add RUN/00011` lays the
one part into what is tracked, and keeps the rest. DVC's documentation has neither that nor the words that are read
here. Each has a test in tests/workspace/test_dvc_inside.py, which fails with a sentence when an upgrade has changed it.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from usbpo.artifacts.files import write_text
from usbpo.errors import UsbpoError
from usbpo.experiment.yaml_files import read_yaml

NOT_SHARED = ("logs", "benchmarks")
"""Folders beside the artifacts that stay where they were written, as .dvcignore says."""


CODE = ("Snakefile", "usbpo", "workflow")
"""What a stage depends on beside its configuration"""


@dataclass(frozen=True)
class Tracked:
    """How a folder differs from what DVC last heard of it; paths from the workspace."""

    changed: frozenset[str]
    """Files that are new or have another content"""
    missing: frozenset[str]
    """Files that are tracked and not there: not pulled, or let go"""


def call(root: Path, *arguments: str) -> str:
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


def require_repository(root: Path) -> None:
    """Raise UsbpoError unless a folder is in a DVC repository."""
    call(root, "root")


def check_folders(root: Path, folders: Iterable[str]) -> None:
    """Refuse folders that a symbolic link leads to: what lies behind one is tracked neither by DVC nor by git.

    Raises:
        UsbpoError: a folder, or one above it in the workspace, is a link.
    """
    for folder in folders:
        for part in [Path(folder), *Path(folder).parents][:-1]:
            if (root / part).is_symlink():
                raise UsbpoError(
                    f"{root / part}: it is a symbolic link, behind which neither DVC nor git tracks anything; put the "
                    "folder itself there, and DVC's cache on the larger disk (docs/sharing.md)."
                )


def remotes(root: Path) -> tuple[list[str], bool]:
    """The names of the remotes that DVC knows, and whether one of them is the default; also outside of a repository."""
    listed = call(root, "remote", "list").splitlines()
    return [line.split()[0] for line in listed], any(line.endswith("(default)") for line in listed)


def stages(root: Path) -> dict[str, str]:
    """The stage of dvc.yaml that has a folder as its output, by folder."""
    return {
        folder.rstrip("/"): name
        for name, stage in _stages(root).items()
        for out in stage.get("outs", [])
        for folder in ([out] if isinstance(out, str) else out)
    }


def make_stage(
    root: Path, name: str, folder: str, parameters: Iterable[str], command: str | None = None, description: str = ""
) -> None:
    """Write into dvc.yaml what a stage depends on and makes, where that does not stand there.

    DVC takes a stage with outputs that were never published for one whose outputs are lost, so it is written no earlier
    than its outputs are added.

    Args:
        folder: of the results that the stage makes.
        parameters: the configuration files that it reads.
        command: of a stage that is not there yet; None: nothing is done but where one stands with its command alone.
    """
    stage = _stages(root).get(name) or ({"cmd": command, "desc": description} if command else {})
    if not {"cmd"} <= stage.keys() <= {"cmd", "desc"} or (root / note_of(folder, None)).is_file():
        return
    words = ["--desc", str(stage["desc"])] if stage.get("desc") else []
    words += [word for path in CODE if (root / path).exists() for word in ("--deps", path)]
    words += [word for path in parameters for word in ("--params", f"{path}:")]
    words += ["--outs-persist", folder]  # DVC would delete the folder before it runs the command
    call(root, "stage", "add", "--force", "--name", name, *words, str(stage["cmd"]))


def _stages(root: Path) -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml by name."""
    path = root / "dvc.yaml"
    return dict((read_yaml(path) if path.is_file() else {}).get("stages") or {})


def note_of(folder: str, stage: str | None) -> str:
    """The file in which DVC tracks a folder, which git shall have."""
    return f"{folder}.dvc" if stage is None else "dvc.lock"


def tracked(root: Path, folders: Iterable[str], stages: Mapping[str, str]) -> dict[str, Tracked]:
    """How the folders that DVC tracks already differ from what it tracks."""
    lock = root / "dvc.lock"
    locked = lock.read_text(encoding="utf-8").split() if stages and lock.is_file() else []
    known = {folder for folder in folders if (root / f"{folder}.dvc").is_file() or folder in locked}
    if not known:
        return {}
    said = json.loads(call(root, "data", "status", "--granular", "--json", *sorted(known)) or "{}")
    difference = said.get("uncommitted", {})
    renamed = difference.get("renamed", [])
    changed = {*difference.get("added", []), *difference.get("modified", []), *(each["new"] for each in renamed)}
    missing = {*difference.get("deleted", []), *(each["old"] for each in renamed)}
    return {
        folder: Tracked(frozenset(_within(folder, changed)), frozenset(_within(folder, missing))) for folder in known
    }


def add(
    root: Path, folder: str, shared: Collection[str], written: Iterable[str], before: Tracked | None, stage: str | None
) -> None:
    """Have DVC track all of `shared` in a folder and nothing else, and drop nothing that it tracks already.

    Args:
        written: those of `shared` that were written after `before` was found out.
        before: how the folder differed from what DVC tracks; None where it does not track it.
        stage: the stage of dvc.yaml that has the folder as its output.
    """
    if stage is not None:
        call(root, "commit", "--force", stage)
        return
    parts = targets(root, folder, shared, written, before)
    if before is None and parts != [folder]:
        # A folder of nothing, into which the parts are laid: DVC would give each a .dvc file of its own.
        content = {"outs": [{"hash": "md5", "path": Path(folder).name}]}
        write_text(root / note_of(folder, stage), yaml.safe_dump(content))
    call(root, "add", *parts)


def targets(
    root: Path, folder: str, shared: Collection[str], written: Iterable[str], before: Tracked | None
) -> list[str]:
    """What `dvc add` is told, so that all of `shared` and nothing else is added, and nothing tracked is dropped.

    The folder itself, where it holds nothing else; DVC then looks at it once. Else the folders of cycles and single
    files in it, which DVC lays into what it has.
    """
    shared = set(shared)
    found = _files_below(root, folder)
    missing = before.missing if before else frozenset[str]()
    if found <= shared and not missing:
        return [folder]
    changed = shared if before is None else (before.changed & shared) | set(written)
    names: dict[str, None] = {}
    for name in sorted(changed):
        parent = name.rpartition("/")[0]
        whole = parent != folder and _within(parent, found) <= shared and not _within(parent, missing)
        names[parent if whole else name] = None
    return [name for name in names if not any(name.startswith(f"{other}/") for other in names)]


def _within(folder: str, names: Iterable[str]) -> set[str]:
    """The files in a folder; DVC names folders too, with a slash at the end."""
    return {name for name in names if name.startswith(f"{folder}/") and not name.endswith("/")}


def _files_below(root: Path, folder: str) -> set[str]:
    """Every file of a folder but those that are not shared."""
    paths = (path.relative_to(root) for path in (root / folder).rglob("*") if not path.is_dir())
    depth = len(Path(folder).parts)
    return {path.as_posix() for path in paths if path.parts[depth] not in NOT_SHARED}
