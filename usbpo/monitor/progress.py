"""What the user sees while Snakemake works: a live table in a terminal, a few plain lines anywhere else.

Snakemake finds `LogHandler` through `snakemake_logger_plugin_usbpo` (`snakemake --logger usbpo`, or `logger: [usbpo]`
in a profile). It is then the only one who writes to the stream, so everything else worth seeing passes through it in
Snakemake's own words: warnings, errors, "Nothing to be done". Dry runs and `--verbose` are Snakemake's own output
throughout. Records arrive in the thread of a queue; a second thread keeps the display fresh while nothing happens.
Everything that both touch is guarded by the lock of the handler.
"""

import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from logging import ERROR, WARNING, LogRecord
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from usbpo.artifacts import layout
from usbpo.errors import UsbpoError
from usbpo.monitor import status
from usbpo.monitor.status import Run, RunStatus, Target

TARGETS = "USBPO_TARGETS"
"""The environment variable by which the Snakefile says how many cycles each run is to have (`status.parse_targets`)."""

REFRESH_SECONDS = 0.5
LINE_SECONDS = 30.0
"""Without a terminal, runs at work say so this often."""
LINE_GAP_SECONDS = 2.0
"""Without a terminal, evaluations that follow each other faster than this share a line."""
LOG_LINES = 5
"""How much of the log of a failed job is shown."""

SMALL_TALK = (
    "Assuming unrestricted shared filesystem usage",
    "Complete log(s):",
    "Conda environments: ignored",
    "Elapsed time:",
    "Exiting because a job execution failed",
    "Processed ",
    "Removing temporary output",
    "Select jobs to execute",
    "Shutting down, this might take some time",
    "Singularity containers: ignored",
    "Touching output file",
    "Using shell:",
    "Write-protecting output file",
)
"""Beginnings of messages that tell a user nothing: the display says it, or it does not matter."""


@dataclass
class Job:
    """A job at work; `run` is None for what belongs to no single run, `cycle` for what belongs to no single cycle."""

    rule: str
    run: Run | None
    cycle: int | None
    started: float

    def __str__(self) -> str:
        return self.rule if self.cycle is None else f"{self.rule} of cycle {self.cycle}"


@dataclass
class _Track:
    """What this invocation has seen of a run."""

    status: RunStatus
    jobs: dict[int, Job] = field(default_factory=dict)
    failed: dict[int, Job] = field(default_factory=dict)
    seen: bool = False
    cycle_began: float | None = None
    cycle_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=status.RECENT_CYCLES))
    measured_before: float | None = None
    """Seconds a cycle took in earlier invocations."""


