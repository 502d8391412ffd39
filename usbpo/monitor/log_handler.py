"""Snakemake's logger plugin: events become progress and a display, and messages that matter are shown.

Snakemake finds `LogHandler` through `snakemake_logger_plugin_usbpo` (`snakemake --logger usbpo`, or `logger: [usbpo]`
in a profile). It is then the only one who writes to the stream, so everything else worth seeing passes through it in
Snakemake's own words: warnings, errors, "Nothing to be done". Dry runs and `--verbose` are Snakemake's own output
throughout. Records arrive in the thread of a queue; a second thread keeps the display fresh while nothing happens.
Everything that both touch is guarded by the lock of the handler.
"""

import errno
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOWrapper
from logging import ERROR, WARNING, LogRecord
from pathlib import Path

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from usbpo.errors import UsbpoError
from usbpo.monitor.display import Display, LineDisplay, TableConsole, TableDisplay
from usbpo.monitor.logs import last_lines
from usbpo.monitor.progress import Progress
from usbpo.monitor.snakemake_words import SMALL_TALK, ending_signal, sentence, vanished, without_places
from usbpo.monitor.targets import TARGETS, parse_targets, remember_targets

REFRESH_SECONDS = 0.5
LOG_LINES = 5
"""How much of the log of a failed job is shown."""


UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""What a stream says that takes nothing more: no reader, no space, no terminal."""


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
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a "±" is no reason to fail where the encoding has none
        self._snakemakes_own: ColorizingTextHandler | None = None
        if settings.dryrun or settings.verbose or settings.debug_dag:
            self._snakemakes_own = ColorizingTextHandler(settings.nocolor, stream, self._formatter, self._filter)
            self._snakemakes_own.handleError = _raise_again  # `emit` deals with it
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
        except OSError as error:
            if error.errno in UNWRITABLE:
                self._stop_writing(error)
            else:
                self.handleError(record)
        except Exception:
            self.handleError(record)

    def _stop_writing(self, error: OSError) -> None:
        """Write nothing more to a stream that takes nothing more, nor have Python complain of it at exit.

        Whoever reads standard output may have read enough (`| head`); anything else that is wrong with it is told.
        """
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if self._stream is sys.stdout and error.errno != errno.EPIPE:
            with suppress(OSError):
                reason = f"standard output cannot be written ({error.strerror})"
                print(f"usbpo: {reason}; send it to where there is room.", file=sys.stderr)

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
        targets = parse_targets(os.environ.get(TARGETS, ""))
        if self._shows_progress:
            jobs = ", ".join(f"{count} {rule}" for rule, count in stats.items() if rule not in ("total", "all"))
            self._display.message(f"{_jobs(total - stats.get('all', 0))}: {jobs}")
        try:
            remember_targets(root, targets)
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
        lines = [f"{time.strftime('%H:%M:%S')} {where}{ending_signal(told)}:"]
        if fields["rule_msg"]:
            lines.append(f"    {fields['rule_msg']}")
        limit = None if self.common_settings.show_failed_logs else LOG_LINES
        for log in fields["log"]:
            lines += [f"    {text}" for text in last_lines(Path(log), limit)]
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
            shown = vanished(text) if missing else self._formatter.format(record)
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


def _raise_again(record: LogRecord) -> None:
    """Raise the error that is being handled."""
    raise


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"
