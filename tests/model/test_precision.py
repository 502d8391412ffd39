"""Products in bfloat16 stay within what its rounding allows; parameters, ends and the default stay what they were."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.strategies import architectures
from helpers.workflow import FOLDERS, REPO
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import hardswish

from usbpo.agent.sac import Agent
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.commands import cli
from usbpo.environments.terminations import never
from usbpo.errors import UsbpoError
from usbpo.experiment.loading import load_run
from usbpo.model import ensemble as ensembles
from usbpo.model import passes
from usbpo.model.ensemble import Architecture, Ensemble, holdout_mse, new_ensemble, predict, predict_one_member
from usbpo.model.fine_tuning import Compared, Descent, FineTuning
from usbpo.model.likelihood import LikelihoodStep
from usbpo.model.passes import Forward, Passes, layer_count, layer_types, number_type
from usbpo.model.wasserstein import Rows
from usbpo.numerics.optimizer import Adam, Params, copied
from usbpo.stages.model_data import model_data, split_holdout
from usbpo.stages.phase1 import phase1
from usbpo.stages.rollout import act, roll_out

sys.path.insert(0, str(REPO / "benchmarks"))
import plain_model  # type: ignore[import-not-found]

BFLOAT16 = torch.bfloat16
ROUNDOFF = 2.0**-8
"""Largest relative error of a number rounded to bfloat16, which has eight significant bits."""
SLOPE, CURVATURE = 1.1, 0.5
"""Largest |SiLU′| and |SiLU″|."""
FLOAT32 = 1e-5
"""What sums in float32 may add, as a share of the sum of magnitudes."""

networks = architectures(40)
seeds = st.integers(0, 1000)


def uneven(architecture: Architecture, generator: torch.Generator) -> Params:
    """Parameters that are all different."""
    params = new_ensemble(architecture, generator).params
    return {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in params.items()}


def doubled(params: Params) -> Params:
    return {name: tensor.double() for name, tensor in params.items()}


def slope(z: Tensor) -> Tensor:
    """SiLU′."""
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1.0 + z * (1.0 - sigmoid))


@dataclass
class Allowed:
    """How far bfloat16 may lead from exact outputs and gradients, entry by entry: a running error analysis.

    Every product adds the errors of its factors and, in bfloat16, the rounding of its weights and of its result; SiLU
    passes errors on by its slope, and its derivative by the curvature. All in double precision, on magnitudes.

    Args:
        params: of all members.
        inputs: (members, rows, obs_dim + act_dim).
    """

    params: Params
    inputs: Tensor

    def __post_init__(self) -> None:
        self.types = layer_types(self.params, BFLOAT16)
        exact = doubled(self.params)
        self.weights = [exact[f"weight.{layer}"] for layer in range(len(self.types))]
        biases = [exact[f"bias.{layer}"] for layer in range(len(self.types))]
        hidden, error = self.inputs.double(), torch.zeros_like(self.inputs, dtype=torch.float64)
        self.hidden, self.hidden_errors, self.before, self.before_errors = [hidden], [error], [], []
        for layer, (weight, bias) in enumerate(zip(self.weights, biases, strict=True)):
            z = hidden @ weight + bias
            error = self.product(layer, hidden, error, weight) + self.rounded(layer, bias.abs())
            error = error + self.rounded(layer, z.abs() + error)
            self.before.append(z)
            self.before_errors.append(error)
            hidden = torch.nn.functional.silu(z)
            error = SLOPE * error + FLOAT32 * hidden.abs()
            if layer + 1 < len(self.types):
                error = error + self.rounded(layer + 1, hidden.abs() + error)
                self.hidden.append(hidden)
                self.hidden_errors.append(error)

    def rounded(self, layer: int, magnitude: Tensor) -> Tensor:
        """What rounding numbers of this magnitude for a layer may change."""
        return (ROUNDOFF if self.types[layer] == BFLOAT16 else FLOAT32) * magnitude

    def product(self, layer: int, left: Tensor, left_error: Tensor, right: Tensor) -> Tensor:
        """Error of a product with weights before its result is rounded."""
        return left_error @ right.abs() + (left.abs() + left_error) @ self.rounded(layer, right.abs())

    def gradients(self, deltas: Tensor) -> tuple[Params, Params]:
        """Gradients of Σ outputs · deltas, exact, and how far bfloat16 may lead from them."""
        exact: Params = {}
        allowed: Params = {}
        delta, error = deltas.double(), torch.zeros_like(deltas, dtype=torch.float64)
        for layer in reversed(range(len(self.types))):
            hidden, hidden_error = self.hidden[layer], self.hidden_errors[layer]
            of_weight = hidden.mT @ delta
            off = hidden_error.mT @ delta.abs() + (hidden.abs() + hidden_error).mT @ error
            off = off + FLOAT32 * (hidden.abs().mT @ delta.abs())
            exact[f"weight.{layer}"], allowed[f"weight.{layer}"] = (
                of_weight,
                off + self.rounded(layer, of_weight.abs() + off),
            )
            of_bias, off = delta.sum(1, keepdim=True), (error + FLOAT32 * delta.abs()).sum(1, keepdim=True)
            exact[f"bias.{layer}"], allowed[f"bias.{layer}"] = of_bias, off + self.rounded(layer, of_bias.abs() + off)
            if layer:
                weight, z = self.weights[layer].mT, self.before[layer - 1]
                to_hidden, error = delta @ weight, self.product(layer, delta, error, weight)
                # Rounded as it leaves this layer, as it enters the one before, and once more after the slope.
                error = error + self.rounded(layer, to_hidden.abs() + error)
                error = error + self.rounded(layer - 1, to_hidden.abs() + error)
                error = SLOPE * error + (to_hidden.abs() + error) * CURVATURE * self.before_errors[layer - 1]
                delta = to_hidden * slope(z)
                error = error + self.rounded(layer - 1, delta.abs() + error)
        return exact, allowed


def within(found: Tensor, exact: Tensor, allowed: Tensor) -> None:
    """No entry is farther from the exact one than allowed."""
    excess = (found.double() - exact).abs() - (1.0 + ROUNDOFF) * allowed - 1e-30
    assert excess.max() <= 0, f"{float(excess.max()):.3g} too far"


# ---- the passes ----


@given(networks, st.integers(1, 60), st.sampled_from([1, 20, 512]), seeds)
def test_outputs_and_gradients_stray_no_farther_than_rounding_allows(
    architecture: Architecture, rows: int, chunk: int, seed: int
) -> None:
    """Member after member, and all at once."""
    generator = torch.Generator().manual_seed(seed)
    params = uneven(architecture, generator)
    gradients = {name: torch.full_like(tensor, torch.nan) for name, tensor in params.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "CHUNK_ROWS", chunk)
        made = Passes(params, gradients, rows, BFLOAT16)
    made.inputs.copy_(torch.randn(made.inputs.shape, generator=generator))
    made.deltas.copy_(torch.randn(made.deltas.shape, generator=generator))
    made.forward()
    allowed = Allowed(params, made.inputs)
    within(made.outputs, allowed.before[-1], allowed.before_errors[-1])
    made.backward()
    weights = {name: t for name, t in doubled(params).items() if not name.endswith("variance")}
    expected = plain_model.gradients(
        weights, lambda followed: (plain_model.outputs(followed, made.inputs.double()) * made.deltas.double()).sum()
    )
    exact, errors = allowed.gradients(made.deltas)
    for name, gradient in expected.items():
        torch.testing.assert_close(exact[name], gradient)
        within(gradients[name], gradient, errors[name])
        assert gradients[name].dtype == torch.float32


@given(networks, st.integers(0, 60), st.integers(1, 70), seeds)
def test_predictions_stray_no_farther_than_rounding_allows_whatever_the_chunks(
    architecture: Architecture, rows: int, chunk: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = uneven(architecture, generator)
    inputs = torch.randn(rows, architecture.obs_dim + architecture.act_dim, generator=generator)
    members = torch.randint(architecture.members, (rows,), generator=generator)
    networks, wanted = Forward(params, products=BFLOAT16), architecture.obs_dim + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "CHUNK_ROWS", chunk)
        every, one = networks.all_members(inputs), networks.one_member_each(members, inputs)
        at_once = networks._all_at_once(inputs)[..., : every.shape[-1]]
        means = Forward(params, columns=wanted, products=BFLOAT16).all_members(inputs)
    assert every.dtype == torch.float32
    if rows:
        allowed = Allowed(params, inputs.expand(architecture.members, -1, -1))
        exact, errors = allowed.before[-1], allowed.before_errors[-1]
        within(every, exact, errors)
        within(means, exact[..., :wanted], errors[..., :wanted])
        within(one, exact[members, torch.arange(rows)], errors[members, torch.arange(rows)])
        # What is read in float32 by the output layer was rounded once more here.
        within(at_once, exact, errors + ROUNDOFF * 2 * allowed.hidden[-1].abs() @ allowed.weights[-1].abs())


def relative(found: Params, expected: Params) -> float:
    """Distance of all tensors together, as a share of the norm of what is expected."""
    differences = sum(float((found[name].double() - tensor).square().sum()) for name, tensor in expected.items())
    return float((differences / sum(float(tensor.square().sum()) for tensor in expected.values())) ** 0.5)


def likelihood_gradient(params: Params, inputs: Tensor, targets: Tensor, products: torch.dtype | None) -> Params:
    adam = Adam(copied(params), 0.0)
    members, rows = len(params["weight.0"]), len(inputs)
    every = torch.arange(rows).expand(members, -1)
    LikelihoodStep(adam.params, adam, inputs, targets, rows, 0.01, products).take(every)
    return adam.gradients


def test_at_real_sizes_the_gradient_is_nearer_than_any_wrong_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 × 200 units: errors of about one rounding, where SiLU's nearest relative is a hundred times as far away."""
    generator = torch.Generator().manual_seed(0)
    params = uneven(Architecture(11, 3, 2, 1, 4, 200), generator)
    params = {name: 0.3 * tensor if name.startswith("weight") else tensor for name, tensor in params.items()}
    inputs, targets = torch.randn(128, 14, generator=generator), torch.randn(128, 12, generator=generator)

    def loss(followed: Params) -> Tensor:
        given = inputs.double().expand(2, -1, -1), targets.double()
        return ensembles.negative_log_likelihood(followed, *given, [0.0] * 5, 0.01)

    expected = plain_model.gradients(doubled(params), loss)
    low, full = (likelihood_gradient(params, inputs, targets, products) for products in (BFLOAT16, None))
    assert relative(full, expected) < 1e-5
    assert ROUNDOFF / 50 < relative(low, expected) < 3 * ROUNDOFF
    monkeypatch.setattr(ensembles, "silu", hardswish)
    wrong = plain_model.gradients(doubled(params), loss)
    assert relative(wrong, expected) > 10 * relative(low, expected)


