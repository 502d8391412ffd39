"""Where every run stands, read from its files alone.

Nothing here needs the configuration: the files of a run say what was done, and how many cycles were asked for stands
in `targets.TARGETS_FILE`, which the last Snakemake at work left there.
"""

import os
import re
from collections.abc import Mapping
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, pstdev

from usbpo.artifacts import layout
from usbpo.monitor.at_work import stages_at_work
from usbpo.monitor.logs import interrupted
from usbpo.monitor.measured import seconds_per_cycle
from usbpo.monitor.runs import Evaluation, Run, RunStatus, State, Target
from usbpo.monitor.targets import read_targets
from usbpo.workspace import lifetime


def read_status(root: Path, targets: Mapping[Run, Target] | None = None) -> list[RunStatus]:
    """Where every run below `root` stands, sorted by task, method and seed.

    Args:
        targets: what was asked for; default: what the last Snakemake at work was asked for. The runs that are named
            here and not begun are listed too.
    """
    runs = {Run(*names) for names in layout.runs_on_disk(root)} | set(targets or ())
    known = read_targets(root) if targets is None else targets
    held = lifetime.held_names(root, (str(run.path(layout.RUN)) for run in runs))
    locked = lifetime.snakemake_started(root)
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
        stage, stage_cycle, last_line = interrupted(root, run, done)
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
            return evaluation, note_on(path, evaluation)
    return None, ""


def note_on(path: Path, evaluation: Evaluation | None) -> str:
    """What is wrong with an evaluation, read from `path`; nothing as a rule."""
    name = "/".join(path.parts[-2:])
    if evaluation is None:
        return f"{name} cannot be read"
    return "" if evaluation.is_finite else f"{name} has returns that are not finite: the run has diverged"


def read_evaluation(path: Path, cycle: int) -> Evaluation | None:
    """The evaluation of `cycle` in the file `path`; None if it cannot be read or holds no returns."""
    import h5py  # here, because a Snakemake that has nothing to do needs no HDF5, and importing it takes its time

    try:
        with h5py.File(path, "r", locking=False) as file:
            returns = [float(value) for value in file["returns"][:]]
            steps = int(file.attrs["on_policy_steps"])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError):
        return None
    if not returns:
        return None
    if not all(map(isfinite, returns)):
        return Evaluation(cycle, steps, nan, nan)
    return Evaluation(cycle, steps, fmean(returns), pstdev(returns))


def _steps(done: int | None, target: Target | None, evaluation: Evaluation | None) -> int | None:
    """On-policy steps after cycle `done`; the newest evaluation tells a cycle's length where no target does."""
    if not done:
        return done
    if target:
        return done * target.cycle_steps
    if evaluation and evaluation.cycle:
        return done * evaluation.on_policy_steps // evaluation.cycle
    return None
