"""Transitions on disk: D_env shards and blocks, model rollouts, and the collector's state, all HDF5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usbpo.artifacts import hdf5
from usbpo.artifacts.hdf5 import Arrays
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError

KIND = "transitions"
"""Real transitions, shards and blocks."""
ROLLOUTS = "rollouts"
"""Transitions of the model."""
IMPORTED = "imported"
"""Real transitions from elsewhere, which a run may begin with."""
UPDATES = "rows_by_update"
"""How many rows each model update made, in a file with the rollouts of several."""
COLLECTOR = "collector/"
"""What the names of the collector's arrays begin with"""
COLUMNS: dict[str, tuple[type[np.generic], int]] = {
    "observations": (np.float32, 2),
    "actions": (np.float32, 2),
    "rewards": (np.float32, 1),
    "next_observations": (np.float32, 2),
    "terminations": (np.bool_, 1),
    "truncations": (np.bool_, 1),
    "episodes": (np.int64, 1),
}
"""Type and dimensions of each array of transitions"""


@dataclass
class Transitions:
    """A batch of transitions in the order in which they happened.

    Actions are those of the policy, in [−1, 1]. An episode (a branch, in model rollouts) is a run of rows with
    one number in `episodes`; it may go on in the next file.
    """

    observations: NDArray[np.float32]
    """(rows, obs_dim)"""
    actions: NDArray[np.float32]
    """(rows, act_dim)"""
    rewards: NDArray[np.float32]
    """(rows,)"""
    next_observations: NDArray[np.float32]
    """(rows, obs_dim)"""
    terminations: NDArray[np.bool_]
    """(rows,): the state reached is terminal; cuts the bootstrap."""
    truncations: NDArray[np.bool_]
    """(rows,): the time limit ended the episode; does not cut the bootstrap."""
    episodes: NDArray[np.int64]
    """(rows,): number of the episode within the run, or of the branch within the rollouts."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of an observation and of an action."""
        return self.observations.shape[1], self.actions.shape[1]

    def rows(self, index: Any) -> "Transitions":
        """Some rows, by any numpy index."""
        return Transitions(*(getattr(self, name.name)[index] for name in fields(self)))

    def append(self, more: "Transitions") -> None:
        """Add rows at the end, in place: a large array is moved by its pages, so that it never exists twice.

        The arrays must be this batch's own, and no other array a view of them.
        """
        before = len(self)
        for name in fields(self):
            values, new = getattr(self, name.name), getattr(more, name.name)
            values.resize((before + len(new), *new.shape[1:]), refcheck=False)
            values[before:] = new


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """One batch of the rows of all `parts`, in order."""
    return Transitions(*(np.concatenate([getattr(part, name.name) for part in parts]) for name in fields(Transitions)))


def write(
    path: Path,
    header: Header,
    transitions: Transitions,
    collector: Mapping[str, NDArray[Any]] | None = None,
    updates: Sequence[int] = (),
) -> str:
    """Write transitions, with the collector's state at their end where there is one.

    Args:
        updates: of rollouts after several model updates, the rows that each of them made, oldest first.

    Returns:
        The artifact's digest.
    """
    arrays = {UPDATES: np.array(updates, dtype=np.int64)} if updates else {}
    arrays |= {name.name: getattr(transitions, name.name) for name in fields(Transitions)}
    arrays |= {f"{COLLECTOR}{key}": values for key, values in (collector or {}).items()}
    return hdf5.write(path, header, arrays)


def read(path: Path, kind: str = KIND) -> tuple[Header, Transitions]:
    """Read one file of transitions, real ones, `ROLLOUTS` or `IMPORTED`.

    Raises:
        UsbpoError: it is missing, damaged, of another kind, of unequal lengths, or holds NaN or infinities.
    """
    with hdf5.opened(path, kind) as arrays:
        return arrays.header, rows_in(arrays)


def rows_in(arrays: Arrays) -> Transitions:
    """The transitions of an open file.

    Raises:
        UsbpoError: as `read`.
    """
    path, taken = arrays.path, {}
    for name, (number, dimensions) in COLUMNS.items():
        taken[name] = arrays.take(name, number, dimensions)
    rows = len(taken["rewards"])
    for name, values in taken.items():
        if len(values) != rows:
            raise UsbpoError(f"{path}: {name} has {len(values)} rows, but rewards has {rows}; make it anew.")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UsbpoError(f"{path}: {name} holds NaN or infinity in row {row}; delete it and run again.")
    if taken["observations"].shape != taken["next_observations"].shape:
        raise UsbpoError(f"{path}: observations and next_observations are not of one width; make it anew.")
    return Transitions(**taken)


