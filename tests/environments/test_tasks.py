"""The tasks of the table: their dimensions, their actions in [−1, 1], and states that are restored exactly."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.spaces import Box
from numpy.typing import NDArray

from usbpo.environments.tasks import POLICY_SIZES, Simulator, Step
from usbpo.errors import UsbpoError
from usbpo.experiment.run_config import RunConfig

DIMENSIONS = {
    "InvertedPendulum": (4, 1),
    "InvertedDoublePendulum": (9, 1),
    "Hopper": (11, 3),
    "Walker2d": (17, 6),
    "HalfCheetah": (17, 6),
    "Swimmer": (8, 2),
    "AntTruncated": (27, 8),
    "HumanoidTruncated": (45, 17),
}


@pytest.fixture(params=DIMENSIONS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def simulator_of(config: RunConfig, kind: type[Simulator] = Simulator) -> Simulator:
    return kind(config.environment.id, config.environment.arguments)


def roll(simulator: Simulator, actions: NDArray[np.float64]) -> list[Step]:
    """Steps with the given actions, beginning anew where an episode ends."""
    steps = []
    for action in actions:
        steps.append(simulator.step(action))
        if steps[-1].terminated or steps[-1].truncated:
            simulator.reset()
    return steps


def same(first: list[Step], second: list[Step]) -> bool:
    """Whether two sequences of steps are equal bit for bit."""
    return all(
        a.observation.tobytes() == b.observation.tobytes()
        and (a.reward, a.terminated, a.truncated) == (b.reward, b.terminated, b.truncated)
        for a, b in zip(first, second, strict=True)
    )


def goes_on_exactly(config: RunConfig, kind: type[Simulator] = Simulator) -> bool:
    """Whether a simulator that is restored in mid-episode goes on as the one that was not interrupted."""
    rng = np.random.default_rng(0)
    first, second = simulator_of(config), simulator_of(config, kind)
    first.reset(3)
    before, after = rng.uniform(-0.3, 0.3, (2, 60, first.act_dim))
    in_episode = [first.step(action) for action in before[:3]]
    assert not any(step.terminated for step in in_episode)
    state = first.state()
    second.reset(99)
    roll(second, before)  # whatever it did before must leave no trace
    second.restore(state)
    return same(roll(first, after), roll(second, after))


def test_dimensions_are_those_of_the_table(task: str, run_config: Callable[[str], RunConfig]) -> None:
    simulator = simulator_of(run_config(task))
    assert (simulator.obs_dim, simulator.act_dim) == DIMENSIONS[task]
    observation = simulator.reset(0)
    step = simulator.step(np.zeros(simulator.act_dim))
    assert observation.shape == step.observation.shape == (DIMENSIONS[task][0],)
    assert observation.dtype == step.observation.dtype == np.float64


def test_actions_are_scaled_to_the_environments_bounds(task: str, run_config: Callable[[str], RunConfig]) -> None:
    simulator = simulator_of(run_config(task))
    bound = {"HumanoidTruncated": 0.4, "InvertedPendulum": 3.0}.get(task, 1.0)
    ones = np.ones(simulator.act_dim)
    for action in (-1.0, -0.25, 0.0, 0.5, 1.0):
        np.testing.assert_allclose(simulator.scaled(action * ones), action * bound * ones, rtol=1e-6, atol=1e-12)
    simulator.reset(0)
    simulator.step(-0.5 * ones)
    np.testing.assert_allclose(simulator.base.data.ctrl, -0.5 * bound * ones, rtol=1e-6)


def test_a_restored_episode_goes_on_bit_for_bit(task: str, run_config: Callable[[str], RunConfig]) -> None:
    assert goes_on_exactly(run_config(task))


def test_a_restored_generator_draws_the_same_next_episodes(task: str, run_config: Callable[[str], RunConfig]) -> None:
    first, second = (simulator_of(run_config(task)) for _ in range(2))
    first.reset(3)
    second.reset(4)
    second.restore(first.state())
    beginnings = [(first.reset(), second.reset()) for _ in range(3)]
    assert all(a.tobytes() == b.tobytes() for a, b in beginnings)
    assert beginnings[0][0].tobytes() != beginnings[1][0].tobytes()


class WithoutBodyPositions(Simulator):
    """Restores without xpos and xipos: they are computed from the positions, as MuJoCo itself would."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().restore(state)
        mujoco.mj_kinematics(self.base.model, self.base.data)
        mujoco.mj_comPos(self.base.model, self.base.data)


