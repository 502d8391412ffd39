"""Stage `policy`: soft actor-critic updates on real and model rows (algorithm, step 5)."""

from pathlib import Path

import torch
from torch import Tensor

from usbpo import sac, transitions
from usbpo.checkpoints import check_architecture
from usbpo.errors import UsbpoError
from usbpo.files import write_json
from usbpo.header import Header, parameters_of
from usbpo.sac import Batch, Learner
from usbpo.seeding import torch_generator
from usbpo.transitions import Transitions

Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Observations, actions, rewards, next observations, terminations."""
Line = dict[str, float | None]
"""The scalars of one update by name, with its number."""


class Replay:
    """Transitions as tensors, drawn from uniformly with replacement."""

    def __init__(self, batch: Transitions) -> None:
        self.columns: Columns = (
            torch.from_numpy(batch.observations),
            torch.from_numpy(batch.actions),
            torch.from_numpy(batch.rewards),
            torch.from_numpy(batch.next_observations),
            torch.from_numpy(batch.terminations).to(torch.float32),
        )

    def draw(self, rows: int, generator: torch.Generator) -> Columns:
        """`rows` rows."""
        index = torch.randint(len(self.columns[2]), (rows,), generator=generator)
        observations, actions, rewards, next_observations, terminations = (c[index] for c in self.columns)
        return observations, actions, rewards, next_observations, terminations


def draw_batch(real: Replay, model: Replay | None, rows: int, real_rows: int, generator: torch.Generator) -> Batch:
    """A batch of real rows followed by model rows; all are real where there is no model."""
    if model is None or real_rows == rows:
        return Batch(*real.draw(rows, generator), real=rows)
    mixed = zip(real.draw(real_rows, generator), model.draw(rows - real_rows, generator), strict=True)
    observations, actions, rewards, next_observations, terminations = (torch.cat(pair) for pair in mixed)
    return Batch(observations, actions, rewards, next_observations, terminations, real=real_rows)


def learn(
    learner: Learner,
    real: Replay,
    model: Replay | None,
    updates: int,
    generator: torch.Generator,
    *,
    batch_size: int,
    real_ratio: float,
    report_every: int,
) -> list[Line]:
    """Take soft actor-critic updates.

    Returns:
        The scalars of the first update, of every `report_every`-th after it, and of the last.

    Raises:
        UsbpoError: a loss is not finite.
    """
    began, real_rows, history = learner.updates, int(batch_size * real_ratio), []
    for update in range(updates):
        batch = draw_batch(real, model, batch_size, real_rows, generator)
        noise = torch.randn(2, batch_size, learner.architecture.act_dim, generator=generator)
        seen = learner.update(batch, noise)
        if update % report_every == 0 or update == updates - 1:
            history.append({"update": began + update, **_described(seen)})
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

    Raises:
        UsbpoError: an input is missing, damaged, of another run or architecture, or training diverges.
    """
    parameters = parameters_of(locals())
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
        rollout_header, made = transitions.read_rollouts(rollouts, retained_updates)
        header.belongs(rollouts[-1], rollout_header)
        model = Replay(made)

    learner = Learner(
        agent, learning_rate=learning_rate, discount=discount, polyak=polyak, target_entropy=target_entropy
    )
    history = learn(
        learner,
        Replay(real),
        model,
        updates,
        torch_generator(seed, cycle, "policy"),
        batch_size=batch_size,
        real_ratio=real_ratio,
        report_every=report_every,
    )
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
