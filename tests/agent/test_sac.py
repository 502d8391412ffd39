"""Soft actor-critic does what softlearning's does: the density, the losses, the bootstrap, the temperature."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.artifacts import of_cycle
from helpers.workflow import REPO
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from usbpo.agent import replay as replays
from usbpo.agent import sac
from usbpo.agent.learner import Learner
from usbpo.agent.replay import Replay, replay_of
from usbpo.agent.sac import Agent, Architecture, mean_action, new_agent, q_values, sample_action
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError
from usbpo.numerics.optimizer import Params
from usbpo.stages.initialise import initialise
from usbpo.stages.policy import BLOCK, policy, take_updates

sys.path.insert(0, str(REPO / "benchmarks"))
from plain_sac import Batch, PlainLearner, in_double, update  # type: ignore[import-not-found]

CONSTANTS: dict[str, Any] = {"learning_rate": 3e-4, "discount": 0.99, "polyak": 0.005, "target_entropy": -1.0}
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_batch(rows: int = 32, obs_dim: int = 3, act_dim: int = 2, seed: int = 0, **changes: Any) -> Batch:
    columns = {
        "observations": normal(rows, obs_dim, seed=seed),
        "actions": normal(rows, act_dim, seed=seed + 1).tanh(),
        "rewards": normal(rows, seed=seed + 2),
        "next_observations": normal(rows, obs_dim, seed=seed + 3),
        "terminations": (torch.arange(rows) % 4 == 0).float(),
        "real": rows // 2,
    }
    return Batch(**(columns | changes))


def actor_that_says(mean: Tensor, log_std: Tensor) -> Params:
    """An actor of one linear layer that gives the same outputs for every observation."""
    bias = torch.cat([mean, log_std])[None]
    return {"weight.0": torch.zeros(3, bias.shape[1]), "bias.0": bias}


# ---- the policy ----


@given(
    st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=4),
    st.floats(-3.0, 1.0),
    st.integers(0, 1000),
)
def test_the_log_density_is_that_of_a_tanh_gaussian(means: list[float], log_std: float, seed: int) -> None:
    mean = torch.tensor(means, dtype=torch.float64)
    actor = actor_that_says(mean, torch.full_like(mean, log_std))
    actor = {name: tensor.double() for name, tensor in actor.items()}
    noise = normal(10, len(means), seed=seed).double()
    actions, log_density = sample_action(actor, torch.zeros(10, 3, dtype=torch.float64), noise)
    gaussian = Normal(mean.expand(10, -1), torch.full((10, len(means)), log_std, dtype=torch.float64).exp())
    reference = TransformedDistribution(Independent(gaussian, 1), [TanhTransform(cache_size=1)])
    before = mean + noise * gaussian.stddev
    torch.testing.assert_close(actions, before.tanh())
    # The reference takes the action back through atanh, which loses digits near ±1.
    inner = actions.abs().amax(dim=1) < 1 - 1e-8
    torch.testing.assert_close(log_density[inner], reference.log_prob(actions)[inner], rtol=1e-6, atol=1e-6)


def test_the_log_density_stays_finite_where_tanh_is_flat() -> None:
    actor = actor_that_says(torch.tensor([50.0, -50.0]), torch.zeros(2))
    actions, log_density = sample_action(actor, torch.zeros(4, 3), normal(4, 2))
    assert torch.isfinite(log_density).all()
    assert (actions.abs() <= 1.0).all()


def test_the_density_integrates_to_one() -> None:
    actor = actor_that_says(torch.tensor([0.4]), torch.tensor([-0.3]))
    noise = torch.linspace(-8, 8, 20_001)[:, None]
    actions, log_density = sample_action(actor, torch.zeros(len(noise), 3), noise)
    assert float(torch.trapezoid(log_density.exp(), actions[:, 0])) == pytest.approx(1.0, abs=1e-3)


def test_the_standard_deviation_is_clipped_as_in_softlearning() -> None:
    for log_std, clipped in ((50.0, 2.0), (-50.0, -20.0), (0.7, 0.7)):
        _, found = sac.policy_outputs(actor_that_says(torch.zeros(2), torch.full((2,), log_std)), torch.zeros(1, 3))
        assert found.flatten().tolist() == pytest.approx([clipped, clipped])


def test_the_deterministic_policy_is_the_one_without_noise(make_agent: Callable[..., Agent]) -> None:
    actor, observations = make_agent().actor, normal(6, 3)
    noiseless, _ = sample_action(actor, observations, torch.zeros(6, 2))
    torch.testing.assert_close(mean_action(actor, observations), noiseless)


# ---- the update, against plain networks ----


def plain_network(params: Params, critic: int | None = None) -> nn.Sequential:
    """The actor or one critic as a plain torch network."""
    layers: list[nn.Module] = []
    count = len(params) // 2
    for layer in range(count):
        weight, bias = params[f"weight.{layer}"], params[f"bias.{layer}"]
        if critic is not None:
            weight, bias = weight[critic], bias[critic]
        linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias[0])
        layers += [linear, nn.ReLU()] if layer < count - 1 else [linear]
    return nn.Sequential(*layers)


class Softlearning:
    """A slow and plain soft actor-critic with softlearning's losses, one network and one optimizer at a time."""

    def __init__(self, agent: Agent, rate: float, discount: float, polyak: float, target_entropy: float) -> None:
        self.actor = plain_network(agent.actor)
        self.critics = [plain_network(agent.critics, critic) for critic in range(2)]
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.discount, self.polyak, self.target_entropy = discount, polyak, target_entropy
        self.critic_optimizers = [torch.optim.Adam(critic.parameters(), lr=rate) for critic in self.critics]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=rate)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=rate)

    def sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(observations).chunk(2, dim=1)
        std = log_std.clamp(-20, 2).exp()
        before = mean + std * noise
        actions = before.tanh()
        log_density = Normal(mean, std).log_prob(before) - torch.log(1 - actions**2 + 1e-12)
        return actions, log_density.sum(dim=1)

    def update(self, batch: Batch, noise: Tensor) -> dict[str, float]:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            actions, log_density = self.sample(batch.next_observations, noise[0])
            inputs = torch.cat([batch.next_observations, actions], dim=1)
            next_value = torch.min(*(target(inputs)[:, 0] for target in self.targets)) - alpha * log_density
            backup = batch.rewards + self.discount * (1 - batch.terminations) * next_value
        inputs = torch.cat([batch.observations, batch.actions], dim=1)
        critic_loss = 0.0
        for critic, optimizer in zip(self.critics, self.critic_optimizers, strict=True):
            loss = 0.5 * nn.functional.mse_loss(critic(inputs)[:, 0], backup)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            critic_loss += float(loss.detach())

        actions, log_density = self.sample(batch.observations, noise[1])
        inputs = torch.cat([batch.observations, actions], dim=1)
        actor_loss = (alpha * log_density - torch.min(*(critic(inputs)[:, 0] for critic in self.critics))).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        alpha_loss = -(self.log_alpha * (log_density.detach() + self.target_entropy)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()

        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for new, old in zip(critic.parameters(), target.parameters(), strict=True):
                    old.copy_((1 - self.polyak) * old + self.polyak * new)
        return {"critic_loss": critic_loss, "actor_loss": float(actor_loss.detach()), "temperature": float(alpha)}


def test_several_updates_equal_those_of_a_plain_reference(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(hidden_size=16)
    constants = CONSTANTS | {"learning_rate": 3e-3, "polyak": 0.05}
    learner = Learner(agent, rows=32, real=16, **constants)
    reference = Softlearning(agent, 3e-3, 0.99, 0.05, -1.0)
    for number in range(8):
        batch, noise = make_batch(seed=10 * number), normal(2, 32, 2, seed=number)
        seen, expected = update(learner, batch, noise), reference.update(batch, noise)
        for name, value in expected.items():
            assert float(seen[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), (number, name)
    observations, actions = normal(20, 3, seed=50), normal(20, 2, seed=51)
    inputs = torch.cat([observations, actions], dim=1)
    with torch.no_grad():
        for params, networks in ((learner.critics, reference.critics), (learner.targets, reference.targets)):
            expected_values = torch.stack([network(inputs)[:, 0] for network in networks])
            torch.testing.assert_close(q_values(params, observations, actions), expected_values, rtol=1e-4, atol=1e-5)
        outputs = torch.cat(sac.policy_outputs(learner.actor, observations), dim=1)
        torch.testing.assert_close(outputs, reference.actor(observations), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learner.temperature["log"], reference.log_alpha, rtol=1e-4, atol=1e-6)
    assert learner.agent().updates == 8


CLIPPED, INSIDE = 30.0, 0.0
"""Biases of the actor's log standard deviation, beyond its bounds and within."""


@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20)),
    rows=st.integers(2, 40),
    seed=st.integers(0, 1000),
    log_std=st.sampled_from([INSIDE, CLIPPED, -CLIPPED]),
    batched=st.booleans(),
)
def test_the_hand_derived_update_is_that_of_autograd(
    sizes: tuple[int, int, int, int], rows: int, seed: int, log_std: float, batched: bool
) -> None:
    """In double precision, for networks of any size: every tensor, every moment, every scalar."""
    agent = in_double(new_agent(Architecture(*sizes), torch.Generator().manual_seed(seed)))
    obs_dim, act_dim, layers, _ = sizes
    agent.actor[f"bias.{layers}"][:, :1] = 0.5
    agent.actor[f"bias.{layers}"][:, act_dim] = log_std
    constants = CONSTANTS | {"learning_rate": 1e-2, "polyak": 0.1}
    learner = Learner(agent, rows=rows, real=rows // 2, batched=batched, **constants)
    plain = PlainLearner(agent, **constants)
    for number in range(3):
        batch = make_batch(rows, obs_dim, act_dim, seed=seed + number)
        batch = Batch(*(column.double() for column in list(vars(batch).values())[:-1]), real=batch.real)
        noise = normal(2, rows, act_dim, seed=seed + number).double()
        seen, expected = update(learner, batch, noise), plain.update(batch, noise)
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, rtol=1e-9, atol=1e-9, equal_nan=True)
    found, expected = everything(learner.agent()), everything(plain.agent())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Adam divides by the square root of exp_avg_sq: where a gradient is rounding alone, so is the step.
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-8, msg=lambda said: f"{name}: {said}")  # noqa: B023


