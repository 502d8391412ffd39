"""Which cycles of shared folders were published and not pulled: a note of what came when records were put back."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from usbpo.artifacts import layout
from usbpo.artifacts.files import write_json

STATE_FILE = ".snakemake/usbpo-provenance.json"
"""Of each folder: which provenance was put back last, the cycles in it, and those that were not there then."""

LARGEST = 2**26
"""Bytes of the note; 10 kB for a run of 1,600 cycles"""

DAMAGE = (OSError, ValueError, RecursionError, MemoryError)


def left_behind(root: Path, folder: str) -> list[int]:
    """The cycles of a folder that were published, not pulled, and have not come since, in order.

    A cycle counts if its folder was not there when Snakemake was first given its records; whatever is deleted after
    that is made again.
    """
    left = note_of(root).get(folder, {"left": ()})["left"]
    return sorted(cycle for cycle in left if not (root / folder / layout.five_digits(cycle)).is_dir())


def note_of(root: Path) -> dict[str, Any]:
    """What stands in the note, by folder; nothing where it is damaged, which `check_note` says.

    Each run asks, so it is read again only when it has changed.
    """
    path = root / STATE_FILE
    try:
        return dict(_read(path, path.stat().st_mtime_ns)) if path.is_file() else {}
    except DAMAGE:
        return {}


def check_note(root: Path) -> list[str]:
    """A sentence where the note is damaged; the records are then put back once more, which leaves it whole."""
    path = root / STATE_FILE
    try:
        if path.is_file():
            _read(path, path.stat().st_mtime_ns)
    except DAMAGE as error:
        return [
            f"{path}: it is damaged ({str(error).splitlines()[0]}) and is made anew from what was pulled; cycles that "
            "were deleted since count as not pulled."
        ]
    return []


@lru_cache(maxsize=1)
def _read(path: Path, modified: int) -> dict[str, Any]:
    """The note, each part of its type.

    Raises:
        one of DAMAGE: it is not as `write_note` has left it.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError("it is too large")
    note = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(note, dict):
        raise ValueError("it is no mapping")
    for folder, about in note.items():
        if not isinstance(about, dict) or about.keys() != {"sha256", "cycles", "left"}:
            raise ValueError(f"what it says of {folder} is something else")
        numbers = [about["cycles"], about["left"]]
        if not all(isinstance(some, list) and all(type(one) is int for one in some) for some in numbers):
            raise ValueError(f"the cycles of {folder} are none")
    return note


def write_note(root: Path, note: Mapping[str, Any]) -> None:
    """Leave the note of all folders, unless it stands there already; whoever calls it keeps others from doing so."""
    if note != note_of(root) or check_note(root):
        write_json(root / STATE_FILE, note)
