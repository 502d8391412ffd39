"""Artifacts are sealed: damage is one sentence before anything is parsed; what a stranger sealed parses safely."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.artifacts import edited, sealed
from rich.console import Console

from usbpo.agent import sac
from usbpo.agent.sac import Agent
from usbpo.artifacts import evaluations, hdf5, metrics, sealing, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.inspection import print_artifact
from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError
from usbpo.model import ensemble
from usbpo.model.ensemble import Ensemble

READERS: dict[str, Callable[[Path], Any]] = {
    "shard.h5": transitions.read,
    "collector.h5": transitions.read_collector,
    "rollouts.h5": lambda path: transitions.read_rollouts([path], 1),
    "evaluation.h5": evaluations.read,
    "model.safetensors": ensemble.load,
    "policy.safetensors": sac.load,
    "phase1.json": metrics.read,
}


@pytest.fixture
def artifacts(
    tmp_path: Path,
    make_transitions: Callable[..., Transitions],
    make_header: Callable[..., Header],
    make_agent: Callable[..., Agent],
    make_ensemble: Callable[..., Ensemble],
) -> Path:
    """A folder with one artifact for each reader."""
    numbers = np.arange(3)
    state = {"physics": np.linspace(0.0, 1.0, 9), "elapsed_steps": np.array(7)}
    transitions.write(tmp_path / "shard.h5", make_header(), make_transitions())
    transitions.write(tmp_path / "collector.h5", make_header(), make_transitions(), state)
    transitions.write(tmp_path / "rollouts.h5", make_header("rollouts"), make_transitions(), updates=[20, 30])
    header = Header(evaluations.KIND, "tiny", 0, 1, {evaluations.STEPS: 250})
    episodes = evaluations.Episodes(np.linspace(0.0, 1.0, 3), numbers, numbers)
    evaluations.write(tmp_path / "evaluation.h5", header, episodes)
    digest = make_ensemble().save(tmp_path / "model.safetensors", make_header("model"))
    make_agent().save(tmp_path / "policy.safetensors", make_header("policy"))
    metrics.write(tmp_path / "phase1.json", header, {"epochs": 3, "errors": [0.5, 0.25]}, digest)
    return tmp_path


def refused(name: str, path: Path) -> str:
    """The sentence with which a damaged artifact is refused."""
    with pytest.raises(UsbpoError) as error:
        READERS[name](path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert said.endswith(".")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", READERS)
def test_every_flipped_bit_is_noticed(name: str, artifacts: Path) -> None:
    """Each of the first 2,000 bytes, with the header and the index, and 500 further ones."""
    path = artifacts / name
    content = bytearray(path.read_bytes())
    READERS[name](path)
    further = np.linspace(min(2000, len(content) - 1), len(content) - 1, 500).astype(int).tolist()
    for place in {*range(min(2000, len(content))), *further}:
        bit = 1 << place % 8
        content[place] ^= bit
        path.write_bytes(content)
        assert "run again" in refused(name, path) or "name the right file" in refused(name, path)
        content[place] ^= bit
    path.write_bytes(content)
    READERS[name](path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[: len(content) // 2],
        lambda content: content[:512] + b"\0" * 512 + content[1024:] if len(content) > 1024 else b"\0" * len(content),
        lambda content: b"",
        lambda content: b"\0" * len(content),
        lambda content: content[::-1],
    ],
    ids=["one byte less", "one byte more", "half", "512 zeros", "empty", "zeros", "backwards"],
)
def test_other_damage_is_noticed(name: str, damage: Callable[[bytes], bytes], artifacts: Path) -> None:
    path = artifacts / name
    path.write_bytes(damage(path.read_bytes()))
    assert "cut short or damaged" in refused(name, path)


@pytest.mark.parametrize("name", READERS)
def test_the_seal_goes_with_the_file(name: str, artifacts: Path, tmp_path: Path) -> None:
    copy = shutil.copy(artifacts / name, tmp_path / f"copied{Path(name).suffix}")
    READERS[name](copy)
    content = copy.read_bytes()
    assert content.count(sealing.MARK) == 1
    assert content.index(sealing.MARK) < sealing.HEAD


@pytest.mark.parametrize("name", READERS)
def test_inspect_says_what_a_damaged_artifact_is(name: str, artifacts: Path) -> None:
    path = artifacts / name
    print_artifact(path, Console())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UsbpoError, match="cut short or damaged"):
        print_artifact(path, Console())


# ---- what is sealed, and yet not what it should be ---------------------------------------------------------------


def test_what_else_hdf5_may_hold_is_not_looked_at(artifacts: Path) -> None:
    """External links, external data and virtual datasets in the place of our arrays: they are not followed."""
    path, other = artifacts / "shard.h5", artifacts / "other.h5"
    expected = transitions.read(path)[1]
    with h5py.File(other, "w") as file:
        file["rewards"] = np.full(50, 7.0, np.float32)
    (artifacts / "raw").write_bytes(np.full(100, 7.0, np.float32).tobytes())
    with h5py.File(path, "r+") as file:
        for name in ("rewards", "actions", "observations"):
            file.move(name, f"old_{name}")
        file["rewards"] = h5py.ExternalLink("other.h5", "rewards")
        raw = [(str(artifacts / "raw"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("actions", shape=(50, 2), dtype=np.float32, external=raw)
        layout = h5py.VirtualLayout((50, 3), np.float32)
        layout[:, 0] = h5py.VirtualSource(other, "rewards", (50,))
        file.create_virtual_dataset("observations", layout)
    with pytest.raises(UsbpoError, match="cut short or damaged, or was changed"):
        transitions.read(path)
    sealed(path, path.read_bytes())
    found = transitions.read(path)[1]
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values)


def with_index(path: Path, name: str, entry: Any) -> None:
    """Change where an array lies, in a file whose seal is right."""
    content = path.read_bytes()
    mark, block, rest = content.split(b"\n", 2)
    told = json.loads(block)
    told["arrays"][name] = entry
    changed = json.dumps(told).encode()
    longer = len(changed) - len(block)
    padding = b"\n" * -longer + rest if longer < 0 else rest[longer:]
    sealed(path, mark + b"\n" + changed + b"\n" + padding)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "float32",
        ["float32", [50], -1],
        ["float32", [-50], 1024],
        ["float32", [50], 10**9],
        ["float32", [10**18], 1024],
        ["float32", [0, 10**30], 1024],
        ["float32", [2] * 70, 1024],
        ["float32", 50, 1024],
        ["float32", [], 1024],
        ["float32", [True], 1024],
        ["float32", [50.0], 1024],
        ["float32", [50], 1024.0],
        ["object", [50], 1024],
        ["S5", [50], 1024],
        [["float32"], [50], 1024],
        ["float32", [50], 1024, 0],
    ],
)
def test_an_index_that_leads_nowhere_is_refused(entry: Any, artifacts: Path) -> None:
    with_index(artifacts / "shard.h5", "rewards", entry)
    assert "the place of its array 'rewards' is damaged" in refused("shard.h5", artifacts / "shard.h5")


@pytest.mark.parametrize(
    ("name", "entry", "said"),
    [
        ("rewards", ["float64", [50], 1024], "rewards is float64 in 1 dimensions, but float32 in 1 is expected"),
        ("rewards", ["float32", [50, 1], 1024], "rewards is float32 in 2 dimensions"),
        ("observations", ["float32", [50], 1024], "observations is float32 in 1 dimensions, but float32 in 2"),
        ("next_observations", ["float32", [50, 2], 0], "are not of one width"),
        ("episodes", ["int64", [49], 1024], "episodes has 49 rows, but rewards has 50"),
        ("terminations", ["bool", [50], 0], "terminations holds what is neither true nor false"),
    ],
)
def test_arrays_of_another_type_or_shape_are_refused(name: str, entry: Any, said: str, artifacts: Path) -> None:
    with_index(artifacts / "shard.h5", name, entry)
    assert said in refused("shard.h5", artifacts / "shard.h5")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"kind": "transitions"', b'"kind": 12345678901234'[:21]),
        (b'"task": "tiny"', b'"task": "t\\tn"'),
        (b'"task": "tiny"', b'"task": [1234]'),
        (b'"cycle": 1', b'"cycle": -'),
        (b'"seed": 0', b'"seed": {'),
        (b'"inputs": {}', b'"inputs": []'),
        (b'"inputs": {}', b'"inqqts": {}'),
        (b'"cycle": 1', b'"cycle":.5'),
        (b'"parameters": {"shards": 2}', b'"parameters": {"shards":NaN}'[:27]),
    ],
)
def test_a_header_of_other_types_is_refused(old: bytes, new: bytes, artifacts: Path) -> None:
    path = artifacts / "shard.h5"
    head, rest = path.read_bytes()[:2048], path.read_bytes()[2048:]
    block, hdf = head[: head.index(b"\x89HDF")], head[head.index(b"\x89HDF") :]
    assert block.count(old) == 1
    sealed(path, block.replace(old, new.ljust(len(old))) + hdf + rest)
    assert "run again" in refused("shard.h5", path)


@pytest.mark.parametrize("name", ["shard.h5", "model.safetensors", "phase1.json"])
def test_json_that_is_nested_without_end_is_refused(name: str, artifacts: Path) -> None:
    path = artifacts / name
    deep = b"[" * 200_000 + b"]" * 200_000
    mark = sealing.UNSEALED.encode()
    made = {
        ".h5": mark + b'\n{"arrays": {}, "header": ' + deep + b"}\n",
        ".json": b'{\n  "checksum": "' + mark + b'",\n "deep": ' + deep + b"}\n",
        ".safetensors": b'{"__metadata__": {"a": "' + mark + b'"}, "deep": ' + deep + b"}",
    }[path.suffix]
    content = len(made).to_bytes(8, "little") + made if path.suffix == ".safetensors" else made
    sealed(path, content)
    assert "not a JSON file" in refused(name, path)


def test_a_checkpoint_of_other_types_is_refused(artifacts: Path, make_ensemble: Callable[..., Ensemble]) -> None:
    path = artifacts / "model.safetensors"
    made = make_ensemble()
    made.elites = made.elites + 3
    made.save(path, Header("model", "tiny", 0, 1))
    assert "elites holds a number that is out of bounds" in refused("model.safetensors", path)
    made = make_ensemble()
    made.params = {name: tensor.double() for name, tensor in made.params.items()}
    made.save(path, Header("model", "tiny", 0, 1))
    assert "holds torch.float64, but torch.float32 is expected" in refused("model.safetensors", path)


def test_an_older_schema_is_refused_with_a_sentence(artifacts: Path) -> None:
    edited(artifacts / "phase1.json", b'"schema_version": 2', b'"schema_version": 1')
    assert "written with schema 1, but this version reads schema 2" in refused("phase1.json", artifacts / "phase1.json")


# ---- files that cannot be read or written ------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_named(name: str, tmp_path: Path) -> None:
    suffix = Path(name).suffix
    folder, pipe = tmp_path / f"folder{suffix}", tmp_path / f"pipe{suffix}"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe, tmp_path / f"none{suffix}", tmp_path / f"a\0b{suffix}"):
        assert "there is no such file" in refused(name, path)
    with pytest.raises(UsbpoError, match=r"it cannot be read .*File name too long.*; mend its permissions") as error:
        READERS[name](tmp_path / f"{'long/' * 1000}{'x' * 5000}{suffix}")
    assert len(str(error.value)) < 600


FULL = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from usbpo.artifacts import checkpoints, hdf5, metrics
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError
path, header = Path(sys.argv[1]), Header("test", "tiny", 0, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    if path.suffix == ".h5":
        hdf5.write(path, header, {f"array{n}": np.zeros(20_000) for n in range(3)})
    elif path.suffix == ".json":
        metrics.write(path, header, {"numbers": list(range(100_000))}, "")
    else:
        checkpoints.write(path, header, {"a": torch.zeros(100_000)})
except UsbpoError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.h5", "a.json", "a.safetensors"])
@pytest.mark.parametrize("limit", [0, 600, 4096, 200_000, 400_000])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(name: str, limit: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("what was there")
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{path}: writing failed (File too large); free space or choose another output.\n"
    assert ended.stderr == ""
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_exist_once_while_they_are_written_and_read(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.h5", {"a": np.ones(2_000_000, np.float32), "b": np.ones(1_000_000)}
    size = sum(values.nbytes for values in arrays.values())
    hdf5.write(path, Header("test", "tiny", 0, 1), {"warm": np.ones(3)})  # imports h5py
    tracemalloc.start()
    try:
        hdf5.write(path, Header("test", "tiny", 0, 1), arrays)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with hdf5.opened(path) as found:
            assert sum(found[name].nbytes for name in found.shapes) == size
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < 0.2 * size
    assert read < 1.2 * size / 2, "one array at a time"
