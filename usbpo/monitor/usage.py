"""What runs have taken: time by the clock, time of CPU and memory, as the logs of their stages say."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from usbpo.artifacts import layout
from usbpo.artifacts.files import write_text
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun
from usbpo.monitor.duration import duration
from usbpo.monitor.measured import Took, took
from usbpo.report.tabular import Table as Values


class Usage(NamedTuple):
    """What the jobs of one stage of a run have taken.

    Attributes:
        jobs: how many have ended.
        clock_seconds, cpu_seconds: in all; with several threads more CPU than clock.
        memory_mib: the most that one of them held.
    """

    stage: str
    jobs: int
    clock_seconds: float
    cpu_seconds: float
    memory_mib: int


COLUMNS = ("task", "method", "seed", *Usage._fields)


def usage(run: NamedRun) -> list[Usage]:
    """What each stage of a run has taken, by its logs, the dearest first.

    A job that was repeated counts once: its log is of the last time.
    """
    found: dict[str, list[Took]] = {}
    logs = layout.LOG.format(task=run.task, method=run.method, seed=run.seed, cycle="*", stage="*")
    for said in filter(None, map(took, sorted(run.root.glob(logs)))):
        found.setdefault(said.stage, []).append(said)
    totals = []
    for stage, jobs in found.items():
        _, clocks, cpus, memories = zip(*jobs, strict=True)
        totals.append(Usage(stage, len(jobs), round(sum(clocks), 2), round(sum(cpus), 2), max(memories)))
    return sorted(totals, key=lambda each: (-each.cpu_seconds, each.stage))


def table(runs: Iterable[tuple[NamedRun, Sequence[Usage]]]) -> Values:
    """A row for each stage of each run, with the columns `COLUMNS`."""
    return Values(COLUMNS, [(run.task, run.method, run.seed, *of) for run, stages in runs for of in stages])


def print_usage(runs: Sequence[NamedRun], output: Path | None, console: Console) -> None:
    """Print a line for each run, and write `table` to the file `output`, where one is given.

    Raises:
        UsbpoError: no stage of any of them has ended, or the file cannot be written.
    """
    taken = [(run, usage(run)) for run in runs]
    if not any(stages for _, stages in taken):
        raise UsbpoError("no log of these runs says what a stage took; run snakemake first (DVC shares no logs).")
    if output:
        write_text(output, table(taken).csv())
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("run", "jobs", "clock", "CPU", "memory", "of the CPU"):
        shown.add_column(name, justify="left" if name in ("run", "of the CPU") else "right", overflow="fold")
    for run, stages in taken:
        cpu = sum(of.cpu_seconds for of in stages)
        dearest = [f"{of.stage} {of.cpu_seconds / cpu:.0%}" for of in stages[:3]] if cpu else []
        shown.add_row(
            run.name,
            str(sum(of.jobs for of in stages)),
            duration(sum(of.clock_seconds for of in stages)),
            duration(cpu),
            f"{max((of.memory_mib for of in stages), default=0)} MiB",
            ", ".join(dearest),
        )
    console.print(shown)