def test_float32_by_name_gives_the_bits_of_no_precision_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    params = uneven(Architecture(5, 2, 3, 1, 3, 24), generator)
    inputs, targets = torch.randn(40, 7, generator=generator), torch.randn(40, 6, generator=generator)
    named, unnamed = (likelihood_gradient(params, inputs, targets, p) for p in (number_type("float32"), None))
    assert all(torch.equal(named[name], tensor) for name, tensor in unnamed.items())
    forward = Forward(params, products=torch.float32).all_members(inputs)
    assert torch.equal(forward, Forward(params).all_members(inputs))


def test_a_network_with_one_hidden_layer_has_nothing_to_round() -> None:
    generator = torch.Generator().manual_seed(0)
    params = uneven(Architecture(5, 2, 3, 1, 1, 24), generator)
    inputs = torch.randn(40, 7, generator=generator)
    assert torch.equal(Forward(params, products=BFLOAT16).all_members(inputs), Forward(params).all_members(inputs))


def test_steps_smaller_than_bfloat16_can_tell_add_up_in_the_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    params = uneven(Architecture(5, 2, 3, 1, 3, 24), generator)
    before = copied(params)
    inputs, targets = torch.randn(40, 7, generator=generator), torch.randn(40, 6, generator=generator)
    adam = Adam(params, 1e-6)
    step = LikelihoodStep(params, adam, inputs, targets, 40, 0.01, BFLOAT16)
    for _ in range(10):
        step.take(torch.arange(40).expand(3, -1))
    moved = params["weight.1"] - before["weight.1"]
    assert params["weight.1"].dtype == torch.float32
    assert 5e-6 < float(moved.abs().median()) < 1.1e-5
    assert (moved.abs() < ROUNDOFF * before["weight.1"].abs()).float().mean() > 0.9


