"""The event trigger of CMLO (arXiv 2210.08349): how far the model may have fallen behind the data that came since.

After each training of the model, the estimate S grows at every check by `log(vol / vol_0 · L̄ + 1)`: `vol` is the volume
of the convex hull of states of D_env, `vol_0` a reference volume, and L̄ the mean error of the model on the real steps
since. The model is trained again when S exceeds a threshold.
"""

from dataclasses import dataclass, replace
from math import log
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from usbpo.artifacts.transitions import Transitions
from usbpo.model.ensemble import Ensemble, predict

Reference = Literal["last_training", "previous_check"]


@dataclass(frozen=True)
class Trigger:
    """What the trigger knows of the time since the last training of the model."""

    estimate: float = 0.0
    """S"""
    error_sum: float = 0.0
    """Sum over the real steps since the last training of the model's error on each."""
    steps: int = 0
    """Real steps since the last training"""
    reference_volume: float = 0.0
    """Volume that the next one is divided by"""

    @property
    def mean_error(self) -> float:
        """L̄, the mean error of the model on the real steps since the last training; 0 without any."""
        return self.error_sum / self.steps if self.steps else 0.0

    def seen(self, errors: NDArray[np.float64]) -> "Trigger":
        """After further real steps with these errors (steps,) of the model."""
        return replace(self, error_sum=self.error_sum + float(errors.sum()), steps=self.steps + len(errors))

    def checked(self, volume: float, reference: Reference) -> "Trigger":
        """After a check that found this volume: `S += log(vol / vol_0 · L̄ + 1)`.

        A reference volume of 0, of states in a plane, says nothing of growth; the ratio then counts as 1.
        """
        ratio = volume / self.reference_volume if self.reference_volume > 0 else 1.0
        estimate = self.estimate + log(ratio * self.mean_error + 1.0)
        kept = volume if reference == "previous_check" else self.reference_volume
        return replace(self, estimate=estimate, reference_volume=kept)

    def verdict(self, threshold: float, min_steps: int, max_steps: int) -> str | None:
        """Why the model is to be trained now, or None."""
        if self.steps >= max_steps:
            return f"{max_steps} steps since the last training"
        if self.estimate > threshold and self.steps >= min_steps:
            return "the estimate exceeds the threshold"
        return None


def hull_volume(states: NDArray[np.floating], dimensions: int) -> float:
    """Volume of the convex hull of states (rows, obs_dim) in their first principal components.

    The components are fitted to these very states (CMLO, released code). States that span fewer dimensions have the
    volume 0; in one dimension the volume is the range.
    """
    centred = np.asarray(states, dtype=np.float64) - np.mean(states, axis=0, dtype=np.float64)
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    points = centred @ components[:dimensions].T
    if points.shape[1] == 1:
        return float(np.ptp(points))
    try:
        return float(ConvexHull(points).volume)
    except QhullError:
        return 0.0


def model_errors(ensemble: Ensemble, real: Transitions, generator: torch.Generator) -> NDArray[np.float64]:
    """Mean over the elites of ‖sampled next state − real next state‖₂ (CMLO, released code), for each row: (rows,)."""
    columns = (real.observations, real.actions, real.next_observations)
    observations, actions, next_observations = map(torch.from_numpy, columns)
    with torch.no_grad():
        mean, std = (part[ensemble.elites] for part in predict(ensemble, ensemble.params, observations, actions))
        sampled = mean + std * torch.randn(mean.shape, generator=generator)
        distances = torch.linalg.vector_norm(sampled[..., 1:] - next_observations, dim=-1)
    return np.asarray(distances.mean(dim=0).numpy(), dtype=np.float64)
