"""Real steps: where a run is cut into cycles leaves no trace; and evaluation, which touches nothing of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.artifacts import of_cycle, reheaded

from usbpo.agent import sac
from usbpo.agent.sac import Agent
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions, read, read_collector
from usbpo.environments.tasks import Simulator
from usbpo.errors import UsbpoError
from usbpo.experiment.run_config import RunConfig
from usbpo.stages.collect import Collector, collect, random_actor
from usbpo.stages.evaluate import evaluate
from usbpo.stages.initialise import initialise

TASKS = [
    "InvertedPendulum", "InvertedDoublePendulum", "Hopper", "Walker2d", "HalfCheetah", "Swimmer", "AntTruncated",
    "HumanoidTruncated",
]  # fmt: skip
EPISODE_STEPS = 45
"""A short time limit, so that every task has an episode that it cuts and a reset."""


def environment_of(config: RunConfig, **arguments: Any) -> dict[str, Any]:
    """The environment as the stage takes it."""
    every = config.environment.arguments | arguments
    return {"environment": config.environment.id, "environment_arguments": json.dumps(every)}


def begin(folder: Path, task: str, environment: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random steps and an untrained policy; gives what the stage needs to go on."""
    shard, policy = folder / "00000.h5", folder / "policy.safetensors"
    collect(output=shard, task=task, steps=20, seed=seed, cycle=0, **environment)
    initialise(data=shard, output=policy, hidden_layers=2, hidden_size=16)
    return {"task": task, "seed": seed, "policy": policy, "previous": shard, **environment}


def equal(first: Transitions, second: Transitions) -> bool:
    return all(getattr(first, f.name).tobytes() == getattr(second, f.name).tobytes() for f in fields(Transitions))


def same_collector(first: Path, second: Path) -> bool:
    (_, one), (_, other) = read_collector(first), read_collector(second)
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)


def ends(batch: Transitions) -> np.ndarray[Any, Any]:
    return batch.terminations | batch.truncations


@pytest.mark.parametrize("task", TASKS)
def test_two_half_cycles_equal_one_whole_cycle(
    task: str, tmp_path: Path, run_config: Callable[[str], RunConfig]
) -> None:
    environment = environment_of(run_config(task), max_episode_steps=EPISODE_STEPS)
    start = begin(tmp_path, task, environment)
    whole, half, rest = (tmp_path / f"{name}.h5" for name in ("whole", "half", "rest"))
    collect(**start, output=whole, steps=104, cycle=1)
    collect(**start, output=half, steps=52, cycle=1)
    of_cycle(start["policy"], 1)
    collect(**(start | {"previous": half}), output=rest, steps=52, cycle=2)
    (_, one), (_, first), (_, second) = read(whole), read(half), read(rest)
    assert not ends(one)[51], "the cut must be within an episode"
    assert ends(one)[:51].any(), "an episode must end before the cut"
    assert ends(one)[52:].any(), "an episode must end after the cut"
    assert equal(one, transitions.concatenate([first, second]))
    assert same_collector(whole, rest)
    assert not same_collector(whole, half)


def test_two_halves_of_the_random_steps_equal_the_whole() -> None:
    whole, half, rest = (Collector(Simulator("Hopper-v5"), 3) for _ in range(3))
    actor = random_actor(3)
    expected, first = whole.collect(100, actor), half.collect(50, actor)
    rest.restore(half.state())
    assert equal(expected, transitions.concatenate([first, rest.collect(50, actor)]))


def test_a_fresh_process_writes_the_same_bytes(tmp_path: Path, run_config: Callable[[str], RunConfig]) -> None:
    start = begin(tmp_path, "Hopper", environment_of(run_config("Hopper")))
    here, there = tmp_path / "here.h5", tmp_path / "there.h5"
    collect(**start, output=here, steps=60, cycle=1)
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in start.items()}
    script = (
        "import json, sys; from pathlib import Path; from usbpo.stages.collect import collect\n"
        "start = json.loads(sys.argv[1])\n"
        "start |= {name: Path(start[name]) for name in ('policy', 'previous', 'output')}\n"
        "collect(**start, steps=60, cycle=1)"
    )
    package = Path(transitions.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments | {"output": str(there)})],
        check=True, env=os.environ | {"PYTHONPATH": str(package), "PYTHONHASHSEED": "7"}, timeout=60,
    )  # fmt: skip
    assert here.read_bytes() == there.read_bytes()


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory, run_config: Callable[[str], RunConfig]) -> dict[str, Any]:
    """A Hopper run after its random steps."""
    environment = environment_of(run_config("Hopper"), max_episode_steps=10)
    return begin(tmp_path_factory.mktemp("hopper"), "Hopper", environment)


