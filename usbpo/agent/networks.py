"""The learner's networks: how they lie in memory, and the stacked critics forward and backward in own buffers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from usbpo.agent.sac import Architecture
from usbpo.numerics.optimizer import Params, flat_views

relu_backward = torch.ops.aten.threshold_backward.grad_input


class Layer:
    """One layer of a network, or of several stacked ones.

    Attributes:
        weight, bias: (…, in, out) and (…, 1, out).
        turned: the weight transposed, the same memory: a view costs as much as the arithmetic of a small kernel.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias, self.turned = weight, bias, weight.mT


class Stack:
    """Some of the stacked critics, or of the targets, that are passed through together.

    Args:
        params: of all of them, (2, …).
        gradients: of the same shapes; what the caller fills.
        place: which of them.
        hidden: buffers (2, rows, hidden_size) for the outputs of the hidden layers.
    """

    def __init__(self, params: Params, gradients: Params, place: slice, hidden: list[Tensor]) -> None:
        self.place = place
        self.layers, self.gradients = (
            layers_of({name: tensor[place] for name, tensor in group.items()}) for group in (params, gradients)
        )
        self.hidden = [output[place] for output in hidden]
        self.hidden_turned = [output.mT for output in self.hidden]

    def forward(self, inputs: Tensor, values: Tensor) -> None:
        """Fill `hidden` and this stack's rows of `values` (2, rows) from inputs (rows, obs_dim + act_dim)."""
        below = inputs.expand(len(self.hidden[0]), -1, -1)
        for layer, output in zip(self.layers, self.hidden, strict=False):
            below = torch.baddbmm(layer.bias, below, layer.weight, out=output).relu_()
        last = self.layers[-1]
        torch.baddbmm(last.bias, last.turned, self.hidden_turned[-1], out=values[self.place, None])

    def backward(self, of_values: Tensor, hidden: list[Tensor], buffers: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """The gradient on its way down from the values of the last `forward`, or of some of its rows.

        Args:
            of_values: gradient of the values, (networks, rows).
            hidden: outputs of the hidden layers, (networks, rows, hidden_size) each.
            buffers: two of that size; what is yielded lies there.

        Yields:
            The place of a layer, the last hidden one first, and the gradient of its output before the ReLU, (networks,
            rows, hidden_size).
        """
        flowing, other = buffers
        torch.mul(of_values[:, :, None], self.layers[-1].turned, out=flowing)
        for place in reversed(range(len(hidden))):
            relu_backward(flowing, hidden[place], 0, grad_input=flowing)
            yield place, flowing
            if place:
                flowing, other = torch.bmm(flowing, self.layers[place].turned, out=other), flowing


def layers_of(params: Params) -> list[Layer]:
    """The layers of a network, first to last."""
    return [Layer(params[f"weight.{n}"], params[f"bias.{n}"]) for n in range(len(params) // 2)]


def stored_shapes(architecture: Architecture) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of the actor and of one critic as they lie in memory: the actor's last weight is (out, in)."""
    shapes = architecture.shapes()
    actor, critic = dict(shapes["actor"]), {name: shape[1:] for name, shape in shapes["critics"].items()}
    last = f"weight.{architecture.hidden_layers}"
    actor[last] = actor[last][::-1]
    return actor, critic


def actor_views(buffer: Tensor, stored: dict[str, tuple[int, ...]]) -> Params:
    """The actor's tensors in the shapes that all others know."""
    views = flat_views(buffer, stored)
    last = f"weight.{len(stored) // 2 - 1}"
    return {**views, last: views[last].t()}
