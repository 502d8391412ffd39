"""The replay: D_env and D_model packed as the networks want them, drawn from uniformly."""

import torch
from torch import Tensor

from usbpo.artifacts.transitions import Transitions


def pack(
    observations: Tensor,
    actions: Tensor,
    rewards: Tensor,
    next_observations: Tensor,
    terminations: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Transitions as (2, rows, obs_dim + act_dim + 1): (s, a, r), and (s', 0, 1 − d).

    The zeros are room for the policy's actions in s', so that both halves are inputs of critics.

    Args:
        terminations: (rows,), 1 where the next state is terminal: time limits do not cut the bootstrap.
        out: what is filled and returned, on any device; a new tensor without it.
    """
    (rows, obs_dim), act_dim = observations.shape, actions.shape[1]
    if out is None:
        out = observations.new_empty(2, rows, obs_dim + act_dim + 1)
    out[0, :, :obs_dim], out[0, :, obs_dim:-1], out[0, :, -1] = observations, actions, rewards
    out[1, :, :obs_dim], out[1, :, obs_dim:-1], out[1, :, -1] = next_observations, 0.0, 1.0 - terminations
    return out


class Replay:
    """Packed transitions on a device, drawn from uniformly with replacement.

    Args:
        packed: (2, rows, width) as `pack` makes it: the model's rows, the real ones behind them, and perhaps
            room for more.
        model_rows: how many are the model's.
        real_rows: how many are real.
    """

    def __init__(self, packed: Tensor, model_rows: int, real_rows: int) -> None:
        self.packed, self.model_rows, self.real_rows = packed, model_rows, real_rows

    def draw(self, updates: int, rows: int, real: int, generator: torch.Generator) -> Tensor:
        """Row numbers (updates, rows) of batches whose first `real` rows are real and the others the model's."""
        end = self.model_rows + self.real_rows
        drawn = torch.empty(updates, rows, dtype=torch.int64, device=self.packed.device)
        drawn[:, :real] = torch.randint(self.model_rows, end, (updates, real), generator=generator, device=drawn.device)
        if real < rows:
            shape = (updates, rows - real)
            drawn[:, real:] = torch.randint(self.model_rows, shape, generator=generator, device=drawn.device)
        return drawn

    def largest_reward(self) -> float:
        """The largest |r| of all rows; 0 without any."""
        rows = self.packed[0, : self.model_rows + self.real_rows, -1]
        return float(torch.linalg.vector_norm(rows, ord=torch.inf)) if len(rows) else 0.0

    def append(self, real: Transitions) -> None:
        """Take further real rows, for which there must be room."""
        end = self.model_rows + self.real_rows
        pack_rows(real, self.packed[:, end : end + len(real)])
        self.real_rows += len(real)

    def gather(self, index: Tensor, batch: Tensor) -> None:
        """Fill `batch` (2, rows, width) with the rows of these numbers."""
        for half, rows in zip(self.packed, batch, strict=True):
            torch.index_select(half, 0, index, out=rows)


def pack_rows(batch: Transitions, out: Tensor) -> None:
    """Fill `out` (2, rows, width) with transitions as `pack` lays them out."""
    observations, actions, rewards, next_observations, terminations = map(
        torch.from_numpy,
        (batch.observations, batch.actions, batch.rewards, batch.next_observations, batch.terminations),
    )
    pack(observations, actions, rewards, next_observations, terminations.to(torch.float32), out)


def replay_of(real: Transitions, model: Transitions | None, device: torch.device, room: int = 0) -> Replay:
    """D_env and, where there is one, D_model, with room for so many more real rows."""
    model_rows, width = 0 if model is None else len(model), real.observations.shape[1] + real.actions.shape[1] + 1
    packed = torch.empty(2, model_rows + len(real) + room, width, device=device)
    if model is not None:
        pack_rows(model, packed[:, :model_rows])
    pack_rows(real, packed[:, model_rows : model_rows + len(real)])
    return Replay(packed, model_rows, len(real))
