"""The networks of the ensemble, forward and backward, in buffers of their own: nearly all that training a model costs.

What is computed stands in `ensemble.raw_outputs` and `ensemble.negative_log_likelihood`; autograd gives the same
gradients from them, to rounding (`tests/model/test_passes.py`), and costs more (`docs/performance.md`).
Everything here runs on the device and in the precision of the parameters, reads nothing on the host, and so can be
captured.

**Lower precision.** The layers between hidden layers, which are nearly all of the arithmetic, may have their
products in bfloat16 (`products`). Their weights are then rounded copies of the parameters, made anew in each pass, and
activations and δ lie in bfloat16 between them. The first layer, whose inputs are what is known most exactly, and the
output layer stay in the precision of the parameters; so do gradients, of which those of the layers between are rounded.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from usbpo.errors import UsbpoError
from usbpo.numerics.optimizer import Params
from usbpo.numerics.threads import Spares, share_out, share_out_in_two

CHUNK_ROWS = 512
"""Rows at a time on the CPU: two activations of 200 units and the weights of a layer then lie in its second cache. In
bfloat16 twice as many do."""

TOGETHER = 4
"""Members in one product of few rows in bfloat16, where a call takes an eighth of the time of a product. Two threads
then have half of seven each."""

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


Buffers = dict[tuple[torch.dtype, int], Tensor]
"""Activations, by their type and the turn of their layer"""


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
        self._share_out([(member, inputs, outputs[member]) for member in range(self.members)])
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
        ends = [0, *torch.bincount(members, minlength=self.members).cumsum(0).tolist()]
        spans = [slice(first, end) for first, end in pairwise(ends)]
        self._share_out([(member, ordered[span], results[span]) for member, span in enumerate(spans)])
        return torch.empty_like(results).index_copy_(0, order, results)[:, : self.columns]

    def _all_at_once(self, inputs: Tensor) -> Tensor:
        """All members in one product a layer: on a GPU a kernel's launch costs more than so little work."""
        hidden = inputs.expand(self.members, -1, -1)
        *before, last = zip(self._biases, self._weights, strict=True)
        for bias, weight in before:
            hidden = self._activation(torch.baddbmm(bias[:, None], hidden.to(weight.dtype), weight))
        return torch.baddbmm(last[0][:, None], hidden.to(last[1].dtype), last[1])

    def _share_out(self, asked: list[tuple[int, Tensor, Tensor]]) -> None:
        """Fill the outputs (rows, columns) of members from their inputs (rows, width), chunk by chunk."""
        rounded = len({weight.dtype for weight in self._weights}) > 1
        at_once = max(chunk_rows(inputs, rounded) for _, inputs, _ in asked)
        chunks = [
            (member, inputs[first : first + at_once], outputs[first : first + at_once])
            for member, inputs, outputs in asked
            for first in range(0, len(inputs), at_once)
        ]
        share_out(chunks, self._chunk, partial(self._buffers, at_once))

    def _buffers(self, rows: int) -> Buffers:
        """Layers write into two buffers by turns; where the precision changes, into a third one."""
        return {
            (weight.dtype, turn): weight.new_empty(rows, self._weights[turn].shape[2])
            for weight in self._weights
            for turn in (0, 1)
        }

    @torch.no_grad()
    def _chunk(self, chunk: tuple[int, Tensor, Tensor], buffers: Buffers) -> None:
        member, hidden, outputs = chunk
        last = len(self._weights) - 1
        for layer in range(last):
            weight, read_in = self._weights[layer][member], self._weights[layer + 1].dtype
            product = buffers[weight.dtype, layer % 2][: len(hidden)]
            torch.addmm(self._biases[layer][member], hidden, weight, out=product)
            hidden = _activated(self._activation, product, buffers[read_in, layer % 2][: len(hidden)])
        torch.addmm(self._biases[last][member], hidden, self._weights[last][member], out=outputs)


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
        weights = [rounded.reading(layer, params[f"weight.{layer}"].detach()) for layer in layers]
        biases = [rounded.reading(layer, params[f"bias.{layer}"].detach()) for layer in layers]
        weight_gradients = [rounded.writing(layer, gradients[f"weight.{layer}"]) for layer in layers]
        bias_gradients = [rounded.writing(layer, gradients[f"bias.{layer}"]) for layer in layers]
        members = len(weights[0])

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
        # The CPU's caches hold the activations of one member, and a GPU wants all of them at once.
        rounds, on_cpu = len(set(types)) > 1, weights[0].device.type == "cpu"
        together = members if not on_cpu else TOGETHER if rounds and rows <= CHUNK_ROWS else 1
        chosen: list[int | slice] = [*range(members)]
        if together > 1:
            chosen = [slice(first, first + together) for first in range(0, members, together)]
        block = min(rows, CHUNK_ROWS) if on_cpu and not rounds else rows
        like = after[-1][chosen[0]][..., :block, :]
        spares = Spares(lambda: {dtype: torch.empty(like.shape, dtype=dtype, device=like.device) for dtype in types})

        def layers_of(place: int | slice, span: slice) -> Layers:
            return Layers(
                place,
                weights=[weight[place] for weight in weights],
                biases=[bias[place] for bias in biases],
                before=[tensor[:, span][place] for tensor in before],
                after=[tensor[:, span][place] for tensor in after],
                weight_gradients=[gradient[place] for gradient in weight_gradients],
                bias_gradients=[gradient[place] for gradient in bias_gradients],
                delta=self.deltas[:, span][place],
                rounded_before=[(copy[place], tensor[place]) for tensor, copy in rounded.read],
                rounded_after=[(tensor[place], copy[place]) for tensor, copy in rounded.written],
                spares=spares,
            )

        self.groups = [layers_of(place, slice(rows)) for place in chosen]
        """The members, one by one or all together: each computes its share of both passes alone"""
        self._blocks = self.groups
        if block < rows:
            spans = [slice(first, first + block) for first in range(0, rows, block)]
            self._blocks = [layers_of(place, span) for place in chosen for span in spans]

    @torch.no_grad()
    def forward(self) -> None:
        """Fill the outputs from the inputs."""
        share_out(self._blocks, Layers.forward)

    @torch.no_grad()
    def backward(self) -> None:
        """Fill the gradients of weights and biases from the deltas, once after each forward pass."""
        if self._blocks is self.groups:
            share_out_in_two(self.groups, Layers.flow_back, Layers.differentiate)
        else:
            share_out(self._blocks, Layers.flow_back)
            layers = [(group, layer) for group in self.groups for layer in range(len(group.weights))]
            share_out(layers, lambda piece: piece[0].differentiate_layer(piece[1]))


