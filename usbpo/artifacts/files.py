"""Writing artifacts whole or not at all, and reading and writing JSON."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usbpo.errors import UsbpoError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; flush it and move it into place when the block ends well.

    A reader sees the old file or the new one, never half of one. What an earlier, killed writer of the same
    artifact left behind is removed.

    Raises:
        UsbpoError: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in path.parent.glob(f".{path.name}.*.partial"):
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
    """Read a JSON file.

    Raises:
        UsbpoError: the file is missing or is not JSON.
    """
    require(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsbpoError(f"{path}: not a JSON file ({error}); delete it and run again.") from error


def require(path: Path, suffix: str | None = None) -> None:
    """Raise UsbpoError unless `path` is a file, and not plainly one of another format than `suffix` stands for."""
    if not path.is_file():
        raise UsbpoError(f"{path}: there is no such file; run the stage that makes it, or name another.")
    with open(path, "rb") as file:
        begin = file.read(10)
    found = ".h5" if begin.startswith(b"\x89HDF\r\n\x1a\n") else ".safetensors" if begin[8:] == b'{"' else None
    if suffix is not None and found not in (None, suffix):
        raise UsbpoError(f"{path}: this is a {found} file where a {suffix} file is expected; name the right file.")


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
