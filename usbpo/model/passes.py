"""The networks of the ensemble, forward and backward, in buffers of their own: nearly all that training a model costs.

What is computed stands in `ensemble.raw_outputs` and `ensemble.negative_log_likelihood`; autograd gives the same
gradients from them, to rounding (`tests/model/test_passes.py`), and costs more (`docs/performance-model.md`).
Everything here runs on the device and in the precision of the parameters, reads nothing on the host, and so can be
captured.

**Lower precision.** The layers between hidden layers, which are nearly all of the arithmetic, may have their
products in bfloat16 (`products`). Their weights are then rounded copies of the parameters, made anew in each pass, and
activations and δ lie in bfloat16 between them. The first layer, whose inputs are what is known most exactly, and the
output layer stay in the precision of the parameters; so do gradients, of which those of the layers between are rounded.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from usbpo.errors import UsbpoError
from usbpo.numerics.optimizer import Params

CHUNK_ROWS = 512
"""Rows at a time on the CPU: two activations of 200 units and the weights of a layer then lie in its second cache. In
bfloat16 twice as many do."""

NARROWEST = 16
"""Fewest columns of an output layer as it is computed without gradients."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the products between hidden layers may be computed in, by its name in the configuration."""


def number_type(name: str) -> torch.dtype:
    """The type of numbers of a precision's name.

    Raises:
        UsbpoError: the name is unknown.
    """
    if name not in PRECISIONS:
        raise UsbpoError(f"precision must be {' or '.join(PRECISIONS)}, but is {name!r}; mend the value.")
    return PRECISIONS[name]


def layer_count(params: Params) -> int:
    """The number of layers, the output layer included."""
    return sum(name.startswith("weight.") for name in params)


def layer_types(params: Params, products: torch.dtype | None) -> list[torch.dtype]:
    """The precision of each layer: `products` between hidden layers, that of the parameters at both ends.

    Args:
        products: default: that of the parameters.
    """
    ends, layers = params["weight.0"].dtype, layer_count(params)
    return [ends if products is None or layer in (0, layers - 1) else products for layer in range(layers)]


def chunk_rows(inputs: Tensor, rounded: bool = False) -> int:
    """How many rows of (rows, width) to compute at a time on their device, rounded between hidden layers or not."""
    rows = max(len(inputs), 1)
    return min(rows, CHUNK_ROWS * (1 + rounded)) if inputs.device.type == "cpu" else rows


def silu_(hidden: Tensor) -> Tensor:
    """SiLU in place."""
    return silu(hidden, inplace=True)


class Forward:
    """Outputs of single members of a stack of networks for any number of rows, without gradients.

    Args:
        params: of all members.
        columns: how many outputs are wanted, the first ones; default: all.
        activation: of the hidden layers, in place.
        products: precision of the products between hidden layers; default: that of the parameters.
    """

    def __init__(
        self,
        params: Params,
        columns: int | None = None,
        activation: Callable[[Tensor], Tensor] = silu_,
        products: torch.dtype | None = None,
    ) -> None:
        last = layer_count(params) - 1
        types = list(enumerate(layer_types(params, products)))
        self._weights = [params[f"weight.{layer}"].detach().to(dtype) for layer, dtype in types]
        self._biases = [params[f"bias.{layer}"].detach()[:, 0].to(dtype) for layer, dtype in types]
        weight, bias = self._weights[last][..., :columns], self._biases[last][..., :columns]
        self._activation = activation
        self.members, self.columns = len(weight), weight.shape[2]
        # On the CPU a product of fewer columns takes longer than one of 16.
        self._width = max(self.columns, NARROWEST)
        missing = (0, self._width - self.columns)
        self._weights[last], self._biases[last] = pad(weight, missing), pad(bias, missing)

    @torch.no_grad()
    def all_members(self, inputs: Tensor) -> Tensor:
        """The outputs of every member, (members, rows, columns), for standardised inputs (rows, obs_dim + act_dim)."""
        if inputs.device.type != "cpu":
            return self._all_at_once(inputs)[..., : self.columns]
        outputs = inputs.new_empty(self.members, len(inputs), self._width)
        for member in range(self.members):
            self._member(member, inputs, outputs[member])
        return outputs[..., : self.columns]

    @torch.no_grad()
    def one_member_each(self, members: Tensor, inputs: Tensor) -> Tensor:
        """The outputs of one member for each row, (rows, columns); only that member is computed.

        Args:
            members: (rows,).
            inputs: standardised, (rows, obs_dim + act_dim).
        """
        order = torch.argsort(members, stable=True)
        ordered = inputs.index_select(0, order)
        results = inputs.new_empty(len(inputs), self._width)
        first = 0
        for member, rows in enumerate(torch.bincount(members, minlength=self.members).tolist()):
            self._member(member, ordered[first : first + rows], results[first : first + rows])
            first += rows
        return torch.empty_like(results).index_copy_(0, order, results)[:, : self.columns]

    def _all_at_once(self, inputs: Tensor) -> Tensor:
        """All members in one product a layer: on a GPU a kernel's launch costs more than so little work."""
        hidden = inputs.expand(self.members, -1, -1)
        *before, last = zip(self._biases, self._weights, strict=True)
        for bias, weight in before:
            hidden = self._activation(torch.baddbmm(bias[:, None], hidden.to(weight.dtype), weight))
        return torch.baddbmm(last[0][:, None], hidden.to(last[1].dtype), last[1])

    def _member(self, member: int, inputs: Tensor, outputs: Tensor) -> None:
        at_once = chunk_rows(inputs, rounded=len({weight.dtype for weight in self._weights}) > 1)
        last = len(self._weights) - 1
        # Layers write into two buffers by turns; where the precision changes, into a third one.
        buffers = {
            (weight.dtype, turn): inputs.new_empty(at_once, self._weights[turn].shape[2], dtype=weight.dtype)
            for weight in self._weights
            for turn in (0, 1)
        }
        for first in range(0, len(inputs), at_once):
            hidden = inputs[first : first + at_once]
            for layer in range(last):
                weight, read_in = self._weights[layer][member], self._weights[layer + 1].dtype
                product = buffers[weight.dtype, layer % 2][: len(hidden)]
                torch.addmm(self._biases[layer][member], hidden, weight, out=product)
                hidden = _activated(self._activation, product, buffers[read_in, layer % 2][: len(hidden)])
            written = outputs[first : first + at_once]
            torch.addmm(self._biases[last][member], hidden, self._weights[last][member], out=written)


