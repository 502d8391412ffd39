"""The display of a run in progress: on the real Snakemake with a small workflow, and on events by hand."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import pytest

from usbpo.artifacts import layout
from usbpo.monitor.display import LineDisplay
from usbpo.monitor.progress import Progress
from usbpo.monitor.runs import Run, Target
from usbpo.monitor.status import read_status
from usbpo.monitor.targets import read_targets

REPOSITORY = Path(__file__).parents[2]
RUN = Run("InvertedPendulum", "usbpo", 0)

SNAKEFILE = """
import json, os, sys
from pathlib import Path
from snakemake.logging import logger
from usbpo.errors import UsbpoError

RUN = "data/runs/{task}/{method}/seed-{seed}"
CYCLE = RUN + "/{cycle}"
TRAP = os.environ.get("TRAP", "nowhere")  # e.g. usbpo/policy/00002 fails
NAP = os.environ.get("NAP", "0.02")
names = [f"InvertedPendulum/{method}/seed-0" for method in ("usbpo", "mbpo")]
os.environ["USBPO_TARGETS"] = json.dumps({name: {"cycles": 2, "cycle_steps": 250} for name in names})
if TRAP == "Snakefile":
    raise UsbpoError("config/config.yaml: 'seeds' needs at least 1 entry; add one.")

def before(wildcards):
    if TRAP == "input":
        raise UsbpoError("config/tasks/x.yaml: unknown key 'y'; remove it.")
    return CYCLE.format(**{**wildcards, "cycle": f"{int(wildcards.cycle) - 1:05d}"}) + "/policy.safetensors"

WORK = (
    "( sleep {NAP}; if [ {wildcards.method}/{rule}/{wildcards.cycle} = {TRAP} ]; then "
    "echo 'data/x.h5: this file is truncated; delete it and run again.'; exit 1; fi; touch {output} ) > {log} 2>&1"
)

wildcard_constraints:
    cycle=r"\\d{5}",

rule results:
    input: [f"data/runs/{name}/{cycle:05d}/evaluation.h5" for name in names for cycle in range(3)],
    output: "data/results/test/table.csv",
    shell: "touch {output}"

rule initialise:
    output: RUN + "/00000/policy.safetensors",
    log: RUN + "/logs/00000/initialise.log",
    shell: "touch {output} > {log} 2>&1"

rule collect:
    input: before,
    output: RUN + "/data/{cycle}.h5",
    log: RUN + "/logs/{cycle}/collect.log",
    benchmark: RUN + "/benchmarks/{cycle}/collect.tsv"
    priority: 1
    shell: WORK

rule policy:
    input: RUN + "/data/{cycle}.h5", before,
    output: CYCLE + "/policy.safetensors", CYCLE + "/policy.json",
    log: RUN + "/logs/{cycle}/policy.log",
    benchmark: RUN + "/benchmarks/{cycle}/policy.tsv"
    priority: 1
    shell: WORK

rule evaluate:
    input: CYCLE + "/policy.safetensors",
    output: CYCLE + "/evaluation.h5",
    log: RUN + "/logs/{cycle}/evaluate.log",
    benchmark: RUN + "/benchmarks/{cycle}/evaluate.tsv"
    shell: "cp evaluation-{wildcards.cycle}.h5 {output} > {log} 2>&1"

ruleorder: initialise > policy

onsuccess:
    logger.info("Results: data/results/test")
"""


def write_evaluation(path: Path, cycle: int) -> None:
    """An evaluation of cycle 2 has the returns 190 and 210."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["returns"] = [100.0 * cycle - 10, 100.0 * cycle + 10]
        file.attrs["on_policy_steps"] = 250 * cycle


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with the small workflow."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    for cycle in range(3):
        write_evaluation(tmp_path / f"evaluation-{cycle:05d}.h5", cycle)
    return tmp_path


def command(*arguments: str, logger: bool = True) -> list[str]:
    """The command line of a Snakemake."""
    start = [sys.executable, "-m", "snakemake", "--cores", "2", "--scheduler", "greedy", "--keep-going"]
    return [*start, *(["--logger", "usbpo"] if logger else []), *arguments]


