"""Which cycles of shared folders were published and not pulled: a note of what came when records were put back."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from usbpo.artifacts import layout
from usbpo.artifacts.files import read_json, write_json

STATE_FILE = ".snakemake/usbpo-provenance.json"
"""Of each folder: which provenance was put back last, the cycles in it, and those that were not there then."""


def left_behind(root: Path, folder: str) -> list[int]:
    """The cycles of a folder that were published, not pulled, and have not come since, in order.

    A cycle counts if its folder was not there when Snakemake was first given its records; whatever is deleted after
    that is made again.
    """
    left = note_of(root).get(folder, {"left": ()})["left"]
    return sorted(cycle for cycle in left if not (root / folder / layout.five_digits(cycle)).is_dir())


def note_of(root: Path) -> dict[str, Any]:
    """What stands in the note, by folder; each run asks, so it is read again only when it has changed."""
    path = root / STATE_FILE
    return dict(_read(path, path.stat().st_mtime_ns)) if path.is_file() else {}


@lru_cache(maxsize=1)
def _read(path: Path, modified: int) -> dict[str, Any]:
    return dict(read_json(path))


def write_note(root: Path, note: Mapping[str, Any]) -> None:
    """Leave the note of all folders, unless it stands there already."""
    if note != note_of(root):
        write_json(root / STATE_FILE, note)
