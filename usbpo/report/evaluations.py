"""Runs from `evaluations.csv` alone: what is published of runs is enough to compare them."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from usbpo.errors import UsbpoError
from usbpo.experiment.run_files import RunFiles
from usbpo.report.records import MOST, Evaluation, Run

COLUMNS = ("task", "method", "seed", "cycle", "on_policy_steps", "episode", "episode_seed", "return", "length")
"""One row for each episode of each evaluation, in order (`tables.evaluations`)"""
CURE = "take the file that `usbpo results` wrote"

Row = Mapping[str, Any]


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs of some files, in their order, with their evaluations and nothing else.

    Raises:
        UsbpoError: a file cannot be read, has other columns or values, or a run stands in two of them.
    """
    runs: list[Run] = []
    for path in paths:
        rows = list(_rows(path))
        names = dict.fromkeys((row["task"], row["method"], row["seed"]) for row in rows)
        found = [
            _run(path, [row for row in rows if (row["task"], row["method"], row["seed"]) == name]) for name in names
        ]
        for run in found:
            if any(run.files.name == other.files.name for other in runs):
                raise UsbpoError(f"{path}: the run {run.files.name} stands in a file before it, too; give it once.")
        runs += found
    return runs


def _rows(path: Path) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            if tuple(columns) != COLUMNS:
                raise UsbpoError(f"{path}: its columns are not {', '.join(COLUMNS)}; {CURE}.")
            for line, values in enumerate(reader, 2):
                yield _row(path, line, values)
    except (UnicodeError, csv.Error) as error:
        raise UsbpoError(f"{path}: it is no CSV file ({error}); {CURE}.") from error


def _row(path: Path, line: int, values: Sequence[str]) -> Row:
    try:
        row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
        for name in COLUMNS[2:]:
            row[name] = float(row[name]) if name == "return" else int(row[name])
        if not math.fabs(row["return"]) <= MOST or min(row[name] for name in COLUMNS[2:7]) < 0 or row["length"] < 1:
            raise ValueError("a number is out of its range")
        if max(row[name] for name in (*COLUMNS[2:7], "length")) >= 1 << 53 or not (row["task"] and row["method"]):
            raise ValueError("a number is too large, or a name is empty")
    except ValueError as error:
        raise UsbpoError(f"{path}: line {line} is no episode of an evaluation ({error}); {CURE}.") from error
    return row


def _run(path: Path, rows: Sequence[Row]) -> Run:
    """One run of the rows that are its own.

    Raises:
        UsbpoError: its cycles are not of one length, go back, or hold unequal numbers of episodes.
    """
    name = "{task}/{method}/seed-{seed}".format(**rows[0])
    by_cycle: dict[int, list[Row]] = {}
    for row in rows:
        by_cycle.setdefault(row["cycle"], []).append(row)
    last = max(by_cycle)
    cycle_steps = by_cycle[last][0]["on_policy_steps"] // last if last else 0
    in_order = [(row["cycle"], row["episode"]) for row in rows] == [
        (cycle, episode) for cycle, its in sorted(by_cycle.items()) for episode in range(len(its))
    ]
    if cycle_steps < 1 or any(row["on_policy_steps"] != row["cycle"] * cycle_steps for row in rows) or not in_order:
        raise UsbpoError(
            f"{path}: the evaluations of {name} are not in order, each once, at the ends of cycles of one length; "
            f"{CURE}."
        )
    episodes = sorted({len(its) for its in by_cycle.values()})
    if len(episodes) > 1:
        raise UsbpoError(
            f"{path}: the evaluations of {name} have {' and '.join(map(str, episodes))} episodes, but must have "
            f"equally many; {CURE}."
        )
    evaluations = [
        Evaluation(
            cycle,
            np.array([row["return"] for row in its]),
            np.array([row["length"] for row in its]),
            np.array([row["episode_seed"] for row in its]),
        )
        for cycle, its in by_cycle.items()
    ]
    files = RunFiles(rows[0]["task"], rows[0]["method"], rows[0]["seed"], last, cycle_steps)
    return Run(files, evaluations, [], [], [], [], [], None)
