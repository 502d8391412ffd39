"""What a user reads where Snakemake's own words would mislead: a lock, a file that has gone, a full disk."""

import os
import shutil
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.workflow import (
    MBPO,
    RESULTS,
    USBPO,
    Job,
    command,
    copied,
    environment,
    finished_workspace,
    jobs_in,
    snakemake,
    tree,
    wait_for,
)

from usbpo.monitor.snakemake_words import sentence, vanished

pytestmark = pytest.mark.xdist_group("own words")
EVALUATION = f"data/runs/{USBPO}/00003/evaluation.h5"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the test experiment has run; not to be changed."""
    return finished_workspace(tmp_path_factory)


def started(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Snakemake with what it says on one stream."""
    return subprocess.Popen(
        [*command(folder, *arguments, "--cores", "1")],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_of_two_that_are_started_at_the_same_instant_one_waits_for_nothing_and_says_why(
    finished: Path, tmp_path: Path
) -> None:
    workspace = copied(finished, tmp_path / "workspace")
    for run in (USBPO, MBPO):
        for cycle in range(4):
            (workspace / f"data/runs/{run}/{cycle:05d}/evaluation.h5").unlink()
    both = [started(workspace) for _ in range(2)]
    said = {process.communicate(timeout=600)[0]: process.returncode for process in both}
    refused = [text for text, code in said.items() if code]
    assert sorted(said.values()) == [0, 1], said
    told = f"usbpo: {workspace}: it cannot be locked: another Snakemake is at work; wait for it, or stop it."
    assert refused[0].splitlines()[-1] == told
    assert "unlock" not in refused[0]
    assert tree(workspace) == tree(finished)


def test_an_artifact_that_vanishes_as_it_appears_is_told_and_made_by_the_next_command(
    finished: Path, tmp_path: Path
) -> None:
    workspace = copied(finished, tmp_path / "workspace")
    (workspace / EVALUATION).unlink()
    process = started(workspace, "--latency-wait", "1")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        (workspace / EVALUATION).unlink(missing_ok=True)
        time.sleep(0.002)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert f"usbpo: {EVALUATION}: gone when the job had ended that made it; find out what deletes files there" in said
    assert "completed successfully, but some output files are missing" not in said
    assert said.splitlines()[-1] == (
        "1 job failed, see above; once the cause is mended, the same command goes on where this one ended."
    )
    assert snakemake(workspace).code == 0
    assert tree(workspace) == tree(finished)


# ---- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root mounts a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, but: int) -> Path:
    """Leave `but` bytes free."""
    about = os.statvfs(disk)
    filling = disk / "filling"
    filling.write_bytes(bytes(max(about.f_bavail * about.f_frsize - but, 0)))
    return filling


@pytest.mark.parametrize("free", [0, 40_000])
def test_on_a_full_disk_nothing_begins_and_one_sentence_says_why(small_disk: Path, free: int) -> None:
    filling = fill(small_disk, free)
    done = snakemake(small_disk)
    assert done.code == 1
    told = f"usbpo: {small_disk}: the disk is full; free space, and type the command again."
    assert done.said.splitlines()[-1] == told
    assert "Traceback" not in done.said
    filling.unlink()
    assert len(jobs_in(snakemake(small_disk, "--dry-run").said)) > 40


def test_a_disk_that_fills_up_is_told_without_a_traceback_of_snakemake_and_the_same_command_goes_on(
    finished: Path, small_disk: Path, tmp_path: Path
) -> None:
    """Snakemake's records lie on the full disk, so that the first of its own words is about that."""
    workspace = copied(finished, tmp_path / "workspace")
    shutil.move(workspace / ".snakemake", small_disk / "state")
    (workspace / ".snakemake").symlink_to(small_disk / "state")
    for run in (USBPO, MBPO):
        evaluation = f"data/runs/{run}/00003/evaluation.h5"
        (workspace / evaluation).unlink()
        (small_disk / "state/metadata" / urlsafe_b64encode(evaluation.encode()).decode()).unlink()
    process = started(workspace)
    wait_for(lambda: any((workspace / ".snakemake/incomplete").iterdir()), 300, "the first job")
    fill(small_disk, 0)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "the disk is full; free space, and the same command goes on where this one ended." in said
    assert 'File "' not in said
    assert "--- Logging error ---" not in said
    (small_disk / "filling").unlink()
    assert jobs_in(snakemake(workspace, "--dry-run").said) <= {
        *(Job("evaluate", run, 3) for run in (USBPO, MBPO)),
        *RESULTS,
    }
    assert snakemake(workspace).code == 0
    assert tree(workspace) == tree(finished)


@pytest.mark.parametrize("number", [28, 122])
@pytest.mark.parametrize(
    "text",
    [
        "WorkflowError:\nError recording metadata for finished job ([Errno {number}] It is so). Please ensure …",
        'Traceback (most recent call last):\n\n  File "cli.py", line 1, in main\n\nOSError: [Errno {number}] It is so',
    ],
)
def test_messages_of_a_full_disk_become_a_sentence(text: str, number: int) -> None:
    told = sentence(text.format(number=number))
    assert (
        told == f"usbpo: {Path.cwd()}: the disk is full; free space, and the same command goes on where this one ended."
    )
    assert sentence(text.format(number=13)) == ""
    assert sentence("RuleException:\nCalledProcessError: [Errno 28]") == "", "a job's failure is told with its log"


def test_a_message_of_missing_outputs_becomes_a_sentence_with_their_paths() -> None:
    text = (
        "Job 3  completed successfully, but some output files are missing. Missing files after 5 seconds. This might "
        "be due to filesystem latency. If that is the case, consider to increase the wait time with --latency-wait:\n"
        "data/a b.h5 (missing locally, parent dir not present)\ndata/c.json (missing locally)\ndata/d"
    )
    assert vanished(text).startswith("usbpo: data/a b.h5, data/c.json, data/d: gone when the job had ended")
