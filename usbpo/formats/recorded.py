"""Real data from elsewhere as other programs store them: datasets of Minari, and HDF5 files with D4RL's names.

A file of somebody's may end the process that reads it, or keep it for ever, so another one reads it first.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from usbpo.errors import UsbpoError

ALTERNATIVES = {"terminations": "terminals", "truncations": "timeouts"}
"""D4RL's names for what Gymnasium calls so."""

VARIABLE = "MINARI_DATASETS_PATH"
"""Environment variable: the folder in which Minari looks for datasets."""

PATIENCE, BYTES_PER_SECOND = 60.0, 5e6
"""Seconds after which a file that is still being read never will be, and what they grow with."""

SMALL, MOST_PACKED = 1 << 26, 1100
"""Bytes that an array may declare if anything is stored of it, and how many times as many as are stored; deflate packs
1,032 zeros into one."""


@dataclass
class Recorded:
    """Real transitions in the environment's own units, in the order in which they happened."""

    source: str
    """Names the data in errors."""
    observations: NDArray[Any]
    """(rows, obs_dim)"""
    actions: NDArray[Any]
    """(rows, act_dim)"""
    rewards: NDArray[Any]
    """(rows,)"""
    next_observations: NDArray[Any]
    """(rows, obs_dim)"""
    terminations: NDArray[np.bool_]
    """(rows,)"""
    truncations: NDArray[np.bool_]
    """(rows,)"""
    episodes: NDArray[np.int64]
    """(rows,): from 0"""
    numbers: NDArray[np.int64]
    """(rows,): where each row stands in the source, which may have rows that are left out here."""
    environment: str = ""
    """Gymnasium id of the environment, where the data name it."""
    left_out: int = 0
    """Numbers at the end of each observation that were recorded and are not taken."""
    inferred: bool = False
    """Whether next observations were not recorded, and are taken from the row after each."""


def read_minari(dataset_id: str) -> Recorded:
    """All episodes of a Minari dataset.

    Raises:
        UsbpoError: there is no such dataset, its spaces are no boxes, or an episode goes on after its end.
    """
    root = Path(os.environ.get(VARIABLE, os.path.expanduser("~/.minari/datasets")))
    if not root.is_dir():  # Minari would make it
        raise UsbpoError(
            f"{dataset_id}: Minari's folder of datasets, {root}, is not there; "
            f"{_how_to_get(dataset_id)}, or set {VARIABLE}."
        )
    check_survives("minari", dataset_id, sum(file.lstat().st_size for file in (root / dataset_id).glob("data/*")))
    import minari
    from gymnasium.spaces import Box

    try:
        dataset = minari.load_dataset(dataset_id)
        spaces = {"observation": dataset.observation_space, "action": dataset.action_space}
        for name, space in spaces.items():
            if not isinstance(space, Box):
                raise UsbpoError(f"{dataset_id}: its {name} space is {type(space).__name__}, but must be a Box.")
        episodes = list(dataset.iterate_episodes())
    except UsbpoError:
        raise
    except Exception as error:  # whatever Minari and HDF5 raise of what they do not find, or of a damaged file
        said, *_ = " ".join(str(error).split()).partition(" Use download=True")  # an argument in Python
        raise UsbpoError(
            f"{dataset_id}: Minari cannot read this dataset ({said.rstrip('.')}); {_how_to_get(dataset_id)}, or set "
            f"{VARIABLE}."
        ) from error
    if not episodes:
        raise UsbpoError(f"{dataset_id}: it has no episodes; name another dataset.")
    for episode in episodes:
        if (episode.terminations | episode.truncations)[:-1].any():
            raise UsbpoError(f"{dataset_id}: episode {episode.id} goes on after its end; take a dataset without that.")

    def joined(arrays: list[Any]) -> NDArray[Any]:
        return np.concatenate([np.asarray(values).reshape(len(values), -1) for values in arrays])

    numbers: dict[str, Any] = {
        "observations": joined([episode.observations[:-1] for episode in episodes]),
        "next_observations": joined([episode.observations[1:] for episode in episodes]),
        "actions": joined([episode.actions for episode in episodes]),
        "rewards": joined([episode.rewards for episode in episodes])[:, 0],
    }
    check_finite(dataset_id, numbers)
    return Recorded(
        source=dataset_id,
        **numbers,
        terminations=joined([episode.terminations for episode in episodes])[:, 0].astype(np.bool_),
        truncations=joined([episode.truncations for episode in episodes])[:, 0].astype(np.bool_),
        episodes=np.repeat(np.arange(len(episodes)), [len(episode) for episode in episodes]),
        numbers=np.arange(len(numbers["rewards"])),
        environment=dataset.env_spec.id if dataset.env_spec else "",
    )


