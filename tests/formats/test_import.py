"""Real data from elsewhere: checked, written in our own format, and what a run begins with in place of random steps."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import yaml
from helpers.workflow import REPO, Job, jobs, planned, snakemake, tree

from usbpo.artifacts import hdf5, transitions
from usbpo.artifacts.header import Header
from usbpo.commands import cli
from usbpo.environments.tasks import Simulator
from usbpo.experiment.loading import load_run
from usbpo.formats.imports import unscaled, write_imported
from usbpo.formats.recorded import VARIABLE, read_hdf5
from usbpo.stages.collect import collect
from usbpo.stages.initialise import initialise

ENVIRONMENT = "InvertedPendulum-v5"
RUN = "from-data/test-usbpo/seed-0"
FIELDS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
D4RL = {"terminations": "terminals", "truncations": "timeouts"}
STEPS = 80


def recording(steps: int = STEPS, seed: int = 0, environment: str = ENVIRONMENT) -> dict[str, Any]:
    """Steps of the pendulum, unless said, with random actions in its own units; the last one is cut."""
    env, rng = gymnasium.make(environment), np.random.default_rng(seed)
    space = env.action_space
    rows: dict[str, list[Any]] = {name: [] for name in FIELDS}
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = rng.uniform(space.low, space.high).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(FIELDS, (observation, action, reward, following, terminated, truncated), strict=True):
            rows[name].append(value)
        observation = env.reset()[0] if terminated or truncated else following
    rows["truncations"][-1] = not rows["terminations"][-1]
    return {name: np.array(values) for name, values in rows.items()} | {"rewards": np.array(rows["rewards"], float)}


def write_hdf5(path: Path, rows: dict[str, Any], names: dict[str, str] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in rows.items():
            file[(names or {}).get(name, name)] = values
    return path


def import_hdf5(file: Path, output: Path, task: str = "test-pendulum") -> transitions.Transitions:
    assert cli.main(["import", "hdf5", str(file), "--task", task, "--output", str(output)]) == 0
    return transitions.read(output, transitions.IMPORTED)[1]


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return recording()


@pytest.fixture(scope="module")
def imported(rows: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording in our own format."""
    folder = tmp_path_factory.mktemp("imported")
    import_hdf5(write_hdf5(folder / "recording.hdf5", rows), folder / "recording.h5")
    return folder / "recording.h5"


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_an_hdf5_file_is_read_with_actions_scaled_and_episodes_counted(rows: dict[str, Any], imported: Path) -> None:
    header, batch = transitions.read(imported, transitions.IMPORTED)
    assert np.allclose(batch.actions, rows["actions"] / 3.0, atol=1e-6)
    for name in set(FIELDS) - {"actions"}:
        assert np.array_equal(getattr(batch, name), rows[name].astype(getattr(batch, name).dtype)), name
    ended = rows["terminations"] | rows["truncations"]
    assert ended.sum() > 5
    assert np.array_equal(batch.episodes, np.cumsum(ended) - ended)
    assert header.parameters == {
        "source": "recording.hdf5",
        "environment": ENVIRONMENT,
        "environment_arguments": "{}",
        "termination": "inverted_pendulum",
    }


def test_d4rls_names_give_the_same_bytes(rows: dict[str, Any], imported: Path, tmp_path: Path) -> None:
    import_hdf5(write_hdf5(tmp_path / "recording.hdf5", rows, D4RL), tmp_path / "d4rl.h5")
    assert (tmp_path / "d4rl.h5").read_bytes() == imported.read_bytes()


def test_without_next_observations_the_last_step_of_each_episode_is_left_out(
    rows: dict[str, Any], imported: Path, tmp_path: Path
) -> None:
    without = {name: values for name, values in rows.items() if name != "next_observations"}
    made = import_hdf5(write_hdf5(tmp_path / "without.hdf5", without), tmp_path / "without.h5")
    whole = transitions.read(imported, transitions.IMPORTED)[1]
    ended = rows["terminations"] | rows["truncations"]
    assert len(made) == STEPS - ended.sum()
    for name in ("observations", "actions", "rewards", "next_observations", "episodes"):
        assert np.array_equal(getattr(made, name), getattr(whole.rows(~ended), name)), name
    assert np.array_equal(made.truncations, np.diff(made.episodes, append=made.episodes[-1] + 1) > 0)


