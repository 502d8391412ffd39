"""CMLO's event trigger: volumes known by hand, its estimate, and the stage that trains the model when it fires."""

import itertools
import json
from collections.abc import Callable
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.artifacts import of_cycle
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from usbpo.agent import sac
from usbpo.artifacts import layout, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.commands.stage_verbs import WHOLE_SECTIONS
from usbpo.errors import UsbpoError
from usbpo.experiment.run import Run
from usbpo.experiment.run_config import RunConfig
from usbpo.model import ensemble
from usbpo.model.ensemble import Ensemble
from usbpo.model.trigger import Trigger, hull_volume, model_errors
from usbpo.numerics.seeding import numpy_generator, torch_generator
from usbpo.stages.collect import collect
from usbpo.stages.initialise import initialise
from usbpo.stages.phase1 import phase1
from usbpo.stages.phase2 import phase2
from usbpo.stages.policy import policy
from usbpo.stages.rollout import rollout
from usbpo.stages.triggered import triggered


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


@pytest.fixture
def run_with(run_config_of: Callable[[str, str], RunConfig]) -> Callable[..., Run]:
    """CMLO's test run, or USB-PO's with CMLO's trigger; with other keys of a section as `section__key=value`."""

    def make(method: str = "test-cmlo", **changes: Any) -> Run:
        content = run_config_of("test-pendulum", method).model_dump()
        content["schedule"]["model_update"] = "triggered"
        content["trigger"] = run_config_of("test-pendulum", "test-cmlo").trigger.model_dump()
        for name, value in changes.items():
            section, key = name.split("__")
            content[section][key] = value
        return Run("test-pendulum", "m", 0, RunConfig.model_validate(content))

    return make


ENVIRONMENT: dict[str, Any] = {"task": "test-pendulum", "environment": "InvertedPendulum-v5"}


def begin(run: Run, root: Path) -> None:
    """Cycle 0: the random steps and the untrained policy."""
    keys = run.config.policy
    shard = root / run.path(layout.SHARD, 0)
    collect(**ENVIRONMENT, output=shard, steps=run.config.schedule.random_steps, seed=0, cycle=0)
    initialise(
        data=shard, output=root / run.path(layout.POLICY, 0),
        hidden_layers=keys.hidden_layers, hidden_size=keys.hidden_size,
    )  # fmt: skip


def advance(run: Run, root: Path, cycle: int, **changes: Any) -> dict[str, Any]:
    """Run the stage for a cycle, and return the trigger's file."""

    def one(paths: list[str]) -> Path | None:
        return root / paths[0] if paths else None

    sections = {name: getattr(run.config, name) for name in WHOLE_SECTIONS}
    arguments: dict[str, Any] = {
        "data": [root / path for path in run.real_data_before(cycle)],
        "previous_shard": one(run.previous_shard(cycle)),
        "previous_policy": one(run.previous_policy(cycle)),
        "previous_model": one(run.previous_models(cycle)),
        "previous_trigger": one(run.previous_trigger(cycle)),
        "rollouts": [root / path for path in run.model_data_before(cycle)],
        "output": root / run.path(layout.SHARD, cycle),
        "folder": (root / run.path(layout.TRIGGER, cycle)).parent,
        "termination": run.config.environment.termination,
        "steps": run.schedule.cycle_steps,
        "lengths": run.schedule.rollout_steps_at_checks(cycle),
        "retained_updates": run.schedule.retained_updates,
        **{name: json.dumps(section.model_dump()) for name, section in sections.items() if section is not None},
    }
    triggered(**ENVIRONMENT, **arguments | changes, seed=0, cycle=cycle)
    return dict(json.loads((root / run.path(layout.TRIGGER, cycle)).read_text()))


