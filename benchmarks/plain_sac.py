"""Soft actor-critic's update as it is thought of: three losses, autograd and torch's Adam.

The reference that usbpo/agent/learner.py is tested against (tests/agent/test_sac.py) and measured beside (speed.py,
device.py).
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from usbpo.agent.learner import Learner
from usbpo.agent.replay import pack
from usbpo.agent.sac import TRAINED, Agent, q_values, sample_action
from usbpo.numerics.optimizer import Adam, Params, copied, detached, trainable


@dataclass
class Batch:
    """Rows to learn from; the first `real` of them are real, the others from the model."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminations: Tensor
    """(rows,), 1.0 where the next state is terminal"""
    real: int

    def packed(self) -> Tensor:
        """As the learner takes it."""
        return pack(*(getattr(self, field.name) for field in fields(self) if field.name != "real"))


def in_double(agent: Agent) -> Agent:
    """The same agent in double precision."""

    def double(params: Params) -> Params:
        return {name: tensor if name == "step" else tensor.double() for name, tensor in params.items()}

    groups = {name: double(getattr(agent, name)) for name in (*TRAINED, "targets")}
    moments = {name: double(of_group) for name, of_group in agent.moments.items()}
    return Agent(agent.architecture, **groups, moments=moments, updates=agent.updates)


def update(learner: Learner, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
    """One update of the learner, with the arguments and results of `PlainLearner.update`."""
    assert batch.real == learner.real
    learner.batch.copy_(batch.packed())
    learner.noise.copy_(noise.permute(2, 0, 1).flip(1))
    learner.update()
    return learner.seen()


class PlainLearner:
    """The agent in training: its tensors, its three optimizers, and the constants of the losses."""

    def __init__(
        self, agent: Agent, *, learning_rate: float, discount: float, polyak: float, target_entropy: float
    ) -> None:
        self.architecture = agent.architecture
        self.actor, self.critics = trainable(agent.actor), trainable(agent.critics)
        self.temperature = trainable(agent.temperature)
        self.targets = copied(agent.targets)
        self.discount, self.polyak, self.target_entropy = discount, polyak, target_entropy
        self.optimizers = {name: Adam(getattr(self, name), learning_rate, agent.moments[name]) for name in TRAINED}
        self.updates = agent.updates

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """One update of everything.

        Args:
            noise: standard normal, (2, rows, act_dim), for the next and the present actions.
        """
        alpha = self.temperature["log"].detach().exp()

        with torch.no_grad():
            next_actions, next_log_density = sample_action(self.actor, batch.next_observations, noise[0])
            next_values = q_values(self.targets, batch.next_observations, next_actions).amin(dim=0)
            soft_values = next_values - alpha * next_log_density
            backup = batch.rewards + self.discount * (1.0 - batch.terminations) * soft_values
        values = q_values(self.critics, batch.observations, batch.actions)
        critic_loss = 0.5 * (values - backup).square().mean(dim=1).sum()
        self.optimizers["critics"].minimise(critic_loss)

        actions, log_density = sample_action(self.actor, batch.observations, noise[1])
        value = q_values(detached(self.critics), batch.observations, actions).amin(dim=0)
        actor_loss = (alpha * log_density - value).mean()
        self.optimizers["actor"].minimise(actor_loss)

        entropy = -log_density.detach().mean()
        self.optimizers["temperature"].minimise(self.temperature["log"] * (entropy - self.target_entropy))

        with torch.no_grad():
            torch._foreach_lerp_(list(self.targets.values()), list(self.critics.values()), self.polyak)
        self.updates += 1
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "q_real": values[:, : batch.real].detach().mean(),
            "q_model": values[:, batch.real :].detach().mean(),
            "entropy": entropy,
            "temperature": alpha,
        }

    def agent(self) -> Agent:
        """A snapshot of the agent."""
        return Agent(
            architecture=self.architecture,
            actor=copied(self.actor),
            critics=copied(self.critics),
            targets=copied(self.targets),
            temperature=copied(self.temperature),
            moments={name: copied(self.optimizers[name].moments()) for name in TRAINED},
            updates=self.updates,
        )
