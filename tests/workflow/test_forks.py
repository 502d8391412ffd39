"""What the tests fork is what a shell would have started (tests/helpers/forks.py)."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from helpers import forks
from helpers.workflow import BIN, CYCLES, USBPO, Ended, at_work_in, command, ended, environment, tree, wait_for

pytestmark = pytest.mark.skipif(not forks.may_serve({}), reason="nothing is forked here")


def from_a_shell(words: list[str], folder: Path) -> Ended:
    done = subprocess.run(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Ended(done.returncode, done.stdout.decode())


def comparable(said: str) -> list[list[str]]:
    """The words of its lines, without times and numbers, sorted: Snakemake lists sets, which have no order."""
    said = re.sub(r"\[.*\d\d:\d\d:\d\d \d{4}\]|^Job \d+|^  (Date|Workflow ID): .*", "…", said, flags=re.MULTILINE)
    return sorted(sorted(re.split(r"[\s,;{}]+", line)) for line in said.splitlines())


def test_a_forked_snakemake_says_and_returns_what_one_from_a_shell_does(tmp_path: Path) -> None:
    words = command(tmp_path, "--dry-run")
    forked, other = ended(words, tmp_path), from_a_shell(words, tmp_path)
    assert forked.code == other.code == 0
    assert comparable(forked.said) == comparable(other.said)


@pytest.mark.parametrize(
    "words",
    [["snakemake", "--nonsense"], ["dvc", "status"], ["dvc", "nonsense"], ["usbpo", "inspect", "none.h5"], ["usbpo"]],
    ids=" ".join,
)
def test_a_forked_command_fails_as_one_from_a_shell_does(words: list[str], tmp_path: Path) -> None:
    words = [str(BIN / words[0]), *words[1:]]
    forked = ended(words, tmp_path)
    other = from_a_shell(words, tmp_path)
    assert forked.code == other.code != 0
    assert comparable(forked.said) == comparable(other.said)


def test_a_forked_command_ends_with_whoever_asked_for_it(tmp_path: Path) -> None:
    words = command(tmp_path, "runs", "--cores", "1")
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run("snakemake", words[1:], tmp_path, environment(), 2)
    wait_for(lambda: not at_work_in(tmp_path), 30, "the end of all that it started")
    made = tree(tmp_path)
    time.sleep(1)
    assert tree(tmp_path) == made, "nobody goes on"
    assert not (tmp_path / f"data/runs/{USBPO}/{CYCLES:05d}/evaluation.h5").exists(), "it was not over"


def test_what_libraries_read_when_they_are_imported_is_never_forked() -> None:
    assert forks.may_serve({"USBPO_WARM": "0", "COLUMNS": "80"})
    assert not any(forks.may_serve({name: "1"}) for name in ("PYTHONPATH", "HOME", "LC_ALL", "MUJOCO_GL"))