class Progress:
    """Where every run stands, kept up to date by Snakemake's events. Times are seconds of a monotonic clock."""

    def __init__(self, root: Path, targets: Mapping[Run, Target], total: int, now: float) -> None:
        self.root, self.targets, self.total = root, targets, total
        self.done = 0
        self.interrupted = False
        """Whether the user stopped it: then jobs that fail were stopped."""
        self._failed: set[int] = set()
        self._began = now
        self._first_cycle_began: float | None = None
        self._cycles_done = 0
        self._jobs: dict[int, Job] = {}
        self._tracks: dict[Run, _Track] = {}
        for run in targets:
            self._track(run)

    def _track(self, run: Run) -> _Track:
        """What is known of `run`, at first from disk: what was finished earlier counts as done."""
        if run not in self._tracks:
            found = status.read_run(self.root, run, self.targets.get(run), {})
            seconds = status.seconds_per_cycle(self.root, run, found.cycle or 0)
            self._tracks[run] = _Track(found, measured_before=seconds)
        return self._tracks[run]

    def job_started(self, jobid: int, rule: str, wildcards: Mapping[str, Any], now: float) -> Job:
        """Note that a job has begun."""
        run: Run | None = None
        cycle: int | None = None
        try:
            run = Run(wildcards["task"], wildcards["method"], int(wildcards["seed"]))
            cycle = None if "block" in wildcards else int(wildcards.get("cycle", 0))
        except (KeyError, ValueError):
            pass  # a job for all runs, as results
        job = self._jobs[jobid] = Job(rule, run, cycle, now)
        self._failed.discard(jobid)  # it is tried again
        if run:
            track = self._track(run)
            track.jobs[jobid] = job
            track.failed.pop(jobid, None)
            track.seen = True
            if rule in status.STAGES and rule != "evaluate" and cycle is not None:
                self._stage_started(track, rule, cycle, now)
        return job

    def _stage_started(self, track: _Track, rule: str, cycle: int, now: float) -> None:
        """A stage that makes cycle `cycle` has begun: whatever lay on disk, only the cycles before it are done."""
        done = track.status.cycle
        if done is not None and done >= cycle:
            track.status = replace(track.status, cycle=cycle - 1 if cycle else None)
            self._count_steps(track)
        if track.cycle_began is None and rule in ("collect", "triggered") and cycle:
            track.cycle_began = now
            if self._first_cycle_began is None:
                self._first_cycle_began = now  # what came before, as random steps, says nothing of the pace

    def job_finished(self, jobid: int, now: float) -> RunStatus | None:
        """Note that a job has ended well; returns the status of the run if there is a new evaluation."""
        job = self._jobs.pop(jobid, None)
        if job is None or job.run is None:
            return None
        track = self._track(job.run)
        track.jobs.pop(jobid, None)
        if job.rule in ("policy", "triggered", "initialise") and job.cycle is not None:
            track.status = replace(track.status, cycle=job.cycle)
            self._count_steps(track)
            if track.cycle_began is not None:
                track.cycle_seconds.append(now - track.cycle_began)
                self._cycles_done += 1
            track.cycle_began = now if job.cycle else None
        if job.rule != "evaluate" or job.cycle is None:
            return None
        path = self.root / job.run.path(layout.EVALUATION, job.cycle)
        evaluation = status.read_evaluation(path, job.cycle)
        newest = track.status.evaluation
        if newest is None or job.cycle >= newest.cycle:
            note = "" if evaluation else f"{job.cycle:05d}/{path.name} cannot be read"
            track.status = replace(track.status, evaluation=evaluation, note=note)
        # What is told of an evaluation names its own cycle, though the run may be further on.
        return replace(self._now(track, now), stage="evaluated", stage_cycle=job.cycle, evaluation=evaluation)

    @property
    def failed(self) -> int:
        """The number of jobs that have failed."""
        return len(self._failed)

    def job_failed(self, jobid: int) -> Job | None:
        """Note that a job has failed."""
        job = self._jobs.pop(jobid, None)
        self._failed.add(jobid)
        if job and job.run:
            track = self._track(job.run)
            track.jobs.pop(jobid, None)
            track.failed[jobid] = job
        return job

    def _count_steps(self, track: _Track) -> None:
        cycle, target = track.status.cycle, self.targets.get(track.status.run)
        steps = 0 if cycle == 0 else cycle * target.cycle_steps if cycle and target else None
        track.status = replace(track.status, steps=steps)

    def statuses(self, now: float) -> list[RunStatus]:
        """Every run that was asked for or has a job, sorted."""
        return [self._now(self._tracks[run], now) for run in sorted(self._tracks)]

    def _now(self, track: _Track, now: float) -> RunStatus:
        # An evaluation runs beside the cycles, so it is named only where nothing else of the run is at work.
        job = min(track.jobs.values(), key=lambda job: (job.rule == "evaluate", -job.started), default=None)
        if job:
            return replace(
                track.status,
                state="at work",
                stage=job.rule,
                stage_cycle=job.cycle,
                seconds_left=self._seconds_left(track, now),
            )
        if track.failed:
            return self._failed_in(track, track.status)
        cycles, evaluation, target = track.status.cycles, track.status.evaluation, self.targets.get(track.status.run)
        evaluated = evaluation and target and evaluation.cycle >= target.last_evaluation
        if cycles is not None and cycles == track.status.cycle and evaluated:
            return replace(track.status, state="finished", seconds_left=None)
        return replace(track.status, state="waiting", seconds_left=self._seconds_left(track, now))

    def _failed_in(self, track: _Track, found: RunStatus) -> RunStatus:
        job = next(iter(track.failed.values()))
        return replace(found, state="failed", stage=job.rule, stage_cycle=job.cycle, seconds_left=None)

    def _seconds_left(self, track: _Track, now: float) -> float | None:
        """Cycles left times the median duration of the last ones, of this run or else of its like."""
        if track.status.cycles is None or track.failed:
            return None
        seconds = self._cycle_seconds(track)
        left = track.status.cycles - (track.status.cycle or 0)
        if seconds is None or left <= 0:
            return None
        begun = min(seconds, now - track.cycle_began) if track.cycle_began is not None else 0.0
        return seconds * left - begun

    def _cycle_seconds(self, track: _Track) -> float | None:
        if track.cycle_seconds:
            return median(track.cycle_seconds)
        if track.measured_before is not None:
            return track.measured_before
        run = track.status.run
        for names in (2, 1):  # runs of the same task and method, then of the same task
            like = [track for other, track in self._tracks.items() if other[:names] == run[:names]]
            seconds = [median(track.cycle_seconds) for track in like if track.cycle_seconds]
            if seconds:
                return median(seconds)
        return None

    def summary(self, now: float, ended: bool = False) -> str:
        """One line for the whole: jobs done, time so far, time left."""
        parts = [f"{self.done} of {self.total} jobs", f"{status.duration(now - self._began)}"]
        if self.failed and not self.interrupted:
            parts.append(f"{self.failed} failed")
        if not ended:
            others = sorted({str(job) for job in self._jobs.values() if job.run is None and job.rule != "all"})
            if others:
                parts.append(f"at work: {', '.join(others)}")
            left = self._all_seconds_left(now)
            if left is not None:
                parts.append(f"about {status.duration(left)} left")
        return " · ".join(parts)

    def _all_seconds_left(self, now: float) -> float | None:
        """The longest run's time, or that of all cycles left at the present pace where runs wait for each other."""
        statuses = self.statuses(now)
        longest = max((s.seconds_left for s in statuses if s.seconds_left is not None), default=None)
        if longest is None or self._first_cycle_began is None or self._cycles_done < 3:
            return longest
        left = sum(s.cycles - (s.cycle or 0) for s in statuses if s.cycles is not None and s.seconds_left is not None)
        return max(longest, left * (now - self._first_cycle_began) / self._cycles_done)

    def ended(self) -> list[RunStatus]:
        """Where the runs that had a job, or are finished, stand on disk at the end."""
        result = []
        for run in sorted(self._tracks):
            track = self._tracks[run]
            found = replace(status.read_run(self.root, run, self.targets.get(run)), note=track.status.note)
            if track.failed and not self.interrupted:
                found = self._failed_in(track, found)
            elif found.state == "stopped" and self.done == self.total:
                found = replace(found, state="–")  # more cycles belong to the experiment than were wanted now
            if track.seen or found.state == "finished":
                result.append(replace(found, seconds_left=None))
        return result


