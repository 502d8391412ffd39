"""The policy's update on a GPU: fused, captured, eager; its time, and how far it strays from double precision.

    PYTHONPATH=. python benchmarks/device.py [--updates 200] [--repetitions 2000]

Needs torch, numpy, safetensors and h5py, and neither a simulator nor the package's installation. Without a GPU it says
so and checks the CPU alone.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from plain_sac import Batch, PlainLearner, in_double
from torch import Tensor

from usbpo.agent import sac
from usbpo.agent.choice import learner_for
from usbpo.agent.learner import Learner
from usbpo.agent.replay import Replay
from usbpo.agent.sac import Agent
from usbpo.numerics import device as devices
from usbpo.stages.policy import take_updates

SIZES = {"Hopper": (11, 3), "Humanoid": (45, 17)}
ROWS, REAL, HIDDEN = 256, 12, 256
REPLAY_ROWS, REAL_ROWS = 400_000, 20_000
TARGET_MS = 0.15
CONSTANTS: dict[str, Any] = {"learning_rate": 3e-4, "discount": 0.99, "polyak": 0.005, "target_entropy": -1.0}
CPU = torch.device("cpu")


class Eager(Learner):
    """The same update without a graph."""

    def update(self) -> None:
        """One update, kernel by kernel."""
        self._one_update()
        self.updates += 1


def agent_of(obs_dim: int, act_dim: int) -> Agent:
    """An untrained agent."""
    return sac.new_agent(sac.Architecture(obs_dim, act_dim, 2, HIDDEN), torch.Generator().manual_seed(0))


def batches(obs_dim: int, act_dim: int, updates: int) -> list[tuple[Tensor, Tensor]]:
    """Packed batches and noise in double precision on the CPU."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(updates):
        packed = torch.randn(2, ROWS, obs_dim + act_dim + 1, generator=generator, dtype=torch.float64)
        packed[0, :, obs_dim:-1].tanh_()
        packed[1, :, -1] = (torch.rand(ROWS, generator=generator) > 0.1).double()
        made.append((packed, torch.randn(act_dim, 2, ROWS, generator=generator, dtype=torch.float64)))
    return made


def weights_after(learner: Learner, given: list[tuple[Tensor, Tensor]]) -> Tensor:
    """All weights of actor, critics and targets in one vector, after an update on each batch."""
    for packed, noise in given:
        learner.batch.copy_(packed)
        learner.noise.copy_(noise)
        learner.update()
    return weights_of(learner.agent())


def weights_of(agent: Agent) -> Tensor:
    """All weights of actor, critics and targets in one vector."""
    tensors = [t for group in ("actor", "critics", "targets", "temperature") for t in getattr(agent, group).values()]
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def strayed(found: Tensor, reference: Tensor, start: Tensor) -> float:
    """Distance of two results relative to the way that the reference has gone."""
    return float((found - reference).norm() / (reference - start).norm())


def check(obs_dim: int, act_dim: int, updates: int, place: torch.device) -> dict[str, float]:
    """How far each kind of update strays from the CPU's in double precision."""
    agent, given = agent_of(obs_dim, act_dim), batches(obs_dim, act_dim, updates)
    start = weights_of(agent)
    keys: dict[str, Any] = {"rows": ROWS, "real": REAL, **CONSTANTS}
    reference = weights_after(Learner(in_double(agent), **keys), given)
    learners = {
        "CPU, float32": Learner(agent, **keys),
        "CPU, float32, batched as on a GPU": Learner(agent, batched=True, **keys),
    }
    if place.type == "cuda":
        learners |= {
            "GPU, float64, captured": Learner(in_double(agent), device=place, **keys),
            "GPU, float32, eager": Eager(agent, device=place, **keys),
            "GPU, float32, captured": Learner(agent, device=place, **keys),
            "GPU, float32, fused": learner_for(agent, device=place, **keys),
            "GPU, float32, fused, again": learner_for(agent, device=place, **keys),
        }
    found = {name: weights_after(learner, given) for name, learner in learners.items()}
    if place.type == "cuda":
        same = torch.equal(found["GPU, float32, fused"], found["GPU, float32, fused, again"])
        kind = type(learners["GPU, float32, fused"]).__name__
        print(f"the same bytes twice by a {kind}: {'yes' if same else 'NO'}")
    return {name: strayed(weights, reference, start) for name, weights in found.items()}


