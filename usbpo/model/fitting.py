"""The ensemble in phase 1: its parameters, their optimizer, and steps on minibatches of any size."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from usbpo.model.likelihood import LikelihoodStep, decay_by_name
from usbpo.numerics.device import fused_or_none, has_kernels
from usbpo.numerics.optimizer import Adam, Params, copied


class Fit(Protocol):
    """The ensemble in training.

    Attributes:
        params: as they are after the last step.
    """

    params: Params

    def take(self, rows: Tensor) -> None:
        """One step of Adam on the minibatch of these rows, numbers (members, rows)."""

    def moments(self) -> Params:
        """Adam's `step` (), and of each parameter `exp_avg.NAME` and `exp_avg_sq.NAME`."""


class TorchFit:
    """The ensemble in training by torch's kernels, on any device and in any precision.

    Args:
        params: of all members, to go on from; they are not changed.
        moments: Adam's, likewise.
        inputs: all rows, standardised, (all rows, obs_dim + act_dim).
        targets: (reward, s' − s) of all rows, (all rows, obs_dim + 1).
        learning_rate: of Adam.
        weight_decay: factor of the L2 penalty of each layer.
        log_variance_penalty: weight of the bounds' penalty.
        products: precision of the products between hidden layers; default: that of the parameters.
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
        products: torch.dtype | None = None,
    ) -> None:
        self.params = copied(params)
        self._adam = Adam(self.params, learning_rate, moments, decay_by_name(weight_decay))
        self._data, self._further = (inputs, targets), (log_variance_penalty, products)
        self._steps: dict[int, LikelihoodStep] = {}

    def take(self, rows: Tensor) -> None:
        """One step of Adam on the minibatch of these rows, numbers (members, rows)."""
        size = rows.shape[1]
        if size not in self._steps:
            self._steps[size] = LikelihoodStep(self.params, self._adam, *self._data, size, *self._further)
        self._steps[size].take(rows)

    def moments(self) -> Params:
        """Adam's `step` (), and of each parameter `exp_avg.NAME` and `exp_avg_sq.NAME`."""
        return self._adam.moments()


def fit_for(
    params: Params,
    moments: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    products: torch.dtype | None = None,
    **given: Any,
) -> Fit:
    """The fastest fit on the device of the inputs: fused kernels where it has them and they can train the ensemble.

    Args:
        batch_size: rows of a minibatch, the most.
        products: as in `TorchFit`; the kernels know float32 alone.
        given: the further arguments of `TorchFit`.
    """

    def fused_fit() -> Fit | None:
        from usbpo.model import fused  # Triton need not be installed

        if not fused.fits(params):
            return None
        fit = fused.FusedFit(params, moments, inputs, targets, **given)
        fit.prepare(batch_size)
        return fit

    found = fused_or_none(fused_fit) if has_kernels(inputs.device) and products in (None, torch.float32) else None
    return found or TorchFit(params, moments, inputs, targets, products=products, **given)
