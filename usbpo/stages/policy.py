"""Stage `policy`: soft actor-critic updates on real and model rows (algorithm, step 5)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from usbpo.agent import sac
from usbpo.agent.choice import learner_for
from usbpo.agent.learner import Learner
from usbpo.agent.replay import Replay, replay_of
from usbpo.artifacts import transitions
from usbpo.artifacts.checkpoints import check_architecture
from usbpo.artifacts.files import write_json
from usbpo.artifacts.header import Header, parameters_of
from usbpo.errors import UsbpoError
from usbpo.numerics import device as devices
from usbpo.numerics.seeding import torch_generator

BLOCK = 100
"""Updates whose row numbers and noise are drawn at once; another number is another stream of random numbers."""
Line = dict[str, float | None]
"""The scalars of one update by name, with its number."""


def take_updates(
    learner: Learner,
    replay: Replay,
    updates: int,
    generator: torch.Generator,
    watch: Callable[[int], None] = lambda update: None,
) -> None:
    """Soft actor-critic updates on fresh batches.

    Args:
        generator: on the learner's device.
        watch: called after each update with its number from 0.
    """
    for start in range(0, updates, BLOCK):
        count = min(BLOCK, updates - start)
        index = replay.draw(count, learner.rows, learner.real, generator)
        shape = (count, *learner.noise.shape)
        noise = torch.randn(shape, generator=generator, device=learner.device, dtype=learner.noise.dtype)
        for offset in range(count):
            replay.gather(index[offset], learner.batch)
            learner.noise.copy_(noise[offset])
            learner.update()
            watch(start + offset)


def learn(learner: Learner, replay: Replay, updates: int, generator: torch.Generator, report_every: int) -> list[Line]:
    """Take soft actor-critic updates.

    Args:
        generator: on the learner's device.

    Returns:
        The scalars of the first update, of every `report_every`-th after it, and of the last.

    Raises:
        UsbpoError: a loss is not finite.
    """
    began, history = learner.updates, list[Line]()

    def report(update: int) -> None:
        if update % report_every == 0 or update == updates - 1:
            history.append({"update": began + update, **_described(learner.seen())})

    take_updates(learner, replay, updates, generator, report)
    return history


def policy(
    *,
    data: list[Path],
    previous_policy: Path,
    output: Path,
    metrics: Path,
    updates: int,
    seed: int,
    cycle: int,
    hidden_layers: int,
    hidden_size: int,
    learning_rate: float,
    discount: float,
    polyak: float,
    target_entropy: float,
    batch_size: int,
    real_ratio: float,
    report_every: int,
    rollouts: list[Path] | None = None,
    retained_updates: int | None = None,
    device: str = "auto",
) -> None:
    """Update the policy.

    Args:
        data: blocks and shards of D_env, oldest first.
        rollouts: D_model; without it every row is real.
        previous_policy: policy checkpoint to go on from.
        output: policy checkpoint to write.
        metrics: JSON to write: losses, mean Q, entropy and temperature at the start, along the way and at the end.
        updates: soft actor-critic updates to take.
        seed: run seed.
        cycle: number of the cycle.
        retained_updates: of how many model updates the rollouts are D_model, the last ones; without it all.
        device: where to compute.

    Raises:
        UsbpoError: an input is missing, damaged, of another run or architecture, there is no such device, or training
            diverges.
    """
    parameters = parameters_of(locals())
    place = devices.choose(device)
    data_header, real = transitions.read_all(data)
    header = Header(sac.KIND, data_header.task, seed, cycle, parameters)
    header.belongs(data[-1], data_header)
    policy_header, agent = sac.load(previous_policy)
    header.belongs(previous_policy, policy_header)
    obs_dim, act_dim = real.observations.shape[1], real.actions.shape[1]
    expected = sac.Architecture(obs_dim, act_dim, hidden_layers, hidden_size)
    check_architecture(previous_policy, "policy", agent.architecture, expected)
    model = None
    if rollouts:
        rollout_header, model = transitions.read_rollouts(rollouts, retained_updates)
        header.belongs(rollouts[-1], rollout_header)

    replay = replay_of(real, model, place)
    real_rows = batch_size if model is None else int(batch_size * real_ratio)
    del real, model  # as large as the replay
    learner = learner_for(
        agent,
        rows=batch_size,
        real=real_rows,
        learning_rate=learning_rate,
        discount=discount,
        polyak=polyak,
        target_entropy=target_entropy,
        device=place,
    )
    history = learn(learner, replay, updates, torch_generator(seed, cycle, "policy", place), report_every)
    learner.agent().save(output, header)
    write_metrics(metrics, header, updates, target_entropy, history)


def write_metrics(path: Path, header: Header, updates: int, target_entropy: float, history: list[Line]) -> None:
    """Write the metrics of a cycle's policy updates, and print how they ended."""
    write_json(path, {**header.identity, "updates": updates, "target_entropy": target_entropy, "history": history})
    last = history[-1]
    print(f"{updates} updates, entropy {last['entropy']:.3g}, temperature {last['temperature']:.3g}")


def _described(seen: dict[str, Tensor]) -> dict[str, float | None]:
    """The scalars of an update; null where there are no such rows.

    Raises:
        UsbpoError: a loss is not finite.
    """
    numbers = {name: float(value) for name, value in seen.items()}
    for name in ("critic_loss", "actor_loss"):
        if not abs(numbers[name]) < float("inf"):
            raise UsbpoError(f"the policy update diverged: {name} is not finite; lower policy.learning_rate.")
    return {name: value if value == value else None for name, value in numbers.items()}
