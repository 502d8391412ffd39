"""Adam over named tensors, with its moments as named tensors, so that checkpoints hold the whole optimizer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from math import prod
from types import EllipsisType

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Tensors by name: the weights of a network, or whatever else is trained."""


def _fused_step(
    params: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[Tensor],
    learning_rate: float,
    weight_decay: float,
) -> None:
    """torch's fused kernel, in place, with Adam's usual constants; `steps` count this step already."""
    torch._fused_adam_(
        params, gradients, first, second, [], steps,
        lr=learning_rate, beta1=0.9, beta2=0.999, weight_decay=weight_decay, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip


class Adam:
    """Adam on a dictionary of tensors, which are updated in place, by torch's fused kernel on their device.

    The kernel is called without `torch.optim.Adam`, which costs as much again on small networks; the arithmetic is the
    same to the last bit. Nothing is read on the host, so that a step can be captured.

    Args:
        params: what is trained.
        learning_rate: step size.
        moments: what `moments()` gave earlier; without any the optimizer is new.
        weight_decay: λ by name, 0 where there is none: λ times the parameter is added to its gradient, which is that of
            the penalty λ/2 · ‖parameter‖².
    """

    def __init__(
        self,
        params: Params,
        learning_rate: float,
        moments: Mapping[str, Tensor] | None = None,
        weight_decay: Mapping[str, float] | None = None,
    ) -> None:
        self.params, self.learning_rate = params, learning_rate
        moments = moments or new_moments(params)
        self._step = moments["step"].clone()
        self._first = {name: moments[f"exp_avg.{name}"].clone() for name in params}
        self._second = {name: moments[f"exp_avg_sq.{name}"].clone() for name in params}
        self.gradients = {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in params.items()}
        """What `step` goes down, but for the weight decay; whoever works out gradients by hand writes them here."""
        self._names: dict[float, list[str]] = {}
        for name in params:
            self._names.setdefault((weight_decay or {}).get(name, 0.0), []).append(name)
        self._whole = self.part(params)

    def minimise(self, loss: Tensor) -> None:
        """One step down the gradient of a scalar loss, by autograd."""
        found = torch.autograd.grad(loss, list(self.params.values()))
        self.begin()
        self._part(self.params, ..., dict(zip(self.params, found, strict=True)))()

    def step(self) -> None:
        """One step down `gradients`."""
        self.begin()
        self._whole()

    @torch.no_grad()
    def begin(self) -> None:
        """Count the next step; each part of it may then be taken, in any order."""
        self._step.add_(1)

    def part(self, names: Collection[str], place: int | slice | EllipsisType = ...) -> Callable[[], None]:
        """What takes a step of these parameters, or of a place along their first dimension alone, once it has begun."""
        return self._part(names, place, self.gradients)

    def _part(self, names: Collection[str], place: int | slice | EllipsisType, gradients: Params) -> Callable[[], None]:
        tensors = self.params, gradients, self._first, self._second
        parts = [
            (weight_decay, [[of[name].detach()[place] for name in members if name in names] for of in tensors])
            for weight_decay, members in self._names.items()
            if any(name in names for name in members)
        ]

        @torch.no_grad()
        def descend() -> None:
            for weight_decay, lists in parts:
                steps = [self._step] * len(lists[0])
                _fused_step(lists[0], lists[1], lists[2], lists[3], steps, self.learning_rate, weight_decay)

        return descend

    def changes(self) -> list[Tensor]:
        """Every tensor that a step changes: parameters, moments and the counter."""
        return [*self.params.values(), *self._first.values(), *self._second.values(), self._step]

    def moments(self) -> Params:
        """`step` () and, for each parameter, `exp_avg.NAME` and `exp_avg_sq.NAME`, of the parameter's shape."""
        found = {"step": self._step}
        for name in self.params:
            found[f"exp_avg.{name}"], found[f"exp_avg_sq.{name}"] = self._first[name], self._second[name]
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
    views = {}
    for name, start in flat_places(shapes).items():
        shape = shapes[name]
        views[name] = buffer[..., start : start + prod(shape)].view(*buffer.shape[:-1], *shape)
    return views


def flat_places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Where in the flat buffer each of these tensors begins."""
    sizes = [_aligned(prod(shape)) for shape in shapes.values()]
    return dict(zip(shapes, accumulate(sizes, initial=0), strict=False))


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
        self.begin()
        moments = self.exp_avg, self.exp_avg_sq
        _fused_step(self.buffers, self.gradients, *moments, self.steps, self.learning_rate, weight_decay=0.0)

    def begin(self) -> None:
        """Count the next step, whose parts may then be taken in any order."""
        torch._foreach_add_(self.steps, 1.0)

    def step_of(self, number: int, place: slice) -> None:
        """A step, once it has begun, of a place along a buffer's first dimension alone."""
        tensors = self.buffers, self.gradients, self.exp_avg, self.exp_avg_sq
        params, gradients, first, second = ([of[number][place]] for of in tensors)
        _fused_step(params, gradients, first, second, [self.steps[number]], self.learning_rate, weight_decay=0.0)

    def state(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [*self.buffers, *self.exp_avg, *self.exp_avg_sq, *self.steps]


def new_moments(params: Mapping[str, Tensor]) -> Params:
    """The moments of an optimizer that has taken no step."""
    found = {"step": torch.zeros((), device=next(iter(params.values())).device)}
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


def moved(params: Mapping[str, Tensor], device: torch.device) -> Params:
    """The tensors on a device."""
    return {name: tensor.to(device) for name, tensor in params.items()}


def prefixed(prefix: str, params: Mapping[str, Tensor]) -> Params:
    """The tensors with `PREFIX/` before their names, as they stand in a checkpoint."""
    return {f"{prefix}/{name}": tensor for name, tensor in params.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Params:
    """The tensors of a checkpoint whose names begin with `PREFIX/`, without it."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
