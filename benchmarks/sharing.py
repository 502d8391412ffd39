"""What sharing by DVC costs: a run of many files added, pushed and pulled, as one folder or file by file.

    python benchmarks/sharing.py [--files 2500] [--kilobytes 200] [--singly 50]

The files are random bytes, five in each cycle, so that nothing is found in the cache already; each has a record of
Snakemake's of a usual length. The remote is a folder. `--singly` files are added with a `.dvc` file each, too, as the
other way to do it.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from usbpo.artifacts.files import sha256
from usbpo.artifacts.layout import PROVENANCE
from usbpo.workspace import provenance, snakemake_inside

FOLDER = "data/runs/T/M/seed-0"
KINDS = ("model", "policy", "evaluation", "theory", "phase1")


def run(folder: Path, *words: str) -> None:
    """Run a command quietly."""
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def dvc(folder: Path, *words: str) -> None:
    """Run DVC quietly."""
    run(folder, sys.executable, "-P", "-m", "dvc", *words)


def timed(what: str, do: Callable[[], object]) -> None:
    """Print how long something takes, and how much of the processor, its children included."""

    def processor() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    started, before = time.perf_counter(), processor()
    do()
    print(f"{what:44}{time.perf_counter() - started:8.1f} s{processor() - before:8.1f} s of CPU", flush=True)


def files(folder: Path, count: int, kilobytes: int, first: int = 0) -> dict[str, provenance.Entry]:
    """Make files of random bytes, and a record for each."""
    entries = {}
    for number in range(first, first + count):
        name = f"{FOLDER}/{number // len(KINDS):05d}/{KINDS[number % len(KINDS)]}.h5"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(1024 * kilobytes))
        read = [f"{FOLDER}/data/{other:05d}.h5" for other in range(12)]
        record = dict.fromkeys(snakemake_inside.KEPT) | {
            "rule": KINDS[number % len(KINDS)],
            "input": read,
            "shellcmd": f"usbpo {number} " + "--option value " * 30,
            "params": ["'--option value'" * 20],
            "record_format_version": snakemake_inside.format_number(),
            "input_checksums": {
                f"{FOLDER}/data/{other:05d}.h5": f"sha256:{os.urandom(32).hex()}" for other in range(12)
            },
        }
        entries[name] = provenance.Entry(record, sha256(folder / name))
    return entries


def repository(folder: Path, store: Path) -> Path:
    """An empty repository of git and DVC with a folder as its remote."""
    folder.mkdir()
    run(folder, "git", "init", "--quiet")
    for key in ("user.name", "user.email"):
        run(folder, "git", "config", key, "benchmark")
    dvc(folder, "init", "--quiet")
    dvc(folder, "remote", "add", "--quiet", "--default", "store", str(store))
    return folder


def measure(base: Path, count: int, kilobytes: int, singly: int) -> None:
    """Print what each step takes."""
    first = repository(base / "first", base / "store")
    entries = files(first, count, kilobytes)
    print(f"{count} files, {count * kilobytes / 1024:.0f} MB, one folder:")
    timed("provenance written", lambda: provenance.write(first / FOLDER / PROVENANCE, entries))
    timed("dvc add", lambda: dvc(first, "add", "--quiet", FOLDER))
    timed("dvc push", lambda: dvc(first, "push", "--quiet"))
    more = files(first, len(KINDS), kilobytes, first=count)
    provenance.write(first / FOLDER / PROVENANCE, entries | more)
    cycle = next(iter(more)).rpartition("/")[0]
    timed("dvc add of one more cycle", lambda: dvc(first, "add", "--quiet", cycle, f"{FOLDER}/{PROVENANCE}"))
    timed("dvc push of it", lambda: dvc(first, "push", "--quiet"))
    run(first, "git", "add", ".")
    run(first, "git", "commit", "--quiet", "--message", "Publish")
    second = base / "second"
    run(base, "git", "clone", "--quiet", str(first), str(second))
    timed("dvc pull", lambda: dvc(second, "pull", "--quiet"))
    timed("provenance put back", lambda: provenance.restore(second))
    timed("the same when it was", lambda: provenance.restore(second))

    if singly:
        print(f"{singly} files, {singly * kilobytes / 1024:.0f} MB, a .dvc file each:")
        third = repository(base / "third", base / "store-3")
        names = [str(name) for name in files(third, singly, kilobytes)]
        timed("dvc add", lambda: dvc(third, "add", "--quiet", *names))
        timed("dvc push", lambda: dvc(third, "push", "--quiet"))


def main() -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=2500)
    parser.add_argument("--kilobytes", type=int, default=200)
    parser.add_argument("--singly", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        measure(Path(base), given.files, given.kilobytes, given.singly)


if __name__ == "__main__":
    main()
