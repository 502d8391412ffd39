"""One step of phase 1: the gradients of maximum likelihood by hand, and Adam's step down them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from usbpo.model.ensemble import BOUNDS
from usbpo.model.passes import Layers, Passes
from usbpo.numerics.device import captured
from usbpo.numerics.optimizer import Adam, Params
from usbpo.numerics.threads import share_out, share_out_in_two

VECTOR = 64
"""Numbers that torch's elementwise functions take at once on a CPU, the most"""


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
        products: precision of the products between hidden layers; default: that of the parameters.
    """

    def __init__(
        self,
        params: Params,
        adam: Adam,
        inputs: Tensor,
        targets: Tensor,
        rows: int,
        log_variance_penalty: float,
        products: torch.dtype | None = None,
    ) -> None:
        self.upper, self.lower = params["max_log_variance"].detach(), params["min_log_variance"].detach()
        self.gradients, self.penalty = adam.gradients, log_variance_penalty
        self.passes = Passes(params, self.gradients, rows, products)
        members = len(self.passes.inputs)
        self._all_inputs, self._all_targets, self._adam = inputs, targets, adam
        self._learn_bounds = adam.part(BOUNDS)
        own = params.keys() - BOUNDS
        self._learn_members = {group: adam.part(own, group.place) for group in self.passes.groups}
        self._targets = targets.new_empty(members, rows, targets.shape[1])
        # torch computes what is left over of its vectors a little otherwise, so a member's numbers may differ in the
        # last bit from the same ones among all members'.
        self._whole_vectors = rows * targets.shape[1] % VECTOR == 0
        self._to_upper, self._to_lower = torch.empty_like(self._targets), torch.empty_like(self._targets)
        self._rows = torch.zeros(members, rows, dtype=torch.int64, device=inputs.device)
        self._step: Callable[[], None] = captured(self.once, inputs.device, adam.changes())

    def take(self, rows: Tensor) -> None:
        """Learn from the given rows, numbers (members, rows)."""
        self._rows.copy_(rows)
        self._step()

    @torch.no_grad()
    def once(self) -> None:
        self._adam.begin()
        if self._whole_vectors:
            share_out_in_two(self.passes.groups, self._flow, self._learn)
        else:
            share_out(self.passes.groups, self._forward)
            self.differentiate(slice(None))
            share_out_in_two(self.passes.groups, Layers.flow_back, self._learn)
        torch.sum(self._to_upper, dim=(0, 1), out=self.gradients["max_log_variance"]).add_(self.penalty)
        torch.sum(self._to_lower, dim=(0, 1), out=self.gradients["min_log_variance"]).sub_(self.penalty)
        self._learn_bounds()

    @torch.no_grad()
    def _forward(self, group: Layers) -> None:
        self.load(group.place)
        group.forward()

    @torch.no_grad()
    def _flow(self, group: Layers) -> None:
        self._forward(group)
        self.differentiate(group.place)
        group.flow_back()

    @torch.no_grad()
    def _learn(self, group: Layers) -> None:
        group.differentiate()
        self._learn_members[group]()

    def load(self, place: int | slice) -> None:
        """Gather the minibatch of some members."""
        rows = self._rows[place].flatten()
        inputs, targets = self.passes.inputs[place], self._targets[place]
        torch.index_select(self._all_inputs, 0, rows, out=inputs.view(-1, inputs.shape[-1]))
        torch.index_select(self._all_targets, 0, rows, out=targets.view(-1, targets.shape[-1]))

    def differentiate(self, place: int | slice) -> None:
        """From the outputs, the gradients of the loss in them and, for each row, in the bounds of the log-variance.

        With v the bounded log-variance and e = mean − target, each entry of a member's (rows, dim) adds
        (e² exp(−v) + v) / (rows · dim). The bounds are u = max − softplus(max − raw), v = min + softplus(u − min).
        """
        mean, raw = self.passes.outputs[place].chunk(2, dim=-1)
        to_mean, to_raw = self.passes.deltas[place].chunk(2, dim=-1)
        share = 1.0 / self._targets[0].numel()
        below_upper = self.upper - raw
        bounded_above = self.upper - softplus(below_upper)
        above_lower = bounded_above - self.lower
        log_variance = self.lower + softplus(above_lower)

        error = mean - self._targets[place]
        weighted = error * torch.exp(-log_variance)
        torch.mul(weighted, 2.0 * share, out=to_mean)
        to_log_variance = share - share * weighted * error
        to_above = to_log_variance * torch.sigmoid(above_lower)
        torch.mul(to_above, torch.sigmoid(below_upper), out=to_raw)
        torch.sub(to_above, to_raw, out=self._to_upper[place])
        torch.sub(to_log_variance, to_above, out=self._to_lower[place])
