"""The seal of an artifact: the SHA-256 of its whole content, in the file itself, checked before anything parses it.

Near the beginning of every artifact stands `usbpo-sha256:` and 64 hexadecimal digits. They are those of the file with
zeros in their place, so that the seal goes wherever the file goes: by `cp`, by `dvc pull`, under another name. It tells
damage, not forgery: who can write a file can seal it.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from usbpo.artifacts.files import require, writing
from usbpo.errors import UsbpoError

MARK = b"usbpo-sha256:"
BLANK = b"0" * 64
UNSEALED = (MARK + BLANK).decode()
"""What a writer puts where the seal is to stand, within the first `HEAD` bytes"""
HEAD = 4096
KEY = "checksum"
"""The seal's key in JSON"""

PIECE = 1 << 18
"""Bytes that are read at a time: they stay in the cache"""

CURE = "delete it and run again, or pull it again"


def write(path: Path, fill: Callable[[BinaryIO], object]) -> str:
    """Write an artifact, whole or not at all, and seal it.

    Args:
        fill: writes the content, with `UNSEALED` near its beginning, into a new file.

    Returns:
        Its digest, 64 hexadecimal digits.

    Raises:
        UsbpoError: it cannot be written.
    """
    with writing(path) as temporary, open(temporary, "w+b") as file:
        fill(file)
        file.flush()
        place, digest = _digest(file)
        if place is None:
            raise ValueError(f"{path} has no place for a seal")
        file.seek(place)
        file.write(digest.encode())
    return digest


@contextmanager
def opened(path: Path, suffix: str) -> Iterator[tuple[BinaryIO, str]]:
    """An artifact whose content is that of its seal, open at its beginning, and its digest.

    Args:
        suffix: of its format, .h5, .safetensors or .json.

    Raises:
        UsbpoError: it is missing, cannot be read, is of another format, or is not what was written.
    """
    require(path, suffix)
    try:
        with open(path, "rb") as file:
            place, digest = _digest(file)
            if place is None:
                raise UsbpoError(
                    f"{path}: it is cut short or damaged, or was not written by this version of usbpo, for it has no "
                    f"checksum; {CURE}."
                )
            file.seek(place)
            if file.read(len(BLANK)) != digest.encode():
                raise UsbpoError(
                    f"{path}: it is cut short or damaged, or was changed, for its content is not that of its "
                    f"checksum; {CURE}."
                )
            file.seek(0)
            yield file, digest
    except OSError as error:
        raise UsbpoError(f"{path}: it cannot be read ({error.strerror or error}); {CURE}.") from error


def _digest(file: BinaryIO) -> tuple[int | None, str]:
    """Where the digits of an open file's seal stand, and what they should be; no place where it has no seal."""
    file.seek(0)
    head = file.read(HEAD)
    place = head.find(MARK) + len(MARK)
    if place < len(MARK) or place + len(BLANK) > len(head):
        return None, ""
    digest = hashlib.sha256(head[:place] + BLANK + head[place + len(BLANK) :])
    while content := file.read(PIECE):
        digest.update(content)
    return place, digest.hexdigest()