class _Rounded:
    """Copies, in the layers' precision, of the parameters and gradients whose own precision is another.

    Args:
        types: precision of each layer.

    Attributes:
        read, written: parameters and gradients with their copies.
    """

    def __init__(self, types: Sequence[torch.dtype]) -> None:
        self._types = types
        self.read: list[tuple[Tensor, Tensor]] = []
        self.written: list[tuple[Tensor, Tensor]] = []

    def reading(self, layer: int, tensor: Tensor) -> Tensor:
        """What stands for a parameter of a layer, once the one has been copied to the other."""
        return self._stand_in(layer, tensor, self.read)

    def writing(self, layer: int, tensor: Tensor) -> Tensor:
        """What stands for a gradient of a layer, until the other has been copied to the one."""
        return self._stand_in(layer, tensor, self.written)

    def _stand_in(self, layer: int, tensor: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        if tensor.dtype == self._types[layer]:
            return tensor
        pairs.append((tensor, torch.empty_like(tensor, dtype=self._types[layer])))
        return pairs[-1][1]


class Layers:
    """The share of all members, or of one, in the tensors of `Passes`: (members, rows, width), or (rows, width).

    `before` is z_l after a forward pass, and δ_l after a backward pass. One member in one precision keeps σ(z_l) in the
    place of z_l: with h = z σ(z), SiLU′(z) = σ + h (1 − σ) then needs no second exponential. A GPU has kernels to spare
    for that, but not their launches, and in bfloat16 conversions cost as much as it saves.

    Attributes:
        place: which members.
        rows: how many.
    """

    def __init__(
        self,
        place: int | slice,
        weights: list[Tensor],
        biases: list[Tensor],
        before: list[Tensor],
        after: list[Tensor],
        weight_gradients: list[Tensor],
        bias_gradients: list[Tensor],
        delta: Tensor,
        rounded_before: list[tuple[Tensor, Tensor]],
        rounded_after: list[tuple[Tensor, Tensor]],
        spares: Spares[dict[torch.dtype, Tensor]],
    ) -> None:
        self.place = place
        self.weights, self.biases, self.before, self.after = weights, biases, before, after
        self.weight_gradients, self.bias_gradients, self.delta = weight_gradients, bias_gradients, delta
        self.deltas = [*before[:-1], delta]
        self.rounded_before, self.rounded_after = rounded_before, rounded_after
        self._spares, self._cut = spares, tuple(map(slice, delta.shape[:-1]))
        alone = delta.dim() == 2
        self.product: Callable[..., Tensor] = torch.mm if alone else torch.bmm
        self.product_and_bias: Callable[..., Tensor] = torch.addmm if alone else torch.baddbmm
        self.weights_t = [weight.mT for weight in weights]
        self.after_t = [hidden.mT for hidden in after]
        self.keeps_sigmoid, self.one = (
            alone and len({tensor.dtype for tensor in before}) == 1,
            torch.ones_like(delta[0, 0]),
        )

    @torch.no_grad()
    def forward(self) -> None:
        """Outputs from inputs."""
        last = len(self.weights) - 1
        for copy, tensor in self.rounded_before:
            copy.copy_(tensor)
        with self._spares.one() as buffers:
            spare = {dtype: buffer[self._cut] for dtype, buffer in buffers.items()}
            for layer, (weight, bias, before) in enumerate(zip(self.weights, self.biases, self.before, strict=True)):
                kept = layer == last or not self.keeps_sigmoid
                z = before if kept else spare[before.dtype]
                self.product_and_bias(bias, self.after[layer], weight, out=z)
                if not kept:
                    torch.sigmoid(z, out=before)
                    torch.mul(z, before, out=self.after[layer + 1])
                elif layer < last:
                    _activate(before, self.after[layer + 1], spare)

    @torch.no_grad()
    def flow_back(self) -> None:
        """δ of every layer from that of the last."""
        delta = self.delta
        with self._spares.one() as buffers:
            spare = {dtype: buffer[self._cut] for dtype, buffer in buffers.items()}
            for layer in range(len(self.weights) - 1, 0, -1):
                before = self.before[layer - 1]
                to_after = self.product(delta, self.weights_t[layer], out=spare[delta.dtype])
                if before.dtype != delta.dtype:
                    to_after = spare[before.dtype].copy_(to_after)
                if self.keeps_sigmoid:
                    torch.lerp(self.after[layer], self.one, before, out=before).mul_(to_after)
                else:
                    torch.ops.aten.silu_backward.grad_input(to_after, before, grad_input=before)
                delta = before

    @torch.no_grad()
    def differentiate(self) -> None:
        """The gradients of weights and biases from the δ of every layer."""
        for layer in reversed(range(len(self.deltas))):
            self.differentiate_layer(layer)
        for tensor, copy in self.rounded_after:
            tensor.copy_(copy)

    @torch.no_grad()
    def differentiate_layer(self, layer: int) -> None:
        """The gradients of one layer's weight and bias."""
        delta = self.deltas[layer]
        self.product(self.after_t[layer], delta, out=self.weight_gradients[layer])
        torch.sum(delta, dim=-2, keepdim=True, out=self.bias_gradients[layer])


def _activate(before: Tensor, after: Tensor, spare: dict[torch.dtype, Tensor]) -> None:
    """SiLU, in the wider precision of the two."""
    if after.dtype == before.dtype:
        torch.ops.aten.silu.out(before, out=after)
    elif after.element_size() < before.element_size():
        after.copy_(torch.ops.aten.silu.out(before, out=spare[before.dtype]))
    else:
        after.copy_(before)
        torch.ops.aten.silu.out(after, out=after)
