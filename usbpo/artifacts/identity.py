"""The header of any artifact, whatever its format, once its content has been held against its seal."""

from pathlib import Path

from usbpo.artifacts import hdf5, sealing
from usbpo.artifacts.files import parse_json
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError


def safetensors_header(path: Path, content: bytes, digest: str) -> Header:
    """Our header in the metadata of a safetensors file.

    Args:
        path: of the file.
        content: of the file.
        digest: of its content.

    Raises:
        UsbpoError: there is none, or it is damaged.
    """
    length = int.from_bytes(content[:8], "little")
    metadata = parse_json(path, content[8 : 8 + length])
    entries = metadata.get("__metadata__") if isinstance(metadata, dict) else None
    text = entries.get("header") if isinstance(entries, dict) else None
    if not isinstance(text, str):
        raise UsbpoError(f"{path}: this safetensors file was not written by usbpo; name one that was.")
    found = parse_json(path, text)
    if isinstance(found, dict):
        found.pop(sealing.KEY, None)
    return Header.from_content(path, found, digest)


def header_of(path: Path) -> Header:
    """The header of an artifact in HDF5 or safetensors.

    Raises:
        UsbpoError: it is missing, damaged, or neither.
    """
    if path.suffix == ".h5":
        with hdf5.opened(path) as arrays:
            return arrays.header
    with sealing.opened(path, ".safetensors") as (file, digest):
        return safetensors_header(path, file.read(), digest)
