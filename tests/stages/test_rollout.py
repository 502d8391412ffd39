"""Model rollouts: branches stop where they should, elites alone predict, one for each row and step."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.artifacts import of_cycle
from numpy.typing import NDArray
from torch import Tensor

from usbpo.agent import sac
from usbpo.agent.sac import Agent
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.terminations import TERMINATIONS, Termination, never
from usbpo.errors import UsbpoError
from usbpo.model import ensemble as ensembles
from usbpo.model.ensemble import Ensemble, predict_one_member
from usbpo.numerics.optimizer import Params
from usbpo.stages import rollout as stage
from usbpo.stages.rollout import roll_out, rollout


def above_half(observations: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Terminal where the first entry is above 0.5."""
    return np.asarray(~(observations[:, 0] <= 0.5))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(make_ensemble: Callable[..., Ensemble]) -> Ensemble:
    """Seven members, of which 5, 2 and 6 are elites; its states hardly move."""
    ensemble = make_ensemble(members=7)
    ensemble.elites = torch.tensor([5, 2, 6])
    ensemble.params["max_log_variance"] = torch.full((4,), -2.0)
    return ensemble


def rolled(
    model: Ensemble, actor: Params, branches: int = 200, length: int = 4, termination: Termination = above_half
) -> Transitions:
    starts = normal(branches, 3, seed=3)
    with torch.no_grad():
        made, _ = roll_out(model, actor, starts, length, termination, torch.Generator().manual_seed(0))
    return made


def depths(made: Transitions, branches: int) -> list[NDArray[np.intp]]:
    """The rows of each step, of all branches that are alive."""
    counts: dict[int, int] = dict.fromkeys(range(branches), 0)
    found: list[list[int]] = []
    for row, branch in enumerate(made.episodes.tolist()):
        depth = counts[branch]
        counts[branch] += 1
        found += [[]] if depth == len(found) else []
        found[depth].append(row)
    return [np.array(rows) for rows in found]


