"""Wasserstein-2 distances of diagonal Gaussians, and the objective of phase 2 made of them (poster eq 1, 5, 6).

Total variation is bounded by W1 (eq 5) and W1 by W2 (eq 6), so the two differences in poster eq 1 that the new
model M2 can change, model shift D(M1, M2) and model bias D(M2, M*), are measured in W2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Objective(NamedTuple):
    """Model shift and model bias, scalars in raw units of (reward, s')."""

    shift: Tensor
    bias: Tensor

    def of(self, terms: str) -> Tensor:
        """What is minimised: `shift+bias`, or one of the two (the ablations)."""
        return {"shift+bias": self.shift + self.bias, "shift": self.shift, "bias": self.bias}[terms]


@dataclass(frozen=True)
class Rows:
    """State-actions with the members i of M1 and j of M2 that are compared on each."""

    observations: Tensor
    """(rows, obs_dim)"""
    actions: Tensor
    """(rows, act_dim)"""
    members1: Tensor
    """(rows,)"""
    members2: Tensor
    """(rows,)"""

    def __len__(self) -> int:
        return len(self.observations)


def draw_members(count: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A member of M1 and one of M2 for each row, each (rows,), uniformly among all `count`."""
    members1, members2 = torch.randint(count, (2, rows), generator=generator, device=generator.device)
    return members1, members2


def root(square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 rather than infinite."""
    zero = square == 0
    return torch.sqrt(square.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def w2(mean1: Tensor, std1: Tensor, mean2: Tensor, std2: Tensor) -> Tensor:
    """W2 of N(mean1, diag std1²) and N(mean2, diag std2²), (…, dim) → (…).

    Closed form for diagonal Gaussians: W2² = ‖μ1 − μ2‖² + ‖σ1 − σ2‖².
    """
    return root((mean1 - mean2).square().sum(dim=-1) + (std1 - std2).square().sum(dim=-1))


def drawn(values: Tensor, members: Tensor) -> Tensor:
    """Of (members, rows, dim) the rows of the members drawn, (rows, dim)."""
    return values.gather(0, members[None, :, None].expand(1, -1, values.shape[2])).squeeze(0)


def as_written(
    m1: tuple[Tensor, Tensor],
    m2: tuple[Tensor, Tensor],
    members: Tensor,
    m_star: tuple[Tensor, Tensor] | None = None,
) -> Objective:
    """Shift and bias as the poster writes them, a mean over rows of per-row distances.

    Shift: W2 between the drawn member of M1 and the drawn member j of M2. Bias: p_M* is unknown, so other members
    stand for it: the mean of W2(M2_j, M*_m) over the members m ≠ j.

    Args:
        m1: mean and standard deviation of M1's drawn member, each (rows, dim).
        m2: mean and standard deviation of all of M2, each (members, rows, dim).
        members: (rows,), the member j of M2 drawn for each row.
        m_star: mean and standard deviation of the members that stand for M*, each (members, rows, dim), constants;
            without it those of M2 itself, which move along.
    """
    mean_j, std_j = (drawn(values, members) for values in m2)
    shift = w2(*m1, mean_j, std_j).mean()
    others = m2 if m_star is None else m_star
    bias = distances_to_others(mean_j, std_j, *others, members).mean() / (len(others[0]) - 1)
    return Objective(shift, bias)


def distances_to_others(mean_j: Tensor, std_j: Tensor, mean: Tensor, std: Tensor, members: Tensor) -> Tensor:
    """Sum over m ≠ j of W2 between the member j of each row, (rows, dim), and the members m, (members, rows, dim).

    Member m = j is left out: where M2 has moved, its distance to its own former self is not 0.

    Args:
        members: (rows,), the member j of each row.
    """
    return w2(mean_j, std_j, mean, std).scatter(0, members[None], 0.0).sum(dim=0)


def as_released(m1: tuple[Tensor, Tensor], m2: tuple[Tensor, Tensor], members: Tensor) -> Objective:
    """Shift and bias as the authors' released code computes them, for comparison.

    One square root over the sum of the whole batch, divided by the number of rows; the variance part counts only
    the entries (row i, dimension i); the bias is the sum of such distances to each of the members, divided by one
    less. Those members are M2's own and move along. Arguments as in `as_written`.
    """
    mean, std = m2
    count, batch = mean.shape[:2]
    mean_j, std_j = drawn(mean, members), drawn(std, members)

    def distance(mean1: Tensor, std1: Tensor, mean2: Tensor, std2: Tensor) -> Tensor:
        diagonal = torch.diagonal((std1 - std2).square(), dim1=-2, dim2=-1)
        return root((mean1 - mean2).square().sum(dim=(-2, -1)) + diagonal.sum(dim=-1))

    shift = distance(*m1, mean_j, std_j) / batch
    bias = distance(mean_j, std_j, mean, std).sum() / batch / (count - 1)
    return Objective(shift, bias)
