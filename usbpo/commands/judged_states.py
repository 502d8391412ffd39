"""States of an environment, judged by itself and by a termination function: where `usbpo check-task` looks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

import mujoco
import numpy as np
from numpy.typing import NDArray

from usbpo.environments.tasks import Simulator, Step
from usbpo.environments.terminations import Termination

STEPS = 1500
"""Steps of the random episodes."""

SIZES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 90.0, 110.0, 150.0, 300.0, 500.0)
"""By how much a single coordinate of a MuJoCo state is moved, in its own unit, to both sides."""

NEAR = 1e-6
"""How near to the place where a verdict changes a MuJoCo state is looked for, relative to the coordinate (or to 1).

Nearer than that, an equal rule that is computed in another way may differ by rounding.
"""

ENOUGH = 20
"""Disagreements after which no further states are looked at."""


@dataclass(frozen=True)
class Judged:
    """A state that the simulator came to, judged by the simulator and by the termination function."""

    observation: NDArray[np.float64]
    by_simulator: bool
    by_function: bool
    where: str

    @property
    def agreed(self) -> bool:
        return self.by_simulator == self.by_function


class States:
    """States of a simulator, judged by itself and by a termination function.

    They come from random episodes and, for a MuJoCo task, from moving each coordinate of the initial state, by
    little and by much, and ever nearer to where the simulator or the function changes its verdict. Of a MuJoCo task
    the simulator's verdict on a state can be had by a step of no length. Where function and simulator differ after a
    real step, that settles two matters that are no fault of the function: a simulator may judge by a position that
    lags behind the observation (InvertedDoublePendulum), and it may judge by a velocity that the observation clips
    (Hopper). The first kind is judged anew, the second is left out.

    Attributes:
        late: how many states were judged anew.
        left_out: how many states were left out.
    """

    def __init__(self, simulator: Simulator, function: Termination) -> None:
        self.simulator, self.function = simulator, function
        self.late = self.left_out = 0
        self.visible: list[int] = []
        if simulator.is_mujoco:
            simulator.reset(0)
            start = np.concatenate([simulator.base.init_qpos, simulator.base.init_qvel])
            self.visible = [n for n in range(len(start)) if self._shows(start, n)]

    def all(self) -> Iterator[Judged]:
        """Every state."""
        yield from self._of_episodes()
        if self.simulator.is_mujoco:
            yield from self._moved()

    def _of_episodes(self) -> Iterator[Judged]:
        simulator, rng = self.simulator, np.random.default_rng(3)
        made = episode = 0
        while made < STEPS:
            simulator.reset(episode)
            step, ended, action = 0, False, np.zeros(simulator.act_dim)
            while not ended and made < STEPS:
                if episode % 2 == 0 or rng.uniform() < 0.1:
                    action = rng.uniform(-1.0, 1.0, simulator.act_dim)
                taken = simulator.step(action)
                step, made, ended = step + 1, made + 1, taken.terminated or taken.truncated
                yield from self._after_a_step(taken, described(step, taken.observation))
            episode += 1

    def _moved(self) -> Iterator[Judged]:
        """One coordinate off the initial state, near to where a verdict changes above all; and a step from there."""
        base, rng = self.simulator.base, np.random.default_rng(4)
        start = np.concatenate([base.init_qpos, base.init_qvel])
        for coordinate in range(len(start)):
            values = [float(start[coordinate] + sign * size) for size in (0.0, *SIZES) for sign in (-1.0, 1.0)][1:]
            along = {value: self._at(start, coordinate, value) for value in values}
            for value, judged in along.items():
                yield from self._unless_hidden(judged, start, coordinate, value)
                where = f"a step after {judged.where.removeprefix('with ').replace(' at ', ' was at ')}"
                self._set(_moved_to(start, coordinate, value))
                taken = self.simulator.step(rng.uniform(-1.0, 1.0, self.simulator.act_dim))
                yield from self._after_a_step(taken, where)
            for one, other in pairwise(sorted(along.items())):
                yield from self._between(start, coordinate, one, other)

    def _between(
        self, start: NDArray[np.float64], coordinate: int, one: tuple[float, Judged], other: tuple[float, Judged]
    ) -> Iterator[Judged]:
        """Bisect between two values of a coordinate, where the simulator's or the function's verdict changes."""
        for verdict in (attrgetter("by_simulator"), attrgetter("by_function")):
            low, high = one, other
            while verdict(low[1]) != verdict(high[1]) and high[0] - low[0] > NEAR * max(1.0, abs(low[0])):
                value = 0.5 * (low[0] + high[0])
                judged = self._at(start, coordinate, value)
                yield from self._unless_hidden(judged, start, coordinate, value)
                if verdict(judged) == verdict(low[1]):
                    low = value, judged
                else:
                    high = value, judged

    def _at(self, start: NDArray[np.float64], coordinate: int, value: float) -> Judged:
        observation, terminated = self._look(_moved_to(start, coordinate, value))
        positions = self.simulator.base.model.nq
        name = f"qpos[{coordinate}]" if coordinate < positions else f"qvel[{coordinate - positions}]"
        return Judged(observation, terminated, ends(self.function, observation), f"with {name} at {value:.7g}")

    def _unless_hidden(
        self, judged: Judged, start: NDArray[np.float64], coordinate: int, value: float
    ) -> Iterator[Judged]:
        if judged.agreed or not self._hides(_moved_to(start, coordinate, value)):
            yield judged
        else:
            self.left_out += 1

    def _after_a_step(self, step: Step, where: str) -> Iterator[Judged]:
        judged = Judged(step.observation, step.terminated, ends(self.function, step.observation), where)
        if judged.agreed or not self.simulator.is_mujoco:
            yield judged
            return
        data, kept = self.simulator.base.data, self.simulator.state()
        state = np.concatenate([data.qpos, data.qvel])
        observation, terminated = self._look(state)
        anew = Judged(observation, terminated, ends(self.function, observation), where)
        if self._hides(state):
            self.left_out += 1
        elif anew.agreed:
            self.late += 1
            yield anew
        else:
            yield judged
        self.simulator.restore(kept)

    def _set(self, state: NDArray[np.float64]) -> None:
        base = self.simulator.base
        base.set_state(state[: base.model.nq].copy(), state[base.model.nq :].copy())
        self.simulator.time_limit._elapsed_steps = 0

    def _look(self, state: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
        """A state's observation, and whether the simulator ends an episode there: a step of no length from it."""
        base = self.simulator.base
        self._set(state)
        base.do_simulation = lambda *_: mujoco.mj_rnePostConstraint(base.model, base.data)
        try:
            step = self.simulator.step(np.zeros(self.simulator.act_dim))
        finally:
            del base.do_simulation
        return step.observation, step.terminated

    def _shows(self, state: NDArray[np.float64], coordinate: int) -> bool:
        """Whether the observation tells a coordinate of a state from one a little farther out."""
        farther = state.copy()
        farther[coordinate] += np.copysign(1e-3 * max(1.0, abs(state[coordinate])), state[coordinate])
        return not np.array_equal(self._look(state)[0], self._look(farther)[0])

    def _hides(self, state: NDArray[np.float64]) -> bool:
        """Whether the observation no longer shows a coordinate that it shows at the initial state."""
        return not all(self._shows(state, coordinate) for coordinate in self.visible)


def _moved_to(state: NDArray[np.float64], coordinate: int, value: float) -> NDArray[np.float64]:
    """A copy of a state with another value of one coordinate."""
    moved = state.copy()
    moved[coordinate] = value
    return moved


def until_enough(states: Iterator[Judged]) -> list[Judged]:
    """The states up to the one with which it is plain that the function is wrong."""
    seen, differing = [], 0
    for state in states:
        seen.append(state)
        differing += not state.agreed
        if differing == ENOUGH:
            break
    return seen


def ends(function: Termination, observation: NDArray[np.float64]) -> bool:
    return bool(function(observation[None])[0])


def described(step: int, observation: NDArray[np.float64]) -> str:
    """Where a state of a random episode was met, with the first numbers of its observation."""
    more = ", …" if len(observation) > 4 else ""
    return f"{step} random steps into an episode, at [{', '.join(f'{value:.4g}' for value in observation[:4])}{more}]"
