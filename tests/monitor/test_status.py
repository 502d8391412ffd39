"""`usbpo status`: where runs stand, from their files alone, whole or broken."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.workflow import MBPO, command, environment, wait_for
from rich.console import Console

from usbpo.artifacts import evaluations, hdf5, layout
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError
from usbpo.monitor.at_work import stages_at_work
from usbpo.monitor.duration import duration
from usbpo.monitor.runs import Run, Target
from usbpo.monitor.status import read_status
from usbpo.monitor.table import print_status
from usbpo.monitor.targets import TARGETS_FILE, parse_targets, read_targets, remember_targets

RUN = Run("InvertedPendulum", "usbpo", 0)


def put(root: Path, template: str, cycle: int, text: str = "", run: Run = RUN, stage: str = "") -> Path:
    """Write a file of a run."""
    path = root / Path(str(run.path(template, cycle)).replace("{stage}", stage))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def evaluation(root: Path, cycle: int, *returns: float, run: Run = RUN) -> Path:
    """Write an evaluation file."""
    path = put(root, layout.EVALUATION, cycle, run=run)
    header = Header(evaluations.KIND, run.task, run.seed, cycle, {evaluations.STEPS: 250 * cycle}, run.method)
    numbers = np.arange(len(returns))
    evaluations.write(path, header, evaluations.Episodes(np.array(returns), numbers, numbers))
    return path


def cycles(root: Path, number: int, run: Run = RUN, seconds: float = 30.0) -> None:
    """Write what the cycles 0 … `number` leave that the status looks at; a cycle takes two times `seconds`."""
    for cycle in range(number + 1):
        put(root, layout.POLICY, cycle, run=run)
        evaluation(root, cycle, 100.0 * cycle - 10, 100.0 * cycle + 10, run=run)
        for stage in ("collect", "policy"):
            put(root, layout.LOG, cycle, "done\n", run=run, stage=stage)
            put(root, layout.BENCHMARK, cycle, f"s\th:m:s\n{seconds}\t0:00:30\n", run=run, stage=stage)


def shown(root: Path, width: int = 100) -> str:
    """What `usbpo status` prints."""
    console = Console(width=width, record=True, file=StringIO())
    print_status(root, console)
    return console.export_text()


def snakemake_at_work(root: Path, output: Path | str) -> None:
    """Leave what a Snakemake leaves on disk while it makes `output`."""
    for name in ("locks/0.output.lock", f"incomplete/{urlsafe_b64encode(str(output).encode()).decode()}"):
        path = root / ".snakemake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_run_half_way_tells_its_cycles_steps_return_and_time_left(tmp_path: Path) -> None:
    cycles(tmp_path, 4)
    remember_targets(tmp_path, {RUN: Target(10, 250)})
    (found,) = read_status(tmp_path)
    assert (found.cycle, found.cycles, found.steps) == (4, 10, 1000)
    assert found.evaluation
    assert (found.evaluation.mean, found.evaluation.std) == (400, 10)
    assert found.evaluation.on_policy_steps == 1000
    assert found.seconds_left == 6 * 60
    row = shown(tmp_path).splitlines()[1]
    assert row.startswith("InvertedPendulum  usbpo")
    assert "4/10" in row
    assert "400 ± 10" in row
    assert "6 min" in row


def test_a_run_that_nobody_knows_a_target_of_tells_what_is_there(tmp_path: Path) -> None:
    cycles(tmp_path, 4)
    (found,) = read_status(tmp_path)
    assert (found.cycle, found.cycles, found.steps, found.seconds_left) == (4, None, 1000, None)
    assert "━" not in shown(tmp_path)


def test_a_run_with_all_its_cycles_is_finished(tmp_path: Path) -> None:
    cycles(tmp_path, 3)
    (found,) = read_status(tmp_path, {RUN: Target(3, 250)})
    assert found.state == "finished"
    assert found.seconds_left is None


def test_a_run_that_was_asked_for_and_has_not_begun_is_listed(tmp_path: Path) -> None:
    (found,) = read_status(tmp_path, {RUN: Target(3, 250)})
    assert (found.cycle, found.cycles, found.steps, found.evaluation) == (None, 3, None, None)


def test_runs_are_sorted_by_number_and_folders_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    for seed in (10, 2):
        put(tmp_path, layout.POLICY, 0, run=Run("Hopper", "mbpo", seed))
    (tmp_path / "data/runs/Hopper/mbpo/seed-x").mkdir()
    (tmp_path / "data/runs/notes.txt").touch()
    assert [found.run.seed for found in read_status(tmp_path)] == [2, 10]


def test_broken_files_give_a_dash_and_a_note(tmp_path: Path) -> None:
    cycles(tmp_path, 3)
    path = evaluation(tmp_path, 3, 1.0, 2.0)
    path.write_bytes(path.read_bytes()[:700])
    for cycle in range(4):
        put(tmp_path, layout.BENCHMARK, cycle, "s\th:m:s\n", stage="policy")
    (tmp_path / ".snakemake").mkdir()
    (tmp_path / TARGETS_FILE).write_text('{"InvertedPendulum/usbpo/seed-0": {"cyc')
    (found,) = read_status(tmp_path)
    assert found.evaluation is None
    assert found.seconds_left is None
    assert found.cycle == 3
    text = shown(tmp_path)
    assert "–" in text
    assert "InvertedPendulum/usbpo/seed-0: 00003/evaluation.h5 cannot be read" in text


@pytest.mark.parametrize("content", [{}, {"returns": np.zeros(0)}, {"returns": np.arange(3)}])
def test_an_evaluation_without_returns_is_broken(tmp_path: Path, content: dict[str, np.ndarray[Any, Any]]) -> None:
    put(tmp_path, layout.POLICY, 0)
    header = Header(evaluations.KIND, RUN.task, RUN.seed, 0, {evaluations.STEPS: 0})
    hdf5.write(put(tmp_path, layout.EVALUATION, 0), header, content)
    (found,) = read_status(tmp_path)
    assert found.evaluation is None
    assert "cannot be read" in found.note


@pytest.mark.parametrize("returned", [(float("nan"), 1.0), (float("inf"), 1.0), (float("inf"), -float("inf"))])
def test_returns_that_are_not_finite_are_shown_as_such(tmp_path: Path, returned: tuple[float, float]) -> None:
    cycles(tmp_path, 3)
    evaluation(tmp_path, 3, *returned)
    row, *notes = shown(tmp_path).splitlines()[1:]
    assert "not finite" in row
    told = "InvertedPendulum/usbpo/seed-0: 00003/evaluation.h5 has returns that are not finite: the run has diverged"
    assert told in " ".join(" ".join(notes).split())


@pytest.mark.parametrize("seconds", ["nan", "inf", "-", "NA", ""])
def test_a_time_that_is_no_number_is_not_counted(tmp_path: Path, seconds: str) -> None:
    cycles(tmp_path, 3)
    for cycle in range(4):
        put(tmp_path, layout.BENCHMARK, cycle, f"s\th:m:s\n{seconds}\t0:00:30\n", stage="policy")
    (found,) = read_status(tmp_path, {RUN: Target(10, 250)})
    assert found.seconds_left is None
    assert "3" in shown(tmp_path)


def test_what_a_log_says_is_shown_as_it_is_and_steers_no_terminal(tmp_path: Path) -> None:
    cycles(tmp_path, 2)
    put(tmp_path, layout.LOG, 3, "odd: [/usr/bin/x] [red] \x1b[31mred\x07\n", stage="phase1")
    assert "odd: [/usr/bin/x] [red] \ufffd[31mred\ufffd" in " ".join(shown(tmp_path).split())


def test_the_stage_that_snakemake_is_at_is_shown(tmp_path: Path) -> None:
    cycles(tmp_path, 2)
    snakemake_at_work(tmp_path, RUN.path(layout.EVALUATION, 2))
    snakemake_at_work(tmp_path, RUN.path(layout.MODEL, 3))
    (found,) = read_status(tmp_path)
    assert (found.state, found.at_work) == ("at work", "phase2 3")


def test_a_mark_with_a_long_path_is_understood(tmp_path: Path) -> None:
    run = Run("Hopper", "a-method-with-a-very-long-name-" * 7, 0)
    name = urlsafe_b64encode(str(run.path(layout.POLICY, 3)).encode()).decode()
    snakemake_at_work(tmp_path, "x")
    mark = tmp_path / ".snakemake/incomplete" / f"@{name[:254]}" / name[254:]
    mark.parent.mkdir()
    mark.touch()
    assert stages_at_work(tmp_path, 0.0) == {run: ("policy", 3)}


def test_a_mark_from_before_the_snakemake_at_work_is_ignored(tmp_path: Path) -> None:
    cycles(tmp_path, 2)
    snakemake_at_work(tmp_path, RUN.path(layout.POLICY, 3))
    for mark in (tmp_path / ".snakemake/incomplete").iterdir():
        os.utime(mark, (time.time() - 60, time.time() - 60))
    (found,) = read_status(tmp_path)
    assert found.state == "waiting"


def test_locks_left_by_a_killed_snakemake_do_not_count(tmp_path: Path) -> None:
    cycles(tmp_path, 2)
    put(tmp_path, layout.LOG, 3, "cycle 3 …\n", stage="policy")
    snakemake_at_work(tmp_path, RUN.path(layout.POLICY, 3))
    with open(tmp_path / ".snakemake/usbpo.lock", "w") as workspace:  # as usbpo.workspace.lifetime holds it
        fcntl.flock(workspace, fcntl.LOCK_SH)
        assert read_status(tmp_path)[0].at_work == "policy 3"
    assert read_status(tmp_path)[0].at_work == "stopped in policy 3"


def test_runs_that_snakemakes_without_locks_hold_are_told_from_those_that_nobody_is_at(tmp_path: Path) -> None:
    held, waiting, stopped = (Run("Hopper", "mbpo", seed) for seed in range(3))
    for run in (held, waiting, stopped):
        cycles(tmp_path, 2, run=run)
        put(tmp_path, layout.LOG, 3, "cycle 3 …\n", run=run, stage="policy")
    for run in (held, stopped):
        snakemake_at_work(tmp_path, run.path(layout.POLICY, 3))
    (tmp_path / ".snakemake/locks/0.output.lock").unlink()
    holding = "import sys; from pathlib import Path; from usbpo.workspace import lifetime\n"
    holding += "lifetime.hold_names(Path(sys.argv[1]), sys.argv[2:]); print('held', flush=True); input()"
    names = [str(run.path(layout.RUN)) for run in (held, waiting)]
    words = [sys.executable, "-c", holding, str(tmp_path), *names]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for _ in range(2):
            said = [found.at_work for found in read_status(tmp_path)]
            assert said == ["policy 3", "waiting", "stopped in policy 3"]
        process.kill()
    assert {found.at_work for found in read_status(tmp_path)} == {"stopped in policy 3"}


def test_of_a_held_run_the_stage_that_was_begun_last_counts(tmp_path: Path) -> None:
    for age, (template, cycle) in enumerate([(layout.EVALUATION, 2), (layout.MODEL, 3), (layout.POLICY, 2)]):
        path = RUN.path(template, cycle)
        snakemake_at_work(tmp_path, path)
        mark = tmp_path / ".snakemake/incomplete" / urlsafe_b64encode(str(path).encode()).decode()
        os.utime(mark, (time.time() - age, time.time() - age))
    assert stages_at_work(tmp_path, 0.0) == {RUN: ("phase2", 3)}


def test_a_run_of_a_snakemake_without_locks_is_at_work(tmp_path: Path) -> None:
    words = command(tmp_path, "runs", "--nolock", "--cores", "1", "--config", f"only=[{MBPO}]")
    with subprocess.Popen(
        words, env=environment(), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            at_work = "at work"
            wait_for(lambda: at_work in [found.state for found in read_status(tmp_path)], 300, "a stage")
            assert not list((tmp_path / ".snakemake/locks").glob("*.lock"))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    assert [found.state for found in read_status(tmp_path)] == ["stopped"]


def test_a_stopped_run_tells_where_and_how_its_log_ends(tmp_path: Path) -> None:
    cycles(tmp_path, 2)
    put(tmp_path, layout.LOG, 3, "reading\ndata/x.h5: truncated; delete it and run again.\n\n", stage="phase1")
    put(tmp_path, layout.LOG, 2, "let go later, as all outputs of finished cycles may be\n", stage="rollout")
    (found,) = read_status(tmp_path)
    assert found.at_work == "stopped in phase1 3"
    assert "data/x.h5: truncated; delete it and run again." in " ".join(shown(tmp_path).split())


def test_without_runs_there_is_one_friendly_sentence(tmp_path: Path) -> None:
    assert shown(tmp_path).strip().count("\n") == 0
    assert "no runs below" in " ".join(shown(tmp_path).split())


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_keeps_within_the_terminal(tmp_path: Path, width: int) -> None:
    cycles(tmp_path, 4)
    remember_targets(tmp_path, {RUN: Target(10, 250)})
    snakemake_at_work(tmp_path, RUN.path(layout.EVALUATION, 4))
    header, row = shown(tmp_path, width).splitlines()
    assert max(len(header.rstrip()), len(row.rstrip())) <= width
    assert row.split()[0] == "InvertedPendulum"
    assert "400 ± 10" in row
    assert "evaluate 4" in row
    assert ("━" in row) == (width > 80)


def test_targets_are_remembered_by_run_and_what_is_no_target_is_skipped(tmp_path: Path) -> None:
    other = Run("Hopper", "mbpo", 1)
    remember_targets(tmp_path, {RUN: Target(3, 250), other: Target(5, 125)})
    remember_targets(tmp_path, {RUN: Target(10, 250)})
    assert read_targets(tmp_path) == {RUN: Target(10, 250), other: Target(5, 125)}
    assert parse_targets(
        '{"a": 1, "b/c/seed-x": {}, "d/e/seed-1": [1], "f/g/seed-1": {"cycles": 1e999, "cycle_steps": 3},'
        ' "b/c/seed-1": {"cycles": 2, "cycle_steps": 3}}'
    ) == {Run("b", "c", 1): Target(2, 3)}
    assert parse_targets("no JSON") == parse_targets("[]") == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"), (97200, "1 d 3 h")],
)
def test_durations_have_one_or_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsbpoError, match="nowhere: there is no such folder; name the one that holds data/"):
        print_status(tmp_path / "nowhere", Console())
