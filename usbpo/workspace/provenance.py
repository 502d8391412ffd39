"""What Snakemake knows of a folder's files, carried with them: `provenance.jsonl.gz`.

Without its records, Snakemake takes a pulled workspace for one in which nearly everything is out of date; with them it
finds nothing to do, and notices every change as precisely as where the files were made. The format of the records is
private to Snakemake (usbpo.workspace.snakemake_inside), and they are used only where the number of the format is the
one that they were made with.
"""

import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usbpo.artifacts import layout, pulled
from usbpo.artifacts.files import sha256, writing
from usbpo.errors import UsbpoError
from usbpo.workspace.lifetime import NOTES, in_turn
from usbpo.workspace.snakemake_inside import Records, check_kept, format_number

VERSION = 1
"""Of the file's own lines."""

STAMP = 946_684_800
"""The time stamp that pulled files get, 2000-01-01: one for all folders, and older than whatever is made here."""

LARGEST, LONGEST_LINE = 2**30, 2**24
"""Bytes of a provenance file and of a line of it, unpacked; the longest run of all experiments has some 100 MB."""

DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError, MemoryError)
"""What reading a file raises that is not what `write` has left."""


@dataclass(frozen=True)
class Entry:
    """One file of the folder, there or not: temporary rollouts have a record after they were deleted."""

    record: Mapping[str, Any]
    sha256: str | None = None
    """Of its content; None where it was not there."""


def read(path: Path) -> tuple[int, dict[str, Entry]]:
    """The number of the records' format, and the entries by path from the workspace; (0, {}) without such a file.

    Raises:
        UsbpoError: it is damaged, of a later version, or cannot be read.
    """
    if not path.exists():
        return 0, {}
    try:
        lines = _lines(path)
        head = next(lines)
        version, number = _whole(head["provenance"]), _whole(head["format"])
        if version != VERSION:
            raise UsbpoError(f"{path}: it is of version {version}, this usbpo reads {VERSION}; take the newer usbpo.")
        entries = dict[str, Entry]()
        for line in lines:
            name, entry = _entry(line)
            if name in entries:
                raise ValueError(f"{name} stands in it twice")
            entries[name] = entry
    except PermissionError as error:
        raise UsbpoError(f"{path}: it cannot be read ({error.strerror}); mend its permissions.") from error
    except DAMAGE as error:
        raise _damaged(path, error) from error
    return number, entries


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a provenance file, unpacked one after the other so that a huge one takes neither memory nor time.

    Raises:
        one of DAMAGE: it cannot be unpacked, or is too large for what it should be.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file")
    unpacked = 0
    with gzip.open(path, "rb") as file:
        while text := file.readline(LONGEST_LINE + 1):
            unpacked += len(text)
            if len(text) > LONGEST_LINE or unpacked > LARGEST:
                raise ValueError("it is too large")
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("a line is no mapping")
            yield line
    if not unpacked:
        raise ValueError("it is empty")


def _entry(line: Mapping[str, Any]) -> tuple[str, Entry]:
    """The path and the entry of a line.

    Raises:
        one of DAMAGE: it is not as `write` has left it.
    """
    name, digits, record = line["path"], line["sha256"], line["record"]
    if not isinstance(name, str) or not name.isprintable():
        raise ValueError("a path is none")
    if digits is not None and not (isinstance(digits, str) and re.fullmatch("[0-9a-f]{64}", digits)):
        raise ValueError(f"the SHA-256 of {name} is none")
    if not isinstance(record, dict):
        raise ValueError(f"the record of {name} is none")
    return name, Entry(record, digits)


def _whole(number: Any) -> int:
    """An integer, and not something that Python takes for one."""
    if type(number) is not int:
        raise ValueError(f"{number!r} is no whole number")
    return number


