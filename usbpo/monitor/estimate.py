"""What an experiment will take, said before anything runs: the verb `usbpo plan`.

Counts are exact; what stands is told by files alone, so that changed keys and code, which Snakemake sees, are not seen
here. Disk is what stays in the end. Disk and time are calculated for each cycle (`usbpo.monitor.costs`), and scaled to
what jobs of the same stage left and took on this machine before: those of the same task and method, else those of a
method that does the same work.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from usbpo.artifacts import layout
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.threads import most, shortened
from usbpo.monitor.costs import EPOCHS, Costs, OfCycle, costs_of
from usbpo.monitor.duration import duration
from usbpo.monitor.measured import benchmark_seconds, thread_seconds
from usbpo.workspace.restoring import files_of, jobs_to_run

PLANNED_BYTES = 45_000
"""Memory that Snakemake takes for each job of its plan, those that stand already included"""
MANY_BYTES = 4e9
"""From so much on, the plan is worth a warning"""


@dataclass
class Line:
    """A line of the table: all runs of one task and method."""

    task: str
    method: str
    runs: int = 0
    cycles: int = 0
    jobs: int = 0
    standing: int = 0
    memory: float = 0.0
    """Bytes of the job that takes most, whether it stands or not"""
    bytes: float = 0.0
    """Of the jobs that do not stand yet"""
    seconds: float = 0.0
    """Of the jobs that do not stand yet, one after the other"""
    chains: list["Chain"] = field(default_factory=list)
    """Of them, those of each run: a run is a chain"""
    measured: Counter[bool] = field(default_factory=Counter)
    """How many of these jobs' times are scaled to measured ones, and how many are calculated alone"""

    def longest(self, cores: int) -> float:
        """Seconds of the run that takes longest, where each has so many cores for itself; 0 where none is left."""
        return max((chain.take(cores) for chain in self.chains), default=0.0)


@dataclass(frozen=True)
class Chain:
    """The jobs of one run that do not stand yet.

    Attributes:
        seconds: of the jobs of each stage with one thread, one after the other.
    """

    config: RunConfig
    seconds: Mapping[str, float]

    def take(self, cores: int) -> float:
        """Seconds, where the run has so many cores for itself."""
        return sum(shortened(self.config, stage, seconds, cores) for stage, seconds in self.seconds.items())


@dataclass(frozen=True)
class Work:
    """What the jobs of a run of one task and method take: as calculated, times the factors that were measured."""

    costs: Costs
    bytes_by: Mapping[str, float]
    seconds_by: Mapping[str, float]

    def bytes(self, stage: str, cycle: int) -> float:
        """Bytes that a job leaves."""
        return self.costs.bytes_of[stage](cycle) * self.bytes_by.get(stage, 1.0)

    def seconds(self, stage: str, cycle: int) -> float:
        """Seconds that a job takes."""
        return self.costs.seconds_of[stage](cycle) * self.seconds_by.get(stage, 1.0)


def estimate(plan: Plan, root: Path = Path(), everything: bool = False) -> list[Line]:
    """A line for each task and method of an experiment, with what stands below `root` left out of disk and time.

    Args:
        everything: leave nothing out.
    """
    lines: dict[tuple[str, str], Line] = {}
    works: dict[tuple[str, str], Work] = {}
    for run, cycles in plan.cycles.items():
        group = run.task, run.method
        kept, there = plan.kept(run, root), set() if everything else files_of(run, root)
        jobs = missing = [(stage, c, paths) for c in range(cycles + 1) for stage, paths in run.jobs(c).items()]
        if there:  # else everything is to be made
            to_run = jobs_to_run(run, cycles, kept, there)
            missing = [job for job in jobs if job[:2] in to_run]
        to_come = set(kept) - there
        if group not in lines:
            lines[group] = Line(*group, memory=1e6 * max(run.megabytes(stage, cycle) for stage, cycle, _ in jobs))
        if missing and group not in works:
            works[group] = work_of(run, alike(plan, run), root)
        line, took = lines[group], defaultdict[str, float](float)
        for stage, cycle, paths in missing:
            line.measured[stage in works[group].seconds_by] += 1
            took[stage] += works[group].seconds(stage, cycle)
            left = {Path(path).name if layout.is_large(path) else stage for path in paths if path in to_come}
            line.bytes += sum(works[group].bytes(what, cycle) for what in left)
        line.runs, line.cycles, line.jobs = line.runs + 1, line.cycles + cycles, line.jobs + len(jobs)
        line.standing += len(jobs) - len(missing)
        line.seconds += sum(took.values())
        if missing:
            line.chains.append(Chain(run.config, took))
    return list(lines.values())


def alike(plan: Plan, run: Run) -> list[Run]:
    """Runs of the experiment's other methods whose policy and model stages do the same work, whatever else they do."""

    def work(other: Run) -> tuple[object, ...]:
        config, schedule = other.config, other.schedule
        sections = config.policy, config.model, config.phase1, config.rollout, config.evaluate
        return other.task, schedule.cycle_steps, schedule.triggered, *sections

    of_plan = {other.method: other for other in plan.cycles if other.method != run.method and work(other) == work(run)}
    return list(of_plan.values())


