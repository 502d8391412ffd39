"""Kills at random moments, through Snakemake: the same command goes on, and the bytes are those of a run left alone.

How many is USBPO_KILLS. docs/reliability.md quotes what this prints with `-s`.
"""

import collections
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from helpers.workflow import at_work_in, finished_workspace, snakemake, start_cold, tree, wait_for

KILLS = int(os.environ.get("USBPO_KILLS", "100"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LONGEST = 600
"""Seconds after which a Snakemake that was hit counts as one that hangs"""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chaos")]


def moment(folder: Path, run: "subprocess.Popen[bytes]", rng: random.Random) -> None:
    """Wait until some time has gone by, or until the next file begins to be written or has just come into its place."""
    begin, names = time.monotonic(), set(tree_names(folder))
    after, on_file = rng.uniform(0.2, 12), rng.random() < 0.6
    to_come = rng.randrange(1, 6)
    while run.poll() is None and time.monotonic() - begin < after:
        if on_file and len(set(tree_names(folder)) - names) >= to_come:
            return
        time.sleep(0.002)


def tree_names(folder: Path) -> list[str]:
    """All files of the runs and results, those too that are only begun."""
    return [os.path.join(where, name) for where, _, files in os.walk(folder / "data") for name in files]


def what_is(process: psutil.Process) -> str:
    """A process in a word."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "one that had just ended"
    for word, name in {"usbpo.worker.client": "a client", "usbpo.worker": "the worker or a stage"}.items():
        if word in words:
            return name
    return "snakemake" if "snakemake" in words else "another"


def hit(folder: Path, run: "subprocess.Popen[bytes]", rng: random.Random) -> str:
    """Send one signal to one process of those at work, or to the group of Snakemake, as Ctrl-C in a terminal does."""
    sign = rng.choice(SIGNALS)
    at_work = at_work_in(folder)
    if not at_work or rng.random() < 0.25:
        os.killpg(run.pid, sign)
        return f"{sign.name} to Snakemake's group"
    victim = rng.choice(at_work)
    name = what_is(victim)
    try:
        victim.send_signal(sign)
    except psutil.Error:
        name = "one that had just ended"
    return f"{sign.name} to {name}"


def test_runs_that_are_killed_at_random_moments_end_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    wanted = tree(finished_workspace(tmp_path_factory))
    rng = random.Random(os.environ.get("USBPO_CHAOS_SEED", "0"))
    kinds: collections.Counter[str] = collections.Counter()
    finished, folder = 0, tmp_path / "0"
    folder.mkdir()
    while sum(kinds.values()) < KILLS:
        run = start_cold(folder)
        try:
            moment(folder, run, rng)
            if run.poll() is None:
                kinds[hit(folder, run, rng)] += 1
            code = run.wait(LONGEST)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        wait_for(lambda at=folder: not at_work_in(at), 60, "the end of all that Snakemake started")  # type: ignore[misc]
        if code == 0:
            assert tree(folder) == wanted, f"after {dict(kinds)}"
            shutil.rmtree(folder)
            finished += 1
            folder = tmp_path / str(finished)
            folder.mkdir()
    ended = snakemake(folder)
    assert ended.code == 0, ended.said
    assert tree(folder) == wanted
    print(f"\n{sum(kinds.values())} kills in {finished + 1} workspaces, all with the same bytes:")
    for kind, count in sorted(kinds.items()):
        print(f"  {count:4} {kind}")
