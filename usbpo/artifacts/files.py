"""Writing artifacts whole or not at all, and reading and writing JSON."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from usbpo.errors import UsbpoError


def beside(path: Path, end: str) -> Path:
    """The hidden name beside `path` that is its own and `end`.

    Raises:
        UsbpoError: `path` has no name, as the root folder and the present one have none.
    """
    if not path.name:
        raise UsbpoError(f"{path}: it is a folder that cannot be replaced; choose another output.")
    return path.with_name(f".{path.name}.{end}")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; flush it and move it into place when the block ends well.

    A reader sees the old file or the new one, never half of one. What an earlier, killed writer of the same
    artifact left behind is removed; so a file that several processes write needs a lock around this.

    Raises:
        UsbpoError: the folder cannot be made or written.
    """
    temporary = beside(path, f"{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in path.parent.glob(f".{escape(path.name)}.*.partial"):
            left_over.unlink(missing_ok=True)
        temporary.touch()
    except OSError as error:
        raise UsbpoError(
            f"{path}: the folder {path.parent} cannot be written ({error.strerror}); "
            "choose another output or mend its permissions."
        ) from error
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsbpoError(
            f"{path}: writing failed ({error.strerror or error}); free space or choose another output."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with a fixed order of keys; NaN and infinities are refused."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of the workspace's own, which is no artifact and has no seal.

    Raises:
        UsbpoError: the file is missing, cannot be read or is not JSON.
    """
    require(path)
    try:
        return parse_json(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise UsbpoError(f"{path}: it cannot be read ({error}); delete it and run again.") from error


def parse_json(path: Path, text: str | bytes) -> Any:
    """What JSON in the file `path` says; NaN and infinities are refused, as JSON has none.

    Raises:
        UsbpoError: it is not JSON, or is nested too deeply.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UsbpoError(f"{path}: not a JSON file ({error}); delete it and run again.") from error


def require(path: Path, suffix: str | None = None) -> None:
    """Check that a path is a file that can be read, and not plainly one of another format.

    Args:
        suffix: of the expected format, .h5, .safetensors or .json.

    Raises:
        UsbpoError: it is not.
    """
    try:
        if not path.is_file():
            raise UsbpoError(f"{path}: there is no such file; run the stage that makes it, or name another.")
        with open(path, "rb") as file:
            begin = file.read(16)
    except OSError as error:
        name = str(path) if len(str(path)) < 300 else f"{str(path)[:200]}…"
        raise UsbpoError(
            f"{name}: it cannot be read ({error.strerror or error}); mend its permissions, or name another."
        ) from error
    found = _format_of(begin)
    if suffix is not None and found not in (None, suffix):
        raise UsbpoError(f"{path}: this is a {found} file where a {suffix} file is expected; name the right file.")


def _format_of(begin: bytes) -> str | None:
    """The suffix of the format that a file begins like; None for one of no known format."""
    if begin.startswith((b"usbpo-sha256:", b"\x89HDF\r\n\x1a\n")):  # what stands before HDF5 in our files, and HDF5
        return ".h5"
    if begin[8:10] == b'{"':  # behind its length
        return ".safetensors"
    return ".json" if begin.startswith(b"{\n") else None


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
