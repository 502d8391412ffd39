"""Artifacts as tests need them: of another cycle or run than they were made for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from usbpo.artifacts import checkpoints, hdf5, sealing, transitions
from usbpo.artifacts.identity import header_of


def reheaded(path: Path, **changes: Any) -> Path:
    """The artifact in HDF5 or safetensors with the same content, under a header that is changed."""
    header = header_of(path)
    changed = replace(header, **changes)
    if path.suffix == ".h5":
        with hdf5.opened(path) as found:
            arrays = {name: found[name] for name in found.shapes}
        hdf5.write(path, changed, arrays)
    else:
        checkpoints.write(path, changed, checkpoints.read(path, header.kind)[1])
    return path


def of_cycle(path: Path, cycle: int) -> Path:
    """The artifact as one of a cycle; real data as those of all cycles up to it."""
    header = header_of(path)
    whole = {"shards": cycle + 1} if header.kind == transitions.KIND else {}
    return reheaded(path, cycle=cycle, parameters={**header.parameters, **whole})


def edited(path: Path, old: bytes, new: bytes) -> Path:
    """The artifact with other bytes of the same number in the first place that has them, and a seal that is theirs."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    return sealed(path, content.replace(old, new, 1))


def sealed(path: Path, content: bytes) -> Path:
    """Content with a seal of its own, whatever it is."""
    place = content.find(sealing.MARK) + len(sealing.MARK)
    sealing.write(
        path, lambda file: file.write(content[:place] + sealing.BLANK + content[place + len(sealing.BLANK) :])
    )
    return path


def with_value(path: Path, name: str, row: int, value: float) -> Path:
    """The artifact in HDF5 with another value in a row of an array."""
    with hdf5.opened(path) as found:
        arrays = {each: found[each] for each in found.shapes}
        header = found.header
    arrays[name][row] = value
    hdf5.write(path, header, arrays)
    return path
