"""Which learner updates an agent: fused kernels where the device has them, torch's elsewhere."""

from typing import Any

import torch

from usbpo.agent.learner import Learner
from usbpo.agent.sac import Agent
from usbpo.numerics.device import fused_or_none, has_kernels


def learner_for(agent: Agent, *, rows: int, device: torch.device, **given: Any) -> Learner:
    """The fastest learner for a device: fused kernels where it has them and they can update the agent.

    Args:
        given: the further arguments of `Learner`.
    """

    def fused_learner() -> Learner | None:
        from usbpo.agent import fused  # Triton need not be installed

        return fused.FusedLearner(agent, rows=rows, device=device, **given) if fused.fits(agent, rows) else None

    found = fused_or_none(fused_learner) if has_kernels(device) else None
    return found or Learner(agent, rows=rows, device=device, **given)
