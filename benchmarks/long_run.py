"""Does a long run stay flat? The wall time of each cycle beside its stages' own, and the bytes written by each cycle.

    python benchmarks/long_run.py [--task test-pendulum] [--method test-usbpo] [--cycles 500] [--folder FOLDER]
                                  [--table docs/data/long_run.csv] [--figure docs/images/long_run]

Runs one seed through Snakemake on one core in an empty folder, or goes on with what lies in `--folder`. Everything
is then read from the files: Snakemake touches the artifacts of a job when it has dealt with it, so a cycle lasts from
the modification time of the policy before to that of its own, and the time of the stages is what their logs say
they took. Every file is written once, so bytes written are sizes. While it runs, the CPU time of Snakemake, its shells
and clients (not of the stages) is noted twice a second in `FOLDER/cpu.csv`: a machine with other work on it disturbs
that little. The code must not change meanwhile: a warm worker refuses a client of another version.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64decode
from bisect import bisect_left
from collections import Counter
from io import StringIO
from pathlib import Path

import numpy as np
import psutil
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from usbpo.artifacts import blocks, layout
from usbpo.artifacts.files import write_text
from usbpo.environments.tasks import Simulator
from usbpo.experiment.loading import load_run
from usbpo.experiment.run import Run
from usbpo.experiment.sizes import Sizes
from usbpo.report import drawing

Table = dict[str, NDArray[np.float64]]

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = (REPOSITORY / "config",)
CPU = "cpu.csv"
"""Below the folder of the run: nanoseconds, CPU seconds by then."""
FIRST = 10
"""The cycle from which on cycles are compared; the first ones meet a cold machine."""
KINDS = {
    "shard_bytes": "Real data, shards",
    "block_bytes": "Real data, blocks",
    "artifact_bytes": "Networks, rollouts, metrics",
    "record_bytes": "Logs and records",
}
"""Columns of bytes that a cycle writes, and how the figure names them."""


def run(folder: Path, experiment: Path) -> None:
    """The experiment through Snakemake on one core, without its figures."""
    command = [
        *("snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(folder), "--cores", "1"),
        *("--configfile", str(experiment), "--omit-from", "results", "--quiet", "all"),
    ]
    process = subprocess.Popen(command)
    watched = psutil.Process(process.pid)
    with (folder / CPU).open("a", encoding="ascii", buffering=1) as file:
        while process.poll() is None:
            try:
                used = watched.cpu_times()
            except psutil.Error:
                break
            total = used.user + used.system + used.children_user + used.children_system
            file.write(f"{time.time_ns()},{total:.2f}\n")
            time.sleep(0.5)
    if process.wait():
        sys.exit(f"long_run: {folder}: the run ended with status {process.returncode}.")


def measured(folder: Path, run: Run, cycles: int) -> Table:
    """What the files of the run say, by columns with a value for each cycle from 1."""
    ends = [_modified(folder / run.path(layout.POLICY, cycle)) for cycle in range(cycles + 1)]
    if ends != sorted(ends):
        sys.exit(f"long_run: {folder}: the policies are not in order, so some were made again; take an empty folder.")
    table = {name: np.zeros(cycles + 1) for name in ("jobs", "stage_seconds", *KINDS)}
    for cycle in range(cycles + 1):
        for stage, paths in run.jobs(cycle).items():
            files = [folder / path for path in paths]
            kind = {"collect": "shard_bytes", "block": "block_bytes"}.get(stage, "artifact_bytes")
            table[kind][cycle] += sum(file.stat().st_size for file in files)
            log, benchmark = (folder / path for path in _said_by(run, stage, cycle))
            table["record_bytes"][cycle] += log.stat().st_size + benchmark.stat().st_size
            now = bisect_left(ends, _modified(files[0]))  # the cycle in whose time it ended
            if now <= cycles:
                table["jobs"][now] += 1
                table["stage_seconds"][now] += _took(log)
    for cycle, size in _records(folder).items():
        if cycle <= cycles:
            table["record_bytes"][cycle] += size
    noted = np.loadtxt(folder / CPU, delimiter=",", ndmin=2)
    by_then = np.interp(ends, noted[:, 0], noted[:, 1])
    found = {
        "cycle": np.arange(cycles + 1.0),
        "seconds": np.diff(ends, prepend=ends[0]) / 1e9,
        "cpu_seconds": np.diff(by_then, prepend=by_then[0]),
        **table,
    }
    return {name: column[1:] for name, column in found.items()}


def _said_by(run: Run, stage: str, cycle: int) -> list[str]:
    """The log and the benchmark of a job."""
    names = {"cycle": layout.five_digits(cycle), "stage": stage}
    if stage == "block":
        names = {"cycle": "blocks", "stage": layout.five_digits(cycle)}
    return [
        template.format(task=run.task, method=run.method, seed=run.seed, **names)
        for template in (layout.LOG, layout.BENCHMARK)
    ]


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def _took(log: Path) -> float:
    """Seconds that a stage says it took."""
    found = re.search(r": took ([0-9.]+) s", log.read_text(encoding="utf-8"))
    if found is None:
        sys.exit(f"long_run: {log}: does not say how long the stage took.")
    return float(found[1])


def _records(folder: Path) -> Counter[int]:
    """Bytes of Snakemake's records of the artifacts of each cycle."""
    root = folder / ".snakemake/metadata"
    sizes: Counter[int] = Counter()
    for file in root.rglob("*"):
        if file.is_file():
            name = urlsafe_b64decode("".join(part.removeprefix("@") for part in file.relative_to(root).parts)).decode()
            if cycle := re.search(r"/(\d{5})(?:/|\.h5$)", name):
                sizes[int(cycle[1])] += file.stat().st_size
    return sizes


