"""The policy for one observation is the policy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from usbpo.agent.acting import OneByOne
from usbpo.agent.sac import Architecture, mean_action, new_agent, sample_action


@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.integers(1, 70)),
    seed=st.integers(0, 1000),
    log_std=st.sampled_from([0.0, 40.0, -40.0]),
)
def test_its_actions_are_those_of_a_batch_to_rounding(
    sizes: tuple[int, int, int, int], seed: int, log_std: float
) -> None:
    actor = new_agent(Architecture(*sizes), torch.Generator().manual_seed(seed)).actor
    actor[f"bias.{sizes[2]}"][:, sizes[1]] = log_std
    generator = np.random.default_rng(seed)
    observations, noise = (generator.standard_normal((4, n), dtype=np.float32) for n in sizes[:2])
    sampled, _ = sample_action(actor, torch.from_numpy(observations), torch.from_numpy(noise))
    means = mean_action(actor, torch.from_numpy(observations))
    policy = OneByOne(actor)
    for row in range(4):
        found = torch.from_numpy(policy.sample(observations[row], noise[row]))
        torch.testing.assert_close(found, sampled[row], rtol=1e-5, atol=2e-6)
        found = torch.from_numpy(policy.mean(observations[row].astype(np.float64)))
        torch.testing.assert_close(found, means[row], rtol=1e-5, atol=2e-6)


def test_an_action_stays_as_it_is_when_the_next_one_is_asked_for() -> None:
    policy = OneByOne(new_agent(Architecture(3, 2, 2, 8), torch.Generator().manual_seed(0)).actor)
    first = policy.mean(np.ones(3, np.float32))
    kept = first.copy()
    assert (policy.mean(-np.ones(3, np.float32)) != first).all()
    assert (first == kept).all()