class Display(Protocol):
    """Where messages and the state of the runs are shown."""

    def message(self, text: str, style: str = "") -> None:
        """Show a message of one or more lines."""

    def evaluated(self, run: RunStatus, now: float) -> None:
        """An evaluation of `run` has ended."""

    def refresh(self, progress: Progress, now: float) -> None:
        """Show the present state; called every `REFRESH_SECONDS`."""

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
        self._draw(Group(status.render(sorted(chosen, key=lambda s: s.run), self.console.width), *lines))

    def finish(self, progress: Progress, now: float) -> None:
        """Leave the table of all runs on the terminal."""
        summary = Text(progress.summary(now, ended=True), style="dim")
        table = status.render(progress.ended(), self.console.width)
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
        parts.append(f"{status.duration(run.seconds_left)} left")
    if run.note:
        parts.append(run.note)
    return "  ".join(parts)


class LogHandler(LogHandlerBase):
    """Snakemake's events turned into a display."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        settings = self.common_settings
        quiet = set(settings.quiet or ())
        self._stream = stream = sys.stdout if settings.stdout else sys.stderr
        self._filter = DefaultFilter(
            quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds
        )
        self._formatter = DefaultFormatter(quiet, settings.show_failed_logs)
        self._snakemakes_own: ColorizingTextHandler | None = None
        if settings.dryrun or settings.verbose or settings.debug_dag:
            self._snakemakes_own = ColorizingTextHandler(settings.nocolor, stream, self._formatter, self._filter)
        self._silent = Quietness.ALL in quiet
        self._shows_progress = Quietness.PROGRESS not in quiet
        terminal = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
        assert self.lock is not None
        self._display: Display = (
            TableDisplay(TableConsole(self.lock, stream, settings.nocolor)) if terminal else LineDisplay(stream)
        )

        self._progress: Progress | None = None
        self._displaying = False
        self._stopping = self._interrupted = False
        self._told = ""
        self._exits: deque[str] = deque(maxlen=100)
        self._failures: list[tuple[float, str]] = []
        self._over = threading.Event()

    def emit(self, record: LogRecord) -> None:
        """Show a record; what goes wrong here must never end the thread that all records come through."""
        try:
            bad_input = sentence(str(record.msg))
            if bad_input and bad_input == self._told:
                return  # Snakemake warns of it first, and then fails because of it
            if bad_input:
                self._told = record.msg = bad_input
            if self._snakemakes_own is not None:
                self._snakemakes_own.handle(record)
            elif not self._silent:
                self._show(record, time.monotonic())
        except BrokenPipeError:
            # Whoever read this has read enough (`| head`): nothing more is written there, nor complained of at exit.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Show what is still to be shown. Snakemake calls this after the last record, and Python once more at exit."""
        self.acquire()
        try:
            if not self._over.is_set():
                self._over.set()
                self._end(time.monotonic())
        except OSError:
            pass  # the terminal is gone
        finally:
            self.release()
        super().close()

    def _show(self, record: LogRecord, now: float) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self._begin(record.__dict__["stats"], now)
        elif event == LogEvent.JOB_INFO:
            if self._progress:
                fields = record.__dict__
                self._progress.job_started(fields["jobid"], fields["rule_name"], fields["wildcards"], now)
        elif event == LogEvent.SHELLCMD:
            command = getattr(record, "cmd", None) or getattr(record, "shellcmd", None)
            if command and self._filter.filter(record):
                self._display.message(command)
        elif event == LogEvent.JOB_FINISHED:
            self._job_finished(record.__dict__["job_id"], now)
        elif event == LogEvent.PROGRESS:
            self._count(record.__dict__["done"], record.__dict__["total"], now)
        elif event == LogEvent.JOB_ERROR:
            self._job_failed(record, now)
        elif event in (None, LogEvent.ERROR, LogEvent.GROUP_ERROR):
            self._message(record, now)

    def _begin(self, stats: Mapping[str, int], now: float) -> None:
        """Jobs are about to run: read how things stand, and start the display."""
        if self._progress:
            return
        root, total = Path.cwd(), stats["total"]
        targets = status.parse_targets(os.environ.get(TARGETS, ""))
        if self._shows_progress:
            jobs = ", ".join(f"{count} {rule}" for rule, count in stats.items() if rule not in ("total", "all"))
            self._display.message(f"{_jobs(total - stats.get('all', 0))}: {jobs}")
        try:
            status.remember_targets(root, targets)
        except UsbpoError:
            pass  # only `usbpo status` would have had use for them
        self._progress = Progress(root, targets, total, now)
        if self._shows_progress:
            self._displaying = True
            threading.Thread(target=self._keep_fresh, name="usbpo-progress", daemon=True).start()

    def _keep_fresh(self) -> None:
        """Refresh the display until it ends."""
        while not self._over.wait(REFRESH_SECONDS):
            self.acquire()
            try:
                if not self._displaying or not self._progress:
                    return
                now = time.monotonic()
                self._tell_failures(now - REFRESH_SECONDS)
                self._display.refresh(self._progress, now)
            except OSError:
                return  # the terminal is gone
            finally:
                self.release()

    def _job_finished(self, jobid: int, now: float) -> None:
        if self._progress:
            evaluated = self._progress.job_finished(jobid, now)
            if evaluated and self._displaying:
                self._display.evaluated(evaluated, now)

    def _count(self, done: int, total: int, now: float) -> None:
        if self._progress:
            self._progress.done, self._progress.total = done, total
            if done == total:
                self._end(now)

    def _job_failed(self, record: LogRecord, now: float) -> None:
        """Say which job failed and why, in a moment: on Ctrl-C jobs may die before Snakemake says that it stops."""
        fields = record.__dict__
        job = self._progress.job_failed(fields["jobid"]) if self._progress else None
        where = f"{job.run} failed in {job}" if job and job.run else f"failed in {fields['rule_name']}"
        command = str(fields["shellcmd"] or "").strip()
        told = next((text for text in self._exits if command and command in text), "")
        lines = [f"{time.strftime('%H:%M:%S')} {where}{_signal(told)}:"]
        if fields["rule_msg"]:
            lines.append(f"    {fields['rule_msg']}")
        limit = None if self.common_settings.show_failed_logs else LOG_LINES
        for log in fields["log"]:
            lines += [f"    {text}" for text in status.last_lines(Path(log), limit)]
            lines.append(f"    log: {log}")
        if not fields["log"] and command:
            lines.append(f"    command: {command}")
        self._failures.append((now, "\n".join(lines)))
        if not self._displaying:
            self._tell_failures(now)

    def _tell_failures(self, until: float) -> None:
        """Show the failures up to a time, unless the user has stopped the jobs that failed."""
        while self._failures and self._failures[0][0] <= until:
            text = self._failures.pop(0)[1]
            if not self._interrupted:
                self._display.message(text, "red")

    def _message(self, record: LogRecord, now: float) -> None:
        """Show what Snakemake says outside the course of jobs."""
        text = str(record.msg or "")
        exception = getattr(record, "exception", None)
        if text.startswith("Terminating processes on user request"):
            self._interrupted = True
            if self._progress:
                self._progress.interrupted = True
            self._display.message("Stopping the stages at work …")
        elif text.startswith("Will exit after finishing currently running jobs"):
            if not self._stopping:  # Snakemake says it again with every job that ends
                self._display.message("Stopping once the stages at work have ended …")
            self._stopping = True
        elif text.startswith("RuleException:\nCalledProcessError"):
            self._exits.append(text)  # a JOB_ERROR follows, which says the same in fewer words
        elif exception == "WorkflowError" and text.endswith("At least one job did not complete successfully."):
            self._end(now)
            self._display.message(self._farewell())
        elif text in ("", "None") or text.startswith(SMALL_TALK) or not self._filter.filter(record):
            return
        else:
            missing = re.search(r"Job (\d+)\s+completed successfully, but some output files are missing", text)
            if missing and self._progress:
                self._progress.job_failed(int(missing[1]))  # no JOB_ERROR follows
            style = "red" if record.levelno >= ERROR else "yellow" if record.levelno >= WARNING else ""
            shown = self._formatter.format(record)
            self._display.message(without_places(shown) if exception == "WorkflowError" else shown, style)

    def _farewell(self) -> str:
        again = "the same command goes on where this one ended"
        failed = self._progress.failed if self._progress else 0
        if self._interrupted or (self._stopping and not failed):
            return f"Stopped on request; {again}."
        return f"{_jobs(failed)} failed, see above; once the cause is mended, {again}."

    def _end(self, now: float) -> None:
        """Show outstanding failures and, once, the last state of the runs."""
        self._tell_failures(now)
        if self._displaying and self._progress:
            self._displaying = False
            self._display.finish(self._progress, now)


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _signal(told: str) -> str:
    """The signal by which a shell command ended, out of Snakemake's message, as " (SIGKILL)"; "" if it just failed.

    A log is silent about it, and SIGKILL is what a job gets that takes too much memory.
    """
    found = re.search(r"' (?:died with <Signals\.(\w+): \d+>|returned non-zero exit status (\d+))\.?\s*$", told)
    if found and found[1]:
        return f" ({found[1]})"
    number = int(found[2]) - 128 if found else 0  # a shell reports the signal that ended its command so
    return f" ({signal.Signals(number).name})" if number in signal.valid_signals() and number > 0 else ""


def without_places(text: str) -> str:
    """A message of an error that the Snakefile raised, without the places in the code that it came through."""
    return "\n".join(part for part in text.splitlines() if not re.match(r'  File ".*", line \d+, in .*$', part))


def sentence(text: str) -> str:
    """The sentence of a UsbpoError that the Snakefile raised, itself or in an input function; "" if there is none."""
    if not text.startswith(("UsbpoError", "InputFunctionException")):
        return ""
    found = re.search(r"^UsbpoError\b.*:\n(.*)$|^  UsbpoError: (.*)$", text, re.MULTILINE)
    return str(found[1] or found[2]) if found else ""
