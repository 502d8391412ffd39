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


# ---- a stand-in for M* that stands still ----


def pot(a: Gaussian, b: Gaussian) -> float:
    """W2 as POT has it; it subtracts traces, so that small distances lose digits."""
    (mean1, std1), (mean2, std2) = ((mean.numpy(), std.numpy()) for mean, std in (a, b))
    return float(ot.gaussian.bures_wasserstein_distance(mean1, mean2, np.diag(std1**2), np.diag(std2**2)))


def distance(a: Gaussian, b: Gaussian) -> float:
    return float(w2(*a, *b))


def between(a: Gaussian, b: Gaussian, share: float) -> Gaussian:
    """The Gaussian on the shortest way from a to b: in (μ, σ) it is a straight line."""
    return torch.lerp(a[0], b[0], share), torch.lerp(a[1], b[1], share)


def direction(a: Gaussian, b: Gaussian) -> Tensor:
    """The unit vector from a to b in (μ, σ)."""
    return torch.cat([b[0] - a[0], b[1] - a[1]]) / w2(*a, *b)


def beside_the_way(a: Gaussian, b: Gaussian, at: Gaussian, spread: float) -> list[Gaussian]:
    """Two at a distance of `spread` to both sides of the way from a to b, at right angles to it, beside `at`."""
    way = direction(a, b)
    across = torch.eye(len(way), dtype=torch.float64)[way.abs().argmin()]
    across = across - (across @ way) * way
    mean, std = (spread * across / across.norm()).chunk(2)
    return [(at[0] + sign * mean, at[1] + sign * std) for sign in (1, -1)]


def of_one_row(m1: Gaussian, m2: Gaussian, m_star: list[Gaussian]) -> tuple[float, Tensor]:
    """The objective of a row, and its gradient in (μ, σ) of the drawn member, (2 · dim,).

    Neither the other members of M2 nor that stand-in which has the drawn member's number may matter, so they are far.
    """
    far = (m2[0] + 1e3, m2[1] + 1e3)
    mean, std = (torch.stack([value, *[other] * len(m_star)])[:, None] for value, other in zip(m2, far, strict=True))
    mean_star, std_star = (torch.stack(values)[:, None] for values in zip(far, *m_star, strict=True))
    mean.requires_grad_()
    std.requires_grad_()
    found = as_written((m1[0][None], m1[1][None]), (mean, std), torch.tensor([0]), (mean_star, std_star))
    gradients = torch.autograd.grad(found.of("shift+bias"), (mean, std))
    assert all(float(gradient[1:].abs().sum()) == 0.0 for gradient in gradients)
    return float(found.of("shift+bias").detach()), torch.cat([gradient[0, 0] for gradient in gradients])


@given(gaussians(4), st.integers(0, 2))
def test_the_bias_is_the_mean_distance_to_the_other_members_that_stand_for_m_star(
    four: list[Gaussian], member: int
) -> None:
    m2, *m_star = four
    mean, std = (torch.stack([value, value, value])[:, None] for value in m2)
    found = as_written(
        (mean[0], std[0]),
        (mean, std),
        torch.tensor([member]),
        tuple(torch.stack(v)[:, None] for v in zip(*m_star, strict=True)),
    )
    others = [pot(m2, other) for number, other in enumerate(m_star) if number != member]
    assert float(found.bias) == pytest.approx(sum(others) / 2, rel=1e-6, abs=1e-5)
    assert float(found.shift) == 0.0


@given(gaussians(2), st.integers(1, 5))
def test_where_m1_is_m_star_every_model_is_drawn_straight_to_it_and_nothing_away(
    pair: list[Gaussian], others: int
) -> None:
    m2, m1 = pair
    value, gradient = of_one_row(m1, m1, [m1] * others)
    assert value == 0.0
    assert float(gradient.abs().max()) == 0.0
    value, gradient = of_one_row(m1, m2, [m1] * others)
    assert value == pytest.approx(2 * pot(m1, m2), rel=1e-6, abs=1e-5)
    if (length := distance(m1, m2)) > 1e-6:
        away = torch.cat([m2[0] - m1[0], m2[1] - m1[1]]) / length
        torch.testing.assert_close(gradient, 2 * away, rtol=0, atol=1e-9)


@given(gaussians(3), st.floats(0.01, 0.99), st.integers(1, 5))
def test_between_m1_and_m_star_every_model_is_equally_good_and_none_is_better(
    three: list[Gaussian], share: float, others: int
) -> None:
    """The triangle inequality: poster eq 3 is flat on the way from M1 to M*, where two pulls of unit length cancel."""
    m1, m_star, elsewhere = three
    whole = pot(m1, m_star)
    value, gradient = of_one_row(m1, between(m1, m_star, share), [m_star] * others)
    assert value == pytest.approx(whole, rel=1e-6, abs=1e-5)
    if distance(m1, m_star) > 1e-3:
        assert float(gradient.norm()) < 1e-9
    off, _ = of_one_row(m1, elsewhere, [m_star] * others)
    assert off >= whole - 1e-5