def test_terminal_branches_stop_and_the_others_go_on(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    made = rolled(model, make_agent().actor)
    steps = depths(made, 200)
    assert len(steps) == 4
    assert len(steps[0]) == 200
    np.testing.assert_array_equal(made.observations[steps[0]], normal(200, 3, seed=3).numpy())
    np.testing.assert_array_equal(made.terminations, made.next_observations[:, 0] > 0.5)
    for now, after in pairwise(steps):
        alive = now[~made.terminations[now]]
        assert 0 < len(alive) < len(now)
        np.testing.assert_array_equal(made.episodes[after], made.episodes[alive])
        np.testing.assert_array_equal(made.observations[after], made.next_observations[alive])


def test_a_rollout_has_at_most_its_length_in_rows(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    for length in (1, 3):
        made = rolled(model, make_agent().actor, length=length, termination=TERMINATIONS["never"])
        assert len(made) == 200 * length
        assert (np.bincount(made.episodes) == length).all()
        np.testing.assert_array_equal(made.truncations.nonzero()[0], depths(made, 200)[-1])
    assert np.bincount(rolled(model, make_agent().actor, length=3).episodes, minlength=200).max() == 3


def test_a_cut_at_full_length_is_no_termination(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    made = rolled(model, make_agent().actor, length=2)
    assert not (made.truncations & made.terminations).any()
    assert made.truncations.any()


def test_everything_ends_when_all_branches_have(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    made = rolled(model, make_agent().actor, termination=lambda rows: np.ones(len(rows), dtype=np.bool_))
    assert len(made) == 200
    assert made.terminations.all()


def test_one_elite_is_drawn_for_each_row_and_step(
    model: Ensemble, make_agent: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []

    def recording(ensemble: Ensemble, members: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(members)
        return predict_one_member(ensemble, members, *others)

    monkeypatch.setattr(stage, "predict_one_member", recording)
    rolled(model, make_agent().actor, branches=3000, length=2, termination=TERMINATIONS["never"])
    assert [len(members) for members in drawn] == [3000, 3000]
    for members in drawn:
        assert set(members.tolist()) == {2, 5, 6}
        shares = torch.bincount(members)[[2, 5, 6]] / 3000
        assert ((shares > 0.29) & (shares < 0.38)).all()
    agree = float((drawn[0] == drawn[1]).float().mean())
    assert 0.28 < agree < 0.39, "drawn anew at each step"


def test_next_states_and_rewards_are_samples_of_the_elites(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    model.elites = torch.tensor([3])
    made = rolled(model, make_agent().actor, branches=4000, length=1)
    with torch.no_grad():
        mean, std = predict_one_member(
            model, torch.full((4000,), 3), torch.from_numpy(made.observations), torch.from_numpy(made.actions)
        )
    sampled = np.hstack([made.rewards[:, None], made.next_observations])
    residuals = (sampled - mean.numpy()) / std.numpy()
    np.testing.assert_allclose(residuals.mean(axis=0), 0.0, atol=0.06)
    np.testing.assert_allclose(residuals.std(axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(residuals.T), np.eye(4), atol=0.06)


def test_actions_are_drawn_from_the_stochastic_policy(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    actor = make_agent().actor
    made = rolled(model, actor, branches=4000, length=1)
    with torch.no_grad():
        mean, log_std = sac.policy_outputs(actor, torch.from_numpy(made.observations))
    before = np.arctanh(made.actions.astype(np.float64))
    residuals = (before - mean.numpy()) / log_std.exp().numpy()
    np.testing.assert_allclose(residuals.mean(axis=0), 0.0, atol=0.06)
    np.testing.assert_allclose(residuals.std(axis=0), 1.0, atol=0.05)


def test_rows_without_a_finite_prediction_end_their_branch_and_are_left_out(
    model: Ensemble, make_agent: Callable[..., Agent]
) -> None:
    diverge(model, 2)
    starts = normal(200, 3, seed=3)
    with torch.no_grad():
        made, lost = roll_out(model, make_agent().actor, starts, 1, never, torch.Generator().manual_seed(0))
    assert 0 < lost < 200
    assert len(made) == 200 - lost
    assert np.isfinite(made.next_observations).all()
    assert np.isfinite(made.rewards).all()


def test_a_model_that_predicts_no_number_for_many_rows_is_refused(
    files: Path, tmp_path: Path, make_header: Callable[..., Header]
) -> None:
    _, model = ensembles.load(files / "model.safetensors")
    model.params["bias.0"][int(model.elites[0])] = 3e38
    model.params["weight.1"][int(model.elites[0])] = 3e38
    model.save(files / "model.safetensors", make_header("model"))
    with pytest.raises(UsbpoError, match=r"cycle 1: the model predicts NaN or infinity for \d+ of \d+ rows, .*; lower"):
        run(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_diverged_model_is_refused_in_one_sentence(model: Ensemble, make_agent: Callable[..., Agent]) -> None:
    for member in range(7):
        diverge(model, member)
    with pytest.raises(UsbpoError, match="no finite state"):
        rolled(model, make_agent().actor, length=3)


def diverge(model: Ensemble, member: int) -> None:
    """Let a member predict what no float holds."""
    model.params["bias.2"][member] = float("inf")


# ---- the stage ----


@pytest.fixture
def files(
    tmp_path: Path,
    model: Ensemble,
    make_agent: Callable[..., Agent],
    make_transitions: Callable[..., Transitions],
    make_header: Callable[..., Header],
) -> Path:
    transitions.write(tmp_path / "data.h5", make_header(), make_transitions(50))
    model.save(tmp_path / "model.safetensors", make_header("model"))
    make_agent().save(tmp_path / "policy.safetensors", make_header("policy", cycle=0))
    return tmp_path


def run(files: Path, folder: Path, **changes: Any) -> tuple[Transitions, dict[str, Any]]:
    arguments = {
        "data": [files / "data.h5"], "model": files / "model.safetensors", "policy": files / "policy.safetensors",
        "output": folder / "rollouts.h5", "metrics": folder / "rollout.json", "termination": "inverted_pendulum",
        "length": 3, "batch_size": 120, "seed": 0, "cycle": 1,
    }  # fmt: skip
    rollout(**(arguments | changes))
    header, made = transitions.read(folder / "rollouts.h5", transitions.ROLLOUTS)
    assert (header.kind, header.task, header.seed) == ("rollouts", "tiny", 0)
    return made, json.loads((folder / "rollout.json").read_text())


def test_starts_are_drawn_from_all_real_states(
    files: Path, tmp_path: Path, make_transitions: Callable[..., Transitions]
) -> None:
    made, metrics = run(files, tmp_path / "out", length=1, batch_size=600)
    known = {tuple(row) for row in make_transitions(50).observations.tolist()}
    assert {tuple(row) for row in made.observations.tolist()} == known
    assert metrics["start_states"] == metrics["transitions"] == 600


def test_metrics_describe_the_rollouts(files: Path, tmp_path: Path) -> None:
    made, metrics = run(files, tmp_path / "out")
    assert metrics["transitions"] == len(made) > 120
    assert metrics["terminated"] == made.terminations.sum() > 0
    assert metrics["length"] == 3
    assert metrics["reward_mean"] == pytest.approx(float(made.rewards.mean(dtype=np.float64)))
    np.testing.assert_array_equal(made.terminations, TERMINATIONS["inverted_pendulum"](made.next_observations))


def test_same_work_gives_same_bytes_and_another_cycle_others(files: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        run(files, tmp_path / folder)
        torch.rand(1)  # a global generator must not matter
    for name in ("rollouts.h5", "rollout.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    first, _ = run(files, tmp_path)
    for name, cycle in (("data.h5", 2), ("model.safetensors", 2), ("policy.safetensors", 1)):
        of_cycle(files / name, cycle)
    assert (run(files, tmp_path / "third", cycle=2)[0].actions[:120] != first.actions[:120]).any()


def test_bad_input_is_refused_in_one_sentence_and_writes_nothing(
    files: Path, tmp_path: Path, model: Ensemble, make_header: Callable[..., Header]
) -> None:
    output = tmp_path / "out" / "rollouts.h5"

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(UsbpoError, match=words):
            run(files, output.parent, **changes)
        assert not output.exists()

    refused("unknown termination 'sometimes'; known are never", termination="sometimes")
    refused("expected; name the right file", model=files / "policy.safetensors")
    model.save(files / "other.safetensors", make_header("model", task="another"))
    refused(r"other.safetensors.*task is another", model=files / "other.safetensors")
