"""Phase 2: fine-tuning lowers model shift plus model bias, or leaves M2 as it is, and says truly what it did."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.artifacts import of_cycle
from helpers.workflow import REPO
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError
from usbpo.model import ensemble as ensembles
from usbpo.model import fine_tuning
from usbpo.model.ensemble import (
    Architecture,
    Ensemble,
    fit_scaler,
    holdout_mse,
    new_ensemble,
    predict,
    predict_one_member,
)
from usbpo.model.fine_tuning import Compared, Descent, FineTuning, Halves, fine_tune
from usbpo.model.passes import Forward
from usbpo.model.wasserstein import Objective, Rows, draw_members
from usbpo.numerics.optimizer import Adam, Params, copied, new_moments
from usbpo.stages import phase2 as stage
from usbpo.stages.model_data import model_data, split_holdout
from usbpo.stages.phase1 import phase1
from usbpo.stages.phase2 import phase2

sys.path.insert(0, str(REPO / "benchmarks"))
import plain_model  # type: ignore[import-not-found]

OPTIONS: dict[str, Any] = {
    "holdout_ratio": 0.2, "holdout_limit": 5000, "learning_rate": 1e-3, "batch_size": 64, "max_steps": 30,
    "validation_rows": 48, "min_improvement": 1e-4, "patience": 10, "loss": "as_written", "terms": "shift+bias",
    "stand_in": "fixed",
}  # fmt: skip
FORMS = [
    {"loss": "as_written", "stand_in": "fixed"},
    {"loss": "as_written", "stand_in": "moving"},
    {"loss": "as_released", "stand_in": "moving"},
]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))


@dataclass
class Inputs:
    """The files that phase 2 starts from."""

    data: Path
    rollouts: Path
    m1: Path
    m2: Path

    def move(self, cycle: int) -> None:
        """Make them those of a cycle."""
        for path, its in ((self.data, cycle), (self.rollouts, cycle - 1), (self.m1, cycle - 1), (self.m2, cycle)):
            of_cycle(path, its)

    def run(self, folder: Path, **changes: Any) -> tuple[Ensemble, dict[str, Any]]:
        """Run the stage; the model and the metrics that it leaves."""
        output, metrics = folder / "model.safetensors", folder / "phase2.json"
        arguments = {"seed": 0, "cycle": 2, **OPTIONS, **changes}
        phase2(
            data=[self.data], rollouts=[self.rollouts], model_mle=self.m2, previous_model=self.m1,
            output=output, metrics=metrics, **arguments,
        )  # fmt: skip
        return ensembles.load(output)[1], json.loads(metrics.read_text())


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_transitions: Callable[..., Transitions],
    make_ensemble: Callable[..., Ensemble],
    make_header: Callable[..., Header],
) -> Inputs:
    """M1 and, some way off, M2, each with a scaler of its own."""
    found = Inputs(*(tmp_path / name for name in ("data.h5", "rollouts.h5", "m1.safetensors", "m2.safetensors")))
    real, made = make_transitions(200), make_transitions(300, seed=1)
    transitions.write(found.data, make_header(cycle=2), real)
    transitions.write(found.rollouts, make_header("rollouts", cycle=1), made)
    m1, m2 = make_ensemble(), make_ensemble()
    rows = model_data(real).inputs
    fit_scaler(m1, rows[:50])
    fit_scaler(m2, rows)
    generator = torch.Generator().manual_seed(7)
    for name, tensor in m2.params.items():
        m2.params[name] = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
    m1.save(found.m1, make_header("model", cycle=1))
    m2.save(found.m2, make_header("model", cycle=2))
    return found


def same_params(first: Params, second: Params) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def watched_rows(inputs: Inputs, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Any, Any]:
    """Run the stage; the validation rows, and the rows of every step."""
    seen: list[Rows] = []
    original = FineTuning.compared

    def recording(tuning: FineTuning, rows: Rows) -> Compared:
        seen.append(rows)
        return original(tuning, rows)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "compared", recording)
        inputs.run(folder, **changes)
    return seen[0], seen[1:]


def objective(tuning: FineTuning, rows: Rows) -> Objective:
    return tuning.objective(tuning.compared(rows))


# ---- the loop, worked by hand ----


@dataclass
class Scripted:
    """Stands for a model whose validation values are given; each Adam step raises `steps` by one."""

    values: list[float]

    def __post_init__(self) -> None:
        self.params = {"weight": torch.zeros(1)}
        self.m2 = self
        self.finetune = new_moments(self.params)
        self.steps = -1

    def compared(self, rows: Rows) -> Compared:
        return Compared(rows.observations, rows.observations, rows.members2, None)

    def objective(self, _: Compared) -> Objective:
        self.steps += 1
        return Objective(torch.tensor(self.values[min(self.steps, len(self.values) - 1)]), torch.zeros(()))


class ConstantDescent:
    """Steps of Adam down a constant gradient."""

    def __init__(self, _: Scripted, adam: Adam, *__: Any) -> None:
        self.adam = adam
        adam.gradients["weight"].fill_(1.0)

    def step(self, _: Compared) -> None:
        self.adam.step()


def scripted(values: list[float], max_steps: int = 100) -> tuple[Scripted, list[float], int, str]:
    model = Scripted(values)
    rows = Rows(*(torch.zeros(1),) * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "Descent", ConstantDescent)
        found, best_step, stopped = fine_tune(
            model, lambda: rows, model.compared(rows),  # type: ignore[arg-type]
            learning_rate=0.5, batch_size=1, max_steps=max_steps, min_improvement=1e-4, patience=10,
            terms="shift+bias",
        )  # fmt: skip
    return model, found, best_step, stopped


def weight_after(steps: int) -> float:
    """Adam with a constant gradient moves by the learning rate in each step."""
    return -0.5 * steps


@pytest.mark.parametrize(
    ("values", "best_step", "steps"),
    [
        ([1.0], 0, 11),  # nothing ever improves: M2 stays as it is, after 11 steps without
        ([1.0, 2.0, 3.0], 0, 11),
        ([1.0, 0.9, 0.8, 0.95], 2, 13),
        ([1.0, 0.99995], 0, 11),  # half of 0.01 % is no improvement
        ([1.0, 0.9998], 1, 12),
        ([1.0] * 11 + [0.5], 11, 22),  # the eleventh step is still in time
        ([1.0] * 12 + [0.5], 0, 11),  # the twelfth is not
        ([0.0], 0, 11),  # an objective of 0 cannot be improved
        ([1.0, float("nan")], 0, 11),
    ],
)
def test_stops_and_restores_by_the_rule(values: list[float], best_step: int, steps: int) -> None:
    model, found, best, stopped = scripted(values)
    assert (best, len(found) - 1) == (best_step, steps)
    assert "11 steps" in stopped
    assert float(model.m2.params["weight"].detach()) == pytest.approx(weight_after(best_step), abs=1e-4)
    assert model.finetune["step"] == steps


def test_small_improvements_add_up_to_a_snapshot() -> None:
    _, _, best_step, _ = scripted([1.0, 0.99996, 0.99992, 0.99988])
    assert best_step == 3


def test_stops_at_the_most_steps_allowed() -> None:
    _, found, best_step, stopped = scripted([1.0 / (1 + step) for step in range(50)], max_steps=7)
    assert (len(found) - 1, best_step, stopped) == (7, 7, "max_steps reached")


# ---- the stage ----


@every_form
def test_fine_tuning_lowers_the_objective(form: dict[str, str], inputs: Inputs, tmp_path: Path) -> None:
    model, metrics = inputs.run(tmp_path / "out", **form)
    assert metrics["after"]["sum"] < 0.98 * metrics["before"]["sum"]
    assert metrics["best_step"] > 0
    assert not same_params(model.params, ensembles.load(inputs.m2)[1].params)


@pytest.mark.parametrize("changes", [{"learning_rate": 1e-12}, {"learning_rate": 3.0}])
def test_leaving_m2_as_it_is_is_a_legal_outcome(changes: dict[str, float], inputs: Inputs, tmp_path: Path) -> None:
    model, metrics = inputs.run(tmp_path / "out", **changes)
    assert (metrics["best_step"], metrics["steps"]) == (0, 11)
    assert same_params(model.params, ensembles.load(inputs.m2)[1].params)
    assert metrics["after"] == metrics["before"]


def test_identical_models_are_left_as_they_are(
    inputs: Inputs, tmp_path: Path, make_header: Callable[..., Header]
) -> None:
    """M1 and M2 are one model whose members are all the same."""
    _, model = ensembles.load(inputs.m1)
    for name, tensor in model.params.items():
        if not name.endswith("variance"):
            model.params[name] = tensor[:1].expand_as(tensor).clone()
    for path, cycle in ((inputs.m1, 1), (inputs.m2, 2)):
        model.save(path, make_header("model", cycle=cycle))
    tuned, metrics = inputs.run(tmp_path / "out")
    assert metrics["before"]["bias"] == 0.0
    assert metrics["before"]["shift"] < 1e-6, "M1 is computed member by member, which rounds otherwise"
    assert metrics["after"] == metrics["before"]
    assert same_params(tuned.params, model.params)


def test_shift_is_zero_for_the_same_model_and_members(inputs: Inputs) -> None:
    _, m1 = ensembles.load(inputs.m1)
    observations, actions = torch.randn(20, 3), torch.randn(20, 2)
    members = torch.arange(20) % 4
    for form in FORMS:
        found = objective(FineTuning(m1, m1, **form), Rows(observations, actions, members, members))
        assert float(found.shift) == pytest.approx(0.0, abs=1e-6)
        other = objective(FineTuning(m1, m1, **form), Rows(observations, actions, members, members.flip(0)))
        assert float(other.shift) > 0.01


@pytest.mark.parametrize("terms", ["shift+bias", "shift", "bias"])
@every_form
def test_the_terms_are_what_is_minimised(form: dict[str, str], terms: str, inputs: Inputs, tmp_path: Path) -> None:
    _, metrics = inputs.run(tmp_path / "out", **form, terms=terms)
    name = "sum" if terms == "shift+bias" else terms
    values = metrics["objective_by_step"]
    assert len(values) == metrics["steps"] + 1
    assert values[0] == pytest.approx(metrics["before"][name], rel=1e-6)
    assert values[metrics["best_step"]] == pytest.approx(metrics["after"][name], rel=1e-6)
    assert metrics["after"][name] < metrics["before"][name]
    assert metrics["after"][name] <= min(values) * (1 + 2e-4)
    for moment in ("before", "after"):
        parts = metrics[moment]
        assert parts["sum"] == pytest.approx(parts["shift"] + parts["bias"])


def test_the_ablations_lead_elsewhere(inputs: Inputs, tmp_path: Path) -> None:
    after = {terms: inputs.run(tmp_path / terms, terms=terms)[1]["after"] for terms in ("shift+bias", "shift", "bias")}
    assert after["shift"]["shift"] < after["bias"]["shift"]
    assert after["bias"]["bias"] < after["shift"]["bias"]


@every_form
def test_metrics_describe_the_models_on_disk(
    form: dict[str, str], inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation, _ = watched_rows(inputs, tmp_path / "out", monkeypatch, **form)
    metrics = json.loads((tmp_path / "out" / "phase2.json").read_text())
    (_, m1), (_, m2) = ensembles.load(inputs.m1), ensembles.load(inputs.m2)
    for path, moment in ((inputs.m2, "before"), (tmp_path / "out" / "model.safetensors", "after")):
        tuning = FineTuning(m1, m2, **form)
        tuning.params = ensembles.load(path)[1].params
        found = objective(tuning, validation)
        assert metrics[moment]["shift"] == pytest.approx(float(found.shift), rel=1e-6)
        assert metrics[moment]["bias"] == pytest.approx(float(found.bias), rel=1e-6)


def test_elites_are_ranked_again_by_hold_out_error(
    inputs: Inputs, tmp_path: Path, make_transitions: Callable[..., Transitions]
) -> None:
    model, metrics = inputs.run(tmp_path / "out")
    holdout = model_data(make_transitions(200)).rows(split_holdout(200, 0, 2, 0.2, 5000)[1])
    errors = holdout_mse(model, model.params, holdout.inputs, holdout.targets)
    assert metrics["holdout_mse"] == errors.tolist()
    assert metrics["elites"] == model.elites.tolist() == errors.sort().indices[:2].tolist()
    before = ensembles.load(inputs.m2)[1]
    expected = holdout_mse(before, before.params, holdout.inputs, holdout.targets)
    assert metrics["holdout_mse_before"] == expected.tolist() != metrics["holdout_mse"]


def test_rows_are_drawn_from_where_they_should(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_transitions: Callable[..., Transitions]
) -> None:
    validation, drawn = watched_rows(inputs, tmp_path / "out", monkeypatch)
    made = {tuple(row) for row in make_transitions(300, seed=1).observations.tolist()}
    holdout = make_transitions(200).rows(split_holdout(200, 0, 2, 0.2, 5000)[1].numpy())
    held_out = {tuple(row) for row in holdout.observations.tolist()}
    assert len(validation.observations) == 48
    assert {tuple(row) for row in validation.observations.tolist()} <= held_out
    assert all(len(rows.observations) == 64 for rows in drawn)
    assert {tuple(row) for rows in drawn for row in rows.observations.tolist()} <= made
    assert not torch.equal(drawn[0].observations, drawn[1].observations)


def test_phase_1_and_phase_2_hold_out_the_same_rows(
    inputs: Inputs, tmp_path: Path, make_header: Callable[..., Header]
) -> None:
    arguments: dict[str, Any] = {
        "seed": 0, "cycle": 2, "members": 4, "elites": 2, "hidden_layers": 2, "hidden_size": 8,
        "learning_rate": 1e-3, "batch_size": 64, "weight_decay": [0.0] * 3, "log_variance_penalty": 0.01,
        "holdout_ratio": 0.2, "holdout_limit": 5000, "min_improvement": 0.01, "patience": 5, "max_epochs": 2,
    }  # fmt: skip
    metrics = tmp_path / "phase1.json"
    phase1(data=[inputs.data], previous_model=inputs.m1, output=inputs.m2, metrics=metrics, **arguments)
    _, found = inputs.run(tmp_path / "out")
    assert found["holdout_mse_before"] == json.loads(metrics.read_text())["holdout_mse"]


def test_as_written_draws_members_for_each_row_and_step(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation, drawn = watched_rows(inputs, tmp_path / "out", monkeypatch)
    for rows in (validation, drawn[0]):
        assert set(rows.members1.tolist()) == set(rows.members2.tolist()) == {0, 1, 2, 3}
        assert not torch.equal(rows.members1, rows.members2)
    assert not torch.equal(drawn[0].members1, drawn[1].members1)


def test_as_released_draws_members_once_in_a_run(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for cycle in (2, 3):
        inputs.move(cycle)
        validation, drawn = watched_rows(
            inputs, tmp_path / str(cycle), monkeypatch, **FORMS[-1], cycle=cycle, max_steps=3
        )
        rows += drawn
        assert torch.equal(validation.members2, drawn[0].members2[:48])
    for name in ("members1", "members2"):
        assert all(torch.equal(getattr(one, name), getattr(rows[0], name)) for one in rows)
        assert len(set(getattr(rows[0], name).tolist())) > 1
    assert not torch.equal(rows[0].observations, rows[-1].observations)


def test_members_are_drawn_uniformly() -> None:
    first, second = draw_members(7, 7000, torch.Generator().manual_seed(0))
    for members in (first, second):
        counts = torch.bincount(members, minlength=7)
        assert len(counts) == 7
        assert ((counts > 850) & (counts < 1150)).all()


def stretched(m1: Ensemble) -> Ensemble:
    """M1 with another scaler and other bounds."""
    m1.scaler_mean = m1.scaler_mean + 1.0
    m1.params = m1.params | {"max_log_variance": m1.params["max_log_variance"] - 3.0}
    return m1


def test_m1_is_a_whole_model_as_written_but_shares_with_m2_as_released(inputs: Inputs) -> None:
    (_, m1), (_, m2) = ensembles.load(inputs.m1), ensembles.load(inputs.m2)
    rows = Rows(torch.randn(20, 3), torch.randn(20, 2), *draw_members(4, 20, torch.Generator().manual_seed(0)))

    def shift(form: dict[str, str]) -> float:
        return float(objective(FineTuning(m1, m2, **form), rows).shift)

    before = [shift(form) for form in FORMS]
    m1 = stretched(m1)
    for form, value in zip(FORMS[:2], before, strict=False):
        assert abs(shift(form) - value) > 0.1
    assert shift(FORMS[-1]) == before[-1]


def test_the_shift_compares_the_drawn_members(inputs: Inputs) -> None:
    (_, m1), (_, m2) = ensembles.load(inputs.m1), ensembles.load(inputs.m2)
    observations, actions = torch.randn(6, 3), torch.randn(6, 2)
    members1, members2 = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 3, 1, 0, 0, 2])
    mean1, std1 = predict_one_member(m1, members1, observations, actions)
    mean2, std2 = predict(m2, m2.params, observations, actions)
    distances = [
        ((mean1[row] - mean2[j, row]).square().sum() + (std1[row] - std2[j, row]).square().sum()).sqrt()
        for row, j in enumerate(members2.tolist())
    ]
    found = objective(FineTuning(m1, m2, **FORMS[0]), Rows(observations, actions, members1, members2))
    assert float(found.shift) == pytest.approx(float(sum(distances)) / 6, rel=1e-5)


def gradients(tuning: FineTuning, rows: Rows, terms: str = "shift+bias") -> Params:
    """What a step of phase 2 goes down."""
    adam = Adam(tuning.params, 0.0)
    Descent(tuning, adam, len(rows.observations), terms).step(tuning.compared(rows))
    return adam.gradients


@given(
    form=st.sampled_from(FORMS),
    terms=st.sampled_from(["shift+bias", "shift", "bias"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(1, 20)),
    count=st.integers(1, 40),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_a_step_goes_down_the_gradient_that_autograd_gives(
    form: dict[str, str], terms: str, sizes: tuple[int, int, int, int, int], count: int, dtype: torch.dtype, seed: int
) -> None:
    obs_dim, act_dim, members, layers, width = sizes
    generator = torch.Generator().manual_seed(seed)
    architecture = Architecture(obs_dim, act_dim, members, 1, layers, width)
    m1, m2 = new_ensemble(architecture, generator), new_ensemble(architecture, generator)
    drawn = draw_members(members, count, generator)
    numbers = torch.randn(count + 30, obs_dim + act_dim, generator=generator)
    for model, first in ((m1, 0), (m2, 10)):
        fit_scaler(model, numbers[first:])
        model.params["max_log_variance"] = model.params["max_log_variance"] - 0.1 * first
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}[dtype]
    m1, m2 = converted(m1, dtype), converted(m2, dtype)
    inputs = numbers[:count].to(dtype)
    rows = Rows(inputs[:, :obs_dim], inputs[:, obs_dim:], *drawn)
    tuning = FineTuning(m1, m2, **form)
    # Some way from the stand-in.
    tuning.params = {name: 1.1 * tensor for name, tensor in m2.params.items()}
    expected = plain_model.gradients(
        tuning.params,
        lambda params: plain_model.objective(m1, m2, params, (form["loss"], form["stand_in"]), rows).of(terms),
    )
    found = gradients(tuning, rows, terms)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance * scale)


def test_a_stand_in_that_is_fixed_is_m2_as_phase_1_left_it(inputs: Inputs) -> None:
    """Its own bounds included; the member's distance to its own former self is left out."""
    (_, m1), (_, m2) = ensembles.load(inputs.m1), ensembles.load(inputs.m2)
    tuning = FineTuning(m1, m2, **FORMS[0])
    rows = Rows(torch.randn(20, 3), torch.randn(20, 2), *draw_members(4, 20, torch.Generator().manual_seed(0)))
    compared = tuning.compared(rows)
    before = tuning.objective(compared)
    for form in FORMS[1:]:
        assert torch.equal(FineTuning(m1, m2, **form).objective(compared).bias, before.bias) == (form == FORMS[1])
    # Phase 2 changes the parameters in place, and puts others in the place of M2's at its end.
    for tensor in tuning.params.values():
        tensor.add_(0.2)
    m2.params = tuning.params
    (mean, std), (mean_star, std_star) = (
        predict(m2, params, rows.observations, rows.actions)
        for params in (tuning.params, ensembles.load(inputs.m2)[1].params)
    )
    expected = [
        ((mean[j, row] - mean_star[m, row]).square().sum() + (std[j, row] - std_star[m, row]).square().sum()).sqrt()
        for row, j in enumerate(rows.members2.tolist())
        for m in range(4)
        if m != j
    ]
    for again in (compared, tuning.compared(rows)):
        assert float(tuning.objective(again).bias) == pytest.approx(float(sum(expected)) / 60, rel=1e-5)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("terms", ["shift+bias", "bias"])
