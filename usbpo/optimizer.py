"""Adam over named tensors, with its moments as named tensors, so that checkpoints hold the whole optimizer."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Tensors by name: the weights of a network, or whatever else is trained."""


class Adam:
    """torch's fused Adam on a dictionary of tensors, which are updated in place.

    Args:
        params: what is trained.
        learning_rate: step size.
        moments: what `moments()` gave earlier; without any the optimizer is new.
    """

    def __init__(self, params: Params, learning_rate: float, moments: Mapping[str, Tensor] | None = None) -> None:
        self.params = params
        self._tensors = list(params.values())
        self._adam = torch.optim.Adam(self._tensors, lr=learning_rate, fused=True)
        moments = moments or new_moments(params)
        for name, tensor in params.items():
            self._adam.state[tensor] = {
                "step": moments["step"].clone(),
                "exp_avg": moments[f"exp_avg.{name}"].clone(),
                "exp_avg_sq": moments[f"exp_avg_sq.{name}"].clone(),
            }

    def minimise(self, loss: Tensor) -> None:
        """One step down the gradient of a scalar loss."""
        gradients = torch.autograd.grad(loss, self._tensors)
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.grad = gradient
        self._adam.step()

    def moments(self) -> Params:
        """`step` () and, for each parameter, `exp_avg.NAME` and `exp_avg_sq.NAME`, of the parameter's shape."""
        found = {"step": self._adam.state[self._tensors[0]]["step"]}
        for name, tensor in self.params.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}.{name}"] = self._adam.state[tensor][moment]
        return found


ALIGNMENT = 16
"""Numbers; where each tensor of a flat buffer begins, a multiple of a cache line."""


def flat_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Length of the flat buffer of tensors of these shapes."""
    return sum(_aligned(prod(shape)) for shape in shapes.values())


def flat_views(buffer: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Tensors of these shapes that lie one behind the other in a buffer (…, flat_size): (…, *shape) each.

    What stands before `flat_size` stacks: a buffer (2, flat_size) holds two networks, and a matrix of theirs is a
    batch of two matrices.
    """
    views, start = {}, 0
    for name, shape in shapes.items():
        views[name] = buffer[..., start : start + prod(shape)].view(*buffer.shape[:-1], *shape)
        start += _aligned(prod(shape))
    return views


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class FlatAdam:
    """torch's fused Adam on a few large buffers, whose gradients the caller fills in.

    Counts its steps on the device of the buffers and reads nothing from it, so that a CUDA graph can hold a step.

    Args:
        buffers: what is trained, in place.
        learning_rate: step size.
    """

    def __init__(self, buffers: Sequence[Tensor], learning_rate: float) -> None:
        self.buffers, self.learning_rate = list(buffers), learning_rate
        self.gradients, self.exp_avg, self.exp_avg_sq = (
            [torch.zeros_like(buffer) for buffer in self.buffers] for _ in range(3)
        )
        self.steps = [torch.zeros((), device=buffer.device) for buffer in self.buffers]

    def step(self) -> None:
        """One step down the gradients."""
        torch._foreach_add_(self.steps, 1.0)
        torch._fused_adam_(
            self.buffers, self.gradients, self.exp_avg, self.exp_avg_sq, [], self.steps,
            lr=self.learning_rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [*self.buffers, *self.exp_avg, *self.exp_avg_sq, *self.steps]


def new_moments(params: Mapping[str, Tensor]) -> Params:
    """The moments of an optimizer that has taken no step."""
    found = {"step": torch.zeros(())}
    for name, tensor in params.items():
        found[f"exp_avg.{name}"] = torch.zeros_like(tensor)
        found[f"exp_avg_sq.{name}"] = torch.zeros_like(tensor)
    return found


def trainable(params: Mapping[str, Tensor]) -> Params:
    """Copies of the tensors that autograd follows."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}


def detached(params: Mapping[str, Tensor]) -> Params:
    """The same tensors as constants."""
    return {name: tensor.detach() for name, tensor in params.items()}


def copied(params: Mapping[str, Tensor]) -> Params:
    """Constant copies of the tensors, a snapshot."""
    return {name: tensor.detach().clone() for name, tensor in params.items()}


def prefixed(prefix: str, params: Mapping[str, Tensor]) -> Params:
    """The tensors with `PREFIX/` before their names, as they stand in a checkpoint."""
    return {f"{prefix}/{name}": tensor for name, tensor in params.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Params:
    """The tensors of a checkpoint whose names begin with `PREFIX/`, without it."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