@pytest.mark.parametrize("batched", [False, True])
def test_the_hand_derived_update_is_that_of_autograd_at_full_size(
    batched: bool, make_agent: Callable[..., Agent]
) -> None:
    """In single precision, at the sizes of Hopper, to rounding."""
    agent = make_agent(obs_dim=11, act_dim=3, hidden_size=256)
    learner = Learner(agent, rows=256, real=12, batched=batched, **CONSTANTS)
    plain = PlainLearner(agent, **CONSTANTS)
    for number in range(5):
        batch, noise = make_batch(256, 11, 3, seed=number, real=12), normal(2, 256, 3, seed=number)
        seen, expected = update(learner, batch, noise), plain.update(batch, noise)
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value, rtol=1e-5, atol=1e-5)
    first, second = everything(learner.agent()), everything(plain.agent())
    for name, tensor in second.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda said: f"{name}: {said}")  # noqa: B023


def test_an_update_touches_no_other_device_than_its_own(make_agent: Callable[..., Agent]) -> None:
    """On torch's device without memory, where an operation with a tensor of the CPU fails."""
    nowhere = torch.device("meta")
    learner = Learner(make_agent(), rows=32, real=16, device=nowhere, **CONSTANTS)
    learner.update()
    assert {value.device for value in learner.seen().values()} == {nowhere}
    assert {value.device for value in vars(learner).values() if isinstance(value, Tensor)} == {nowhere}
    with pytest.raises((RuntimeError, NotImplementedError)):
        learner.temperature["log"].item()  # reading a value on the host is what would fail


