"""The terms of eq 1 and 4: the bracket is never positive, distances to M* are true distances, bounds as written."""

from math import sqrt
from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from usbpo.model.theory import bound_on_delta, bracket, rank_correlation, surrogate_bias, w2_to_point
from usbpo.model.wasserstein import as_written

Gaussians = tuple[Tensor, Tensor]


@st.composite
def rows_of(draw: st.DrawFn) -> tuple[Gaussians, Gaussians, Tensor]:
    """M1 and M2 on some rows, and the points that M* reaches; now and then equal to each other, or without spread."""
    rows, dim, seed = draw(st.integers(1, 8)), draw(st.integers(1, 6)), draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(rows, dim, generator=generator, dtype=torch.float64)

    scales = [draw(st.sampled_from([0.0, 1e-6, 1.0, 100.0])) for _ in range(4)]
    mean1, real = normal(10.0), normal(10.0)
    mean2 = draw(st.sampled_from([mean1, real, (mean1 + real) / 2])) + normal(scales[0])
    return (mean1, normal(scales[1]).abs()), (mean2, normal(scales[2]).abs()), real + normal(scales[3])


@given(rows_of())
def test_the_bracket_is_never_positive(case: tuple[Gaussians, Gaussians, Tensor]) -> None:
    m1, m2, real = case
    found = bracket(m1, m2, real)
    size = found.previous_bias + found.shift + found.bias
    assert (found.values <= 1e-12 * size).all()
    torch.testing.assert_close(found.values, found.previous_bias - found.shift - found.bias)


@given(rows_of())
def test_the_bracket_is_zero_where_m2_is_m1_or_m_star(case: tuple[Gaussians, Gaussians, Tensor]) -> None:
    m1, _, real = case
    torch.testing.assert_close(bracket(m1, m1, real).values, torch.zeros(len(real), dtype=torch.float64))
    certain = (real, torch.zeros_like(real))
    torch.testing.assert_close(bracket(m1, certain, real).values, torch.zeros(len(real), dtype=torch.float64))


@given(st.integers(0, 1000), st.integers(1, 4))
def test_distance_to_a_point_is_that_of_optimal_transport(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    mean, std, point = rng.normal(size=dim), rng.uniform(0.01, 3, dim), rng.normal(size=dim)
    pot = ot.gaussian.bures_wasserstein_distance(mean, point, np.diag(std**2), np.zeros((dim, dim)))
    found = float(w2_to_point(*(torch.from_numpy(v) for v in (mean, std, point))))
    assert found == pytest.approx(float(pot), rel=1e-6, abs=1e-6)
    # All mass goes to the one point there is: the root of the mean squared distance of samples with these moments.
    samples = rng.normal(size=(50, dim))
    samples = mean + std * (samples - samples.mean(axis=0)) / samples.std(axis=0)
    assert found == pytest.approx(sqrt(((samples - point) ** 2).sum(axis=1).mean()), rel=1e-9)


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 7), st.integers(1, 5))
def test_the_surrogate_of_rows_is_what_phase_2_minimises(seed: int, members: int, rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(members, rows, dim, generator=generator, dtype=torch.float64)
    std = torch.rand(members, rows, dim, generator=generator, dtype=torch.float64)
    drawn = torch.randint(members, (rows,), generator=generator)
    m1, m2, m_star = (mean[0], std[0]), (mean, std), (mean.flip(1) + 1.0, 2.0 * std)
    for others in (m2, m_star):
        found = surrogate_bias(m2, drawn, others)
        assert found.shape == (rows,)
        assert float(found.mean()) == pytest.approx(float(as_written(m1, m2, drawn, others).bias), rel=1e-12)
    moving = as_written(m1, m2, drawn).bias
    assert float(surrogate_bias(m2, drawn, m2).mean()) == pytest.approx(float(moving), rel=1e-12)


def test_the_bound_is_worked_by_hand() -> None:
    # γ = 0.9: 2γ/(1−γ) = 18 and 2/(1−γ) = 20. E[shift · max bias] = 2 · 4 and ε_π · max bias = 0.5 · 4.
    found = bound_on_delta(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 1.0]), policy_shift=0.5, discount=0.9)
    assert found.shift_term == pytest.approx(18 * 2 * 4)
    assert found.policy_term == pytest.approx(20 * 0.5 * 4)


@pytest.mark.parametrize(
    ("surrogate", "truth", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 − 6 Σd² / (n (n² − 1)) = 1 − 6 · 4 / 120
        ([1, 1, 1, 1], [1, 2, 3, 4], None),
        ([1, 2], [1, 2], None),
    ],
)
def test_rank_correlation(surrogate: list[Any], truth: list[Any], rho: float | None) -> None:
    found = rank_correlation(np.array(surrogate, float), np.array(truth, float))
    assert found == (None if rho is None else pytest.approx(rho))