@pytest.mark.parametrize(("environment", "task"), [("Ant-v5", "AntTruncated"), ("Humanoid-v5", "HumanoidTruncated")])
def test_the_first_observations_are_what_a_task_without_contact_forces_observes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], environment: str, task: str
) -> None:
    keys = load_run(task, "mbpo", (REPO / "config",)).environment
    whole, simulator = recording(300, environment=environment), Simulator(keys.id, keys.arguments)
    file, out = write_hdf5(tmp_path / "whole.hdf5", whole), tmp_path / "out.h5"
    words = ["import", "hdf5", str(file), "--task", task, "--output", str(out), "--observations"]
    assert cli.main([*words, str(simulator.obs_dim)]) == 0
    header, batch = transitions.read(out, transitions.IMPORTED)
    assert header.parameters["observations_left_out"] == whole["observations"].shape[1] - simulator.obs_dim > 0
    observation = simulator.reset(0)
    for row, action in enumerate(whole["actions"]):
        following, _, terminated, truncated, _ = simulator.env.step(action)
        assert np.array_equal(batch.observations[row], observation.astype(np.float32))
        assert np.array_equal(batch.next_observations[row], following.astype(np.float32))
        assert terminated == batch.terminations[row]
        observation = simulator.reset() if terminated or truncated else following
    capfd.readouterr()
    assert cli.main([*words, "400"]) == 1
    has = whole["observations"].shape[1]
    assert f"whole.hdf5: it has {has} observations, but --observations is 400; give fewer.\n" in capfd.readouterr().err


