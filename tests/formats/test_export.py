"""Exports: what Minari loads is what the run collected; ONNX and plain torch do what the policy does, without us."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from helpers.workflow import USBPO, environment, finished_workspace, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from usbpo.agent import sac
from usbpo.agent.sac import Agent
from usbpo.artifacts import layout, transitions
from usbpo.artifacts.header import Header
from usbpo.commands import cli
from usbpo.environments.tasks import Simulator
from usbpo.experiment.named import NamedRun
from usbpo.formats.minari_export import dataset_id
from usbpo.formats.recorded import VARIABLE
from usbpo.stages.collect import collect, environment_seed
from usbpo.stages.initialise import initialise

minari = pytest.importorskip("minari", reason="the optional dependencies `export` are not installed")
pytest.importorskip("onnx", reason="the optional dependencies `export` are not installed")
ort = pytest.importorskip("onnxruntime", reason="the optional dependencies `export` are not installed")

from usbpo.formats.policy_export import onnx_bytes, tensors_of  # noqa: E402 (after what it needs)
from usbpo.formats.policy_module import Policy  # noqa: E402

NAME = "test-pendulum-test-usbpo-seed-0-v0"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


def export(what: str, root: Path, output: Path, *words: str, run: str = USBPO) -> Path:
    assert cli.main(["export", what, run, "--folder", str(root), "--output", str(output), *words]) == 0
    return output


# ---- Minari ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minari's folder with the data of one run."""
    return export("minari", finished, tmp_path_factory.mktemp("minari"))


@pytest.fixture
def dataset(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The data of one run, as Minari loads them."""
    monkeypatch.setenv(VARIABLE, str(datasets))
    return minari.load_dataset(NAME)


@pytest.fixture(scope="module")
def collected(finished: Path) -> transitions.Transitions:
    """All real data of the same run."""
    run = NamedRun(finished, "test-pendulum", "test-usbpo", 0)
    return transitions.read_all([run.path(layout.SHARD, cycle) for cycle in range(4)])[1]


def test_minari_loads_every_step_that_was_collected(dataset: Any, collected: transitions.Transitions) -> None:
    episodes = list(dataset.iterate_episodes())
    assert dataset.total_steps == len(collected) == 150
    assert dataset.total_episodes == len(episodes) == len(set(collected.episodes))

    def joined(name: str, part: slice = slice(None)) -> Any:
        return np.concatenate([getattr(episode, name)[part] for episode in episodes])

    assert np.array_equal(joined("observations", slice(-1)), collected.observations)
    assert np.array_equal(joined("observations", slice(1, None)), collected.next_observations)
    assert np.array_equal(joined("rewards"), collected.rewards)
    assert np.array_equal(joined("terminations"), collected.terminations)
    assert np.array_equal(joined("truncations")[:-1], collected.truncations[:-1])
    assert np.array_equal(np.repeat(range(len(episodes)), [len(e) for e in episodes]), collected.episodes)
    for episode in episodes:
        assert len(episode.observations) == len(episode.actions) + 1
        assert (episode.terminations | episode.truncations).tolist() == [False] * (len(episode) - 1) + [True]


def test_actions_of_the_dataset_are_in_the_environments_units(dataset: Any, collected: transitions.Transitions) -> None:
    actions = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    assert actions.dtype == np.float32
    assert np.allclose(actions, 3.0 * collected.actions, atol=1e-6)
    assert all(dataset.action_space.contains(action) for action in actions)
    assert np.abs(actions).max() > 1.0


def test_the_dataset_says_whose_it_is(dataset: Any) -> None:
    said = dataset.storage.metadata
    assert said["algorithm_name"] == "test-usbpo"
    assert said["requirements"] == ["gymnasium==1.4.0", "mujoco==3.4.0"]
    assert said["description"] == "Real data that test-usbpo collected on test-pendulum with seed 0, by usbpo."
    told = said["usbpo"]
    assert "initial_data" not in told
    assert {name: told[name] for name in ("task", "method", "seed", "cycles", "environment")} == {
        "task": "test-pendulum", "method": "test-usbpo", "seed": 0, "cycles": 3, "environment": "InvertedPendulum-v5",
    }  # fmt: skip
    assert set(told["versions"]) == {"usbpo", "mujoco", "gymnasium", "torch", "numpy"}


def test_the_recovered_environment_replays_the_first_episode_from_its_seed(dataset: Any) -> None:
    first, *others = dataset.storage.get_episode_metadata(range(dataset.total_episodes))
    assert all("seed" not in other for other in others)
    episode, env = dataset[0], dataset.recover_environment()
    observation, _ = env.reset(seed=first["seed"])
    assert np.array_equal(observation.astype(np.float32), episode.observations[0])
    for step, action in enumerate(episode.actions):
        observation, _, terminated, _, _ = env.step(action)
        assert np.allclose(observation, episode.observations[step + 1], atol=1e-5)
        assert terminated == episode.terminations[step]


def test_every_episode_that_is_reset_with_a_seed_of_its_own_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = NamedRun(tmp_path, "Pendulum", "v1.5", 3)
    policy = tmp_path / "policy.safetensors"
    keys = {"task": "Pendulum", "method": "v1.5", "environment": "Pendulum-v1", "episodes": "end_with_cycle", "seed": 3}
    collect(output=run.path(layout.SHARD, 0), steps=250, cycle=0, **keys)  # type: ignore[arg-type]
    initialise(data=run.path(layout.SHARD, 0), output=policy, hidden_layers=1, hidden_size=8)
    previous = run.path(layout.SHARD, 0)
    collect(output=run.path(layout.SHARD, 1), steps=30, cycle=1, policy=policy, previous=previous, **keys)  # type: ignore[arg-type]
    export("minari", tmp_path, tmp_path / "out", "--environment", "Pendulum-v1", run=run.name)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "out"))
    assert dataset_id(run) == "Pendulum-v1_5-seed-3-v0"
    dataset = minari.load_dataset(dataset_id(run))
    seeds = [of.get("seed") for of in dataset.storage.get_episode_metadata(range(3))]
    assert seeds == [environment_seed(3, 0), None, environment_seed(3, 1)]
    for number in (0, 2):
        assert np.array_equal(Simulator("Pendulum-v1").reset(seeds[number]), dataset[number].observations[0])
    assert [len(episode) for episode in dataset.iterate_episodes()] == [200, 50, 30]


OWN = """
import gymnasium
import numpy as np


class Strip(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2, 2), np.float64)
    action_space = gymnasium.spaces.Box(np.float32([[-1.0], [0.0]]), np.float32([[1.0], [4.0]]))

    def __init__(self, slope=0.0):
        self.slope = slope

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, (2, 2)), {}

    def step(self, action):
        return np.full((2, 2), float(action.sum())), 1.0, bool(action[1, 0] > 3.0), False, {}


