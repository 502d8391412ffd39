"""The ensemble computes what seven separate networks would, and its likelihood is that of MBPO's released code."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from usbpo.experiment.run_config import RunConfig
from usbpo.model.ensemble import (
    Architecture,
    Ensemble,
    choose_elites,
    fit_scaler,
    holdout_mse,
    negative_log_likelihood,
    new_ensemble,
    predict,
    predict_one_member,
    raw_outputs,
    standardise,
)
from usbpo.numerics.optimizer import Params

WEIGHT_DECAY = [2.5e-5, 5e-5, 7.5e-5]


def network_of(params: Params, member: int) -> nn.Sequential:
    """One member as a plain torch network; its outputs are mean and unbounded log-variance."""
    layers: list[nn.Module] = []
    count = sum(name.startswith("weight") for name in params)
    for layer in range(count):
        weight, bias = params[f"weight.{layer}"][member], params[f"bias.{layer}"][member, 0]
        linear = nn.Linear(weight.shape[0], weight.shape[1], dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
        layers += [linear, nn.SiLU()] if layer < count - 1 else [linear]
    return nn.Sequential(*layers)


def bounded(params: Params, log_variance: Tensor) -> Tensor:
    """The soft bounds, as they stand in the released code."""
    upper, lower = params["max_log_variance"], params["min_log_variance"]
    log_variance = upper - torch.log1p(torch.exp(upper - log_variance))
    return lower + torch.log1p(torch.exp(log_variance - lower))


def uneven(ensemble: Ensemble, seed: int = 0) -> Ensemble:
    """The ensemble with bounds, biases and a scaler that are all different."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in ensemble.params.items():
        if not name.startswith("weight"):
            ensemble.params[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    fit_scaler(ensemble, 2.0 + 3.0 * torch.randn(40, len(ensemble.scaler_mean), generator=generator))
    return ensemble


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_each_member_is_a_plain_network(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = uneven(make_ensemble())
    observations, actions = normal(20, 3), normal(20, 2, seed=1)
    mean, std = predict(ensemble, ensemble.params, observations, actions)
    assert mean.shape == std.shape == (4, 20, 4)
    inputs = (torch.cat([observations, actions], dim=1) - ensemble.scaler_mean) / ensemble.scaler_std
    for member in range(4):
        with torch.no_grad():
            expected, log_variance = network_of(ensemble.params, member)(inputs).chunk(2, dim=1)
        expected[:, 1:] += observations  # the networks predict s' − s
        torch.testing.assert_close(mean[member], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(std[member] ** 2, bounded(ensemble.params, log_variance).exp(), rtol=1e-5, atol=1e-6)


@given(st.integers(0, 200), st.floats(0.1, 300.0))
def test_the_log_variance_stays_within_its_bounds(seed: int, scale: float) -> None:
    ensemble = new_ensemble(Architecture(3, 2, 4, 2, 2, 8), torch.Generator().manual_seed(seed))
    _, log_variance = raw_outputs(ensemble.params, scale * normal(30, 5, seed=seed).expand(4, -1, -1))
    assert (log_variance >= -10.0).all()
    # The lower bound is laid over the upper one and lifts it by log(1 + exp(−10.5)), as in the released code.
    assert (log_variance <= 0.5 + 1e-4).all()


def test_the_bounds_are_reached_by_extreme_outputs(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = make_ensemble()
    for bias, bound in ((1000.0, 0.5), (-1000.0, -10.0)):
        ensemble.params["bias.2"] = torch.full_like(ensemble.params["bias.2"], bias)
        _, std = predict(ensemble, ensemble.params, normal(5, 3), normal(5, 2))
        torch.testing.assert_close(2 * std.log(), torch.full_like(std, bound), rtol=0, atol=1e-4)


def test_the_likelihood_equals_a_slow_reference(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = uneven(make_ensemble())
    inputs, targets = normal(4, 11, 5), normal(4, 11, 4, seed=1)
    expected = 0.0
    for member in range(4):
        with torch.no_grad():
            mean, log_variance = network_of(ensemble.params, member)(inputs[member]).chunk(2, dim=1)
            log_variance = bounded(ensemble.params, log_variance)
        entries = (mean - targets[member]) ** 2 / log_variance.exp() + log_variance
        expected += float(entries.mean())
        for layer, factor in enumerate(WEIGHT_DECAY):
            expected += factor * 0.5 * float((ensemble.params[f"weight.{layer}"][member] ** 2).sum())
    expected += 0.01 * float(ensemble.params["max_log_variance"].sum())
    expected -= 0.01 * float(ensemble.params["min_log_variance"].sum())
    found = negative_log_likelihood(ensemble.params, inputs, targets, WEIGHT_DECAY, 0.01)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layer", range(3))
def test_each_layer_has_its_own_penalty(layer: int, make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = make_ensemble()
    inputs, targets = normal(4, 11, 5), normal(4, 11, 4, seed=1)
    decay = [0.0] * 3
    without = negative_log_likelihood(ensemble.params, inputs, targets, decay, 0.0)
    decay[layer] = 2.0
    difference = negative_log_likelihood(ensemble.params, inputs, targets, decay, 0.0) - without
    assert float(difference) == pytest.approx(float((ensemble.params[f"weight.{layer}"] ** 2).sum()), rel=1e-3)


def test_the_likelihood_has_a_correct_gradient() -> None:
    ensemble = uneven(new_ensemble(Architecture(2, 1, 2, 1, 1, 3), torch.Generator().manual_seed(0)))
    names = list(ensemble.params)
    tensors = tuple(t.double().requires_grad_() for t in ensemble.params.values())
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    targets = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)

    def loss(*tensors: Tensor) -> Tensor:
        params = dict(zip(names, tensors, strict=True))
        return negative_log_likelihood(params, inputs, targets, [0.1, 0.2], 0.01)

    assert torch.autograd.gradcheck(loss, tensors)


def test_members_do_not_share_weights(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = make_ensemble()
    params = {name: t.clone().requires_grad_() for name, t in ensemble.params.items()}
    mean, _ = raw_outputs(params, normal(4, 6, 5))
    mean[1].sum().backward()
    for name in ("weight.0", "bias.1", "weight.2"):
        gradient = params[name].grad
        assert gradient is not None
        assert gradient[1].abs().sum() > 0
        assert gradient[[0, 2, 3]].abs().sum() == 0


def test_one_member_a_row_is_that_member_of_the_whole_prediction(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = uneven(make_ensemble(members=7))
    observations, actions = normal(64, 3), normal(64, 2, seed=1)
    members = torch.randint(7, (64,), generator=torch.Generator().manual_seed(2))
    mean, std = predict(ensemble, ensemble.params, observations, actions)
    rows = torch.arange(64)
    one_mean, one_std = predict_one_member(ensemble, members, observations, actions)
    assert one_mean.shape == (64, 4)
    torch.testing.assert_close(one_mean, mean[members, rows], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one_std, std[members, rows], rtol=1e-5, atol=1e-6)


def test_the_scaler_standardises_and_spares_constant_columns(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = make_ensemble()
    inputs = torch.from_numpy(np.random.default_rng(0).normal(5.0, 3.0, (1000, 5)).astype(np.float32))
    inputs[:, 2] = 7.0
    fit_scaler(ensemble, inputs)
    scaled = standardise(ensemble, inputs)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(5), rtol=0, atol=1e-5)
    # the standard deviation of the rows themselves: divided by their number, not by one less
    torch.testing.assert_close(scaled.std(dim=0, correction=0)[others], torch.ones(4), rtol=1e-6, atol=0)
    assert (scaled[:, 2] == 0).all()
    assert ensemble.scaler_std[2] == 1.0


def test_the_holdout_error_is_in_raw_units_over_rows_and_dimensions(make_ensemble: Callable[..., Ensemble]) -> None:
    ensemble = uneven(make_ensemble())
    inputs, targets = normal(30, 5), normal(30, 4, seed=1)
    errors = holdout_mse(ensemble, ensemble.params, inputs, targets)
    mean, _ = predict(ensemble, ensemble.params, inputs[:, :3], inputs[:, 3:])
    mean[..., 1:] -= inputs[:, :3]
    expected = [float(((mean[member] - targets) ** 2).mean()) for member in range(4)]
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-4)


def test_elites_are_the_best_members_in_order() -> None:
    errors = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.2, 0.7, 0.4])
    assert choose_elites(errors, 5).tolist() == [1, 4, 3, 6, 0]
    assert choose_elites(torch.tensor([1.0, 0.0, 1.0, 0.0]), 3).tolist() == [1, 3, 0], "ties go to the lower number"


ELITES = [  # the hold-out errors of members 0 … 6, and the five lowest, the lowest first
    # 0.2 (member 4) < 0.3 (1) < 0.5 (6) < 0.6 (0) < 0.7 (3); 0.8 (5) and 0.9 (2) are left out
    ([0.6, 0.3, 0.9, 0.7, 0.2, 0.8, 0.5], [4, 1, 6, 0, 3]),
    # 0.1 (members 1 and 4), 0.2 (3), then two of the three with 0.3 (0, 2, 5): the lower numbers; 5 and 6 are left out
    ([0.3, 0.1, 0.3, 0.2, 0.1, 0.3, 0.5], [1, 4, 3, 0, 2]),
    # 0.1 (6), then four of the six that are equal
    ([0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.1], [6, 0, 1, 2, 3]),
    ([0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], [0, 1, 2, 3, 4]),
]


@pytest.mark.parametrize(("errors", "elites"), ELITES)
@pytest.mark.parametrize("task", ["Hopper", "AntTruncated", "HumanoidTruncated"])
def test_five_of_the_seven_members_of_a_task_are_elites(
    task: str, errors: list[float], elites: list[int], run_config: Callable[[str], RunConfig]
) -> None:
    keys = run_config(task).model
    assert keys is not None
    assert (len(errors), len(elites)) == (keys.members, keys.elites) == (7, 5)
    assert choose_elites(torch.tensor(errors), keys.elites).tolist() == elites


def test_untrained_weights_are_truncated_normal() -> None:
    ensemble = new_ensemble(Architecture(17, 6, 7, 5, 4, 200), torch.Generator().manual_seed(0))
    assert [ensemble.params[f"weight.{layer}"].shape[1:] for layer in range(5)] == [
        (23, 200), (200, 200), (200, 200), (200, 200), (200, 36),
    ]  # fmt: skip
    for layer, fan_in in enumerate((23, 200, 200, 200, 200)):
        weight, sd = ensemble.params[f"weight.{layer}"], 1 / (2 * fan_in**0.5)
        assert weight.abs().max() <= 2 * sd
        assert weight.abs().max() > 1.95 * sd
        # cut off at two standard deviations, 0.8796 of it remains
        assert float(weight.std()) == pytest.approx(0.8796 * sd, rel=0.02)
        assert abs(float(weight.mean())) < 0.02 * sd
        assert len({weight[member, 0, 0].item() for member in range(7)}) == 7
        assert (ensemble.params[f"bias.{layer}"] == 0).all()
    assert (ensemble.params["max_log_variance"] == 0.5).all()
    assert (ensemble.params["min_log_variance"] == -10.0).all()
    assert ensemble.params["max_log_variance"].shape == (18,)


def test_an_untrained_ensemble_is_a_function_of_its_generator(make_ensemble: Callable[..., Ensemble]) -> None:
    first, again, other = make_ensemble(seed=3), make_ensemble(seed=3), make_ensemble(seed=4)
    assert all(torch.equal(first.params[name], again.params[name]) for name in first.params)
    assert not torch.equal(first.params["weight.0"], other.params["weight.0"])