def _damaged(path: Path, error: BaseException) -> UsbpoError:
    """The sentence for one of DAMAGE."""
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error).strip() or type(error).__name__
    return UsbpoError(
        f"{path}: it is damaged ({what.splitlines()[0]}); `dvc checkout --force {path}` brings the one that was "
        "published, or delete it, and snakemake makes anew what it has no other record of."
    )


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write entries: equal ones give equal bytes, without times and names of machines."""
    lines: list[dict[str, Any]] = [{"provenance": VERSION, "format": format_number()}]
    lines += [{"path": name, "sha256": e.sha256, "record": dict(e.record)} for name, e in sorted(entries.items())]
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    with writing(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))


def changed_since(root: Path, names: Iterable[str]) -> set[str]:
    """Those of the files that were written, or touched, after the job had left them of which Snakemake has a record."""
    records = Records(root)
    left = {name: records.left_at(name) for name in names}
    return {name for name, time in left.items() if time is not None and (root / name).stat().st_mtime > time}


def restore(root: Path, unusable: dict[str, str] | None = None) -> list[str]:
    """Give Snakemake the records of every pulled folder below `root` whose provenance it has not been given yet.

    A file whose content is not the one that was recorded keeps the record that it has. Files that are, and are no
    links, get one time stamp, so that Snakemake need not read them to see that none is out of date.

    Args:
        unusable: gets a sentence for each folder whose provenance cannot be used; the others are then put back.

    Returns: sentences that the user shall read.

    Raises:
        UsbpoError: a provenance file cannot be used, and there is no `unusable`.
    """
    with in_turn(root / NOTES):
        state, said = pulled.note_of(root), pulled.check_note(root)
        known = {str(path.parent.relative_to(root)): path for path in _provenance_files(root)}
        for folder, path in known.items():
            before = state.get(folder, {"sha256": None, "cycles": [], "left": []})
            came = [cycle for cycle in before["left"] if (root / folder / layout.five_digits(cycle)).is_dir()]
            try:
                mark = _mark(path)
                if mark is not None and mark == before["sha256"] and not came:
                    continue
                number, entries = read(path)
                _check(path, folder, number, entries)
            except UsbpoError as error:
                if unusable is None:
                    raise
                unusable[folder] = str(error)
                continue
            said += _put_back(root, path, number, entries)
            cycles = _cycles(folder, entries)
            absent = [cycle for cycle in cycles if not (root / folder / layout.five_digits(cycle)).is_dir()]
            left = [cycle for cycle in absent if cycle in before["left"] or cycle not in before["cycles"]]
            state[folder] = {"sha256": mark, "cycles": cycles, "left": left}
        pulled.write_note(root, {folder: state[folder] for folder in state if folder in known})
    return said


def _check(path: Path, folder: str, number: int, entries: Mapping[str, Entry]) -> None:
    """Raise UsbpoError where entries are of another folder, or none of Snakemake's of the format `number`."""
    for name, entry in entries.items():
        if not name.startswith(f"{folder}/") or ".." in Path(name).parts:
            raise UsbpoError(f"{path}: it is of another folder; delete it, or pull {folder} again.")
        try:
            if number == format_number():
                check_kept(entry.record)
        except DAMAGE as error:
            raise _damaged(path, error) from error


def _mark(path: Path) -> str | None:
    """The SHA-256 of a provenance file; None where it is none that could be read."""
    try:
        about = path.stat()
        return sha256(path) if stat.S_ISREG(about.st_mode) and about.st_size <= LARGEST else None
    except OSError:
        return None


def remember(root: Path, folder: str) -> None:
    """Note that `folder`'s provenance needs not be put back, because it was made here."""
    path = root / folder / layout.PROVENANCE
    with in_turn(root / NOTES):
        state = pulled.note_of(root)
        left = pulled.left_behind(root, folder)
        state[folder] = {"sha256": sha256(path), "cycles": _cycles(folder, read(path)[1]), "left": left}
        pulled.write_note(root, state)


def _put_back(root: Path, path: Path, number: int, entries: Mapping[str, Entry]) -> list[str]:
    """Write the records of one folder, and make the time stamps of its files equal."""
    usable = number == format_number()
    records = Records(root)
    others = []
    for name, entry in entries.items():
        file = root / name
        is_there = file.is_file()
        if is_there and sha256(file) != entry.sha256:
            others += [name] if entry.sha256 else []
            continue
        if is_there and not (usable and _is_link(file)):
            os.utime(file, (STAMP, STAMP))
        if usable:
            records.put_back(name, entry.record, STAMP)
    said = []
    if others:
        more = f" and {len(others) - 1} more are" if len(others) > 1 else " is"
        said.append(
            f"{others[0]}{more} not what {path} describes; `dvc checkout --force {path.parent}` brings what is."
        )
    if not usable:
        said.append(
            f"{path} was written by a Snakemake that keeps its records otherwise (format {number}, here "
            f"{format_number()}): they cannot be used, so the files got equal time stamps instead, and Snakemake will "
            "not notice what was changed in the configuration or the code since they were made."
        )
    return said


def _is_link(file: Path) -> bool:
    return file.is_symlink() or file.stat().st_nlink > 1


def _cycles(folder: str, names: Iterable[str]) -> list[int]:
    """The cycles of a run whose folders have some of the files."""
    parts = {name.removeprefix(f"{folder}/").split("/")[0] for name in names}
    return sorted(int(part) for part in parts if len(part) == 5 and part.isdecimal())


def _provenance_files(root: Path) -> list[Path]:
    below = root / "data"
    return sorted([*below.glob(f"runs/*/*/seed-*/{layout.PROVENANCE}"), *below.glob(f"results/*/{layout.PROVENANCE}")])