@pytest.mark.parametrize(
    ("method", "precision"), [("test-cmlo", "float32"), ("test-usbpo", "float32"), ("test-usbpo", "bfloat16")]
)
def test_it_does_what_the_stages_do_check_by_check(
    method: str, precision: str, run_with: Callable[..., Run], tmp_path: Path
) -> None:
    """Two cycles of three checks against the other stages, called by hand at each check, to the last bit."""
    run = run_with(method)
    root, staged = tmp_path / "root", tmp_path / "staged"
    begin(run, root)
    checks = [check for cycle in (1, 2) for check in advance(run, root, cycle, precision=precision)["checks"]]
    fired = [number for number, check in enumerate(checks, start=1) if check["fired"]]
    assert fired[0] == 1
    assert 2 <= len(fired) < 6, "some checks train, some do not"

    begin(run, staged)
    config, keys = run.config, run.config.trigger
    data, agent = [staged / run.path(layout.SHARD, 0)], staged / run.path(layout.POLICY, 0)
    model, made, state = None, list[Path](), Trigger()

    def d_model(end: int) -> list[Path]:
        """The last rollouts as those of the cycles up to `end`, for to the stages each check is a cycle."""
        last = made[-run.schedule.retained_updates :]
        return [of_cycle(path, end + 1 - len(last) + place) for place, path in enumerate(last)]

    for number in range(1, 7):
        folder, identity = staged / str(number), {"seed": 0, "cycle": number}
        shard = folder / "shard.h5"
        collect(**ENVIRONMENT, output=shard, steps=keys.check_every, policy=agent, previous=data[-1], **identity)
        data.append(shard)
        _, real = transitions.read_all(data)
        rows = numpy_generator(0, number, "trigger").permutation(len(real))[: keys.states]
        volume = hull_volume(real.observations[rows], keys.dimensions)
        reason: str | None = "the first model"
        if model is not None:
            errors = model_errors(
                ensemble.load(model)[1], transitions.read(shard)[1], torch_generator(0, number, "trigger")
            )
            state = state.seen(errors).checked(volume, keys.reference)
            reason = state.verdict(keys.threshold, keys.min_steps, keys.max_steps)
        if reason:
            state = Trigger(reference_volume=volume)
            mle = folder / "mle.safetensors"
            phase1(
                data=data, output=mle, metrics=folder / "1.json", precision=precision, **identity,
                previous_model=of_cycle(model, number - 1) if model else None, model_every=1 if model else number,
                **config.model.model_dump(), **config.phase1.model_dump(),
            )  # fmt: skip
            previous, model = model, mle
            if config.phase2 is not None and previous is not None:
                model = folder / "model.safetensors"
                phase2(
                    data=data, rollouts=d_model(number - 1), model_mle=mle, previous_model=previous, output=model,
                    metrics=folder / "2.json", holdout_ratio=config.phase1.holdout_ratio,
                    holdout_limit=config.phase1.holdout_limit, precision=precision, **identity,
                    **config.phase2.model_dump(),
                )  # fmt: skip
            made.append(folder / "rollouts.h5")
            rollout(
                data=data, model=model, policy=agent, output=made[-1], metrics=folder / "r.json",
                termination=config.environment.termination, length=1, batch_size=config.rollout.batch_size,
                precision=precision, **identity,
            )  # fmt: skip
        updated = folder / "policy.safetensors"
        options = config.policy.model_dump()
        updates = options.pop("updates_per_step") * keys.check_every
        policy(
            data=data, rollouts=d_model(number), previous_policy=agent, output=updated, metrics=folder / "p.json",
            updates=updates, **identity, **options,
        )  # fmt: skip
        agent = updated

    _, all_real = transitions.read_all([root / path for path in run.real_data(2)])
    for name, values in vars(transitions.read_all(data)[1]).items():
        np.testing.assert_array_equal(getattr(all_real, name), values, name)
    (_, found), (_, expected) = sac.load(root / run.path(layout.POLICY, 2)), sac.load(agent)
    assert found.updates == expected.updates
    for group in ("actor", "critics", "targets", "temperature"):
        for name, tensor in getattr(expected, group).items():
            assert torch.equal(tensor, getattr(found, group)[name]), (group, name)
    assert model is not None
    (_, last), (_, expected_model) = ensemble.load(root / run.models(2)[0]), ensemble.load(model)
    assert all(torch.equal(tensor, last.params[name]) for name, tensor in expected_model.params.items())
    left = [root / path for path in run.model_data(2)]
    for name, values in vars(transitions.read_rollouts(made, run.schedule.retained_updates)[1]).items():
        kept = transitions.read_rollouts(left, run.schedule.retained_updates)[1]
        np.testing.assert_array_equal(getattr(kept, name), values, name)


