"""The policy for one observation at a time, as the real steps need it."""

from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray

from usbpo.agent.sac import LOG_STD_BOUNDS
from usbpo.errors import UsbpoError
from usbpo.numerics.optimizer import Params

Vector = NDArray[np.float32]
Observation = NDArray[np.float32] | NDArray[np.float64]


class OneByOne:
    """`sac.sample_action` and `sac.mean_action` of a single row, without what a call of torch costs beside arithmetic.

    The matrix products are torch's, which has one thread; everything else is a handful of numbers in numpy, on the same
    memory.

    Args:
        actor: the policy's tensors on the CPU; later changes of them are not seen.
    """

    def __init__(self, actor: Params) -> None:
        layers = range(len(actor) // 2)
        weights = [actor[f"weight.{n}"].detach().t().clone(memory_format=torch.contiguous_format) for n in layers]
        biases = [actor[f"bias.{n}"].detach()[0].clone() for n in layers]
        outputs = [torch.zeros_like(bias) for bias in biases]
        self._input = torch.zeros(weights[0].shape[1], dtype=weights[0].dtype)
        inputs = [self._input, *outputs]
        products = zip(biases, weights, inputs, outputs, strict=False)
        *self._hidden_layers, self._last_layer = zip(products, (output.numpy() for output in outputs), strict=True)
        self._given = self._input.numpy()
        self._mean, self._log_std = np.split(outputs[-1].numpy(), 2)

    def mean(self, observation: Observation) -> Vector:
        """The deterministic action (act_dim,) in [−1, 1] for an observation (obs_dim,)."""
        self._run(observation)
        action: Vector = np.tanh(self._mean)
        return action

    def sample(self, observation: Observation, noise: Vector) -> Vector:
        """The action (act_dim,) for an observation (obs_dim,) and standard normal noise (act_dim,)."""
        self._run(observation)
        std = np.exp(np.minimum(np.maximum(self._log_std, LOG_STD_BOUNDS[0]), LOG_STD_BOUNDS[1]))
        action: Vector = np.tanh(self._mean + std * noise)
        return action

    def _run(self, observation: Observation) -> None:
        self._given[:] = observation
        for (bias, weight, inputs, output), hidden in self._hidden_layers:
            torch.addmv(bias, weight, inputs, out=output)
            np.maximum(hidden, 0.0, out=hidden)
        (bias, weight, inputs, output), _ = self._last_layer
        torch.addmv(bias, weight, inputs, out=output)


def check_action(action: NDArray[np.floating]) -> None:
    """Check that an action may be taken.

    Raises:
        UsbpoError: it is NaN, as those of a policy that has diverged.
    """
    if not isfinite(action.sum()):
        raise UsbpoError("an action of the policy is NaN, so it has diverged; lower policy.learning_rate.")