def critics_after(agent: Agent, batch: Batch) -> Tensor:
    learner = Learner(agent, rows=32, real=16, **CONSTANTS)
    update(learner, batch, normal(2, 32, 2))
    return learner.critics["weight.0"].clone()


def test_a_terminal_state_cuts_the_bootstrap(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    for value, alike in ((1.0, True), (0.0, False)):
        terminations = torch.full((32,), value)
        results = [
            critics_after(agent, make_batch(terminations=terminations, next_observations=normal(32, 3, seed=seed)))
            for seed in (5, 6)
        ]
        assert torch.equal(*results) is alike


def test_a_time_limit_does_not_cut_the_bootstrap(make_transitions: Callable[..., Transitions]) -> None:
    steps = make_transitions(40)
    steps.terminations[:] = np.arange(40) % 5 == 0
    steps.truncations[:] = np.arange(40) % 3 == 0
    steps.rewards[:] = np.arange(40)
    present, following = drawn(replay_of(steps, None, CPU), 64, 64)
    assert (1 - following[:, -1]).tolist() == (present[:, -1] % 5 == 0).float().tolist()


def test_the_discount_enters_the_backup(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    learners = [Learner(agent, rows=32, real=16, **(CONSTANTS | {"discount": discount})) for discount in (0.0, 0.99)]
    batch = make_batch(terminations=torch.zeros(32))
    losses = [float(update(learner, batch, normal(2, 32, 2))["critic_loss"]) for learner in learners]
    with torch.no_grad():
        values = q_values(agent.critics, batch.observations, batch.actions)
    expected = 0.5 * float((values - batch.rewards).square().mean(dim=1).sum())
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] != pytest.approx(expected, rel=1e-2)


def test_targets_follow_by_polyak_averaging(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.targets = {name: torch.ones_like(tensor) for name, tensor in agent.targets.items()}
    learner = Learner(agent, rows=32, real=16, **(CONSTANTS | {"polyak": 0.25}))
    update(learner, make_batch(), normal(2, 32, 2))
    for name, target in learner.targets.items():
        torch.testing.assert_close(target, 0.75 + 0.25 * learner.critics[name])


@pytest.mark.parametrize(("target_entropy", "rises"), [(10.0, True), (-10.0, False)])
def test_the_temperature_moves_towards_the_target_entropy(
    target_entropy: float, rises: bool, make_agent: Callable[..., Agent]
) -> None:
    learner = Learner(make_agent(), rows=32, real=16, **(CONSTANTS | {"target_entropy": target_entropy}))
    seen = update(learner, make_batch(), normal(2, 32, 2))
    assert float(seen["temperature"]) == 1.0
    assert -10.0 < float(seen["entropy"]) < 10.0
    assert float(learner.temperature["log"]) == pytest.approx(3e-4 if rises else -3e-4, rel=1e-3)


def test_the_mean_values_are_those_of_real_and_of_model_rows(make_agent: Callable[..., Agent]) -> None:
    agent, batch = make_agent(), make_batch(real=8)
    with torch.no_grad():
        values = q_values(agent.critics, batch.observations, batch.actions)
    seen = update(Learner(agent, rows=32, real=8, **CONSTANTS), batch, normal(2, 32, 2))
    assert float(seen["q_real"]) == pytest.approx(float(values[:, :8].mean()), rel=1e-5)
    assert float(seen["q_model"]) == pytest.approx(float(values[:, 8:].mean()), rel=1e-5)


def test_an_untrained_agent_is_as_keras_would_make_it() -> None:
    agent = new_agent(Architecture(17, 6, 2, 256), torch.Generator().manual_seed(0))
    assert [tuple(agent.actor[f"weight.{layer}"].shape) for layer in range(3)] == [(17, 256), (256, 256), (256, 12)]
    assert [tuple(agent.critics[f"weight.{n}"].shape) for n in range(3)] == [(2, 23, 256), (2, 256, 256), (2, 256, 1)]
    for params in (agent.actor, agent.critics):
        for layer in range(3):
            weight = params[f"weight.{layer}"]
            limit = (6 / (weight.shape[-2] + weight.shape[-1])) ** 0.5
            assert 0.97 * limit < weight.abs().max() <= limit
            assert (params[f"bias.{layer}"] == 0).all()
    assert not torch.equal(agent.critics["weight.0"][0], agent.critics["weight.0"][1])
    assert all(torch.equal(agent.targets[name], tensor) for name, tensor in agent.critics.items())
    assert float(agent.temperature["log"]) == 0.0


def everything(agent: Agent) -> dict[str, Tensor]:
    found = {f"{group}/{n}": t for group in (*sac.TRAINED, "targets") for n, t in getattr(agent, group).items()}
    return found | {f"adam.{group}/{n}": t for group, params in agent.moments.items() for n, t in params.items()}


def test_a_saved_and_loaded_agent_learns_on_bit_for_bit(
    tmp_path: Path, make_agent: Callable[..., Agent], make_header: Callable[..., Header]
) -> None:
    whole = Learner(make_agent(), rows=32, real=16, **CONSTANTS)
    for number in range(3):
        update(whole, make_batch(seed=number), normal(2, 32, 2, seed=number))
    whole.agent().save(tmp_path / "policy.safetensors", make_header("policy"))
    _, loaded = sac.load(tmp_path / "policy.safetensors")
    second_half = Learner(loaded, rows=32, real=16, **CONSTANTS)
    for number in range(3, 6):
        for learner in (whole, second_half):
            update(learner, make_batch(seed=number), normal(2, 32, 2, seed=number))
    first, second = everything(whole.agent()), everything(second_half.agent())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert second_half.agent().updates == 6
    assert second["adam.actor/step"] == 6


def test_learning_does_not_change_the_agent_that_it_started_from(make_agent: Callable[..., Agent]) -> None:
    agent, untouched = make_agent(), make_agent()
    update(Learner(agent, rows=32, real=16, **CONSTANTS), make_batch(), normal(2, 32, 2))
    first, second = everything(agent), everything(untouched)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_learns_a_bandit(make_agent: Callable[..., Agent]) -> None:
    """One step, reward −(a − 0.3)²: the mean action goes to 0.3."""
    agent = make_agent(obs_dim=1, act_dim=1, hidden_size=32)
    learner = Learner(agent, rows=64, real=64, **(CONSTANTS | {"learning_rate": 3e-3, "target_entropy": -2.5}))
    generator = torch.Generator().manual_seed(0)
    observations, done = torch.zeros(64, 1), torch.ones(64)
    for _ in range(600):
        actions = torch.rand(64, 1, generator=generator) * 2 - 1
        rewards = -((actions[:, 0] - 0.3) ** 2) * 5
        batch = Batch(observations, actions, rewards, observations, done, real=64)
        update(learner, batch, torch.randn(2, 64, 1, generator=generator))
    assert abs(float(mean_action(agent.actor, observations[:1])) - 0.3) > 0.1
    assert float(mean_action(learner.agent().actor, observations[:1])) == pytest.approx(0.3, abs=0.07)
    assert float(learner.temperature["log"]) < 0.0


# ---- the stage ----

OPTIONS: dict[str, Any] = CONSTANTS | {
    "updates": 6, "hidden_layers": 2, "hidden_size": 8, "batch_size": 40, "real_ratio": 0.05, "report_every": 4,
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]) -> Path:
    """A folder with data.h5, rollouts.h5 and an untrained policy."""
    transitions.write(tmp_path / "data.h5", make_header(), make_transitions(50))
    transitions.write(tmp_path / "rollouts.h5", make_header("rollouts"), make_transitions(300, seed=1))
    transitions.write(tmp_path / "0.h5", make_header(cycle=0), make_transitions(50))
    initialise(data=tmp_path / "0.h5", output=tmp_path / "0.safetensors", hidden_layers=2, hidden_size=8)
    return tmp_path


def run(files: Path, folder: Path, **changes: Any) -> tuple[Agent, dict[str, Any]]:
    output, metrics = folder / "policy.safetensors", folder / "policy.json"
    inputs = {"data": [files / "data.h5"], "rollouts": [files / "rollouts.h5"]}
    start = {"previous_policy": files / "0.safetensors", "seed": 0, "cycle": 1}
    policy(**({"output": output, "metrics": metrics} | OPTIONS | inputs | start | changes))
    return sac.load(output)[1], json.loads(metrics.read_text())


def drawn(replay: Replay, rows: int, real: int) -> Tensor:
    """One batch, (2, rows, width)."""
    batch = torch.zeros(2, rows, replay.packed.shape[-1])
    replay.gather(replay.draw(1, rows, real, torch.Generator().manual_seed(0))[0], batch)
    return batch


def test_a_batch_is_five_percent_real(make_transitions: Callable[..., Transitions]) -> None:
    real, model = make_transitions(50), make_transitions(300, seed=1)
    batch = drawn(replay_of(real, model, CPU), 256, int(256 * 0.05))
    known = {name: {tuple(row) for row in t.observations.tolist()} for name, t in (("real", real), ("model", model))}
    observations = [tuple(row) for row in batch[0, :, :3].tolist()]
    assert set(observations[:12]) <= known["real"]
    assert set(observations[12:]) <= known["model"]
    assert len(set(observations[:12])) > 8
    assert len(set(observations[12:])) > 120


def test_the_columns_of_a_drawn_row_belong_together(make_transitions: Callable[..., Transitions]) -> None:
    steps = make_transitions(50)
    for name in ("observations", "actions", "next_observations"):
        getattr(steps, name)[:, 0] = np.arange(50)
    steps.rewards[:] = np.arange(50)
    present, following = drawn(replay_of(steps, steps, CPU), 100, 30)
    rewards = present[:, -1]
    for column in (present[:, 0], present[:, 3], following[:, 0]):
        assert torch.equal(column, rewards)
    assert len(rewards.unique()) > 30
    assert torch.equal(following[:, -1] == 0.0, torch.from_numpy(steps.terminations)[rewards.long()])


def test_the_stage_takes_its_updates_and_reports(files: Path, tmp_path: Path) -> None:
    agent, metrics = run(files, tmp_path / "out")
    assert agent.updates == 6
    assert agent.moments["actor"]["step"] == 6
    assert [entry["update"] for entry in metrics["history"]] == [0, 4, 5]
    assert set(metrics["history"][0]) == {
        "update", "critic_loss", "actor_loss", "q_real", "q_model", "entropy", "temperature",
    }  # fmt: skip
    for name in ("data.h5", "rollouts.h5"):
        of_cycle(files / name, 2)
    again, more = run(files, tmp_path / "again", previous_policy=tmp_path / "out" / "policy.safetensors", cycle=2)
    assert again.updates == 12
    assert more["history"][0]["update"] == 6


def test_the_stage_mixes_real_and_model_rows_as_it_is_told(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, int]] = []

    class Recording(Replay):
        def draw(self, updates: int, rows: int, real: int, generator: torch.Generator) -> Tensor:
            assert (self.real_rows, self.model_rows) == (50, 300)
            asked.append((updates, rows, real))
            return super().draw(updates, rows, real, generator)

    monkeypatch.setattr(replays, "Replay", Recording)
    _, metrics = run(files, tmp_path / "out")
    assert asked == [(6, 40, 2)]
    assert all(entry["q_real"] != entry["q_model"] for entry in metrics["history"])
    assert all(isinstance(entry["q_model"], float) for entry in metrics["history"])


