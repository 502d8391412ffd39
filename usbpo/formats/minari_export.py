"""A run's real data as a Minari dataset: episodes in the environment's own units, with seeds, task and versions.

Minari's own collector steps an environment and needs JAX; the real data are there already, so they are handed over as
episodes.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usbpo.artifacts import layout, transitions
from usbpo.artifacts.header import Header, check_place
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.tasks import Simulator, read_arguments
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun
from usbpo.formats.environment import environment_of
from usbpo.formats.recorded import VARIABLE
from usbpo.formats.writing import require_packages, writing_folder
from usbpo.stages.collect import END_WITH_CYCLE, environment_seed

REQUIRED = ("gymnasium", "mujoco")
"""The packages whose versions a reader of the dataset needs to know"""


@dataclass(frozen=True)
class RealData:
    """All real transitions of a run, and what its shards say of themselves."""

    transitions: Transitions
    headers: dict[Path, Header]
    """Those of the shards, by their paths, in order"""
    reset_seeds: dict[int, int]
    """By number of the episode, the seed that its reset was given; the other episodes go on with the generator."""
    initial_data: Mapping[str, Any] | None
    """What the first shard says of imported data that the run began with, and their rows; None where there are none."""

    @property
    def last(self) -> Header:
        """The header of the last shard."""
        return list(self.headers.values())[-1]


def dataset_id(run: NamedRun) -> str:
    """The name under which Minari finds a run's data; it allows no dots."""
    return f"{run.task}-{run.method}-seed-{run.seed}-v0".replace(".", "_")


def export_minari(
    run: NamedRun, output: Path, environment: str | None = None, environment_arguments: str | None = None
) -> Path:
    """Write all real data of a run as a Minari dataset; one that is there already is replaced.

    Actions are those that the environment was given, in its own units; observations, and rewards, have the single
    precision of the run. The last episode, where it had not ended, is marked as truncated, as Minari's own collector
    does. Where the environment is registered as what has no name, such as a lambda, the dataset does not tell it.
    Equal inputs and versions give equal bytes.

    Args:
        run: the run.
        output: Minari's folder of datasets (`MINARI_DATASETS_PATH`).
        environment, environment_arguments: as in `environment_of`.

    Returns:
        The dataset's folder.

    Raises:
        UsbpoError: Minari is not installed, the run has no real data, a shard is missing or damaged, nothing tells its
            environment or that cannot be made or is of other sizes, or the dataset cannot be written.
    """
    require_packages("a Minari dataset", "minari")
    import minari

    data = real_data(run)
    told = environment_of(run, data.headers.items(), environment, environment_arguments)
    simulator = Simulator(told[0], read_arguments(told[1]))
    simulator.require_sizes("the run", data.transitions.widths, "name the environment that it was collected in")
    episodes = [minari.data_collector.EpisodeBuffer(**episode) for episode in episodes_of(data, simulator)]
    name, versions = dataset_id(run), data.last.versions
    with writing_folder(output / name) as temporary, _datasets_in(temporary), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an author, an address and a permanent link
        dataset = minari.create_dataset_from_buffers(
            name,
            buffer=episodes,
            env=storable_spec(simulator.env),
            observation_space=simulator.env.observation_space,
            action_space=simulator.env.action_space,
            algorithm_name=run.method,
            description=description_of(run, data),
            requirements=[f"{package}=={versions[package]}" for package in REQUIRED if package in versions],
            data_format="hdf5",
            jpeg_encoding=False,
        )
        dataset.storage.update_metadata({"usbpo": _provenance(run, data, told)})
        for made in sorted((temporary / name).iterdir()):
            made.rename(temporary / made.name)
        (temporary / name).rmdir()
    simulator.close()
    print(
        f"{output / name}: {len(data.transitions)} steps in {len(episodes)} episodes; "
        f"with {VARIABLE}={output}, minari.load_dataset({name!r}) reads it"
    )
    return output / name


def real_data(run: NamedRun) -> RealData:
    """All shards of a run.

    Raises:
        UsbpoError: there is none, or one is missing or damaged.
    """
    shards = sorted(run.path(layout.SHARD, 0).parent.glob(f"{'[0-9]' * 5}.h5"))
    if not shards:
        raise UsbpoError(f"{run.path(layout.SHARD, 0)}: the run has no real data yet; run it on, or name another run.")
    parts: list[Transitions] = []
    headers: dict[Path, Header] = {}
    seeds: dict[int, int] = {}
    initial_data = None
    for cycle in range(int(shards[-1].stem) + 1):
        path = run.path(layout.SHARD, cycle)
        header, batch = transitions.read(path)
        check_place(path, header.identity, run.task, run.method, run.seed, cycle)
        check_follows(path, batch, parts)
        imported = _imported(path, header)
        first, last = int(batch.episodes[0]), int(batch.episodes[-1])
        if imported is not None:
            initial_data = {**imported, "rows": len(batch)}
        if header.parameters.get("episodes") == END_WITH_CYCLE:
            seeds |= {first: environment_seed(run.seed, cycle)} if imported is None else {}
        elif cycle == 0:
            seeds[first if imported is None else last + 1] = environment_seed(run.seed, 0)
        headers[path] = header
        parts.append(batch)
    return RealData(transitions.concatenate(parts), headers, seeds, initial_data)


