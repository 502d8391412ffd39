"""Do two runs on two cores take the time of one? Policy updates and phase-1 minibatches in one process, then in two.

    python benchmarks/side_by_side.py [--processes 2] [--repetitions 5]

Each process has one thread, as a stage has. Memory bandwidth and caches are shared, so some slowing is the machine's.
"""

import argparse
import multiprocessing
import os
import statistics
import time

import torch

from usbpo.agent import sac
from usbpo.agent.learner import Learner
from usbpo.model import ensemble
from usbpo.model.likelihood import LikelihoodStep, decay_by_name
from usbpo.numerics.optimizer import Adam, copied

UPDATES, MINIBATCHES = 150, 60


def work() -> float:
    """Seconds of some updates and minibatches at Hopper's sizes."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    agent = sac.new_agent(sac.Architecture(11, 3, 2, 256), generator)
    learner = Learner(agent, rows=256, real=12, learning_rate=3e-4, discount=0.99, polyak=0.005, target_entropy=-1.0)
    learner.batch.normal_(generator=generator)
    learner.noise.normal_(generator=generator)
    params = copied(ensemble.new_ensemble(ensemble.Architecture(11, 3, 7, 5, 4, 200), generator).params)
    adam = Adam(params, 1e-3, weight_decay=decay_by_name([1e-4] * 5))
    x, y = (torch.randn(5000, n, generator=generator) for n in (14, 12))
    step = LikelihoodStep(params, adam, x, y, 256, 0.01)
    index = torch.randint(5000, (7, 256), generator=generator)
    learner.update()
    step.take(index)
    started = time.perf_counter()
    for _ in range(UPDATES):
        learner.update()
    for _ in range(MINIBATCHES):
        step.take(index)
    return time.perf_counter() - started


def together(processes: int) -> float:
    """The slowest of so many processes that do the work at the same time."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return max(pool.starmap(work, [()] * processes, chunksize=1))


def main() -> None:
    """Print the medians, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    alone, beside = [], []
    for _ in range(given.repetitions):
        alone.append(together(1))
        beside.append(together(given.processes))
    one, several = statistics.median(alone), statistics.median(beside)
    print(f"{UPDATES} updates and {MINIBATCHES} minibatches, medians of {given.repetitions} interleaved")
    print(f"one process       {one:6.2f} s")
    print(f"{given.processes} side by side    {several:6.2f} s   {several / one:.2f} times as long")


if __name__ == "__main__":
    main()
