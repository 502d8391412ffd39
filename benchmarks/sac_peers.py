"""One gradient step of other people's soft actor-critic at our sizes, the draw of its batch included.

Each function gives the step, or raises ImportError where its package is absent; none is among our requirements. Beside
usbpo, in an environment of its own:

    pip install stable-baselines3 torchrl
    pip install hydra-core==1.3.2 termcolor tqdm tensorboard
    pip install --no-deps mbrl==0.2.0                                  # see whole_program.py
    pip install --no-deps --ignore-requires-python cleanrl==1.2.0      # needs Stable-Baselines3 and tensorboard

All have one learning rate of 3e-4, a temperature that is tuned, targets that move with each step, and draw from 20,000
rows.
"""

import ast
import inspect
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch

ROWS, STORED, HIDDEN = 256, 20_000, 256
LEARNING_RATE, DISCOUNT, POLYAK = 3e-4, 0.99, 0.005
Step = Callable[[], object]


class Space(gymnasium.Env):  # type: ignore[type-arg]
    """What the agents want to know of an environment."""

    def __init__(self, obs_dim: int, act_dim: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (act_dim,), np.float32)


def stored(obs_dim: int, act_dim: int) -> list[np.ndarray]:
    """Observations, actions, rewards and next observations to fill a buffer with."""
    generator = np.random.default_rng(0)
    shapes = (STORED, obs_dim), (STORED, act_dim), (STORED,), (STORED, obs_dim)
    return [generator.standard_normal(shape, dtype=np.float32).clip(-1, 1) for shape in shapes]


def stable_baselines(obs_dim: int, act_dim: int) -> Step:
    """Stable-Baselines3's SAC, `SAC.train`."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    keys = {"batch_size": ROWS, "buffer_size": STORED, "device": "cpu", "ent_coef": "auto", "verbose": 0}
    agent = SAC("MlpPolicy", Space(obs_dim, act_dim), **keys)  # type: ignore[arg-type]
    agent.set_logger(configure(None, []))
    assert agent.replay_buffer is not None
    _fill(agent.replay_buffer, obs_dim, act_dim)
    return lambda: agent.train(gradient_steps=1, batch_size=ROWS)


def _fill(buffer: Any, obs_dim: int, act_dim: int) -> None:
    """Fill a buffer of Stable-Baselines3."""
    observations, actions, rewards, following = stored(obs_dim, act_dim)
    buffer.observations[:, 0], buffer.actions[:, 0], buffer.rewards[:, 0] = observations, actions, rewards
    buffer.next_observations[:, 0] = following
    buffer.full = True


def torchrl(obs_dim: int, act_dim: int, compiled: bool = False) -> Step:
    """TorchRL's SACLoss, SoftUpdate and replay buffer, put together as in its own example."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from tensordict.nn.distributions import NormalParamExtractor
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
    from torchrl.objectives import SACLoss, SoftUpdate

    sizes = {"num_cells": [HIDDEN, HIDDEN], "activation_class": torch.nn.ReLU}
    network = torch.nn.Sequential(MLP(obs_dim, 2 * act_dim, **sizes), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0},
    )
    value = ValueOperator(MLP(obs_dim + act_dim, 1, **sizes), in_keys=["action", "observation"])
    loss = SACLoss(actor, value, num_qvalue_nets=2, loss_function="l2", delay_qvalue=True, target_entropy=-1.0)
    loss.make_value_estimator(gamma=DISCOUNT)
    targets = SoftUpdate(loss, tau=POLYAK)
    # One fused Adam for all parameters, which is faster than one for each network.
    adam = torch.optim.Adam(loss.parameters(), lr=LEARNING_RATE, fused=True)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(STORED), batch_size=ROWS)
    observations, actions, rewards, following = map(torch.from_numpy, stored(obs_dim, act_dim))
    ended = torch.zeros(STORED, 1, dtype=torch.bool)
    reached = {"observation": following, "reward": rewards[:, None], "done": ended, "terminated": ended.clone()}
    buffer.extend(TensorDict({"observation": observations, "action": actions, "next": reached}, batch_size=[STORED]))

    def update(rows: TensorDict) -> None:
        losses = loss(rows)
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        targets.step()

    if compiled:
        update = torch.compile(update)
        for _ in range(50):  # it is compiled more than once
            update(buffer.sample())
    return lambda: update(buffer.sample())


