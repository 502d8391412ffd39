"""Shares runs for the tests: a project with finished runs in git, DVC with a remote, and clones of it."""

import hashlib
import os
import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml

from helpers.workflow import BIN, REPO, USBPO, ended
from usbpo.experiment.yaml_files import read_yaml

RUN = f"data/runs/{USBPO}"
OF_DVC = (".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", "dvc.yaml")
WHO = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def run(folder: Path, *words: str, fails: bool = False, **changes: str) -> str:
    """Run a command of a user in `folder` and return what it printed."""
    done = ended(list(words), folder, **WHO, DVC_NO_ANALYTICS="1", **changes)
    assert (done.code != 0) == fails, f"{' '.join(words)}\n{done.said}"
    return done.said


def usbpo(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Run `usbpo` in `folder`."""
    return run(folder, str(BIN / "usbpo"), *arguments, fails=fails)


def dvc(folder: Path, *arguments: str, fails: bool = False, **changes: str) -> str:
    """Run `dvc` in `folder`."""
    return run(folder, str(BIN / "dvc"), *arguments, fails=fails, **changes)


def git(folder: Path, *arguments: str) -> str:
    """Run `git` in `folder`."""
    return run(folder, "git", *arguments)


def project(to: Path, finished: Path) -> Path:
    """The project in a git repository, its default experiment the tests' one, with the runs of a finished workspace."""
    to.mkdir()
    for name in ("Snakefile", "workflow", "profiles", "config", "usbpo", "snakemake_logger_plugin_usbpo"):
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)
    for name in (".gitignore", *OF_DVC):
        (to / name).parent.mkdir(exist_ok=True)
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, to / name)
        else:
            shutil.copy2(REPO / name, to / name)
    experiment = read_yaml(REPO / "config/experiments/test.yaml") | {"experiment": "demo"}
    (to / "config/config.yaml").write_text(yaml.safe_dump(experiment))
    shutil.copytree(finished / "data/runs", to / "data/runs")
    (to / "data/.gitkeep").touch()
    shutil.copytree(finished / ".snakemake", to / ".snakemake")
    git(to, "init", "--quiet", "--initial-branch=main")
    git(to, "add", ".")
    git(to, "commit", "--quiet", "--message", "The project")
    return to


def clone(of: Path, to: Path) -> Path:
    """A clone with shuffled time stamps."""
    git(of.parent, "clone", "--quiet", str(of), str(to))
    shuffle_times(to)
    return to


def pull(folder: Path, *paths: str) -> None:
    """`dvc pull`, and shuffled time stamps."""
    dvc(folder, "pull", *paths)
    shuffle_times(folder)


def shuffle_times(folder: Path) -> None:
    """Give every file below a folder a time stamp that says nothing."""
    rng = random.Random(0)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and not {".git", ".snakemake", ".dvc"} & set(path.parts):
            stamp = 1_700_000_000 + rng.randrange(1_000_000)
            os.utime(path, (stamp, stamp))


def snake(folder: Path, *arguments: str) -> str:
    """Plain `snakemake` with the clone's own Snakefile and default experiment."""
    return run(folder, str(BIN / "snakemake"), *arguments, "--cores", "1")


def shared_files(folder: Path, below: str = "data") -> dict[str, str]:
    """SHA-256 of every artifact and provenance file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() and not {"logs", "benchmarks"} & set(path.parts) and is_artifact(path)
    }


def is_artifact(path: Path) -> bool:
    """Whether a file below data/ is none of git's."""
    return path.suffix != ".dvc" and path.name not in (".gitkeep", ".gitignore")


def cache(folder: Path) -> dict[str, str]:
    """SHA-256 of every object in a repository's cache."""
    objects = (folder / ".dvc/cache/files").rglob("*")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in objects if p.is_file()}


def ran(said: str) -> list[str]:
    """Rules of the jobs that a dry run lists, `all` left out."""
    return sorted(rule for rule in re.findall(r"^(?:local)?rule (\w+):", said, flags=re.MULTILINE) if rule != "all")


def without(names: Iterable[str], *parts: str) -> set[str]:
    """The paths that have none of `parts` in them."""
    return {name for name in names if not any(part in name for part in parts)}