def test_parameters_are_rounded_anew_in_every_pass() -> None:
    params = uneven(Architecture(3, 2, 4, 2, 3, 16), torch.Generator().manual_seed(0))
    made = Passes(params, copied(params), 6, BFLOAT16)
    made.inputs.normal_()
    made.forward()
    before = made.outputs.clone()
    params["weight.1"].add_(0.1)
    made.forward()
    assert not torch.equal(made.outputs, before)
    allowed = Allowed(params, made.inputs)
    within(made.outputs, allowed.before[-1], allowed.before_errors[-1])


@pytest.mark.parametrize(
    ("loss", "stand_in"), [("as_written", "fixed"), ("as_written", "moving"), ("as_released", "moving")]
)
def test_a_step_reads_nothing_on_the_host_and_stays_on_its_device(loss: str, stand_in: str) -> None:
    """As a CUDA graph demands. Tensors of the device `meta` have no values, so that reading one fails."""
    meta = torch.device("meta")
    model = new_ensemble(Architecture(3, 2, 4, 2, 3, 8), torch.Generator()).to(meta, BFLOAT16)
    adam = Adam(model.params, 1e-3, model.mle)
    inputs, targets = torch.empty(50, 5, device=meta), torch.empty(50, 4, device=meta)
    step = LikelihoodStep(model.params, adam, inputs, targets, 20, 0.01, BFLOAT16)
    step.take(torch.zeros(4, 20, dtype=torch.int64, device=meta))
    tuning = FineTuning(model, model, loss, stand_in)
    members = torch.zeros(16, dtype=torch.int64, device=meta)
    m_star = torch.empty(4, 16, 8, device=meta) if stand_in == "fixed" else None
    rows = Compared(torch.empty(16, 5, device=meta), torch.empty(16, 8, device=meta), members, m_star)
    Descent(tuning, Adam(tuning.params, 1e-4), 16, "shift+bias").step(rows)
    assert tuning.objective(rows).of("shift+bias").device == meta