def check_follows(path: Path, batch: Transitions, before: Sequence[Transitions]) -> None:
    """Check that a shard has rows, of the sizes of those before.

    Raises:
        UsbpoError: it has none, or others.
    """
    if not len(batch):
        raise UsbpoError(f"{path}: it has no rows; delete it and run again.")
    for name in ("observations", "next_observations", "actions"):
        sizes = [getattr(part, name).shape[1:] for part in (*before[:1], batch)]
        if len(set(sizes)) > 1:
            raise UsbpoError(
                f"{path}: its {name} have the shape {list(sizes[1])} a row, but the run's first {list(sizes[0])}; "
                "put the run's own shard there, or delete it and run again."
            )


def _imported(path: Path, header: Header) -> Mapping[str, Any] | None:
    """What a shard says of the imported data that it begins with; None where it begins with none.

    Raises:
        UsbpoError: it does not say from where they are.
    """
    found = header.parameters.get("initial_data")
    if found is not None and not (isinstance(found, Mapping) and isinstance(found.get("source"), str)):
        raise UsbpoError(f"{path}: its header does not say from where its rows are; delete it and run again.")
    return found


def description_of(run: NamedRun, data: RealData) -> str:
    """Where the data come from, in words."""
    who = f"{run.method} collected on {run.task} with seed {run.seed}, by usbpo"
    if data.initial_data is None:
        return f"Real data that {who}."
    rows, source = data.initial_data["rows"], data.initial_data["source"]
    return f"The first {rows} steps are imported from {source}; the others are real data that {who}."


def episodes_of(data: RealData, simulator: Simulator) -> Iterator[dict[str, Any]]:
    """The episodes, as the arguments of Minari's `EpisodeBuffer`.

    Observations are (steps + 1, …) and actions (steps, …), in the shapes and types of the environment's spaces.

    Raises:
        UsbpoError: the rows of an episode do not follow from each other.
    """
    rows, env = data.transitions, simulator.env
    begins = np.flatnonzero(np.diff(rows.episodes, prepend=rows.episodes[0] - 1))
    for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
        episode = rows.rows(slice(begin, end))
        if (episode.next_observations[:-1] != episode.observations[1:]).any():
            raise UsbpoError(
                f"the steps of episode {episode.episodes[0]} do not follow from each other; collect its data anew."
            )
        observations = np.concatenate([episode.observations, episode.next_observations[-1:]])
        actions = np.stack([simulator.scaled(action) for action in episode.actions])
        truncations = episode.truncations.copy()
        truncations[-1] |= not episode.terminations[-1]
        yield {
            "seed": data.reset_seeds.get(int(episode.episodes[0])),
            "observations": _shaped(observations, env.observation_space),
            "actions": _shaped(actions, env.action_space),
            "rewards": episode.rewards,
            "terminations": episode.terminations,
            "truncations": truncations,
        }


def storable_spec(env: Any) -> Any:
    """The environment's specification, with a class of the user's by its name; None where it cannot be stored."""
    spec = env.spec
    if callable(spec.entry_point):
        spec = replace(spec, entry_point=f"{spec.entry_point.__module__}:{spec.entry_point.__qualname__}")
    try:
        spec.to_json()
    except (TypeError, ValueError):
        return None
    return None if "<" in spec.entry_point else spec


def _shaped(values: NDArray[Any], space: Any) -> NDArray[Any]:
    """Rows in the shape and type of a space; what single precision rounded over its bounds is put back on them."""
    shaped: NDArray[Any] = values.reshape(len(values), *space.shape).astype(space.dtype)
    np.clip(shaped, space.low, space.high, out=shaped)
    return shaped


def _provenance(run: NamedRun, data: RealData, environment: tuple[str, str]) -> dict[str, Any]:
    """Whose data they are, for the dataset's metadata."""
    header = data.last
    return {
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
        "cycles": header.cycle,
        "environment": environment[0],
        "environment_arguments": read_arguments(environment[1]),
        "versions": dict(header.versions),
        **({} if data.initial_data is None else {"initial_data": dict(data.initial_data)}),
    }


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Have Minari look for and write its datasets in a folder; it takes that from the environment alone."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder.resolve())
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before