def work_of(run: Run, like: Sequence[Run], root: Path) -> Work:
    """Work of a run by what it and, for stages that it has not run, those that are like it left and took before.

    Raises:
        UsbpoError: the environment of a run cannot be made.
    """
    costs = costs_of(run)
    bytes_by: dict[str, float] = {}
    seconds_by: dict[str, float] = {}
    for other in (*like, run):
        calculated = costs if other is run else costs_of(other)
        bytes_by |= factors(_bytes_before(other, root), calculated.bytes_of)
        seconds_by |= factors(_seconds_before(other, root), calculated.seconds_of)
    return Work(costs, bytes_by, seconds_by)


Measured = tuple[str, int, float]
"""A stage, its cycle, and what a job of it took"""


def factors(measured: Iterable[Measured], calculated: Mapping[str, OfCycle]) -> dict[str, float]:
    """For each stage the sum of what was measured by the sum of what is calculated for the same cycles."""
    found: defaultdict[str, float] = defaultdict(float)
    expected: defaultdict[str, float] = defaultdict(float)
    for stage, cycle, value in measured:
        if stage in calculated:
            found[stage] += value
            expected[stage] += calculated[stage](cycle)
    return {stage: found[stage] / expected[stage] for stage in found}


def _seconds_before(run: Run, root: Path) -> Iterator[Measured]:
    """Seconds of the jobs of a task and method that ran here before, by Snakemake's benchmark files; cycle 0 apart."""
    for path in root.glob(layout.BENCHMARK.format(task=run.task, method=run.method, seed="*", cycle="*", stage="*")):
        of_block = path.parent.name == "blocks"
        stage, number = ("block", path.stem) if of_block else (path.stem, path.parent.name)
        if most(run.config, stage) > 1:
            log = path.parents[2] / "logs" / path.parent.name / f"{path.stem}.log"
            seconds = thread_seconds(path, log)
        else:
            seconds = benchmark_seconds(path)
        if seconds is not None and number.isdecimal() and (cycle := int(number)):
            yield stage, cycle, seconds


def _bytes_before(run: Run, root: Path) -> Iterator[Measured]:
    """Bytes that such jobs left, those of large files by themselves; cycle 0 apart."""
    for folder in root.glob(layout.CYCLE.format(task=run.task, method=run.method, seed="*", cycle="[0-9]" * 5)):
        seed = folder.parent.name.removeprefix("seed-")
        if seed.isdecimal() and (cycle := int(folder.name)):
            for stage, paths in replace(run, seed=int(seed)).jobs(cycle).items():
                files = {path: (root / path).stat().st_size for path in paths if (root / path).is_file()}
                small = [path for path in paths if not layout.is_large(path)]
                if small and all(path in files for path in small):
                    yield stage, cycle, sum(files[path] for path in small)
                yield from ((Path(path).name, cycle, size) for path, size in files.items() if layout.is_large(path))


# ---- for people --------------------------------------------------------------------------------------------------


def print_plan(plan: Plan, cores: int, root: Path, console: Console) -> None:
    """Print what an experiment will take on `cores` cores."""
    lines = estimate(plan, root)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "cycles", "jobs", "stand", "disk to come", "work to come", "largest job"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(line.task, line.method, *_cells(line))
    total = Line("all", "")
    for line in lines:
        for name in ("runs", "cycles", "jobs", "standing", "bytes", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(line, name))
        total.chains += line.chains
        total.memory = max(total.memory, line.memory)
        total.measured += line.measured
    table.add_section()
    table.add_row(total.task, total.method, *_cells(total))
    console.print(f"[bold]{plan.experiment.experiment}[/]", highlight=False)
    console.print(table)
    if (memory := total.jobs * PLANNED_BYTES) > MANY_BYTES:
        console.print(
            f"[bold]Snakemake will hold {total.jobs:,} jobs, about {size_in_words(memory)} of memory.[/] Run it in "
            "parts, which share all they make: --config 'seeds=[0]' or 'methods=\\[mbpo]', or first a smaller scale.",
            highlight=False,
        )
    missing = total.jobs - total.standing
    if not missing:
        console.print(
            "All files stand already. Whether changed keys or code make some anew, `snakemake -n` says.",
            highlight=False,
        )
        return
    share = max(1, cores // len(total.chains))
    longest = total.longest(share)
    wall = max(longest, total.seconds / cores)
    has = f" where it has {share} of them" if share > 1 else ""
    console.print(
        f"About {duration(wall)} on {cores} cores: a run is a chain of jobs, and the longest takes "
        f"{duration(longest)}{has}. The results are one job more.",
        highlight=False,
    )
    console.print(
        f"Times are calculated from a calibration of this machine, with {EPOCHS} epochs for each phase 1, evaluation "
        "episodes of half the time limit, and a trigger that fires as often as MBPO trains; those of "
        f"{total.measured[True]:,} of the {missing:,} jobs to come are then scaled to what the same stages of the task "
        "took here before, and so is the disk. Other work on the machine makes a calibration slow. The largest job is "
        "the memory that Snakemake reserves for it, mem_mb.",
        highlight=False,
    )


def _cells(line: Line) -> list[str]:
    return [
        *(f"{number:,}" for number in (line.runs, line.cycles, line.jobs, line.standing)),
        size_in_words(line.bytes),
        duration(line.seconds),
        size_in_words(line.memory),
    ]


def size_in_words(number: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"