def test_the_gradient_does_not_reach_a_stand_in_that_is_fixed(
    terms: str, precision: torch.dtype | None, inputs: Inputs
) -> None:
    """Where member 0 is drawn on every row, the others are stand-ins alone."""
    m1, m2 = (ensembles.load(path)[1].to(torch.device("cpu"), precision) for path in (inputs.m1, inputs.m2))
    zeros = torch.zeros(40, dtype=torch.int64)
    rows = Rows(torch.randn(40, 3), torch.randn(40, 2), zeros, zeros)
    found = {form["stand_in"]: gradients(FineTuning(m1, m2, **form), rows, terms) for form in FORMS[:2]}
    for name in found["fixed"]:
        if not name.endswith("variance"):
            assert found["fixed"][name][0].abs().sum() > 0
            assert found["fixed"][name][1:].abs().sum() == 0
            assert found["moving"][name][1:].abs().sum() > 0


def test_recorded_outcomes_are_samples_of_m_star(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shift is that of the same rows and members as ever; the bias is W2 to the Diracs at what was recorded."""
    seen: list[Halves] = []
    original = stage.with_real

    def recording(rows: Rows, inputs: Tensor, outcomes: Tensor) -> Halves:
        seen.append(original(rows, inputs, outcomes))
        return seen[-1]

    monkeypatch.setattr(stage, "with_real", recording)
    _, m2 = ensembles.load(inputs.m2)
    model, metrics = inputs.run(tmp_path / "samples", stand_in="samples")
    _, fixed = inputs.run(tmp_path / "fixed")
    assert metrics["before"]["shift"] == pytest.approx(fixed["before"]["shift"], rel=1e-6)
    watched, *steps = seen
    for params, told in ((m2.params, metrics["before"]), (model.params, metrics["after"])):
        mean, std = predict(m2, params, watched.observations[48:], watched.actions[48:])
        reached = watched.outcomes.clone()
        reached[:, 1:] += watched.observations[48:]
        distances = [
            ((mean[j, row] - reached[row]).square().sum() + std[j, row].square().sum()).sqrt()
            for row, j in enumerate(watched.members2[48:].tolist())
        ]
        assert told["bias"] == pytest.approx(float(torch.stack(distances).mean()), rel=1e-4)
    assert metrics["after"]["sum"] < metrics["before"]["sum"]
    real = model_data(transitions.read_all([inputs.data])[1])
    training, holdout = split_holdout(200, 0, 2, 0.2, 5000)
    for rows, half, indices in ((watched, 48, holdout), (steps[0], 64, training)):
        pairs = torch.cat([rows.observations[half:], rows.actions[half:], rows.outcomes], dim=1)
        known = torch.cat([real.inputs[indices], real.targets[indices]], dim=1)
        assert all((known == pair).all(dim=1).any() for pair in pairs)
        assert torch.equal(rows.members2[:half], rows.members2[half:])
    assert len(torch.unique(torch.stack([step.outcomes[0] for step in steps]), dim=0)) > 1, "other rows in each step"


def test_the_shift_alone_is_the_same_whatever_stands_for_m_star(inputs: Inputs, tmp_path: Path) -> None:
    fixed, moving = (inputs.run(tmp_path / str(n), **form, terms="shift") for n, form in enumerate(FORMS[:2]))
    assert same_params(fixed[0].params, moving[0].params)
    assert fixed[1]["before"] == moving[1]["before"]
    assert fixed[1]["after"]["shift"] == moving[1]["after"]["shift"]
    assert fixed[1]["after"]["bias"] > moving[1]["after"]["bias"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_moves_along_goes_back_to_m1_and_what_is_fixed_holds(
    precision: str, inputs: Inputs, tmp_path: Path, make_header: Callable[..., Header]
) -> None:
    """Where M2's members agree and lie off M1: all of the way back, or where maximum likelihood has led."""
    for path in (inputs.m1, inputs.m2):
        header, model = ensembles.load(path)
        for name, tensor in model.params.items():
            if not name.endswith("variance"):
                model.params[name] = tensor[:1].expand_as(tensor).clone()
        model.save(path, header)
    moved = {}
    for form in FORMS[:2]:
        folder = tmp_path / form["stand_in"]
        _, metrics = inputs.run(folder, **form, precision=precision, max_steps=100)
        moved[form["stand_in"]] = metrics["after"]["shift"] / metrics["before"]["shift"]
    assert moved["moving"] < 0.5
    assert moved["fixed"] > 0.9


def test_a_stand_in_that_is_fixed_costs_one_more_forward_a_batch(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one for the validation rows."""
    calls: list[int] = []
    original = Forward.all_members

    def counting(networks: Forward, rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return original(networks, rows)

    monkeypatch.setattr(Forward, "all_members", counting)
    counts = []
    for number, form in enumerate(FORMS[:2]):
        calls.clear()
        inputs.run(tmp_path / str(number), **form, max_steps=6)
        counts.append([calls.count(rows) for rows in (64, 48)])
    assert [fixed - moving for fixed, moving in zip(*counts, strict=True)] == [6, 1]


def converted(model: Ensemble, dtype: torch.dtype) -> Ensemble:
    """The model in another precision."""
    return Ensemble(
        model.architecture,
        {name: tensor.to(dtype) for name, tensor in model.params.items()},
        model.scaler_mean.to(dtype),
        model.scaler_std.to(dtype),
        model.elites,
        {},
        {},
    )


@every_form
def test_everything_that_phase_2_trains_has_a_gradient_and_m1_is_not_trained(
    form: dict[str, str], inputs: Inputs
) -> None:
    (_, m1), (_, m2) = ensembles.load(inputs.m1), ensembles.load(inputs.m2)
    before = copied(m1.params)
    rows = Rows(torch.randn(64, 3), torch.randn(64, 2), *draw_members(4, 64, torch.Generator().manual_seed(0)))
    for name, gradient in gradients(FineTuning(m1, m2, **form), rows).items():
        assert gradient.abs().sum() > 0, name
    assert same_params(before, m1.params)
    assert not any(tensor.requires_grad for tensor in m1.params.values())


def test_the_bounds_are_trained_and_restored_too(inputs: Inputs, tmp_path: Path) -> None:
    tuned, _ = inputs.run(tmp_path / "tuned")
    before = ensembles.load(inputs.m2)[1]
    assert not torch.equal(tuned.params["max_log_variance"], before.params["max_log_variance"])
    assert torch.equal(tuned.scaler_mean, before.scaler_mean)


def test_moments_of_phase_2_go_on_and_those_of_phase_1_stay(inputs: Inputs, tmp_path: Path) -> None:
    header, m2 = ensembles.load(inputs.m2)
    m2.mle = {name: torch.full_like(tensor, 0.25) for name, tensor in m2.mle.items()}
    m2.save(inputs.m2, header)
    header, m1 = ensembles.load(inputs.m1)
    m1.finetune = new_moments(m1.params) | {"step": torch.tensor(40.0)}
    m1.save(inputs.m1, header)
    tuned, metrics = inputs.run(tmp_path / "out")
    assert all((tensor == 0.25).all() for tensor in tuned.mle.values())
    assert tuned.finetune["step"] == 40 + metrics["steps"]


@every_form
def test_same_work_gives_same_bytes(form: dict[str, str], inputs: Inputs, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        inputs.run(tmp_path / folder, **form, max_steps=5)
        torch.rand(1)  # a global generator must not matter
    for name in ("model.safetensors", "phase2.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_diverging_objective_says_so_and_writes_nothing(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UsbpoError, match=r"diverged.*learning_rate"):
        inputs.run(tmp_path / "out", learning_rate=1e30)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_width_or_task_is_refused_in_one_sentence(
    inputs: Inputs, tmp_path: Path, make_ensemble: Callable[..., Ensemble], make_header: Callable[..., Header]
) -> None:
    make_ensemble(hidden_size=9).save(inputs.m1, make_header("model"))
    with pytest.raises(UsbpoError, match=r"m1.safetensors.*hidden_size is 9, but 8"):
        inputs.run(tmp_path / "out")
    make_ensemble().save(inputs.m1, make_header("model", task="another"))
    with pytest.raises(UsbpoError, match=r"m1.safetensors.*task is another"):
        inputs.run(tmp_path / "out")
