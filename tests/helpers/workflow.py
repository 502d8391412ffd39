"""Runs the real workflow in temporary folders, and tells what it did or would do."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from helpers import forks
from usbpo.experiment.plan import Plan
from usbpo.experiment.yaml_files import read_yaml

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
EXPERIMENT = REPO / "config/experiments/test.yaml"
FOLDERS = (REPO / "config",)
USBPO, MBPO = "test-pendulum/test-usbpo/seed-0", "test-pendulum/test-mbpo/seed-0"
CYCLES = 3
"""Cycles of the test experiment after cycle 0."""
FIGURES = (
    *("learning_curves", "beside_published", "aggregate", "probability_of_improvement"),
    *("model_shift_and_bias", "holdout_error", "policy_diagnostics", "trigger_history"),
    *("theory_bracket", "theory_bias", "theory_surrogate", "theory_depth", "theory_bound"),
)
RESULT_FILES = (
    *(f"{figure}.{suffix}" for figure in FIGURES for suffix in ("svg", "png", "csv")),
    *("evaluations.csv", "final_returns.csv", "final_returns.md", "final_returns.html"),
    *("comparison.csv", "comparison.md", "comparison.html", "steps_to_return.csv", "metrics.json"),
)
"""What an experiment leaves in its folder of results."""


@dataclass(frozen=True, order=True)
class Job:
    """A job of a dry run; `results` has neither run nor number."""

    rule: str
    run: str = ""
    number: int = -1
    """Cycle, or number of the block"""


@dataclass(frozen=True)
class Ended:
    """What a finished command left."""

    code: int
    said: str
    """Standard output and standard error as the user sees them."""


def environment(**changes: str) -> dict[str, str]:
    """The environment of a user's shell, with the tested installation first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("USBPO_", "PYTEST_"))}
    return kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"} | changes


def command(folder: Path, *arguments: str, project: Path = REPO, experiment: Path | None = EXPERIMENT) -> list[str]:
    """The command line of Snakemake in `folder`; targets come first, because options eat what follows them."""
    words = [str(BIN / "snakemake"), *arguments, "--snakefile", str(project / "Snakefile"), "--directory", str(folder)]
    return [*words, "--configfile", str(experiment)] if experiment else words


def snakemake(
    folder: Path,
    *arguments: str,
    cores: int = 2,
    project: Path = REPO,
    experiment: Path | None = EXPERIMENT,
    **changes: str,
) -> Ended:
    """Run the workflow in `folder` to its end; `changes` are variables of the environment."""
    words = command(folder, *arguments, "--cores", str(cores), project=project, experiment=experiment)
    return ended(words, folder if folder.is_dir() else Path(), **changes)


def ended(words: list[str], folder: Path, **changes: str) -> Ended:
    """Run a command in `folder` to its end: forked where that makes no difference, else as a user's shell does."""
    program = Path(words[0])
    if program.parent == BIN and program.name in forks.PROGRAMS and forks.may_serve(changes):
        return Ended(*forks.run(program.name, words[1:], folder, environment(**changes), 600))
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**changes),
        cwd=folder,
        timeout=600,
    )
    return Ended(done.returncode, done.stdout)


def start(folder: Path) -> "subprocess.Popen[bytes] | forks.Started":
    """Start the test experiment in `folder`, in a process group of its own, and return at once."""
    if forks.may_serve({}):
        return forks.Started("snakemake", command(folder, "--cores", "2")[1:], folder, environment())
    return start_cold(folder)


def start_cold(folder: Path) -> "subprocess.Popen[bytes]":
    """As `start`, as a user's shell does it."""
    return subprocess.Popen(
        command(folder, "--cores", "2"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd=folder,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `condition` holds, and fail the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)


def at_work_in(folder: Path) -> list[psutil.Process]:
    """The living processes whose current folder is `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def dry_run(folder: Path, *arguments: str, **options: object) -> str:
    """What `snakemake --dry-run` prints."""
    done = snakemake(folder, *arguments, "--dry-run", **options)  # type: ignore[arg-type]
    assert done.code == 0, done.said
    return done.said


def planned(folder: Path, *arguments: str, **options: object) -> set[Job]:
    """The jobs that Snakemake would run, apart from the rule `all`."""
    return jobs_in(dry_run(folder, *arguments, **options))


def jobs_in(said: str) -> set[Job]:
    """The jobs that a dry run printed; their number is held against Snakemake's own statistics."""
    jobs = set()
    for line in re.findall(r"^Job \d+: (.*)$", said, flags=re.MULTILINE):
        rule, text = line.split(": ", 1)
        of = re.search(r"(\S+/\S+/seed-\d+)(?:, (?:cycle|block) (\d+))?$", text)
        jobs.add(Job(rule, of.group(1), int(of.group(2) or 0)) if of else Job(rule))
    total = re.search(r"^total +(\d+)$", said, flags=re.MULTILINE)
    if total is None:
        assert "Nothing to be done" in said, said
        assert not jobs
    else:
        with_all = len(re.findall(r"^(?:local)?rule (?:all|runs):", said, flags=re.MULTILINE))
        assert len(jobs) + with_all == int(total.group(1)), said
    return jobs


def jobs(rule: str, cycles: Iterable[int], runs: Iterable[str] = (USBPO, MBPO)) -> set[Job]:
    """The jobs of one rule in some cycles of some runs."""
    cycles = list(cycles)
    return {Job(rule, run, cycle) for run in runs for cycle in cycles}


RESULTS = {Job("results")}


def files(folder: Path) -> dict[str, Path]:
    """Every file below `folder`/data but logs and benchmarks, by its path from `folder`."""
    below = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p for p in below if not {"logs", "benchmarks"} & set(p.parts)}


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`/data but logs and benchmarks."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files(folder).items()}


def expected_files() -> set[str]:
    """Every file that the test experiment shall leave, logs and benchmarks apart."""
    plan = Plan(read_yaml(EXPERIMENT), source=str(EXPERIMENT), folders=FOLDERS)
    return {*plan.artifacts(), *(f"data/results/test/{name}" for name in RESULT_FILES)}


def finished_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the test experiment has run; made once for all modules and test workers, never changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    workspace, done = shared / "finished", shared / "finished.done"
    with open(shared / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(workspace, ignore_errors=True)
            workspace.mkdir()
            ended = snakemake(workspace, USBPO_WARM_VERBOSE="1")
            assert ended.code == 0, ended.said
            done.write_text(ended.said, encoding="utf-8")
    return workspace


def copied(workspace: Path, to: Path) -> Path:
    """A copy of a workspace, with modification times and Snakemake's records."""
    return shutil.copytree(workspace, to, symlinks=True)


def set_key(folder: Path, name: str, key: str, value: object) -> None:
    """Lay a changed copy of the configuration file config/NAME.yaml into a workspace; `key` is dotted."""
    target = folder / "config" / f"{name}.yaml"
    content = read_yaml(target if target.exists() else REPO / "config" / f"{name}.yaml")
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(content), encoding="utf-8")


def copied_project(to: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the workflow and the package, and the environment variables with which the copy is the one used."""
    to.mkdir()
    for name in ("Snakefile", "workflow", "profiles", "config", "usbpo", "snakemake_logger_plugin_usbpo"):
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, to / name)
    return to, {"PYTHONPATH": os.pathsep.join(filter(None, [str(to), os.environ.get("PYTHONPATH", "")]))}


def truncate(path: Path) -> None:
    """Cut a file short, as a full disk or a broken transfer does."""
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