@given(gaussians(2, max_dim=1), st.floats(0.01, 0.99))
def test_one_dimensional_gaussians_between_m1_and_a_stand_in_are_left_alone(pair: list[Gaussian], share: float) -> None:
    m1, stand_in = pair
    if distance(m1, stand_in) > 1e-3:
        _, gradient = of_one_row(m1, between(m1, stand_in, share), [stand_in])
        assert float(gradient.abs().max()) < 1e-9


@given(gaussians(4), st.floats(0.05, 0.95), st.sampled_from([1e-1, 1e-3, 1e-6, 0.0]))
def test_the_pull_to_m1_is_matched_as_the_members_come_to_agree(
    four: list[Gaussian], share: float, spread: float
) -> None:
    """Unit vectors to points that are `spread` apart differ by 2 · spread / distance at most."""
    m1, m_star, *noise = four
    if (length := distance(m1, m_star)) < 1e-2:
        return
    stand_ins = [(m_star[0] + spread * mean, m_star[1] + spread * std) for mean, std in noise]
    m2 = between(m1, m_star, share)
    _, gradient = of_one_row(m1, m2, stand_ins)
    apart = max(distance(m_star, stand_in) for stand_in in stand_ins)
    assert float(gradient.norm()) <= 2 * apart / ((1 - share) * length) + 1e-9


@given(gaussians(2, max_dim=4), st.floats(0.05, 0.95), st.floats(0.01, 100.0))
def test_what_is_left_of_the_pull_to_m1_follows_from_the_members_spread(
    pair: list[Gaussian], share: float, spread: float
) -> None:
    """Stand-ins `spread` to both sides of the way, at right angles, pull by r / √(r² + spread²) from a distance r."""
    m1, m_star = pair
    length = distance(m1, m_star)
    if length < 1e-2:
        return
    _, gradient = of_one_row(m1, between(m1, m_star, share), beside_the_way(m1, m_star, m_star, spread))
    r = (1 - share) * length
    expected = (1 - r / sqrt(r**2 + spread**2)) * direction(m1, m_star)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


@given(gaussians(2, max_dim=4), st.floats(0.05, 20.0), st.floats(0.05, 20.0))
def test_the_model_divides_the_way_to_m_star_in_the_ratio_of_the_spreads(
    pair: list[Gaussian], spread1: float, spread2: float
) -> None:
    """It gives back the share s2 / (s1 + s2), and is drawn there from both sides."""
    m1, m_star = pair
    if distance(m1, m_star) < 1e-2:
        return
    balance = spread1 / (spread1 + spread2)

    def pull(share: float) -> float:
        """Along the way, away from M1; the mean over M1's two members."""
        members, stand_ins = beside_the_way(m1, m_star, m1, spread1), beside_the_way(m1, m_star, m_star, spread2)
        m2 = between(m1, m_star, share)
        gradient = torch.stack([of_one_row(member, m2, stand_ins)[1] for member in members]).mean(dim=0)
        return -float(gradient @ direction(m1, m_star))

    assert abs(pull(balance)) < 1e-7
    assert pull(0.9 * balance) > 0 > pull(balance + 0.1 * (1 - balance))


@given(sizes)
def test_members_that_move_along_leave_the_common_pull_to_m1_without_a_match(size: tuple[int, int, int, int]) -> None:
    """A bias between members of one model does not change when all of them go the same way; fixed ones hold it."""
    m1, (mean, std), members = predictions(*size)
    step = torch.zeros(mean.shape[1:], dtype=mean.dtype, requires_grad=True)
    moving = as_written(m1, (mean + step, std), members)
    fixed = as_written(m1, (mean + step, std), members, (mean, std))
    assert torch.equal(moving.bias, fixed.bias), "before the first step they are the same"
    assert torch.equal(moving.shift, fixed.shift)
    of_moving, of_fixed = (torch.autograd.grad(objective.bias, step)[0] for objective in (moving, fixed))
    assert float(of_moving.norm()) < 1e-12
    rows = torch.arange(size[2])
    own_mean, own_std = mean[members, rows], std[members, rows]
    units = (own_mean - mean) / w2(own_mean, own_std, mean, std).clamp(min=1e-300)[..., None]
    torch.testing.assert_close(of_fixed, units.sum(dim=0) / (size[1] - 1) / size[2])


def test_terms_choose_what_is_minimised() -> None:
    objective = Objective(torch.tensor(2.0), torch.tensor(5.0))
    assert {terms: float(objective.of(terms)) for terms in ("shift+bias", "shift", "bias")} == {
        "shift+bias": 7.0,
        "shift": 2.0,
        "bias": 5.0,
    }
