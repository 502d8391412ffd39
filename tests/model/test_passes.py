"""The passes with buffers of their own compute what autograd and the definition of the ensemble do, to rounding."""

import sys

import pytest
import torch
from helpers.strategies import architectures
from helpers.workflow import REPO
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from usbpo.model import passes
from usbpo.model.ensemble import BOUNDS, Architecture, negative_log_likelihood, new_ensemble, raw_outputs
from usbpo.model.fine_tuning import Compared, Descent, FineTuning
from usbpo.model.likelihood import LikelihoodStep, decay_by_name
from usbpo.model.passes import Forward, Passes
from usbpo.numerics.optimizer import Adam, Params, copied, trainable

sys.path.insert(0, str(REPO / "benchmarks"))
import plain_model  # type: ignore[import-not-found]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5}
"""Relative, and times the largest entry; torch's own softplus leaves out what is below 2e-9."""

networks = architectures(24)
dtypes = st.sampled_from([torch.float64, torch.float32])
seeds = st.integers(0, 1000)


def uneven(architecture: Architecture, dtype: torch.dtype, generator: torch.Generator) -> Params:
    """Parameters that are all different, with outputs beyond the bounds of the log-variance too."""
    params = new_ensemble(architecture, generator).params
    return {
        name: (
            tensor + (0.0 if name.startswith("weight") else 0.5) * torch.randn(tensor.shape, generator=generator)
        ).to(dtype)
        for name, tensor in params.items()
    }


def close(found: Tensor, expected: Tensor, scale: Tensor | None = None) -> None:
    """Equal to rounding; small entries are measured by the largest of `scale`."""
    tolerance = TOLERANCE[expected.dtype]
    largest = float((expected if scale is None else scale).abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * largest)