def test_what_was_exported_to_minari_comes_back(
    rows: dict[str, Any], imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari", reason="the optional dependencies `export` are not installed")
    root = tmp_path / "root"
    shard = root / "data/runs/from-data/m/seed-0/data/00000.h5"
    collect(**begin(shard, imported), seed=0, cycle=0, task="from-data", method="m")
    words = ["export", "minari", "from-data/m/seed-0", "--folder", str(root), "--output", str(tmp_path / "datasets")]
    assert cli.main([*words, "--environment", ENVIRONMENT]) == 0
    monkeypatch.setenv(VARIABLE, str(tmp_path / "datasets"))
    dataset = minari.load_dataset("from-data-m-seed-0-v0")
    said = dataset.storage.metadata
    assert said["description"] == (
        "The first 80 steps are imported from recording.hdf5; the others are real data that m collected on from-data "
        "with seed 0, by usbpo."
    )
    assert said["usbpo"]["initial_data"] == {
        **{"source": "recording.hdf5", "rows": 80, "environment": ENVIRONMENT, "environment_arguments": "{}"},
        "termination": "inverted_pendulum",
    }
    assert str(tmp_path) not in json.dumps(said["usbpo"])
    out = tmp_path / "back.h5"
    words = ["import", "minari", "from-data-m-seed-0-v0", "--task", "test-pendulum", "--output", str(out)]
    assert cli.main(words) == 0
    once, back = (transitions.read(path, transitions.IMPORTED)[1] for path in (imported, out))
    assert np.allclose(once.actions, back.actions, atol=1e-6)
    for name in ("observations", "rewards", "next_observations", "terminations", "truncations", "episodes"):
        assert np.array_equal(getattr(once, name), getattr(back, name)), name


# ---- what is refused -------------------------------------------------------------------------------------------------


def spoilt(**changes: Callable[[Any], Any] | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Change or, with None, leave out arrays of a recording."""

    def change(rows: dict[str, Any]) -> dict[str, Any]:
        made = {name: values.copy() for name, values in rows.items()}
        for name, function in changes.items():
            if function is None:
                del made[name]
            else:
                made[name] = function(made[name])
        return made

    return change


def with_value(row: int, value: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[row] = value
        return values

    return change


WRONG = {
    "no rewards": (spoilt(rewards=None), "the dataset rewards is missing; add it"),
    "no ends": (spoilt(truncations=None), "the dataset truncations or timeouts is missing"),
    "fewer rows": (spoilt(actions=lambda values: values[:-1]), "actions has 79 rows, but rewards has 80"),
    "NaN": (spoilt(rewards=with_value(7, np.nan)), "rewards holds NaN, infinity or .* in row 7"),
    "too large": (spoilt(next_observations=with_value(79, 1e39)), "next_observations holds NaN, .* in row 79"),
    "other units": (spoilt(actions=with_value(3, 3.1)), "the action of row 3 is outside the bounds"),
    "other task": (
        spoilt(**{name: lambda values: np.tile(values, 2) for name in ("observations", "next_observations")}),
        "it has 8 observations and 1 actions, but the task test-pendulum has 4 and 1; name the task of these data, or "
        "add --observations 4 if the task's are the first of these",
    ),
    "no terminations": (
        spoilt(terminations=np.zeros_like, truncations=lambda values: values | True),
        "'inverted_pendulum' differs from the recorded terminations in ",
    ),
    "gap": (
        spoilt(observations=lambda values: values + 1.0),
        "no episode ends in row 0, but its next observation is not the observation of the row after it",
    ),
    "two rewards": (
        spoilt(rewards=lambda values: np.stack([values, values], axis=1)),
        r"rewards has the shape \[80, 2\]; give each step one number",
    ),
    "NaN in a state": (
        spoilt(observations=with_value(6, np.nan), next_observations=with_value(5, np.nan)),
        "observations holds NaN, .* in row 6",
    ),
    "infinity in an observation alone": (
        spoilt(observations=with_value(6, np.inf)),
        "observations holds NaN, infinity or what single precision cannot hold in row 6",
    ),
    "an observation too large": (spoilt(observations=with_value(6, 1e300)), "observations holds NaN, .* in row 6"),
    "NaN as an end": (
        spoilt(truncations=lambda values: with_value(4, np.nan)(values.astype(float))),
        "truncations holds NaN, .* in row 4",
    ),
    "text": (spoilt(rewards=lambda values: values.astype("S5")), "rewards is no array of numbers"),
    "empty": (spoilt(**{name: lambda values: values[:0] for name in FIELDS}), "it has no rows; name a file that"),
    "empty rewards": (spoilt(rewards=lambda values: values[:0]), "observations has 80 rows, but rewards has 0"),
}


def refused(capfd: pytest.CaptureFixture[str], output: Path, *words: str) -> str:
    """The one sentence with which a command ends that writes nothing, where an older import may be replaced."""
    hdf5.write(output, Header(transitions.IMPORTED, "older", 0, 0), {})
    before = output.read_bytes()
    assert cli.main(["import", *words, "--output", str(output)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("usbpo import: ")
    assert error.endswith(".\n")
    assert len(error.splitlines()) == 1, error
    assert output.read_bytes() == before
    assert not list(output.parent.glob(".*partial"))
    return error


@pytest.mark.parametrize("case", WRONG)
def test_data_that_do_not_fit_the_task_are_refused_in_one_sentence(
    rows: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    change, said = WRONG[case]
    file = write_hdf5(tmp_path / "recording.hdf5", change(rows))
    error = refused(capfd, tmp_path / "out.h5", "hdf5", str(file), "--task", "test-pendulum")
    assert "recording.hdf5: " in error
    assert re.search(said, error), error


def test_files_that_cannot_be_imported_are_named(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out, cut = tmp_path / "out.h5", shutil.copy(imported, tmp_path / "cut.hdf5")
    os.truncate(cut, 3000)

    def said(*words: str, task: str = "test-pendulum") -> str:
        return refused(capfd, out, *words, "--task", task)

    assert "none.hdf5: there is no such file; name the one with the data." in said("hdf5", str(tmp_path / "none.hdf5"))
    assert ": this is a folder; name the HDF5 file that is in it." in said("hdf5", str(tmp_path))
    assert "cut.hdf5: the file is no HDF5, or is cut short or damaged" in said("hdf5", str(cut))
    assert "this is a file of usbpo; `usbpo export minari` its run" in said("hdf5", str(imported))
    assert "unknown task 'none'" in said("hdf5", str(write_hdf5(tmp_path / "r.hdf5", recording(3))), task="none")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "datasets"))
    assert f"Minari's folder of datasets, {tmp_path / 'datasets'}, is not there; get it" in said("minari", "nothing-v0")
    assert not (tmp_path / "datasets").exists()
    (tmp_path / "datasets").mkdir()
    error = said("minari", "nothing-v0")
    assert "nothing-v0: Minari cannot read this dataset" in error
    assert f"(Dataset nothing-v0 not found locally at {tmp_path / 'datasets/nothing-v0'}); get it with " in error
    assert "`minari download nothing-v0`, which needs `pip install 'minari[hf]'`, or set MINARI_DATASETS_PATH." in error
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "`pip install minari`" in said("minari", "nothing-v0")


def test_an_older_import_is_replaced_and_nothing_else(
    rows: dict[str, Any], imported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = write_hdf5(tmp_path / "recording.hdf5", rows), tmp_path / "out.h5"
    import_hdf5(write_hdf5(tmp_path / "other.hdf5", recording(seed=1)), out)
    import_hdf5(file, out)
    assert out.read_bytes() == imported.read_bytes()
    (tmp_path / "symbolic.h5").symlink_to(file)
    os.link(file, tmp_path / "hard.h5")
    (tmp_path / "thesis.tex").write_text("a thesis")
    (tmp_path / "folder.h5").mkdir()
    shutil.copy(file, tmp_path / "copy.hdf5")
    shard = tmp_path / "shard.h5"
    transitions.write(shard, Header(transitions.KIND, "test-pendulum", 0, 0), transitions.read(out, "imported")[1])
    before = tree_of(tmp_path)
    read, there = "this is the file that is read", "it is there and is no file of `usbpo import`"
    for name, said in {
        **{"recording.hdf5": read, "symbolic.h5": read, "hard.h5": read, "folder.h5": there, "shard.h5": there},
        **{"thesis.tex": there, "copy.hdf5": there},
    }.items():
        capfd.readouterr()
        words = ["import", "hdf5", str(file), "--task", "test-pendulum", "--output", str(tmp_path / name)]
        assert cli.main(words) == 1
        error = capfd.readouterr().err
        assert f"{name}: {said}" in error
        assert error.endswith("choose another --output.\n")
        assert len(error.splitlines()) == 1, error
    assert tree_of(tmp_path) == before


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder: by name the content, None of a folder."""
    return {path.name: None if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore::UserWarning:minari")  # it asks for an author and the like
@pytest.mark.parametrize(
    ("changes", "space", "said"),
    [
        ({"terminations": [True, False, False]}, None, "tiny-v0: episode 0 goes on after its end"),
        ({}, gymnasium.spaces.Discrete(2), "tiny-v0: its action space is Discrete, but must be a Box"),
    ],
)
def test_a_minari_dataset_of_another_kind_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any], space: Any, said: str,
) -> None:  # fmt: skip
    minari = pytest.importorskip("minari", reason="the optional dependencies `export` are not installed")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "datasets"))
    env = gymnasium.make(ENVIRONMENT)
    episode = {
        "observations": np.zeros((4, 4)),
        "actions": np.zeros((3, 1), np.float32) if space is None else np.zeros(3, np.int64),
        "rewards": np.ones(3),
        "terminations": [False, False, False],
        "truncations": [False, False, True],
    }
    buffer = [minari.data_collector.EpisodeBuffer(**(episode | changes))]
    minari.create_dataset_from_buffers("tiny-v0", buffer=buffer, env=env, action_space=space or env.action_space)
    capfd.readouterr()
    assert said in refused(capfd, tmp_path / "out.h5", "minari", "tiny-v0", "--task", "test-pendulum")


