"""Where every run stands while a Snakemake is at work, by its events."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from usbpo.artifacts import layout
from usbpo.monitor.duration import duration
from usbpo.monitor.measured import RECENT_CYCLES, seconds_per_cycle
from usbpo.monitor.runs import STAGES, Run, RunStatus, Target
from usbpo.monitor.status import note_on, read_evaluation, read_run


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
    cycle_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_CYCLES))
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
            found = read_run(self.root, run, self.targets.get(run), {})
            seconds = seconds_per_cycle(self.root, run, found.cycle or 0)
            self._tracks[run] = _Track(found, measured_before=seconds)
        return self._tracks[run]

    def job_started(self, jobid: int, rule: str, wildcards: Mapping[str, Any], now: float) -> None:
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
            if rule in STAGES and rule != "evaluate" and cycle is not None:
                self._stage_started(track, rule, cycle, now)

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
        evaluation = read_evaluation(path, job.cycle)
        newest = track.status.evaluation
        if newest is None or job.cycle >= newest.cycle:
            track.status = replace(track.status, evaluation=evaluation, note=note_on(path, evaluation))
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
        parts = [f"{self.done} of {self.total} jobs", f"{duration(now - self._began)}"]
        if self.failed and not self.interrupted:
            parts.append(f"{self.failed} failed")
        if not ended:
            others = sorted({str(job) for job in self._jobs.values() if job.run is None and job.rule != "all"})
            if others:
                parts.append(f"at work: {', '.join(others)}")
            left = self._all_seconds_left(now)
            if left is not None:
                parts.append(f"about {duration(left)} left")
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
            found = replace(read_run(self.root, run, self.targets.get(run)), note=track.status.note)
            if track.failed and not self.interrupted:
                found = self._failed_in(track, found)
            elif found.state == "stopped" and self.done == self.total:
                found = replace(found, state="–")  # more cycles belong to the experiment than were wanted now
            if track.seen or found.state == "finished":
                result.append(replace(found, seconds_left=None))
        return result
