"""The Wasserstein-2 distance is one, and the objective of phase 2 is what the poster and the released code say."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from usbpo.model.wasserstein import Objective, as_released, as_written, root, w2

Gaussian = tuple[Tensor, Tensor]
Loss = Callable[[Gaussian, Gaussian, Tensor], Objective]


@st.composite
def gaussians(draw: st.DrawFn, count: int, max_dim: int = 5) -> list[Gaussian]:
    """Means and standard deviations of `count` diagonal Gaussians of one dimension."""
    dim = draw(st.integers(1, max_dim))

    def numbers(lowest: float, highest: float) -> Tensor:
        values = draw(st.lists(st.floats(lowest, highest), min_size=dim, max_size=dim))
        return torch.tensor(values, dtype=torch.float64)

    return [(numbers(-10.0, 10.0), numbers(1e-3, 10.0)) for _ in range(count)]


def samples_of_exact_moments(rng: np.random.Generator, rows: int, dim: int) -> NDArray[np.float64]:
    """Points whose coordinates have mean 0 and variance 1 to the last digits."""
    points = rng.normal(size=(rows, dim))
    points -= points.mean(axis=0)
    return np.asarray(points / points.std(axis=0))


@given(gaussians(2))
def test_is_symmetric(pair: list[Gaussian]) -> None:
    (mean1, std1), (mean2, std2) = pair
    assert w2(mean1, std1, mean2, std2) == w2(mean2, std2, mean1, std1)


@given(gaussians(3))
def test_obeys_the_triangle_inequality(three: list[Gaussian]) -> None:
    a, b, c = three
    assert w2(*a, *c) <= w2(*a, *b) + w2(*b, *c) + 1e-12


@given(gaussians(2))
def test_is_zero_if_and_only_if_equal(pair: list[Gaussian]) -> None:
    a, b = pair
    apart = float(max((a[0] - b[0]).abs().max(), (a[1] - b[1]).abs().max()))
    assert w2(*a, *a) == 0.0
    if apart > 1e-150:  # smaller differences have squares of 0
        assert float(w2(*a, *b)) >= apart * (1 - 1e-12)
    assert float(w2(*a, *b)) <= 2 * sqrt(len(a[0])) * apart


@given(gaussians(2))
def test_equals_the_bures_wasserstein_distance_of_pot(pair: list[Gaussian]) -> None:
    (mean1, std1), (mean2, std2) = pair
    pot = ot.gaussian.bures_wasserstein_distance(
        mean1.numpy(), mean2.numpy(), np.diag(std1.numpy() ** 2), np.diag(std2.numpy() ** 2)
    )
    # POT subtracts traces, so that small distances lose digits.
    assert float(w2(mean1, std1, mean2, std2)) == pytest.approx(float(pot), rel=1e-6, abs=1e-5)


@given(gaussians(2, max_dim=3), st.integers(0, 100))
def test_w1_is_at_most_w2_and_w2_is_that_of_samples(pair: list[Gaussian], seed: int) -> None:
    """Samples with the Gaussians' exact moments that are matched in order are an optimal coupling, and cost W2."""
    (mean1, std1), (mean2, std2) = ((mean.numpy(), std.numpy()) for mean, std in pair)
    points = samples_of_exact_moments(np.random.default_rng(seed), 60, len(mean1))
    first, second = mean1 + std1 * points, mean2 + std2 * points
    empirical_w1 = ot.emd2([], [], ot.dist(first, second, metric="euclidean"))
    empirical_w2 = sqrt(max(ot.emd2([], [], ot.dist(first, second, metric="sqeuclidean")), 0.0))
    closed = float(w2(*pair[0], *pair[1]))
    assert empirical_w1 <= closed + 1e-9
    assert empirical_w2 == pytest.approx(closed, rel=1e-6, abs=1e-6)


def test_worked_by_hand() -> None:
    # 3² + 0² for the means, 0² + 4² for the standard deviations
    mean1, std1 = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])
    mean2, std2 = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 5.0])
    assert float(w2(mean1, std1, mean2, std2)) == 5.0