gymnasium.register("StripOfClass-v0", Strip, max_episode_steps=10)
gymnasium.register("StripOfLambda-v0", lambda **keywords: Strip(**keywords), max_episode_steps=10)
"""


@pytest.mark.parametrize(("kind", "recovered"), [("StripOfClass-v0", True), ("StripOfLambda-v0", False)])
def test_an_environment_of_the_users_own_is_exported_in_its_own_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, recovered: bool
) -> None:
    (tmp_path / "strip_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = NamedRun(tmp_path, "Strip", "m", 0)
    keys = {"environment": f"strip_module:{kind}", "environment_arguments": '{"slope": 0.5}'}
    shard = run.path(layout.SHARD, 0)
    collect(output=shard, task="Strip", method="m", steps=40, seed=0, cycle=0, episodes="end_with_cycle", **keys)  # type: ignore[arg-type]
    initialise(data=shard, output=run.path(layout.POLICY, 0), hidden_layers=1, hidden_size=8)
    words = ("--environment", keys["environment"], "--environment-arguments", keys["environment_arguments"])
    export("minari", tmp_path, tmp_path / "out", *words, run=run.name)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "out"))
    dataset = minari.load_dataset(dataset_id(run))
    assert dataset.total_steps == 40
    for episode in dataset.iterate_episodes():
        assert episode.observations.shape == (len(episode) + 1, 2, 2)
        assert episode.actions.shape == (len(episode), 2, 1)
        assert ((episode.actions[:, 1, 0] > 3.0) == episode.terminations).all()
        assert all(dataset.action_space.contains(action) for action in episode.actions)
    if recovered:
        assert dataset.recover_environment().unwrapped.slope == 0.5
    else:
        assert dataset.env_spec is None
    folder = export("policy", tmp_path, tmp_path / "policy", *words, run=run.name)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.startswith("return "), done.stderr


def test_the_same_run_gives_the_same_bytes_in_place_of_an_older_dataset(finished: Path, tmp_path: Path) -> None:
    once, twice = (tmp_path / name / "data/minari" for name in ("once", "twice"))
    (twice / NAME / "data").mkdir(parents=True)
    (twice / NAME / "data/old").touch()
    for folder in (once, twice):
        export("minari", finished, folder)
    assert tree(tmp_path / "once") == tree(tmp_path / "twice")
    assert len(tree(tmp_path / "once")) == 2
    assert [path.name for path in twice.iterdir()] == [NAME]


# ---- policies --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy_folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last policy of one run."""
    return export("policy", finished, tmp_path_factory.mktemp("export") / "policy")


