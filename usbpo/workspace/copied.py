"""A workspace that was copied: files get back the times that Snakemake knows, and another package is noticed.

`cp -r`, rsync and archives without times leave every file newer than its job. Snakemake then holds contents against its
records, but not those of files above `max-checksum-file-size`: it would make their readers anew, which may be most of a
run. And a virtual environment names its own place, so that a copied one still runs the package of the first place.
"""

import filecmp
import os
from pathlib import Path

import usbpo
from usbpo.artifacts.files import sha256, write_text
from usbpo.workspace.lifetime import NOTES, WORKSPACE, in_turn
from usbpo.workspace.snakemake_inside import Records

PLACE = Path(".snakemake/usbpo-place")
"""Holds the number by which the file system knows the workspace's lock file: a copy has another one."""


def settle(root: Path) -> list[str]:
    """Where the workspace was copied since a Snakemake was last here, give files the times that their jobs left them.

    A file whose content a job has recorded gets its time only if it still has that content. One that was read without
    a record of its content, because it is large, is taken for what it was. One that nothing has read is made a
    millisecond newer: older than its job's inputs if these have changed, and so that `usbpo publish` looks into it.
    Of several that start at once, one does it and the others wait for it.

    Returns: a sentence where files got their times.

    Raises:
        UsbpoError: the workspace cannot be written.
    """
    here = str((root / WORKSPACE).stat().st_ino)
    with in_turn(root / NOTES):
        try:
            noted = (root / PLACE).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            noted = ""
        if noted == here:
            return []
        many = _give_times(root) if noted else 0
        write_text(root / PLACE, here)
    if not many:
        return []
    return [
        f"This workspace was copied: {many} files got back the times at which they were made, and are not made anew."
    ]


def _give_times(root: Path) -> int:
    """Set the times of files that are newer than their jobs have left them; how many."""
    records = Records(root)
    made, read = list(records.names()), dict[str, set[str]]()
    for name in made:
        for path, digits in records.inputs(name).items():
            read.setdefault(path, set()).update({digits} - {""})
    many = 0
    for path in made:
        contents = read.get(path)
        file, left = root / path, records.left_at(path)
        if left is None or file.is_symlink() or not file.is_file() or file.stat().st_mtime <= left:
            continue
        if not contents or sha256(file) in contents:
            time = left if path in read else left + 0.001
            os.utime(file, (time, time))
            many += 1
    return many


def other_package(project: Path) -> list[str]:
    """A sentence where the package in use is another one than the one beside the Snakefile, by its content."""
    used, beside = Path(usbpo.__file__).parent, project / "usbpo"
    if not (beside / "__init__.py").is_file() or used.samefile(beside):
        return []
    names = {path.relative_to(folder) for folder in (used, beside) for path in folder.rglob("*.py")}
    _, *others = filecmp.cmpfiles(used, beside, [str(name) for name in names], shallow=False)
    if not any(others):
        return []
    return [
        f"The package in use is {used}, which is another one than {beside}; if this project was copied, delete its "
        ".venv, type `make setup`, and activate it anew."
    ]
