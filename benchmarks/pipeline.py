"""What the workflow costs: the same commands in one process and through Snakemake, interleaved.

    python benchmarks/pipeline.py [--task test-pendulum] [--method test-usbpo] [--steps 600] [--repetitions 3]

The commands are those that a dry run prints. In one process everything is imported before the clock starts, and each
command is a call of the command line's function; through Snakemake they are jobs on one core, handed to the warm
worker. What Snakemake takes to start, to plan and to find that nothing is to be done is measured by a second call. The
figures of the experiment (rule `results`) are left out of both.
"""

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent


def snakemake(folder: Path, *arguments: str) -> str:
    """Run the experiment in `folder` without its figures; what it printed."""
    command = [
        *("snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder), "--cores", "1"),
        *("--configfile", str(folder / "e.yaml"), "--omit-from", "results", *arguments),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def commands(folder: Path) -> list[list[str]]:
    """The command lines of all stages, in an order in which they can run."""
    said = snakemake(folder, "--dry-run", "--printshellcmds")
    return [shlex.split(line) for line in re.findall(r"^Shell command: usbpo (.*) > \S+ 2>&1$", said, re.MULTILINE)]


def in_one_process(folder: Path, lines: list[list[str]]) -> float:
    """Wall time of all commands, one after the other in this process."""
    from usbpo.commands import cli

    cli.warm_up()
    with chdir(folder), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        started = time.perf_counter()
        for words in lines:
            if cli.main(words):
                sys.exit(f"pipeline: the command failed: usbpo {shlex.join(words)}")
        return time.perf_counter() - started


def workspace(root: Path, name: str, given: argparse.Namespace) -> Path:
    """An empty folder with the experiment in it."""
    folder = root / name
    folder.mkdir()
    content = {"experiment": "e", "tasks": [given.task], "methods": [given.method], "seeds": [0], "steps": given.steps}
    (folder / "e.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def main() -> None:
    """Print the medians, and what a job costs beside its work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="test-pendulum")
    parser.add_argument("--method", default="test-usbpo")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    alone, through, again = [], [], []
    for repetition in range(given.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            one, other = (workspace(Path(folder), name, given) for name in ("one", "snakemake"))
            lines = commands(one)
            alone.append(in_one_process(one, lines))
            for times in (through, again):
                started = time.perf_counter()
                snakemake(other, "--quiet", "all")
                times.append(time.perf_counter() - started)
        print(f"{repetition + 1}: {alone[-1]:.1f} s, {through[-1]:.1f} s, {again[-1]:.1f} s", file=sys.stderr)
    work, whole, start = (statistics.median(times) for times in (alone, through, again))
    jobs = len(lines)
    print(f"{given.task}, {given.method}, {given.steps} steps: {jobs} jobs, medians of {given.repetitions}, one core")
    print(f"in one process                {work:8.2f} s")
    print(f"through Snakemake             {whole:8.2f} s   {whole / work:.3f} times as long")
    print(f"Snakemake with nothing to do  {start:8.2f} s")
    print(f"a job costs beside its work   {(whole - start - work) / jobs:8.3f} s")


if __name__ == "__main__":
    main()