class WithoutWarmStart(Simulator):
    """Restores without the accelerations from which MuJoCo's solver starts."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().restore(state)
        self.base.data.qacc_warmstart[:] = 0.0


@pytest.mark.parametrize("task_name", ["AntTruncated", "HumanoidTruncated"])
def test_leaving_out_the_bodies_positions_would_be_caught(
    task_name: str, run_config: Callable[[str], RunConfig]
) -> None:
    assert not goes_on_exactly(run_config(task_name), WithoutBodyPositions)


def test_leaving_out_the_warm_start_would_be_caught(run_config: Callable[[str], RunConfig]) -> None:
    assert not goes_on_exactly(run_config("AntTruncated"), WithoutWarmStart)


def test_the_time_limit_goes_on_counting() -> None:
    limited = {"max_episode_steps": 10}
    first, second = Simulator("InvertedPendulum-v5", limited), Simulator("InvertedPendulum-v5", limited)
    first.reset(0)
    for _ in range(6):
        assert not first.step(np.zeros(1)).truncated
    second.restore(first.state())
    assert [second.step(np.zeros(1)).truncated for _ in range(4)] == [False, False, False, True]


def test_a_time_limit_is_no_termination() -> None:
    simulator = Simulator("InvertedPendulum-v5", {"max_episode_steps": 5})
    simulator.reset(0)
    last = [simulator.step(np.zeros(1)) for _ in range(5)][-1]
    assert last.truncated
    assert not last.terminated


def test_storing_a_state_changes_nothing(task: str, run_config: Callable[[str], RunConfig]) -> None:
    first, second = (simulator_of(run_config(task)) for _ in range(2))
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (20, first.act_dim))
    assert first.reset(0).tobytes() == second.reset(0).tobytes()
    for action in actions:
        second.state()
        one, other = first.step(action), second.step(action)
        assert same([one], [other])
        if one.terminated:
            break


def test_a_state_of_another_task_is_refused_in_one_sentence(run_config: Callable[[str], RunConfig]) -> None:
    hopper, walker = simulator_of(run_config("Hopper")), simulator_of(run_config("Walker2d"))
    hopper.reset(0)
    with pytest.raises(UsbpoError, match="another task"):
        walker.restore(hopper.state())


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [("Nowhere-v0", {}), ("Hopper-v99", {}), ("Hopper-v5", {"nothing": 1}), ("CartPole-v1", {})],
)
def test_an_unusable_environment_is_refused_in_one_sentence(environment: str, arguments: dict[str, int]) -> None:
    with pytest.raises(UsbpoError, match=environment):
        Simulator(environment, arguments)


# ---- what environments are given, and what they give -------------------------------------------------------------


class Particular(gymnasium.Env[NDArray[Any], NDArray[Any]]):
    """Takes only actions of its own space, changes them, and always gives the same array, which it goes on writing."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, action_space: Box) -> None:
        self.action_space = action_space
        self.seen = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.seen[:] = 0.0
        return self.seen, {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        assert isinstance(action, np.ndarray)
        assert action.dtype == self.action_space.dtype
        assert self.action_space.contains(action), action
        action += 1
        self.seen += 1.0
        return self.seen, 0.0, False, False, {}


gymnasium.register("Particular-v0", entry_point=Particular, max_episode_steps=5000)
BOXES = {
    "±0.4 of single precision": Box(-0.4, 0.4, (3,), np.float32),
    "±0.1, which single precision rounds up": Box(-0.1, 0.1, (3,), np.float32),
    "a third": Box(np.float32(-1 / 3), np.float32(2 / 3), (3,), np.float32),
    "of each its own": Box(np.array([-3, 0.1, 5], np.float32), np.array([0.7, 0.2, 5], np.float32)),
    "tiny": Box(np.float32(1e-30), np.float32(3e-30), (3,), np.float32),
    "double precision": Box(-0.1, 0.7, (3,), np.float64),
    "half precision": Box(-0.1, 0.7, (3,), np.float16),
    "another shape": Box(-0.3, 0.3, (3, 1), np.float32),
}


@pytest.mark.parametrize("space", BOXES.values(), ids=BOXES.keys())
def test_an_environment_is_given_actions_of_its_own_space(space: Box) -> None:
    simulator = Simulator("Particular-v0", {"action_space": space})
    simulator.reset(0)
    rng = np.random.default_rng(0)
    for action in [np.ones(3), -np.ones(3), np.zeros(3), *rng.uniform(-1.0, 1.0, (1000, 3))]:
        for given in (action, action.astype(np.float32)):
            before = given.copy()
            simulator.step(given)
            assert given.tobytes() == before.tobytes(), "it is the environment's own array that it changes"


def test_an_action_without_dimensions_stays_an_array() -> None:
    action = Simulator("Particular-v0", {"action_space": Box(-0.4, 0.4, (), np.float32)}).scaled(np.ones(1))
    assert isinstance(action, np.ndarray)
    assert (action.shape, action.dtype, float(action)) == ((), np.float32, np.float32(0.4))


def test_an_observation_stays_what_it_was_when_the_environment_goes_on() -> None:
    simulator = Simulator("Particular-v0", {"action_space": BOXES["double precision"]})
    seen = [simulator.reset(0), *(simulator.step(np.zeros(3)).observation for _ in range(3)), simulator.reset()]
    assert [observation.tolist() for observation in seen] == [[n, n] for n in (0.0, 1.0, 2.0, 3.0, 0.0)]


def test_lists_are_arguments_of_an_environment() -> None:
    def ends_at_once(arguments: dict[str, Any]) -> bool:
        simulator = Simulator("Hopper-v5", arguments)
        simulator.reset(0)
        return simulator.step(np.zeros(3)).terminated

    assert not ends_at_once({"healthy_z_range": [0.3, 2.0]})
    assert ends_at_once({"healthy_z_range": [0.3, 1.0]}), "it begins at 1.25 m"


@pytest.mark.parametrize("sizes", [(4, 3), (3, 1), (5, 1)])
def test_other_sizes_than_the_tasks_are_refused_in_one_sentence(sizes: tuple[int, int]) -> None:
    simulator = Simulator("InvertedPendulum-v5")
    simulator.require_sizes("a {file}.h5: it", (4, 1), "import it anew")
    obs_dim, act_dim = sizes
    said = f"{obs_dim} observations and {act_dim} actions, but InvertedPendulum-v5 has 4 and 1; import it anew."
    with pytest.raises(UsbpoError) as error:
        simulator.require_sizes("a {file}.h5: it", sizes, "import it anew")
    assert str(error.value) == f"a {{file}}.h5: it has {said}"
    said = f"it takes {obs_dim} observations and gives {act_dim} actions, but the task has 4 and 1; anew."
    with pytest.raises(UsbpoError) as error:
        simulator.require_sizes("it", sizes, "anew", said=POLICY_SIZES, name="the task")
    assert str(error.value) == said
