"""Stage `policy`: soft actor-critic updates on real and model rows (algorithm, step 5)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from usbpo.agent import sac
from usbpo.agent.choice import learner_for
from usbpo.agent.learner import Learner
from usbpo.agent.replay import Replay, replay_of
from usbpo.artifacts import lineage
from usbpo.artifacts import metrics as records
from usbpo.artifacts.checkpoints import check_architecture
from usbpo.artifacts.header import Header, parameters_of
from usbpo.errors import UsbpoError, saying
from usbpo.numerics import device as devices
from usbpo.numerics.seeding import torch_generator

BLOCK = 100
"""Updates whose row numbers and noise are drawn at once; another number is another stream of random numbers."""
Line = dict[str, float | None]
"""The scalars of one update by name, with its number."""
DIVERGED = 100
"""How many times the largest value that rewards and entropy allow a critic's mean value may be: it is far from any
estimate, and still finite."""


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
        UsbpoError: a loss is not finite, or a value is far from what any policy can reach.
    """
    began, history = learner.updates, list[Line]()
    largest_reward = replay.largest_reward()

    def report(update: int) -> None:
        if update % report_every == 0 or update == updates - 1:
            line = _described(learner.seen())
            _check_values(line, largest_reward, learner.discount)
            history.append({"update": began + update, **line})

    take_updates(learner, replay, updates, generator, report)
    return history


def _check_values(line: Line, largest_reward: float, discount: float) -> None:
    """Check that the critics' values are such as returns can be: |Q| ≤ (max |r| + α |H|) / (1 − γ), and some room.

    Raises:
        UsbpoError: they are not.
    """
    entropy = abs(line["temperature"] or 0.0) * abs(line["entropy"] or 0.0)
    largest = (largest_reward + entropy) / max(1.0 - discount, 1e-3)
    for name in ("q_real", "q_model"):
        value = line[name]
        if value is not None and abs(value) > DIVERGED * largest:
            raise UsbpoError(
                f"the policy update diverged: {name}, the critics' mean value, is {value:.3g}, but the rewards allow "
                f"{largest:.3g} at most; lower policy.learning_rate."
            )


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
    model_every: int = 1,
    device: str = "auto",
) -> None:
    """Update the policy.

    Args:
        data: blocks and shards of D_env, oldest first.
        rollouts: D_model; without it, where there is no model, every row is real.
        previous_policy: policy checkpoint to go on from.
        output: policy checkpoint to write.
        metrics: JSON to write: losses, mean Q, entropy and temperature at the start, along the way and at the end.
        updates: soft actor-critic updates to take.
        seed: run seed.
        cycle: number of the cycle.
        retained_updates: of how many model updates the rollouts are D_model, the last ones; without it all.
        model_every: cycles from one model update to the next; 0 where there is no model.
        device: where to compute.

    Raises:
        UsbpoError: an input is missing, damaged, of another run, cycle or architecture, there is no such device, or
            training diverges.
    """
    parameters = parameters_of(locals())
    place = devices.choose(device)
    header, real = lineage.begin(sac.KIND, data, seed=seed, cycle=cycle, parameters=parameters)
    lineage.require_d_model(header, rollouts or [], cycle, model_every, retained_updates)
    policy_header, agent = sac.load(previous_policy)
    header.takes("previous_policy", previous_policy, policy_header, cycle - 1)
    obs_dim, act_dim = real.widths
    expected = sac.Architecture(obs_dim, act_dim, hidden_layers, hidden_size)
    check_architecture(previous_policy, "policy", agent.architecture, expected)
    model = None
    if rollouts:
        model = lineage.read_d_model(header, rollouts, cycle, model_every, retained_updates)

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
    with saying(f"cycle {cycle}"):
        history = learn(learner, replay, updates, torch_generator(seed, cycle, "policy", place), report_every)
    digest = learner.agent().save(output, header)
    write_metrics(metrics, header, digest, updates, target_entropy, history)


def write_metrics(
    path: Path, header: Header, made_with: str, updates: int, target_entropy: float, history: list[Line]
) -> None:
    """Write the metrics of a cycle's policy updates, and print how they ended.

    Args:
        header: of the policy.
        made_with: the policy's digest.
    """
    records.write(path, header, {"updates": updates, "target_entropy": target_entropy, "history": history}, made_with)
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
