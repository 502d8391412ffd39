"""The table of runs, as `usbpo status` and the display show it."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from usbpo.errors import UsbpoError
from usbpo.monitor.duration import duration
from usbpo.monitor.runs import RunStatus
from usbpo.monitor.status import read_status

DASH = "–"

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
    notes = "\n".join(f"{status.run}: {status.note}" for status in statuses if status.note)
    table.caption = Text(notes) if notes else None  # as it is: a log may hold what looks like markup
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
    text = Text(str(evaluation), style="" if evaluation.is_finite else "bold red")
    if evaluation.on_policy_steps != status.steps:
        text.append(f" at {evaluation.on_policy_steps}", style="dim")
    return text


def print_status(root: Path, console: Console) -> None:
    """Print the table of every run below `root`, or one sentence where there is none.

    Raises:
        UsbpoError: there is no such folder.
    """
    if not root.is_dir():
        raise UsbpoError(f"{root}: there is no such folder; name the one that holds data/.")
    statuses = read_status(root)
    if statuses:
        console.print(render(statuses, console.width))
    else:
        none = f"There are no runs below {root / 'data/runs'} yet; `snakemake --cores all` makes the first ones."
        console.print(none, markup=False, highlight=False, soft_wrap=True)
