"""Transition files: what is written is read, alike each time, by any HDF5 tool; damage is noticed and named."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest

import usbpo
from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions, read, read_all, read_collector
from usbpo.errors import UsbpoError
from usbpo.stages.block import block

NAMES = [field.name for field in fields(Transitions)]
COLLECTOR = {
    "physics": np.linspace(0.0, 1.0, 9),
    "elapsed_steps": np.array(17, dtype=np.int64),
    "generator": np.array([2**64 - 1, 0, 5], dtype=np.uint64),
}


@pytest.fixture
def shard(tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]) -> Path:
    path = tmp_path / "00001.h5"
    transitions.write(path, make_header(), make_transitions(), COLLECTOR)
    return path


def assert_equal(first: Transitions, second: Transitions) -> None:
    for name in NAMES:
        one, other = getattr(first, name), getattr(second, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_what_is_written_is_read(shard: Path, make_transitions: Callable[..., Transitions]) -> None:
    header, found = read(shard)
    assert_equal(found, make_transitions())
    assert (header.kind, header.task, header.seed, header.cycle) == ("transitions", "tiny", 0, 1)


def test_the_collectors_state_is_read_bit_for_bit(shard: Path) -> None:
    header, found = read_collector(shard)
    assert header.cycle == 1
    assert found.keys() == COLLECTOR.keys()
    for key, values in COLLECTOR.items():
        assert found[key].dtype == values.dtype
        np.testing.assert_array_equal(found[key], values)


def test_more_rows_than_a_chunk_holds(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    batch = make_transitions(10_000)
    transitions.write(tmp_path / "a.h5", make_header(), batch)
    assert_equal(read(tmp_path / "a.h5")[1], batch)


def test_any_hdf5_tool_can_read_it(shard: Path, make_transitions: Callable[..., Transitions]) -> None:
    with h5py.File(shard) as file:
        assert set(file) == {*NAMES, "collector"}
        assert dict(file.attrs).keys() >= {"kind", "schema_version", "task", "seed", "cycle", "header"}
        assert (file.attrs["task"], file.attrs["seed"], file.attrs["schema_version"]) == ("tiny", 0, 1)
        assert '"mujoco": "' in file.attrs["header"]
        for name in NAMES:
            np.testing.assert_array_equal(file[name][()], getattr(make_transitions(), name))
            assert file[name].fletcher32, f"{name} has no checksum"
            assert file[name].chunks is not None


def test_the_same_content_gives_the_same_bytes_at_another_time(
    shard: Path, tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    time.sleep(1.1)  # HDF5 would store whole seconds
    transitions.write(tmp_path / "again.h5", make_header(), make_transitions(), COLLECTOR)
    assert (tmp_path / "again.h5").read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_noticed(name: str, shard: Path) -> None:
    with h5py.File(shard) as file:
        chunk = file[name].id.get_chunk_info(0)
    content = bytearray(shard.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsbpoError, match=r"00001.h5: .*damaged.*run again"):
        read(shard)


def test_a_flipped_byte_in_the_collectors_state_is_noticed(shard: Path) -> None:
    with h5py.File(shard) as file:
        chunk = file["collector/physics"].id.get_chunk_info(0)
    content = bytearray(shard.read_bytes())
    content[chunk.byte_offset] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsbpoError, match="damaged"):
        read_collector(shard)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_file_that_was_cut_short_is_noticed(share: float, shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsbpoError, match=r"00001.h5: .*cut short"):
        read(shard)


@pytest.mark.parametrize("damage", ["{", '{"kind": "transitions"}', '{"kind": "transitions", "what": 1}', "[1]"])
def test_a_damaged_header_is_named(damage: str, shard: Path) -> None:
    with h5py.File(shard, "r+") as file:
        file.attrs["header"] = damage
    with pytest.raises(UsbpoError, match=r"00001.h5: .*damaged"):
        read(shard)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "next_observations"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_named_with_their_row(
    name: str,
    value: float,
    tmp_path: Path,
    make_transitions: Callable[..., Transitions],
    make_header: Callable[..., Header],
) -> None:
    batch = make_transitions()
    getattr(batch, name)[7] = value
    transitions.write(tmp_path / "bad.h5", make_header(), batch)
    with pytest.raises(UsbpoError, match=f"bad.h5: {name} holds NaN or infinity in row 7"):
        read(tmp_path / "bad.h5")


def test_unequal_lengths_are_named(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    batch = make_transitions()
    batch.actions = batch.actions[:-1]
    transitions.write(tmp_path / "bad.h5", make_header(), batch)
    with pytest.raises(UsbpoError, match=r"bad.h5: actions has 49 rows, but rewards has 50"):
        read(tmp_path / "bad.h5")


def test_other_files_are_named(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    path = tmp_path / "other.h5"
    with pytest.raises(UsbpoError, match=r"other.h5: there is no such file"):
        read(path)
    transitions.write(path, make_header("evaluation"), make_transitions())
    with pytest.raises(UsbpoError, match=r"other.h5: its kind is evaluation, but transitions is expected"):
        read(path)
    transitions.write(path, Header("transitions", "tiny", 0, 1, schema_version=99), make_transitions())
    with pytest.raises(UsbpoError, match=r"other.h5: written with schema 99"):
        read(path)
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros(3)
    with pytest.raises(UsbpoError, match=r"other.h5: .*not written by usbpo"):
        read(path)
    path.write_text("no HDF5 at all")
    with pytest.raises(UsbpoError, match=r"other.h5: .*damaged"):
        read(path)


def test_several_files_are_read_in_the_order_given(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    paths = [tmp_path / f"{cycle}.h5" for cycle in range(3)]
    for cycle, path in enumerate(paths):
        transitions.write(path, make_header(cycle=cycle), make_transitions(10 + cycle, seed=cycle))
    header, found = read_all(paths)
    assert header.cycle == 2
    expected = [make_transitions(10 + cycle, seed=cycle) for cycle in range(3)]
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), np.concatenate([getattr(part, name) for part in expected]))


@pytest.mark.parametrize("difference", [{"task": "another"}, {"seed": 1}])
def test_files_of_two_runs_do_not_mix(
    difference: dict[str, object],
    tmp_path: Path,
    make_transitions: Callable[..., Transitions],
    make_header: Callable[..., Header],
) -> None:
    paths = [tmp_path / "first.h5", tmp_path / "second.h5"]
    transitions.write(paths[0], make_header(), make_transitions())
    transitions.write(paths[1], make_header(**difference), make_transitions())
    with pytest.raises(UsbpoError, match=r"first.h5: its (task|seed) is .*second.h5 has .*one run"):
        read_all(paths)
    with pytest.raises(UsbpoError, match="at least one"):
        read_all([])


def test_a_block_holds_the_rows_of_its_shards(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    paths = [tmp_path / f"{cycle}.h5" for cycle in range(3)]
    for cycle, path in enumerate(paths):
        transitions.write(path, make_header(cycle=cycle), make_transitions(10, seed=cycle), COLLECTOR)
    block(parts=paths, output=tmp_path / "block.h5")
    assert_equal(read(tmp_path / "block.h5")[1], read_all(paths)[1])
    assert read(tmp_path / "block.h5")[0].cycle == 2
    with pytest.raises(UsbpoError, match="collector"):
        read_collector(tmp_path / "block.h5")
    with pytest.raises(UsbpoError, match=r"2.h5: it begins with cycle 2, but 1 is expected"):
        block(parts=[paths[0], paths[2]], output=tmp_path / "wrong.h5")


def test_a_block_of_blocks_holds_their_rows_and_they_must_follow_each_other(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    paths = [tmp_path / f"{cycle}.h5" for cycle in range(6)]
    for cycle, path in enumerate(paths):
        transitions.write(path, make_header(cycle=cycle), make_transitions(10, seed=cycle))
    halves = [tmp_path / "first.h5", tmp_path / "second.h5"]
    for half, parts in zip(halves, (paths[:3], paths[3:]), strict=True):
        block(parts=parts, output=half)
    block(parts=halves, output=tmp_path / "whole.h5")
    header, rows = read(tmp_path / "whole.h5")
    assert_equal(rows, read_all(paths)[1])
    assert (header.cycle, header.parameters["shards"]) == (5, 6)
    with pytest.raises(UsbpoError, match=r"second.h5: it begins with cycle 3, but 2 is expected"):
        block(parts=[*paths[:2], halves[1]], output=tmp_path / "wrong.h5")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import create, put
with create(Path(sys.argv[1]), Header("transitions", "tiny", 0, 9)) as file:
    put(file, "rewards", np.zeros(100_000, np.float32))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_whole(
    shard: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    before = shard.read_bytes()
    environment = os.environ | {"PYTHONPATH": str(Path(usbpo.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", KILLED, str(shard)], env=environment, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert shard.read_bytes() == before
    left_over = [path for path in shard.parent.iterdir() if path != shard]
    assert len(left_over) == 1, "the writer was killed in the middle"
    assert left_over[0].suffix != ".h5", "no pattern for artifacts finds it"
    transitions.write(shard, make_header(cycle=2), make_transitions(5))
    assert list(shard.parent.iterdir()) == [shard], "the next writer tidies up"
    assert len(read(shard)[1]) == 5


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(
    shard: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    before = shard.read_bytes()
    batch = make_transitions()
    batch.episodes = np.array([object()])
    with pytest.raises(TypeError):
        transitions.write(shard, make_header(), batch)
    assert list(shard.parent.iterdir()) == [shard]
    assert shard.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsbpoError, match=r"a.h5: the folder .* cannot be written"):
        transitions.write(tmp_path / "file" / "a.h5", make_header(), make_transitions())
