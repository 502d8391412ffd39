"""What many runs at once ask of Snakemake and of the file system: counted, and a sample with stages that do nothing.

    PYTHONPATH=. python benchmarks/scaling.py experiment                     the experiment of 960 runs, as YAML
    PYTHONPATH=. python benchmarks/scaling.py count                          all its runs: jobs, files, bytes
    PYTHONPATH=. python benchmarks/scaling.py plan [--task HalfCheetah]      one pilot's dry run: time and memory
    PYTHONPATH=. python benchmarks/scaling.py run [--task Hopper --cycles 500]   one pilot with stages that do nothing

A stage that does nothing leaves its files empty, by a shell function of the name `usbpo`, which Snakemake leaves alone
where no warm worker is wanted; `run` measures the workflow alone: Snakemake, its records, logs and benchmark files, but
neither the worker nor work, and ends with an error where a file is not empty. CPU time is that of Snakemake and its
children; other work on the machine makes the clock slow and leaves it as it is, about.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from usbpo.artifacts import layout
from usbpo.environments.tasks import Simulator
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.sizes import Sizes
from usbpo.experiment.yaml_files import read_yaml
from usbpo.monitor.costs import ROLLOUTS, bytes_by_size

REPOSITORY = Path(__file__).resolve().parent.parent
METHODS = ["usbpo", "mbpo", "cmlo", "sac", "usbpo-shift", "usbpo-bias", "usbpo-as-released", "mbpo-lr1e-4"]
SEEDS = 20
STUB = """() {
  local output=
  for word in "$@"; do
    case "$word" in
      --output | --metrics) output=1 ;;
      --*) output= ;;
      *) [ -z "$output" ] || : > "$word" ;;
    esac
  done
}"""
"""A shell function in place of `usbpo`: it makes the files that a stage would leave"""


def experiment() -> dict[str, object]:
    """The tasks of `main` with all methods and 20 seeds."""
    content = read_yaml(REPOSITORY / "config/experiments/main.yaml")
    return {**content, "experiment": "scaling", "methods": METHODS, "seeds": list(range(SEEDS))}


def sizes_of(run: Run) -> Sizes:
    """The sizes that the environment itself says."""
    environment = run.config.environment
    simulator = Simulator(environment.id, environment.arguments)
    simulator.close()
    return Sizes(run.config, run.schedule, simulator.obs_dim, simulator.act_dim)


def bytes_read(sizes: Sizes, stage: str, cycle: int) -> int:
    """Bytes of D_env and D_model that a job reads; networks are small beside them."""
    real, before = (sizes.row * rows for rows in (sizes.real_rows(cycle), sum(sizes.model_rows(cycle - 1))))
    now = sizes.row * sum(sizes.model_rows(cycle))
    model = {"policy": now, "triggered": now, "phase2": before, "theory": before}
    return real + model.get(stage, 0) if stage in {*model, "phase1", "rollout"} else 0


def count() -> None:
    """Print what all runs have: one seed is counted, and all seeds of a task and method are alike."""
    plan = Plan({**experiment(), "seeds": [0]}, source="scaling", folders=FOLDERS)
    of_tasks: dict[str, Counter[str]] = {}
    of_largest: dict[str, int] = {}
    print(f"A run of each task and method\n{HEAD}")
    for run, cycles in plan.cycles.items():
        jobs = [(stage, cycle, paths) for cycle in range(cycles + 1) for stage, paths in run.jobs(cycle).items()]
        sizes = sizes_of(run)
        of = bytes_by_size(sizes)
        read = sum(bytes_read(sizes, stage, cycle) for stage, cycle, _ in jobs)
        made = sum(len(paths) for _, _, paths in jobs)
        stay = set(plan.kept(run))
        parts = [
            (stage, cycle, [(Path(path).name if layout.is_large(path) else stage, path in stay) for path in paths])
            for stage, cycle, paths in jobs
        ]
        kept = sum(of[what](cycle) for _, cycle, those in parts for what in {what for what, stays in those if stays})
        everything = sum(of[what](cycle) for _, cycle, those in parts for what in {what for what, _ in those})
        rollouts = sum(of[ROLLOUTS](cycle) for stage, cycle, _ in jobs if stage in ("rollout", "triggered"))
        largest = max(run.megabytes(stage, cycle) for stage, cycle, _ in jobs)
        # A log and a benchmark file for each job, and a record of Snakemake's for each file, also of those let go.
        files = len(stay) + made + 2 * len(jobs)
        counted = Counter(
            runs=1,
            jobs=len(jobs),
            files=files,
            records=made,
            kept=int(kept),
            everything=int(everything),
            rollouts=int(rollouts),
            read=read,
        )
        print(row(run.task, run.method, counted, largest))
        of_tasks.setdefault(run.task, Counter()).update(counted)
        of_largest[run.task] = max(largest, of_largest.get(run.task, 0))
    print(f"\nAll runs, {SEEDS} seeds of each method\n{HEAD}")
    total: Counter[str] = Counter()
    for task, of_task in of_tasks.items():
        of_all = Counter({name: SEEDS * number for name, number in of_task.items()})
        print(row(task, f"{of_all['runs']} runs", of_all, of_largest[task]))
        total.update(of_all)
    print(row("all", f"{total['runs']} runs", total))
    print(f"{total['records'] / 1e6:.1f} million of the files are Snakemake's records.")


HEAD = (
    f"{'task':20}{'method':20}{'jobs':>10}{'files':>12}{'kept':>12}{'with all kept':>15}{'rollouts':>14}{'read':>15}"
    f"{'largest job':>14}"
)


def row(task: str, method: str, of: Mapping[str, int], largest: int | None = None) -> str:
    """A line of the tables; `largest` in MB."""
    sizes = [f"{of[what] / 1e9:,.1f} GB" for what in ("kept", "everything", "rollouts", "read")]
    cells = "".join(f"{size:>{width}}" for size, width in zip(sizes, (12, 15, 14, 15), strict=True))
    memory = "" if largest is None else f"{largest:,} MB"
    return f"{task:20}{method:20}{of['jobs']:10,}{of['files']:12,}{cells}{memory:>14}".rstrip()


def peak(pid: int) -> int:
    """Most bytes of memory that a process had so far. Its rusage would count what our own had when it was forked."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def check_empty(folder: Path) -> None:
    """End where the files of the runs below `folder` are not those that the stub makes."""
    paths = [path for path in (folder / "data/runs").rglob("*") if path.is_file()]
    made = [path for path in paths if not {"logs", "benchmarks"} & set(path.relative_to(folder).parts)]
    full = [str(path.relative_to(folder)) for path in made if path.stat().st_size]
    if not made or full:
        what = f"{full[0]} is not empty" if full else "no file was made"
        sys.exit(f"scaling: {what}: the stages were not those that do nothing, and the measurement is void.")


