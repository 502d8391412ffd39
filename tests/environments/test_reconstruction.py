"""A simulator's state from an observation: for every task, the same action leads to the same next state and reward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from usbpo.environments.reconstruction import Reconstruction, reconstruction
from usbpo.environments.tasks import Simulator
from usbpo.experiment.run_config import RunConfig

FLOORS = {
    "InvertedPendulum": 1e-6,
    "InvertedDoublePendulum": 1e-5,
    "Hopper": 1e-5,
    "Walker2d": 1e-5,
    "HalfCheetah": 1e-4,
    "Swimmer": 1e-5,
    "AntTruncated": 0.2,
    "HumanoidTruncated": 0.02,
}
"""Largest distance of (reward, s') that a reconstructed state may lead to, in raw units; a step is 1 to 20 long.
The rewards of Ant and Humanoid come from body positions, which lag behind the joints and are not observed."""
CLIPPED = {"InvertedDoublePendulum": 10.0, "Hopper": 10.0, "Walker2d": 10.0}
QUATERNION = slice(1, 5)
"""Of a legged robot's observation: height, then orientation."""

Episode = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]


def simulator_of(config: RunConfig) -> Simulator:
    return Simulator(config.environment.id, config.environment.arguments)


def world_of(config: RunConfig) -> Reconstruction:
    found = reconstruction(simulator_of(config))
    assert found is not None
    return found


def met(config: RunConfig, steps: int) -> Episode:
    """Observations and actions of random episodes, as they are stored, and (reward, next observation) of each step."""
    simulator, rng = simulator_of(config), np.random.default_rng(1)
    observation, rows = simulator.reset(3), []
    for _ in range(steps):
        action = rng.uniform(-1, 1, simulator.act_dim).astype(np.float32)
        step = simulator.step(action)
        rows.append((observation.astype(np.float32), action, np.array([step.reward, *step.observation])))
        observation = simulator.reset() if step.terminated or step.truncated else step.observation
    observations, actions, outcomes = (np.array(column) for column in zip(*rows, strict=True))
    return observations, actions, outcomes


@pytest.mark.parametrize("task", FLOORS)
def test_a_step_from_a_reconstructed_state_is_the_real_one(run_config: Callable[[str], RunConfig], task: str) -> None:
    config = run_config(task)
    world = world_of(config)
    observations, actions, outcomes = met(config, 150)
    known = world.determines(observations)
    assert known.sum() >= 15
    errors = np.linalg.norm(world.next_states(observations, actions) - outcomes, axis=1)
    assert np.isnan(errors[~known]).all()
    assert errors[known].max() < FLOORS[task]
    moved = np.linalg.norm(outcomes[:, 1:] - observations, axis=1)
    assert np.median(errors[known]) < 1e-3 * np.median(moved)


@pytest.mark.parametrize("task", FLOORS)
def test_clipped_velocities_are_known_and_such_states_are_not_believed(
    run_config: Callable[[str], RunConfig], task: str
) -> None:
    world = world_of(run_config(task))
    assert world.bound == CLIPPED.get(task)
    observation = world.simulator.reset(0)
    assert world.determines(observation[None]).all()
    fast = observation.copy()
    fast[-2] = 10.0  # a velocity in every task: only the double pendulum has something after them
    assert world.determines(fast[None]).all() == (world.bound is None)
    fast[0] = np.nan
    assert not world.determines(fast[None]).any()


@pytest.mark.parametrize("task", ["AntTruncated", "HumanoidTruncated"])
def test_quaternions_that_a_model_predicts_are_normalised(run_config: Callable[[str], RunConfig], task: str) -> None:
    config = run_config(task)
    world = world_of(config)
    observations, actions, _ = met(config, 5)
    longer = observations.copy()
    longer[:, QUATERNION] *= 1.3
    np.testing.assert_allclose(
        world.next_states(longer, actions), world.next_states(observations, actions), rtol=1e-4, atol=1e-4
    )


def test_a_row_leaves_nothing_to_the_next(run_config: Callable[[str], RunConfig]) -> None:
    config = run_config("Hopper")
    observations, actions, _ = met(config, 30)
    world = world_of(config)
    together = world.next_states(observations, actions)
    again = np.concatenate([world.next_states(observations[[i]], actions[[i]]) for i in range(29, -1, -1)])[::-1]
    np.testing.assert_array_equal(together, again)


def test_following_actions_is_the_episode(run_config: Callable[[str], RunConfig]) -> None:
    config = run_config("HalfCheetah")
    observations, actions, outcomes = met(config, 4)
    many = np.concatenate([actions, np.full((1, actions.shape[1]), np.nan, np.float32)])
    followed = world_of(config).follow(observations[:1], many[None])
    np.testing.assert_allclose(followed[0, :4], outcomes, atol=1e-3)
    assert np.isnan(followed[0, 4]).all(), "the branch ends before the first action that is none"


def test_unstable_motion_has_no_next_state_and_leaves_no_file(
    run_config: Callable[[str], RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MuJoCo would begin anew without a word to the caller, and write MUJOCO_LOG.TXT."""
    monkeypatch.chdir(tmp_path)
    world = world_of(run_config("HalfCheetah"))
    observation = world.simulator.reset(0)
    wild = np.stack([observation, observation])
    wild[0, -1] = 1e11
    made = world.next_states(wild, np.zeros((2, 6)))
    assert np.isnan(made[0]).all()
    assert np.isfinite(made[1]).all()
    assert not list(tmp_path.iterdir())
    assert mujoco.get_mju_user_warning() is None


@pytest.mark.parametrize(
    ("environment", "arguments", "possible"),
    [
        ("Hopper-v5", {"exclude_current_positions_from_observation": False}, True),
        ("Ant-v5", {}, True),  # contact forces after the state
        ("Reacher-v5", {}, False),
        ("Pusher-v5", {}, False),
    ],
)
def test_a_task_is_tried_out_and_not_looked_up(environment: str, arguments: dict[str, Any], possible: bool) -> None:
    assert (reconstruction(Simulator(environment, arguments)) is not None) == possible


class Turned(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Has the length of a plain observation, but the entries in another order."""

    def observation(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        return observation[::-1].copy()


def test_an_observation_of_the_right_length_but_another_meaning_is_not_believed() -> None:
    simulator = Simulator("Hopper-v5")
    simulator.env = Turned(simulator.env)
    assert reconstruction(simulator) is None
