"""The runs on disk that a person names: by TASK/METHOD/seed-N, by a folder, or by the results of an experiment."""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from usbpo.artifacts import layout
from usbpo.artifacts.layout import five_digits, runs_on_disk
from usbpo.errors import UsbpoError
from usbpo.experiment.paths import is_file, is_folder
from usbpo.experiment.sentences import shortened

_RUNS = ("data", "runs")
_CYCLE = re.compile("[0-9]{5}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
"""As task and method files are named"""
_RESULTS = ("data", "results")


@dataclass(frozen=True, order=True)
class NamedRun:
    """A run on disk."""

    root: Path
    """The folder that holds data/"""
    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """TASK/METHOD/seed-N, the run's folder below data/runs."""
        return f"{self.task}/{self.method}/seed-{self.seed}"

    def path(self, template: str, cycle: int) -> Path:
        """One of the templates in `usbpo.artifacts.layout` for a cycle."""
        cycle_digits = five_digits(cycle)
        return self.root / template.format(task=self.task, method=self.method, seed=self.seed, cycle=cycle_digits)

    def has(self, template: str, cycle: int) -> bool:
        """Whether such a file of a cycle is there.

        Raises:
            UsbpoError: something else is in its place, or a link to nothing.
        """
        path = self.path(template, cycle)
        there = is_file(path)
        if not there and os.path.lexists(path):
            raise UsbpoError(f"{path}: this is no file, or a link to none; remove it, and pull or make it anew.")
        return there

    def cycles(self) -> list[int]:
        """The cycles that have a folder, in ascending order.

        Raises:
            OSError: the run's folder cannot be looked into.
        """
        folder = self.root.joinpath(*_RUNS, self.name)
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if _CYCLE.fullmatch(name) and (folder / name).is_dir())


def named_runs(words: Sequence[str], root: Path = Path()) -> list[NamedRun]:
    """The runs that some words name, each once, in order; all runs below `root` where there are no words.

    A word is TASK/METHOD/seed-N below `root`, or TASK/METHOD or TASK, or a folder with runs (data/runs, one of its
    folders, or one that holds data/), or the folder of an experiment's results, whose `evaluations.csv` names its runs.

    Raises:
        UsbpoError: a word names no run.
    """
    found = [run for word in words for run in _named(word, root)] if words else _below(root)
    if not found:
        raise UsbpoError(f"{root / 'data/runs'}: there are no runs; run snakemake first, or name the folder of a run.")
    return list(dict.fromkeys(found))


def named_run(word: str, root: Path = Path()) -> NamedRun:
    """The one run that a word names.

    Raises:
        UsbpoError: it names none, or several.
    """
    found = named_runs([word], root)
    if len(found) > 1:
        raise UsbpoError(
            f"{word}: {len(found)} runs are there, but one is needed; name one of them, as {found[0].name}."
        )
    return found[0]


def last_policy(run: NamedRun) -> int:
    """The last cycle that has a policy.

    Raises:
        UsbpoError: none has.
    """
    with_policy = [cycle for cycle in run.cycles() if run.has(layout.POLICY, cycle)]
    if not with_policy:
        raise UsbpoError(
            f"{run.root / 'data/runs' / run.name}: it holds no policy yet; run it on, or name another run."
        )
    return with_policy[-1]


def _named(word: str, root: Path) -> list[NamedRun]:
    parts = tuple(word.strip("/").split("/"))
    found = [run for run in _below(root) if Path(run.name).parts[: len(parts)] == parts]
    given = Path(word)
    if not found and is_folder(given):
        # As it was given, so that messages name it as the user does; resolved where data/runs lies further up.
        for folder in (given, given.resolve()):
            found = found or _within(folder)
    if not found:
        raise UsbpoError(
            f"{shortened(word)}: no run has this name and no folder of it holds a run; "
            "give TASK/METHOD/seed-N or a folder of runs (`usbpo status` lists them)."
        )
    return found


def _within(folder: Path) -> list[NamedRun]:
    if (above := _split(folder, _RUNS)) is not None:
        root, below = above
        return [run for run in _below(root) if Path(run.name).parts[: len(below)] == below]
    if (above := _split(folder, _RESULTS)) is not None:
        return _of_results(folder, above[0])
    return _below(folder)


def _split(folder: Path, middle: tuple[str, str]) -> tuple[Path, tuple[str, ...]] | None:
    """What comes before and after `middle` in a folder's path."""
    parts = folder.parts
    places = [n for n in range(len(parts) - 1) if parts[n : n + 2] == middle]
    return (Path(*parts[: places[-1]]), parts[places[-1] + 2 :]) if places else None


def _of_results(folder: Path, root: Path) -> list[NamedRun]:
    """The runs that stand in an experiment's `evaluations.csv`, in its order."""
    path = folder / "evaluations.csv"
    if not is_file(path):
        return []
    with open(path, encoding="utf-8", newline="") as file:
        try:
            rows = [(row["task"], row["method"], int(row["seed"])) for row in csv.DictReader(file)]
            if not all(_NAME.fullmatch(name) for *names, _ in rows for name in names):
                raise ValueError("what is no name would lead to another folder")
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UsbpoError(f"{path}: it does not name runs; delete it and draw the results again.") from error
    return _runs(root, dict.fromkeys(rows))


def _below(root: Path) -> list[NamedRun]:
    return _runs(root, runs_on_disk(root))


def _runs(root: Path, runs: Iterable[tuple[str, str, int]]) -> list[NamedRun]:
    return [NamedRun(root, *run) for run in runs]
