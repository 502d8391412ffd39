"""Phase 1: members are trained until none improves, the best weights of each are kept, and training goes on later."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.artifacts import of_cycle
from torch import Tensor

from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError
from usbpo.model import ensemble as ensembles
from usbpo.model import fitting
from usbpo.model.ensemble import Architecture, Ensemble, holdout_mse, new_ensemble
from usbpo.model.likelihood import LikelihoodStep
from usbpo.numerics.optimizer import new_moments
from usbpo.stages.model_data import ModelData, model_data, split_holdout
from usbpo.stages.phase1 import Snapshots, phase1, shuffled_rows, train

TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 64,
    "weight_decay": [2.5e-5, 5e-5, 1e-4],
    "log_variance_penalty": 0.01,
    "min_improvement": 0.01,
    "patience": 5,
    "max_epochs": 3,
}
OPTIONS: dict[str, Any] = TRAINING | {
    "members": 4, "elites": 2, "hidden_layers": 2, "hidden_size": 8, "holdout_ratio": 0.2, "holdout_limit": 5000,
}  # fmt: skip


@pytest.fixture
def shard(tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]) -> Path:
    """Real data of 200 rows."""
    path = tmp_path / "data.h5"
    transitions.write(path, make_header(), make_transitions(200))
    return path


def run(shard: Path, folder: Path, **changes: Any) -> tuple[Ensemble, dict[str, Any]]:
    """Run the stage; its model and its metrics."""
    arguments = {"seed": 0, "cycle": 1, **OPTIONS, **changes}
    model, metrics = folder / "model-mle.safetensors", folder / "phase1.json"
    phase1(data=[of_cycle(shard, arguments["cycle"])], output=model, metrics=metrics, **arguments)
    return ensembles.load(model)[1], json.loads(metrics.read_text())


# ---- snapshots and patience ----


def offer(snapshots: Snapshots, errors: list[float], mark: float) -> bool:
    """Offer weights that are all `mark`."""
    params = {"weight.0": torch.full((2, 3, 1), mark), "max_log_variance": torch.full((2,), mark)}
    return snapshots.offer(torch.tensor(errors), params)


def kept(snapshots: Snapshots) -> list[float]:
    return snapshots.params["weight.0"][:, 0, 0].tolist()


def test_a_member_keeps_its_own_best_weights() -> None:
    snapshots = Snapshots(0.01, 5, torch.full((2,), 1e10))
    assert not offer(snapshots, [1.0, 1.0], 1.0)
    assert kept(snapshots) == [1.0, 1.0]
    assert not offer(snapshots, [0.5, 2.0], 2.0)  # only the first improved
    assert kept(snapshots) == [2.0, 1.0]
    assert not offer(snapshots, [0.496, 0.98], 3.0)  # the first by 0.8 %: too little; the second by 2 %
    assert kept(snapshots) == [2.0, 3.0]
    assert snapshots.best.tolist() == pytest.approx([0.5, 0.98])


def test_small_improvements_add_up() -> None:
    """The comparison is with the snapshot, not with the epoch before."""
    snapshots = Snapshots(0.01, 5, torch.full((2,), 1e10))
    for mark, error in enumerate([1.0, 0.994, 0.988], start=1):
        offer(snapshots, [error, 1.0], float(mark))
    assert kept(snapshots) == [3.0, 1.0]


def test_training_ends_after_more_than_five_epochs_without_improvement() -> None:
    snapshots = Snapshots(0.01, 5, torch.full((2,), 1e10))
    offer(snapshots, [1.0, 1.0], 1.0)
    assert [offer(snapshots, [1.0, 1.0], 2.0) for _ in range(6)] == [False] * 5 + [True]


def test_one_improving_member_keeps_training_going() -> None:
    snapshots = Snapshots(0.01, 5, torch.full((2,), 1e10))
    offer(snapshots, [1.0, 1.0], 1.0)
    assert not any(offer(snapshots, [1.0, 1.0], 2.0) for _ in range(5))
    assert not offer(snapshots, [1.0, 0.9], 3.0)
    assert not any(offer(snapshots, [1.0, 1.0], 4.0) for _ in range(5))
    assert offer(snapshots, [1.0, 1.0], 5.0)
    assert kept(snapshots) == [1.0, 3.0]


def test_a_snapshot_is_not_changed_by_later_training() -> None:
    snapshots = Snapshots(0.01, 5, torch.full((1,), 1e10))
    params = {"weight.0": torch.ones(1, 2, 2)}
    snapshots.offer(torch.tensor([1.0]), params)
    params["weight.0"].add_(1.0)
    assert (snapshots.params["weight.0"] == 1.0).all()


# ---- training ----


def linear_system(rows: int, seed: int) -> ModelData:
    """s' − s and the reward are linear in state and action, with a little noise."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 5))
    matrix = np.random.default_rng(99).normal(size=(5, 4))
    targets = inputs @ matrix + 0.01 * rng.normal(size=(rows, 4))
    return ModelData(torch.from_numpy(inputs).float(), torch.from_numpy(targets).float())


