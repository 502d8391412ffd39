"""Stage `collect`: real steps in the simulator, going on exactly where the last cycle stopped."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usbpo.agent import sac
from usbpo.agent.acting import OneByOne, check_action
from usbpo.artifacts import lineage, transitions
from usbpo.artifacts.header import UNNAMED, Header, parameters_of, require_same_physics
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.tasks import POLICY_SIZES, Simulator, read_arguments
from usbpo.errors import UsbpoError, saying
from usbpo.experiment.initial_data import check_imported, read_imported
from usbpo.numerics.optimizer import Params
from usbpo.numerics.seeding import pack_generator, seed_sequence, unpack_generator

CONTINUE, END_WITH_CYCLE = "continue", "end_with_cycle"
"""What becomes of an episode at the end of a cycle."""

Actor = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]
"""Chooses an action in [−1, 1]^act_dim for an observation."""


class Collector:
    """A simulator in the middle of an episode, and the generator that its actions draw from.

    Unlike all others, the two generators are not seeded anew in each cycle but carried on with the episode, so
    that where a run is cut into cycles leaves no trace. Where episodes end with the cycle there is no episode to
    carry on: each cycle then begins one, from a seed of its own, and only the actions' generator goes on.

    Args:
        cycle: the cycle in which it begins, where episodes end with the cycle; else None.
    """

    def __init__(self, simulator: Simulator, seed: int, cycle: int | None = None) -> None:
        self.simulator, self.ends_with_cycle = simulator, cycle is not None
        _, action_seed = seed_sequence(seed, cycle or 0, "collect").spawn(2)
        self.generator = np.random.Generator(np.random.PCG64(action_seed))
        self.observation = simulator.reset(environment_seed(seed, cycle or 0))
        self.episode = 0

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the next process needs to go on, as arrays."""
        of_episode = {} if self.ends_with_cycle else {**self.simulator.state(), "observation": self.observation}
        return {
            **of_episode,
            "episode": np.array(self.episode, dtype=np.int64),
            "action_generator": pack_generator(self.generator),
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a stored state.

        Raises:
            UsbpoError: an episode should go on, but the state holds none, or it is the state of something else.
        """
        if not self.ends_with_cycle:
            if "observation" not in state:
                raise UsbpoError(
                    "the previous shard's episode ended with its cycle, so it cannot go on; collect this run's data "
                    "anew, or give --episodes end_with_cycle."
                )
            self._check(state, ("observation", "elapsed_steps", "environment_generator", "xipos"))
            self.simulator.restore(state)
            self.observation = state["observation"]
        self._check(state, ("episode", "action_generator"))
        self.episode = int(state["episode"].item())
        self.generator = unpack_generator(state["action_generator"])

    def _check(self, state: dict[str, NDArray[Any]], names: tuple[str, ...]) -> None:
        """Hold what is stored against what a state of this collector looks like."""
        now = self.state()
        for name in set(names) & now.keys():
            stored = state.get(name)
            if stored is None or (stored.dtype, stored.size) != (now[name].dtype, now[name].size):
                raise UsbpoError(
                    f"its collector's state has no {name} of {now[name].size} numbers; it belongs to another task, so "
                    "collect this run's data anew."
                )

    def collect(self, steps: int, actor: Actor, *, cycle_ends: bool = True) -> Transitions:
        """Take `steps` real steps; where episodes end with the cycle and it ends here, the last one is cut."""
        sim = self.simulator
        batch = Transitions(
            observations=np.empty((steps, sim.obs_dim), np.float32),
            actions=np.empty((steps, sim.act_dim), np.float32),
            rewards=np.empty(steps, np.float32),
            next_observations=np.empty((steps, sim.obs_dim), np.float32),
            terminations=np.empty(steps, np.bool_),
            truncations=np.empty(steps, np.bool_),
            episodes=np.empty(steps, np.int64),
        )
        for row in range(steps):
            batch.observations[row] = self.observation
            batch.actions[row] = actor(batch.observations[row], self.generator)
            step = sim.step(batch.actions[row])
            batch.rewards[row] = step.reward
            batch.next_observations[row] = step.observation
            cut = cycle_ends and self.ends_with_cycle and row == steps - 1 and not step.terminated
            batch.terminations[row], batch.truncations[row] = step.terminated, step.truncated or cut
            batch.episodes[row] = self.episode
            self.observation = step.observation
            if step.terminated or step.truncated or cut:
                self.observation = sim.reset()
                self.episode += 1
        return batch

    def begin_with(self, batch: Transitions) -> None:
        """Take real data from elsewhere for what came before; the episode that has begun follows theirs."""
        self.episode = int(batch.episodes[-1]) + 1


def environment_seed(seed: int, cycle: int) -> int:
    """The seed that the simulator's first reset is given, in a run or, where episodes end with it, in a cycle."""
    return int(seed_sequence(seed, cycle, "collect").spawn(1)[0].generate_state(1)[0])


def read_initial_data(path: Path, simulator: Simulator, parameters: Mapping[str, Any]) -> tuple[Header, Transitions]:
    """As many rows of imported real data as there are random steps in whose place they come, the last one an end.

    Args:
        path: what `usbpo import` wrote.
        simulator: the environment of this run.
        parameters: those of this stage.

    Raises:
        UsbpoError: the file is missing or damaged, was made for another environment, or has too few rows.
    """
    steps = parameters["steps"]
    check_imported(path, parameters["environment"], parameters["environment_arguments"], steps)
    header, batch = read_imported(path)
    simulator.require_sizes(f"{path}: it", batch.widths, "import it anew")
    batch = batch.rows(slice(steps))
    batch.truncations[-1] |= not batch.terminations[-1]
    return header, batch


def check_finite(batch: Transitions, environment: str) -> None:
    """Check that no stage is handed what no model can be trained on.

    Raises:
        UsbpoError: the environment gave NaN or what single precision cannot hold.
    """
    for name in ("next_observations", "rewards", "observations"):
        values = getattr(batch, name).reshape(len(batch), -1)
        faulty = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(faulty):
            raise UsbpoError(
                f"environment {environment!r} gave {name} with NaN, infinity or what single precision cannot hold in "
                f"step {faulty[0]} of this shard; mend it, and try it with usbpo check-task."
            )


def check_episodes(episodes: str, simulator: Simulator) -> None:
    """Check what shall become of an episode at the end of a cycle.

    Raises:
        UsbpoError: no such way, or the episode cannot go on.
    """
    if episodes not in (CONTINUE, END_WITH_CYCLE):
        raise UsbpoError(f"--episodes must be {CONTINUE} or {END_WITH_CYCLE}, but is {episodes!r}; mend the value.")
    if episodes == CONTINUE:
        simulator.require_restorable()


def random_actor(act_dim: int) -> Actor:
    """Uniform actions, for the steps before the first cycle."""
    return lambda _, generator: generator.uniform(-1.0, 1.0, act_dim).astype(np.float32)


def stochastic_actor(actor: Params) -> Actor:
    """The tanh-Gaussian policy, as it is now; it raises UsbpoError rather than give NaN."""
    policy, act_dim = OneByOne(actor), actor[f"bias.{len(actor) // 2 - 1}"].shape[-1] // 2

    def act(observation: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        action = policy.sample(observation, generator.standard_normal(act_dim, dtype=np.float32))
        check_action(action)
        return action

    return act


def collect(
    *,
    output: Path,
    task: str,
    environment: str,
    steps: int,
    seed: int,
    cycle: int,
    method: str | None = None,
    environment_arguments: str = "{}",
    episodes: str = CONTINUE,
    policy: Path | None = None,
    previous: Path | None = None,
    initial_data: Path | None = None,
) -> None:
    """Collect one shard of D_env with a fixed, stochastic policy.

    Args:
        output: shard to write, with the collector's state at its end.
        task: name of the task.
        environment: Gymnasium id.
        steps: real steps to take.
        seed: run seed.
        cycle: number of the cycle; 0 holds the random steps.
        method: name of the method; without it that of the previous shard, or none.
        environment_arguments: keyword arguments of the environment, as JSON.
        episodes: `continue` where the last shard's episode goes on, `end_with_cycle` where each shard begins one.
        policy: policy checkpoint of the cycle before; uniformly random actions without it, in cycle 0.
        previous: the shard of the cycle before, to go on from; a new episode begins without it, in cycle 0.
        initial_data: imported real data to take in place of random steps, in cycle 0.

    Raises:
        UsbpoError: an input is missing, damaged or of another run or cycle, the environment cannot be used so, or the
            output cannot be written.
    """
    parameters = parameters_of(locals())
    if initial_data is not None and (cycle > 0 or policy is not None or previous is not None):
        raise UsbpoError(f"{initial_data}: initial data take the place of random steps; leave out --initial-data.")
    lineage.require_previous("--policy", policy, cycle, 1)
    lineage.require_previous("--previous", previous, cycle, 1)
    found = transitions.read_collector(previous) if previous is not None else None
    header = Header(transitions.KIND, task, seed, cycle, parameters, method or (found[0].method if found else UNNAMED))
    simulator = Simulator(environment, read_arguments(environment_arguments))
    check_episodes(episodes, simulator)
    actor = random_actor(simulator.act_dim)
    if policy is not None:
        policy_header, agent = sac.load(policy)
        header.takes("policy", policy, policy_header, [cycle - 1] if cycle else [])
        sizes = (agent.architecture.obs_dim, agent.architecture.act_dim)
        simulator.require_sizes(f"{policy}: the policy", sizes, "give a policy of this task", said=POLICY_SIZES)
        actor = stochastic_actor(agent.actor)
    collector = Collector(simulator, seed, cycle if episodes == END_WITH_CYCLE else None)
    if previous is not None and found is not None:
        header.takes("previous", previous, found[0], [cycle - 1] if cycle else [])
        require_same_physics(previous, found[0])
        with saying(str(previous)):
            collector.restore(found[1])
    if initial_data is None:
        with saying(f"cycle {cycle}"):
            batch = collector.collect(steps, actor)
            check_finite(batch, environment)
    else:
        imported, batch = read_initial_data(initial_data, simulator, parameters)
        collector.begin_with(batch)
        header = replace(header, parameters={**parameters, "initial_data": dict(imported.parameters)})
        header.inputs["initial_data"] = [imported.digest]
    transitions.write(output, header, batch, collector.state())
    ended = int((batch.terminations | batch.truncations).sum())
    print(f"{steps} real steps, {ended} episodes ended, mean reward {batch.rewards.mean():.4g}")
