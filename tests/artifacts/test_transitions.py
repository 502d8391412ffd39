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
from usbpo.artifacts import hdf5, lineage, sealing, transitions
from usbpo.artifacts.header import SCHEMA_VERSION, Header
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
        assert (file.attrs["task"], file.attrs["seed"], file.attrs["schema_version"]) == ("tiny", 0, SCHEMA_VERSION)
        assert '"mujoco": "' in file.attrs["header"]
        for name in NAMES:
            np.testing.assert_array_equal(file[name][()], getattr(make_transitions(), name))
            assert file[name].chunks is None, "where it lies stands in our own index"


def test_the_same_content_gives_the_same_bytes_at_another_time(
    shard: Path, tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    time.sleep(1.1)  # HDF5 would store whole seconds
    transitions.write(tmp_path / "again.h5", make_header(), make_transitions(), COLLECTOR)
    assert (tmp_path / "again.h5").read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_byte_is_noticed(name: str, shard: Path) -> None:
    with h5py.File(shard) as file:
        place = file[name].id.get_offset() + file[name].id.get_storage_size() // 2
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UsbpoError, match=r"00001.h5: .*damaged.*run again, or pull it again"):
        read(shard)


def test_a_flipped_byte_in_the_collectors_state_is_noticed(shard: Path) -> None:
    with h5py.File(shard) as file:
        place = file["collector/physics"].id.get_offset()
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
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
def test_a_damaged_header_is_named(damage: str, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the seal is that of the damaged file."""
    monkeypatch.setattr(
        hdf5, "_block", lambda *_: f'{sealing.UNSEALED}\n{{"arrays": {{}}, "header": {damage}}}\n'.encode()
    )
    hdf5.write(shard, Header("transitions", "tiny", 0, 1), {})
    with pytest.raises(UsbpoError, match=r"00001.h5: .*(damaged|not a JSON file).*again"):
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
    with pytest.raises(UsbpoError, match=r"other.h5: .*not written by this version of usbpo"):
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
    headers, found = read_all(paths)
    assert [header.cycle for header in headers] == [0, 1, 2]
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
    transitions.write(paths[0], make_header(cycle=0), make_transitions())
    transitions.write(paths[1], make_header(shards=1, **difference), make_transitions())
    with pytest.raises(UsbpoError, match=r"(first|second).h5: its (task|seed) is .*one run"):
        lineage.begin("policy", paths, seed=0, cycle=1, parameters={})
    with pytest.raises(UsbpoError, match="at least one"):
        read_all([])


@pytest.fixture
def shards(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> list[Path]:
    """One for each of the cycles 0 … 63."""
    paths = [tmp_path / f"{cycle}.h5" for cycle in range(64)]
    for cycle, path in enumerate(paths):
        transitions.write(path, make_header(cycle=cycle, shards=1), make_transitions(10, seed=cycle), COLLECTOR)
    return paths


def test_a_block_holds_the_rows_of_its_shards(shards: list[Path], tmp_path: Path) -> None:
    block(parts=shards[8:16], output=tmp_path / "block.h5", number=15)
    header, rows = read(tmp_path / "block.h5")
    headers, expected = read_all(shards[8:16])
    assert_equal(rows, expected)
    assert (header.cycle, header.parameters) == (15, {"shards": 8, "rows": 80})
    assert header.inputs == {"parts": [shard.digest for shard in headers]}
    with pytest.raises(UsbpoError, match="collector"):
        read_collector(tmp_path / "block.h5")


@pytest.mark.parametrize(
    ("cycles", "words"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 8], r"8.h5: it begins with cycle 8, but 7 is expected"),
        ([0, 1, 2, 3, 4, 5, 6, 6], r"6.h5: it begins with cycle 6, but 7 is expected"),
        ([0, 1, 2, 3, 5, 4, 6, 7], r"5.h5: it begins with cycle 5, but 4 is expected"),
        (range(7), r"wrong.h5: the parts hold cycles 0 to 6, but to block 7 belong those of cycles 0 to 7"),
        (range(9), r"wrong.h5: the parts hold cycles 0 to 8, but to block 7"),
        (range(8, 16), r"wrong.h5: the parts hold cycles 8 to 15, but to block 7"),
    ],
)
def test_what_is_no_block_is_refused(cycles: list[int], words: str, shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsbpoError, match=words):
        block(parts=[shards[cycle] for cycle in cycles], output=tmp_path / "wrong.h5", number=7)
    assert not (tmp_path / "wrong.h5").exists()


def test_a_block_of_blocks_holds_their_rows_and_they_must_follow_each_other(shards: list[Path], tmp_path: Path) -> None:
    parts = [tmp_path / f"part-{n}.h5" for n in range(8)]
    for n, part in enumerate(parts):
        block(parts=shards[8 * n : 8 * n + 8], output=part)
    block(parts=parts, output=tmp_path / "whole.h5", number=64)
    header, rows = read(tmp_path / "whole.h5")
    assert_equal(rows, read_all(shards)[1])
    assert (header.cycle, header.parameters["shards"]) == (63, 64)
    with pytest.raises(UsbpoError, match=r"part-2.h5: it begins with cycle 16, but 9 is expected"):
        block(parts=[parts[0], shards[8], parts[2]], output=tmp_path / "wrong.h5")


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from usbpo.artifacts import hdf5, sealing
from usbpo.artifacts.header import Header
sealing._digest = lambda _: os.kill(os.getpid(), signal.SIGKILL)
hdf5.write(Path(sys.argv[1]), Header("transitions", "tiny", 0, 9), {"rewards": np.zeros(100_000, np.float32)})
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
    with pytest.raises(UsbpoError, match="episodes is object, which is not stored"):
        transitions.write(shard, make_header(), batch)
    assert list(shard.parent.iterdir()) == [shard]
    assert shard.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsbpoError, match=r"a.h5: the folder .* cannot be written"):
        transitions.write(tmp_path / "file" / "a.h5", make_header(), make_transitions())
