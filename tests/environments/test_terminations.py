"""The termination functions agree with the simulator's own rules, near the boundary above all."""

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from usbpo.environments.tasks import Simulator
from usbpo.environments.terminations import TERMINATIONS, Termination
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.sections import TerminationName

HEALTH_TASKS = ["Hopper", "Walker2d", "AntTruncated", "HumanoidTruncated"]
"""The tasks whose environment says by itself whether a state is healthy."""

HEIGHT, ANGLE = {"Hopper": 1, "Walker2d": 1, "AntTruncated": 2, "HumanoidTruncated": 2}, {"Hopper": 2, "Walker2d": 2}
"""Where height and torso angle stand in qpos."""

BOUNDS = {
    "Hopper": [0.7, 3.0],
    "Walker2d": [0.8, 2.0],
    "AntTruncated": [0.2, 1.0],
    "HumanoidTruncated": [1.0, 2.0],
}
ANGLE_BOUNDS = {"Hopper": [-0.2, 0.2], "Walker2d": [-1.0, 1.0]}
STEPS_OFF = [0.0, 1e-15, -1e-15, 1e-12, -1e-12, 1e-9, -1e-9, 1e-6, -1e-6, 1e-3, -1e-3, 0.05, -0.05]


def simulator_of(config: RunConfig) -> Simulator:
    simulator = Simulator(config.environment.id, config.environment.arguments)
    simulator.reset(0)
    return simulator


def near(rng: np.random.Generator, bounds: list[float]) -> float:
    """A number on, or a little or far off, one of the bounds, or anywhere between them."""
    if rng.uniform() < 0.3:
        return float(rng.uniform(min(bounds), max(bounds)))
    return float(rng.choice(bounds) + rng.choice(STEPS_OFF) * rng.uniform(0.5, 1.5))


