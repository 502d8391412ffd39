"""Provenance files and the note of them: read as they were written, or one sentence that names the file."""

import gzip
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from usbpo.artifacts import pulled
from usbpo.artifacts.layout import PROVENANCE
from usbpo.errors import UsbpoError
from usbpo.workspace import provenance
from usbpo.workspace.provenance import Entry
from usbpo.workspace.snakemake_inside import Records, format_number

FOLDER = "data/runs/T/M/seed-0"
NAMES = (f"{FOLDER}/00000/policy.json", f"{FOLDER}/00001/policy.json")
CURE = "`dvc checkout --force {path}` brings the one that was published"


def record(**changes: Any) -> dict[str, Any]:
    """What is kept of Snakemake's record of a file."""
    return {
        "rule": "policy",
        "input": ["data/runs/T/M/seed-0/data/00000.h5"],
        "log": [],
        "shellcmd": "usbpo policy",
        "params": ["1", "'two'"],
        "code": "usbpo policy",
        "record_format_version": format_number(),
        "conda_env": None,
        "container_img_url": None,
        "software_stack_hash": "d41d8cd98f00b204e9800998ecf8427e",
        "input_checksums": {"data/runs/T/M/seed-0/data/00000.h5": "sha256:" + "0" * 64},
    } | changes


