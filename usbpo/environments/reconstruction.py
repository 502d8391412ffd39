"""Setting a MuJoCo simulator's state from an observation, so that the real next state of any state can be asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from usbpo.environments.tasks import Simulator

Array = NDArray[np.float64]
Layout = Callable[[MujocoEnv, Array], tuple[Array, Array] | None]
"""Joint positions (nq,) and velocities (nv,) from an observation; None where its length does not fit."""

PROBES = 20
"""Steps of an episode of its own on which a layout must prove itself."""
TOLERANCE = 0.05
"""Largest error of a step from a reconstructed state, as a share of that step, that a layout is accepted with. Right
layouts stay below 1 %, wrong ones are off by more than the step."""
FAST = 1e3
"""A joint velocity that no clipped observation shows."""


def after_root(left_out: int, base: MujocoEnv, observation: Array) -> tuple[Array, Array] | None:
    """qpos but its first `left_out` entries, then qvel, then anything (the pendulum, legged robots, the swimmer).

    The entries that are left out, the root's place on the ground, stay where an episode begins.
    """
    positions = base.model.nq - left_out
    if positions < 1 or len(observation) < positions + base.model.nv:
        return None
    qpos = np.array(base.init_qpos, dtype=np.float64)
    qpos[left_out:] = observation[:positions]
    return qpos, observation[positions : positions + base.model.nv].copy()


def sines_and_cosines(base: MujocoEnv, observation: Array) -> tuple[Array, Array] | None:
    """The first joint's position, sines and cosines of all other joints, then qvel, then anything (double pendulum)."""
    angles, velocities = base.model.nq - 1, base.model.nv
    if angles < 1 or len(observation) < 1 + 2 * angles + velocities:
        return None
    sines, cosines = observation[1 : 1 + angles], observation[1 + angles : 1 + 2 * angles]
    qpos = np.concatenate([observation[:1], np.arctan2(sines, cosines)])
    return qpos, observation[1 + 2 * angles : 1 + 2 * angles + velocities].copy()


LAYOUTS: tuple[Layout, ...] = (*(partial(after_root, left_out) for left_out in (0, 1, 2)), sines_and_cosines)
"""What observations are known to be made of; which one a task has is tried out, not looked up by its name."""


@dataclass(frozen=True)
class Reconstruction:
    """The way from a task's observations back to its simulator's states."""

    simulator: Simulator
    base: MujocoEnv
    layout: Layout
    bound: float | None
    """Where the observation clips joint velocities; None if it does not."""

    def determines(self, observations: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Whether each observation (rows, obs_dim) determines a state: it is finite, and no velocity is clipped."""
        found: NDArray[np.bool_] = np.isfinite(observations).all(axis=1)
        for row in np.flatnonzero(found):
            _, velocities = self._state(observations[row])
            found[row] = self.bound is None or bool(np.abs(velocities).max() < self.bound * (1 - 1e-6))
        return found

    def follow(self, starts: NDArray[np.floating], actions: NDArray[np.floating]) -> Array:
        """What the simulator does from the states of some observations under given actions.

        Args:
            starts: (branches, obs_dim); quaternions are normalised.
            actions: (branches, steps, act_dim), in [−1, 1]; a branch ends before the first action that is NaN.

        Returns:
            (branches, steps, 1 + obs_dim): reward and next observation of each step; NaN where the branch has ended,
            where its start determines no state, and from where MuJoCo finds the motion unstable.
        """
        made = np.full((*actions.shape[:2], 1 + starts.shape[1]), np.nan)
        with _warnings() as warned:
            for branch in np.flatnonzero(self.determines(starts)):
                warned.clear()
                self._place(starts[branch])
                for step, action in enumerate(actions[branch]):
                    if warned or not np.isfinite(action).all():
                        break
                    taken = self.simulator.step(action)
                    if not warned:  # after a warning the simulator has begun anew by itself
                        made[branch, step] = [taken.reward, *taken.observation]
        return made

    def next_states(self, observations: NDArray[np.floating], actions: NDArray[np.floating]) -> Array:
        """One step from each state: reward and next observation, (rows, 1 + obs_dim); NaN as in `follow`.

        Args:
            observations: (rows, obs_dim).
            actions: (rows, act_dim), in [−1, 1].
        """
        return self.follow(observations, actions[:, None])[:, 0]

    def _state(self, observation: NDArray[np.floating]) -> tuple[Array, Array]:
        state = self.layout(self.base, np.asarray(observation, dtype=np.float64))
        assert state is not None, "the layout has been tried on observations of this length"
        return state

    def _place(self, observation: NDArray[np.floating]) -> None:
        qpos, qvel = self._state(observation)
        for joint in range(self.base.model.njnt):
            if (first := _quaternion(self.base.model, joint)) is not None:
                mujoco.mju_normalize4(qpos[first : first + 4])
        # Nothing of the row before is left, not even where the solver of the contact forces starts from.
        mujoco.mj_resetData(self.base.model, self.base.data)
        _set_state(self.base, qpos, qvel)


def reconstruction(simulator: Simulator) -> Reconstruction | None:
    """The way to this simulator's states, or None where no known layout leads back to them.

    Each of `LAYOUTS` that fits is tried on an episode: from the reconstructed state, the same action must lead to the
    same reward and next observation. So a task is never believed to be reconstructable because of its name.
    """
    base = simulator.env.unwrapped
    if not isinstance(base, MujocoEnv):
        return None
    rng = np.random.default_rng(0)
    observations, actions, outcomes = [simulator.reset(0)], rng.uniform(-1, 1, (PROBES, simulator.act_dim)), []
    for action in actions:
        step = simulator.step(action)
        outcomes.append(np.array([step.reward, *step.observation]))
        observations.append(step.observation)
        if step.terminated or step.truncated:
            observations[-1] = simulator.reset()
    before, after = np.array(observations[:-1]), np.array(outcomes)
    steps = np.linalg.norm(after[:, 1:] - before, axis=1)
    for layout in LAYOUTS:
        if layout(base, before[0]) is None:
            continue
        found = Reconstruction(simulator, base, layout, _velocity_bound(base, layout))
        errors = np.linalg.norm(found.next_states(before, actions) - after, axis=1)
        tried = found.determines(before)
        if tried.any() and (errors[tried] <= TOLERANCE * steps[tried]).all():
            return found
    return None


def _velocity_bound(base: MujocoEnv, layout: Layout) -> float | None:
    """Where observations clip velocities, seen on a state whose joints are faster than any clip."""
    observe: Any = getattr(base, "_get_obs", None)
    if observe is None:
        return None
    _set_state(base, np.array(base.init_qpos), np.full(base.model.nv, FAST))
    state = layout(base, np.asarray(observe(), dtype=np.float64))
    fastest = FAST if state is None else float(np.abs(state[1]).max())
    return fastest if fastest < FAST else None


def _set_state(base: MujocoEnv, qpos: Array, qvel: Array) -> None:
    base.set_state(qpos, qvel)  # type: ignore[no-untyped-call]


def _quaternion(model: Any, joint: int) -> int | None:
    """Where in qpos a joint's quaternion begins; None for hinges and slides."""
    address, kind = int(model.jnt_qposadr[joint]), int(model.jnt_type[joint])
    return {int(mujoco.mjtJoint.mjJNT_FREE): address + 3, int(mujoco.mjtJoint.mjJNT_BALL): address}.get(kind)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Gather MuJoCo's warnings, which it would else print and write into a file of the current folder."""
    warned: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warned.append)
    try:
        yield warned
    finally:
        mujoco.set_mju_user_warning(before)
