"""Where every run stands, read from its files alone, and the table that shows it (`usbpo status`).

Nothing here needs the configuration: the files of a run say what was done, and how many cycles were asked for stands
in `TARGETS_FILE`, which the last Snakemake at work left there (`usbpo.monitor.progress`).
"""

import fcntl
import json
import os
import re
import sys
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Literal, NamedTuple

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from usbpo.artifacts import layout
from usbpo.artifacts.files import read_json, write_json
from usbpo.errors import UsbpoError
from usbpo.workspace import lifetime

TARGETS_FILE = ".snakemake/usbpo-targets.json"
"""How many cycles of which length were asked for last, by run: {"task/method/seed-N": {"cycles", "cycle_steps", …}}."""

RECENT_CYCLES = 10
"""The time that a cycle takes is the median of this many last ones: cycles grow longer as the data grow."""

STAGES: dict[str, tuple[str, ...]] = {
    "initialise": (layout.POLICY,),
    "collect": (layout.SHARD,),
    "triggered": (layout.TRIGGER,),
    "phase1": (layout.MODEL_MLE, layout.PHASE1_METRICS),
    "phase2": (layout.MODEL, layout.PHASE2_METRICS),
    "rollout": (layout.ROLLOUTS, layout.ROLLOUT_METRICS),
    "policy": (layout.POLICY, layout.POLICY_METRICS),
    "evaluate": (layout.EVALUATION,),
    "theory": (layout.THEORY_ROWS, layout.THEORY_METRICS),
}
"""What each stage leaves behind; the stage has ended when any of it is there (large files may be let go later)."""

DASH = "–"

State = Literal["at work", "waiting", "finished", "stopped", "failed", "–"]


class Run(NamedTuple):
    """Which run: its task, its method and its seed."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.method}/seed-{self.seed}"

    def path(self, template: str, cycle: int = 0) -> Path:
        """A path of `usbpo.artifacts.layout` for this run and `cycle`, relative to the workspace."""
        return Path(template.format(**self._asdict(), cycle=layout.five_digits(cycle), stage="{stage}"))


class Target(NamedTuple):
    """What was asked of a run: its number of cycles, the on-policy steps of each, the last one with an evaluation."""

    cycles: int
    cycle_steps: int
    evaluated: int | None = None
    """None: `cycles`"""

    @property
    def last_evaluation(self) -> int:
        """The last cycle that ends with an evaluation."""
        return self.cycles if self.evaluated is None else self.evaluated


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of one evaluation: mean and standard deviation over its episodes."""

    cycle: int
    on_policy_steps: int
    mean: float
    std: float

    def __str__(self) -> str:
        digits = 0 if abs(self.mean) >= 100 else 1
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f}"


@dataclass(frozen=True)
class RunStatus:
    """Where one run stands."""

    run: Run
    state: State = "–"
    cycle: int | None = None
    """The last cycle whose policy was made; None before cycle 0 has ended."""
    cycles: int | None = None
    """The number of cycles asked for; None where nobody knows."""
    steps: int | None = None
    """On-policy steps at the end of `cycle`."""
    stage: str | None = None
    """The stage at work in `stage_cycle`, or the one that failed or was stopped there."""
    stage_cycle: int | None = None
    evaluation: Evaluation | None = None
    """The newest evaluation."""
    seconds_left: float | None = None
    note: str = ""

    @property
    def at_work(self) -> str:
        """What the run is at, in a few words: "policy 5", "failed in policy 5", "finished"."""
        if self.stage is None:
            return self.state
        place = self.stage if self.stage_cycle is None else f"{self.stage} {self.stage_cycle}"
        return place if self.state == "at work" else f"{self.state} in {place}"


def parse_targets(content: object) -> dict[Run, Target]:
    """Read `{"task/method/seed-N": {"cycles": K, "cycle_steps": c}}`, as JSON text or decoded; skip what is no target.

    Progress is a courtesy: a broken entry costs a bar of the display, never a run.
    """
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except ValueError:
            return {}
    targets = {}
    for name, target in content.items() if isinstance(content, dict) else ():
        try:
            task, method, seed = name.split("/")
            targets[Run(task, method, int(seed.removeprefix("seed-")))] = Target(
                int(target["cycles"]),
                int(target["cycle_steps"]),
                None if target.get("evaluated") is None else int(target["evaluated"]),
            )
        except (ValueError, KeyError, TypeError):
            continue
    return targets