def health_and_observations(
    task: str, simulator: Simulator, rows: int, edit: Callable[..., None] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The environment's verdict on states near the boundary, and their observations."""
    rng = np.random.default_rng(5)
    base = simulator.base
    healthy, observations = [], []
    for _ in range(rows):
        qpos = base.init_qpos + rng.normal(0, 0.05, base.model.nq)
        qvel = np.clip(rng.normal(0, 2, base.model.nv), -9.9, 9.9)  # what the observation does not clip
        qpos[HEIGHT[task]] = near(rng, BOUNDS[task])
        if task in ANGLE:
            qpos[ANGLE[task]] = near(rng, ANGLE_BOUNDS[task])
        if edit is not None:
            edit(rng, qpos)
        base.set_state(qpos, qvel)
        healthy.append(bool(base.is_healthy))
        observations.append(base._get_obs())
    return np.array(healthy), np.array(observations)


def leg_near_100(rng: np.random.Generator, qpos: NDArray[np.float64]) -> None:
    """Set a leg joint of a healthy Hopper near the bounds of ±100 that its environment puts on its state."""
    qpos[1:3] = 1.2, 0.0
    qpos[rng.integers(3, 6)] = near(rng, [-100.0, 100.0]) * rng.choice([1.0, 1.0, 1.5])


@pytest.mark.parametrize("task", HEALTH_TASKS)
def test_agrees_with_the_environment_near_its_bounds(task: str, run_config: Callable[[str], RunConfig]) -> None:
    config = run_config(task)
    healthy, observations = health_and_observations(task, simulator_of(config), 2500)
    assert 0.2 < healthy.mean() < 0.8, "the states must lie on both sides"
    terminal = TERMINATIONS[config.environment.termination](observations)
    np.testing.assert_array_equal(terminal, ~healthy)


@pytest.mark.parametrize("task", HEALTH_TASKS)
def test_agrees_in_single_precision_off_the_very_bound(task: str, run_config: Callable[[str], RunConfig]) -> None:
    config = run_config(task)
    healthy, observations = health_and_observations(task, simulator_of(config), 1500)
    bounded = [(observations[:, 0], BOUNDS[task])]
    if task in ANGLE:
        bounded.append((observations[:, 1], ANGLE_BOUNDS[task]))
    clear = np.all([np.abs(values[:, None] - bounds).min(axis=1) > 3e-7 for values, bounds in bounded], axis=0)
    assert clear.sum() > 500
    terminal = TERMINATIONS[config.environment.termination](observations[clear].astype(np.float32))
    np.testing.assert_array_equal(terminal, ~healthy[clear])


def test_hopper_agrees_on_joints_near_100(run_config: Callable[[str], RunConfig]) -> None:
    healthy, observations = health_and_observations("Hopper", simulator_of(run_config("Hopper")), 1500, leg_near_100)
    assert 0.2 < healthy.mean() < 0.8
    np.testing.assert_array_equal(TERMINATIONS["hopper"](observations), ~healthy)


def test_the_released_hopper_function_would_be_caught(run_config: Callable[[str], RunConfig]) -> None:
    def released(observations: NDArray[np.floating]) -> NDArray[np.bool_]:
        healthy = (
            np.isfinite(observations).all(axis=-1)
            & np.abs(observations[:, 1:] < 100).all(axis=-1)  # the misplaced bracket
            & (observations[:, 0] > 0.7)
            & (np.abs(observations[:, 1]) < 0.2)
        )
        return np.asarray(~healthy)

    healthy, observations = health_and_observations("Hopper", simulator_of(run_config("Hopper")), 500, leg_near_100)
    assert (released(observations) != ~healthy).any()


def test_inverted_pendulum_agrees_with_each_step(run_config: Callable[[str], RunConfig]) -> None:
    simulator = simulator_of(run_config("InvertedPendulum"))
    rng = np.random.default_rng(0)
    observations, terminated = [], []
    for _ in range(3000):
        angle = near(rng, [-0.2, 0.2])
        simulator.base.set_state(np.array([rng.normal(0, 0.1), angle]), rng.normal(0, 0.1, 2))
        step = simulator.step(rng.uniform(-0.1, 0.1, 1))
        simulator.time_limit._elapsed_steps = 0
        observations.append(step.observation)
        terminated.append(step.terminated)
    seen = np.array(observations)
    assert 0.2 < np.mean(terminated) < 0.8
    assert (np.abs(np.abs(seen[:, 1]) - 0.2) < 1e-3).sum() > 50
    np.testing.assert_array_equal(TERMINATIONS["inverted_pendulum"](seen), terminated)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_inverted_pendulum_stays_up_at_exactly_its_bound(sign: float) -> None:
    angles = sign * np.array([np.nextafter(0.2, 0.0), 0.2, np.nextafter(0.2, 1.0)])
    observations = np.zeros((3, 4))
    observations[:, 1] = angles
    np.testing.assert_array_equal(TERMINATIONS["inverted_pendulum"](observations), [False, False, True])


def double_pendulum_near_the_bound(rng: np.random.Generator, scale: float) -> NDArray[np.float64]:
    """A posture whose tip is about 1 m high."""
    first = rng.uniform(-0.6, 0.6)
    height = 1.0 + rng.normal(0, scale)
    both = np.arccos(np.clip(height / 0.6 - np.cos(first), -1, 1)) * rng.choice([-1, 1])
    return np.array([rng.uniform(-0.9, 0.9), first, both - first])


def test_inverted_double_pendulum_knows_the_height_of_the_tip(run_config: Callable[[str], RunConfig]) -> None:
    simulator = simulator_of(run_config("InvertedDoublePendulum"))
    base, rng = simulator.base, np.random.default_rng(1)
    heights, observations = [], []
    for row in range(3000):
        base.set_state(double_pendulum_near_the_bound(rng, 10.0 ** -(1 + row % 8)), rng.normal(0, 1, 3))
        heights.append(base.data.site_xpos[0][2])
        observations.append(base._get_obs())
    off = np.abs(np.array(heights) - 1.0)
    clear = off > 1e-12  # nearer than that, the two ways to compute a height differ in the last digit
    assert (off[clear] < 1e-6).sum() > 200
    terminal = TERMINATIONS["inverted_double_pendulum"](np.array(observations))
    np.testing.assert_array_equal(terminal[clear], np.array(heights)[clear] <= 1.0)


def test_inverted_double_pendulum_differs_from_a_step_in_a_thin_band_only(
    run_config: Callable[[str], RunConfig],
) -> None:
    """The environment's own rule reads the tip's position one substep of 0.01 s too late."""
    simulator = simulator_of(run_config("InvertedDoublePendulum"))
    base, rng = simulator.base, np.random.default_rng(2)
    terminated, observations, heights = [], [], []
    for _ in range(3000):
        base.set_state(double_pendulum_near_the_bound(rng, 0.05), rng.normal(0, 0.5, 3))
        step = simulator.step(rng.uniform(-1, 1, 1))
        simulator.time_limit._elapsed_steps = 0
        terminated.append(step.terminated)
        observations.append(step.observation)
        base.set_state(base.data.qpos.copy(), base.data.qvel.copy())
        heights.append(base.data.site_xpos[0][2])
    differ = TERMINATIONS["inverted_double_pendulum"](np.array(observations)) != terminated
    off = np.abs(np.array(heights) - 1.0)
    assert (off < 0.01).sum() > 100
    assert (off > 0.01).sum() > 1000
    assert not differ[off > 0.01].any()
    assert 0.2 < np.mean(terminated) < 0.8


@pytest.mark.parametrize("task", ["HalfCheetah", "Swimmer"])
def test_cheetah_and_swimmer_never_end(task: str, run_config: Callable[[str], RunConfig]) -> None:
    config = run_config(task)
    simulator = simulator_of(config)
    base, rng = simulator.base, np.random.default_rng(0)
    for scale in np.geomspace(0.05, 2.0, 200):
        base.set_state(base.init_qpos + rng.normal(0, scale, base.model.nq), rng.normal(0, scale, base.model.nv))
        step = simulator.step(rng.uniform(-1, 1, simulator.act_dim))
        assert not step.terminated
        assert not TERMINATIONS[config.environment.termination](step.observation[None])[0]


HEALTHY_ROWS: dict[str, list[float]] = {
    "inverted_pendulum": [0.0] * 4,
    "inverted_double_pendulum": [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    "hopper": [1.2] + [0.0] * 10,
    "walker2d": [1.2] + [0.0] * 16,
    "ant": [0.6] + [0.0] * 26,
    "humanoid": [1.4] + [0.0] * 44,
}
READ_COLUMNS = {"inverted_double_pendulum": [1, 2, 3, 4], "walker2d": [0, 1], "humanoid": [0]}
"""Columns whose NaN is terminal, where that is not all of them."""


@pytest.mark.parametrize("name", HEALTHY_ROWS)
def test_nan_is_terminal(name: str) -> None:
    columns = READ_COLUMNS.get(name, list(range(len(HEALTHY_ROWS[name]))))
    observations = np.tile(np.array(HEALTHY_ROWS[name]), (len(columns) + 1, 1))
    observations[np.arange(len(columns)), columns] = np.nan
    terminal = TERMINATIONS[name](observations)
    assert terminal[:-1].all()
    assert not terminal[-1], "the row without NaN is healthy"


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("name", [name for name in HEALTHY_ROWS if name != "inverted_double_pendulum"])
def test_infinity_is_terminal(name: str, value: float) -> None:
    columns = READ_COLUMNS.get(name, list(range(len(HEALTHY_ROWS[name]))))
    observations = np.tile(np.array(HEALTHY_ROWS[name]), (len(columns), 1))
    observations[np.arange(len(columns)), columns] = value
    assert TERMINATIONS[name](observations).all()


def test_never_is_false_even_on_nan() -> None:
    terminal = TERMINATIONS["never"](np.full((3, 8), np.nan))
    np.testing.assert_array_equal(terminal, [False] * 3)


@pytest.mark.parametrize("name", HEALTHY_ROWS)
def test_a_batch_is_judged_row_by_row(name: str) -> None:
    rng = np.random.default_rng(3)
    observations = np.array(HEALTHY_ROWS[name]) + rng.normal(0, 0.3, (40, len(HEALTHY_ROWS[name])))
    function: Termination = TERMINATIONS[name]
    terminal = function(observations)
    assert terminal.dtype == np.bool_
    assert terminal.shape == (40,)
    assert 0 < terminal.sum() < 40
    np.testing.assert_array_equal(terminal, [function(row[None])[0] for row in observations])
    assert function(observations[:0]).shape == (0,)


def test_the_configuration_knows_exactly_these_names() -> None:
    assert set(get_args(TerminationName)) == set(TERMINATIONS)