def overhead(table: Table) -> NDArray[np.float64]:
    """Seconds of each cycle that are not its stages' own."""
    return table["seconds"] - table["stage_seconds"]


def written(table: Table) -> Table:
    """Bytes written by the end of each cycle, of each kind."""
    return {kind: np.cumsum(table[kind]) for kind in KINDS}


def quadratic(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """The fit a + b n + c n² to `values` at n = 1, 2, …: (a, b, c)."""
    c, b, a = np.polyfit(np.arange(1.0, len(values) + 1), values, 2)
    return float(a), float(b), float(c)


def tell(table: Table) -> None:
    """Print the time of a cycle beside its stages and the bytes, each with its fit."""
    cycles, jobs = table["cycle"], table["jobs"].sum()
    whole, stages = table["seconds"].sum(), table["stage_seconds"].sum()
    print(f"{len(cycles)} cycles, {jobs:.0f} jobs, {whole:.0f} s, {stages:.0f} s of it in stages")
    _tell_time("Time beside the stages", cycles, overhead(table), jobs)
    _tell_time("CPU time of Snakemake, shells and clients", cycles, table["cpu_seconds"], jobs)
    for kind, values in written(table).items():
        _tell_bytes(KINDS[kind], values)
    _tell_bytes("All", sum(written(table).values(), np.zeros(len(cycles))))


def _tell_time(name: str, cycles: NDArray[np.float64], values: NDArray[np.float64], jobs: float) -> None:
    """Print the seconds of a cycle, fifth by fifth, and a line through them with the standard error of its slope."""
    later = cycles >= FIRST
    (slope, start), covariance = np.polyfit(cycles[later], values[later], 1, cov=True)
    print(f"{name}: {1000 * values.sum() / jobs:.0f} ms a job; a cycle, medians:")
    for part in np.array_split(np.flatnonzero(later), 5):
        print(f"  {int(cycles[part[0]]):4d} … {int(cycles[part[-1]]):4d}  {np.median(values[part]):.3f} s")
    error = covariance[0, 0] ** 0.5
    print(f"  fit from cycle {FIRST} on: {start:.3f} s + {1e6 * slope:.0f} ± {1e6 * error:.0f} µs a cycle")


def _tell_bytes(name: str, values: NDArray[np.float64]) -> None:
    _, linear, square = quadratic(values)
    last = len(values)
    print(f"{name:28s} {values[-1] / 1e6:9.2f} MB = {linear / 1e3:8.2f} kB n {square:+9.3f} B n² "
          f"(the square {100 * square * last**2 / values[-1]:.1f} %)")  # fmt: skip


def real_data(task: str, method: str, cycles: int) -> None:
    """Print the bytes of shards and blocks that a run of a real task writes, by arithmetic."""
    config = load_run(task, method, CONFIG)
    schedule = config.cycles()
    simulator = Simulator(config.environment.id, config.environment.arguments)
    simulator.close()
    sizes = Sizes(config, schedule, simulator.obs_dim, simulator.act_dim)
    shards = np.array([sizes.row * sizes.collected_rows(cycle) for cycle in range(cycles + 1)], dtype=np.float64)
    rewritten = np.zeros(cycles + 1)
    for cycle in range(cycles + 1):
        if block := blocks.block_of(cycle):
            rewritten[cycle] = shards[block.first : block.end].sum()
    print(f"{task}, {cycles} cycles of {schedule.cycle_steps} steps, by arithmetic:")
    for name, column in (("Real data, shards", shards), ("Real data, blocks", rewritten)):
        _tell_bytes(name, np.cumsum(column)[1:])
    _tell_bytes("One growing file instead", np.cumsum(np.cumsum(shards))[1:])


def draw(table: Table) -> Figure:
    """The time of a cycle beside its stages, and the bytes written by each cycle."""
    figure, (clock, *sizes) = drawing.grid(3, (4.6, 3.6))
    looks = list(drawing.looks(KINDS.values()).values())
    cycles = table["cycle"]
    clock.plot(*drawing.binned(cycles, overhead(table)), color=drawing.QUIET, linewidth=1, label="time")
    clock.plot(*drawing.binned(cycles, table["cpu_seconds"]), color=drawing.INK, linewidth=2, label="CPU time")
    clock.legend(loc="upper right")
    clock.set_title("Beside the stages")
    clock.set_ylabel("Seconds of a cycle")
    for look, values in zip(looks, written(table).values(), strict=True):
        small = look.label.startswith("Real data")
        drawing.line(sizes[0 if small else 1], cycles, values / 1e6, look)
    for axes, title in zip(sizes, ("Real data written", "All else written"), strict=True):
        axes.set_title(title)
        axes.set_ylabel("MB by then")
    for axes in (clock, *sizes):
        _from_zero(axes)
    drawing.legend(figure, looks)
    return figure


def _from_zero(axes: Axes) -> None:
    axes.set_xlabel("Cycle")
    axes.set_ylim(bottom=0)
    drawing.x_axis(axes)
    drawing.y_axis(axes)


def as_text(table: Table) -> str:
    """The table as CSV."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        named = zip(table, row, strict=True)
        writer.writerow([f"{value:.3f}" if name.endswith("seconds") else int(value) for name, value in named])
    return out.getvalue()


def main() -> None:
    """Run it, tell what the files say, write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="test-pendulum")
    parser.add_argument("--method", default="test-usbpo")
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--figure", type=Path, help="without the suffix")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        one = Run(given.task, given.method, 0, load_run(given.task, given.method, CONFIG))
        content = {
            **{"experiment": "e", "tasks": [given.task], "methods": [given.method], "seeds": [0]},
            "steps": given.cycles * one.schedule.cycle_steps,
            "artifacts": {"keep": "all"},
        }
        experiment = folder / "e.yaml"
        experiment.write_text(yaml.safe_dump(content), encoding="utf-8")
        run(folder, experiment)
        table = measured(folder, one, given.cycles)
    tell(table)
    real_data("Hopper", "usbpo", 500)
    if given.table:
        write_text(given.table, as_text(table))
    if given.figure:
        drawing.save(lambda: draw(table), given.figure)


if __name__ == "__main__":
    main()