def test_data_of_an_environment_by_another_name_are_minded(
    rows: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = read_hdf5(write_hdf5(tmp_path / "recording.hdf5", rows))
    for name, minds in ((ENVIRONMENT, False), ("InvertedPendulum-v4", True)):
        write_imported(replace(recorded, environment=name), "test-pendulum", tmp_path / "out.h5")
        said = capfd.readouterr().out
        assert ("mind that recording.hdf5 was recorded in InvertedPendulum-v4" in said) == minds
        assert f"schedule: {{random_steps: 80, initial_data: {tmp_path / 'out.h5'}}}" in said


@pytest.mark.parametrize(
    "name", ["my set, v2.h5", "a: b.h5", "[old] #1.h5", 'it\'s "é".h5', "word " * 40 + ".h5", "{}.h5", "a\nb.h5"]
)
def test_the_keys_that_are_printed_read_back_as_the_path(
    rows: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / name
    write_imported(read_hdf5(write_hdf5(tmp_path / "recording.hdf5", rows)), "test-pendulum", output)
    printed = capfd.readouterr().out.partition("config/tasks:\n")[2]
    expected = {"random_steps": 80, "initial_data": str(output)}
    assert yaml.safe_load(printed) == {"base": "test-pendulum", "schedule": expected}


# ---- what collect makes of it ----------------------------------------------------------------------------------------


def begin(output: Path, imported: Path, steps: int = STEPS) -> dict[str, Any]:
    return {"output": output, "environment": ENVIRONMENT, "steps": steps, "initial_data": imported}


def test_a_run_begins_with_the_first_rows_and_then_collects_from_a_new_episode(imported: Path, tmp_path: Path) -> None:
    first, second, policy = tmp_path / "00000.h5", tmp_path / "00001.h5", tmp_path / "policy.safetensors"
    who = {"task": "from-data", "seed": 3}
    given = transitions.read(imported, transitions.IMPORTED)[1]
    inside = next(n for n in range(20, STEPS) if not (given.terminations | given.truncations)[n - 1])
    collect(**begin(first, imported, inside), cycle=0, **who)
    header, batch = transitions.read(first)
    for name in ("observations", "actions", "rewards", "next_observations", "terminations", "episodes"):
        assert np.array_equal(getattr(batch, name), getattr(given, name)[:inside]), name
    assert not given.truncations[inside - 1]
    assert batch.truncations[-1], "the episode is cut where another begins"
    assert header.parameters["initial_data"]["source"] == "recording.hdf5"
    initialise(data=first, output=policy, hidden_layers=1, hidden_size=8)
    collect(output=second, environment=ENVIRONMENT, steps=10, cycle=1, policy=policy, previous=first, **who)
    following = transitions.read(second)[1]
    assert following.episodes[0] == batch.episodes[-1] + 1
    ordinary = tmp_path / "ordinary.h5"
    collect(output=ordinary, environment=ENVIRONMENT, steps=1, cycle=0, **who)
    assert np.array_equal(following.observations[0], transitions.read(ordinary)[1].observations[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--steps": "81"}, "it has 80 rows, but 81 are asked for; set schedule.random_steps to 80 or fewer"),
        ({"--environment": "Hopper-v5"}, "its environment is InvertedPendulum-v5, but Hopper-v5 is asked for"),
        ({"--environment-arguments": '{"reset_noise_scale": 0.5}'}, "its environment_arguments is {}, but"),
        ({"--cycle": "1"}, "initial data take the place of random steps"),
        ({"--previous": "recording.h5"}, "initial data take the place of random steps"),
        ({"--initial-data": "none.h5"}, "none.h5: there is no such file; make it with `usbpo import`"),
        ({"--initial-data": __file__}, "no whole file of this version's `usbpo import`; make it anew with that"),
    ],
)
def test_collect_refuses_data_of_another_run_in_one_sentence(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    changes: dict[str, str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(imported.parent)
    options = {
        **{"--output": str(tmp_path / "out.h5"), "--task": "from-data", "--environment": ENVIRONMENT},
        **{"--steps": "80", "--seed": "0", "--cycle": "0", "--initial-data": imported.name, **changes},
    }
    assert cli.main(["collect", *(word for option in options.items() for word in option)]) == 1
    error = capfd.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "out.h5").exists()


# ---- the workflow ----------------------------------------------------------------------------------------------------


def workspace(folder: Path, rows: dict[str, Any]) -> Path:
    """A folder with imported data and a task that begins with them; its experiment has one run of one cycle."""
    (folder / "config/tasks").mkdir(parents=True)
    (folder / "data").mkdir()
    import_hdf5(write_hdf5(folder / "recording.hdf5", rows), folder / "data/imported/pendulum.h5")
    schedule = {"random_steps": STEPS - 5, "initial_data": "data/imported/pendulum.h5"}
    task = {"base": "test-pendulum", "schedule": schedule}
    (folder / "config/tasks/from-data.yaml").write_text(yaml.safe_dump(task))
    keys = {"experiment": "e", "tasks": ["from-data"], "methods": ["test-usbpo"], "seeds": [0], "steps": 30}
    (folder / "e.yaml").write_text(yaml.safe_dump(keys))
    return folder


@pytest.fixture(scope="module")
def run_from_data(rows: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run from imported data has ended; to be copied before it is changed."""
    folder = workspace(tmp_path_factory.mktemp("run") / "once", rows)
    ended = snakemake(folder, cores=1, experiment=folder / "e.yaml")
    assert ended.code == 0, ended.said
    return folder


def test_a_run_from_imported_data_gives_the_same_bytes_each_time(
    run_from_data: Path, rows: dict[str, Any], tmp_path: Path
) -> None:
    again = workspace(tmp_path / "again", rows)
    ended = snakemake(again, cores=1, experiment=again / "e.yaml", USBPO_WARM="1")
    assert ended.code == 0, ended.said
    assert tree(again) == tree(run_from_data)
    shard = transitions.read(again / f"data/runs/{RUN}/data/00000.h5")[1]
    assert np.array_equal(shard.rewards, rows["rewards"][: STEPS - 5].astype(np.float32))
    metrics = json.loads((again / f"data/runs/{RUN}/00001/phase1.json").read_text())
    assert metrics["cycle"] == 1


def test_another_content_of_the_file_reruns_the_run_and_a_new_date_does_not(
    run_from_data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(run_from_data, tmp_path / "changed")
    data = folder / "data/imported/pendulum.h5"
    before = data.stat()
    data.touch()
    assert planned(folder, experiment=folder / "e.yaml") == set()
    import_hdf5(write_hdf5(folder / "recording.hdf5", recording(seed=1)), data)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))  # a copy with its old date
    would = planned(folder, experiment=folder / "e.yaml")
    assert jobs("collect", [0, 1], [RUN]) | jobs("policy", [1], [RUN]) <= would
    assert Job("results") in would


FILE = "data/imported/pendulum.h5"


@dataclass(frozen=True)
class Spoilt:
    """What may be wrong with initial data before anything runs, and what is said of it."""

    change: Callable[[Path], object]
    """Spoils the file."""
    said: str


def import_fewer(path: Path) -> None:
    import_hdf5(write_hdf5(path.with_name("recording.hdf5"), recording(STEPS - 6)), path)


def import_for_another(path: Path) -> None:
    header, batch = transitions.read(path, transitions.IMPORTED)
    parameters = {**header.parameters, "environment": "Hopper-v5"}
    transitions.write(path, replace(header, parameters=parameters), batch)


SPOILT = {
    "missing": Spoilt(
        Path.unlink,
        "there is no such file; make it with `usbpo import`, or name another.",
    ),
    "text": Spoilt(
        lambda path: path.write_text("rows"),
        "it cannot be read, or is no whole file of this version's `usbpo import`; make it anew with that, "
        "or name another.",
    ),
    "too few rows": Spoilt(
        import_fewer,
        "it has 74 rows, but 75 are asked for; set schedule.random_steps to 74 or fewer.",
    ),
    "another environment": Spoilt(
        import_for_another,
        "its environment is Hopper-v5, but InvertedPendulum-v5 is asked for; import it for this task.",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_planning_refuses_initial_data_that_a_run_cannot_begin_with(
    rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    folder = workspace(tmp_path / "spoilt", rows)
    monkeypatch.setattr("usbpo.experiment.layers.FOLDERS", (folder / "config", REPO / "config"))
    monkeypatch.setattr("usbpo.experiment.plan.FOLDERS", (folder / "config", REPO / "config"))
    words = [str(folder / "e.yaml"), "--folder", str(folder)]
    assert cli.main(["submit", *words, "--dry-run"]) == 0
    SPOILT[case].change(folder / FILE)
    capfd.readouterr()
    said = f"schedule.initial_data of from-data with test-usbpo: {folder / FILE}: {SPOILT[case].said}\n"
    for verb in ("plan", "submit"):
        assert cli.main([verb, *words]) == 1
        assert capfd.readouterr().err == f"usbpo {verb}: {said}"


def test_snakemake_refuses_to_plan_more_random_steps_than_there_are_rows(rows: dict[str, Any], tmp_path: Path) -> None:
    folder = workspace(tmp_path / "spoilt", rows)
    import_fewer(folder / FILE)
    ended = snakemake(folder, "--dry-run", cores=1, experiment=folder / "e.yaml")
    assert ended.code == 1
    sentences = [line for line in ended.said.splitlines() if line.startswith("usbpo: ")]
    assert sentences == [
        f"usbpo: schedule.initial_data of from-data with test-usbpo: {FILE}: {SPOILT['too few rows'].said}"
    ]
    assert "Traceback" not in ended.said


def test_the_environments_bounds_are_those_that_actions_are_scaled_by() -> None:
    simulator = Simulator(ENVIRONMENT)
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 1))
    there = np.stack([simulator.scaled(action) for action in actions])
    assert np.allclose(unscaled(there, simulator), actions, atol=1e-6)


# ---- ends that are not marked ----------------------------------------------------------------------------------------


HOPPER = "Hopper-v5"


def import_hopper(file: Path, output: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What is said of an import that succeeds."""
    capfd.readouterr()
    assert cli.main(["import", "hdf5", str(file), "--task", "Hopper", "--output", str(output)]) == 0
    return capfd.readouterr().out


def test_ends_that_are_not_marked_are_minded_where_next_observations_are_those_of_the_rows_after(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = recording(200, environment=HOPPER)
    ends = np.flatnonzero(whole["terminations"])
    assert len(ends) >= 5
    without = spoilt(next_observations=None)(whole)
    said = import_hopper(write_hdf5(tmp_path / "marked.hdf5", without), tmp_path / "out.h5", capfd)
    assert (
        "mind that marked.hdf5 has no next_observations, so that an end which it does not mark becomes a false" in said
    )
    assert "look like one" not in said
    without["terminations"][ends[1:4]] = False
    said = import_hopper(write_hdf5(tmp_path / "unmarked.hdf5", without), tmp_path / "out.h5", capfd)
    assert f"; 3 look like one, the first behind row {ends[1]}; mark where episodes end, and import it again\n" in said
    whole["terminations"][ends[2]], whole["truncations"][ends[2]] = False, True
    error = refused(
        capfd, tmp_path / "out.h5", "hdf5", str(write_hdf5(tmp_path / "cut.hdf5", whole)), "--task", "Hopper"
    )
    assert f"first in row {ends[2]}; name the task" in error
    said = import_hopper(
        write_hdf5(tmp_path / "whole.hdf5", recording(200, environment=HOPPER)), tmp_path / "out.h5", capfd
    )
    assert "mind" not in said


def test_episodes_that_are_longer_than_the_tasks_are_minded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for steps, minded in ((1000, False), (1001, True)):
        rows = {"observations": np.zeros((steps, 4)), "actions": np.zeros((steps, 1)), "rewards": np.ones(steps)}
        rows |= {"terminals": np.zeros(steps, np.bool_), "timeouts": np.arange(steps) == steps - 1}
        import_hdf5(write_hdf5(tmp_path / "long.hdf5", rows), tmp_path / "out.h5")
        said = capfd.readouterr().out
        assert ("; 1 of its episodes are longer than the 1000 steps of the task's; mark" in said) == minded


def test_rows_are_named_as_the_file_counts_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = spoilt(next_observations=None, actions=with_value(STEPS - 2, 9.0))(recording())
    file = write_hdf5(tmp_path / "recording.hdf5", rows)
    error = refused(capfd, tmp_path / "out.h5", "hdf5", str(file), "--task", "test-pendulum")
    assert f"the action of row {STEPS - 2} is outside the bounds" in error


# ---- files of somebody's ---------------------------------------------------------------------------------------------


def elsewhere(file: h5py.File, name: str, path: Path) -> None:
    """Move an array into another file, which is named by a link to it."""
    with h5py.File(path.with_name("elsewhere.hdf5"), "w") as other:
        other[name] = file[name][()]
    del file[name]
    file[name] = h5py.ExternalLink("elsewhere.hdf5", f"/{name}")


def by_a_soft_link(file: h5py.File, name: str, path: Path) -> None:
    file["somewhere"] = file[name][()]
    del file[name]
    file[name] = h5py.SoftLink("/somewhere")


def virtual(file: h5py.File, name: str, path: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    with h5py.File(path.with_name("source.hdf5"), "w") as other:
        other["values"] = file[name][()]
    layout = h5py.VirtualLayout(shape, kind)
    layout[:] = h5py.VirtualSource(str(path.with_name("source.hdf5")), "values", shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def raw(file: h5py.File, name: str, path: Path) -> None:
    values = file[name][()]
    path.with_name("raw").write_bytes(values.tobytes())
    del file[name]
    file.create_dataset(name, values.shape, values.dtype, external=[(str(path.with_name("raw")), 0, values.nbytes)])


def declared_only(file: h5py.File, name: str, path: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, (1 << 40, *shape[1:]), kind, chunks=(1024, *shape[1:]))


def never_written(file: h5py.File, name: str, path: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, kind)


def without_numbers(file: h5py.File, name: str, path: Path) -> None:
    rows, kind = len(file[name]), file[name].dtype
    del file[name]
    file.create_dataset(name, (rows, 0), kind)


def scalar(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file[name] = 3.0


def null(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file[name] = h5py.Empty("f8")


def group(file: h5py.File, name: str, path: Path) -> None:
    del file[name]
    file.create_group(name)


PLACES = {
    "external link": (elsewhere, "is a link to somewhere else; store the array itself in the file"),
    "soft link": (by_a_soft_link, "is a link to somewhere else; store the array itself in the file"),
    "virtual dataset": (virtual, "is stored in other files; store the array itself in the file"),
    "external raw data": (raw, "is stored in other files; store the array itself in the file"),
    "an array that was never written": (never_written, "0 are there; get it anew"),
    "sizes without data": (declared_only, "0 are there; get it anew"),
    "no numbers": (without_numbers, "has the shape [80, 0]; give each step"),
    "a scalar": (scalar, "is no array of numbers; write one row for each step"),
    "a null dataspace": (null, "is no array of numbers; write one row for each step"),
    "a group": (group, "is missing; add it"),
}


@pytest.mark.parametrize("name", ["observations", "rewards"])
@pytest.mark.parametrize("case", PLACES)
def test_arrays_that_are_not_wholly_in_the_file_are_refused_in_one_sentence(
    rows: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str, name: str
) -> None:
    change, said = PLACES[case]
    path = write_hdf5(tmp_path / "recording.hdf5", rows)
    with h5py.File(path, "a") as file:
        change(file, name, path)
    error = refused(capfd, tmp_path / "out.h5", "hdf5", str(path), "--task", "test-pendulum")
    assert name in error
    assert said in error


def test_the_file_of_a_minari_dataset_is_called_what_it_is(
    imported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minari", reason="the optional dependencies `export` are not installed")
    shard = tmp_path / "root/data/runs/from-data/m/seed-0/data/00000.h5"
    collect(**begin(shard, imported), seed=0, cycle=0, task="from-data", method="m")
    words = ["export", "minari", "from-data/m/seed-0", "--folder", str(tmp_path / "root"), "--environment", ENVIRONMENT]
    assert cli.main([*words, "--output", str(tmp_path / "datasets")]) == 0
    file = tmp_path / "datasets/from-data-m-seed-0-v0/data/main_data.hdf5"
    words = ["hdf5", str(file), "--task", "test-pendulum"]
    error = refused(capfd, tmp_path / "out.h5", *words)
    assert (
        "name the dataset instead, `usbpo import minari from-data-m-seed-0-v0` with MINARI_DATASETS_PATH set" in error
    )
    for content in (b"", b'{"dataset_id": 7}', b'{"dataset_id": "\\u001b[2J"}', b"[" * 10_000):
        file.with_name("metadata.json").write_bytes(content)
        assert "`usbpo import minari NAME` with" in refused(capfd, tmp_path / "out.h5", *words)


DIES = """
import os, sys, time

if "usbpo.formats.recorded" in sys.orig_argv:
    {deed}
"""


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("os.kill(os.getpid(), 11)", "reading it crashes (signal 11), so it is damaged; get it anew"),
        ("time.sleep(60)", "reading it does not end within 2 s, so it is damaged; get it anew"),
    ],
)
def test_a_file_that_hdf5_crashes_on_or_never_ends_with_is_refused_in_one_sentence(
    rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    deed: str, said: str,
) -> None:  # fmt: skip
    (tmp_path / "sitecustomize.py").write_text(DIES.format(deed=deed))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("usbpo.formats.recorded.PATIENCE", 2.0)
    path = write_hdf5(tmp_path / "recording.hdf5", rows)
    assert f"recording.hdf5: {said}" in refused(
        capfd, tmp_path / "out.h5", "hdf5", str(path), "--task", "test-pendulum"
    )


def test_every_damage_of_an_hdf5_file_ends_in_a_sentence_or_in_an_import(
    rows: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, rng = write_hdf5(tmp_path / "whole.hdf5", rows).read_bytes(), np.random.default_rng(0)
    path, out = tmp_path / "damaged.hdf5", tmp_path / "out.h5"
    for _ in range(6):
        damaged = bytearray(whole)
        place, size = int(rng.integers(min(len(whole), 3000))), int(rng.choice([1, 8, 512]))
        damaged[place : place + size] = rng.integers(0, 256, size, np.uint8).tobytes()
        path.write_bytes(damaged[: len(whole)])
        code = cli.main(["import", "hdf5", str(path), "--task", "test-pendulum", "--output", str(out)])
        error = capfd.readouterr().err
        assert (code, len(error.splitlines())) in ((0, 0), (1, 1)), error
