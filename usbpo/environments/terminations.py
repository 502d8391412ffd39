"""Termination functions of the tasks, for states that a model predicts.

Each takes a batch of next observations (rows, obs_dim) and returns a boolean array (rows,), True where the
episode ends. Each is written "healthy, then negate", so that NaN, which fails every comparison, is terminal.
The rules are those of Gymnasium's v5 tasks (`docs/algorithm.md`, terminations). A user's own function is named
`module:function` and need not be here (`docs/own-task.md`).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from usbpo.environments import usercode
from usbpo.errors import UsbpoError

Observations = NDArray[np.floating]
Termination = Callable[[Observations], NDArray[np.bool_]]


def never(observations: Observations) -> NDArray[np.bool_]:
    """No state is terminal (HalfCheetah, Swimmer)."""
    return np.zeros(len(observations), dtype=np.bool_)


def inverted_pendulum(observations: Observations) -> NDArray[np.bool_]:
    """The pole leans by more than 0.2 rad. Observation: x, θ, and their velocities."""
    healthy = np.isfinite(observations).all(axis=1) & (np.abs(observations[:, 1]) <= 0.2)
    return np.asarray(~healthy)


def inverted_double_pendulum(observations: Observations) -> NDArray[np.bool_]:
    """The tip is not above 1 m. Observation: x, sin θ1, sin θ2, cos θ1, cos θ2, …; θ2 is relative to pole 1.

    Both poles are 0.6 m long, so the tip is 0.6 (cos θ1 + cos(θ1 + θ2)) high.
    """
    sin1, sin2, cos1, cos2 = observations[:, 1:5].T
    height = 0.6 * (cos1 + cos1 * cos2 - sin1 * sin2)
    healthy = height > 1.0
    return np.asarray(~healthy)


def hopper(observations: Observations) -> NDArray[np.bool_]:
    """Too low, too inclined or too fast. Observation: z, torso angle, joint angles, velocities."""
    healthy = (
        np.isfinite(observations).all(axis=1)
        & (np.abs(observations[:, 1:]) < 100).all(axis=1)
        & (observations[:, 0] > 0.7)
        & (np.abs(observations[:, 1]) < 0.2)
    )
    return np.asarray(~healthy)


def walker2d(observations: Observations) -> NDArray[np.bool_]:
    """Height outside (0.8, 2) or angle outside (−1, 1). Observation: z, torso angle, …"""
    height, angle = observations[:, 0], observations[:, 1]
    healthy = (height > 0.8) & (height < 2.0) & (np.abs(angle) < 1.0)
    return np.asarray(~healthy)


def ant(observations: Observations) -> NDArray[np.bool_]:
    """Height outside [0.2, 1]. Observation: z, orientation, …"""
    height = observations[:, 0]
    healthy = np.isfinite(observations).all(axis=1) & (height >= 0.2) & (height <= 1.0)
    return np.asarray(~healthy)


def humanoid(observations: Observations) -> NDArray[np.bool_]:
    """Height outside (1, 2). Observation: z, orientation, …"""
    height = observations[:, 0]
    healthy = (height > 1.0) & (height < 2.0)
    return np.asarray(~healthy)


TERMINATIONS: dict[str, Termination] = {
    function.__name__: function
    for function in (never, inverted_pendulum, inverted_double_pendulum, hopper, walker2d, ant, humanoid)
}
"""The functions by the name that a task file gives."""


def find(name: str) -> Termination:
    """A termination function by its name here, or a user's by `module:function`.

    Raises:
        UsbpoError: there is none of that name, its module cannot be imported, or, when it is called, it fails or
            returns anything but one boolean for each row.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        function = getattr(usercode.import_module(module), attribute, None)
    elif name in TERMINATIONS:
        function = TERMINATIONS[name]
    else:
        raise UsbpoError(f"unknown termination {name!r}; known are {', '.join(TERMINATIONS)}, or module:function.")
    if not callable(function):
        raise UsbpoError(f"termination {name!r}: the module {module!r} has no function {attribute!r}; mend the name.")

    def checked(observations: Observations) -> NDArray[np.bool_]:
        seen = observations.view()
        seen.flags.writeable = False  # the rollouts keep what they show
        try:
            terminal = np.asarray(function(seen))
        except Exception as error:
            raise UsbpoError(
                f"termination {name!r} fails: {usercode.told(error)}; mend it, or name the one of this task."
            ) from error
        if terminal.dtype != np.bool_ or terminal.shape != (len(observations),):
            raise UsbpoError(
                f"termination {name!r} returns {terminal.dtype} of shape {terminal.shape} for {len(observations)} "
                f"observations; it must return bool of shape ({len(observations)},)."
            )
        return terminal

    return checked