@pytest.fixture(scope="module")
def batch(hopper: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Transitions:
    """150 steps with the policy."""
    path = tmp_path_factory.mktemp("batch") / "shard.h5"
    collect(**hopper, output=path, steps=150, cycle=1)
    return read(path)[1]


def test_steps_follow_each_other_within_an_episode(batch: Transitions) -> None:
    inside = ~ends(batch)[:-1]
    np.testing.assert_array_equal(batch.observations[1:][inside], batch.next_observations[:-1][inside])
    np.testing.assert_array_equal(np.diff(batch.episodes), ends(batch)[:-1])
    lengths = np.diff(np.flatnonzero(np.diff(batch.episodes)))
    assert lengths.max() == 10


def test_the_last_observation_of_an_episode_is_kept(batch: Transitions) -> None:
    """Not that of the next episode's beginning, which has hardly any velocity."""
    last = np.flatnonzero(batch.truncations[:-1])
    assert len(last) > 3
    assert (np.abs(batch.next_observations[last] - batch.observations[last + 1]).max(axis=1) > 0.05).all()
    assert (np.abs(batch.observations[last + 1][:, 5:]).max(axis=1) < 0.006).all()


def test_a_time_limit_is_no_termination(batch: Transitions) -> None:
    assert batch.truncations.sum() > 3
    assert not batch.terminations[batch.truncations].any()


def test_the_stored_rewards_are_the_simulators(hopper: dict[str, Any], batch: Transitions) -> None:
    simulator = Simulator("Hopper-v5", {"max_episode_steps": 10})
    _, state = read_collector(hopper["previous"])
    simulator.restore(state)
    for row in range(40):
        step = simulator.step(batch.actions[row])
        assert np.float32(step.reward) == batch.rewards[row]
        np.testing.assert_array_equal(step.observation.astype(np.float32), batch.next_observations[row])
        assert (step.terminated, step.truncated) == (batch.terminations[row], batch.truncations[row])
        if step.terminated or step.truncated:
            simulator.reset()


def test_the_policy_is_stochastic_and_within_its_bounds(batch: Transitions) -> None:
    assert (np.abs(batch.actions) <= 1.0).all()
    assert (batch.actions.std(axis=0) > 0.2).all()
    assert np.abs(np.corrcoef(batch.actions[:-1, 0], batch.actions[1:, 0])[0, 1]) < 0.4


def test_random_steps_are_uniform(tmp_path: Path) -> None:
    path = tmp_path / "random.h5"
    collect(output=path, task="Swimmer", environment="Swimmer-v5", steps=1000, seed=0, cycle=0)
    actions = read(path)[1].actions
    assert np.abs(actions).max() <= 1.0
    quarters = np.histogram(actions, bins=4, range=(-1, 1))[0] / actions.size
    np.testing.assert_allclose(quarters, 0.25, atol=0.04)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.1


def test_seeds_give_different_steps(tmp_path: Path) -> None:
    for seed in (0, 1):
        collect(output=tmp_path / f"{seed}.h5", task="Hopper", environment="Hopper-v5", steps=10, seed=seed, cycle=0)
    first, second = (read(tmp_path / f"{seed}.h5")[1] for seed in (0, 1))
    assert (first.actions != second.actions).any(axis=1).all()
    assert (first.observations[0] != second.observations[0]).any()


def test_the_shard_says_what_it_is(hopper: dict[str, Any]) -> None:
    header, steps = read(hopper["previous"])
    assert (header.kind, header.task, header.seed, header.cycle) == ("transitions", "Hopper", 0, 0)
    assert header.parameters["steps"] == len(steps) == 20
    assert {"usbpo", "mujoco", "gymnasium", "torch", "numpy"} <= header.versions.keys()
    assert not any(isinstance(value, str) and "/" in value for value in header.parameters.values()), "no paths"


def test_bad_input_is_refused_in_one_sentence_and_writes_nothing(
    hopper: dict[str, Any],
    tmp_path: Path,
    make_agent: Callable[..., Agent],
    make_header: Callable[..., Header],
) -> None:
    output, other = tmp_path / "out" / "shard.h5", tmp_path / "other.safetensors"

    def refused(words: str, **changes: Any) -> None:
        arguments = hopper | {"output": output, "steps": 5, "cycle": 1} | changes
        with pytest.raises(UsbpoError, match=words):
            collect(**arguments)
        assert not output.exists()

    refused("add --policy", policy=None)
    refused("no such file", policy=tmp_path / "missing.safetensors")
    refused("seed is 0", seed=1)
    refused("task is Hopper", task="Walker2d")
    make_agent(obs_dim=11, act_dim=3).save(other, make_header("policy", task="Walker2d", cycle=0))
    refused(r"other.safetensors.*task is Walker2d", policy=other)
    make_agent(obs_dim=17, act_dim=6).save(other, make_header("policy", task="Hopper", cycle=0))
    refused("17 observations", policy=other)
    refused("holds no collector's state", previous=_without_collector(tmp_path, hopper["previous"]))


def _without_collector(folder: Path, shard: Path) -> Path:
    path = folder / "block.h5"
    transitions.write(path, *read(shard))
    return path


# ---- evaluation ----


def evaluated(path: Path, policy: Path, **changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    arguments = {"task": "Hopper", "environment": "Hopper-v5", "episodes": 3, "seed": 0, "cycle": 4}
    arguments |= changes
    own = of_cycle(Path(shutil.copy(policy, path.with_name("own.safetensors"))), arguments["cycle"])
    evaluate(**{"policy": own, "output": path, "on_policy_steps": 1000}, **arguments)
    with h5py.File(path) as file:
        assert file.attrs["on_policy_steps"] == 1000
        return {name: values[()] for name, values in file.items()}


def test_evaluation_is_deterministic_with_seeds_that_stay(hopper: dict[str, Any], tmp_path: Path) -> None:
    first = evaluated(tmp_path / "first.h5", hopper["policy"])
    evaluated(tmp_path / "again.h5", hopper["policy"])
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    later = evaluated(tmp_path / "later.h5", hopper["policy"], cycle=5)
    longer = evaluated(tmp_path / "longer.h5", hopper["policy"], episodes=5)
    for other in (later, longer):
        for name in ("returns", "lengths", "seeds"):
            np.testing.assert_array_equal(other[name][:3], first[name])
    assert len(set(first["seeds"])) == 3
    assert len(set(first["returns"])) == 3


def test_a_return_is_the_sum_of_rewards_up_to_the_end(hopper: dict[str, Any], tmp_path: Path) -> None:
    limited = {"environment": "InvertedPendulum-v5", "environment_arguments": '{"max_episode_steps": 30}'}
    start = begin(tmp_path, "InvertedPendulum", limited)
    found = evaluated(tmp_path / "evaluation.h5", start["policy"], task="InvertedPendulum", episodes=6, **limited)
    # one for each step that does not end with the pole down
    np.testing.assert_array_equal(found["returns"], found["lengths"] - (found["lengths"] < 30))
    assert found["lengths"].max() <= 30


def test_evaluation_of_another_tasks_policy_is_refused_in_one_sentence(hopper: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsbpoError, match="task is Hopper"):
        evaluated(tmp_path / "out.h5", hopper["policy"], task="Walker2d", environment="Walker2d-v5")
    with pytest.raises(UsbpoError, match="11 observations"):
        evaluated(tmp_path / "out.h5", hopper["policy"], environment="Walker2d-v5")
    assert not (tmp_path / "out.h5").exists()


def test_evaluation_of_a_policy_with_other_actions_alone_is_refused_in_one_sentence(
    make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    path = tmp_path / "policy.safetensors"
    make_agent(0, obs_dim=17, act_dim=3).save(path, Header(sac.KIND, "HalfCheetah", 0, 0))
    said = "takes 17 observations and gives 3 actions, but HalfCheetah-v5 has 17 and 6; give a policy of this task"
    with pytest.raises(UsbpoError, match=said):
        evaluated(tmp_path / "out.h5", path, task="HalfCheetah", environment="HalfCheetah-v5")


@pytest.fixture
def diverged(hopper: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A policy whose numbers are finite and whose actions are not."""
    header, agent = sac.load(hopper["policy"])
    for layer in range(3):
        agent.actor[f"weight.{layer}"] *= 1e38
    path = tmp_path / "diverged.safetensors"
    agent.save(path, header)
    return {**hopper, "policy": path}


def test_a_policy_whose_actions_are_nan_is_noticed_where_it_acts(diverged: dict[str, Any], tmp_path: Path) -> None:
    said = "an action of the policy is NaN, so it has diverged; lower policy.learning_rate"
    with pytest.raises(UsbpoError, match=f"cycle 1: {said}"):
        collect(**diverged, output=tmp_path / "out.h5", steps=20, cycle=1)
    with pytest.raises(UsbpoError, match=f"cycle 0: {said}"):
        evaluated(tmp_path / "out.h5", diverged["policy"], cycle=0)
    assert not (tmp_path / "out.h5").exists()


def test_a_run_goes_on_in_no_other_simulator(hopper: dict[str, Any], tmp_path: Path) -> None:
    previous = Path(shutil.copy(hopper["previous"], tmp_path))
    reheaded(previous, versions={**read(previous)[0].versions, "mujoco": "2.0.0"})
    with pytest.raises(UsbpoError, match=r"collected with mujoco 2.0.0 \(here .*\), and a run has one simulator"):
        collect(**{**hopper, "previous": previous}, output=tmp_path / "out.h5", steps=20, cycle=1)


def test_a_collectors_state_of_something_else_is_refused(hopper: dict[str, Any], tmp_path: Path) -> None:
    previous = tmp_path / "00000.h5"
    header, rows = read(hopper["previous"])
    _, state = read_collector(hopper["previous"])
    for name, values in (
        ("observation", state["observation"][:-1]),
        ("action_generator", state["action_generator"].astype(np.int64)),
        ("elapsed_steps", np.zeros(2, np.int64)),
        ("environment_generator", state["environment_generator"][:5]),
    ):
        transitions.write(previous, header, rows, {**state, name: values})
        with pytest.raises(UsbpoError, match=rf"00000.h5: its collector's state has no {name} of \d+ numbers"):
            collect(**{**hopper, "previous": previous}, output=tmp_path / "out.h5", steps=20, cycle=1)