def pilot(given: argparse.Namespace, stubs: bool) -> None:
    """Print what a Snakemake takes that plans one run, and with `stubs` runs it."""
    content = experiment() | {"tasks": [given.task], "methods": [given.method], "seeds": [0]}
    content["artifacts"] = {"keep": "all"}
    steps = content["steps"]
    assert isinstance(steps, dict)
    run = next(iter(Plan(content, source="scaling", folders=FOLDERS).cycles))
    content["steps"] = steps[given.task] if given.cycles is None else given.cycles * run.schedule.cycle_steps
    content["returns"] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "e.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        words = [str(Path(sys.executable).parent / "snakemake"), "runs", "--nolock", "--cores", str(given.cores)]
        words += ["--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", "e.yaml"]
        words += [] if stubs else ["--dry-run", "--quiet", "all"]
        variables = {**os.environ, "USBPO_WARM": "0", "BASH_FUNC_usbpo%%": STUB}
        jobs = sum(len(run.jobs(cycle)) for cycle in range(run.schedule.cycles(content["steps"]) + 1))
        started = time.perf_counter()
        with open(folder / "said", "w", encoding="utf-8") as said:
            process = subprocess.Popen(words, cwd=folder, env=variables, stdout=said, stderr=said)
        memory = 0
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            memory = max(memory, peak(process.pid))
            time.sleep(0.2)
        wall, cpu = time.perf_counter() - started, used.ru_utime + used.ru_stime
        if status:
            sys.exit(f"scaling: Snakemake ended with status {status}: {(folder / 'said').read_text()[-2000:]}")
        print(
            f"{given.task}/{given.method}, {'run' if stubs else 'dry run'}: {jobs:,} jobs, {wall:.0f} s of the clock, "
            f"{cpu:.1f} s of CPU ({1e3 * cpu / jobs:.1f} ms a job), {memory / 1e6:.0f} MB "
            f"({memory / jobs / 1e3:.0f} kB a job); load {os.getloadavg()[0]:.0f}"
        )
        if stubs:
            check_empty(folder)
            found = Counter(
                "record" if "metadata" in path.parts else "data"
                for path in [*(folder / "data").rglob("*"), *(folder / ".snakemake/metadata").rglob("*")]
                if path.is_file()
            )
            print(", ".join(f"{number:,} {kind} files" for kind, number in sorted(found.items())))


def main() -> None:
    """Print one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["experiment", "count", "plan", "run"])
    parser.add_argument("--task", default="Hopper")
    parser.add_argument("--method", default="usbpo")
    parser.add_argument("--cycles", type=int)
    parser.add_argument("--cores", type=int, default=1)
    given = parser.parse_args()
    if given.what == "experiment":
        print(yaml.safe_dump(experiment(), sort_keys=False), end="")
    elif given.what == "count":
        count()
    else:
        pilot(given, stubs=given.what == "run")


if __name__ == "__main__":
    main()
