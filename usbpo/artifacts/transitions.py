"""Transitions on disk: D_env shards and blocks, model rollouts, and the collector's state, all HDF5."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from usbpo.artifacts.files import require, writing
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
CHUNK_ROWS = 4096


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


@contextmanager
def create(path: Path, header: Header) -> Iterator[h5py.File]:
    """A new HDF5 artifact, moved into place when it is whole; its header stands in plain attributes and as one JSON."""
    with writing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["kind"] = header.kind
        file.attrs["schema_version"] = header.schema_version
        file.attrs["task"] = header.task
        file.attrs["seed"] = header.seed
        file.attrs["cycle"] = header.cycle
        for package, number in header.versions.items():
            file.attrs[f"{package}_version"] = number
        file.attrs["header"] = header.to_json()
        yield file
        file.flush()


def put(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Store one array, checksummed, in chunks of whole rows; a scalar has one row."""
    values = np.atleast_1d(values)  # HDF5 checksums chunks, and a scalar has none
    if not len(values):  # nor has an array without rows
        group.create_dataset(name, data=values, track_times=False)
        return
    chunk = (min(len(values), CHUNK_ROWS), *values.shape[1:])
    group.create_dataset(name, data=values, chunks=chunk, fletcher32=True, track_times=False)


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[h5py.File, Header]]:
    """An HDF5 artifact of one kind, open for reading, with its header.

    Raises:
        UsbpoError: it is missing, cut short, damaged, or of another kind.
    """
    require(path, ".h5")
    try:
        with h5py.File(path, "r") as file:
            if "header" not in file.attrs:
                raise UsbpoError(f"{path}: this HDF5 file was not written by usbpo; name one that was.")
            header = Header.from_json(path, str(file.attrs["header"]))
            header.expect(path, kind)
            yield file, header
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UsbpoError(
            f"{path}: the file is cut short or damaged and cannot be read; delete it and run again to make it anew."
        ) from error


def write(
    path: Path,
    header: Header,
    transitions: Transitions,
    collector: Mapping[str, NDArray[Any]] | None = None,
    updates: Sequence[int] = (),
) -> None:
    """Write transitions, with the collector's state at their end where there is one.

    Args:
        updates: of rollouts after several model updates, the rows that each of them made, oldest first.
    """
    with create(path, header) as file:
        if updates:
            put(file, UPDATES, np.array(updates, dtype=np.int64))
        for name in fields(Transitions):
            put(file, name.name, getattr(transitions, name.name))
        if collector is not None:
            group = file.create_group("collector")
            for key, values in collector.items():
                put(group, key, values)


def read(path: Path, kind: str = KIND) -> tuple[Header, Transitions]:
    """Read one file of transitions, real ones, `ROLLOUTS` or `IMPORTED`.

    Raises:
        UsbpoError: it is missing, damaged, of another kind, of unequal lengths, or holds NaN or infinities.
    """
    with opened(path, kind) as (file, header):
        transitions = Transitions(*(file[name.name][()] for name in fields(Transitions)))
    for name in fields(Transitions):
        values = getattr(transitions, name.name)
        if len(values) != len(transitions):
            raise UsbpoError(
                f"{path}: {name.name} has {len(values)} rows, but rewards has {len(transitions)}; make it anew."
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UsbpoError(f"{path}: {name.name} holds NaN or infinity in row {row}; delete it and run again.")
    return header, transitions


def read_all(paths: Sequence[Path], kind: str = KIND) -> tuple[Header, Transitions]:
    """Read several files of one run into one batch; the header is the last file's.

    Raises:
        UsbpoError: as `read`, or the files belong to different tasks or seeds, or none is given.
    """
    if not paths:
        raise UsbpoError("no transition files are given; name at least one.")
    first, joined = read(paths[0], kind)
    last = first
    for path in paths[1:]:
        last, more = read(path, kind)
        first.same_run(paths[0], last, path)
        joined.append(more)
    return last, joined


def read_rollouts(paths: Sequence[Path], updates: int | None = None) -> tuple[Header, Transitions]:
    """Read D_model: the rollouts of several files, or of the last `updates` model updates among them.

    Raises:
        UsbpoError: as `read_all`, or there is no row.
    """
    rows = None
    if updates is not None:
        by_update = [(path, count) for path in paths for count in _rows_by_update(path)][-updates:]
        kept = {path for path, _ in by_update}
        paths, rows = [path for path in paths if path in kept], sum(count for _, count in by_update)
    header, made = read_all(paths, ROLLOUTS)
    if not len(made):
        raise UsbpoError(f"{paths[-1]}: it holds no model rollout; delete it and run again.")
    return header, made if rows is None else made.rows(slice(len(made) - rows, None))


def _rows_by_update(path: Path) -> list[int]:
    """The rows of each model update in a file of rollouts."""
    with opened(path, ROLLOUTS) as (file, _):
        rows = len(file["rewards"])
        counts = [int(count) for count in file[UPDATES][()]] if UPDATES in file else [rows]
    if sum(counts) != rows or min(counts) < 0:
        raise UsbpoError(f"{path}: its {UPDATES} do not add up to its {rows} rows; delete it and run again.")
    return counts


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
    with opened(path, KIND) as (file, header):
        if "collector" not in file:
            raise UsbpoError(f"{path}: it holds no collector's state to go on from; name a shard of real data.")
        return header, {key: values[()] for key, values in file["collector"].items()}