def test_the_gradient_is_finite_where_two_gaussians_are_equal() -> None:
    mean, std = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    w2(mean, std, torch.zeros(3), torch.ones(3)).backward()
    for gradient in (mean.grad, std.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def test_the_gradient_points_along_the_difference() -> None:
    mean, std = torch.tensor([3.0, 0.0], requires_grad=True), torch.tensor([1.0, 5.0], requires_grad=True)
    w2(mean, std, torch.zeros(2), torch.ones(2)).backward()
    torch.testing.assert_close(mean.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(std.grad, torch.tensor([0.0, 0.8]))


def test_nan_stays_nan() -> None:
    """A diverged model must not look like a perfect one, at distance 0."""
    assert torch.isnan(root(torch.tensor(float("nan"))))
    assert torch.isnan(w2(torch.tensor([float("nan")]), torch.ones(1), torch.zeros(1), torch.ones(1)))
    assert torch.isinf(root(torch.tensor(float("inf"))))


def predictions(seed: int, members: int, rows: int, dim: int) -> tuple[Gaussian, Gaussian, Tensor]:
    """One member of M1, all of M2, and the drawn members of M2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    m1 = normal(rows, dim), normal(rows, dim).exp()
    m2 = normal(members, rows, dim), normal(members, rows, dim).exp()
    return m1, m2, torch.randint(members, (rows,), generator=generator)


sizes = st.tuples(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 7), st.integers(1, 5))


@given(sizes)
def test_as_written_is_the_mean_over_rows_of_distances(size: tuple[int, int, int, int]) -> None:
    _, members, rows, _ = size
    m1, m2, drawn = predictions(*size)
    shift = bias = 0.0
    for row in range(rows):
        j = int(drawn[row])
        square = ((m1[0][row] - m2[0][j, row]) ** 2).sum() + ((m1[1][row] - m2[1][j, row]) ** 2).sum()
        shift += sqrt(square) / rows
        for other in range(members):
            if other != j:
                square = ((m2[0][j, row] - m2[0][other, row]) ** 2).sum()
                square = square + ((m2[1][j, row] - m2[1][other, row]) ** 2).sum()
                bias += sqrt(square) / (members - 1) / rows
    found = as_written(m1, m2, drawn)
    assert float(found.shift) == pytest.approx(shift, rel=1e-12)
    assert float(found.bias) == pytest.approx(bias, rel=1e-12)


@given(sizes)
def test_as_released_is_one_root_over_the_batch_for_each_pair(size: tuple[int, int, int, int]) -> None:
    _, members, rows, dim = size
    m1, m2, drawn = predictions(*size)
    mean1, std1, mean2, std2 = (values.numpy() for values in (*m1, *m2))
    shift_sum, bias_sums = 0.0, [0.0] * members
    for row in range(rows):
        j = drawn[row]
        for d in range(dim):
            shift_sum += (mean1[row, d] - mean2[j, row, d]) ** 2
            if d == row:  # the released code takes the diagonal of (rows, dim)
                shift_sum += (std1[row, d] - std2[j, row, d]) ** 2
            for other in range(members):
                bias_sums[other] += (mean2[j, row, d] - mean2[other, row, d]) ** 2
                if d == row:
                    bias_sums[other] += (std2[j, row, d] - std2[other, row, d]) ** 2
    found = as_released(m1, m2, drawn)
    assert float(found.shift) == pytest.approx(sqrt(shift_sum) / rows, rel=1e-12)
    assert float(found.bias) == pytest.approx(sum(map(sqrt, bias_sums)) / rows / (members - 1), rel=1e-12)


@pytest.mark.parametrize("loss", [as_written, as_released])
def test_shift_is_zero_where_m2_is_m1(loss: Loss) -> None:
    _, (mean, std), drawn = predictions(0, 5, 6, 3)
    rows = torch.arange(6)
    found = loss((mean[drawn, rows], std[drawn, rows]), (mean, std), drawn)
    assert float(found.shift) == 0.0
    assert float(found.bias) > 0.0


@pytest.mark.parametrize("loss", [as_written, as_released])
def test_bias_is_zero_where_all_members_agree(loss: Loss) -> None:
    m1, (mean, std), drawn = predictions(0, 5, 6, 3)
    found = loss(m1, (mean[:1].expand(5, -1, -1), std[:1].expand(5, -1, -1)), drawn)
    assert float(found.bias) == 0.0
    assert float(found.shift) > 0.0


@pytest.mark.parametrize("loss", [as_written, as_released])
def test_the_objective_has_a_correct_gradient(loss: Loss) -> None:
    m1, (mean, std), drawn = predictions(3, 3, 4, 2)
    mean.requires_grad_()
    std.requires_grad_()

    def total(mean: Tensor, std: Tensor) -> Tensor:
        return loss(m1, (mean, std), drawn).of("shift+bias")

    assert torch.autograd.gradcheck(total, (mean, std))


def test_terms_choose_what_is_minimised() -> None:
    objective = Objective(torch.tensor(2.0), torch.tensor(5.0))
    assert {terms: float(objective.of(terms)) for terms in ("shift+bias", "shift", "bias")} == {
        "shift+bias": 7.0,
        "shift": 2.0,
        "bias": 5.0,
    }
