"""What the warm worker saves: the test experiment through Snakemake with it and without it, interleaved.

    python benchmarks/warm_worker.py [repetitions]

The stages of the test experiment compute next to nothing, so what is measured is what a job costs by itself.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from usbpo.experiment.plan import Plan
from usbpo.experiment.yaml_files import read_yaml

REPOSITORY = Path(__file__).resolve().parent.parent
EXPERIMENT = REPOSITORY / "config/experiments/test.yaml"


def stage_jobs() -> int:
    """How many jobs the runs of the test experiment have."""
    plan = Plan(read_yaml(EXPERIMENT), source=str(EXPERIMENT), folders=[REPOSITORY / "config"])
    return sum(len(run.jobs(cycle)) for run in plan.cycles for cycle in range(plan.cycles[run] + 1))


def seconds(warm: bool) -> float:
    """Wall time of the whole experiment on one core, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", folder),
            *("--configfile", str(EXPERIMENT), "--cores", "1", "--quiet", "all"),
        ]
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "USBPO_WARM": str(int(warm))}, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    """Print the median seconds of both ways, for each job, and their ratio."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repetitions):
        for warm, times in found.items():
            times.append(seconds(warm))
    jobs = stage_jobs()
    warm_time, direct_time = (statistics.median(found[way]) for way in (True, False))
    print(f"median of {repetitions} interleaved runs of {jobs} stage jobs on one core, start of Snakemake included")
    print(f"warm worker  {warm_time:6.1f} s   {warm_time / jobs:5.2f} s a job")
    print(f"direct       {direct_time:6.1f} s   {direct_time / jobs:5.2f} s a job")
    print(f"ratio        {direct_time / warm_time:6.1f}")


if __name__ == "__main__":
    main()
