"""How fast this machine is, measured in some seconds on one thread.

Each speed is measured once for what it depends on, so methods whose work is equal get equal times.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from usbpo.agent import sac
from usbpo.agent.acting import OneByOne
from usbpo.agent.learner import Learner
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.tasks import Simulator
from usbpo.errors import UsbpoError
from usbpo.experiment.sizes import Sizes
from usbpo.model import ensemble
from usbpo.model.likelihood import LikelihoodStep, decay_by_name
from usbpo.model.passes import number_type
from usbpo.numerics.optimizer import Adam, copied

ROWS_READ = 50_000
"""Rows of the file by which the speed of reading is measured, of some 10 MB"""
ROWS_PREDICTED = 1000


@dataclass(frozen=True)
class Speeds:
    """Seconds on this machine, one thread, at the sizes of a task and method."""

    policy_update: float
    real_step: float
    file: float
    """Of opening a file of transitions and reading its first rows"""
    byte: float
    """Of reading on in it, while the file is in the system's cache"""
    minibatch: float = 0.0
    """Of phase 1"""
    model_rows: float = 0.0
    """A model step of a thousand rows"""
    objective: float = 0.0
    """A step of phase 2: about three predictions of all members and their gradient"""


def calibrate(sizes: Sizes) -> Speeds:
    """Measure what a run's stages are made of."""
    torch.set_num_threads(1)
    config, obs_dim, act_dim = sizes.config, sizes.obs_dim, sizes.act_dim
    keys, environment = config.policy, config.environment
    _check_memory(sizes)
    agent = sac.Architecture(obs_dim, act_dim, keys.hidden_layers, keys.hidden_size)
    update = _policy_update(agent, keys.batch_size)
    step = _real_step(environment.id, json.dumps(environment.arguments)) + _acting(agent)
    file, byte = _reading(obs_dim, act_dim)
    if config.model is None:
        return Speeds(update, step, file, byte)
    model = config.model
    made = ensemble.Architecture(obs_dim, act_dim, model.members, model.elites, model.hidden_layers, model.hidden_size)
    products = number_type(config.precision)
    minibatch = _minibatch(made, config.phase1.batch_size, products)
    share = 0.0
    if config.phase2 is not None:  # a step beside a minibatch, for each row; a fixed stand-in is one more prediction
        row = {"fixed": 1.6, "moving": 1.25, "samples": 2.5}[config.phase2.stand_in]
        share = row * config.phase2.batch_size / config.phase1.batch_size
    return Speeds(update, step, file, byte, minibatch, _model_step(made, products), share * minibatch)


def _check_memory(sizes: Sizes) -> None:
    """Refuse networks or batches, most probably a slip of the keyboard, that this machine cannot hold once.

    Raises:
        UsbpoError: they are larger than its memory.
    """
    config, row = sizes.config, sizes.obs_dim + sizes.act_dim
    numbers = {
        "policy": 4 * (sizes.actor + sizes.critics) + config.policy.batch_size * (row + config.policy.hidden_size)
    }
    if model := config.model:
        numbers["model"] = 4 * sizes.ensemble + model.members * config.phase1.batch_size * (row + model.hidden_size)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name, count in numbers.items():
        if 4 * count > memory:
            raise UsbpoError(
                f"training the {name} takes {4 * count / 1e9:,.0f} GB, more than the memory of this "
                "machine; make its networks (hidden_layers, hidden_size, members) or batch_size smaller."
            )


@cache
def _policy_update(architecture: sac.Architecture, rows: int) -> float:
    generator = torch.Generator().manual_seed(0)
    agent = sac.new_agent(architecture, generator)
    learner = Learner(agent, rows=rows, real=rows, learning_rate=3e-4, discount=0.99, polyak=0.005, target_entropy=-1.0)
    learner.batch.normal_(generator=generator)
    learner.noise.normal_(generator=generator)
    return _timed(learner.update, 20)


@cache
def _acting(architecture: sac.Architecture) -> float:
    policy = OneByOne(sac.new_agent(architecture, torch.Generator().manual_seed(0)).actor)
    observation, noise = (np.zeros(n, np.float32) for n in (architecture.obs_dim, architecture.act_dim))
    return _timed(lambda: policy.sample(observation, noise), 20)


@cache
def _real_step(environment: str, arguments: str) -> float:
    simulator = Simulator(environment, json.loads(arguments))
    simulator.reset(0)
    zeros = np.zeros(simulator.act_dim)

    def step() -> None:
        taken = simulator.step(zeros)
        if taken.terminated or taken.truncated:
            simulator.reset()

    seconds = _timed(step, 50)
    simulator.close()
    return seconds


@cache
def _minibatch(architecture: ensemble.Architecture, rows: int, products: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    params = copied(ensemble.new_ensemble(architecture, generator).params)
    adam = Adam(params, 1e-3, weight_decay=decay_by_name([1e-4] * (architecture.hidden_layers + 1)))
    sizes = architecture.obs_dim + architecture.act_dim, architecture.obs_dim + 1
    x, y = (torch.randn(ROWS_PREDICTED, n, generator=generator) for n in sizes)
    index = torch.randint(ROWS_PREDICTED, (architecture.members, rows), generator=generator)
    step = LikelihoodStep(params, adam, x, y, rows, 0.01, products)
    return _timed(lambda: step.take(index), 8)


@cache
def _model_step(architecture: ensemble.Architecture, products: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    made = ensemble.new_ensemble(architecture, generator).to(torch.device("cpu"), products)
    observations = torch.randn(ROWS_PREDICTED, architecture.obs_dim, generator=generator)
    actions = torch.rand(ROWS_PREDICTED, architecture.act_dim, generator=generator)
    members = torch.randint(architecture.members, (ROWS_PREDICTED,), generator=generator)
    with torch.no_grad():
        seconds = _timed(lambda: ensemble.predict_one_member(made, members, observations, actions), 5)
    return seconds * 1000 / ROWS_PREDICTED


@cache
def _reading(obs_dim: int, act_dim: int) -> tuple[float, float]:
    """Seconds of a file, and of each of its bytes."""
    with TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.h5", Path(folder) / "large.h5"
        header = Header(transitions.KIND, "calibration", 0, 0)
        none = transitions.no_transitions(obs_dim, act_dim)
        for path, rows in ((small, 1), (large, ROWS_READ)):
            like = (getattr(none, name.name) for name in fields(none))
            transitions.write(path, header, Transitions(*(np.zeros((rows, *a.shape[1:]), a.dtype) for a in like)))
        file, whole = _timed(lambda: transitions.read(small), 5), _timed(lambda: transitions.read(large), 5)
        return file, max(whole - file, 0.0) / large.stat().st_size


def _timed(work: Callable[[], object], times: int) -> float:
    """Median seconds of a call, the first left out."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds)
