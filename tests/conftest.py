"""Small things that many tests need: tiny transitions, networks and files, and the configuration of each task."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell script put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of hundreds of processes each would compile the package
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; also for the processes that tests start

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import forks
from hypothesis import settings

from usbpo.agent import sac
from usbpo.agent.sac import Agent
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.experiment.loading import load_run
from usbpo.experiment.run_config import RunConfig
from usbpo.model import ensemble
from usbpo.model.ensemble import Ensemble

torch.set_num_threads(1)
settings.register_profile("usbpo", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("usbpo")

CONFIG_FOLDERS = (Path(__file__).parents[1] / "config",)


@pytest.fixture(scope="session", autouse=True)
def _place(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where what all workers of the tests share lies, and that it ends with the tests."""
    base = tmp_path_factory.getbasetemp()
    one_of_many = "PYTEST_XDIST_WORKER" in os.environ
    forks.set_place(base.parent if one_of_many else base, os.getppid() if one_of_many else os.getpid())


@pytest.fixture(scope="session")
def run_config() -> Callable[[str], RunConfig]:
    """The configuration of a task with MBPO, by the task's name."""
    return lambda task: load_run(task, "mbpo", CONFIG_FOLDERS)


@pytest.fixture(scope="session")
def run_config_of() -> Callable[[str, str], RunConfig]:
    """The configuration of a task with a method, by their names."""
    return lambda task, method: load_run(task, method, CONFIG_FOLDERS)


@pytest.fixture(scope="session")
def make_header() -> Callable[..., Header]:
    """A header of a kind, of task "tiny" unless said."""

    def make(kind: str = "transitions", task: str = "tiny", seed: int = 0, cycle: int = 1) -> Header:
        return Header(kind, task, seed, cycle)

    return make


@pytest.fixture(scope="session")
def make_transitions() -> Callable[..., Transitions]:
    """Transitions of a noisy linear system; the reward is its state's first entry."""

    def make(rows: int = 50, obs_dim: int = 3, act_dim: int = 2, seed: int = 0) -> Transitions:
        rng = np.random.default_rng(seed)
        observations = rng.normal(size=(rows, obs_dim)).astype(np.float32)
        actions = rng.uniform(-1, 1, (rows, act_dim)).astype(np.float32)
        noise = rng.normal(size=(rows, obs_dim)).astype(np.float32)
        next_observations = 0.9 * observations + 0.3 * actions.sum(axis=1, keepdims=True) + 0.01 * noise
        return Transitions(
            observations=observations,
            actions=actions,
            rewards=observations[:, 0].copy(),
            next_observations=next_observations.astype(np.float32),
            terminations=rng.uniform(size=rows) < 0.1,
            truncations=np.zeros(rows, dtype=np.bool_),
            episodes=np.arange(rows) // 10,
        )

    return make


@pytest.fixture(scope="session")
def make_ensemble() -> Callable[..., Ensemble]:
    """An untrained ensemble of 4 members with 2 elites and 2 × 8 units, unless said."""

    def make(seed: int = 0, obs_dim: int = 3, act_dim: int = 2, members: int = 4, hidden_size: int = 8) -> Ensemble:
        architecture = ensemble.Architecture(obs_dim, act_dim, members, 2, 2, hidden_size)
        return ensemble.new_ensemble(architecture, torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def make_agent() -> Callable[..., Agent]:
    """An untrained agent with 2 × 8 units, unless said."""

    def make(seed: int = 0, obs_dim: int = 3, act_dim: int = 2, hidden_size: int = 8) -> Agent:
        return sac.new_agent(sac.Architecture(obs_dim, act_dim, 2, hidden_size), torch.Generator().manual_seed(seed))

    return make


def pytest_runtest_setup() -> None:
    """Begin every test with the same global torch generator, whichever tests ran before in its process."""
    torch.manual_seed(0)