# ---- the stages ----

OPTIONS: dict[str, Any] = {
    "members": 4, "elites": 2, "hidden_layers": 3, "hidden_size": 16, "learning_rate": 1e-3, "batch_size": 64,
    "weight_decay": [2.5e-5, 5e-5, 5e-5, 1e-4], "log_variance_penalty": 0.01, "holdout_ratio": 0.2,
    "holdout_limit": 5000, "min_improvement": 0.01, "patience": 5, "max_epochs": 3,
}  # fmt: skip


def trained(folder: Path, data: Path, **changes: Any) -> tuple[bytes, Header, Ensemble]:
    """What phase 1 leaves in a folder: bytes, header and model."""
    model = folder / "model-mle.safetensors"
    phase1(data=[data], output=model, metrics=folder / "phase1.json", seed=0, cycle=1, **OPTIONS | changes)
    return model.read_bytes(), *ensembles.load(model)


@pytest.fixture
def shard(tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]) -> Path:
    """Real data of 200 rows."""
    path = tmp_path / "data.h5"
    transitions.write(path, make_header(), make_transitions(200))
    return path


def test_a_seed_gives_the_same_bytes_in_bfloat16_and_others_in_float32(shard: Path, tmp_path: Path) -> None:
    once, header, model = trained(tmp_path / "once", shard, precision="bfloat16")
    again, _, _ = trained(tmp_path / "again", shard, precision="bfloat16")
    full, full_header, full_model = trained(tmp_path / "full", shard)
    assert once == again
    assert (header.parameters["precision"], full_header.parameters["precision"]) == ("bfloat16", "float32")
    assert {tensor.dtype for tensor in model.params.values()} == {torch.float32}
    difference = relative(model.params, doubled(full_model.params))
    assert 0 < difference < 0.05
    named, _, _ = trained(tmp_path / "named", shard, precision="float32")
    assert named == full


