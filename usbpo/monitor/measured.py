"""What stages took, by Snakemake's benchmark files."""

import re
from math import isfinite
from pathlib import Path
from statistics import median

from usbpo.artifacts import layout
from usbpo.monitor.logs import last_lines
from usbpo.monitor.runs import Run

CPU_SECONDS = re.compile(r", (\d+\.\d+) s of CPU, ")
"""In the last line of a stage's log (usbpo/commands/stage_verbs.py)"""

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
    wall = benchmark_seconds(benchmark)
    said = [CPU_SECONDS.search(line) for line in last_lines(log, 1)]
    return wall if wall is None else max([wall, *(float(found[1]) for found in said if found)])