@given(networks, dtypes, st.integers(1, 60), seeds)
def test_the_likelihoods_gradient_is_autograds(
    architecture: Architecture, dtype: torch.dtype, rows: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = uneven(architecture, dtype, generator)
    inputs = torch.randn(40, architecture.obs_dim + architecture.act_dim, generator=generator).to(dtype)
    targets = torch.randn(40, architecture.obs_dim + 1, generator=generator).to(dtype)
    index = torch.randint(40, (architecture.members, rows), generator=generator)

    def loss(followed: Params) -> Tensor:
        return negative_log_likelihood(
            followed, inputs[index], targets[index], [0.0] * (architecture.hidden_layers + 1), 0.01
        )

    expected = plain_model.gradients(params, loss)
    adam = Adam(params, 0.0)
    LikelihoodStep(params, adam, inputs, targets, rows, 0.01).take(index)
    # A bound's gradient is the small difference of sums that are as large as the other gradients.
    everything = torch.cat([gradient.flatten() for gradient in expected.values()])
    for name, gradient in expected.items():
        close(adam.gradients[name], gradient, scale=everything if name in BOUNDS else gradient)


@given(networks, dtypes, st.integers(1, 60), st.integers(1, 70), seeds)
def test_a_pass_backward_is_autograds_whatever_the_blocks(
    architecture: Architecture, dtype: torch.dtype, rows: int, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = uneven(architecture, dtype, generator)
    gradients = {name: torch.full_like(tensor, torch.nan) for name, tensor in params.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "CHUNK_ROWS", block)
        made = Passes(params, gradients, rows)
    made.inputs.copy_(torch.randn(made.inputs.shape, generator=generator))
    made.forward()
    close(made.outputs, plain_model.outputs(params, made.inputs))
    made.deltas.copy_(torch.randn(made.deltas.shape, generator=generator))
    made.backward()
    weights = {name: tensor for name, tensor in params.items() if not name.endswith("variance")}
    expected = plain_model.gradients(
        weights, lambda followed: (plain_model.outputs(followed, made.inputs) * made.deltas).sum()
    )
    for name, gradient in expected.items():
        close(gradients[name], gradient)


@given(networks, dtypes, st.integers(0, 60), st.integers(1, 70), seeds)
def test_outputs_are_those_of_the_definition_whatever_the_chunks(
    architecture: Architecture, dtype: torch.dtype, rows: int, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = uneven(architecture, dtype, generator)
    inputs = torch.randn(rows, architecture.obs_dim + architecture.act_dim, generator=generator).to(dtype)
    members = torch.randint(architecture.members, (rows,), generator=generator)
    expected = plain_model.outputs(params, inputs.expand(architecture.members, -1, -1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "CHUNK_ROWS", chunk)
        every, one = Forward(params).all_members(inputs), Forward(params).one_member_each(members, inputs)
        at_once = Forward(params)._all_at_once(inputs)[..., : every.shape[-1]]
        means = Forward(params, columns=architecture.obs_dim + 1).all_members(inputs)
    assert every.shape == expected.shape
    if rows:
        close(every, expected)
        close(at_once, expected)
        close(means, expected[..., : architecture.obs_dim + 1], scale=expected)
        close(one, expected[members, torch.arange(rows)], scale=expected)


def test_a_step_is_that_of_torchs_adam_on_autograds_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    architecture = Architecture(3, 2, 4, 2, 2, 16)
    params = uneven(architecture, torch.float64, generator)
    inputs, targets = torch.randn(50, 5, generator=generator).double(), torch.randn(50, 4, generator=generator).double()
    plain = plain_model.PlainLikelihood(params, 1e-2, inputs, targets, [0.1] * 3, 0.01)
    adam = Adam(params, 1e-2, weight_decay=decay_by_name([0.1] * 3))
    steps = {rows: LikelihoodStep(params, adam, inputs, targets, rows, 0.01) for rows in (20, 7)}
    for rows in (20, 20, 7, 20, 7):
        index = torch.randint(50, (4, rows), generator=generator)
        steps[rows].take(index)
        plain.take(index)
    for name, tensor in plain.params.items():
        close(params[name], tensor.detach())
    assert adam.moments()["step"] == 5


def test_the_fused_kernel_gives_the_bits_of_torchs_optimizer() -> None:
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (7, 30, 40)), ("b", (7, 1, 40)))}
    plain = trainable(params)
    theirs, ours = torch.optim.Adam(list(plain.values()), lr=1e-3, fused=True), Adam(params, 1e-3)
    for _ in range(20):
        for name, gradient in ours.gradients.items():
            plain[name].grad = gradient.copy_(torch.randn(gradient.shape, generator=generator)).clone()
        theirs.step()
        ours.step()
    assert all(torch.equal(params[name], tensor.detach()) for name, tensor in plain.items())


def test_parameters_are_read_anew_in_every_pass() -> None:
    """An optimizer changes them in place, between one pass and the next."""
    params = new_ensemble(Architecture(3, 2, 4, 2, 2, 8), torch.Generator().manual_seed(0)).params
    made = Passes(params, copied(params), 6)
    made.inputs.normal_()
    made.forward()
    before = made.outputs.clone()
    for tensor in params.values():
        tensor.add_(0.1)
    made.forward()
    assert not torch.equal(made.outputs, before)
    close(made.outputs, plain_model.outputs(params, made.inputs))


def test_the_definition_applies_the_bounds_to_these_outputs() -> None:
    params = new_ensemble(Architecture(3, 2, 4, 2, 2, 8), torch.Generator().manual_seed(0)).params
    inputs = torch.randn(4, 9, 5)
    mean, log_variance = raw_outputs(params, inputs)
    assert torch.equal(mean, plain_model.outputs(params, inputs)[..., :4])
    assert (log_variance < 0.51).all()


@pytest.mark.parametrize(
    ("loss", "stand_in"), [("as_written", "fixed"), ("as_written", "moving"), ("as_released", "moving")]
)
def test_a_step_reads_nothing_on_the_host_and_stays_on_its_device(loss: str, stand_in: str) -> None:
    """As a CUDA graph demands. Tensors of the device `meta` have no values, so that reading one fails."""
    meta = torch.device("meta")
    model = new_ensemble(Architecture(3, 2, 4, 2, 2, 8), torch.Generator()).to(meta)
    adam = Adam(model.params, 1e-3, model.mle, decay_by_name([0.1] * 3))
    inputs, targets = torch.empty(50, 5, device=meta), torch.empty(50, 4, device=meta)
    step = LikelihoodStep(model.params, adam, inputs, targets, 20, 0.01)
    step.take(torch.zeros(4, 20, dtype=torch.int64, device=meta))
    tuning = FineTuning(model, model, loss, stand_in)
    members = torch.zeros(16, dtype=torch.int64, device=meta)
    m_star = torch.empty(4, 16, 8, device=meta) if stand_in == "fixed" else None
    rows = Compared(torch.empty(16, 5, device=meta), torch.empty(16, 8, device=meta), members, m_star)
    Descent(tuning, Adam(tuning.params, 1e-4), 16, "shift+bias").step(rows)
    assert tuning.objective(rows).of("shift+bias").device == meta
