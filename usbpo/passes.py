"""The networks of the ensemble, forward and backward, in buffers of their own: nearly all that training a model costs.

What is computed stands in `ensemble.raw_outputs` and `ensemble.negative_log_likelihood`; autograd gives the same
gradients from them, to rounding (`tests/test_passes.py`), and costs more (`docs/performance-model.md`). Everything here
runs on the device and in the precision of the parameters, reads nothing on the host, and so can be captured.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from usbpo.device import captured
from usbpo.optimizer import Adam, Params

CHUNK_ROWS = 512
"""Rows at a time on the CPU: two activations of 200 units and the weights of a layer then lie in its second cache."""


NARROWEST = 16
"""Fewest columns of an output layer as it is computed without gradients."""


def layer_count(params: Params) -> int:
    """The number of layers, the output layer included."""
    return sum(name.startswith("weight.") for name in params)


def chunk_rows(inputs: Tensor) -> int:
    """How many rows of (rows, width) to compute at a time on their device."""
    rows = max(len(inputs), 1)
    return min(rows, CHUNK_ROWS) if inputs.device.type == "cpu" else rows


def silu_(hidden: Tensor) -> Tensor:
    """SiLU in place."""
    return silu(hidden, inplace=True)


class Forward:
    """Outputs of single members of a stack of networks for any number of rows, without gradients.

    Args:
        params: of all members.
        columns: how many outputs are wanted, the first ones; default: all.
        activation: of the hidden layers, in place.
    """

    def __init__(
        self,
        params: Params,
        columns: int | None = None,
        activation: Callable[[Tensor], Tensor] = silu_,
    ) -> None:
        last = layer_count(params) - 1
        self._weights = [params[f"weight.{layer}"].detach() for layer in range(last + 1)]
        self._biases = [params[f"bias.{layer}"].detach()[:, 0] for layer in range(last + 1)]
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
            hidden = self._activation(torch.baddbmm(bias[:, None], hidden, weight))
        return torch.baddbmm(last[0][:, None], hidden, last[1])

    def _member(self, member: int, inputs: Tensor, outputs: Tensor) -> None:
        at_once = chunk_rows(inputs)
        # Layers write into two buffers by turns.
        buffers = [inputs.new_empty(at_once, weight.shape[2]) for weight in self._weights[:2]]
        last = len(self._weights) - 1
        for first in range(0, len(inputs), at_once):
            hidden = inputs[first : first + at_once]
            for layer in range(last):
                product = buffers[layer % 2][: len(hidden)]
                torch.addmm(self._biases[layer][member], hidden, self._weights[layer][member], out=product)
                hidden = self._activation(product)
            written = outputs[first : first + at_once]
            torch.addmm(self._biases[last][member], hidden, self._weights[last][member], out=written)


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
    """

    def __init__(self, params: Params, gradients: Params, rows: int) -> None:
        layers = range(layer_count(params))
        weights = [params[f"weight.{layer}"].detach() for layer in layers]
        biases = [params[f"bias.{layer}"].detach() for layer in layers]
        members = len(weights[0])

        def buffer(width: int) -> Tensor:
            return weights[0].new_empty(members, rows, width)

        before = [buffer(weight.shape[2]) for weight in weights]
        after = [buffer(weight.shape[1]) for weight in weights]
        self.inputs = after[0]
        """h_0, standardised, (members, rows, obs_dim + act_dim): to be filled before a forward pass"""
        self.outputs = before[-1]
        """(members, rows, 2 · (obs_dim + 1)): filled by it"""
        self.deltas = torch.empty_like(self.outputs)
        """∂loss/∂outputs: to be filled before a backward pass"""
        # The backward pass leaves δ_l where z_l was, but for the last.
        self._all_deltas = [*before[:-1], self.deltas]
        self._bias_gradients = [gradients[f"bias.{layer}"] for layer in layers]
        # The CPU's caches hold the activations of one member; a GPU wants all of them at once.
        chosen: list[int | slice] = [slice(members)]
        if weights[0].device.type == "cpu":
            chosen = list(range(members))
        spare = torch.empty_like(after[-1][chosen[0]])
        weight_gradients = [gradients[f"weight.{layer}"] for layer in layers]
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
        for group in self._groups:
            group.forward()

    @torch.no_grad()
    def backward(self) -> None:
        """Fill the gradients of weights and biases from the deltas, once after each forward pass."""
        for group in self._groups:
            group.backward()
        for delta, gradient in zip(self._all_deltas, self._bias_gradients, strict=True):
            torch.sum(delta, dim=1, keepdim=True, out=gradient)


