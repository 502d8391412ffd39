"""The stage `theory`: right distances on the right rows, before and after phase 2, and null where there is no truth."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers.artifacts import of_cycle
from hypothesis import given
from hypothesis import strategies as st

from usbpo.agent import sac
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.reconstruction import Reconstruction, reconstruction
from usbpo.environments.tasks import Simulator
from usbpo.environments.terminations import TERMINATIONS, never
from usbpo.errors import UsbpoError
from usbpo.model import ensemble
from usbpo.model.ensemble import Ensemble, predict
from usbpo.model.theory import rank_correlation
from usbpo.stages import theory as stage
from usbpo.stages.model_data import split_holdout
from usbpo.stages.theory import MeasuredRows, error_by_depth, floor, measure, policy_shift, theory

ENVIRONMENT = "InvertedPendulum-v5"


def real_data(rows: int = 120) -> Transitions:
    """Random episodes of the pendulum."""
    simulator, rng = Simulator(ENVIRONMENT), np.random.default_rng(0)
    observation, episode, made = simulator.reset(0), 0, []
    for _ in range(rows):
        action = rng.uniform(-1, 1, 1)
        step = simulator.step(action)
        made.append((observation, action, step.reward, step.observation, step.terminated, step.truncated, episode))
        over = step.terminated or step.truncated
        observation, episode = (simulator.reset(), episode + 1) if over else (step.observation, episode)
    kinds = (np.float32, np.float32, np.float32, np.float32, np.bool_, np.bool_, np.int64)
    columns = zip(*made, strict=True)
    return Transitions(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


@pytest.fixture(scope="module")
def real() -> Transitions:
    return real_data()


@pytest.fixture(scope="module")
def world() -> Reconstruction:
    found = reconstruction(Simulator(ENVIRONMENT))
    assert found is not None
    return found


@pytest.fixture
def make_model(make_ensemble: Callable[..., Ensemble]) -> Callable[[int], Ensemble]:
    """An ensemble of the pendulum, with a spread of about 0.1."""

    def make(seed: int) -> Ensemble:
        model = make_ensemble(seed, obs_dim=4, act_dim=1)
        model.params["max_log_variance"] = torch.full((5,), -4.0)
        return model

    return make


def rows_of(batch: Transitions, members: int = 4, *, known: bool = True) -> MeasuredRows:
    drawn = torch.randint(members, (2, len(batch)), generator=torch.Generator().manual_seed(0))
    outcomes = np.hstack([batch.rewards[:, None], batch.next_observations]).astype(np.float64)
    return MeasuredRows(
        torch.from_numpy(batch.observations), torch.from_numpy(batch.actions), drawn[0], drawn[1],
        torch.from_numpy(outcomes) if known else None,
    )  # fmt: skip


def test_terms_are_means_of_distances_worked_row_by_row(
    real: Transitions, make_model: Callable[[int], Ensemble]
) -> None:
    m1, m2, mle, rows = make_model(1), make_model(2), make_model(3), rows_of(real)
    assert rows.real is not None
    terms, each = measure(rows, m1, m2, policy_shift=0.5, discount=0.9, m_star=mle)
    with torch.no_grad():
        (mean1, std1), (mean2, std2), (mean3, std3) = (
            (mean.double().numpy(), std.double().numpy())
            for mean, std in (predict(m, m.params, rows.observations, rows.actions) for m in (m1, m2, mle))
        )
    expected: dict[str, list[float]] = {
        name: []
        for name in ("shift", "true_bias", "previous_bias", "surrogate_bias", "surrogate_bias_fixed", "error", "spread")
    }
    for row, (i, j) in enumerate(zip(rows.members1.tolist(), rows.members2.tolist(), strict=True)):
        point = rows.real[row].numpy()
        a, b = (mean1[i, row], std1[i, row]), (mean2[j, row], std2[j, row])
        expected["shift"].append(np.hypot(np.linalg.norm(a[0] - b[0]), np.linalg.norm(a[1] - b[1])))
        expected["true_bias"].append(np.hypot(np.linalg.norm(b[0] - point), np.linalg.norm(b[1])))
        expected["previous_bias"].append(np.hypot(np.linalg.norm(a[0] - point), np.linalg.norm(a[1])))
        others = [m for m in range(4) if m != j]
        for name, mean, std in (("surrogate_bias", mean2, std2), ("surrogate_bias_fixed", mean3, std3)):
            expected[name].append(
                np.mean(
                    [np.hypot(np.linalg.norm(b[0] - mean[m, row]), np.linalg.norm(b[1] - std[m, row])) for m in others]
                )
            )
        expected["error"].append(np.linalg.norm(b[0] - point))
        expected["spread"].append(np.linalg.norm(b[1]))
    means = {name: float(np.mean(values)) for name, values in expected.items()}
    for name, value in means.items():
        assert terms[name] == pytest.approx(value, rel=1e-6), name
    assert terms["bracket"] == pytest.approx(means["previous_bias"] - means["shift"] - means["true_bias"])
    for name in ("", "_fixed"):
        rho = rank_correlation(each[f"surrogate_bias{name}"].numpy(), np.array(expected["true_bias"]))
        assert terms[f"rank_correlation{name}"] == rho
    largest = max(expected["true_bias"])
    assert terms["true_bias_max"] == pytest.approx(largest)
    assert terms["bound"] == pytest.approx(18 * means["shift"] * largest + 20 * 0.5 * largest)


def test_what_cannot_be_measured_is_null(real: Transitions, make_model: Callable[[int], Ensemble]) -> None:
    first, _ = measure(rows_of(real), None, make_model(2), 0.5, 0.9)
    assert {name for name, value in first.items() if value is None} == {
        *("shift", "previous_bias", "bracket", "bound", "bound_shift_term", "bound_policy_term"),
        *("surrogate_bias_fixed", "rank_correlation_fixed"),  # there is no phase 2
    }
    blind, _ = measure(rows_of(real, known=False), make_model(1), make_model(2), 0.5, 0.9)
    assert {name for name, value in blind.items() if value is not None} == {"shift", "surrogate_bias", "spread"}
    assert first.keys() == blind.keys()


@given(st.integers(0, 50))
def test_policy_shift_is_w2_of_gaussians(seed: int) -> None:
    architecture = sac.Architecture(4, 1, 2, 8)
    actors = [sac.new_agent(architecture, torch.Generator().manual_seed(seed + n)).actor for n in (0, 1)]
    states = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    assert policy_shift(actors[0], actors[0], states) == 0.0
    with torch.no_grad():
        outputs = [sac.policy_outputs(actor, states) for actor in actors]
    (mean1, log1), (mean2, log2) = outputs
    expected = np.hypot((mean1 - mean2).numpy(), (log1.exp() - log2.exp()).numpy()).mean()  # one action
    assert policy_shift(*actors, states) == pytest.approx(float(expected), rel=1e-4)


# ---- depth -------------------------------------------------------------------------------------------------------


def perfect(world: Reconstruction) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A model that is the simulator itself."""

    def predict_one_member(_: Ensemble, __: torch.Tensor, observations: torch.Tensor, actions: torch.Tensor) -> Any:
        mean = torch.from_numpy(world.next_states(observations.numpy(), actions.numpy())).float()
        return mean, torch.zeros_like(mean)

    return predict_one_member


