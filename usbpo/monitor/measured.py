"""What stages took, by Snakemake's benchmark files and by their own logs."""

import re
from math import isfinite
from pathlib import Path
from statistics import median
from typing import NamedTuple

from usbpo.artifacts import layout
from usbpo.monitor.logs import last_lines
from usbpo.monitor.runs import Run

TOOK = re.compile(
    r"(\w+): took (\d{1,12}\.\d{1,9}) s.*, (\d{1,12}\.\d{1,9}) s of CPU, at most (\d{1,12}) MiB of memory"
)
"""The last line of a stage's log (usbpo/commands/stage_verbs.py)"""

RECENT_CYCLES = 10
"""The time that a cycle takes is the median of this many last ones: cycles grow longer as the data grow."""


def seconds_per_cycle(root: Path, run: Run, done: int) -> float | None:
    """Median over the last cycles up to `done` of the seconds that their stages took, by Snakemake's benchmark files.

    Cycle 0 is unlike the others and does not count; None where nothing was measured.
    """
    totals = []
    for cycle in range(max(1, done - RECENT_CYCLES + 1), done + 1):
        folder = (root / run.path(layout.BENCHMARK, cycle)).parent
        seconds = [benchmark_seconds(path) for path in folder.glob("*.tsv")]
        measured = [value for value in seconds if value is not None]
        if measured and len(measured) == len(seconds):
            totals.append(sum(measured))
    return median(totals) if totals else None


def benchmark_seconds(path: Path) -> float | None:
    """The seconds in a benchmark file of Snakemake; None if it is broken."""
    try:
        header, values = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[:2])
        seconds = float(values[header.index("s")])
        return seconds if isfinite(seconds) else None
    except (OSError, ValueError, IndexError):
        return None


def thread_seconds(benchmark: Path, log: Path) -> float | None:
    """Seconds that a job would have taken with one thread: those of the CPU, by its log, where they are more."""
    wall, said = benchmark_seconds(benchmark), took(log)
    return wall if wall is None or said is None else max(wall, said.cpu_seconds)


class Took(NamedTuple):
    """What a job took, as its log says."""

    stage: str
    clock_seconds: float
    cpu_seconds: float
    memory_mib: int


def took(log: Path) -> Took | None:
    """What the stage of a log took; None where it has not ended well."""
    found = [match for line in last_lines(log, 1) if (match := TOOK.fullmatch(line))]
    return Took(found[0][1], float(found[0][2]), float(found[0][3]), int(found[0][4])) if found else None
