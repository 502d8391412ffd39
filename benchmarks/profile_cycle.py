"""Where the time of one cycle goes: its stages, and in each the operations of torch that take most.

    python benchmarks/profile_cycle.py [--task test-pendulum] [--method test-usbpo] [--cycle 3] [--top 4]

All cycles up to it are run in one process by the commands that a dry run prints; those of the cycle itself are run
twice, once for their times and once under torch's profiler, which slows small operations down, for the shares.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path

from pipeline import commands, in_one_process, workspace
from torch.profiler import ProfilerActivity, profile

from usbpo.commands import cli
from usbpo.experiment.loading import load_run


def cycle_of(words: list[str]) -> int | None:
    """The cycle of a command; blocks and the untrained policy have none."""
    return int(words[words.index("--cycle") + 1]) if "--cycle" in words else None


def main() -> None:
    """Print a line for each stage of the cycle, and one for each of its largest operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="test-pendulum")
    parser.add_argument("--method", default="test-usbpo")
    parser.add_argument("--cycle", type=int, default=3)
    parser.add_argument("--top", type=int, default=4, help="operations of each stage")
    given = parser.parse_args()
    folders = (Path(__file__).resolve().parents[1] / "config",)
    given.steps = given.cycle * load_run(given.task, given.method, folders).cycle_steps
    seconds: dict[str, float] = {}
    shares: dict[str, list[tuple[str, float, int]]] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = workspace(Path(root), "run", given)
        lines = commands(folder)
        own = [words for words in lines if cycle_of(words) == given.cycle]
        begun = lines.index(own[0])
        late = [words for words in lines[begun:] if (cycle_of(words) or given.cycle) < given.cycle]
        in_one_process(folder, lines[:begun] + late)
        with chdir(folder), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            for words in own:
                started = time.perf_counter()
                if cli.main(words):
                    sys.exit(f"profile_cycle: the stage {words[0]} failed.")
                seconds[words[0]] = time.perf_counter() - started
                with profile(activities=[ProfilerActivity.CPU]) as found:
                    cli.main(words)
                operations = [(e.key, e.self_cpu_time_total / 1e6, e.count) for e in found.key_averages()]
                shares[words[0]] = sorted(operations, key=lambda operation: -operation[1])
    whole = sum(seconds.values())
    print(f"{given.task}, {given.method}, cycle {given.cycle}: {whole:.2f} s, one thread")
    for stage, took in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{stage:10} {took:9.3f} s  {took / whole:6.1%}")
        in_torch = sum(each for _, each, _ in shares[stage])
        for name, each, count in shares[stage][: given.top] if in_torch else []:
            print(f"    {name:34} {each / in_torch:6.1%} of torch's time, {count:,} calls")


if __name__ == "__main__":
    main()
