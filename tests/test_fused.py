"""The fused kernels do what the hand-derived update does, on a GPU or else in Triton's interpreter."""

import importlib.util
import os
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from workflow_tools import REPO

from usbpo import learner as learners
from usbpo.learner import Learner
from usbpo.sac import Agent, Architecture, new_agent

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; it comes with torch's CUDA builds", allow_module_level=True)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from usbpo import fused
from usbpo.fused import FusedLearner

sys.path.insert(0, str(REPO / "benchmarks"))
from plain_sac import in_double  # type: ignore[import-not-found]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONSTANTS: dict[str, Any] = {"learning_rate": 3e-4, "discount": 0.99, "polyak": 0.005, "target_entropy": -1.0}
CLIPPED, INSIDE = 30.0, 0.0
"""Biases of the actor's log standard deviation, beyond its bounds and within."""


def agent_of(*sizes: int, seed: int = 0, log_std: float = INSIDE) -> Agent:
    agent = new_agent(Architecture(*sizes), torch.Generator().manual_seed(seed))
    agent.actor[f"bias.{sizes[2]}"][:, sizes[1]] = log_std
    return agent


def fill(learner: Learner, seed: int) -> None:
    """A batch and noise, the same for every learner of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(learner.batch.shape, generator=generator)
    batch[1, :, -1] = (torch.rand(learner.rows, generator=generator) > 0.2).float()
    learner.batch.copy_(batch)
    learner.noise.copy_(torch.randn(learner.noise.shape, generator=generator))


def strayed(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """Distance of all tensors of a network together, as a share of the way that they have gone."""
    apart = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    way = sum(float((expected[name] - start[name]).double().square().sum()) for name in expected)
    return (apart / way) ** 0.5


@settings(max_examples=15)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.sampled_from([64, 128])),
    rows=st.sampled_from([32, 64]),
    seed=st.integers(0, 1000),
    log_std=st.sampled_from([INSIDE, CLIPPED, -CLIPPED]),
)
def test_the_kernels_do_what_the_hand_derived_update_does(
    sizes: tuple[int, int, int, int], rows: int, seed: int, log_std: float
) -> None:
    """No further from double precision than the update in torch's own float32, but for a factor."""
    agent = agent_of(*sizes, seed=seed, log_std=log_std)
    double = in_double(agent)
    exact, plain = (Learner(of, rows=rows, real=rows // 2, **CONSTANTS) for of in (double, agent))
    ours = FusedLearner(agent, rows=rows, real=rows // 2, device=DEVICE, **CONSTANTS)
    for update in range(3):
        for learner in (exact, plain, ours):
            fill(learner, seed + update)
            learner.update()
        seen = ours.seen()
        for name, value in exact.seen().items():
            assert float(seen[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), name
    reference, rounded, found = (learner.agent() for learner in (exact, plain, ours))
    for name in ("actor", "critics", "targets", "temperature"):
        groups = [getattr(of, name) for of in (found, rounded, reference, double)]
        allowed = 3 * strayed(groups[1], *groups[2:]) + 1e-4
        assert strayed(groups[0], *groups[2:]) < allowed, name
    for name, moments in reference.moments.items():
        assert float(found.moments[name]["step"]) == float(moments["step"]) == 3
        zero = {of: torch.zeros_like(tensor) for of, tensor in moments.items()}
        assert strayed(found.moments[name], moments, zero) < 1e-4, name


def test_an_agent_goes_on_where_it_was_saved() -> None:
    """To rounding: the powers of β in Adam's bias corrections are worked out anew."""
    whole = FusedLearner(agent_of(3, 2, 2, 64), rows=32, real=16, device=DEVICE, **CONSTANTS)
    for update in range(2):
        fill(whole, update)
        whole.update()
    second = FusedLearner(whole.agent(), rows=32, real=16, device=DEVICE, **CONSTANTS)
    for learner in (whole, second):
        fill(learner, 2)
        learner.update()
    for name in ("actor", "critics", "targets", "temperature"):
        for of, tensor in getattr(whole.agent(), name).items():
            torch.testing.assert_close(getattr(second.agent(), name)[of], tensor, rtol=1e-6, atol=1e-9)


def test_what_the_kernels_cannot_hold_is_left_to_torch() -> None:
    assert fused.fits(agent_of(3, 2, 2, 256), 256)
    assert not fused.fits(agent_of(3, 2, 2, 200), 256)
    assert not fused.fits(agent_of(3, 2, 2, 64), 100)
    assert not fused.fits(in_double(agent_of(3, 2, 2, 64)), 256)
    cpu = learners.learner_for(agent_of(3, 2, 2, 64), rows=32, real=16, device=torch.device("cpu"), **CONSTANTS)
    assert type(cpu) is Learner
