"""Phase 1 on a GPU, two kernels a minibatch: what `usbpo.model.likelihood.LikelihoodStep` does in about sixty."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from usbpo.model import kernels as model_kernels
from usbpo.model.ensemble import BOUNDS
from usbpo.numerics.device import captured
from usbpo.numerics.launching import PRECISION, launch, network_places, padded
from usbpo.numerics.optimizer import Params, flat_size, flat_views

ROWS, COLUMNS, TILE = 16, 32, (32, 64)
"""Rows of a program, columns that go into a product at once, and a program's tile of a weight matrix."""
WARPS = {"differentiate": 8, "learn": 4}
LARGEST = 256
"""Hidden units, and outputs, that a program can hold."""


def fits(params: Params) -> bool:
    """Whether the kernels can train an ensemble with these parameters."""
    weight, outputs = params["weight.0"], params["max_log_variance"]
    return weight.dtype == torch.float32 and weight.shape[2] <= LARGEST and 2 * len(outputs) <= LARGEST


class FusedFit:
    """The ensemble in training by fused kernels, in float32; ask `fits` first.

    Args:
        params: of all members, to go on from.
        moments: those of Adam.
        inputs: all rows, standardised, (all rows, obs_dim + act_dim).
        targets: (reward, s' − s) of all rows, (all rows, obs_dim + 1).
        learning_rate: of Adam.
        weight_decay: factor of the L2 penalty of each layer.
        log_variance_penalty: weight of the bounds' penalty.

    Attributes:
        params: what is trained, views of flat buffers.
    """

    def __init__(
        self,
        params: Params,
        moments: Params,
        inputs: Tensor,
        targets: Tensor,
        *,
        learning_rate: float,
        weight_decay: Sequence[float],
        log_variance_penalty: float,
    ) -> None:
        self.inputs, self.targets = inputs.contiguous(), targets.contiguous()
        self.rate, self.penalty, self.device = learning_rate, log_variance_penalty, inputs.device
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in params.items() if name not in BOUNDS}
        members = len(params["weight.0"])

        def flat(values: Params, prefix: str = "") -> tuple[Tensor, Tensor, Params]:
            """Buffers of networks and bounds, filled, and their views by name."""
            networks = torch.zeros(members, flat_size(shapes), device=inputs.device)
            bounds = torch.zeros(2, len(params[BOUNDS[0]]), device=inputs.device)
            views = flat_views(networks, shapes) | dict(zip(BOUNDS, bounds, strict=True))
            for name, view in views.items():
                view.copy_(values[prefix + name])
            return networks, bounds, views

        networks, bounds, self.params = flat(params)
        first, first_bounds, self._first = flat(moments, "exp_avg.")
        second, second_bounds, self._second = flat(moments, "exp_avg_sq.")
        self.step = moments["step"].clone().float()
        self.betas = torch.tensor([0.9, 0.999], dtype=torch.float64, device=inputs.device)
        self.powers = self.betas**self.step
        self.decays = torch.tensor(list(weight_decay), device=inputs.device)
        self.of_networks, self.of_bounds = (networks, first, second), (bounds, first_bounds, second_bounds)
        self.shapes = shapes
        self._minibatch: _Minibatch | None = None

    def take(self, rows: Tensor) -> None:
        """One Adam step on the given rows, numbers (members, rows)."""
        self.prepare(rows.shape[1]).take(rows)

    def prepare(self, rows: int) -> "_Minibatch":
        """Have the kernels compiled for minibatches of up to so many rows."""
        if self._minibatch is None or self._minibatch.places < rows:
            self._minibatch = _Minibatch(self, rows)
        return self._minibatch

    def moments(self) -> Params:
        """`step` () and, for each parameter, `exp_avg.NAME` and `exp_avg_sq.NAME`."""
        found = {"step": self.step}
        for name in self.params:
            found[f"exp_avg.{name}"], found[f"exp_avg_sq.{name}"] = self._first[name], self._second[name]
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def changes(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [*self.of_networks, *self.of_bounds, self.step, self.powers]


class _Minibatch:
    """The buffers of minibatches of up to so many rows, and what launches their kernels."""

    def __init__(self, fit: FusedFit, rows: int) -> None:
        self.fit, self.places, self.filled = fit, -(-rows // COLUMNS) * COLUMNS, 0
        members, inputs, hidden = fit.params["weight.0"].shape
        layers, self.width = len(fit.decays) - 1, fit.targets.shape[1]
        tile_in, tile_out = TILE
        self.by_row, across, down = self.places // ROWS, -(-hidden // tile_out), -(-hidden // tile_in)
        width = self.width
        first, other = -(-inputs // tile_in) * across, down * across
        self.tiles = first + (layers - 1) * other + down
        self.constants = {
            **network_places(fit.shapes, layers), "MEMBERS": members,
            "IN": inputs, "D": width, "DP": padded(width), "D2P": padded(2 * width), "R": self.places,
            "PARTS": members * self.by_row, "PARTSP": padded(members * self.by_row),
            "ACROSS": across, "T0": first, "T1": other, "TL": down,
            "L": layers, "H": hidden, "HP": padded(hidden), "M": ROWS, "K": COLUMNS,
            "K0": min(COLUMNS, padded(inputs)), "TI": tile_in, "TO": tile_out, "PRECISION": PRECISION,
        }  # fmt: skip

        def buffer(*shape: int) -> Tensor:
            return torch.zeros(shape, device=fit.device)

        self.before, self.after, self.deltas = (buffer(layers, members, self.places, hidden) for _ in range(3))
        self.of_outputs = buffer(members, self.places, 2 * width)
        self.of_bounds = buffer(members * self.by_row, 2, padded(width))
        self.rows = torch.full((members, self.places), -1, dtype=torch.int64, device=fit.device)
        self.share = buffer()
        self.step = captured(self.once, fit.device, fit.changes())

    def take(self, rows: Tensor) -> None:
        """Learn from these rows."""
        size = rows.shape[1]
        if size != self.filled:
            self.rows[:, size:] = -1
            self.share.fill_(1.0 / (size * self.width))
            self.filled = size
        self.rows[:, :size].copy_(rows)
        self.step()

    def once(self) -> None:
        """Launch the kernels."""
        fit, (networks, bounds) = self.fit, (self.fit.of_networks, self.fit.of_bounds)
        self._launch(
            model_kernels.differentiate, (self.by_row, len(networks[0])),
            fit.inputs, fit.targets, self.rows, self.share, networks[0], bounds[0], fit.step, fit.powers, fit.betas,
            self.before, self.after, self.deltas, self.of_outputs, self.of_bounds,
        )  # fmt: skip
        self._launch(
            model_kernels.learn, (self.tiles + 1, len(networks[0])),
            fit.inputs, self.rows, self.after, self.deltas, self.of_outputs, self.of_bounds,
            *networks, *bounds, fit.powers, fit.decays, fit.penalty, RATE=fit.rate,
        )  # fmt: skip

    def _launch(self, kernel: Any, grid: tuple[int, int], *given: Tensor | float, **own: float) -> None:
        launch(kernel, grid, WARPS[kernel.__name__], self.constants | own, *given)