def read_targets(root: Path) -> dict[Run, Target]:
    """The targets that were remembered in `root`; none where there are none."""
    try:
        return parse_targets(read_json(root / TARGETS_FILE))
    except UsbpoError:
        return {}


def remember_targets(root: Path, targets: Mapping[Run, Target]) -> None:
    """Lay `targets` over those that were remembered in `root`, for `usbpo status`."""
    merged = {**read_targets(root), **targets}
    write_json(root / TARGETS_FILE, {str(run): target._asdict() for run, target in merged.items()})


def read_status(root: Path, targets: Mapping[Run, Target] | None = None) -> list[RunStatus]:
    """Where every run below `root` stands, sorted by task, method and seed.

    Args:
        targets: what was asked for; default: what the last Snakemake at work was asked for. The runs that are named
            here and not begun are listed too.
    """
    runs = {Run(*names) for names in layout.runs_on_disk(root)} | set(targets or ())
    known = read_targets(root) if targets is None else targets
    held = lifetime.held_names(root, (str(run.path(layout.RUN)) for run in runs))
    locked = snakemake_started(root)
    working = stages_at_work(root, locked or 0.0) if held or locked is not None else {}

    def of(run: Run) -> Mapping[Run, tuple[str, int]] | None:
        return working if locked is not None or str(run.path(layout.RUN)) in held else None

    return [read_run(root, run, known.get(run), of(run)) for run in sorted(runs)]


def _has_policy(root: Path, run: Run, cycle: int) -> bool:
    """Whether the policy of `cycle` was made; it may have been let go since."""
    return any((root / run.path(template, cycle)).is_file() for template in (layout.POLICY, layout.POLICY_METRICS))


def read_run(
    root: Path,
    run: Run,
    target: Target | None = None,
    working: Mapping[Run, tuple[str, int]] | None = None,
) -> RunStatus:
    """Where one run stands; `working`, from `stages_at_work`, is None where no Snakemake is at work on it."""
    cycles = _cycles(root, run)
    done = next((cycle for cycle in reversed(cycles) if _has_policy(root, run, cycle)), None)
    evaluation, note = _newest_evaluation(root, run, cycles)
    asked = None if target is None else max(target.cycles, done or 0)

    state: State
    stage, stage_cycle = (working or {}).get(run, (None, None))
    if stage is not None:
        state = "at work"
    elif target and done == asked and (root / run.path(layout.EVALUATION, target.last_evaluation)).is_file():
        state = "finished"
    elif working is not None:
        state = "waiting"
    else:
        stage, stage_cycle, last_line = _interrupted(root, run, done)
        state = "stopped" if stage is not None or asked is not None else "–"
        note = "; ".join(filter(None, [note, last_line and f"the log of {stage} {stage_cycle} ends: {last_line}"]))

    seconds = seconds_per_cycle(root, run, done or 0)
    unfinished = asked is not None and state != "finished"
    return RunStatus(
        run=run,
        state=state,
        cycle=done,
        cycles=asked,
        steps=_steps(done, target, evaluation),
        stage=stage,
        stage_cycle=stage_cycle,
        evaluation=evaluation,
        seconds_left=seconds * (asked - (done or 0)) if unfinished and asked and seconds is not None else None,
        note=note,
    )


def _cycles(root: Path, run: Run) -> list[int]:
    """The cycles that have a folder, in ascending order."""
    try:
        names = os.listdir(root / run.path(layout.RUN))
    except OSError:
        return []
    return sorted(int(name) for name in names if re.fullmatch(r"\d{5}", name))


def _newest_evaluation(root: Path, run: Run, cycles: list[int]) -> tuple[Evaluation | None, str]:
    """The newest evaluation and an empty note, or None and a note if its file is broken."""
    for cycle in reversed(cycles):
        path = root / run.path(layout.EVALUATION, cycle)
        if path.is_file():
            evaluation = read_evaluation(path, cycle)
            return evaluation, "" if evaluation else f"{cycle:05d}/{path.name} cannot be read"
    return None, ""


