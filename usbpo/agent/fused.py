"""The policy's update on a GPU in seven kernels: what `usbpo.agent.learner` does in about a hundred."""

from typing import Any

import torch
from torch import Tensor

from usbpo.agent import kernels, step_kernels
from usbpo.agent.learner import Learner
from usbpo.agent.networks import stored_shapes
from usbpo.agent.sac import Agent, Architecture
from usbpo.numerics.launching import PRECISION, launch, network_places, padded

ROWS, COLUMNS, TILE = 16, 32, (32, 64)
"""Rows of a program, columns that go into a product at once, and a program's tile of a weight matrix."""
WARPS = 4
SIZES = (64, 128, 256)
"""Hidden units that a program can hold for its rows: powers of two."""


def fits(agent: Agent, rows: int) -> bool:
    """Whether the kernels can update this agent with batches of so many rows.

    Actor and temperature share the bias corrections of Adam, so they must have taken the same number of steps.
    """
    moments = agent.moments
    return (
        agent.actor["weight.0"].dtype == torch.float32
        and agent.architecture.hidden_size in SIZES
        and rows % COLUMNS == 0
        and bool(moments["actor"]["step"] == moments["temperature"]["step"])
    )


class FusedLearner(Learner):
    """A `Learner` by fused kernels, in float32, of agents and batches that `fits` accepts.

    The `batch` keeps the actions that were taken.
    """

    def _changes(self) -> list[Tensor]:
        return [*super()._changes(), self._powers]

    def _make_buffers(self) -> None:
        """What the kernels hand to each other, and their constants."""
        sizes, rows = self.architecture, self.rows
        obs_dim, act_dim, hidden, layers = sizes.obs_dim, sizes.act_dim, sizes.hidden_size, sizes.hidden_layers
        self.batch = self._zeros(2, rows, obs_dim + act_dim + 1)
        self.noise = self._zeros(act_dim, 2, rows)
        self._unclipped_log_std, self._deviation, self._actions = (self._zeros(act_dim, 2, rows) for _ in range(3))
        self._log_density, self._alpha, self._entropy = self._zeros(2, rows), self._zeros(()), self._zeros(())
        self._chosen_inputs = self._zeros(rows, obs_dim + act_dim)
        self._policy_hidden, self._policy_flows = (
            self._zeros(layers, 2 * rows, hidden),
            self._zeros(layers, rows, hidden),
        )
        self._critic_hidden, self._critic_flows = (self._zeros(layers, n, rows, hidden) for n in (4, 2))
        self._all_values = self._zeros(4, rows)
        """Of both critics and both targets"""
        self._values = self._all_values[:2]
        self._policy_values, self._error, self._of_values = (self._zeros(2, rows) for _ in range(3))
        self._action_gradients, self._head_gradient = (self._zeros(2, act_dim, rows) for _ in range(2))
        steps = torch.stack([adam.steps[0] for adam in (self._critic_adam, self._actor_adam) for _ in range(2)])
        self._betas = torch.tensor([0.9, 0.999] * 2, dtype=torch.float64, device=self.device)
        self._powers = self._betas**steps
        """β₁ and β₂ to the number of steps: of the critics, and of actor and temperature"""
        self._of_critics, self._of_actor = (Launch(sizes, rows, name) for name in ("critics", "actor"))

    def _one_update(self) -> None:
        by_row = self.rows // ROWS
        critic_adam, actor_adam = self._critic_adam, self._actor_adam
        (critics,), (actor, log_alpha) = critic_adam.buffers, actor_adam.buffers
        batch, alpha, log_density = self.batch, self._alpha, self._log_density
        policy = self._unclipped_log_std, self._deviation, self._actions
        of_critics, of_actor = self._of_critics, self._of_actor

        counters = critic_adam.steps[0], *actor_adam.steps, self._powers, self._betas
        of_actor(
            kernels.act, (2 * by_row,),
            batch, self.noise, actor, log_alpha, *counters,
            self._policy_hidden, *policy, log_density, alpha, self._chosen_inputs,
        )  # fmt: skip
        of_critics(
            kernels.evaluate, (by_row, 4),
            batch, critics, self._targets, self._critic_hidden, self._all_values,
        )  # fmt: skip
        of_critics(
            kernels.regress, (by_row, 2),
            batch, critics, self._critic_hidden, self._all_values, log_density, alpha,
            self._error, self._of_values, self._critic_flows, DISCOUNT=self.discount,
        )  # fmt: skip
        of_critics(
            step_kernels.step_critics, (of_critics.tiles, 2),
            batch, self._critic_hidden, self._critic_flows, self._of_values,
            critics, self._targets, critic_adam.exp_avg[0], critic_adam.exp_avg_sq[0], self._powers[:2],
            RATE=critic_adam.learning_rate, POLYAK=self.polyak,
        )  # fmt: skip
        of_critics(
            kernels.differentiate, (by_row, 2),
            self._chosen_inputs, critics, self._critic_hidden, self._critic_flows,
            self._policy_values, self._action_gradients,
        )  # fmt: skip
        of_actor(
            kernels.improve, (by_row,),
            actor, self._policy_hidden, *policy, alpha, self._policy_values, self._action_gradients,
            self._head_gradient, self._policy_flows,
        )  # fmt: skip
        of_actor(
            step_kernels.step_actor, (of_actor.tiles + 1,),
            batch, self._policy_hidden, self._policy_flows, self._head_gradient, log_density, self._entropy,
            actor, actor_adam.exp_avg[0], actor_adam.exp_avg_sq[0],
            log_alpha, actor_adam.exp_avg[1], actor_adam.exp_avg_sq[1], self._powers[2:],
            RATE=actor_adam.learning_rate, TARGET_ENTROPY=self.target_entropy,
        )  # fmt: skip


class Launch:
    """Launches a kernel of one kind of network with those of the constants that it takes.

    Attributes:
        tiles: programs that hold the weights of one network.
    """

    def __init__(self, sizes: Architecture, rows: int, name: str) -> None:
        stored = stored_shapes(sizes)[0 if name == "actor" else 1]
        last, (tile_in, tile_out) = sizes.hidden_layers, TILE
        fan_in = stored["weight.0"][0]
        across = sizes.hidden_size // tile_out
        first, other = -(-fan_in // tile_in) * across, -(-sizes.hidden_size // tile_in) * across
        self.tiles = first + (last - 1) * other + across
        self.constants = {
            **network_places(stored, last),
            "OBS": sizes.obs_dim, "OBSP": padded(sizes.obs_dim), "A": sizes.act_dim, "AP": padded(sizes.act_dim),
            "IN": fan_in, "HEADS": 2 * sizes.act_dim, "HP": padded(2 * sizes.act_dim),
            "WIDTH": sizes.obs_dim + sizes.act_dim + 1, "R": rows, "L": last, "H": sizes.hidden_size,
            "M": ROWS, "K": COLUMNS, "K0": min(COLUMNS, padded(fan_in)), "TI": tile_in, "TO": tile_out,
            "T0": first, "T1": other, "PRECISION": PRECISION,
        }  # fmt: skip

    def __call__(self, kernel: Any, grid: tuple[int, ...], *tensors: Tensor, **own: float) -> None:
        """Launch `kernel`.

        Args:
            grid: how many programs.
            own: constants of this kernel alone.
        """
        launch(kernel, grid, WARPS, self.constants | own, *tensors)