def _how_to_get(dataset_id: str) -> str:
    return f"get it with `minari download {dataset_id}`, which needs `pip install 'minari[hf]'`"


def read_hdf5(path: Path) -> Recorded:
    """The rows of a file as `usbpo.formats.imports.import_hdf5` describes it.

    Raises:
        UsbpoError: the file is missing, damaged, lacks a dataset, or has rows that do not follow from each other.
    """
    if path.is_dir():
        raise UsbpoError(f"{path}: this is a folder; name the HDF5 file that is in it.")
    if not path.is_file():
        raise UsbpoError(f"{path}: there is no such file; name the one with the data.")
    check_survives("hdf5", str(path), path.stat().st_size)
    found = _arrays(path)
    rows = len(found["rewards"])
    if not any(map(len, found.values())):
        raise UsbpoError(f"{path}: it has no rows; name a file that holds steps.")
    for name, values in found.items():
        if len(values) != rows:
            raise UsbpoError(f"{path}: {name} has {len(values)} rows, but rewards has {rows}; give each step one row.")
        if values.size == 0 or (name in ("rewards", *ALTERNATIVES) and values.size != rows):
            raise UsbpoError(f"{path}: {name} has the shape {list(values.shape)}; give each step one number.")
    check_finite(str(path), found)
    terminated, truncated = (found[name].reshape(rows).astype(np.bool_) for name in ALTERNATIVES)
    ended = terminated | truncated
    episodes = np.cumsum(np.concatenate([[0], ended[:-1]])).astype(np.int64)
    observations = found["observations"].reshape(rows, -1)
    goes_on = np.flatnonzero(~ended[:-1])
    if "next_observations" in found:
        known, following = np.arange(rows), found["next_observations"].reshape(rows, -1)
        if following.shape != observations.shape:
            raise UsbpoError(f"{path}: next_observations and observations differ in shape; give both the same.")
        broken = goes_on[
            ~np.isclose(following[goes_on], observations[goes_on + 1], atol=1e-5, equal_nan=True).all(axis=1)
        ]
        if len(broken):
            raise UsbpoError(
                f"{path}: no episode ends in row {broken[0]}, but its next observation is not the observation of the "
                f"row after it; mark where episodes end in {ALTERNATIVES['truncations']}."
            )
    else:
        known, following = goes_on, np.concatenate([observations[1:], observations[:1]])
        if not len(known):
            raise UsbpoError(f"{path}: it has no next_observations and no episode of two steps; add them.")
    return Recorded(
        source=path.name,
        observations=observations[known],
        actions=found["actions"].reshape(rows, -1)[known],
        rewards=found["rewards"].reshape(rows)[known],
        next_observations=following[known],
        terminations=terminated[known],
        truncations=truncated[known],
        episodes=episodes[known],
        numbers=known,
        inferred="next_observations" not in found,
    )


