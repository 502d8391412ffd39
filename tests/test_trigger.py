"""CMLO's event trigger: volumes known by hand, its state from cycle to cycle, and the model that goes on unchanged."""

import itertools
import json
from collections.abc import Callable
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from usbpo import checkpoints, ensemble, transitions
from usbpo.ensemble import Ensemble
from usbpo.errors import UsbpoError
from usbpo.header import Header
from usbpo.stages.phase1 import phase1
from usbpo.stages.trigger import trigger
from usbpo.stages.verdict import task_held_back
from usbpo.transitions import Transitions
from usbpo.trigger import Trigger, hull_volume, model_errors


def cube(edge: float = 1.0, dimensions: int = 3) -> NDArray[np.float64]:
    """The corners of a cube."""
    return edge * np.array(list(itertools.product([0.0, 1.0], repeat=dimensions)))


def rotation(dimensions: int, seed: int) -> NDArray[np.float64]:
    """A random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))[0]


# ---- the hull ----------------------------------------------------------------------------------------------------


def test_a_cube_has_its_volume() -> None:
    assert hull_volume(cube(2.0), 3) == pytest.approx(8.0)


def test_a_tetrahedron_has_a_third_of_base_times_height() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    assert hull_volume(corners, 3) == pytest.approx(1 / 6)


def test_an_octahedron() -> None:
    corners = np.vstack([np.eye(3), -np.eye(3)])
    assert hull_volume(corners, 3) == pytest.approx(4 / 3)


def test_points_inside_add_nothing() -> None:
    inside = np.random.default_rng(0).uniform(0, 1, (200, 3))
    assert hull_volume(np.vstack([cube(), inside, cube()]), 3) == pytest.approx(1.0)


def test_the_hull_is_taken_in_the_first_principal_components() -> None:
    """A box of 8 × 4 × 2 in a space of six dimensions, of which the other three are ten times thinner."""
    box = cube(dimensions=6) * np.array([8.0, 4.0, 2.0, 0.2, 0.1, 0.05])
    assert hull_volume(box @ rotation(6, 1).T, 3) == pytest.approx(64.0)
    assert hull_volume(box @ rotation(6, 1).T, 2) == pytest.approx(32.0)
    assert hull_volume(box @ rotation(6, 1).T, 1) == pytest.approx(8.0)


def test_a_flat_cloud_has_no_volume() -> None:
    flat = np.hstack([cube(dimensions=2), np.zeros((4, 1))])
    assert hull_volume(flat, 3) == pytest.approx(0.0, abs=1e-9)
    assert hull_volume(flat, 2) == pytest.approx(1.0)


def test_fewer_dimensions_than_components_are_enough() -> None:
    assert hull_volume(cube(dimensions=2) * 3.0, 3) == pytest.approx(9.0)


@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_the_volume_does_not_depend_on_place_and_direction_and_grows_with_the_cube_of_the_scale(
    seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(30, 3)) * [3.0, 2.0, 1.0]
    moved = scale * points @ rotation(3, seed).T + rng.normal(size=3)
    assert hull_volume(moved, 3) == pytest.approx(scale**3 * hull_volume(points, 3), rel=1e-6)


# ---- the estimate ------------------------------------------------------------------------------------------------


def test_the_estimate_grows_by_the_formula_against_the_last_training() -> None:
    state = Trigger(reference_volume=2.0).seen(np.array([1.0, 3.0]))
    assert state.mean_error == 2.0
    state = state.checked(4.0, "last_training")
    assert state.estimate == pytest.approx(log(4.0 / 2.0 * 2.0 + 1.0))
    state = state.seen(np.array([5.0])).checked(1.0, "last_training")
    assert state.mean_error == 3.0, "the running mean since the last training"
    assert state.estimate == pytest.approx(log(5.0) + log(1.0 / 2.0 * 3.0 + 1.0))
    assert state.reference_volume == 2.0
    assert state.steps == 3


def test_the_estimate_may_be_taken_against_the_previous_check() -> None:
    state = Trigger(reference_volume=2.0).seen(np.array([1.0])).checked(4.0, "previous_check")
    assert state.reference_volume == 4.0
    state = state.checked(6.0, "previous_check")
    assert state.estimate == pytest.approx(log(2.0 + 1.0) + log(6.0 / 4.0 + 1.0))


def test_a_reference_without_volume_says_nothing_of_growth() -> None:
    state = Trigger(reference_volume=0.0).seen(np.array([2.0])).checked(5.0, "last_training")
    assert state.estimate == pytest.approx(log(3.0))


@pytest.mark.parametrize(
    ("estimate", "steps", "fires"),
    [(3.0, 140, False), (3.0, 150, True), (1.2, 150, False), (1.21, 150, True), (0.0, 480, False), (0.0, 500, True)],
)
def test_it_fires_above_the_threshold_but_not_too_soon_and_at_the_latest_after_the_longest_interval(
    estimate: float, steps: int, fires: bool
) -> None:
    assert (Trigger(estimate=estimate, steps=steps).verdict(1.2, 150, 500) is not None) == fires


def test_errors_are_distances_to_sampled_next_states_averaged_over_the_elites(
    make_ensemble: Callable[..., Ensemble], make_transitions: Callable[..., Transitions]
) -> None:
    model, real = make_ensemble(), make_transitions(rows=6)
    model.params = {name: torch.zeros_like(tensor) for name, tensor in model.params.items()}
    model.params["max_log_variance"] = torch.full((4,), -40.0)  # no noise
    model.params["min_log_variance"] = torch.full((4,), -60.0)
    model.elites = torch.tensor([1, 3])
    last = max(int(name.split(".")[1]) for name in model.params if name.startswith("bias"))
    model.params[f"bias.{last}"][1, 0, 1:4] = torch.tensor([3.0, 4.0, 0.0])  # this elite predicts s' = s + (3, 4, 0)
    model.params[f"bias.{last}"][0] = 100.0  # no elite
    real.next_observations = real.observations.copy()
    errors = model_errors(model, real, torch.Generator().manual_seed(0))
    assert errors.shape == (6,)
    np.testing.assert_allclose(errors, (5.0 + 0.0) / 2, rtol=1e-5)


def test_the_noise_of_the_model_counts_as_error(
    make_ensemble: Callable[..., Ensemble], make_transitions: Callable[..., Transitions]
) -> None:
    model, real = make_ensemble(), make_transitions(rows=2000)
    model.params = {name: torch.zeros_like(tensor) for name, tensor in model.params.items()}
    model.params["max_log_variance"] = torch.full((4,), 40.0)  # bounds that do not bind: σ = 1 in each dimension
    model.params["min_log_variance"] = torch.full((4,), -40.0)
    real.next_observations = real.observations.copy()
    errors = model_errors(model, real, torch.Generator().manual_seed(0))
    assert errors.mean() == pytest.approx(sqrt(8 / np.pi), rel=0.02), "mean length of a standard normal in 3 dimensions"


# ---- the stage ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "threshold": 1.0, "check_every": 20, "reference": "last_training", "states": 30, "dimensions": 3,
    "min_steps": 40, "max_steps": 60, "steps": 20, "seed": 0,
}  # fmt: skip


@pytest.fixture
def run(
    tmp_path: Path,
    make_transitions: Callable[..., Transitions],
    make_ensemble: Callable[..., Ensemble],
    make_header: Callable[..., Header],
) -> Callable[..., dict[str, Any]]:
    """Run the stage for a cycle, on 20 rows a cycle and an untrained model of cycle 1."""

    def stage(cycle: int, **changes: Any) -> dict[str, Any]:
        data = []
        for n in range(cycle + 1):
            data.append(tmp_path / f"{n}.h5")
            transitions.write(data[-1], make_header(cycle=n), make_transitions(rows=20, seed=n))
        model = tmp_path / "model.safetensors"
        make_ensemble().save(model, make_header("model"))
        output = tmp_path / f"trigger-{cycle}.json"
        before = None if cycle == 1 else tmp_path / f"trigger-{cycle - 1}.json"
        models = [] if cycle == 1 else [model]
        trigger(
            **OPTIONS
            | {"data": data, "previous_models": models, "previous_trigger": before, "output": output}
            | changes,
            cycle=cycle,
        )
        return dict(json.loads(output.read_text()))

    return stage


def test_the_first_cycle_trains_and_its_volume_is_the_reference(run: Callable[..., dict[str, Any]]) -> None:
    found = run(1)
    assert (found["fired"], found["reason"]) == (True, "the first model")
    assert found["state"] == {"estimate": 0.0, "error_sum": 0.0, "steps": 0, "reference_volume": found["volume"]}
    assert found["volume"] > 0


def test_state_goes_on_from_cycle_to_cycle_and_begins_anew_where_it_fires(run: Callable[..., dict[str, Any]]) -> None:
    first, second, third = run(1), run(2), run(3)
    assert not second["fired"], "20 steps are too soon, whatever the estimate"
    assert second["steps"] == 20
    assert second["estimate"] == pytest.approx(log(second["volume"] / first["volume"] * second["mean_error"] + 1))
    assert third["steps"] == 40
    grown = log(third["volume"] / first["volume"] * third["mean_error"] + 1)
    assert third["estimate"] == pytest.approx(second["estimate"] + grown)
    assert third["fired"]
    assert third["estimate"] > 1.0
    assert third["state"] == {"estimate": 0.0, "error_sum": 0.0, "steps": 0, "reference_volume": third["volume"]}


def test_a_high_threshold_waits_for_the_longest_interval(run: Callable[..., dict[str, Any]]) -> None:
    fired = [run(cycle, threshold=1e6)["fired"] for cycle in range(1, 8)]
    assert fired == [True, False, False, True, False, False, True]


def test_between_two_checks_only_errors_are_gathered(run: Callable[..., dict[str, Any]]) -> None:
    run(1, check_every=40)
    second, third = run(2, check_every=40), run(3, check_every=40)
    assert (second["checked"], second["volume"], second["estimate"]) == (False, None, 0.0)
    assert second["mean_error"] > 0
    assert third["checked"]
    assert third["fired"]


def test_same_work_gives_same_bytes_and_another_seed_others(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run(1)
    run(2)
    path = tmp_path / "trigger-2.json"
    before = path.read_bytes()
    run(2)
    assert path.read_bytes() == before


# ---- the model that goes on --------------------------------------------------------------------------------------


@pytest.fixture
def held_back(tmp_path: Path) -> Path:
    """The verdict of a trigger that did not fire in cycle 2."""
    path = tmp_path / "trigger.json"
    path.write_text(json.dumps({"task": "tiny", "seed": 0, "cycle": 2, "fired": False}))
    return path


def test_phase_1_of_a_held_back_cycle_reads_no_data_and_leaves_an_empty_checkpoint(
    held_back: Path, tmp_path: Path, make_ensemble: Callable[..., Ensemble], make_header: Callable[..., Header]
) -> None:
    earlier, output, metrics = (tmp_path / name for name in ("m1.safetensors", "m2.safetensors", "m.json"))
    make_ensemble().save(earlier, make_header("model"))
    phase1(
        data=[tmp_path / "not-there.h5"], output=output, metrics=metrics, seed=0, cycle=2, members=4, elites=2,
        hidden_layers=2, hidden_size=8, learning_rate=1e-3, batch_size=8, weight_decay=[0.0] * 3,
        log_variance_penalty=0.01, holdout_ratio=0.2, holdout_limit=50, min_improvement=0.01, patience=1,
        previous_models=[earlier], trigger=held_back,
    )  # fmt: skip
    assert json.loads(metrics.read_text()) == {"task": "tiny", "seed": 0, "cycle": 2, "trained": False}
    assert output.stat().st_size < 2000
    assert checkpoints.last_changed([earlier, output], ensemble.KIND) == earlier


def test_the_model_in_force_is_the_last_that_was_trained(
    tmp_path: Path, make_ensemble: Callable[..., Ensemble], make_header: Callable[..., Header]
) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for n in (0, 2):
        make_ensemble(seed=n).save(paths[n], make_header("model"))
    for n in (1, 3):
        checkpoints.write_unchanged(paths[n], make_header("model"))
    assert checkpoints.last_changed(paths, "model") == paths[2]
    assert checkpoints.last_changed(paths[:2], "model") == paths[0]
    with pytest.raises(UsbpoError, match=r"1\.safetensors: no file from here on holds a model"):
        checkpoints.last_changed(paths[1:2], "model")


def test_d_model_is_the_rollouts_of_the_last_updates(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    paths = [tmp_path / f"{n}.h5" for n in range(6)]
    for n, path in enumerate(paths):
        rows = make_transitions(rows=10 + n) if n in (0, 2, 3) else transitions.no_transitions(3, 2)
        transitions.write(path, make_header("rollouts", cycle=n), rows)
    sizes = [len(transitions.read_rollouts(paths, updates)[1]) for updates in (1, 2, 3, 9, None)]
    assert sizes == [13, 25, 35, 35, 35]
    with pytest.raises(UsbpoError, match="holds no model rollout"):
        transitions.read_rollouts(paths[4:])
    with pytest.raises(UsbpoError, match="no transition files are given"):
        transitions.read_rollouts(paths[4:], 2)


def test_a_fired_trigger_and_no_trigger_both_train(held_back: Path, tmp_path: Path) -> None:
    fired = tmp_path / "fired.json"
    fired.write_text(json.dumps({"task": "tiny", "seed": 0, "cycle": 2, "fired": True}))
    assert task_held_back(held_back, 0, 2) == "tiny"
    assert task_held_back(fired, 0, 2) is None
    assert task_held_back(None, 0, 2) is None
    with pytest.raises(UsbpoError, match="its seed is 0, but 1 is asked for"):
        task_held_back(held_back, 1, 2)