LOW, HIGH = np.array([-0.4, 1.0]), np.array([0.4, 6.0])
OBSERVATIONS = arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32))


@pytest.fixture(scope="module")
def wide(make_agent: Callable[..., Agent], tmp_path_factory: pytest.TempPathFactory) -> tuple[Agent, Policy, Any]:
    """A policy with two bounded actions: the agent, the torch module and ONNX Runtime's session."""
    from usbpo.artifacts import checkpoints

    agent, path = make_agent(), tmp_path_factory.mktemp("wide") / "policy.safetensors"
    header = Header("exported policy", "tiny", 0, 1)
    checkpoints.write(path, header, tensors_of(agent.actor, SimpleNamespace(low=LOW, high=HIGH)))  # type: ignore[arg-type]
    policy = Policy(str(path))
    return agent, policy, ort.InferenceSession(onnx_bytes(policy, header))


@given(observations=OBSERVATIONS)
def test_onnx_runtime_and_the_module_do_what_the_agent_does(
    wide: tuple[Agent, Policy, Any], observations: np.ndarray[Any, Any]
) -> None:
    agent, policy, session = wide
    given_rows = torch.from_numpy(observations)
    mean, log_std = sac.policy_outputs(agent.actor, given_rows)
    action = LOW + (np.tanh(mean.numpy().astype(np.float64)) + 1.0) * 0.5 * (HIGH - LOW)
    expected = {"action": action, "mean": mean.numpy(), "log_std": log_std.numpy()}
    by_onnx = dict(zip(expected, session.run(list(expected), {"observation": observations}), strict=True))
    by_torch = dict(zip(expected, policy(given_rows), strict=True))
    for name, values in expected.items():
        assert np.allclose(by_onnx[name], values, rtol=1e-4, atol=1e-4), name
        assert np.allclose(by_torch[name].detach().numpy(), values, rtol=1e-4, atol=1e-4), name
    for made in (by_onnx["action"], by_torch["action"].detach().numpy()):
        assert (made >= LOW.astype(np.float32)).all()
        assert (made <= HIGH.astype(np.float32)).all()


def test_random_actions_follow_from_mean_and_log_std(wide: tuple[Agent, Policy, Any]) -> None:
    agent, policy, _ = wide
    rows, noise = torch.randn(50, 3), torch.randn(50, 2)
    _, mean, log_std = policy(rows)
    expected, _ = sac.sample_action(agent.actor, rows, noise)
    simulator = Simulator("Pendulum-v1")
    simulator.low, simulator.high, simulator.env.action_space = LOW, HIGH, Box(*np.float32([LOW, HIGH]))
    scaled = np.stack([simulator.scaled(action) for action in expected.numpy()])
    assert np.allclose(policy.scaled(torch.tanh(mean + log_std.exp() * noise)).detach(), scaled, atol=1e-5)


@settings(max_examples=20)
@given(observations=arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)))
def test_the_exported_files_do_what_the_runs_policy_does(
    finished: Path, policy_folder: Path, observations: np.ndarray[Any, Any]
) -> None:
    _, agent = sac.load(finished / f"data/runs/{USBPO}/00003/policy.safetensors")
    expected = 3.0 * sac.mean_action(agent.actor, torch.from_numpy(observations)).numpy()
    session = ort.InferenceSession(policy_folder / "policy.onnx")
    assert np.allclose(session.run(["action"], {"observation": observations})[0], expected, atol=1e-5)
    made = Policy(str(policy_folder / "policy.safetensors"))(torch.from_numpy(observations))[0]
    assert np.allclose(made.detach(), expected, atol=1e-5)


