"""Stage `evaluate`: episodes of the deterministic policy from fixed seeds, in an environment of their own."""

from math import isfinite
from pathlib import Path

import numpy as np

from usbpo.agent import sac
from usbpo.agent.acting import OneByOne, check_action
from usbpo.artifacts import evaluations
from usbpo.artifacts.evaluations import KIND, Episodes
from usbpo.artifacts.header import Header, other_physics, parameters_of
from usbpo.environments.tasks import POLICY_SIZES, Simulator, read_arguments
from usbpo.errors import UsbpoError, saying
from usbpo.numerics.optimizer import Params
from usbpo.numerics.seeding import seed_sequence


def evaluate_episode(simulator: Simulator, actor: Params, seed: int) -> tuple[float, int]:
    """Return (undiscounted) and length of one episode.

    Raises:
        UsbpoError: an action or a reward is not finite.
    """
    policy, observation, total, length = OneByOne(actor), simulator.reset(seed), 0.0, 0
    while True:
        action = policy.mean(observation)
        check_action(action)
        step = simulator.step(action)
        if not isfinite(step.reward):
            raise UsbpoError(f"the reward of step {length} is not finite; mend the environment (usbpo check-task).")
        observation, total, length = step.observation, total + step.reward, length + 1
        if step.terminated or step.truncated:
            return total, length


def evaluate(
    *,
    policy: Path,
    output: Path,
    task: str,
    environment: str,
    episodes: int,
    on_policy_steps: int,
    seed: int,
    cycle: int,
    method: str | None = None,
    environment_arguments: str = "{}",
) -> None:
    """Evaluate a policy.

    Args:
        policy: policy checkpoint.
        output: HDF5 to write: return, length and seed of each episode.
        task: name of the task.
        environment: Gymnasium id.
        episodes: episodes to run; episode n starts from the same state in every cycle of a run.
        on_policy_steps: real on-policy steps that the policy has seen, for the axis of learning curves.
        seed: run seed.
        cycle: number of the cycle.
        method: name of the method; without it that of the policy.
        environment_arguments: keyword arguments of the environment, as JSON.

    Raises:
        UsbpoError: the policy is missing, damaged or of another run or cycle, or the output cannot be written.
    """
    parameters = parameters_of(locals())
    policy_header, agent = sac.load(policy)
    header = Header(KIND, task, seed, cycle, parameters, method or policy_header.method)
    header.takes("policy", policy, policy_header, cycle)
    if other := other_physics(policy_header):
        print(f"the policy was trained with {other}; its evaluation is that of the simulator here")
    simulator = Simulator(environment, read_arguments(environment_arguments))
    sizes = (agent.architecture.obs_dim, agent.architecture.act_dim)
    simulator.require_sizes(f"{policy}: the policy", sizes, "give a policy of this task", said=POLICY_SIZES)
    seeds = [int(s.generate_state(1)[0]) for s in seed_sequence(seed, 0, "evaluate").spawn(episodes)]
    with saying(f"cycle {cycle}"):
        results = [evaluate_episode(simulator, agent.actor, episode_seed) for episode_seed in seeds]
    returns, lengths = (np.array(column) for column in zip(*results, strict=True))
    evaluations.write(output, header, Episodes(returns, lengths, np.array(seeds, dtype=np.int64)))
    print(f"return {returns.mean():.1f} over {episodes} episodes")
