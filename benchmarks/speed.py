"""How fast the policy's work is: a soft actor-critic update, a batch, and an action for one real step.

    python benchmarks/speed.py [--repetitions N] [--task Hopper|Humanoid] [--compile]

Ours beside the plain autograd version (plain_sac.py), other people's (sac_peers.py) as far as they can be imported, and
what the products alone would take at the speed that torch.mm reaches here. The model's rows are model_speed.py's.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from measuring import PRODUCT_FLOPS, interleaved, machine, product, sac_update_flops
from plain_sac import Batch, PlainLearner, update
from sac_peers import PEERS, SLOW

from usbpo.agent import sac
from usbpo.agent.acting import OneByOne
from usbpo.agent.learner import Learner
from usbpo.agent.replay import Replay

SIZES = {"Hopper": (11, 3), "Humanoid": (45, 17)}
ROWS, REAL, HIDDEN = 256, 12, 256
REPLAY_ROWS = 400_000
CONSTANTS = {"learning_rate": 3e-4, "discount": 0.99, "polyak": 0.005, "target_entropy": -1.0}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--task", choices=sorted(SIZES), default="Hopper", help="whose sizes")
    parser.add_argument("--compile", action="store_true", help="TorchRL's update also compiled, which takes a minute")
    given = parser.parse_args()
    torch.set_num_threads(1)
    obs_dim, act_dim = SIZES[given.task]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    agent = sac.new_agent(sac.Architecture(obs_dim, act_dim, 2, HIDDEN), generator)
    columns = (normal(ROWS, obs_dim), normal(ROWS, act_dim).tanh(), normal(ROWS), normal(ROWS, obs_dim))
    batch, noise = Batch(*columns, torch.zeros(ROWS), real=REAL), normal(2, ROWS, act_dim)
    learner, plain = Learner(agent, rows=ROWS, real=REAL, **CONSTANTS), PlainLearner(agent, **CONSTANTS)
    update(learner, batch, noise)

    replay = Replay(normal(2, REPLAY_ROWS, obs_dim + act_dim + 1), REPLAY_ROWS - 5000, 5000)
    indices = replay.draw(100, ROWS, REAL, generator)
    widths = [obs_dim, act_dim, 1]
    (*taken, continues), following = replay.packed[1].split(widths, 1), replay.packed[0].split(widths, 1)
    apart = [column.contiguous() for column in (*following, taken[0], continues)]

    def gather_columns() -> list[torch.Tensor]:
        real, model = (torch.randint(REPLAY_ROWS, (count,), generator=generator) for count in (REAL, ROWS - REAL))
        torch.randn(2, ROWS, act_dim, generator=generator)
        return [torch.cat([column[real], column[model]]) for column in apart]

    def gather() -> None:
        replay.gather(indices[0], learner.batch)

    policy, observation, action_noise = OneByOne(agent.actor), normal(obs_dim).numpy(), normal(act_dim).numpy()

    def act_in_a_batch() -> None:
        with torch.no_grad():
            rows = torch.from_numpy(observation[None]), torch.from_numpy(action_noise[None])
            sac.sample_action(agent.actor, *rows)

    functions: dict[str, tuple[Callable[[], object], int]] = {
        "product": (product(), 50),
        "update": (learner.update, 5),
        "plain update": (lambda: plain.update(batch, noise), 5),
        "gather": (gather, 100),
        "draw of 100": (lambda: (replay.draw(100, ROWS, REAL, generator), normal(100, *learner.noise.shape)), 1),
        "gather columns": (gather_columns, 100),
        "act": (lambda: policy.sample(observation, action_noise), 100),
        "act in a batch": (act_in_a_batch, 100),
    }
    absent = []
    for name, (make, updates) in PEERS.items():
        if name in SLOW and not given.compile:
            continue
        try:
            functions[name] = (make(obs_dim, act_dim), 6 // updates)
        except ImportError as error:
            absent.append(f"{name} is not installed here ({error}).")
    found = interleaved(functions, given.repetitions)
    peers = {name: found[name] / updates for name, (_, updates) in PEERS.items() if name in found}

    speed = PRODUCT_FLOPS / found["product"]
    flops = sac_update_flops(obs_dim, act_dim, HIDDEN, ROWS)
    limit = flops / speed
    draw = found["gather"] + found["draw of 100"] / 100
    print(f"{machine()}; medians of {given.repetitions} interleaved repetitions, CPU time of one thread")
    print(f"{given.task}: {obs_dim} observations, {act_dim} actions, {ROWS} rows, 2 × {HIDDEN} units, float32")
    print(f"torch.mm {speed / 1e9:.0f} GFLOP/s; an update's products {flops / 1e6:.0f} MFLOP: {limit * 1e3:.2f} ms\n")
    lines = [
        ("SAC update, ours", found["update"], limit),
        ("SAC update, plain autograd", found["plain update"], limit),
        ("SAC update and batch, ours", found["update"] + draw, limit),
        *((f"SAC update and batch, {name}", seconds, limit) for name, seconds in peers.items()),
        ("batch with row numbers and noise, ours", draw, draw),
        ("batch from separate columns", found["gather columns"], draw),
        ("action for one real step, ours", found["act"], found["act"]),
        ("action for one real step, as a batch", found["act in a batch"], found["act"]),
    ]
    print(f"{'':42}{'time':>10}{'ratio':>8}   to")
    for name, seconds, to in lines:
        what = "the products" if to == limit else "ours"
        shown = f"{seconds * 1e3:.2f} ms" if seconds > 1e-3 else f"{seconds * 1e6:.0f} µs"
        print(f"{name:42}{shown:>10}{seconds / to:8.2f}   {what}")
    for line in absent:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