def test_the_example_runs_without_the_package_and_repeats_the_evaluation(
    finished: Path, policy_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(policy_folder, tmp_path / "alone")
    # Without site the editable installation is not on the path, only what lies in site-packages itself.
    kept = environment(PYTHONPATH=sysconfig.get_path("purelib"))

    def python(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", *words], cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=300
        )

    assert "No module named 'usbpo'" in python("-c", "import usbpo").stderr
    done = python("alone/example.py")
    assert done.returncode == 0, done.stderr
    with h5py.File(finished / f"data/runs/{USBPO}/00003/evaluation.h5") as file:
        assert done.stdout.split() == ["return", str(float(file["returns"][0]))]


def test_a_policy_says_whose_it_is_to_every_reader(policy_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = {"kind": "exported policy", "task": "test-pendulum", "seed": 0, "cycle": 3}
    metadata = ort.InferenceSession(policy_folder / "policy.onnx").get_modelmeta().custom_metadata_map
    assert told.items() <= json.loads(metadata["header"]).items()
    assert cli.main(["inspect", str(policy_folder / "policy.safetensors")]) == 0
    assert "exported policy" in capfd.readouterr().out


def test_a_policy_of_a_chosen_cycle_is_exported_byte_for_byte_each_time(finished: Path, tmp_path: Path) -> None:
    for name, cycle in (("a", "1"), ("b", "1"), ("c", "2")):
        export("policy", finished, tmp_path / name / "data/policy", "--cycle", cycle)
    first, again, other = (tree(tmp_path / name) for name in "abc")
    assert first == again
    assert set(first) == {f"data/policy/{n}" for n in ("policy.onnx", "policy.safetensors", "policy.py", "example.py")}
    assert first["data/policy/policy.onnx"] != other["data/policy/policy.onnx"]
    made = b"".join(path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in made
    assert str(finished).encode() not in made
    assert str(Path(__file__).parents[2]).encode() not in made


def test_help_describes_the_verbs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    for words, said in {
        ("--help",): ("export +Write a run", "import +Check real data"),
        ("export", "--help"): ("minari +Write a run's real data", "policy +Write a run's actor"),
        ("import", "--help"): ("minari +Take the episodes", "hdf5 +Take the steps"),
    }.items():
        assert cli.main(list(words)) == 0
        shown = capfd.readouterr().out
        assert all(re.search(sentence, shown) for sentence in said), shown


# ---- bad input -------------------------------------------------------------------------------------------------------


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a command ends."""
    assert cli.main(["export", *words]) == 1
    error = capfd.readouterr().err
    assert error.startswith("usbpo export: ")
    assert error.endswith(".\n")
    assert len(error.splitlines()) == 1, error
    return error


@pytest.mark.parametrize("what", ["minari", "policy"])
def test_a_missing_package_is_named_with_its_cure(
    finished: Path, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = refused(capfd, what, USBPO, "--folder", str(finished), "--output", str(tmp_path / "out"))
    assert f"`pip install {'minari' if what == 'minari' else 'onnx onnxruntime'}`" in said
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_named(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("--folder", str(finished), "--output", str(out))
    assert "no run has this name" in refused(capfd, "minari", "test-pendulum/none/seed-0", *words)
    said = refused(capfd, "policy", USBPO, "--cycle", "7", *words)
    assert "00007/policy.safetensors: there is no such file" in said
    root = tmp_path / "root"
    (root / f"data/runs/{USBPO}/00000").mkdir(parents=True)
    words = ("--folder", str(root), "--output", str(out))
    assert "the run has no real data yet" in refused(capfd, "minari", USBPO, *words)
    assert "it holds no policy yet" in refused(capfd, "policy", USBPO, *words)
    shutil.copytree(finished / f"data/runs/{USBPO}", root / f"data/runs/{USBPO}", dirs_exist_ok=True)
    (root / f"data/runs/{USBPO}/data/00001.h5").unlink()
    assert "data/00001.h5: there is no such file" in refused(capfd, "minari", USBPO, *words)
    os.truncate(root / f"data/runs/{USBPO}/00003/policy.safetensors", 1000)
    assert "cut short or damaged" in refused(capfd, "policy", USBPO, *words)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"], "nothing half-written is left"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    said = refused(capfd, "policy", USBPO, "--folder", str(finished), "--output", str(tmp_path / "mine"))
    assert "mine: it holds thesis.tex, which is no part of an export; choose another --output" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    said = refused(capfd, "policy", USBPO, "--folder", str(finished), "--output", "/")
    assert "/: it is a folder that cannot be replaced; choose another output" in said
    (tmp_path / "file").touch()
    said = refused(capfd, "minari", USBPO, "--folder", str(finished), "--output", str(tmp_path / "file"))
    assert "writing failed" in said
