"""What the model stages share: real data as tensors, and the split into training and hold-out rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError
from usbpo.numerics.seeding import numpy_generator


@dataclass(frozen=True)
class ModelData:
    """Inputs (observation, action) and targets (reward, s' − s) of the dynamics model."""

    inputs: Tensor
    """(rows, obs_dim + act_dim)"""
    targets: Tensor
    """(rows, obs_dim + 1)"""

    def rows(self, index: Tensor) -> "ModelData":
        """Some rows."""
        return ModelData(self.inputs[index], self.targets[index])

    def to(self, device: torch.device) -> "ModelData":
        """The same rows on a device."""
        return ModelData(self.inputs.to(device), self.targets.to(device))


def model_data(batch: Transitions) -> ModelData:
    """Real transitions as the model sees them."""
    observations = torch.from_numpy(batch.observations)
    inputs = torch.cat([observations, torch.from_numpy(batch.actions)], dim=1)
    rewards = torch.from_numpy(batch.rewards)[:, None]
    deltas = torch.from_numpy(batch.next_observations) - observations
    return ModelData(inputs, torch.cat([rewards, deltas], dim=1))


def split_holdout(rows: int, seed: int, cycle: int, ratio: float, limit: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the hold-out rows of one cycle.

    Phase 1 and phase 2 of a cycle ask with the same arguments and so hold out the same rows.

    Raises:
        UsbpoError: there are too few rows to hold one out and train on another.
    """
    count = min(int(rows * ratio), limit)
    if count < 1 or count >= rows:
        raise UsbpoError(
            f"{rows} real rows are too few to hold out a share of {ratio:g} of them; collect more random steps."
        )
    order = torch.from_numpy(numpy_generator(seed, cycle, "holdout").permutation(rows))
    return order[count:], order[:count]
