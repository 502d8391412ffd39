"""Arrays on disk as HDF5, for every tool there is, which our own readers read without HDF5.

An HDF5 file may begin with a block of the user's own. In ours stand the seal, the header, and where each array lies,
one contiguous piece of the file. So nothing but JSON is parsed to read an artifact: whatever else an HDF5 file may
hold, links to other files, data without end, filters, is not looked at. The library writes, and is there for all
others.
"""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from usbpo.artifacts import sealing
from usbpo.artifacts.files import parse_json
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError

NUMBERS = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
"""What an array may hold"""
LONGEST_BLOCK = 1 << 20
"""Bytes that the block in front has at most; ours have some thousand"""


class Arrays:
    """The arrays of an open artifact, by name; each is read when it is asked for.

    Attributes:
        path, header: of the artifact.
        shapes: of its arrays.
    """

    def __init__(self, path: Path, header: Header, file: BinaryIO, index: Mapping[str, Any]) -> None:
        self.path, self.header, self._file = path, header, file
        self._places: dict[str, tuple[np.dtype[Any], int]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        size = file.seek(0, io.SEEK_END)
        for name, entry in index.items():
            if not _is_place(entry, size):
                raise UsbpoError(f"{path}: the place of its array {name!r} is damaged; {sealing.CURE}.")
            number, shape, place = entry
            self._places[name], self.shapes[name] = (np.dtype(number), place), tuple(shape)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One array, whatever it holds.

        Raises:
            UsbpoError: there is none of this name.
        """
        if name not in self:
            raise UsbpoError(f"{self.path}: it has no {name}; {sealing.CURE}.")
        (kind, place), shape = self._places[name], self.shapes[name]
        values = np.empty(shape, kind)  # its own memory, so that it can grow
        if values.size:
            self._file.seek(place)
            read = self._file.readinto(values.data.cast("B"))  # type: ignore[attr-defined]
            if read != values.nbytes:
                raise UsbpoError(f"{self.path}: it was cut short while it was read; {sealing.CURE}.")
        if kind == np.bool_ and values.view(np.uint8).max(initial=0) > 1:
            raise UsbpoError(f"{self.path}: {name} holds what is neither true nor false; {sealing.CURE}.")
        return values

    def take(self, name: str, number: type[np.generic], dimensions: int = 1) -> NDArray[Any]:
        """One array of a type and of so many dimensions.

        Raises:
            UsbpoError: there is none of this name, or it is another.
        """
        values = self[name]
        if values.dtype != number or values.ndim != dimensions:
            raise UsbpoError(
                f"{self.path}: {name} is {values.dtype} in {values.ndim} dimensions, but {number.__name__} in "
                f"{dimensions} is expected; {sealing.CURE}."
            )
        return values


def _is_place(entry: Any, size: int) -> bool:
    """Whether an entry of the index says where an array lies in a file of `size` bytes."""
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    number, shape, place = entry
    if number not in NUMBERS or not isinstance(shape, list) or not 1 <= len(shape) <= 8:
        return False
    if not all(type(value) is int and 0 <= value <= size for value in (place, *shape)):
        return False
    return bool(place + prod(shape) * np.dtype(number).itemsize <= size)


def write(
    path: Path, header: Header, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, int] | None = None
) -> str:
    """Write arrays by name, `group/name` in a group; a scalar becomes an array of one row.

    Args:
        attributes: what other tools shall find beside the header's entries.

    Returns:
        The artifact's digest.

    Raises:
        UsbpoError: it cannot be written, or an array holds no numbers.
    """
    rows = {name: np.ascontiguousarray(np.atleast_1d(values)) for name, values in arrays.items()}
    for name, values in rows.items():
        if values.dtype.name not in NUMBERS or not values.dtype.isnative:
            raise UsbpoError(f"{path}: {name} is {values.dtype}, which is not stored; give numbers of 64 bits at most.")
    shown = {"kind": header.kind, "schema_version": header.schema_version, **header.identity}
    shown |= {f"{package}_version": number for package, number in header.versions.items()} | dict(attributes or {})
    shown["header"] = header.to_json()
    return sealing.write(path, lambda file: _fill(file, header, rows, shown))


def _fill(file: BinaryIO, header: Header, arrays: Mapping[str, NDArray[Any]], shown: Mapping[str, Any]) -> None:
    """Write the HDF5 file, then the block before it.

    Raises:
        OSError: the disk is full, or will not take it for another reason.
    """
    import h5py  # not before: who only reads needs none

    longest = {name: [values.dtype.name, values.shape, 1 << 60] for name, values in arrays.items()}
    size = 512
    while size < len(_block(header, longest)):
        size *= 2
    disk = _Disk(file)
    try:
        with h5py.File(disk, "w", userblock_size=size) as hdf5:
            hdf5.attrs.update(shown)
            made = {n: hdf5.create_dataset(n, data=values, track_times=False) for n, values in arrays.items()}
            places = {name: dataset.id.get_offset() if dataset.size else 0 for name, dataset in made.items()}
    finally:
        disk.report()
    index = {name: [values.dtype.name, values.shape, places[name]] for name, values in arrays.items()}
    file.seek(0)
    file.write(_block(header, index).ljust(size, b"\n"))


def _block(header: Header, index: Mapping[str, Any]) -> bytes:
    """What stands before the HDF5 file: the seal's place, the header, and type, shape and place of each array."""
    content = {"arrays": index, "header": json.loads(header.to_json())}
    return f"{sealing.UNSEALED}\n{json.dumps(content, sort_keys=True)}\n".encode()


class _Disk:
    """A new file as HDF5 sees it: one whose writing never fails, for the library cannot take that without a crash.

    It keeps the first error for `report`, and from then on takes what comes without writing it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.read, self.readinto, self.tell = file.read, file.readinto, file.tell  # type: ignore[attr-defined]

    def _tried(self, act: Any, *given: Any) -> Any:
        try:
            return None if self._error else act(*given)
        except OSError as error:
            self._error = error
        return None

    def write(self, content: Any) -> int:
        self._tried(self._file.write, content)
        return len(content)

    def seek(self, *given: int) -> int:
        return int(self._tried(self._file.seek, *given) or 0)

    def truncate(self, size: int) -> int:
        self._tried(self._file.truncate, size)
        return size

    def flush(self) -> None:
        self._tried(self._file.flush)

    def report(self) -> None:
        """Raise the error, if there was one."""
        if self._error:
            raise self._error


@contextmanager
def opened(path: Path, kind: str | None = None) -> Iterator[Arrays]:
    """The arrays of an artifact of a kind, or of any.

    Raises:
        UsbpoError: it is missing, cut short, damaged, or of another kind.
    """
    with sealing.opened(path, ".h5") as (file, digest):
        file.readline()
        content = parse_json(path, file.readline(LONGEST_BLOCK))
        if not isinstance(content, dict) or not isinstance(content.get("arrays"), dict):
            raise UsbpoError(f"{path}: the block before its data is damaged; {sealing.CURE}.")
        header = Header.from_content(path, content.get("header"), digest)
        if kind is not None:
            header.expect(path, kind)
        yield Arrays(path, header, file, content["arrays"])
