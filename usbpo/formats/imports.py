"""Real data from elsewhere, checked against a task, as a file that a run begins with in place of random steps."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from usbpo.artifacts import hdf5, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.environments import terminations
from usbpo.environments.tasks import Simulator
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.loading import load_run
from usbpo.experiment.options import environment_arguments
from usbpo.formats.writing import require_packages

METHOD = "mbpo"
"""The method that is laid over the task, so that all of its keys can be read."""

DIFFERING = 0.01
"""Share of the terminal rows in which the task's termination function may differ from what was recorded: a simulator
may judge by what the observation does not show (`usbpo check-task`)."""

OVER_BOUNDS = 1e-5
"""By how much of their range actions may exceed their bounds, which is rounding; they are put back on them."""

ALTERNATIVES = {"terminations": "terminals", "truncations": "timeouts"}
"""D4RL's names for what Gymnasium calls so."""


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
    environment: str = ""
    """Gymnasium id of the environment, where the data name it."""
    left_out: int = 0
    """Numbers at the end of each observation that were recorded and are not taken."""


def import_minari(dataset_id: str, task: str, output: Path, observations: int | None = None) -> None:
    """Import a Minari dataset that is on this machine.

    Args:
        dataset_id: its name, as Minari knows it; looked for where Minari does (`MINARI_DATASETS_PATH`).
        task: task that it is checked against.
        output: file to write; an older import is replaced, anything else is not.
        observations: how many numbers of each observation are taken, from the first on; all without it.

    Raises:
        UsbpoError: Minari is not installed, there is no such dataset, it does not fit the task, or the output cannot
            be written.
    """
    require_packages("a Minari dataset", "minari")
    check_output(output)
    write_imported(first_observations(read_minari(dataset_id), observations), task, output)


def import_hdf5(file: Path, task: str, output: Path, observations: int | None = None) -> None:
    """Import an HDF5 file with the datasets of D4RL, or the same by Gymnasium's names.

    Args:
        file: with `observations`, `actions`, `rewards`, `terminals` or `terminations`, `timeouts` or `truncations`
            and, where it has them, `next_observations`; one row a step. Without the last, where the last step of an
            episode led is not known, and it is left out.
        task: task that it is checked against.
        output: file to write; an older import is replaced, anything else is not.
        observations: how many numbers of each observation are taken, from the first on; all without it.

    Raises:
        UsbpoError: the file is missing, damaged, of another layout or does not fit the task, or the output cannot be
            written.
    """
    check_output(output, file)
    write_imported(first_observations(read_hdf5(file), observations), task, output)


def check_output(output: Path, file: Path | None = None) -> None:
    """Check that nothing is lost by writing: only an older import may be there.

    Args:
        output: file to write.
        file: the one that is read, if it is one.

    Raises:
        UsbpoError: the output is there and is no import, or is the file that is read, by whatever name.
    """
    if not os.path.exists(output):
        return
    if file is not None and os.path.exists(file) and output.samefile(file):
        raise UsbpoError(f"{output}: this is the file that is read; choose another --output.")
    try:
        with hdf5.opened(output, transitions.IMPORTED):
            pass
    except (UsbpoError, OSError) as error:
        raise UsbpoError(
            f"{output}: it is there and is no file of `usbpo import`, so it is not replaced; choose another --output."
        ) from error


def read_minari(dataset_id: str) -> Recorded:
    """All episodes of a Minari dataset.

    Raises:
        UsbpoError: there is no such dataset, its spaces are no boxes, or an episode goes on after its end.
    """
    import minari
    from gymnasium.spaces import Box

    try:
        dataset = minari.load_dataset(dataset_id)
        spaces = {"observation": dataset.observation_space, "action": dataset.action_space}
        for name, space in spaces.items():
            if not isinstance(space, Box):
                raise UsbpoError(f"{dataset_id}: its {name} space is {type(space).__name__}, but must be a Box.")
        episodes = list(dataset.iterate_episodes())
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        said, *_ = " ".join(str(error).split()).partition(" Use download=True")  # an argument in Python
        raise UsbpoError(
            f"{dataset_id}: Minari cannot read this dataset ({said.rstrip('.')}); get it with "
            f"`minari download {dataset_id}`, which needs `pip install 'minari[hf]'`, or set MINARI_DATASETS_PATH."
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
        environment=dataset.env_spec.id if dataset.env_spec else "",
    )


def read_hdf5(path: Path) -> Recorded:
    """The rows of a file as `import_hdf5` describes it.

    Raises:
        UsbpoError: the file is missing, damaged, lacks a dataset, or has rows that do not follow from each other.
    """
    if path.is_dir():
        raise UsbpoError(f"{path}: this is a folder; name the HDF5 file that is in it.")
    if not path.is_file():
        raise UsbpoError(f"{path}: there is no such file; name the one with the data.")
    try:
        with h5py.File(path, "r") as file:
            if "header" in file.attrs:
                raise UsbpoError(f"{path}: this is a file of usbpo; `usbpo export minari` its run, and import that.")
            found = {name: _dataset(path, file, name) for name in _NAMES if name in file or name in _REQUIRED}
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UsbpoError(f"{path}: the file is no HDF5, or is cut short or damaged; get it anew.") from error
    rows = len(found["rewards"])
    if not any(map(len, found.values())):
        raise UsbpoError(f"{path}: it has no rows; name a file that holds steps.")
    for name, values in found.items():
        if len(values) != rows:
            raise UsbpoError(f"{path}: {name} has {len(values)} rows, but rewards has {rows}; give each step one row.")
        if name in ("rewards", *ALTERNATIVES) and values.size != rows:
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
    )


