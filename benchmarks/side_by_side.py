"""What cores beside each other get done: independent processes, and the threads of one stage, against one thread.

    python benchmarks/side_by_side.py [--processes 2] [--threads 2] [--repetitions 9] [--precision bfloat16]

The works are those of a cycle at Hopper's sizes: a policy update, a minibatch of phase 1, a step of phase 2 with its
validation value, the hold-out error of 5,000 rows, a rollout step of 100,000 states. Each round times every work in
one process with one thread, in several processes at the same time with one thread each, and in one process with 2, 3,
… threads, one after the other, so that a slow moment of the machine meets all of them; the table shows medians over
the rounds, by the clock.

"x" is how many times as much the processes get done as one alone: what the cores give to work that shares nothing, the
ceiling of all else. Caches, memory and clock rates are shared, so it may be less than the number of processes.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from measuring import machine

SECONDS = 0.15
"""Of a work in each turn, about, with one thread"""


def works(precision: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    import model_speed
    import torch

    from usbpo.agent import sac
    from usbpo.agent.learner import Learner
    from usbpo.model.passes import number_type

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    agent = sac.new_agent(model_speed.POLICY, generator)
    learner = Learner(agent, rows=256, real=12, learning_rate=3e-4, discount=0.99, polyak=0.005, target_entropy=-1.0)
    learner.batch.normal_(generator=generator)
    learner.noise.normal_(generator=generator)
    setting = model_speed.Setting(torch.device("cpu"), products=number_type(precision))
    of_model = {work.name: work.run for work in model_speed.works(setting)}
    chosen = ("phase-1 minibatch", "phase-2 step, as written fixed", "hold-out error", "rollout step")
    return {"policy update": learner.update} | {name: of_model[name] for name in chosen}


def work(connection: Connection, precision: str) -> None:
    """A process that computes what it is asked for, and answers how many seconds a call took."""
    from usbpo.numerics.threads import using

    found = works(precision)
    calls = {}
    for name, run in found.items():
        run()
        begun = time.perf_counter()
        run()
        calls[name] = max(1, round(SECONDS / (time.perf_counter() - begun)))
    connection.send(list(found))
    while asked := connection.recv():
        name, threads = asked
        with using(threads):
            found[name]()
            begun = time.perf_counter()
            for _ in range(calls[name]):
                found[name]()
            connection.send((time.perf_counter() - begun) / calls[name])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="the most threads of one stage")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    spawning = multiprocessing.get_context("spawn")
    connections = []
    for _ in range(given.processes):
        ours, its = spawning.Pipe()
        spawning.Process(target=work, args=(its, given.precision), daemon=True).start()
        connections.append(ours)
    names: list[str] = [connection.recv() for connection in connections].pop()

    def timed(name: str, threads: int, processes: int = 1) -> float:
        for connection in connections[:processes]:
            connection.send((name, threads))
        return statistics.mean(connection.recv() for connection in connections[:processes])

    several = range(2, given.threads + 1)
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.repetitions):
        for name in names:
            for column, taken in (
                ("one", timed(name, 1)),
                ("beside", timed(name, 1, given.processes)),
                *((str(threads), timed(name, threads)) for threads in several),
            ):
                seconds.setdefault((name, column), []).append(taken)

    for connection in connections:
        connection.send(None)
    computer = f"{machine().rsplit(',', 1)[0]}, {os.cpu_count()} cores; {given.precision}"
    print(f"{computer}; medians of {given.repetitions} rounds; load {os.getloadavg()[0]:.1f}\n")
    columns = ["work", "one thread", f"x of {given.processes} processes", *(f"{n} threads" for n in several)]
    print(f"| {' | '.join(columns)} |")
    print("|---" * (3 + len(several)) + "|")
    for name in names:
        one, beside, *shared = (statistics.median(seconds[name, c]) for c in ("one", "beside", *map(str, several)))
        gains = " | ".join(f"{one / taken:.2f}" for taken in shared)
        print(f"| {name} | {1e3 * one:.1f} ms | {given.processes * one / beside:.2f} | {gains} |")


if __name__ == "__main__":
    main()