def test_real_data_grow_in_place(run_with: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most the rollouts of the last trainings are copied, when they are saved."""
    run = run_with()
    begin(run, tmp_path)
    copied: list[int] = []

    def recording(parts: list[transitions.Transitions]) -> transitions.Transitions:
        copied.append(len(parts))
        return concatenate(parts)

    concatenate = transitions.concatenate
    monkeypatch.setattr(transitions, "concatenate", recording)
    advance(run, tmp_path, 1)
    assert len(copied) == 1


def test_the_first_check_trains_and_its_volume_is_the_reference(run_with: Callable[..., Run], tmp_path: Path) -> None:
    run = run_with(trigger__threshold=1e6)
    begin(run, tmp_path)
    first, second, third = advance(run, tmp_path, 1)["checks"]
    assert (first["fired"], first["reason"], first["steps"]) == (True, "the first model", 0)
    assert first["volume"] > 0
    assert not second["fired"]
    assert not third["fired"]
    assert second["steps"], third["steps"] == (10, 20)
    assert second["estimate"] == pytest.approx(log(second["volume"] / first["volume"] * second["mean_error"] + 1))
    grown = log(third["volume"] / first["volume"] * third["mean_error"] + 1)
    assert third["estimate"] == pytest.approx(second["estimate"] + grown)


def test_the_estimate_goes_on_from_cycle_to_cycle_and_a_high_threshold_waits_for_the_longest_interval(
    run_with: Callable[..., Run], tmp_path: Path
) -> None:
    run = run_with(trigger__threshold=1e6)
    begin(run, tmp_path)
    found = [advance(run, tmp_path, cycle) for cycle in (1, 2, 3)]
    checks = [check for file in found for check in file["checks"]]
    assert [check["fired"] for check in checks] == [True, False, False] * 3
    assert [check["steps"] for check in checks] == [0, 10, 20, 30, 10, 20, 30, 10, 20]
    assert [check["on_policy_steps"] for check in checks] == list(range(10, 100, 10))
    assert found[0]["state"]["estimate"] == checks[2]["estimate"]
    assert checks[3]["estimate"] > checks[2]["estimate"]


def test_same_work_gives_same_bytes_also_after_a_kill(run_with: Callable[..., Run], tmp_path: Path) -> None:
    run = run_with()
    for folder in (tmp_path / "one", tmp_path / "two"):
        begin(run, folder)
        left_over = folder / run.path(layout.TRIGGER, 1)
        (left_over.parent / ".triggered/1").mkdir(parents=True)
        (left_over.parent / ".triggered/1/model-mle.safetensors").write_text("half of one")
        advance(run, folder, 1)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    assert {str(path) for path in one} == {*run.artifacts(1), *run.jobs(0)["collect"], *run.jobs(0)["initialise"]} - {
        path for stage in ("evaluate", "theory") for path in run.jobs(1)[stage]
    }


def test_a_failure_leaves_no_artifact(run_with: Callable[..., Run], tmp_path: Path) -> None:
    run = run_with(phase1__learning_rate=1e30)
    begin(run, tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsbpoError, match="phase 1 diverged"):
        advance(run, tmp_path, 1)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_episodes_that_end_with_the_cycle_are_not_cut_at_its_checks(
    run_with: Callable[..., Run], tmp_path: Path
) -> None:
    run = run_with()
    begin(run, tmp_path)
    first = tmp_path / run.path(layout.SHARD, 0)
    collect(**ENVIRONMENT, output=first, steps=60, seed=0, cycle=0, episodes="end_with_cycle")
    advance(run, tmp_path, 1, episodes="end_with_cycle")
    _, made = transitions.read(tmp_path / run.path(layout.SHARD, 1))
    assert made.truncations[29] or made.terminations[29]
    for row in (9, 19):  # the last before a check
        assert made.terminations[row] or made.episodes[row + 1] == made.episodes[row]
    assert not made.truncations[:29].any()


def test_the_first_cycle_of_usbpo_with_a_trigger_leaves_its_model_even_if_there_was_none_to_fine_tune(
    run_with: Callable[..., Run], tmp_path: Path
) -> None:
    run = run_with("test-usbpo", trigger__threshold=1e6)
    begin(run, tmp_path)
    advance(run, tmp_path, 1)
    (_, mle), (_, model) = (ensemble.load(tmp_path / run.path(t, 1)) for t in (layout.MODEL_MLE, layout.MODEL))
    assert all(torch.equal(tensor, model.params[name]) for name, tensor in mle.params.items())
    metrics = json.loads((tmp_path / run.path(layout.PHASE2_METRICS, 1)).read_text())
    assert not metrics["fine_tuned"]
    assert (metrics["task"], metrics["seed"], metrics["cycle"]) == ("test-pendulum", 0, 1)


def test_d_model_is_the_rollouts_of_the_last_updates(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    """Three files of which the second holds the rollouts of two updates."""
    paths = [tmp_path / f"{n}.h5" for n in range(3)]
    parts = [make_transitions(rows=rows, seed=rows) for rows in (10, 11, 12, 13)]
    for path, held in zip(paths, (parts[:1], parts[1:3], parts[3:]), strict=True):
        updates = [len(part) for part in held] if len(held) > 1 else []
        transitions.write(path, make_header("rollouts"), transitions.concatenate(held), updates=updates)
    sizes = [len(transitions.read_rollouts(paths, updates)[1]) for updates in (1, 2, 3, 4, 9, None)]
    assert sizes == [13, 25, 36, 46, 46, 46]
    _, last_two = transitions.read_rollouts(paths, 2)
    np.testing.assert_array_equal(last_two.rewards, np.concatenate([parts[2].rewards, parts[3].rewards]))


def test_rollouts_that_do_not_add_up_are_refused(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    path = tmp_path / "r.h5"
    transitions.write(path, make_header("rollouts"), make_transitions(rows=10), updates=[4, 5])
    with pytest.raises(UsbpoError, match=r"rows_by_update do not add up to its 10 rows; delete it and run again"):
        transitions.read_rollouts([path], 1)