def depths(
    model: Ensemble, world: Reconstruction, real: Transitions, termination: Any = never, depth: int = 6
) -> list[dict[str, float | None]]:
    actor = sac.new_agent(sac.Architecture(4, 1, 2, 8), torch.Generator().manual_seed(0)).actor
    starts = torch.from_numpy(real.observations[:20])
    return error_by_depth(model, actor, starts, depth, termination, world, torch.Generator().manual_seed(1))


def test_a_perfect_model_stays_with_the_simulator(
    real: Transitions,
    world: Reconstruction,
    make_model: Callable[[int], Ensemble],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from usbpo.stages import rollout

    for module in (stage, rollout):
        monkeypatch.setattr(module, "predict_one_member", perfect(world))
    lines = depths(make_model(0), world, real)
    assert [line["depth"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["branches"] == 20
        assert line["error_mean"] is not None
        assert line["error_mean"] < 1e-4
        assert line["one_step"] is not None
        assert line["one_step"] < 1e-5
        assert line["moved"] is not None
        assert line["moved"] > 0.1


def test_an_untrained_model_parts_from_the_simulator(
    real: Transitions, world: Reconstruction, make_model: Callable[[int], Ensemble]
) -> None:
    lines = depths(make_model(0), world, real)
    errors = [line["error_mean"] or 0.0 for line in lines]
    assert errors[0] > 0.1
    assert errors[-1] > 2 * errors[0]
    for line in lines:
        quartiles = [line[f"error_q{q}"] or 0.0 for q in (25, 50, 75)]
        assert quartiles == sorted(quartiles)


def test_branches_end_where_a_state_is_terminal(
    real: Transitions, world: Reconstruction, make_model: Callable[[int], Ensemble]
) -> None:
    lines = depths(make_model(0), world, real, TERMINATIONS["inverted_pendulum"], depth=30)
    branches = [line["branches"] or 0 for line in lines]
    assert branches == sorted(branches, reverse=True)
    assert branches[-1] < 20


def test_the_floor_is_the_reconstructions_error(real: Transitions, world: Reconstruction) -> None:
    found = floor(world, real)
    assert (found["rows"], found["undetermined"]) == (120, 0)
    assert 0 <= (found["median"] or 0) <= (found["q95"] or 0) <= (found["max"] or 0) < 1e-5
    wrong = real.rows(slice(None))
    wrong.rewards = wrong.rewards + 3.0
    assert floor(world, wrong)["median"] == pytest.approx(3.0, rel=1e-3)


# ---- the stage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(
    tmp_path: Path,
    real: Transitions,
    make_model: Callable[[int], Ensemble],
    make_agent: Callable[..., sac.Agent],
    make_header: Callable[..., Header],
) -> Path:
    transitions.write(tmp_path / "data.h5", make_header(cycle=2), real)
    transitions.write(tmp_path / "rollouts.h5", make_header(transitions.ROLLOUTS), real.rows(slice(0, 60)))
    # Phase 1 says of how many rows it held some out.
    for name, seed, cycle in (("m1", 1, 1), ("mle", 2, 2), ("m2", 3, 2)):
        header = replace(make_header(ensemble.KIND, cycle=cycle), parameters={"rows": len(real)})
        make_model(seed).save(tmp_path / f"{name}.safetensors", header)
    for name, seed in (("p1", 1), ("p2", 2)):
        agent = make_agent(seed, obs_dim=4, act_dim=1)
        agent.save(tmp_path / f"{name}.safetensors", make_header(sac.KIND, cycle=seed))
    return tmp_path


def move(files: Path, cycle: int) -> None:
    """Make the files those of another cycle."""
    before = ("m1.safetensors", "p1.safetensors", "rollouts.h5")
    for path in files.iterdir():
        if path.is_file():
            of_cycle(path, cycle - (path.name in before))


def run(files: Path, folder: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics, and the arrays by name."""
    arguments: dict[str, Any] = {
        "data": [files / "data.h5"], "rollouts": [files / "rollouts.h5"], "model_mle": files / "mle.safetensors",
        "model": files / "m2.safetensors", "previous_model": files / "m1.safetensors",
        "previous_policy": files / "p1.safetensors", "policy": files / "p2.safetensors",
        "output": folder / "theory.h5", "metrics": folder / "theory.json", "environment": ENVIRONMENT,
        "termination": "inverted_pendulum", "seed": 0, "cycle": 2, "rows": 20, "starts": 8, "depth": 4,
        "holdout_ratio": 0.2, "holdout_limit": 5000, "discount": 0.9,
    }  # fmt: skip
    theory(**(arguments | changes))
    found: dict[str, Any] = {}
    with h5py.File(folder / "theory.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return json.loads((folder / "theory.json").read_text()), found


def test_before_is_the_model_of_phase_1_and_after_that_of_phase_2(files: Path, tmp_path: Path) -> None:
    both, arrays = run(files, tmp_path / "both")
    alone, _ = run(files, tmp_path / "alone", model=None)
    of_phase2 = {"surrogate_bias_fixed", "rank_correlation_fixed"}
    for place in ("holdout", "rollout"):
        before, after = both[place]["before"], both[place]["after"]
        assert {name: None if name in of_phase2 else value for name, value in before.items()} == alone[place]["after"]
        assert alone[place]["before"] is None
        for name in ("surrogate_bias", "rank_correlation"):
            assert before[f"{name}_fixed"] == before[name], "the others are still as phase 1 left them"
            assert after[f"{name}_fixed"] != after[name]
        assert both[place]["after"] != both[place]["before"]
        assert both[place]["after"]["previous_bias"] == both[place]["before"]["previous_bias"]
        for phase in ("before", "after"):
            terms = both[place][phase]
            assert terms["bracket"] < 0
            for name in ("shift", "true_bias", "surrogate_bias", "surrogate_bias_fixed"):
                values = arrays[f"{place}/{phase}/{name}"]
                assert values.shape == (20,)
                assert float(values.mean()) == pytest.approx(terms[name], rel=1e-5)
    assert [line["depth"] for line in both["depth"]] == [1, 2, 3, 4]
    assert both["reconstruction"]["max"] < 1e-5


@pytest.mark.parametrize(("rows", "training"), [(120, None), (90, 7)])
def test_rows_are_those_that_phase_1_held_out(
    rows: int, training: int | None, files: Path, tmp_path: Path, real: Transitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole of D_env, or where a trigger fired in mid-cycle of what there was, by the number of its check."""
    mle = files / "mle.safetensors"
    header, model = ensemble.load(mle)
    number = {} if training is None else {"check": training}
    model.save(mle, replace(header, parameters={"rows": rows, **number}))
    seen: list[MeasuredRows] = []

    def recording(rows: MeasuredRows, *others: Any) -> Any:
        seen.append(rows)
        return measure(rows, *others)

    monkeypatch.setattr(stage, "measure", recording)
    run(files, tmp_path / "out", model=None, rows=1000)
    assert len(real) == 120
    _, held_out = split_holdout(rows, 0, training or 2, 0.2, 5000)
    expected = {tuple(row) for row in real.observations[held_out.numpy()].tolist()}
    assert {tuple(row) for row in seen[0].observations.tolist()} == expected
    assert len(seen[0]) == len(held_out) == rows / 5


def test_each_model_is_read_once(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def recording(path: Path) -> Any:
        read.append(path.stem)
        return ensemble.load(path)

    monkeypatch.setattr(stage, "load", recording)
    run(files, tmp_path / "out")
    assert sorted(read) == ["m1", "m2", "mle"]


def test_a_model_that_does_not_say_what_it_was_trained_on_is_refused(files: Path, tmp_path: Path) -> None:
    mle = files / "mle.safetensors"
    header, model = ensemble.load(mle)
    model.save(mle, replace(header, parameters={}))
    with pytest.raises(UsbpoError, match="does not say which rows it was trained on; delete it and run again"):
        run(files, tmp_path / "out")


def test_the_first_cycle_has_no_shift_and_no_rollouts(files: Path, tmp_path: Path) -> None:
    move(files, 1)
    metrics, arrays = run(files, tmp_path / "out", rollouts=None, previous_model=None, model=None, cycle=1)
    assert metrics["rollout"] is None
    assert metrics["holdout"]["after"]["shift"] is None
    assert metrics["holdout"]["after"]["true_bias"] > 0
    assert set(arrays) == {f"holdout/after/{name}" for name in ("surrogate_bias", "true_bias", "error")}


def test_a_task_that_cannot_be_reconstructed_keeps_what_needs_no_simulator(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(stage, "reconstruction", lambda _: None)
        blind, _ = run(files, tmp_path / "blind")
    seeing, _ = run(files, tmp_path / "seeing")
    assert blind["reconstruction"] is blind["depth"] is None
    assert blind["holdout"] == seeing["holdout"], "real transitions know their own outcome"
    assert blind["rollout"]["after"]["true_bias"] is None
    assert blind["rollout"]["after"]["shift"] == pytest.approx(seeing["rollout"]["after"]["shift"])


def test_same_work_gives_same_bytes_and_another_cycle_others(files: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        run(files, tmp_path / folder)
        torch.rand(1)  # a global generator must not matter
    for name in ("theory.h5", "theory.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    move(files, 3)
    other, _ = run(files, tmp_path / "third", cycle=3)
    assert other["rollout"] != json.loads((tmp_path / "first/theory.json").read_text())["rollout"]