def milliseconds(function: Callable[[], object], calls: int, place: torch.device) -> float:
    """Milliseconds of a call, the queue of kernels empty before and after."""
    synchronise(place)
    started = time.perf_counter()
    for _ in range(calls):
        function()
    synchronise(place)
    return (time.perf_counter() - started) / calls * 1e3


def synchronise(place: torch.device) -> None:
    """Wait for a GPU."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def times(obs_dim: int, act_dim: int, calls: int, place: torch.device, turns: int = 7) -> dict[str, float]:
    """Median milliseconds of an update, taken in turns: fused, captured, eager, with the draws of a stage."""
    agent = agent_of(obs_dim, act_dim)
    keys: dict[str, Any] = {"rows": ROWS, "real": REAL, "device": place, **CONSTANTS}
    captured, eager = Learner(agent, **keys), Eager(agent, **keys)
    fused, staged = (learner_for(agent, **keys) for _ in range(2))
    packed = torch.randn(2, REPLAY_ROWS, obs_dim + act_dim + 1, device=place)
    replay, generator = Replay(packed, REPLAY_ROWS - REAL_ROWS, REAL_ROWS), torch.Generator(place).manual_seed(0)
    for learner in (captured, eager, fused):
        learner.batch.normal_()
        learner.noise.normal_()
    functions: dict[str, tuple[Callable[[], object], int]] = {
        "fused": (fused.update, calls),
        "captured": (captured.update, calls),
        "eager": (eager.update, max(calls // 10, 1)),
        "as a stage, with its draws": (lambda: take_updates(staged, replay, calls, generator), 1),
    }
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, (function, count) in functions.items():
            taken = milliseconds(function, count, place)
            found[name].append(taken)
    found["as a stage, with its draws"] = [taken / calls for taken in found["as a stage, with its draws"]]
    return {name: statistics.median(taken[1:]) for name, taken in found.items()}


def forked_child_has_cuda() -> bool:
    """Whether a child of a process that has imported everything and taken a step on the CPU can use the GPU.

    The warm worker forks such children (usbpo/worker/stage_process.py). To be asked before this process touches CUDA.
    """
    agent = sac.new_agent(sac.Architecture(2, 1, 1, 4), torch.Generator().manual_seed(0))
    Learner(agent, rows=4, real=2, **CONSTANTS).update()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            place = devices.choose("cuda")
            learner = Learner(agent, rows=4, real=2, device=place, **CONSTANTS)
            learner.update()
            status = 0 if learner.seen()["temperature"].item() == 1.0 else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def plain_check(obs_dim: int, act_dim: int) -> float:
    """How far the double-precision reference itself strays from autograd, over ten updates."""
    agent, given = in_double(agent_of(obs_dim, act_dim)), batches(obs_dim, act_dim, 10)
    plain = PlainLearner(agent, **CONSTANTS)
    for packed, noise in given:
        taken, following = packed
        columns = taken[:, :obs_dim], taken[:, obs_dim:-1], taken[:, -1], following[:, :obs_dim], 1 - following[:, -1]
        plain.update(Batch(*columns, real=REAL), noise.permute(1, 2, 0).flip(0))
    ours = weights_after(Learner(agent, rows=ROWS, real=REAL, **CONSTANTS), given)
    return strayed(ours, weights_of(plain.agent()), weights_of(agent))


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200, help="updates after which results are compared")
    parser.add_argument("--repetitions", type=int, default=2000, help="updates of one timing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        print(f"a forked child can use the GPU: {'yes' if forked_child_has_cuda() else 'NO'}")
    place = devices.choose("auto")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(place) if has_gpu else 'no GPU here'}")
    for task, sizes in SIZES.items():
        print(f"\n{task}: {sizes[0]} observations, {sizes[1]} actions, {ROWS} rows, 2 × {HIDDEN} units")
        print(f"ours from autograd, float64, 10 updates: {plain_check(*sizes):.1e} of the way gone")
        for name, error in check(*sizes, given.updates, place).items():
            print(f"{name:36} strays {error:8.1e} of the way after {given.updates} updates")
        calls = given.repetitions if has_gpu else max(given.repetitions // 50, 1)
        for name, taken in times(*sizes, calls, place).items():
            verdict = "" if not has_gpu or name == "eager" else "  met" if taken <= TARGET_MS else "  NOT met"
            print(f"{name:36} {taken:8.3f} ms an update{verdict and f' (target {TARGET_MS} ms{verdict})'}")


if __name__ == "__main__":
    main()