def environment(workspace: Path, **variables: str) -> dict[str, str]:
    """The environment of a Snakemake."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("USBPO_", "SNAKEMAKE_"))}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), outer.get("PYTHONPATH")]))
    return outer | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "XDG_CACHE_HOME": str(workspace / "cache"), **variables}


def snakemake(workspace: Path, *arguments: str, logger: bool = True, **variables: str) -> tuple[int, str]:
    """Run Snakemake without a terminal; its exit code and all that it printed."""
    ended = subprocess.run(
        command(*arguments, logger=logger),
        cwd=workspace,
        env=environment(workspace, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout


def in_terminal(workspace: Path, *arguments: str, interrupt_after: str = "", **variables: str) -> str:
    """Run Snakemake in a terminal of 100 columns; all that was written to it.

    Ctrl-C is pressed half a second after `interrupt_after` has appeared.
    """
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"}
    process = subprocess.Popen(
        command(*arguments),
        cwd=workspace,
        env=environment(workspace, **size, **variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    pressed = not interrupt_after
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        written += part
        if not pressed and interrupt_after.encode() in written:
            pressed = True
            threading.Timer(0.5, os.killpg, (process.pid, signal.SIGINT)).start()
    process.wait(timeout=30)
    os.close(ours)
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that remain on a tall terminal of 100 columns after `written`: what a person sees in the end."""
    lines: list[str] = [""]
    row = column = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif not token.startswith("\x1b"):
            lines[row] = (lines[row].ljust(column)[:column] + token) + lines[row][column + len(token) :]
            column += len(token)
        elif token.endswith("A"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token.endswith("K"):
            lines[row] = "" if token == "\x1b[2K" else lines[row][:column]
        else:
            assert token.endswith(("m", "h", "l")), f"the terminal of this test does not know {token!r}"
    return [text.rstrip() for text in lines]


def test_without_a_terminal_each_evaluation_is_a_line_and_nothing_is_lost(workspace: Path) -> None:
    code, text = snakemake(workspace)
    assert code == 0
    told = re.findall(r"^\d\d:\d\d:\d\d InvertedPendulum/(usbpo|mbpo)/seed-0  cycle (\d) of 2  evaluated  ", text, re.M)
    assert {("usbpo", "2"), ("mbpo", "2")} <= set(told)
    assert "  cycle 2 of 2  evaluated  return 200 ± 10 at 500 steps\n" in text
    assert re.search(r"^\d\d:\d\d:\d\d 17 of 17 jobs · \d+ s$", text, re.M)
    assert text.splitlines()[-1] == "Results: data/results/test"
    assert len(text.splitlines()) < 12
    assert "\x1b" not in text
    assert "touch" not in text

    code, text = snakemake(workspace)
    assert code == 0
    assert "Nothing to be done" in text

    assert read_targets(workspace)[RUN] == Target(2, 250)
    assert [found.state for found in read_status(workspace)] == ["finished", "finished"]


def test_a_dry_run_prints_what_it_always_prints(workspace: Path) -> None:
    ours, theirs = (snakemake(workspace, "-n", logger=logger)[1] for logger in (True, False))
    varies = re.compile(r"^(\[.*\]|  (Date|Workflow ID|Command): .*)$", re.M)
    assert sorted(varies.sub("", ours).splitlines()) == sorted(varies.sub("", theirs).splitlines())
    assert re.search(r"^policy +4$", ours, re.M)
    assert re.search(r"^total +17$", ours, re.M)


def test_a_failed_stage_is_told_in_its_own_words_and_the_other_run_goes_on(workspace: Path) -> None:
    code, text = snakemake(workspace, TRAP="usbpo/policy/00002")
    assert code == 1
    assert re.search(
        r"^\d\d:\d\d:\d\d InvertedPendulum/usbpo/seed-0 failed in policy of cycle 2:\n"
        r"    data/x.h5: this file is truncated; delete it and run again.\n"
        r"    log: data/runs/InvertedPendulum/usbpo/seed-0/logs/00002/policy.log\n",
        text,
        re.M,
    )
    assert "sleep" not in text
    assert "CalledProcessError" not in text
    assert "InvertedPendulum/mbpo/seed-0  cycle 2 of 2  evaluated" in text
    assert text.splitlines()[-1].startswith("1 job failed, see above;")
    found = {found.run.method: found for found in read_status(workspace)}
    assert found["usbpo"].at_work == "stopped in policy 2"
    assert found["mbpo"].state == "finished"


@pytest.mark.parametrize(
    ("trap", "sentence"),
    [
        ("Snakefile", "config/config.yaml: 'seeds' needs at least 1 entry; add one."),
        ("input", "config/tasks/x.yaml: unknown key 'y'; remove it."),
    ],
)
def test_bad_input_is_one_sentence(workspace: Path, trap: str, sentence: str) -> None:
    code, text = snakemake(workspace, TRAP=trap)
    assert code == 1
    assert text.removeprefix("Building DAG of jobs...\n") == f"{sentence}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "told"), [(["-n"], "standard output cannot be written (No space left"), ([], "")]
)
def test_what_cannot_be_written_ends_no_run_and_prints_no_traceback(
    workspace: Path, arguments: list[str], told: str
) -> None:
    for streams in ("> /dev/full", "2> /dev/full"):
        words = ["bash", "-c", f'exec "$@" {streams}', "bash", *command(*arguments)]
        ended = subprocess.run(words, cwd=workspace, env=environment(workspace), capture_output=True, text=True)
        assert ended.returncode == 0
        assert "Traceback" not in ended.stdout + ended.stderr
        if streams == "> /dev/full":
            assert told in ended.stderr
    assert arguments or (workspace / "data/results/test/table.csv").exists()


def test_an_ascii_terminal_shows_other_letters(workspace: Path) -> None:
    code, text = snakemake(workspace, PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert code == 0
    assert text.isascii()
    assert "  cycle 2 of 2  evaluated  return 200 ? 10 at 500 steps\n" in text


def test_shell_commands_are_shown_when_asked_for(workspace: Path) -> None:
    run = "data/runs/InvertedPendulum/usbpo/seed-0"
    assert f"touch {run}/00000/policy" in snakemake(workspace, "-p", f"{run}/00000/policy.safetensors")[1]


def test_a_terminal_shows_a_table_that_stays(workspace: Path) -> None:
    written = in_terminal(workspace, NAP="0.3")
    assert re.search(r"(collect|policy) [12]\b", written)
    lines = screen(written)
    assert lines[1] == "17 jobs: 2 initialise, 4 collect, 6 evaluate, 4 policy, 1 results"
    assert " ".join(lines[2].split()) == "task method seed at work cycles steps newest return time left"
    for text, method in zip(lines[3:5], ("mbpo", "usbpo"), strict=True):
        assert re.fullmatch(rf"InvertedPendulum  {method} +0  finished +━+ +2/2 +500 +200 ± 10 +–", text)
    assert re.fullmatch(r"17 of 17 jobs · \d+ s", lines[5])
    assert lines[6:] == ["Results: data/results/test", ""]


def test_ctrl_c_is_no_failure(workspace: Path) -> None:
    text = "\n".join(screen(in_terminal(workspace, interrupt_after="collect 1", NAP="5")))
    assert "Stopped on request" in text
    assert "stopped in collect 1" in text
    assert "failed" not in text
    assert "Error" not in text


def begun(root: Path, cycles: int = 10, others: int = 0) -> Progress:
    """The progress of `RUN` and of other runs of its kind, at time 0."""
    runs = [RUN, *(RUN._replace(seed=seed + 1) for seed in range(others))]
    return Progress(root, {run: Target(cycles, 250) for run in runs}, total=100, now=0.0)


def cycle_of(progress: Progress, cycle: int, start: float, end: float, run: Run = RUN) -> None:
    """The events of a cycle."""
    wildcards = {"task": run.task, "method": run.method, "seed": str(run.seed), "cycle": f"{cycle:05d}"}
    for jobid, rule, began, ended in ((1, "collect", start, start + 1), (2, "policy", start + 1, end)):
        progress.job_started(jobid, rule, wildcards, began)
        progress.job_finished(jobid, ended)


def start(progress: Progress, rule: str, cycle: int, now: float, jobid: int = 3) -> None:
    """The event that a job of `RUN` begins."""
    wildcards = {"task": RUN.task, "method": RUN.method, "seed": "0", "cycle": f"{cycle:05d}"}
    progress.job_started(jobid, rule, wildcards, now)


def test_time_left_is_the_usual_time_of_a_cycle_times_the_cycles_left(tmp_path: Path) -> None:
    progress = begun(tmp_path)
    for cycle, (began, ended) in enumerate([(0, 10), (10, 20), (20, 130), (130, 140)], start=1):
        cycle_of(progress, cycle, began, ended)
    start(progress, "collect", 5, 140)
    (found,) = progress.statuses(144.0)
    assert (found.at_work, found.cycle, found.steps) == ("collect 5", 4, 1000)
    assert found.seconds_left == 6 * 10 - 4
    (found,) = progress.statuses(1000.0)  # a cycle that takes longer than usual does not make time run backwards
    assert found.seconds_left == 5 * 10


def test_time_left_counts_the_runs_that_wait_for_their_turn(tmp_path: Path) -> None:
    progress = begun(tmp_path, cycles=4, others=3)
    for cycle in (1, 2, 3):
        cycle_of(progress, cycle, 10.0 * (cycle - 1), 10.0 * cycle)
    assert [found.seconds_left for found in progress.statuses(30.0)] == [10, 40, 40, 40]
    assert progress.summary(30.0).endswith("about 2 min left")  # 13 cycles of 10 s, one after the other


def test_cycles_finished_earlier_count_and_their_time_is_the_first_guess(tmp_path: Path) -> None:
    for cycle in range(4):
        for template, text in ((layout.POLICY, ""), (layout.BENCHMARK, "s\th:m:s\n7.0\t0:00:07\n")):
            path = tmp_path / str(RUN.path(template, cycle)).replace("{stage}", "policy")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (found,) = begun(tmp_path).statuses(0.0)
    assert (found.state, found.cycle, found.steps, found.seconds_left) == ("waiting", 3, 750, 7 * 7)


def test_a_cycle_that_is_made_again_does_not_count_as_done(tmp_path: Path) -> None:
    for cycle in range(11):
        path = tmp_path / RUN.path(layout.POLICY, cycle)
        path.parent.mkdir(parents=True)
        path.touch()
    progress = begun(tmp_path)
    start(progress, "policy", 3, 0.0)
    (found,) = progress.statuses(0.0)
    assert (found.at_work, found.cycle, found.steps) == ("policy 3", 2, 500)


def test_an_evaluation_beside_the_next_cycle_does_not_hide_it(tmp_path: Path) -> None:
    progress = begun(tmp_path)
    cycle_of(progress, 1, 0.0, 5.0)
    start(progress, "evaluate", 1, 5.0, jobid=3)
    start(progress, "collect", 2, 5.0, jobid=4)
    assert progress.statuses(6.0)[0].at_work == "collect 2"
    progress.job_finished(4, 6.0)
    assert progress.statuses(6.0)[0].at_work == "evaluate 1"
    write_evaluation(tmp_path / RUN.path(layout.EVALUATION, 1), 1)
    told = progress.job_finished(3, 7.0)
    assert told
    assert told.evaluation
    assert told.evaluation.mean == 100
    assert progress.statuses(7.0)[0].state == "waiting"


def test_a_broken_evaluation_is_a_note_and_not_the_end(tmp_path: Path) -> None:
    progress = begun(tmp_path)
    start(progress, "evaluate", 1, 0.0)
    told = progress.job_finished(3, 1.0)
    assert told
    assert told.evaluation is None
    assert "cannot be read" in told.note


def test_a_job_that_is_tried_again_has_not_failed(tmp_path: Path) -> None:
    progress = begun(tmp_path)
    start(progress, "collect", 1, 0.0)
    progress.job_failed(3)
    assert progress.statuses(1.0)[0].at_work == "failed in collect 1"
    assert progress.failed == 1
    start(progress, "collect", 1, 1.0)
    assert progress.statuses(1.0)[0].at_work == "collect 1"
    assert progress.failed == 0


def test_without_a_terminal_long_stages_speak_every_half_minute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress, display = begun(tmp_path), LineDisplay(sys.stdout)
    start(progress, "policy", 1, 0.0)
    for half_second in range(1, 200):
        display.refresh(progress, half_second / 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(" InvertedPendulum/usbpo/seed-0  cycle 1 of 10  policy")


def test_quick_evaluations_share_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress, display = begun(tmp_path), LineDisplay(sys.stdout)
    for cycle in range(1, 11):
        write_evaluation(tmp_path / RUN.path(layout.EVALUATION, cycle), cycle)
        start(progress, "evaluate", cycle, 0.1 * cycle)
        told = progress.job_finished(3, 0.1 * cycle)
        assert told
        display.evaluated(told, 0.1 * cycle)
    display.finish(progress, 1.1)
    lines = capsys.readouterr().out.splitlines()
    seen = [re.findall(r"cycle \d+|jobs", text) for text in lines]
    assert seen == [["cycle 1"], ["cycle 10"], ["jobs"]]


def test_runs_without_targets_are_shown_all_the_same(tmp_path: Path) -> None:
    progress = Progress(tmp_path, {}, total=3, now=0.0)
    cycle_of(progress, 1, 0.0, 5.0)
    (found,) = progress.statuses(5.0)
    assert (found.cycle, found.cycles, found.seconds_left) == (1, None, None)
    assert json.dumps(progress.summary(5.0))
