"""The files that an environment's arguments name: found, checked, and counted by their content.

A text among the arguments names a file if one of that name lies in the folder of the run, or beside the user's module
that registers the environment; a folder, if the text has a slash. An XML file counts with the files that it names.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree

from usbpo.artifacts.files import sha256
from usbpo.environments import usercode
from usbpo.errors import UsbpoError

MODELS = (".xml", ".mjcf", ".mjb", ".urdf")
"""Endings by which a text is known to name a file."""

MOST = 10_000
"""Files of a folder that an argument names."""


def content_of(environment: str, arguments: Mapping[str, Any], root: Path = Path()) -> str:
    """SHA-256 of all files that the arguments name, with their names from where they are named; '' where none does.

    Args:
        environment: Gymnasium id, or `module:id`.
        arguments: keyword arguments of the environment.
        root: folder of the run.

    Raises:
        UsbpoError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    named = False
    for key, text in _texts(arguments):
        for path in _named(text, environment, root):
            for name, file in _with_parts(path):
                named = True
                digest.update(f"{key} {name} {_content(file, key)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest() if named else ""


def check(environment: str, arguments: Mapping[str, Any], root: Path = Path()) -> None:
    """Check that the files which the arguments name are there and can be read.

    A name that no file has is let pass where the environment can be made with it: it then looks elsewhere.

    Raises:
        UsbpoError: one is missing or cannot be read.
    """
    content_of(environment, arguments, root)
    for key, text in _texts(arguments):
        missing = _looks_like_a_path(key, text) and not _named(text, environment, root)
        if missing and not _can_be_made(environment, arguments):
            raise UsbpoError(f"{key} names {text[:300]}, but there is no such file; put it there, or mend the name.")


def _texts(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text among the arguments, with the key that it stands under."""
    for key, value in sorted(arguments.items()):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield key, text


def _looks_like_a_path(key: str, text: str) -> bool:
    begins = text.startswith(("./", "../", "/", "~/"))
    return begins or key.lower().endswith(("file", "filename", "path")) or PurePath(text).suffix.lower() in MODELS


def _named(text: str, environment: str, root: Path) -> list[Path]:
    """The files and folders that a text names, in the places where it may be meant."""
    module, colon, _ = environment.partition(":")
    beside = usercode.folder_of(module) if colon else None
    places = dict.fromkeys([root / os.path.expanduser(text), *([beside / text] if beside else [])])
    return [path for path in places if _is(os.path.isfile, path) or ("/" in text and _is_folder(path, root))]


def _is(kind: Any, path: Path) -> bool:
    try:
        return bool(kind(path))
    except (OSError, ValueError):  # no name of a file: too long, or with a NUL
        return False


def _is_folder(path: Path, root: Path) -> bool:
    """Whether a path is a folder of the user's, and not one that holds the run or what comes out of it."""
    if not _is(os.path.isdir, path):
        return False
    own, run = path.resolve(), root.resolve()
    return not run.is_relative_to(own) and not own.is_relative_to(run / "data")


def _with_parts(path: Path) -> list[tuple[str, Path]]:
    """A file, with those that it names if it is XML, or the files of a folder; each with its name from there."""
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        files = sorted(islice(inside, MOST + 1))
        if len(files) > MOST:
            raise UsbpoError(f"{path}: it holds more than {MOST:,} files; name a smaller folder, or a file.")
    else:
        files = sorted(_closure(path)) if path.suffix.lower() in MODELS else [path]
    above = path if path.is_dir() else path.parent
    return [(os.path.relpath(file, above), file) for file in files]


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in name.parts)


def _closure(model: Path) -> set[Path]:
    """A model's file and all that it names: included files, meshes, textures, height fields.

    A name is looked for from every file that was found and from every folder that one of them gives for meshes and the
    like; a file too many does no harm.
    """
    found, waiting = {model}, [model]
    named, folders = set[str](), {""}
    while waiting:
        for element in _elements(waiting.pop()):
            folders |= {value for name, value in element.items() if name.endswith("dir")}
            named |= {value for name, value in element.items() if name.startswith("file")}
        above = {file.parent / folder for file in found for folder in folders}
        parts = {Path(os.path.normpath(folder / name)) for folder in above for name in named}
        new = {part for part in parts - found if _is(os.path.isfile, part)}
        found |= new
        waiting += new
    return found


def _elements(file: Path) -> list[ElementTree.Element]:
    """The elements of an XML file; none of any other file."""
    if file.suffix.lower() not in MODELS:
        return []
    try:
        return list(ElementTree.parse(file).iter())
    except (ElementTree.ParseError, OSError, ValueError, LookupError):  # the simulator will say what is wrong
        return []


def _content(file: Path, key: str) -> str:
    try:
        about = file.stat()
        return _sha256(file.absolute(), about.st_mtime_ns, about.st_size)
    except OSError as error:
        raise UsbpoError(
            f"{key} names {file}, which cannot be read ({error.strerror}); mend its permissions."
        ) from error


@cache
def _sha256(file: Path, modified: int, size: int) -> str:
    """SHA-256 of a file, which is read again when it has changed."""
    return sha256(file)


def _can_be_made(environment: str, arguments: Mapping[str, Any]) -> bool:
    from usbpo.environments.tasks import make  # not before: it is heavy, and mostly every file is there

    try:
        make(environment, arguments).close()
    except UsbpoError:
        return False
    return True