def test_random_numbers_are_drawn_in_blocks_of_a_fixed_number_of_updates(
    make_agent: Callable[..., Agent], make_transitions: Callable[..., Transitions]
) -> None:
    """So that the bytes do not depend on how often metrics are written, and the first block not on what follows."""
    replay, losses = replay_of(make_transitions(50), make_transitions(300, seed=1), CPU), {}
    for updates in (BLOCK, BLOCK + 7):
        learner, seen = Learner(make_agent(), rows=8, real=2, **CONSTANTS), dict[int, float]()

        def watch(update: int, learner: Learner = learner, seen: dict[int, float] = seen) -> None:
            seen[update] = float(learner.seen()["critic_loss"])

        take_updates(learner, replay, updates, torch.Generator().manual_seed(0), watch)
        losses[updates] = seen
    assert list(losses[BLOCK + 7]) == list(range(BLOCK + 7))
    assert losses[BLOCK].items() <= losses[BLOCK + 7].items()
    assert len(set(losses[BLOCK + 7].values())) == BLOCK + 7


def test_without_rollouts_every_row_is_real(files: Path, tmp_path: Path) -> None:
    agent, metrics = run(files, tmp_path / "none", rollouts=None, model_every=0)
    assert all(entry["q_model"] is None for entry in metrics["history"])
    same, _ = run(files, tmp_path / "ratio", real_ratio=1.0)
    assert torch.equal(agent.actor["weight.0"], same.actor["weight.0"])


