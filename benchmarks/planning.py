"""What Snakemake takes to plan a run: `snakemake -n`, in this checkout and, if wished, in another one, alternating.

    python benchmarks/planning.py [--task Walker2d] [--method mbpo] [--seeds 1] [--steps 80000] [--repetitions 3]
                                  [--other FOLDER]

CPU time and peak memory of the process as the system counts them, so a shared machine disturbs it little. The other
checkout's package is taken by PYTHONPATH, in this environment.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent


class Planned(NamedTuple):
    """One dry run."""

    jobs: int
    seconds: float
    """CPU time, user and system"""
    megabytes: float
    """Peak of resident memory"""


def plan(project: Path, experiment: Path, said: Path) -> Planned:
    """A dry run of `experiment` with the workflow and the package of `project`, in the folder of the experiment."""
    command = [
        *("snakemake", "--snakefile", str(project / "Snakefile"), "--directory", str(experiment.parent)),
        *("--configfile", str(experiment), "--dry-run", "--cores", "1"),
    ]
    with said.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(project)}
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    text = said.read_text(encoding="utf-8")
    if process.returncode:
        sys.exit(f"planning: the dry run in {project} failed:\n{text[-2000:]}")
    total = re.findall(r"^total +(\d+)$", text, flags=re.MULTILINE)
    return Planned(int(total[-1]), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> None:
    """Print the medians of each checkout, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="Walker2d")
    parser.add_argument("--method", default="mbpo")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--other", type=Path)
    given = parser.parse_args()
    projects = {"this checkout": REPOSITORY} | ({"the other": given.other.resolve()} if given.other else {})
    found: dict[str, list[Planned]] = {name: [] for name in projects}
    content = {
        **{"experiment": "e", "tasks": [given.task], "methods": [given.method]},
        **{"seeds": list(range(given.seeds)), "steps": given.steps},
    }
    for repetition in range(given.repetitions):
        for name, project in projects.items():
            with tempfile.TemporaryDirectory() as folder:
                experiment = Path(folder, "e.yaml")
                experiment.write_text(yaml.safe_dump(content), encoding="utf-8")
                found[name].append(plan(project, experiment, Path(folder, "said.txt")))
            jobs, seconds, megabytes = found[name][-1]
            print(f"{repetition + 1}: {name}: {jobs} jobs, {seconds:.1f} s, {megabytes:.0f} MB", file=sys.stderr)
    print(f"{given.task}, {given.method}, {given.seeds} seeds, {given.steps} steps: medians of {given.repetitions}")
    medians = {name: statistics.median(planned.seconds for planned in runs) for name, runs in found.items()}
    for name, runs in found.items():
        jobs, memory = runs[0].jobs, statistics.median(planned.megabytes for planned in runs)
        share = f"   {medians[name] / medians['the other']:.2f} of the other" if "the other" in medians else ""
        print(f"{name:14s} {jobs:6d} jobs {medians[name]:7.1f} s  {1000 * medians[name] / jobs:5.2f} ms a job "
              f"{memory:6.0f} MB{share}")  # fmt: skip


if __name__ == "__main__":
    main()