def test_metrics_are_of_the_model_as_it_predicts(
    shard: Path, tmp_path: Path, make_transitions: Callable[..., Transitions]
) -> None:
    _, _, model = trained(tmp_path, shard, precision="bfloat16")
    holdout = model_data(make_transitions(200)).rows(split_holdout(200, 0, 1, 0.2, 5000)[1])
    told = json.loads((tmp_path / "phase1.json").read_text())["holdout_mse"]
    low = model.to(torch.device("cpu"), BFLOAT16)
    assert told == holdout_mse(low, low.params, holdout.inputs, holdout.targets).tolist()
    assert told != holdout_mse(model, model.params, holdout.inputs, holdout.targets).tolist()


def test_predictions_rollouts_and_phase_2_take_the_models_precision(make_agent: Callable[..., Agent]) -> None:
    generator = torch.Generator().manual_seed(0)
    architecture = Architecture(3, 2, 4, 2, 3, 16)
    full = new_ensemble(architecture, generator)
    low, other = full.to(torch.device("cpu"), BFLOAT16), new_ensemble(architecture, generator)
    observations, actions = torch.randn(50, 3, generator=generator), torch.rand(50, 2, generator=generator)
    members = torch.randint(4, (50,), generator=generator)
    found = [
        (
            predict(model, model.params, observations, actions)[0],
            predict_one_member(model, members, observations, actions)[0],
            torch.from_numpy(
                roll_out(model, make_agent().actor, observations, 1, never, torch.Generator().manual_seed(1))[
                    0
                ].next_observations
            ),
        )
        for model in (full, low)
    ]
    for exact, rounded in zip(*found, strict=True):
        assert not torch.equal(exact, rounded)
        torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)
    actor, noise = make_agent(hidden_size=64).actor, torch.zeros(50, 2)
    assert not torch.equal(act(actor, observations, noise), act(actor, observations, noise, BFLOAT16))
    rows = Rows(observations, actions, members, members.flip(0))
    for stand_in in ("fixed", "moving"):
        values = []
        for model in (full, low):
            tuning = FineTuning(other, model, "as_written", stand_in)
            values.append(tuning.objective(tuning.compared(rows)).of("shift+bias"))
        assert values[0] != values[1]
        torch.testing.assert_close(*values, rtol=0.02, atol=0.0)


# ---- what is refused ----


def test_an_unknown_precision_is_refused_in_one_sentence(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsbpoError, match=r"^precision must be float32 or bfloat16, but is 'half'; mend the value\.$"):
        trained(tmp_path / "out", shard, precision="half")
    assert not (tmp_path / "out").exists()
    words = ["phase1", "--data", str(shard), "--output", str(tmp_path / "m"), "--metrics", str(tmp_path / "j")]
    words += ["--seed", "0", "--cycle", "1", "--precision", "float16"]
    for name in ("members", "elites", "hidden-layers", "hidden-size"):
        words += [f"--{name}", str(OPTIONS[name.replace("-", "_")])]
    assert cli.main(words) == 1
    said = "usbpo phase1: '--precision' must be 'float32' or 'bfloat16', but is 'float16'; mend the value.\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "m").exists()


def test_a_configuration_with_an_unknown_precision_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms/mine.yaml").write_text("description: mine\nbase: test-mbpo\nprecision: half\n")
    with pytest.raises(UsbpoError, match=r"mine\.yaml.*precision"):
        load_run("test-pendulum", "mine", (tmp_path, *FOLDERS))


def test_layers_at_both_ends_keep_the_precision_of_the_parameters() -> None:
    params = new_ensemble(Architecture(3, 2, 4, 2, 3, 8), torch.Generator()).params
    assert layer_count(params) == 4
    assert layer_types(params, BFLOAT16) == [torch.float32, BFLOAT16, BFLOAT16, torch.float32]
    assert layer_types(params, None) == [torch.float32] * 4
