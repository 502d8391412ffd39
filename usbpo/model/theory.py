"""The theory, measured: the terms of poster eq 1 and eq 4 against a simulator that stands for M*, in W2 for TV.

M* is deterministic: its next state is a point, and so every distance to it is that of a Gaussian and a Dirac. All
distances are in raw units of (reward, s').
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from usbpo.model.wasserstein import distances_to_others, drawn, w2

FEWEST = 3
"""Rows below which a rank correlation says nothing."""


def w2_to_point(mean: Tensor, std: Tensor, point: Tensor) -> Tensor:
    """W2 of N(mean, diag std²) and the Dirac at `point`, (…, dim) → (…).

    A Dirac is a Gaussian without spread, so `W2² = ‖μ − x‖² + ‖σ‖²`: the whole spread counts as distance.
    """
    return w2(mean, std, point, torch.zeros_like(std))


class Bracket(NamedTuple):
    """The three distances of the leading bracket of eq 1, (rows,) each: it is E[previous_bias − shift − bias].

    By the triangle inequality W2(M1, M*) ≤ W2(M1, M2) + W2(M2, M*), so that the bracket is never positive. It is 0
    where M2 lies on a shortest way from M1 to M*, M1 and M* themselves included.
    """

    previous_bias: Tensor
    """W2(M1, M*)"""
    shift: Tensor
    """W2(M1, M2)"""
    bias: Tensor
    """W2(M2, M*)"""

    @property
    def values(self) -> Tensor:
        """The bracket of each row."""
        return self.previous_bias - self.shift - self.bias


def bracket(m1: tuple[Tensor, Tensor], m2: tuple[Tensor, Tensor], real: Tensor) -> Bracket:
    """The distances of eq 1 for one member of M1 and one of M2 on each row.

    Args:
        m1: mean and standard deviation of M1's member, each (rows, dim).
        m2: those of M2's member.
        real: (reward, s') of M*, (rows, dim).
    """
    return Bracket(w2_to_point(*m1, real), w2(*m1, *m2), w2_to_point(*m2, real))


def surrogate_bias(m2: tuple[Tensor, Tensor], members: Tensor, m_star: tuple[Tensor, Tensor]) -> Tensor:
    """What phase 2 minimises in place of the bias, (rows,): the mean of W2(M2_j, M*_m) over the members m ≠ j.

    Its mean over rows is the bias of `wasserstein.as_written`.

    Args:
        m2: mean and standard deviation of all members of M2, each (members, rows, dim).
        members: (rows,), the member j of each row.
        m_star: those of the members that stand for M*: M2's own again, or M2's as phase 1 left them.
    """
    mean_j, std_j = (drawn(values, members) for values in m2)
    return distances_to_others(mean_j, std_j, *m_star, members) / (len(m_star[0]) - 1)


class Bound(NamedTuple):
    """The two terms of the bound on |Δ| of eq 4."""

    shift_term: float
    """2γ/(1−γ) · E[W2(M1, M2) · max W2(M2, M*)]"""
    policy_term: float
    """2ε_π/(1−γ) · max W2(M2, M*)"""


def bound_on_delta(shift: Tensor, bias: Tensor, policy_shift: float, discount: float) -> Bound:
    """The bound on |Δ| of eq 4, with W2 for TV; the maximum over the rows stands for that over all states.

    Args:
        shift: W2(M1, M2), (rows,).
        bias: W2(M2, M*), (rows,).
        policy_shift: ε_π.
        discount: γ.
    """
    largest = float(bias.max())
    horizon = 2.0 / (1.0 - discount)
    return Bound(discount * horizon * float(shift.mean()) * largest, horizon * policy_shift * largest)


def rank_correlation(surrogate: NDArray[np.floating], truth: NDArray[np.floating]) -> float | None:
    """Spearman's ρ over rows; None for fewer than `FEWEST` rows, or where one of the two is the same in all."""
    if len(truth) < FEWEST or np.ptp(surrogate) == 0 or np.ptp(truth) == 0:
        return None
    return float(spearmanr(surrogate, truth).statistic)