def _activated(activation: Callable[[Tensor], Tensor], product: Tensor, spare: Tensor) -> Tensor:
    """The activations of `product`, in place if they are read in its precision, otherwise in `spare`."""
    if spare.dtype == product.dtype:
        return activation(product)
    if spare.element_size() < product.element_size():
        return spare.copy_(activation(product))
    return activation(spare.copy_(product))


class Passes:
    """Outputs of all members on batches of one size, and the gradients of a loss of them.

    With h_0 the inputs, layer l computes z_l = h_l W_l + b_l and h_{l+1} = SiLU(z_l); the last z is the output. From
    δ_l = ∂loss/∂z_l the backward pass makes, from the last layer to the first,

        ∂loss/∂W_l = h_lᵀ δ_l,    ∂loss/∂b_l = Σ_rows δ_l,    δ_{l−1} = (δ_l W_lᵀ) ⊙ SiLU′(z_{l−1}).

    The inputs' own gradient is not computed, nor is the loss.

    Args:
        params: of all members; they are read in every pass, so that an optimizer may change them in place.
        gradients: where the backward pass writes, by the names of `params`.
        rows: rows of a batch.
        products: precision of the products between hidden layers; default: that of the parameters.
    """

    def __init__(self, params: Params, gradients: Params, rows: int, products: torch.dtype | None = None) -> None:
        types = layer_types(params, products)
        layers = range(len(types))
        rounded = _Rounded(types)
        weights = [rounded.read(layer, params[f"weight.{layer}"].detach()) for layer in layers]
        biases = [rounded.read(layer, params[f"bias.{layer}"].detach()) for layer in layers]
        weight_gradients = [rounded.written(layer, gradients[f"weight.{layer}"]) for layer in layers]
        self._bias_gradients = [rounded.written(layer, gradients[f"bias.{layer}"]) for layer in layers]
        self._rounded, members = rounded, len(weights[0])

        def buffer(layer: int, width: int) -> Tensor:
            return weights[layer].new_empty(members, rows, width)

        before = [buffer(layer, weight.shape[2]) for layer, weight in enumerate(weights)]
        after = [buffer(layer, weight.shape[1]) for layer, weight in enumerate(weights)]
        self.inputs = after[0]
        """h_0, standardised, (members, rows, obs_dim + act_dim): to be filled before a forward pass"""
        self.outputs = before[-1]
        """(members, rows, 2 · (obs_dim + 1)): filled by it"""
        self.deltas = torch.empty_like(self.outputs)
        """∂loss/∂outputs: to be filled before a backward pass"""
        # The backward pass leaves δ_l where z_l was, but for the last.
        self._all_deltas = [*before[:-1], self.deltas]
        # The CPU's caches hold the activations of one member, and a GPU wants all of them at once. So does the CPU for
        # few rows in bfloat16, where a call takes an eighth of the time of a product.
        at_once = weights[0].device.type != "cpu" or (len(set(types)) > 1 and rows <= CHUNK_ROWS)
        chosen: list[int | slice] = [slice(members)] if at_once else list(range(members))
        spare = {dtype: torch.empty_like(after[-1][chosen[0]], dtype=dtype) for dtype in set(types)}
        self._groups = [
            _Layers(
                weights=[weight[some] for weight in weights],
                biases=[bias[some] for bias in biases],
                before=[tensor[some] for tensor in before],
                after=[tensor[some] for tensor in after],
                weight_gradients=[gradient[some] for gradient in weight_gradients],
                delta=self.deltas[some],
                spare=spare,
            )
            for some in chosen
        ]

    @torch.no_grad()
    def forward(self) -> None:
        """Fill the outputs from the inputs."""
        self._rounded.refresh()
        for group in self._groups:
            group.forward()

    @torch.no_grad()
    def backward(self) -> None:
        """Fill the gradients of weights and biases from the deltas, once after each forward pass."""
        for group in self._groups:
            group.backward()
        for delta, gradient in zip(self._all_deltas, self._bias_gradients, strict=True):
            torch.sum(delta, dim=1, keepdim=True, out=gradient)
        self._rounded.hand_on()


