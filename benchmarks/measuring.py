"""What the benchmarks share: interleaved repetitions, an update's arithmetic, the speed of torch.mm, the machine."""

import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

SQUARE = 256
"""Side of the matrices whose product says what this machine can do: of a hidden layer and a batch"""


def interleaved(functions: dict[str, tuple[Callable[[], object], int]], repetitions: int) -> dict[str, float]:
    """Median seconds of CPU time of each function, called in turn, so that a busy moment meets all of them.

    CPU time of this thread and not of the clock: a process that shares its cores is interrupted, which says nothing
    about the work. What the others do to caches and memory remains.

    Args:
        functions: each with how often it is called in a row, as it is in the stages, where its data are in the cache.
        repetitions: how often it is each one's turn.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions + 1):
        for name, (function, calls) in functions.items():
            started = time.thread_time()
            for _ in range(calls):
                function()
            times[name].append((time.thread_time() - started) / calls)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def product(dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """A product of two square matrices in the cache, the fastest that torch.mm does at the sizes of these networks."""
    left, right, out = (torch.randn(SQUARE, SQUARE, dtype=dtype) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


PRODUCT_FLOPS = 2 * SQUARE**3


def sac_update_flops(obs_dim: int, act_dim: int, hidden: int = 256, rows: int = 256) -> int:
    """Floating-point operations of the matrix products of one update with two hidden layers, without any nobody uses.

    Forward: the actor in present and next states, the targets, the critics, the critics for the actor. Backward: the
    critics' weights and one hidden layer's inputs; for the actor, through the critics to the actions, then the actor's.
    """
    actor, critic = [obs_dim, hidden, hidden, 2 * act_dim], [obs_dim + act_dim, hidden, hidden, 1]

    def network(sizes: list[int]) -> int:
        return sum(a * b for a, b in pairwise(sizes))

    def to_first_hidden(sizes: list[int]) -> int:
        return network(sizes[1:])

    forward = 2 * network(actor) + 3 * 2 * network(critic)
    critics = 2 * (network(critic) + to_first_hidden(critic))
    through = 2 * (to_first_hidden(critic) + hidden * act_dim)
    return 2 * rows * (forward + critics + through + network(actor) + to_first_hidden(actor))


INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Of a processor, those that matter to products of matrices"""


def machine() -> str:
    """The processor, which of the instructions it has, and torch's version."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        told = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        values = {name.strip(): value.strip() for name, value in told.items()}
        has = [name for name in INSTRUCTIONS if name in values.get("flags", "").split()]
        model = f"{values.get('model name', model)} ({' '.join(has)})"
    return f"{model}, torch {torch.__version__}, {torch.get_num_threads()} thread"