_REQUIRED = ("observations", "actions", "rewards", *ALTERNATIVES)
_NAMES = (*_REQUIRED, "next_observations")


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an HDF5 file, by Gymnasium's names.

    Raises:
        UsbpoError: the file is damaged, of another layout, or lacks one.
    """
    try:
        with h5py.File(path, "r") as file:
            if "header" in file.attrs:
                raise UsbpoError(f"{path}: this is a file of usbpo; `usbpo export minari` its run, and import that.")
            if "episode_0" in file and "rewards" not in file:
                raise UsbpoError(
                    f"{path}: this is a file of a Minari dataset; name the dataset instead, "
                    f"`usbpo import minari {_minari_name(path)}` with {VARIABLE} set to the folder of all datasets."
                )
            return {name: _dataset(path, file, name) for name in _NAMES if name in file or name in _REQUIRED}
    except UsbpoError:
        raise
    except Exception as error:  # whatever HDF5 raises of a damaged file, or numpy of a size that no memory holds
        raise UsbpoError(f"{path}: the file is no HDF5, or is cut short or damaged; get it anew.") from error


def _minari_name(path: Path) -> str:
    """What the metadata beside Minari's file call its dataset; a stand-in where they do not."""
    try:
        name = json.loads(path.with_name("metadata.json").read_bytes())["dataset_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "NAME"
    return name if isinstance(name, str) and name.isprintable() and len(name) < 200 else "NAME"


def _dataset(path: Path, file: h5py.File, name: str) -> NDArray[Any]:
    """An array by its name, or by D4RL's, that is wholly in the file."""
    for known in (name, ALTERNATIVES.get(name, name)):
        link = file.get(known, getlink=True)
        if link is None:
            continue
        if not isinstance(link, h5py.HardLink):
            raise UsbpoError(f"{path}: {known} is a link to somewhere else; store the array itself in the file.")
        dataset = file[known]
        if not isinstance(dataset, h5py.Dataset):
            continue
        if dataset.is_virtual or dataset.external:
            raise UsbpoError(f"{path}: {known} is stored in other files; store the array itself in the file.")
        if dataset.ndim == 0 or dataset.dtype.kind not in "fiub":
            raise UsbpoError(f"{path}: {known} is no array of numbers; write one row for each step.")
        stored = dataset.id.get_storage_size()
        allowed = MOST_PACKED * stored if dataset.nbytes > SMALL or not stored else dataset.nbytes
        if dataset.nbytes > allowed:  # what is not there, HDF5 reads as zeros
            raise UsbpoError(
                f"{path}: {known} has {dataset.nbytes:,} bytes of which {stored:,} are there; get it anew."
            )
        return np.asarray(dataset[()])
    or_else = f" or {ALTERNATIVES[name]}" if name in ALTERNATIVES else ""
    raise UsbpoError(f"{path}: the dataset {name}{or_else} is missing; add it.")


def check_finite(source: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check that single precision holds every number of some arrays (rows, …), by their names.

    Raises:
        UsbpoError: one is NaN, infinite or too large.
    """
    for name, values in arrays.items():
        with np.errstate(over="ignore"):
            held = values.astype(np.float32).reshape(len(values), -1)
        faulty = np.flatnonzero(~np.isfinite(held).all(axis=1))
        if len(faulty):
            raise UsbpoError(
                f"{source}: {name} holds NaN, infinity or what single precision cannot hold in row {faulty[0]}; "
                "leave out its episode."
            )


def first_observations(recorded: Recorded, count: int | None) -> Recorded:
    """The recorded data with the first `count` numbers of each observation; with all where it is None.

    AntTruncated and HumanoidTruncated observe the first numbers of what Gymnasium's Ant and Humanoid do.

    Raises:
        UsbpoError: there are fewer.
    """
    has = recorded.observations.shape[1]
    if count is None:
        return recorded
    if count > has:
        raise UsbpoError(f"{recorded.source}: it has {has} observations, but --observations is {count}; give fewer.")
    taken = {name: getattr(recorded, name)[:, :count] for name in ("observations", "next_observations")}
    return replace(recorded, **taken, left_out=has - count)


def check_survives(kind: str, name: str, size: int) -> None:
    """Check that reading data ends, and ends in order: HDF5 crashes on some damaged files, and never ends with others.

    Args:
        kind: of the data, `hdf5` or `minari`.
        name: the file or the dataset.
        size: bytes on disk.

    Raises:
        UsbpoError: it does not.
    """
    if _READS in os.environ:
        return
    seconds = PATIENCE + size / BYTES_PER_SECOND
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "usbpo.formats.recorded", kind, name],
            env={**os.environ, _READS: "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
        ).returncode
    except subprocess.TimeoutExpired:
        ended = None
    if ended is None or ended < 0:
        how = f"does not end within {seconds:.0f} s" if ended is None else f"crashes (signal {-ended})"
        raise UsbpoError(f"{name}: reading it {how}, so it is damaged; get it anew.")


_READS = "USBPO_READS_FIRST"
"""Environment variable of the process that reads a file first."""


def main(kind: str, name: str) -> None:
    """The process that reads a file first. Whatever it finds, the one that asked will find, too, and say."""
    try:
        read_minari(name) if kind == "minari" else _arrays(Path(name))
    except UsbpoError:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