class _Layers:
    """The share of all members, or of one, in the tensors of `Passes`: (members, rows, width), or (rows, width)."""

    def __init__(
        self,
        weights: list[Tensor],
        biases: list[Tensor],
        before: list[Tensor],
        after: list[Tensor],
        weight_gradients: list[Tensor],
        delta: Tensor,
        spare: Tensor,
    ) -> None:
        self.weights, self.biases, self.before, self.after = weights, biases, before, after
        self.weight_gradients, self.delta, self.spare = weight_gradients, delta, spare
        alone = delta.dim() == 2
        self.product: Callable[..., Tensor] = torch.mm if alone else torch.bmm
        self.product_and_bias: Callable[..., Tensor] = torch.addmm if alone else torch.baddbmm
        self.weights_t = [weight.mT for weight in weights]
        self.after_t = [hidden.mT for hidden in after]

    def forward(self) -> None:
        last = len(self.weights) - 1
        for layer, (weight, bias, before) in enumerate(zip(self.weights, self.biases, self.before, strict=True)):
            self.product_and_bias(bias, self.after[layer], weight, out=before)
            if layer < last:
                torch.ops.aten.silu.out(before, out=self.after[layer + 1])

    def backward(self) -> None:
        delta = self.delta
        for layer in reversed(range(len(self.weights))):
            self.product(self.after_t[layer], delta, out=self.weight_gradients[layer])
            if layer:
                before = self.before[layer - 1]
                self.product(delta, self.weights_t[layer], out=self.spare)
                torch.ops.aten.silu_backward.grad_input(self.spare, before, grad_input=before)
                delta = before


def decay_by_name(weight_decay: Sequence[float]) -> dict[str, float]:
    """The factor of each layer's L2 penalty by the name of its weights."""
    return {f"weight.{layer}": factor for layer, factor in enumerate(weight_decay)}


class LikelihoodStep:
    """One Adam step of phase 1 on a minibatch, down the gradient of `ensemble.negative_log_likelihood`.

    The gradient of its L2 penalty is the optimizer's weight decay, `decay_by_name`.

    Args:
        params: of all members; changed in place.
        adam: their optimizer.
        inputs: all rows, standardised, (all rows, obs_dim + act_dim).
        targets: (reward, s' − s) of all rows, (all rows, obs_dim + 1).
        rows: rows of a minibatch.
        log_variance_penalty: weight of the bounds' penalty.
    """

    def __init__(
        self,
        params: Params,
        adam: Adam,
        inputs: Tensor,
        targets: Tensor,
        rows: int,
        log_variance_penalty: float,
    ) -> None:
        self.upper, self.lower = params["max_log_variance"].detach(), params["min_log_variance"].detach()
        self.gradients, self.penalty = adam.gradients, log_variance_penalty
        self.passes = Passes(params, self.gradients, rows)
        members = len(self.passes.inputs)
        self._all_inputs, self._all_targets, self._adam = inputs, targets, adam
        self._targets = targets.new_empty(members, rows, targets.shape[1])
        self._rows = torch.zeros(members, rows, dtype=torch.int64, device=inputs.device)
        self._step: Callable[[], None] = captured(self.once, inputs.device, adam.changes())

    def take(self, rows: Tensor) -> None:
        """Learn from the given rows, numbers (members, rows)."""
        self._rows.copy_(rows)
        self._step()

    @torch.no_grad()
    def once(self) -> None:
        self.load()
        self.passes.forward()
        self.differentiate()
        self.passes.backward()
        self._adam.step()

    def load(self) -> None:
        """Gather the minibatch."""
        flat = self._rows.flatten()
        torch.index_select(self._all_inputs, 0, flat, out=self.passes.inputs.flatten(0, 1))
        torch.index_select(self._all_targets, 0, flat, out=self._targets.flatten(0, 1))

    def differentiate(self) -> None:
        """From the outputs, the gradients of the loss in them and in the bounds of the log-variance.

        With v the bounded log-variance and e = mean − target, each entry of a member's (rows, dim) adds
        (e² exp(−v) + v) / (rows · dim). The bounds are u = max − softplus(max − raw), v = min + softplus(u − min).
        """
        mean, raw = self.passes.outputs.chunk(2, dim=-1)
        to_mean, to_raw = self.passes.deltas.chunk(2, dim=-1)
        share = 1.0 / mean[0].numel()
        below_upper = self.upper - raw
        bounded_above = self.upper - softplus(below_upper)
        above_lower = bounded_above - self.lower
        log_variance = self.lower + softplus(above_lower)

        error = mean - self._targets
        weighted = error * torch.exp(-log_variance)
        torch.mul(weighted, 2.0 * share, out=to_mean)
        to_log_variance = share - share * weighted * error
        to_above = to_log_variance * torch.sigmoid(above_lower)
        torch.mul(to_above, torch.sigmoid(below_upper), out=to_raw)
        torch.sum(to_above - to_raw, dim=(0, 1), out=self.gradients["max_log_variance"]).add_(self.penalty)
        torch.sum(to_log_variance - to_above, dim=(0, 1), out=self.gradients["min_log_variance"]).sub_(self.penalty)
