"""Environments: tasks through Gymnasium, with actions in [−1, 1] and, where they can, an exactly restorable state."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from usbpo.environments import usercode
from usbpo.errors import UsbpoError
from usbpo.numerics.seeding import pack_generator, unpack_generator

_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)

DATA_SIZES = "has {} observations and {} actions"
POLICY_SIZES = "takes {} observations and gives {} actions"
"""How a sentence says the sizes of data or of a model, and those of a policy"""

_OWN = "state."
"""Begins the names of the arrays that an environment's own `get_state` gives."""


@dataclass(frozen=True)
class Step:
    """What one step of the environment gives back."""

    observation: NDArray[np.float64]
    reward: float
    terminated: bool
    truncated: bool


class Simulator:
    """A task whose actions lie in [−1, 1]^act_dim and whose observations are flat.

    Its state can be stored and restored exactly where it is a MuJoCo task, or where the unwrapped environment has
    `get_state()`, which gives named arrays, and `set_state(arrays)`, which takes them back. The time limit's counter
    and the environment's generator `np_random` are taken care of here.

    Args:
        environment: Gymnasium id, or `module:id` for one that the user's module registers.
        arguments: keyword arguments of `gymnasium.make`.

    Raises:
        UsbpoError: the id is unknown, an argument does not fit, the spaces are not boxes with bounded actions, or
            there is no time limit.
    """

    def __init__(self, environment: str, arguments: Mapping[str, Any] | None = None) -> None:
        self.name = environment
        self.env = make(environment, arguments)
        if faults := space_faults(self.env):
            raise UsbpoError(f"environment {environment!r}: {'; '.join(faults)}.")
        self.time_limit: Any = time_limit(self.env)
        if self.time_limit is None:
            raise UsbpoError(
                f"environment {environment!r} has no time limit; add max_episode_steps to environment.arguments."
            )
        base: Any = self.env.unwrapped
        self.base = base
        self.is_mujoco = isinstance(base, MujocoEnv)
        actions, observations = self.env.action_space, self.env.observation_space
        self.low = actions.low.astype(np.float64)
        self.high = actions.high.astype(np.float64)
        self.obs_dim = int(np.prod(observations.shape))
        self.act_dim = int(np.prod(actions.shape))

    @property
    def restorable(self) -> bool:
        """Whether the state within an episode can be stored and restored."""
        return self.is_mujoco or all(callable(getattr(self.base, name, None)) for name in ("get_state", "set_state"))

    def require_restorable(self) -> None:
        """Check that an episode can go on in another process.

        Raises:
            UsbpoError: it cannot.
        """
        if not self.restorable:
            raise UsbpoError(
                f"environment {self.name!r} cannot be restored in mid-episode, for it is no MuJoCo task and has no "
                "get_state and set_state; give it both, or set environment.episodes to end_with_cycle."
            )

    def require_sizes(
        self, what: str, sizes: tuple[int, int], cure: str, *, said: str = DATA_SIZES, name: str | None = None
    ) -> None:
        """Check that data, a model or a policy has as many observations and actions as the task.

        Args:
            what: the subject of the sentence: the file, and what in it has the sizes.
            sizes: obs_dim and act_dim of it.
            cure: what to do.
            said: `DATA_SIZES` or `POLICY_SIZES`.
            name: what the sentence calls the task; the environment's id without it.

        Raises:
            UsbpoError: it has others.
        """
        if sizes != (self.obs_dim, self.act_dim):
            raise UsbpoError(
                f"{what} {said.format(*sizes)}, but {name or self.name} has {self.obs_dim} and {self.act_dim}; {cure}."
            )

    def reset(self, seed: int | None = None) -> NDArray[np.float64]:
        """Begin an episode; `seed` reseeds the environment's generator. Returns the observation (obs_dim,)."""
        observation, _ = self.env.reset(seed=seed)
        return self._flat(observation)

    def scaled(self, action: NDArray[np.floating]) -> NDArray[np.floating]:
        """The environment's action, as its action space has it, for an action in [−1, 1]^act_dim."""
        shaped: NDArray[np.float64] = np.asarray(action, dtype=np.float64).reshape(self.low.shape)
        return fitted(self.low + (shaped + 1.0) * 0.5 * (self.high - self.low), self.env.action_space)

    def step(self, action: NDArray[np.floating]) -> Step:
        """Take one step with an action in [−1, 1]^act_dim."""
        observation, reward, terminated, truncated, _ = self.env.step(self.scaled(action))
        return Step(self._flat(observation), float(reward), bool(terminated), bool(truncated))

    def _flat(self, observation: Any) -> NDArray[np.float64]:
        flat = np.array(observation, dtype=np.float64).reshape(-1)  # a copy: it may be a buffer of the environment's
        if flat.shape != (self.obs_dim,):
            raise UsbpoError(
                f"environment {self.name!r} gives an observation of {flat.size} numbers, but its observation space "
                f"has {self.obs_dim}; mend the environment."
            )
        return flat

    def state(self) -> dict[str, NDArray[Any]]:
        """The whole state within an episode, as arrays.

        `mjSTATE_INTEGRATION` holds what MuJoCo integrates; `xpos` and `xipos` lag one substep behind it and enter
        the next reward of Ant and Humanoid; the generator draws the next episode's start.

        Raises:
            UsbpoError: the environment cannot be restored, or its `get_state` gives anything but arrays of numbers.
        """
        self.require_restorable()
        return {
            **(self._physics() if self.is_mujoco else self._own_state()),
            "elapsed_steps": np.array(self.time_limit._elapsed_steps, dtype=np.int64),
            "environment_generator": pack_generator(self.base.np_random),
        }

    def _physics(self) -> dict[str, NDArray[Any]]:
        model, data = self.base.model, self.base.data
        physics = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
        mujoco.mj_getState(model, data, physics, _INTEGRATION)
        return {"physics": physics, "xpos": data.xpos.copy(), "xipos": data.xipos.copy()}

    def _own_state(self) -> dict[str, NDArray[Any]]:
        state = self.base.get_state()
        arrays = isinstance(state, Mapping) and all(
            isinstance(name, str) and "/" not in name and isinstance(values, np.ndarray) and values.dtype.kind in "biuf"
            for name, values in state.items()
        )
        if not arrays:
            raise UsbpoError(
                f"environment {self.name!r}: get_state must give a dict of numpy arrays of numbers by name (no slash "
                "in it), so that they can be stored; mend the environment."
            )
        return {f"{_OWN}{name}": values.copy() for name, values in state.items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue exactly where `state` was taken.

        Raises:
            UsbpoError: the state belongs to another task, or the environment cannot be restored.
        """
        self.require_restorable()
        if self.is_mujoco:
            self._restore_physics(state)
        else:
            self._restore_own_state(state)
        self.time_limit._elapsed_steps = int(state["elapsed_steps"].item())
        self.base.np_random = unpack_generator(state["environment_generator"])

    def _restore_physics(self, state: Mapping[str, NDArray[Any]]) -> None:
        model, data = self.base.model, self.base.data
        size = mujoco.mj_stateSize(model, _INTEGRATION)
        if "physics" not in state or state["physics"].shape != (size,) or state["xpos"].shape != data.xpos.shape:
            stored = f"has {state['physics'].size} numbers" if "physics" in state else "is none of MuJoCo's"
            raise UsbpoError(
                f"the stored simulator state {stored}, but {self.name} needs {size}; it belongs to another task, so "
                "collect this run's data anew."
            )
        self.env.reset(seed=0)
        mujoco.mj_setState(model, data, state["physics"], _INTEGRATION)
        data.xpos[:] = state["xpos"]
        data.xipos[:] = state["xipos"]

    def _restore_own_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.env.reset(seed=0)
        now = self._own_state()
        stored = {name: values for name, values in state.items() if name.startswith(_OWN)}
        if stored.keys() != now.keys():
            raise UsbpoError(
                f"the stored simulator state does not have the arrays that get_state of {self.name} gives; it belongs "
                "to another task, so collect this run's data anew."
            )
        # A file holds no array without dimensions.
        shaped = {name: values.reshape(()) if now[name].ndim == 0 else values for name, values in stored.items()}
        self.base.set_state({name.removeprefix(_OWN): values.copy() for name, values in shaped.items()})

    def close(self) -> None:
        """Free the environment."""
        self.env.close()


def make(environment: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """The Gymnasium environment of an id, `module:id` for one that a module of the user's registers.

    Raises:
        UsbpoError: it cannot be made.
    """
    usercode.make_importable()
    if ":" in environment:
        module = environment.partition(":")[0]
        usercode.refuse_data(module)
        usercode.imported.add(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gymnasium.make(environment, disable_env_checker=True, **(arguments or {}))
    except Exception as error:  # the environment may be the user's own, and fail in any way
        known = isinstance(error, gymnasium.error.Error | TypeError | ImportError | OSError)
        what = str(error).rstrip(".") if known else usercode.told(error)
        raise UsbpoError(f"environment {environment!r} cannot be made: {what}; mend its id or arguments.") from error


def fitted(values: Any, space: Box) -> NDArray[np.floating]:
    """Numbers as a box takes them: in its shape and type, and what rounding has moved over its bounds back on them.

    Returns:
        An array of its own, which an environment may change.
    """
    found: NDArray[np.floating] = np.empty(space.shape, space.dtype)
    found[...] = values
    np.clip(found, space.low, space.high, out=found)
    return found


def space_faults(env: Any) -> list[str]:
    """What is wrong with the spaces of an environment, and what to do."""
    faults = []
    for name, space in (("action", env.action_space), ("observation", env.observation_space)):
        if not isinstance(space, Box):
            faults.append(f"its {name} space is {type(space).__name__}, but must be a Box; take or write one that is")
        elif name == "action" and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            faults.append("its actions are not bounded; give its action space finite low and high")
        elif name == "action" and space.dtype.kind != "f":
            faults.append(f"its actions are {space.dtype}, but must be real numbers; give its box a float dtype")
    return faults


def time_limit(env: Any) -> Any:
    """The time limit among the environment's wrappers; None where there is none."""
    while not isinstance(env, TimeLimit):
        if not isinstance(env, gymnasium.Wrapper):
            return None
        env = env.env
    return env


def read_arguments(text: str) -> dict[str, Any]:
    """The environment's keyword arguments from JSON, as the stages take them.

    Raises:
        UsbpoError: the text is no JSON object.
    """
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise UsbpoError(f"--environment-arguments is not JSON ({error}); write an object like {{}}.") from error
    if not isinstance(arguments, dict):
        raise UsbpoError(f"--environment-arguments must be a JSON object, but is {text}; write an object like {{}}.")
    return arguments
