"""What lies about without being needed, and its deletion: the verb `usbpo gc`.

Snakemake deletes temporary artifacts when their last reader has ended. What it has not come to stays until it is
collected here: it was killed, a single artifact was asked for, or the runs were made by an experiment that keeps more.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from usbpo.artifacts import layout
from usbpo.errors import UsbpoError
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.yaml_files import read_yaml
from usbpo.monitor.estimate import size_in_words
from usbpo.workspace import lifetime
from usbpo.workspace.restoring import files_of, jobs_to_run

PARTIAL = re.compile(r"\..+\.(?P<pid>[1-9][0-9]*)\.partial")
"""The temporary names of `usbpo.artifacts.files.writing`, with the process that writes."""


@dataclass(frozen=True)
class Leftover:
    """A file that no run needs any more."""

    owner: str
    """The run, or the folder of results"""
    path: str
    bytes: int

    @property
    def kind(self) -> str:
        """Its name as artifact, or what it is otherwise."""
        return "broken off" if PARTIAL.fullmatch(Path(self.path).name) else Path(self.path).name


def leftovers(plan: Plan, others: Iterable[Plan], root: Path) -> list[Leftover]:
    """The files of an experiment's runs that neither it nor one of the `others`, nor their next cycles, need.

    Models, policies and rollouts that are not kept and that no job to come reads, and what killed writers left.
    """
    others, found = list(others), []
    for run in plan.cycles:
        there = files_of(run, root)
        needed, end = needed_of(run, [plan, *others], there, root), last_cycle(there)
        for path in sorted(there):
            cycle = layout.cycle_of(path)
            of_run = cycle is not None and cycle <= end and layout.is_large(path) and path not in needed
            if of_run or _is_broken_off(path):
                found.append(Leftover(run.name, path, (root / path).stat().st_size))
    results = plan.results_folder
    for file in sorted((root / results).rglob("*")):
        if _is_broken_off(str(file)):
            found.append(Leftover(results, str(file.relative_to(root)), file.stat().st_size))
    return found


def needed_of(run: Run, plans: Iterable[Plan], there: set[str], root: Path) -> set[str]:
    """What the experiments that have a run keep of it, and what jobs to come read.

    Where the run is longer than any of them asks for, it shall also be able to go on from its end.
    """
    needed: set[str] = set()
    asked, end = 0, last_cycle(there)
    for plan in plans:
        if run in plan.cycles:
            asked = max(asked, plan.cycles[run])
            needed |= _with_inputs(run, plan.cycles[run], plan.kept(run, root), there)
    if end > asked:
        small = (path for cycle in range(end + 1) for path in run.artifacts(cycle) if not layout.is_large(path))
        next_cycle = [path for stage in run.jobs(end + 1) for path in run.inputs(stage, end + 1)]
        needed |= _with_inputs(run, end, [*small, *run.checkpoints(end), *next_cycle], there)
    return needed


def last_cycle(there: set[str]) -> int:
    """The last cycle of a run whose policy was made, by the run's files; 0 where there is none."""
    made = (layout.cycle_of(path) for path in there if Path(path).name == Path(layout.POLICY_METRICS).name)
    return max((cycle for cycle in made if cycle is not None), default=0)


def _with_inputs(run: Run, cycles: int, wanted: Iterable[str], there: set[str]) -> set[str]:
    wanted = list(wanted)
    to_run = jobs_to_run(run, cycles, wanted, there)
    return {*wanted, *(path for job in to_run for path in run.inputs(*job))}


def _is_broken_off(path: str) -> bool:
    """Whether a path is the temporary name of a writer that has ended."""
    partial = PARTIAL.fullmatch(Path(path).name)
    return partial is not None and not lifetime.alive(partial["pid"])


# ---- for people --------------------------------------------------------------------------------------------------


def collect_leftovers(experiment: Path, folders: Iterable[Path], dry_run: bool, root: Path, console: Console) -> None:
    """Delete the leftovers of an experiment's runs and print what went; with `dry_run`, print what would go.

    Args:
        experiment: its file.
        folders: configuration folders; what any experiment in them keeps of the runs stays.

    Raises:
        UsbpoError: an experiment is wrong, a Snakemake is at work below `root`, or a file cannot be deleted.
    """
    folders = tuple(folders)
    plan, *others = [
        Plan(read_yaml(file), source=str(file), folders=folders) for file in _experiments(experiment, folders)
    ]
    if not (root / "data").is_dir():
        raise UsbpoError(f"{root / 'data'}: there is no such folder; name the one that holds data/ with --folder.")
    with lifetime.alone_in(root):
        found = leftovers(plan, others, root)
        if not dry_run:
            for leftover in found:
                _delete(root / leftover.path)
    _print(plan, found, "would go" if dry_run else "gone", console)


def _experiments(first: Path, folders: Iterable[Path]) -> list[Path]:
    """An experiment's file, and then those of all others."""
    files = {first.resolve(): first}
    for folder in folders:
        for file in (folder / "config.yaml", *sorted(folder.glob("experiments/*.yaml"))):
            if file.is_file():
                files.setdefault(file.resolve(), file)
    return list(files.values())


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UsbpoError(f"{path}: cannot be deleted ({error.strerror}); mend the folder's permissions.") from error


def _print(plan: Plan, found: list[Leftover], what: str, console: Console) -> None:
    experiment = plan.experiment
    console.print(f"[bold]{experiment.experiment}[/], artifacts.keep: {experiment.artifacts.keep}", highlight=False)
    if not found:
        console.print("Nothing lies about that is not needed.", highlight=False)
        return
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for leftover in found:
        groups[leftover.owner, leftover.kind].append(leftover.bytes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", what):
        table.add_column(name, no_wrap=True)
    for name in ("files", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for (owner, kind), sizes in groups.items():
        table.add_row(owner, kind, f"{len(sizes):,}", size_in_words(sum(sizes)))
    table.add_section()
    table.add_row("all", "", f"{len(found):,}", size_in_words(sum(leftover.bytes for leftover in found)))
    console.print(table)