def read_all(paths: Sequence[Path], kind: str = KIND) -> tuple[list[Header], Transitions]:
    """Read several files into one batch; with the header of each.

    Raises:
        UsbpoError: as `read`, or two are of different runs, or none is given.
    """
    if not paths:
        raise UsbpoError("no transition files are given; name at least one.")
    header, joined = read(paths[0], kind)
    headers = [header]
    for path in paths[1:]:
        header, more = read(path, kind)
        headers[0].same_run(paths[0], header, path)
        _check_widths(path, more, joined)
        joined.append(more)
        headers.append(header)
    return headers, joined


def _check_widths(path: Path, found: Transitions, others: Transitions) -> None:
    if found.widths != others.widths:
        raise UsbpoError(
            f"{path}: it has {found.widths[0]} observations and {found.widths[1]} actions, but the files beside it "
            f"have {others.widths[0]} and {others.widths[1]}; give files of one run."
        )


def read_rollouts(paths: Sequence[Path], updates: int | None = None) -> tuple[list[Header], Transitions]:
    """Read D_model: the rollouts of several files, or of the last `updates` model updates among them.

    Returns:
        The header of each file, and the rows, oldest first.

    Raises:
        UsbpoError: as `read_all`, or there is no row.
    """
    headers: list[Header] = []
    parts: list[Transitions] = []
    missing = updates
    for path in reversed(paths):
        with hdf5.opened(path, ROLLOUTS) as arrays:
            headers.insert(0, arrays.header)
            headers[0].same_run(path, headers[-1], paths[-1])
            if missing == 0:
                continue
            parts.append(rows_in(arrays))  # and nobody else holds them, so that they go as they are joined
            _check_widths(path, parts[-1], parts[0])
            if missing is not None:
                counts = _rows_by_update(arrays, len(parts[-1]))[-missing:]
                missing -= len(counts)
                if sum(counts) < len(parts[-1]):
                    parts[-1] = parts[-1].rows(slice(len(parts[-1]) - sum(counts), None))
    if not any(map(len, parts)):
        raise UsbpoError(f"{paths[-1] if paths else '--rollouts'}: it holds no model rollout; delete it and run again.")
    return headers, _joined(parts)


def _rows_by_update(arrays: Arrays, rows: int) -> list[int]:
    """The rows of each model update in a file of rollouts."""
    counts = [rows]
    if UPDATES in arrays:
        counts = [int(count) for count in arrays.take(UPDATES, np.int64)]
    if sum(counts) != rows or min(counts) < 0:
        raise UsbpoError(f"{arrays.path}: its {UPDATES} do not add up to its {rows} rows; delete it and run again.")
    return counts


def _joined(parts: list[Transitions]) -> Transitions:
    """One batch out of several, the last of which is the first; each is let go when it has been copied."""
    if len(parts) == 1:
        return parts.pop()
    rows, like = sum(map(len, parts)), parts[-1]
    # What has not been written to takes no memory yet.
    whole = Transitions(*(np.empty((rows, *values.shape[1:]), values.dtype) for values in vars(like).values()))
    del like
    begin = 0
    while parts:
        part = parts.pop()
        for name, values in vars(whole).items():
            values[begin : begin + len(part)] = getattr(part, name)
        begin += len(part)
    return whole


def no_transitions(obs_dim: int, act_dim: int) -> Transitions:
    """A batch without rows, to append to."""
    return Transitions(
        observations=np.empty((0, obs_dim), np.float32),
        actions=np.empty((0, act_dim), np.float32),
        rewards=np.empty(0, np.float32),
        next_observations=np.empty((0, obs_dim), np.float32),
        terminations=np.empty(0, np.bool_),
        truncations=np.empty(0, np.bool_),
        episodes=np.empty(0, np.int64),
    )


def read_collector(path: Path) -> tuple[Header, dict[str, NDArray[Any]]]:
    """The collector's state at the end of a shard.

    Raises:
        UsbpoError: as `read`, or the file holds no collector's state (blocks and rollouts do not).
    """
    with hdf5.opened(path, KIND) as arrays:
        names = [name for name in arrays.shapes if name.startswith(COLLECTOR)]
        if not names:
            raise UsbpoError(f"{path}: it holds no collector's state to go on from; name a shard of real data.")
        return arrays.header, {name.removeprefix(COLLECTOR): arrays[name] for name in names}
