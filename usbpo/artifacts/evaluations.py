"""Evaluations on disk: return, length and seed of each episode of the deterministic policy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from usbpo.artifacts import hdf5, sealing
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError

KIND = "evaluation"
STEPS = "on_policy_steps"
"""The parameter that says how many real on-policy steps the policy has seen"""


@dataclass(frozen=True)
class Episodes:
    """The episodes of one evaluation, at least one."""

    returns: NDArray[np.float64]
    """(episodes,), undiscounted"""
    lengths: NDArray[np.int64]
    """(episodes,), in steps"""
    seeds: NDArray[np.int64]
    """(episodes,): the seed each episode was reset with"""


def write(path: Path, header: Header, episodes: Episodes) -> str:
    """Write an evaluation; its header has the parameter `STEPS`, which other tools find as an attribute, too."""
    return hdf5.write(path, header, vars(episodes), {STEPS: header.parameters[STEPS]})


def read(path: Path, *, finite: bool = True) -> tuple[Header, Episodes]:
    """Read an evaluation, whose header says how many `STEPS` were taken.

    Args:
        finite: whether returns that are not are refused.

    Raises:
        UsbpoError: it is missing, damaged, of another kind, or does not hold one finite return for each episode.
    """
    with hdf5.opened(path, KIND) as arrays:
        returns = arrays.take("returns", np.float64)
        episodes = Episodes(returns, *(arrays.take(name, np.int64) for name in ("lengths", "seeds")))
        header = arrays.header
    if type(header.parameters.get(STEPS)) is not int:
        raise UsbpoError(f"{path}: its header does not say how many steps its policy has seen; {sealing.CURE}.")
    shapes = {values.shape for values in vars(episodes).values()}
    if len(shapes) > 1 or returns.size == 0 or (finite and not np.isfinite(returns).all()):
        raise UsbpoError(f"{path}: it does not hold one finite return for each episode; delete it and run again.")
    return header, episodes
