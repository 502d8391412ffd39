"""Soft actor-critic: the agent's state, its policy and its values (softlearning's SAC, as used by MBPO)."""

import itertools
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from usbpo.artifacts import checkpoints
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError
from usbpo.numerics.optimizer import Params, copied, new_moments, prefixed, under

KIND = "policy"
LOG_STD_BOUNDS = (-20.0, 2.0)
"""Clip of the policy's log standard deviation (softlearning)."""

TRAINED = ("actor", "critics", "temperature")


@dataclass(frozen=True)
class Architecture:
    """Sizes of actor and critics: `hidden_layers` × `hidden_size` ReLU units."""

    obs_dim: int
    act_dim: int
    hidden_layers: int
    hidden_size: int

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of all tensors: actor, the two stacked critics, temperature."""
        hidden = [self.hidden_size] * self.hidden_layers
        actor = [self.obs_dim, *hidden, 2 * self.act_dim]
        critic = [self.obs_dim + self.act_dim, *hidden, 1]
        return {
            "actor": _layer_shapes(actor, ()),
            "critics": _layer_shapes(critic, (2,)),
            "temperature": {"log": ()},
        }


def _layer_shapes(sizes: list[int], stack: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        shapes[f"weight.{layer}"] = (*stack, fan_in, fan_out)
        shapes[f"bias.{layer}"] = (*stack, 1, fan_out)
    return shapes


@dataclass
class Agent:
    """A policy and all that its training needs to go on."""

    architecture: Architecture
    actor: Params
    critics: Params
    """Both critics, stacked: (2, …)"""
    targets: Params
    temperature: Params
    """`log` (): logarithm of the entropy's weight α"""
    moments: dict[str, Params]
    """Adam's moments of actor, critics and temperature"""
    updates: int
    """Updates taken since the beginning of the run"""

    def save(self, path: Path, header: Header) -> str:
        """Write the whole state.

        Returns:
            The artifact's digest.

        Raises:
            UsbpoError: it cannot be written, or holds what is not finite.
        """
        tensors = {"updates": torch.tensor(self.updates)}
        for name in (*TRAINED, "targets"):
            tensors |= prefixed(name, getattr(self, name))
        for name in TRAINED:
            tensors |= prefixed(f"adam.{name}", self.moments[name])
        return checkpoints.write(path, header, tensors, "lower policy.learning_rate")


def load(path: Path) -> tuple[Header, Agent]:
    """Read a policy checkpoint.

    Raises:
        UsbpoError: it is missing, damaged, or its tensors do not have the shapes of its architecture.
    """
    header, tensors = checkpoints.read(path, KIND)
    try:
        first, layers = tensors["actor/weight.0"], sum(name.startswith("actor/weight.") for name in tensors)
        act_dim = tensors[f"actor/weight.{layers - 1}"].shape[1] // 2
        architecture = Architecture(first.shape[0], act_dim, layers - 1, first.shape[1])
    except (KeyError, IndexError) as error:
        raise UsbpoError(f"{path}: it holds no actor; name a policy checkpoint.") from error
    shapes = architecture.shapes()
    expected: dict[str, tuple[int, ...]] = {"updates": ()}
    for group in TRAINED:
        for name, shape in shapes[group].items():
            for place in (group, f"adam.{group}"):
                names = [name] if place == group else [f"exp_avg.{name}", f"exp_avg_sq.{name}"]
                expected |= {f"{place}/{n}": shape for n in names}
        expected[f"adam.{group}/step"] = ()
    expected |= {f"targets/{name}": shape for name, shape in shapes["critics"].items()}
    checkpoints.check_shapes(path, tensors, expected, {"updates": None})
    agent = Agent(
        architecture,
        **{name: under(name, tensors) for name in (*TRAINED, "targets")},
        moments={name: under(f"adam.{name}", tensors) for name in TRAINED},
        updates=int(tensors["updates"]),
    )
    return header, agent


def new_agent(architecture: Architecture, generator: torch.Generator) -> Agent:
    """An untrained agent: Glorot-uniform weights, zero biases (Keras's defaults), α = 1."""
    made: dict[str, Params] = {}
    for group, shapes in architecture.shapes().items():
        made[group] = {}
        for name, shape in shapes.items():
            tensor = torch.zeros(shape)
            if name.startswith("weight"):
                limit = (6.0 / (shape[-2] + shape[-1])) ** 0.5
                tensor.uniform_(-limit, limit, generator=generator)
            made[group][name] = tensor
    return Agent(
        architecture=architecture,
        **made,
        targets=copied(made["critics"]),
        moments={name: new_moments(params) for name, params in made.items()},
        updates=0,
    )


def policy_outputs(actor: Params, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation before the tanh, each (rows, act_dim)."""
    hidden = observations
    layers = len(actor) // 2
    for layer in range(layers):
        hidden = torch.addmm(actor[f"bias.{layer}"], hidden, actor[f"weight.{layer}"])
        if layer < layers - 1:
            hidden = relu(hidden)
    mean, log_std = hidden.chunk(2, dim=-1)
    return mean, log_std.clamp(*LOG_STD_BOUNDS)


def sample_action(actor: Params, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (rows, act_dim) in [−1, 1] of the tanh-Gaussian policy, and their log-densities (rows,).

    Args:
        noise: standard normal, (rows, act_dim).
    """
    mean, log_std = policy_outputs(actor, observations)
    before = mean + torch.exp(log_std) * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * log(2.0 * torch.pi)
    # log(1 − tanh²u) = 2 (log 2 − u − softplus(−2u)), without the loss of digits at large u.
    squash = 2.0 * (log(2.0) - before - softplus(-2.0 * before))
    return torch.tanh(before), (gaussian - squash).sum(dim=-1)


def mean_action(actor: Params, observations: Tensor) -> Tensor:
    """The deterministic policy's actions, (rows, act_dim)."""
    mean, _ = policy_outputs(actor, observations)
    return torch.tanh(mean)


def q_values(critics: Params, observations: Tensor, actions: Tensor) -> Tensor:
    """Both critics' values, (2, rows)."""
    inputs = torch.cat([observations, actions], dim=-1)
    hidden = inputs.expand(2, -1, -1)
    layers = len(critics) // 2
    for layer in range(layers):
        hidden = torch.baddbmm(critics[f"bias.{layer}"], hidden, critics[f"weight.{layer}"])
        if layer < layers - 1:
            hidden = relu(hidden)
    return hidden.squeeze(-1)