class _Rounded:
    """Copies, in the layers' precision, of the parameters and gradients whose own precision is another.

    Args:
        types: precision of each layer.
    """

    def __init__(self, types: Sequence[torch.dtype]) -> None:
        self._types = types
        self._read: list[tuple[Tensor, Tensor]] = []
        self._written: list[tuple[Tensor, Tensor]] = []

    def read(self, layer: int, tensor: Tensor) -> Tensor:
        """What stands for a parameter of a layer, up to date after `refresh`."""
        return self._stand_in(layer, tensor, self._read)

    def written(self, layer: int, tensor: Tensor) -> Tensor:
        """What stands for a gradient of a layer, which has it after `hand_on`."""
        return self._stand_in(layer, tensor, self._written)

    def _stand_in(self, layer: int, tensor: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        if tensor.dtype == self._types[layer]:
            return tensor
        pairs.append((tensor, torch.empty_like(tensor, dtype=self._types[layer])))
        return pairs[-1][1]

    def refresh(self) -> None:
        for tensor, copy in self._read:
            copy.copy_(tensor)

    def hand_on(self) -> None:
        for tensor, copy in self._written:
            tensor.copy_(copy)


class _Layers:
    """The share of all members, or of one, in the tensors of `Passes`: (members, rows, width), or (rows, width).

    `before` is z_l after a forward pass, and δ_l after a backward pass. One member in one precision keeps σ(z_l) in the
    place of z_l: with h = z σ(z), SiLU′(z) = σ + h (1 − σ) then needs no second exponential. A GPU has kernels to spare
    for that, but not their launches, and in bfloat16 conversions cost as much as it saves.
    """

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        before: list[Tensor],
        after: list[Tensor],
        weight_gradients: list[Tensor],
        delta: Tensor,
        spare: dict[torch.dtype, Tensor],
    ) -> None:
        self.weights, self.biases, self.before, self.after = weights, biases, before, after
        self.weight_gradients, self.delta, self.spare = weight_gradients, delta, spare
        alone = delta.dim() == 2
        self.product: Callable[..., Tensor] = torch.mm if alone else torch.bmm
        self.product_and_bias: Callable[..., Tensor] = torch.addmm if alone else torch.baddbmm
        self.weights_t = [weight.mT for weight in weights]
        self.after_t = [hidden.mT for hidden in after]
        self.keeps_sigmoid, self.one = alone and len(spare) == 1, torch.ones_like(delta[0, 0])

    def forward(self) -> None:
        last = len(self.weights) - 1
        for layer, (weight, bias, before) in enumerate(zip(self.weights, self.biases, self.before, strict=True)):
            kept = layer == last or not self.keeps_sigmoid
            z = before if kept else self.spare[before.dtype]
            self.product_and_bias(bias, self.after[layer], weight, out=z)
            if not kept:
                torch.sigmoid(z, out=before)
                torch.mul(z, before, out=self.after[layer + 1])
            elif layer < last:
                self._activate(before, self.after[layer + 1])

    def _activate(self, before: Tensor, after: Tensor) -> None:
        """SiLU, in the wider precision of the two."""
        if after.dtype == before.dtype:
            torch.ops.aten.silu.out(before, out=after)
        elif after.element_size() < before.element_size():
            wider = self.spare[before.dtype]
            after.copy_(torch.ops.aten.silu.out(before, out=wider))
        else:
            after.copy_(before)
            torch.ops.aten.silu.out(after, out=after)

    def backward(self) -> None:
        delta = self.delta
        for layer in reversed(range(len(self.weights))):
            self.product(self.after_t[layer], delta, out=self.weight_gradients[layer])
            if layer:
                before = self.before[layer - 1]
                to_after = self.product(delta, self.weights_t[layer], out=self.spare[delta.dtype])
                if before.dtype != delta.dtype:
                    to_after = self.spare[before.dtype].copy_(to_after)
                if self.keeps_sigmoid:
                    torch.lerp(self.after[layer], self.one, before, out=before).mul_(to_after)
                else:
                    torch.ops.aten.silu_backward.grad_input(to_after, before, grad_input=before)
                delta = before
