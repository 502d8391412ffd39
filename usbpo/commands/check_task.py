"""Checks of a task before hours are spent on it: configuration, spaces, numbers, termination, repetition, restore."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from pydantic import ValidationError

from usbpo.commands.judged_states import ENOUGH, STEPS, Judged, States, described, ends, until_enough
from usbpo.environments import terminations, usercode
from usbpo.environments.tasks import Simulator, fitted, make, space_faults, time_limit
from usbpo.environments.terminations import Termination
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS, find, merged, read_bases, read_layers
from usbpo.experiment.loading import validated_run
from usbpo.experiment.paths import is_file
from usbpo.experiment.sections import EnvironmentKeys
from usbpo.stages.collect import END_WITH_CYCLE

METHOD = "mbpo"
"""The method that is laid over a task, so that all of a run's keys can be checked."""

OK, FAILED, NOT_CHECKED = "ok", "FAILED", "not checked"

LIMIT = 1000
"""Time limit of an environment that has none of its own, so that the other checks can be made."""

INTERRUPTIONS = (1, 4, 15, 40)
"""After how many steps an episode is interrupted."""

FOLLOWED = 80
"""Steps that are compared after an interruption."""


@dataclass(frozen=True)
class Finding:
    """What one check found: its name, `OK`, `FAILED` or `NOT_CHECKED`, and a sentence."""

    check: str
    verdict: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.check + ':':14}{self.verdict:7} {self.sentence}"


class _Fault(Exception):
    """A check failed; the message is its sentence."""


class _NotChecked(Exception):
    """A check cannot be made; the message says why."""


def print_checks(file: str) -> bool:
    """Print what `check_task` finds, one line for each check; True where nothing is wrong."""
    found = check_task(file)
    for finding in found:
        print(finding)
    return all(finding.verdict == OK for finding in found)


def check_task(file: str) -> list[Finding]:
    """Make every check that can be made of a task. All random numbers come from fixed seeds.

    Args:
        file: path of a task file, or the name of one in config/tasks.

    Raises:
        UsbpoError: there is no such file, or it is no YAML; everything else is a finding.
    """
    path = Path(file)
    if not (path.suffix in (".yaml", ".yml") or is_file(path)):
        path = find("tasks", file, FOLDERS)
    layers = read_bases("tasks", path, FOLDERS)
    found = []
    try:
        run = validated_run(layers + read_layers("algorithms", METHOD, FOLDERS), path)
        found.append(Finding("keys", OK, f"{path} with {METHOD} laid over it is a complete configuration."))
        keys = run.environment
    except UsbpoError as error:
        found.append(Finding("keys", FAILED, str(error)))
        usable = _usable(merged(layers).get("environment"))
        if usable is None:
            return found
        keys = usable
    with _quiet():
        return found + _Checks(keys).all()


def _usable(section: Any) -> EnvironmentKeys | None:
    """What a faulty configuration says of the environment, if enough to make it; a faulty termination stays in it."""
    try:
        return EnvironmentKeys.model_validate(section)
    except ValidationError:
        pass
    if not isinstance(section, dict):
        return None
    of_environment = {name: section[name] for name in ("id", "arguments") if name in section}
    try:
        sound = EnvironmentKeys.model_validate(of_environment | {"termination": "never"})
    except ValidationError:
        return None
    return sound.model_copy(update={"termination": str(section.get("termination"))})


