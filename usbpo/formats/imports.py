"""Real data from elsewhere, checked against a task, as a file that a run begins with in place of random steps."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
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
from usbpo.formats.recorded import Recorded, first_observations, read_hdf5, read_minari
from usbpo.formats.writing import require_packages

METHOD = "mbpo"
"""The method that is laid over the task, so that all of its keys can be read."""

DIFFERING = 0.01
"""Share of the terminal rows in which the task's termination function may differ from what was recorded: a simulator
may judge by what the observation does not show (`usbpo check-task`)."""

RESETS = 200
"""Beginnings of the task's episodes that tell where these lie"""

OVER_BOUNDS = 1e-5
"""By how much of their range actions may exceed their bounds, which is rounding; they are put back on them."""


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
    if recorded.inferred:
        print(unmarked_ends(recorded, simulator))
    print(
        f"{output}: {len(batch)} steps in {len(last)} episodes of {recorded.source}, mean reward "
        f"{batch.rewards.mean():.4g}, {int(batch.terminations.sum())} terminations ({keys.termination} differs in "
        f"{differing} of {terminal})\n"
        "A run begins with them whose task says, in a file of config/tasks:\n"
        f"{task_keys(task, len(batch), output)}"
    )


def task_keys(task: str, steps: int, file: Path) -> str:
    """The YAML of a task whose runs begin with imported data, which reads back whatever the path holds."""
    keys = {"base": task, "schedule": {"random_steps": steps, "initial_data": str(file)}}
    # None: the inner mapping in one line, as people write it.
    return yaml.safe_dump(
        keys, sort_keys=False, allow_unicode=True, default_flow_style=None, width=float("inf")
    ).rstrip()


def check_fits(recorded: Recorded, simulator: Simulator, task: str) -> None:
    """Check sizes and bounds.

    Raises:
        UsbpoError: the data are of another environment, not finite in single precision, or actions exceed their bounds.
    """
    sizes = recorded.observations.shape[1], recorded.actions.shape[1]
    longer = sizes[0] > simulator.obs_dim and sizes[1] == simulator.act_dim
    or_else = f", or add --observations {simulator.obs_dim} if the task's are the first of these" if longer else ""
    cure = f"name the task of these data{or_else}"
    simulator.require_sizes(f"{recorded.source}: it", sizes, cure, name=f"the task {task}")
    low, high = simulator.low.reshape(-1), simulator.high.reshape(-1)
    slack = OVER_BOUNDS * (high - low)
    outside = np.flatnonzero(((recorded.actions < low - slack) | (recorded.actions > high + slack)).any(axis=1))
    if len(outside):
        row = recorded.numbers[outside[0]]
        raise UsbpoError(
            f"{recorded.source}: the action of row {row} is outside the bounds of {simulator.name}; give actions in "
            "the environment's own units."
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
            f"terminal rows, first in row {recorded.numbers[differ][0]}; name the task of these data."
        )
    return differing, terminal


def unmarked_ends(recorded: Recorded, simulator: Simulator) -> str:
    """What to mind where next observations are those of the rows after: an end that is not marked joins two episodes.

    Two signs tell of such an end: a row that lies where the task's episodes begin, behind one that does not, and an
    episode of more steps than the task allows.
    """
    begins = np.array([simulator.reset(seed) for seed in range(RESETS)])
    centre, half = (begins.max(axis=0) + begins.min(axis=0)) / 2, (begins.max(axis=0) - begins.min(axis=0)) / 2
    at_begin = (np.abs(recorded.next_observations - centre) <= 1.1 * half + 1e-5).all(axis=1)
    elsewhere = (np.abs(recorded.observations - centre) > 3 * half + 1e-4).any(axis=1)
    joined = recorded.numbers[at_begin & elsewhere]
    limit = simulator.time_limit._max_episode_steps
    longer = int((np.bincount(recorded.episodes) >= limit).sum())  # the last step of each is left out
    said = (
        f"mind that {recorded.source} has no next_observations, so that an end which it does not mark becomes a false "
        "transition"
    )
    if len(joined):
        said += f"; {len(joined)} look like one, the first behind row {joined[0]}"
    if longer:
        said += f"; {longer} of its episodes are longer than the {limit} steps of the task's"
    return said + ("; mark where episodes end, and import it again" if len(joined) or longer else "")


def unscaled(actions: NDArray[Any], simulator: Simulator) -> NDArray[np.float32]:
    """The actions in [−1, 1], (rows, act_dim), of those in the environment's units; the inverse of `scaled`."""
    low, high = simulator.low.reshape(-1), simulator.high.reshape(-1)
    scaled: NDArray[np.float64] = (actions.astype(np.float64) - low) / (high - low) * 2.0 - 1.0
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)