def compiled_torchrl(obs_dim: int, act_dim: int) -> Step:
    """The same with the update compiled by torch.compile, for which TorchRL's example has an option."""
    return torchrl(obs_dim, act_dim, compiled=True)


def cleanrl(obs_dim: int, act_dim: int) -> Step:
    """CleanRL's `sac_continuous_action.py`.

    It is a script and no library. So its own statements are taken from the installed file, those that make networks and
    optimizers and those that learn, and run in a namespace of ours; its old gym is read as gymnasium.
    """
    sys.modules.setdefault("gym", gymnasium)
    import cleanrl.sac_continuous_action as script
    from stable_baselines3.common.buffers import ReplayBuffer

    (whole,) = (node for node in ast.parse(inspect.getsource(script)).body if isinstance(node, ast.If))
    names = [node.targets[0].id if _assigns_a_name(node) else "" for node in whole.body]  # type: ignore[attr-defined]
    loop = next(node for node in whole.body if isinstance(node, ast.For))
    learns = [node for node in loop.body if isinstance(node, ast.If) and "learning_starts" in ast.unparse(node.test)][
        -1
    ]
    makes = whole.body[names.index("actor") : names.index("rb") - 1]
    environment = Space(obs_dim, act_dim)
    spaces = {
        "single_observation_space": environment.observation_space,
        "single_action_space": environment.action_space,
        "action_space": environment.action_space,
    }
    arguments = {
        "batch_size": ROWS, "gamma": DISCOUNT, "tau": POLYAK, "policy_lr": LEARNING_RATE, "q_lr": LEARNING_RATE,
        "policy_frequency": 2, "target_network_frequency": 1, "autotune": True, "learning_starts": 0,
    }  # fmt: skip
    buffer = ReplayBuffer(STORED, environment.observation_space, environment.action_space, "cpu")
    _fill(buffer, obs_dim, act_dim)
    namespace = vars(script) | {
        "args": SimpleNamespace(**arguments),
        "envs": SimpleNamespace(**spaces),
        "device": torch.device("cpu"),
        "rb": buffer,
        "writer": SimpleNamespace(add_scalar=lambda *_: None),
        "print": lambda *_: None,
        "start_time": time.time(),
        "global_step": 0,
    }
    exec(compile(ast.Module(makes, []), script.__file__, "exec"), namespace)
    learning = compile(ast.Module([learns], []), script.__file__, "exec")

    def step() -> None:
        # It updates its actor twice every second step.
        for _ in range(2):
            namespace["global_step"] += 1
            exec(learning, namespace)

    return step


def _assigns_a_name(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)


def mbrl_agent(obs_dim: int, act_dim: int, device: str = "cpu") -> Any:
    """mbrl-lib's SAC (pranz24's)."""
    from mbrl.third_party.pytorch_sac_pranz24 import SAC

    arguments = {
        "gamma": DISCOUNT, "tau": POLYAK, "alpha": 1.0, "policy": "Gaussian", "target_update_interval": 1,
        "automatic_entropy_tuning": True, "target_entropy": -1.0, "hidden_size": HIDDEN, "device": device,
        "lr": LEARNING_RATE,
    }  # fmt: skip
    return SAC(obs_dim, Space(obs_dim, act_dim).action_space, SimpleNamespace(**arguments))


def mbrl_lib(obs_dim: int, act_dim: int) -> Step:
    """mbrl-lib's `SAC.update_parameters`, without its logger."""
    from mbrl.util import ReplayBuffer

    agent, buffer = mbrl_agent(obs_dim, act_dim), ReplayBuffer(STORED, (obs_dim,), (act_dim,))
    observations, actions, rewards, following = stored(obs_dim, act_dim)
    ended = np.zeros(STORED, dtype=bool)
    buffer.add_batch(observations, actions, following, rewards, ended, ended)
    return lambda: agent.update_parameters(buffer, ROWS, 1, reverse_mask=True)


PEERS: dict[str, tuple[Callable[[int, int], Step], int]] = {
    "Stable-Baselines3": (stable_baselines, 1),
    "CleanRL": (cleanrl, 2),
    "TorchRL": (torchrl, 1),
    "mbrl-lib": (mbrl_lib, 1),
    "TorchRL, compiled": (compiled_torchrl, 1),
}
"""The function that makes a step, and how many updates one call takes."""
SLOW = {"TorchRL, compiled"}
"""What takes a minute to begin with"""