def test_learns_a_linear_system(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble, holdout = make_ensemble(hidden_size=32), linear_system(300, 1)
    by_epoch, stopped = train(
        ensemble, linear_system(1500, 0), holdout, torch.Generator().manual_seed(0),
        **(TRAINING | {"batch_size": 256, "learning_rate": 1e-2, "max_epochs": 25}),
    )  # fmt: skip
    variance = float(holdout.targets.var())
    errors = holdout_mse(ensemble, ensemble.params, holdout.inputs, holdout.targets)
    assert (errors < 0.02 * variance).all()
    assert (errors < 0.1 * torch.tensor(by_epoch[0])).all()
    assert "epochs" in stopped or stopped == "max_epochs reached"


def test_the_kept_weights_are_those_of_the_snapshots(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble, holdout = make_ensemble(), linear_system(60, 1)
    by_epoch, _ = train(
        ensemble, linear_system(100, 0), holdout, torch.Generator().manual_seed(0),
        **(TRAINING | {"learning_rate": 0.1, "max_epochs": None}),
    )  # fmt: skip
    best = torch.full((4,), 1e10)
    for errors in torch.tensor(by_epoch):
        best = torch.where((best - errors) / best > 0.01, errors, best)
    assert not torch.equal(best, torch.tensor(by_epoch[-1])), "the last epoch must not be everyone's best"
    found = holdout_mse(ensemble, ensemble.params, holdout.inputs, holdout.targets)
    torch.testing.assert_close(found, best)


def recorded_training(
    ensemble: Ensemble, training: ModelData, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> list[Tensor]:
    """The inputs of every minibatch of a training."""
    seen: list[Tensor] = []

    class Recording(LikelihoodStep):
        def take(self, rows: Tensor) -> None:
            super().take(rows)
            seen.append(self.passes.inputs.clone())

    monkeypatch.setattr(fitting, "LikelihoodStep", Recording)
    train(ensemble, training, training, torch.Generator().manual_seed(0), **(TRAINING | changes))
    return seen


def test_each_member_draws_its_rows_with_replacement_and_reshuffles_them(
    make_ensemble: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 300
    inputs = torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, 5).contiguous()
    training = ModelData(inputs, torch.zeros(rows, 4))
    seen = recorded_training(make_ensemble(), training, monkeypatch, max_epochs=2)
    assert [batch.shape[1] for batch in seen] == [64, 64, 64, 64, 44] * 2
    first, second = torch.cat(seen[:5], dim=1)[..., 0], torch.cat(seen[5:], dim=1)[..., 0]
    assert first.shape == (4, rows)
    for member in range(4):
        assert 0.5 < len(first[member].unique()) / rows < 0.76  # 1 − 1/e with replacement, 1 without
        assert torch.equal(first[member].sort().values, second[member].sort().values)
        assert not torch.equal(first[member], second[member])
        assert not torch.equal(first[member].sort().values, first[member - 1].sort().values)


def test_shuffling_keeps_every_members_rows() -> None:
    indices = torch.arange(12).reshape(3, 4)
    shuffled = shuffled_rows(indices, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort(dim=1).values, indices)
    orders = {tuple((row - row.min()).tolist()) for row in shuffled}
    assert len(orders) > 1, "members are not shuffled alike"


def test_the_scaler_is_fitted_to_the_training_rows(
    shard: Path, tmp_path: Path, make_transitions: Callable[..., Transitions]
) -> None:
    model, _ = run(shard, tmp_path)
    data = model_data(make_transitions(200))
    training, holdout = split_holdout(200, 0, 1, 0.2, 5000)
    torch.testing.assert_close(model.scaler_mean, data.inputs[training].mean(dim=0))
    torch.testing.assert_close(model.scaler_std, data.inputs[training].std(dim=0, correction=0))
    assert not torch.allclose(model.scaler_mean, data.inputs.mean(dim=0), rtol=1e-5)
    assert len(holdout) == 40


def test_targets_are_reward_and_difference(make_transitions: Callable[..., Transitions]) -> None:
    batch = make_transitions(9)
    data = model_data(batch)
    np.testing.assert_array_equal(data.inputs, np.hstack([batch.observations, batch.actions]))
    np.testing.assert_array_equal(data.targets[:, 0], batch.rewards)
    np.testing.assert_array_equal(data.targets[:, 1:], batch.next_observations - batch.observations)


# ---- hold-out rows ----


@pytest.mark.parametrize(("rows", "expected"), [(750, 150), (20_000, 4000), (25_000, 5000), (130_000, 5000)])
def test_a_fifth_but_at_most_5000_rows_are_held_out(rows: int, expected: int) -> None:
    training, holdout = split_holdout(rows, 0, 1, 0.2, 5000)
    assert len(holdout) == expected
    assert torch.equal(torch.cat([training, holdout]).sort().values, torch.arange(rows))


def test_another_cycle_or_seed_holds_out_other_rows() -> None:
    splits = [split_holdout(100, seed, cycle, 0.2, 5000)[1] for seed, cycle in ((0, 1), (0, 2), (1, 1))]
    assert len({tuple(split.tolist()) for split in splits}) == 3


def test_too_few_rows_are_refused_in_one_sentence() -> None:
    with pytest.raises(UsbpoError, match="too few"):
        split_holdout(4, 0, 1, 0.2, 5000)


# ---- the stage ----


def test_same_work_gives_same_bytes(shard: Path, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        run(shard, tmp_path / folder)
        torch.rand(1)  # a global generator must not matter
    for name in ("model-mle.safetensors", "phase1.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_another_seed_gives_another_model(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    models = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.h5"
        transitions.write(path, make_header(seed=seed), make_transitions(200))
        models.append(run(path, tmp_path / str(seed), seed=seed)[0])
    assert not torch.equal(models[0].params["weight.0"], models[1].params["weight.0"])


def test_metrics_describe_the_model_on_disk(
    shard: Path, tmp_path: Path, make_transitions: Callable[..., Transitions]
) -> None:
    model, metrics = run(shard, tmp_path)
    assert (metrics["training_rows"], metrics["holdout_rows"], metrics["epochs"]) == (160, 40, 3)
    assert metrics["stopped"] == "max_epochs reached"
    assert (metrics["task"], metrics["seed"], metrics["cycle"]) == ("tiny", 0, 1)
    holdout = model_data(make_transitions(200)).rows(split_holdout(200, 0, 1, 0.2, 5000)[1])
    errors = holdout_mse(model, model.params, holdout.inputs, holdout.targets)
    assert metrics["holdout_mse"] == errors.tolist()
    assert metrics["elites"] == model.elites.tolist() == np.argsort(metrics["holdout_mse"])[:2].tolist()
    assert np.shape(metrics["holdout_mse_by_epoch"]) == (3, 4)
    assert np.mean(metrics["holdout_mse"]) < np.mean(metrics["holdout_mse_before"])


def test_training_ends_by_itself_when_nothing_improves(shard: Path, tmp_path: Path) -> None:
    _, metrics = run(shard, tmp_path, learning_rate=1e-12, max_epochs=None)
    # The first epoch always improves on nothing at all; then six epochs without.
    assert metrics["epochs"] == 7
    assert "6 epochs" in metrics["stopped"]


def test_training_goes_on_from_the_previous_weights(shard: Path, tmp_path: Path) -> None:
    previous, _ = run(shard, tmp_path / "first")
    path = tmp_path / "first" / "model-mle.safetensors"
    model, metrics = run(shard, tmp_path, previous_model=path, learning_rate=1e-12, max_epochs=1, cycle=2)
    for name, tensor in previous.params.items():
        torch.testing.assert_close(model.params[name], tensor, rtol=0, atol=1e-9)
    assert metrics["holdout_mse_before"] != metrics["holdout_mse"], "the scaler has been fitted anew"


def test_the_optimizers_moments_go_on_across_cycles(shard: Path, tmp_path: Path) -> None:
    steps_an_epoch = 3  # 160 rows in batches of 64
    first, _ = run(shard, tmp_path / "first")
    assert first.mle["step"] == 3 * steps_an_epoch
    path = tmp_path / "first" / "model-mle.safetensors"
    second, _ = run(shard, tmp_path / "second", previous_model=path, cycle=2)
    assert second.mle["step"] == 6 * steps_an_epoch

    header, forgetful = ensembles.load(path)
    forgetful.mle = {name: torch.zeros_like(tensor) for name, tensor in forgetful.mle.items()}
    forgetful.save(path, header)
    third, _ = run(shard, tmp_path / "third", previous_model=path, cycle=2)
    assert not torch.equal(second.params["weight.0"], third.params["weight.0"])


def test_phase_1_does_not_carry_the_moments_of_phase_2(shard: Path, tmp_path: Path) -> None:
    run(shard, tmp_path / "first")
    path = tmp_path / "first" / "model-mle.safetensors"
    header, model = ensembles.load(path)
    model.finetune = new_moments(model.params)
    model.save(path, header)
    second, _ = run(shard, tmp_path, previous_model=path, cycle=2)
    assert second.finetune == {}
    assert second.mle["step"] > model.mle["step"]


def test_a_diverging_training_says_so_and_writes_nothing(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(UsbpoError, match=r"diverged.*learning_rate"):
        run(shard, tmp_path / "out", learning_rate=1e30)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_width_or_task_is_refused_in_one_sentence(
    shard: Path, tmp_path: Path, make_header: Callable[..., Header]
) -> None:
    path = tmp_path / "other.safetensors"
    wide = new_ensemble(Architecture(3, 2, 4, 2, 2, 9), torch.Generator())
    wide.save(path, make_header("model"))
    with pytest.raises(UsbpoError, match=r"other.safetensors.*hidden_size is 9, but 8"):
        run(shard, tmp_path, previous_model=path, cycle=2)
    wide.save(path, make_header("model", task="another"))
    with pytest.raises(UsbpoError, match=r"other.safetensors.*task is another"):
        run(shard, tmp_path, previous_model=path, cycle=2)
    with pytest.raises(UsbpoError, match="seed is 0"):
        run(shard, tmp_path, seed=1)