class _Checks:
    """The checks of one environment."""

    def __init__(self, keys: EnvironmentKeys) -> None:
        self.keys = keys
        self.arguments: dict[str, Any] = dict(keys.arguments)

    def all(self) -> list[Finding]:
        """Every check in the order in which a user would mend what it finds."""
        found = [self._run("environment", self._environment)]
        if found[0].verdict == FAILED and "max_episode_steps" not in self.arguments:
            self.arguments["max_episode_steps"] = LIMIT  # so that the other checks can be made
        checks = {
            "spaces": self._spaces,
            "observations": self._observations,
            "reward": self._reward,
            "termination": self._termination,
            "repetition": self._repetition,
            "restore": self._restore,
        }
        return found + [self._run(name, check) for name, check in checks.items()]

    def _run(self, name: str, check: Callable[[], str]) -> Finding:
        try:
            return Finding(name, OK, check())
        except (_Fault, UsbpoError) as fault:
            return Finding(name, FAILED, str(fault))
        except _NotChecked as reason:
            return Finding(name, NOT_CHECKED, f"{reason}.")
        except Exception as error:  # the environment may be the user's own, and fail in any way
            return Finding(name, FAILED, f"the environment fails: {usercode.told(error)}; mend it.")

    # ---- the checks ----

    def _environment(self) -> str:
        env = make(self.keys.id, self.arguments)
        limit = time_limit(env)
        if limit is None:
            raise _Fault(
                f"{self.keys.id!r} has no time limit; add max_episode_steps to environment.arguments, "
                "{max_episode_steps: 1000} for example."
            )
        return f"{self.keys.id!r} can be made, and its episodes end after {limit._max_episode_steps} steps at most."

    def _spaces(self) -> str:
        env = self._made()
        if faults := space_faults(env):
            raise _Fault(f"{self.keys.id!r}: {'; '.join(faults)}.")
        observations, actions = np.prod(env.observation_space.shape), np.prod(env.action_space.shape)
        return f"boxes of {observations:.0f} observations and {actions:.0f} bounded actions."

    def _observations(self) -> str:
        space = self._made().observation_space
        if not isinstance(space, Box):
            raise _NotChecked("its observation space is no box")
        for step, observation, _, _ in self._episodes():
            if np.shape(observation) != space.shape:
                raise _Fault(
                    f"the observation after {step} steps has shape {np.shape(observation)}, but its space has "
                    f"{space.shape}; mend one of them."
                )
            values = np.asarray(observation, dtype=np.float64).reshape(-1)
            stored = values.astype(np.float32)
            if not np.isfinite(stored).all():
                entry = int(np.flatnonzero(~np.isfinite(stored))[0])
                raise _Fault(
                    f"entry {entry} of the observation is {values[entry]} after {step} steps; no model can be trained "
                    "on it, so keep it finite, also in single precision, or end the episode before."
                )
        return f"finite in {STEPS} steps with random actions."

    def _reward(self) -> str:
        lowest, highest = np.inf, -np.inf
        for step, _, reward, _ in self._episodes():
            if step and not np.isfinite(np.float32(reward)):
                raise _Fault(
                    f"the reward is {float(reward)} after {step} steps; keep it finite, also in single precision."
                )
            if step:
                lowest, highest = min(lowest, float(reward)), max(highest, float(reward))
        return f"finite in {STEPS} steps with random actions, between {lowest:.4g} and {highest:.4g}."

    def _termination(self) -> str:
        function, name = terminations.find(self.keys.termination), self.keys.termination
        env = self._made()
        if not isinstance(env.observation_space, Box):
            raise _NotChecked("its observation space is no box")
        if space_faults(env):
            judged, left_out, late = until_enough(self._judged_without_simulator(function)), 0, 0
        else:
            states = States(self._simulator(), function)
            judged, left_out, late = until_enough(states.all()), states.left_out, states.late
        differing = [state for state in judged if not state.agreed]
        if differing:
            example = differing[0]
            first = "the first " if len(differing) == ENOUGH else ""
            ending, other = ("function", "simulator")[:: 1 if example.by_function else -1]
            raise _Fault(
                f"{name!r} disagrees with the simulator on {len(differing)} of {first}{len(judged)} states, for "
                f"example {example.where}: the {ending} ends the episode and the {other} does not; mend the function."
            )
        together = function(np.array([state.observation for state in judged]))
        if (together != [state.by_function for state in judged]).any():
            raise _Fault(f"{name!r} judges a state differently in a batch and alone; let each row be judged by itself.")
        ended = sum(state.by_simulator for state in judged)
        sentence = f"{name!r} agrees with the simulator on {len(judged)} states, {ended} of them terminal"
        if not ended and name != "never":
            sentence += ", so that it has not been tested where an episode ends"
        if late:
            sentence += f"; {late} that a step judges by a position that lags behind were judged anew"
        if left_out:
            sentence += f"; {left_out} that the observation does not show were left out"
        return f"{sentence}."

    def _repetition(self) -> str:
        first, second = self._simulator(), self._simulator()
        second.reset(5)
        for one, other in zip(_followed(first, 7, STEPS // 5), _followed(second, 7, STEPS // 5), strict=True):
            if one != other:
                raise _Fault(
                    "two episodes from the same seed and actions differ, so no run could be repeated; draw every "
                    "random number of the environment from self.np_random, and let reset(seed=…) reseed it."
                )
        return "the same seed and actions give the same steps."

    def _restore(self) -> str:
        simulator = self._simulator()
        if self.keys.episodes == END_WITH_CYCLE:
            also = ", although it could be restored" if simulator.restorable else ""
            return f"nothing is restored, for its episodes end with the cycle (environment.episodes){also}."
        simulator.require_restorable()
        cure = "set environment.episodes to end_with_cycle."
        if not simulator.is_mujoco:
            cure = f"let get_state give, and change nothing of, all that a step or reset depends on, or {cure}"
        for steps in INTERRUPTIONS:
            whole, stored, restored = self._simulator(), self._simulator(), self._simulator()
            for _ in zip(_followed(whole, 11, steps), _followed(stored, 11, steps), strict=True):
                pass
            for _ in _followed(restored, 12, 20):  # whatever it did before must leave no trace
                pass
            restored.restore({name: np.atleast_1d(values).copy() for name, values in stored.state().items()})
            after = [[*_followed(simulator, None, FOLLOWED)] for simulator in (whole, stored, restored)]
            begun = [simulator.reset().tobytes() for simulator in (whole, stored, restored)]
            for which, others in (("whose state was stored", 1), ("restored", 2)):
                if after[0] != after[others]:
                    where = _first_difference(after[0], after[others])
                elif begun[0] != begun[others]:
                    where = "in how the next one begins"
                else:
                    continue
                raise _Fault(
                    f"an episode {which} after {steps} step{'s' * (steps > 1)} differs from the uninterrupted "
                    f"one {where}; {cure}"
                )
        return f"exact in each of {len(INTERRUPTIONS)} interrupted episodes."

    # ---- what they look at ----

    def _made(self) -> Any:
        try:
            return make(self.keys.id, self.arguments)
        except UsbpoError as error:
            raise _NotChecked("the environment cannot be made") from error

    def _simulator(self) -> Simulator:
        if space_faults(self._made()):
            raise _NotChecked("its spaces must be mended first")
        return Simulator(self.keys.id, self.arguments)

    def _episodes(self) -> Iterator[tuple[int, Any, float, bool]]:
        """Random episodes: step within the episode, observation, reward and terminated.

        Every other episode holds its actions for a while, so that it gets farther.
        """
        env, rng = self._made(), np.random.default_rng(3)
        env.action_space.seed(3)
        made = episode = 0
        while made < STEPS:
            observation, _ = env.reset(seed=episode)
            yield 0, observation, 0.0, False
            step, ended, action = 0, False, None
            while not ended and made < STEPS:
                if action is None or episode % 2 == 0 or rng.uniform() < 0.1:
                    action = _random_action(env.action_space, rng)
                observation, reward, terminated, truncated, _ = env.step(copy(action))  # it may change it
                step, made, ended = step + 1, made + 1, terminated or truncated
                yield step, observation, reward, bool(terminated)
            episode += 1

    def _judged_without_simulator(self, function: Termination) -> Iterator[Judged]:
        for step, observation, _, terminated in self._episodes():
            if step:  # the environment may go on to write into what it gave
                flat = np.array(observation, dtype=np.float64).reshape(-1)
                yield Judged(flat, terminated, ends(function, flat), described(step, flat))


_STEP = ("observation", "reward", "terminated", "truncated")

_Steps = list[tuple[bytes, bytes, bool, bool]]


def _first_difference(one: _Steps, other: _Steps) -> str:
    """Where two sequences of steps first differ, in words."""
    for following, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        for name, mine, theirs in zip(_STEP, a, b, strict=True):
            if mine != theirs:
                return f"{following} step{'s' * (following > 1)} later in its {name}"
    raise AssertionError("they do not differ")


def _random_action(space: Any, rng: np.random.Generator) -> Any:
    if isinstance(space, Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return fitted(rng.uniform(space.low, space.high), space)
    return space.sample()


def _followed(simulator: Simulator, seed: int | None, steps: int) -> Iterator[tuple[bytes, bytes, bool, bool]]:
    """Steps with random actions from `seed` on, or from where the simulator is; each in comparable form."""
    rng = np.random.default_rng(17)
    if seed is not None:
        simulator.reset(seed)
    for _ in range(steps):
        step = simulator.step(rng.uniform(-1.0, 1.0, simulator.act_dim))
        yield step.observation.tobytes(), np.float64(step.reward).tobytes(), step.terminated, step.truncated
        if step.terminated or step.truncated:
            simulator.reset()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MuJoCo and NumPy from warning of far-off states, MuJoCo into a file in the current folder."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        mujoco.set_mju_user_warning(handler)
