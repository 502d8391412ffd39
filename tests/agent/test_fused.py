"""The fused kernels do what the hand-derived passes do, on a GPU or else in Triton's interpreter."""

import importlib.util
import os
import sys
from typing import Any

import pytest
import torch
from helpers.workflow import REPO
from hypothesis import given, settings
from hypothesis import strategies as st

from usbpo.agent.choice import learner_for
from usbpo.agent.learner import Learner
from usbpo.agent.sac import Agent, Architecture, new_agent
from usbpo.model import ensemble
from usbpo.model.fitting import TorchFit

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed; it comes with torch's CUDA builds", allow_module_level=True)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from usbpo.agent import fused
from usbpo.agent.fused import FusedLearner
from usbpo.model import fused as fused_model
from usbpo.model.fused import FusedFit

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
    cpu = learner_for(agent_of(3, 2, 2, 64), rows=32, real=16, device=torch.device("cpu"), **CONSTANTS)
    assert type(cpu) is Learner


# ---- phase 1 ----

FITTING: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": [1e-2, 2e-2, 3e-2], "log_variance_penalty": 0.05}


def fits_of(obs_dim: int, act_dim: int, members: int, units: int, seed: int) -> tuple[TorchFit, TorchFit, FusedFit]:
    """The same ensemble on the same 100 rows: in double precision, by torch, by the kernels."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ensemble.Architecture(obs_dim, act_dim, members, members, 2, units)
    model = ensemble.new_ensemble(sizes, generator)
    rows = [torch.randn(100, width, generator=generator) for width in (obs_dim + act_dim, obs_dim + 1)]
    params, moments = (
        {name: t if name == "step" else t.double() for name, t in of.items()} for of in (model.params, model.mle)
    )
    given = [{name: tensor.to(DEVICE) for name, tensor in of.items()} for of in (model.params, model.mle)]
    return (
        TorchFit(params, moments, *(of.double() for of in rows), **FITTING),
        TorchFit(model.params, model.mle, *rows, **FITTING),
        FusedFit(*given, *(of.to(DEVICE) for of in rows), **FITTING),
    )


@settings(max_examples=12)
@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 10), st.integers(1, 3), st.sampled_from([7, 40, 100])),
    minibatches=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_the_kernels_fit_the_ensemble_as_the_hand_derived_passes_do(
    sizes: tuple[int, int, int, int], minibatches: list[int], seed: int
) -> None:
    """Minibatches of any sizes in turn: moments to rounding; parameters no further off than by torch in float32."""
    exact, rounded, ours = fits_of(*sizes, seed)
    start = {name: tensor.clone() for name, tensor in exact.params.items()}
    generator = torch.Generator().manual_seed(seed)
    for size in minibatches:
        chosen = torch.randint(100, (sizes[2], size), generator=generator)
        exact.take(chosen)
        rounded.take(chosen)
        ours.take(chosen.to(DEVICE))
    expected, found = exact.moments(), {name: tensor.cpu() for name, tensor in ours.moments().items()}
    assert found.keys() == expected.keys()
    assert float(found.pop("step")) == float(expected.pop("step")) == len(minibatches)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()))
    params = {name: tensor.cpu() for name, tensor in ours.params.items()}
    assert strayed(params, exact.params, start) < 3 * strayed(rounded.params, exact.params, start) + 1e-4


def test_an_ensemble_that_the_kernels_cannot_hold_is_left_to_torch() -> None:
    sizes = ensemble.Architecture(3, 1, 2, 1, 2, 300)
    assert not fused_model.fits(ensemble.new_ensemble(sizes, torch.Generator().manual_seed(0)).params)
