"""What a person sees of the progress: a live table in a terminal, a few plain lines anywhere else."""

import sys
import threading
import time
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from usbpo.monitor.duration import duration
from usbpo.monitor.progress import Progress
from usbpo.monitor.runs import Run, RunStatus
from usbpo.monitor.table import render

LINE_SECONDS = 30.0
"""Without a terminal, runs at work say so this often."""
LINE_GAP_SECONDS = 2.0
"""Without a terminal, evaluations that follow each other faster than this share a line."""


class Display(Protocol):
    """Where messages and the state of the runs are shown."""

    def message(self, text: str, style: str = "") -> None:
        """Show a message of one or more lines."""

    def evaluated(self, run: RunStatus, now: float) -> None:
        """An evaluation of `run` has ended."""

    def refresh(self, progress: Progress, now: float) -> None:
        """Show the present state; called again and again."""

    def finish(self, progress: Progress, now: float) -> None:
        """Show the last state; called once."""


class TableConsole(Console):
    """A terminal that one thread at a time writes to: what another prints in between would tear the table.

    Every use of a console is a `with` block. The lock is the handler's, which our own threads hold before they touch
    the live display, so that locks are always taken in the same order.
    """

    def __init__(self, lock: threading.RLock, stream: TextIO, no_color: bool) -> None:
        super().__init__(file=stream, force_terminal=True, no_color=no_color or None, highlight=False)
        self._turn = lock

    def __enter__(self) -> "TableConsole":
        self._turn.acquire()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self._turn.release()

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor alone: a process that is killed could not bring it back."""
        return False


class TableDisplay:
    """A live table at the bottom of the terminal, messages above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None

    def message(self, text: str, style: str = "") -> None:
        """Print above the table, never cut."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def evaluated(self, run: RunStatus, now: float) -> None:
        """Nothing: the table shows it at the next refresh."""

    def refresh(self, progress: Progress, now: float) -> None:
        """Draw the runs that fit on the screen, those at work first."""
        statuses = progress.statuses(now)
        room = max(3, self.console.height - 6)
        urgency = ("at work", "failed", "waiting", "stopped", "–", "finished")
        chosen = sorted(statuses, key=lambda s: urgency.index(s.state))[:room]
        lines = [Text(progress.summary(now), style="dim")]
        if len(statuses) > room:
            states = [s.state for s in statuses if s not in chosen]
            counts = ", ".join(f"{states.count(state)} {state}" for state in urgency if state in states)
            lines.insert(0, Text(f"… and {len(states)} more runs: {counts}", style="dim"))
        self._draw(Group(render(sorted(chosen, key=lambda s: s.run), self.console.width), *lines))

    def finish(self, progress: Progress, now: float) -> None:
        """Leave the table of all runs on the terminal."""
        summary = Text(progress.summary(now, ended=True), style="dim")
        table = render(progress.ended(), self.console.width)
        self._draw(Group(table, summary) if table.row_count else summary)
        if self._live:
            self._live.stop()

    def _draw(self, renderable: Group | Text) -> None:
        # The live display gets a picture, not a function that makes one: drawing it again, when someone prints, must
        # not need the lock of the handler. What is printed is moved above the table, unless it goes into a file.
        if self._live is None:
            self._live = Live(renderable, console=self.console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            self._live.start(refresh=True)
        else:
            self._live.update(renderable, refresh=True)


class LineDisplay:
    """Plain lines: one for each evaluation, and one now and then for each run at work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0
        self._last: dict[Run, float] = {}
        self._held_back: dict[Run, RunStatus] = {}

    def message(self, text: str, style: str = "") -> None:
        """Write a message; there are no colours here."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def evaluated(self, run: RunStatus, now: float) -> None:
        """One line; if the run had one a moment ago, then a little later, and of its newest evaluation only."""
        held_back = self._held_back.get(run.run)
        if held_back is None or (run.stage_cycle or 0) > (held_back.stage_cycle or 0):
            self._held_back[run.run] = run
        self._tell_evaluations(now)

    def refresh(self, progress: Progress, now: float) -> None:
        """Every `LINE_SECONDS`, one line for each run that is at work and was silent."""
        self._tell_evaluations(now)
        if not self._next:
            self._next = now + LINE_SECONDS
        if now >= self._next:
            self._next = now + LINE_SECONDS
            for run in progress.statuses(now):
                if run.state == "at work" and now - self._last.get(run.run, 0.0) >= LINE_SECONDS / 2:
                    self._line(run, now)

    def finish(self, progress: Progress, now: float) -> None:
        """The newest evaluations that had no line, and the whole in one line."""
        self._tell_evaluations(now + LINE_GAP_SECONDS)
        self.message(f"{time.strftime('%H:%M:%S')} {progress.summary(now, ended=True)}")

    def _tell_evaluations(self, now: float) -> None:
        for run in list(self._held_back.values()):
            if now - self._last.get(run.run, now - LINE_GAP_SECONDS) >= LINE_GAP_SECONDS:
                del self._held_back[run.run]
                self._line(run, now)

    def _line(self, run: RunStatus, now: float) -> None:
        self._last[run.run] = now
        self.message(f"{time.strftime('%H:%M:%S')} {line(run)}")


def line(run: RunStatus) -> str:
    """A run in one line: "Hopper/usbpo/seed-0  cycle 5 of 10  policy  return 212 ± 30 at 1000 steps  3 min left"."""
    parts = [str(run.run)]
    cycle = run.stage_cycle if run.stage_cycle is not None else run.cycle
    if cycle is not None:
        parts.append(f"cycle {cycle}" + (f" of {run.cycles}" if run.cycles is not None else ""))
    if run.stage:
        parts.append(run.stage)
    if run.evaluation:
        parts.append(f"return {run.evaluation} at {run.evaluation.on_policy_steps} steps")
    if run.seconds_left is not None:
        parts.append(f"{duration(run.seconds_left)} left")
    if run.note:
        parts.append(run.note)
    return "  ".join(parts)