def read_evaluation(path: Path, cycle: int) -> Evaluation | None:
    """The evaluation of `cycle` in the file `path`; None if it cannot be read or holds no returns."""
    from usbpo.artifacts import evaluations  # here, because a Snakemake that has nothing to do needs no arrays

    try:
        header, episodes = evaluations.read(path)
    except UsbpoError:
        return None
    returns = episodes.returns.tolist()
    return Evaluation(cycle, header.parameters[evaluations.STEPS], fmean(returns), pstdev(returns))


def _steps(done: int | None, target: Target | None, evaluation: Evaluation | None) -> int | None:
    """On-policy steps after cycle `done`; the newest evaluation tells a cycle's length where no target does."""
    if not done:
        return done
    if target:
        return done * target.cycle_steps
    if evaluation and evaluation.cycle:
        return done * evaluation.on_policy_steps // evaluation.cycle
    return None


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
        return float(values[header.index("s")])
    except (OSError, ValueError, IndexError):
        return None


def stages_at_work(root: Path, started: float) -> dict[Run, tuple[str, int]]:
    """The stage and cycle at which each run is, by what was begun after `started`, seconds since 1970.

    Snakemake marks each output that it has begun in .snakemake/incomplete, under a name that is the path in base64.
    A mark that is older than the locks of the Snakemake at work was left by one that was killed. One with `--nolock`
    tells no such time; of its run the newest mark counts, and what was left over is what it makes first.
    """
    found: dict[Run, tuple[bool, float, str, int]] = {}
    incomplete = root / ".snakemake" / "incomplete"
    for folder, _, names in os.walk(incomplete):
        # A path too long for one name is cut into folders, each marked with "@".
        before = [part.removeprefix("@") for part in Path(folder).relative_to(incomplete).parts]
        for name in names:
            try:
                path = urlsafe_b64decode("".join([*before, name])).decode()
                begun = os.stat(os.path.join(folder, name)).st_mtime
            except (OSError, ValueError):
                continue  # the stage has just ended, or this is no mark
            mark = _stage_of(path)
            if mark and begun >= started:
                run, stage, cycle = mark
                newer = stage != "evaluate", begun, stage, cycle  # evaluations run beside the cycles and matter less
                found[run] = max(found.get(run, newer), newer)
    return {run: (stage, cycle) for run, (_, _, stage, cycle) in found.items()}


def snakemake_started(root: Path) -> float | None:
    """When the Snakemake at work in `root` took its locks, seconds since 1970; None where none has taken any."""
    try:
        times = [path.stat().st_mtime for path in (root / ".snakemake" / "locks").glob("*.lock")]
    except OSError:
        return None  # it has just ended
    if not times:
        return None
    try:
        descriptor = os.open(root / ".snakemake" / "usbpo.lock", os.O_RDONLY)
    except OSError:
        return min(times)  # not this project's Snakefile: nothing tells stale locks from others
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody holds the workspace (usbpo.workspace.lifetime): the locks are left over from a crash
    except OSError:
        return min(times)
    finally:
        os.close(descriptor)


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for the paths of a template of `usbpo.artifacts.layout`."""
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", text))


_PATTERNS = [(stage, _pattern(templates[0])) for stage, templates in STAGES.items() if stage != "initialise"]


def _stage_of(path: str) -> tuple[Run, str, int] | None:
    """The run, stage and cycle that make the file `path`, or None."""
    for stage, pattern in _PATTERNS:
        match = pattern.fullmatch(path)
        if match and match["cycle"].isdigit() and match["seed"].isdigit():
            cycle = int(match["cycle"])
            made_by = "initialise" if cycle == 0 and stage in ("policy", "phase2") else stage
            return Run(match["task"], match["method"], int(match["seed"])), made_by, cycle
    return None


def _interrupted(root: Path, run: Run, done: int | None) -> tuple[str, int, str] | tuple[None, None, str]:
    """The stage and cycle that failed or was stopped, and the last line of its log: the newest log without an output.

    What the cycles up to `done` have left may be let go, so of these only evaluations count.
    """
    newest: tuple[float, Path] | None = None
    logs = (root / run.path(layout.LOG)).parent.parent
    for path in logs.glob("*/*.log"):
        stage, cycle = path.stem, path.parent.name
        if stage not in STAGES or not cycle.isdigit():
            continue
        if done is not None and int(cycle) <= done and stage != "evaluate":
            continue
        if any((root / run.path(output, int(cycle))).is_file() for output in STAGES[stage]):
            continue
        try:
            newest = max(newest or (0.0, path), (path.stat().st_mtime, path))
        except OSError:
            continue
    if newest is None:
        return None, None, ""
    last = last_lines(newest[1], 1)
    return newest[1].stem, int(newest[1].parent.name), last[0][:200] if last else ""


def last_lines(path: Path, limit: int | None) -> list[str]:
    """The last `limit` lines of a log that are not empty, or all; nothing if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    kept = [text.rstrip() for text in lines if text.strip()]
    return kept if limit is None else kept[-limit:]