def test_same_work_gives_same_bytes(files: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        run(files, tmp_path / folder)
        torch.rand(1)  # a global generator must not matter
    for name in ("policy.safetensors", "policy.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_policy_of_another_width_or_task_is_refused_in_one_sentence(
    files: Path, tmp_path: Path, make_agent: Callable[..., Agent], make_header: Callable[..., Header]
) -> None:
    other = tmp_path / "other.safetensors"
    for agent, header, words in (
        (make_agent(hidden_size=9), make_header("policy", cycle=0), "hidden_size is 9, but 8"),
        (make_agent(obs_dim=4), make_header("policy", cycle=0), "obs_dim is 4, but 3"),
        (make_agent(), make_header("policy", task="another"), "task is another"),
        (make_agent(), make_header("policy", seed=5), "seed is 5"),
    ):
        agent.save(other, header)
        with pytest.raises(UsbpoError, match=rf"other.safetensors.*{words}"):
            run(files, tmp_path / "out", previous_policy=other)
    with pytest.raises(UsbpoError, match="no such file"):
        run(files, tmp_path / "out", previous_policy=tmp_path / "missing.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_diverging_update_says_so_and_writes_nothing(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UsbpoError, match=r"diverged.*learning_rate"):
        run(files, tmp_path / "out", learning_rate=1e30)
    assert not (tmp_path / "out").exists()


def test_critics_far_from_any_return_are_noticed_while_all_is_finite(
    files: Path, tmp_path: Path, make_agent: Callable[..., Agent], make_header: Callable[..., Header]
) -> None:
    agent = make_agent()
    agent.critics[f"bias.{agent.architecture.hidden_layers}"] += 1e8
    agent.save(tmp_path / "far.safetensors", make_header("policy", cycle=0))
    said = r"cycle 1: the policy update diverged: q_real, the critics' mean value, is 1e\+08, but the rewards allow"
    with pytest.raises(UsbpoError, match=said):
        run(files, tmp_path / "out", previous_policy=tmp_path / "far.safetensors")
    assert not (tmp_path / "out").exists()


def test_the_largest_reward_is_of_all_rows(make_transitions: Callable[..., Transitions]) -> None:
    real, model = make_transitions(50), make_transitions(300, seed=1)
    for batch, row, reward in ((real, 7, -9.0), (model, 299, 12.0)):
        batch.rewards[row] = reward
        assert replay_of(real, model, CPU, room=5).largest_reward() == abs(reward)