_REQUIRED = ("observations", "actions", "rewards", *ALTERNATIVES)
_NAMES = (*_REQUIRED, "next_observations")


def _dataset(path: Path, file: h5py.File, name: str) -> NDArray[Any]:
    """An array by its name, or by D4RL's."""
    for known in (name, ALTERNATIVES.get(name, name)):
        if isinstance(file.get(known), h5py.Dataset):
            values = np.asarray(file[known][()])
            if values.ndim == 0 or values.dtype.kind not in "fiub":
                raise UsbpoError(f"{path}: {known} is no array of numbers; write one row for each step.")
            return values
    or_else = f" or {ALTERNATIVES[name]}" if name in ALTERNATIVES else ""
    raise UsbpoError(f"{path}: the dataset {name}{or_else} is missing; add it.")


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


def write_imported(recorded: Recorded, task: str, output: Path) -> None:
    """Check recorded data against a task, write them in our own format, and say how a run begins with them.

    Actions are scaled to [−1, 1], numbers are stored in single precision, and where the recording stops within an
    episode, that counts as a truncation.

    Raises:
        UsbpoError: the task is unknown, its environment cannot be made, the data do not fit it, or the output cannot
            be written.
    """
    keys = load_run(task, METHOD, FOLDERS).environment
    simulator = Simulator(keys.id, keys.arguments)
    simulator.close()
    check_fits(recorded, simulator, task)
    differing, terminal = check_terminations(recorded, keys.termination)
    truncations = recorded.truncations.copy()
    last = np.flatnonzero(np.diff(recorded.episodes, append=recorded.episodes[-1] + 1))
    truncations[last] |= ~recorded.terminations[last]
    batch = Transitions(
        observations=recorded.observations.astype(np.float32),
        actions=unscaled(recorded.actions, simulator),
        rewards=recorded.rewards.astype(np.float32),
        next_observations=recorded.next_observations.astype(np.float32),
        terminations=recorded.terminations,
        truncations=truncations,
        episodes=recorded.episodes,
    )
    parameters = {
        "source": recorded.source,
        "environment": keys.id,
        "environment_arguments": environment_arguments(keys),
        "termination": keys.termination,
        **({"observations_left_out": recorded.left_out} if recorded.left_out else {}),
    }
    transitions.write(output, Header(transitions.IMPORTED, task, 0, 0, parameters), batch)
    if recorded.environment not in ("", keys.id.rpartition(":")[2]):
        print(f"mind that {recorded.source} was recorded in {recorded.environment}, and {task} is {keys.id}")
    print(
        f"{output}: {len(batch)} steps in {len(last)} episodes of {recorded.source}, mean reward "
        f"{batch.rewards.mean():.4g}, {int(batch.terminations.sum())} terminations ({keys.termination} differs in "
        f"{differing} of {terminal})\n"
        "A run begins with them whose task says, in a file of config/tasks:\n"
        f"base: {task}\nschedule: {{random_steps: {len(batch)}, initial_data: {output}}}"
    )


def check_fits(recorded: Recorded, simulator: Simulator, task: str) -> None:
    """Check sizes and bounds.

    Raises:
        UsbpoError: the data are of another environment, not finite in single precision, or actions exceed their bounds.
    """
    sizes = recorded.observations.shape[1], recorded.actions.shape[1]
    if sizes != (simulator.obs_dim, simulator.act_dim):
        longer = sizes[0] > simulator.obs_dim and sizes[1] == simulator.act_dim
        or_else = f", or add --observations {simulator.obs_dim} if the task's are the first of these" if longer else ""
        raise UsbpoError(
            f"{recorded.source}: it has {sizes[0]} observations and {sizes[1]} actions, but the task {task} has "
            f"{simulator.obs_dim} and {simulator.act_dim}; name the task of these data{or_else}."
        )
    low, high = simulator.low.reshape(-1), simulator.high.reshape(-1)
    slack = OVER_BOUNDS * (high - low)
    outside = np.flatnonzero(((recorded.actions < low - slack) | (recorded.actions > high + slack)).any(axis=1))
    if len(outside):
        raise UsbpoError(
            f"{recorded.source}: the action of row {outside[0]} is outside the bounds of {simulator.name}; "
            "give actions in the environment's own units."
        )


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


def check_terminations(recorded: Recorded, termination: str) -> tuple[int, int]:
    """Check that a task's termination function says what was recorded.

    Returns:
        Rows in which the two differ, and rows that either calls terminal.

    Raises:
        UsbpoError: they differ in more than `DIFFERING` of these.
    """
    verdict = terminations.find(termination)(recorded.next_observations)
    differ = verdict != recorded.terminations
    differing, terminal = int(differ.sum()), int((verdict | recorded.terminations).sum())
    if differing > DIFFERING * terminal:
        raise UsbpoError(
            f"{recorded.source}: {termination!r} differs from the recorded terminations in {differing} of {terminal} "
            f"terminal rows, first in row {int(np.flatnonzero(differ)[0])}; name the task of these data."
        )
    return differing, terminal


def unscaled(actions: NDArray[Any], simulator: Simulator) -> NDArray[np.float32]:
    """The actions in [−1, 1], (rows, act_dim), of those in the environment's units; the inverse of `scaled`."""
    low, high = simulator.low.reshape(-1), simulator.high.reshape(-1)
    scaled: NDArray[np.float64] = (actions.astype(np.float64) - low) / (high - low) * 2.0 - 1.0
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)