def duration(seconds: float) -> str:
    """A time in one or two units: "40 s", "3 min", "2 h 05 min", "1 d 3 h"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


_STYLES: dict[str, str] = {"at work": "cyan", "finished": "green", "failed": "bold red", "stopped": "yellow"}


COLUMNS = ("task", "method", "seed", "at work", "cycles", "steps", "newest return", "time left")
LEFT_ALIGNED = COLUMNS.index("at work")
"""The last of the columns that begin at the left; the bar of cycles follows it."""


def render(statuses: Iterable[RunStatus], width: int = 100) -> Table:
    """The table of runs, one row each; a bar shows the cycles where `width` columns of the terminal leave room."""
    statuses = list(statuses)
    rows = [_cells(status) for status in statuses]
    needed = sum(max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True))
    gap = 2 if needed + 2 * len(COLUMNS) <= width else 1
    room = width - needed - gap * (len(COLUMNS) + 1)
    bar_width = min(20, room) if room >= 6 and any(status.cycles for status in statuses) else 0

    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for index, name in enumerate(COLUMNS):
        # A long task is folded where the terminal is too narrow for everything; numbers are never cut.
        if name == "task":
            table.add_column(name, overflow="fold", min_width=9)
        else:
            right = index > LEFT_ALIGNED or name == "seed"
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        if bar_width and index == LEFT_ALIGNED:
            table.add_column("", width=bar_width)
    for status, row in zip(statuses, rows, strict=True):
        cells: list[Text | ProgressBar] = [*row]
        cells[LEFT_ALIGNED] = Text(status.at_work, style=_STYLES.get(status.state, ""))
        if bar_width:
            bar = ProgressBar(total=status.cycles, completed=status.cycle or 0, width=bar_width)
            cells.insert(LEFT_ALIGNED + 1, bar if status.cycles else Text())
        table.add_row(*cells)
    table.caption = "\n".join(f"{status.run}: {status.note}" for status in statuses if status.note) or None
    table.caption_justify, table.caption_style = "left", "yellow"
    return table


def _cells(status: RunStatus) -> list[Text]:
    """The cells of a row, in the order of `COLUMNS`."""
    run = status.run
    steps = DASH if status.steps is None else str(status.steps)
    left = DASH if status.seconds_left is None else duration(status.seconds_left)
    first = [run.task, run.method, str(run.seed), status.at_work, _cycles_text(status), steps]
    return [*map(Text, first), _return_text(status), Text(left)]


def _cycles_text(status: RunStatus) -> str:
    """Cycles done of those asked for: "4/10"; without a target only those done."""
    done = DASH if status.cycle is None else str(status.cycle)
    return done if status.cycles is None else f"{done}/{status.cycles}"


def _return_text(status: RunStatus) -> Text:
    """The newest return, with its on-policy steps where the run is further on."""
    evaluation = status.evaluation
    if evaluation is None:
        return Text(DASH)
    text = Text(str(evaluation))
    if evaluation.on_policy_steps != status.steps:
        text.append(f" at {evaluation.on_policy_steps}", style="dim")
    return text


def print_status(root: Path, console: Console | None = None, targets: Mapping[Run, Target] | None = None) -> None:
    """Print the table of every run below `root`, or one sentence where there is none.

    Raises:
        UsbpoError: there is no such folder.
    """
    if console is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a "±" is no reason to fail where the encoding has none
        console = Console(width=None if sys.stdout.isatty() else 120)
    if not root.is_dir():
        raise UsbpoError(f"{root}: there is no such folder; name the one that holds data/.")
    statuses = read_status(root, targets)
    if statuses:
        console.print(render(statuses, console.width))
    else:
        none = f"There are no runs below {root / 'data/runs'} yet; `snakemake --cores all` makes the first ones."
        console.print(none, markup=False, highlight=False, soft_wrap=True)