ENTRIES = {NAMES[0]: Entry(record(), "0" * 64), NAMES[1]: Entry(record(shellcmd="usbpo policy --cycle 1"))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound provenance file."""
    path = tmp_path / FOLDER / PROVENANCE
    provenance.write(path, ENTRIES)
    return path


def refused(root: Path) -> str:
    """The sentence with which the provenance of `FOLDER` is refused."""
    with pytest.raises(UsbpoError) as refusal:
        provenance.restore(root)
    unusable = dict[str, str]()
    assert provenance.restore(root, unusable) == []
    assert unusable == {FOLDER: str(refusal.value)}
    assert len(str(refusal.value).splitlines()) == 1
    assert str(root / FOLDER / PROVENANCE) in str(refusal.value)
    return str(refusal.value)


def packed(lines: Iterable[Any]) -> bytes:
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), mtime=0)


def test_it_is_read_as_it_was_written(tmp_path: Path, path: Path) -> None:
    assert provenance.read(path) == (format_number(), ENTRIES)
    assert provenance.read(tmp_path / PROVENANCE) == (0, {})


# ---- damage ------------------------------------------------------------------------------------------------------


def test_whatever_bit_is_flipped_it_is_refused_or_means_the_same(tmp_path: Path, path: Path) -> None:
    sound, same, told = path.read_bytes(), set(), set()
    for place in range(len(sound)):
        for bit in range(8):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
            try:
                found = provenance.read(path)
            except UsbpoError as error:
                told.add(str(error).partition(": ")[0])
            else:
                assert found == (format_number(), ENTRIES)
                same.add(place)
    assert told == {str(path)}
    # gzip's flags, time and system, and what fills the last byte of the packed text, say nothing of the content.
    assert same <= {*range(3, 10), len(sound) - 9}


def test_wherever_it_is_cut_it_is_refused(tmp_path: Path, path: Path) -> None:
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(UsbpoError, match="damaged"):
            provenance.read(path)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_blocks_are_overwritten_it_is_refused(tmp_path: Path, path: Path, seed: int) -> None:
    """As a disk does that loses sectors, and a copy that takes parts of another file."""
    rng, sound = random.Random(seed), path.read_bytes()
    for _ in range(100):
        begin, length = rng.randrange(12, len(sound)), rng.randrange(1, 64)
        other = [bytes(length), rng.randbytes(length), sound[:length]][rng.randrange(3)]
        damaged = sound[:begin] + other + sound[begin + length :]
        path.write_bytes(damaged)
        if damaged.rstrip(b"\0") != sound.rstrip(b"\0"):  # zeros after its end are none of it
            with pytest.raises(UsbpoError, match="damaged"):
                provenance.read(path)


HEAD = {"provenance": provenance.VERSION, "format": format_number()}


def line(**changes: Any) -> dict[str, Any]:
    return {"path": NAMES[0], "sha256": "0" * 64, "record": record()} | changes


@pytest.mark.parametrize(
    "lines",
    [
        [{}],
        [[]],
        [3],
        [None],
        [{"provenance": 1}],
        [{"provenance": "1", "format": 6}],
        [{"provenance": True, "format": 6}],
        [{"provenance": 1, "format": 1e400}],
        [{"provenance": 1, "format": [6]}],
        [HEAD, []],
        [HEAD, "text"],
        [HEAD, {"path": NAMES[0]}],
        [HEAD, line(path=3)],
        [HEAD, line(path=None)],
        [HEAD, line(path=f"{FOLDER}/a\0b")],
        [HEAD, line(path=f"{FOLDER}/a\nb")],
        [HEAD, line(sha256=0)],
        [HEAD, line(sha256="0" * 63)],
        [HEAD, line(sha256="G" * 64)],
        [HEAD, line(record=None)],
        [HEAD, line(record=[])],
        [HEAD, line(record={})],
        [HEAD, line(record=record(more=1))],
        [HEAD, line(record=record(rule=3))],
        [HEAD, line(record=record(input="text"))],
        [HEAD, line(record=record(input=[3]))],
        [HEAD, line(record=record(params={"a": 1}))],
        [HEAD, line(record=record(input_checksums=["a"]))],
        [HEAD, line(record=record(input_checksums={"a": 3}))],
        [HEAD, line(record=record(record_format_version="six"))],
        [HEAD, line(record=record(record_format_version=format_number() + 1))],
        [HEAD, line(), line()],
    ],
    ids=lambda lines: json.dumps(lines)[-60:],
)
def test_what_is_no_provenance_is_refused(tmp_path: Path, path: Path, lines: list[Any]) -> None:
    path.write_bytes(packed(lines))
    told = refused(tmp_path)
    assert "it is damaged (" in told
    assert CURE.format(path=path) in told
    assert not list((tmp_path / ".snakemake").glob("metadata/*")), "nothing of it was put back"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b""),
        gzip.compress(b"no json\n"),
        gzip.compress(b"\xff\xfe\n"),
        gzip.compress(b"[" * 200_000),
        gzip.compress(b'{"a":' * 200_000),
        gzip.compress(json.dumps(HEAD).encode() + b"\n" + b"9" * 10_000),
        packed([HEAD, line()]) + b"more",
    ],
    ids=["empty", "other", "nothing in it", "text", "no text", "deep lists", "deep mappings", "long number", "more"],
)
def test_what_is_no_text_or_no_json_is_refused(tmp_path: Path, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "it is damaged (" in refused(tmp_path)


def test_of_a_huge_one_no_more_is_read_than_fits(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LARGEST", 100_000)
    path.write_bytes(packed([HEAD, *(line(path=f"{FOLDER}/{number}") for number in range(1_000))]))
    assert "it is damaged (it is too large)" in refused(tmp_path)
    monkeypatch.undo()
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(json.dumps(HEAD).encode() + b"\n")
        for _ in range(40):
            file.write(b" " * 1_000_000)  # a line without an end
    assert "it is damaged (it is too large)" in refused(tmp_path)
    with open(path, "wb") as file:
        file.truncate(2**40)  # holes, which take no disk
    assert "it is damaged (" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path, path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert "it is damaged (it is no file)" in refused(tmp_path)


def test_one_that_may_not_be_read_is_refused(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0)
    if os.geteuid() == 0:  # who may read everything
        monkeypatch.setattr(gzip, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert f"{path}: it cannot be read (Permission denied); mend its permissions." == refused(tmp_path)


@pytest.mark.parametrize("name", ["data/runs/T/M/seed-1/00000/policy.json", f"{FOLDER}/../../x", "/etc/passwd"])
def test_one_of_another_folder_is_refused(tmp_path: Path, path: Path, name: str) -> None:
    provenance.write(path, {name: Entry(record())})
    assert "of another folder" in refused(tmp_path)


def test_one_of_a_later_version_is_refused_whatever_its_lines_are(tmp_path: Path, path: Path) -> None:
    path.write_bytes(packed([{"provenance": 2, "format": 7}, ["something", "else"]]))
    assert "it is of version 2, this usbpo reads 1; take the newer usbpo." in refused(tmp_path)


def test_records_of_another_format_may_be_anything(tmp_path: Path, path: Path) -> None:
    path.write_bytes(packed([HEAD | {"format": 99}, line(record={"new": [1, {"a": None}]})]))
    assert provenance.read(path)[0] == 99
    said = provenance.restore(tmp_path)
    assert "format 99" in said[0]


def test_beside_a_damaged_one_the_others_are_put_back(tmp_path: Path, path: Path) -> None:
    path.write_bytes(b"\x1f\x8b" + bytes(100))
    other = "data/runs/T/M/seed-1"
    name = f"{other}/00000/policy.json"
    provenance.write(tmp_path / other / PROVENANCE, {name: Entry(record())})
    unusable = dict[str, str]()
    provenance.restore(tmp_path, unusable)
    assert list(unusable) == [FOLDER]
    assert Records(tmp_path).finished([name]) == {name: record()}
    provenance.write(path, ENTRIES)
    assert provenance.restore(tmp_path) == []
    assert Records(tmp_path).finished([NAMES[1]]) == {NAMES[1]: record(shellcmd="usbpo policy --cycle 1")}


# ---- the note of what was put back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\x00",
        b"[]",
        b"3",
        b'{"data/runs/T/M/seed-0": 3}',
        b'{"data/runs/T/M/seed-0": {"sha256": null}}',
        b'{"data/runs/T/M/seed-0": {"sha256": null, "cycles": 3, "left": []}}',
        b'{"data/runs/T/M/seed-0": {"sha256": null, "cycles": [], "left": ["a"]}}',
        b"[" * 200_000,
    ],
    ids=lambda content: content[:80].decode(errors="replace"),
)
def test_a_damaged_note_is_told_and_made_anew(tmp_path: Path, path: Path, content: bytes) -> None:
    provenance.restore(tmp_path)
    note = tmp_path / pulled.STATE_FILE
    sound = note.read_bytes()
    note.write_bytes(content)
    assert pulled.left_behind(tmp_path, FOLDER) == [], "who only asks is not stopped"
    said = provenance.restore(tmp_path)
    assert len(said) == 1
    assert said[0].startswith(f"{note}: it is damaged (")
    assert note.read_bytes() == sound
    assert provenance.restore(tmp_path) == []


def test_a_note_that_is_too_large_is_told(tmp_path: Path, path: Path) -> None:
    provenance.restore(tmp_path)
    with open(tmp_path / pulled.STATE_FILE, "r+b") as file:
        file.truncate(2**40)
    assert "it is damaged (it is too large)" in provenance.restore(tmp_path)[0]
