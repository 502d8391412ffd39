"""What every artifact says of itself: kind, run, cycle, parameters, versions, and the digests of its inputs."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from usbpo import __version__
from usbpo.artifacts.files import parse_json
from usbpo.artifacts.sealing import CURE
from usbpo.errors import UsbpoError

SCHEMA_VERSION = 2
"""Raised whenever the layout of an artifact changes."""

UNNAMED = "unnamed"
"""The method of what is made by hand and belongs to no configuration."""


def versions() -> dict[str, str]:
    """Versions of this package and of what shapes an artifact's numbers."""
    found = {package: _version(package) for package in ("mujoco", "gymnasium", "torch", "numpy")}
    return {"usbpo": __version__} | {package: number for package, number in found.items() if number}


@cache
def _version(package: str) -> str | None:
    """Without the build's local label, so that it does not depend on where the package came from."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Header:
    """Identity of an artifact. Holds no time, host or path, so that equal work gives equal bytes."""

    kind: str
    task: str
    seed: int
    cycle: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    method: str = UNNAMED
    inputs: dict[str, list[str]] = field(default_factory=dict)
    """The digests of the artifacts that it was made from, by the name of the stage's argument, in their order"""
    schema_version: int = SCHEMA_VERSION
    versions: Mapping[str, str] = field(default_factory=versions)
    digest: str = field(default="", compare=False, repr=False)
    """Of the artifact that this header was read from; not written, for there it is the seal"""

    @property
    def run(self) -> dict[str, str | int]:
        """The run that it belongs to."""
        return {"task": self.task, "method": self.method, "seed": self.seed}

    @property
    def identity(self) -> dict[str, str | int]:
        """Whose artifact it is, as the JSON files of a cycle begin."""
        return {**self.run, "cycle": self.cycle}

    def to_json(self) -> str:
        """The header as compact JSON with a fixed order of keys."""
        return json.dumps({name: getattr(self, name) for name in _WRITTEN}, sort_keys=True)

    @staticmethod
    def from_json(path: Path, text: str | bytes, digest: str) -> "Header":
        """The header that `to_json` wrote into the artifact `path` of this digest.

        Raises:
            UsbpoError: it is damaged, or was written with another schema.
        """
        return Header.from_content(path, parse_json(path, text), digest)

    @staticmethod
    def from_content(path: Path, content: Any, digest: str) -> "Header":
        """As `from_json`, from what its JSON says."""
        if isinstance(content, dict) and type(content.get("schema_version")) is int:
            schema = content["schema_version"]
            if schema != SCHEMA_VERSION:  # another one may have other fields
                raise UsbpoError(
                    f"{path}: written with schema {schema}, but this version reads schema {SCHEMA_VERSION}; "
                    "delete it and run again to make it anew, or read it with the version that wrote it."
                )
            if content.keys() == _WRITTEN.keys() and all(may_be(content[name]) for name, may_be in _WRITTEN.items()):
                return Header(**content, digest=digest)
        raise UsbpoError(f"{path}: its header is damaged; {CURE}.")

    def expect(self, path: Path, kind: str) -> None:
        """Check the artifact's kind.

        Raises:
            UsbpoError: it is another kind of artifact.
        """
        if self.kind != kind:
            raise UsbpoError(f"{path}: its kind is {self.kind}, but {kind} is expected; name the right file.")

    def same_run(self, path: Path, other: "Header", other_path: Path) -> None:
        """Check that two artifacts belong to one run.

        Raises:
            UsbpoError: they do not.
        """
        for what, mine in self.run.items():
            theirs = other.run[what]
            if mine != theirs:
                raise UsbpoError(f"{path}: its {what} is {mine}, but {other_path} has {theirs}; give files of one run.")

    def takes(self, name: str, path: Path, found: "Header", cycles: int | Collection[int] | None = None) -> None:
        """Check that an input is of the run of this output, and of the right cycle; and keep its digest.

        Args:
            name: of the stage's argument.
            path: of the input.
            found: its header.
            cycles: the cycle, or those, that it may be of; any without it.

        Raises:
            UsbpoError: it is of another task, method, seed or cycle, or was taken already.
        """
        for what, asked in self.run.items():
            has = found.run[what]
            if has != asked:
                raise UsbpoError(f"{path}: its {what} is {has}, but {asked} is asked for; give files of one run.")
        allowed = [cycles] if isinstance(cycles, int) else cycles
        if allowed is not None and found.cycle not in allowed:
            wanted = f"must be of cycle {' or '.join(map(str, allowed))}" if allowed else "must not be given"
            raise UsbpoError(
                f"{path}: it is of cycle {found.cycle}, but --{name.replace('_', '-')} {wanted} where cycle "
                f"{self.cycle} is made; give the files that belong to it."
            )
        taken = self.inputs.setdefault(name, [])
        if found.digest in taken:
            raise UsbpoError(f"{path}: it is given twice as --{name.replace('_', '-')}; give every file once.")
        taken.append(found.digest)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()  # it is shown on terminals


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_object(value: Any, of: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(value, dict) and all(name.isprintable() and of(entry) for name, entry in value.items())


_WRITTEN: dict[str, Callable[[Any], bool]] = {
    "kind": _is_text,
    "task": _is_text,
    "method": _is_text,
    "seed": _is_number,
    "cycle": _is_number,
    "parameters": _is_object,
    "inputs": lambda value: _is_object(value, lambda many: isinstance(many, list) and all(map(_is_text, many))),
    "schema_version": _is_number,
    "versions": lambda value: _is_object(value, _is_text),
}
"""The fields that are written, and whether a value may be one's."""


PHYSICS = ("mujoco", "gymnasium")
"""The packages of which all real data of a run must have one version (`docs/reliability.md`)"""


def other_physics(found: Header) -> str | None:
    """In which versions of the simulator, other than those that are installed, an artifact was made; None for none."""
    now = versions()
    other = [
        f"{package} {found.versions.get(package)} (here {now.get(package)})"
        for package in PHYSICS
        if found.versions.get(package) != now.get(package)
    ]
    return " and ".join(other) or None


def require_same_physics(path: Path, found: Header) -> None:
    """Check that the real data of a run go on in the simulator in which they began.

    Raises:
        UsbpoError: another one is installed.
    """
    if other := other_physics(found):
        raise UsbpoError(
            f"{path}: it was collected with {other}, and a run has one simulator; install that version, or delete the "
            "run's folder and collect it anew."
        )


def check_place(path: Path, found: Mapping[str, Any], task: str, method: str, seed: int, cycle: int) -> None:
    """Check that an artifact is of the run and cycle in whose folder it lies.

    Args:
        found: its identity, or a JSON artifact's content, which holds one.

    Raises:
        UsbpoError: it is not.
    """
    its = tuple(found.get(name) for name in ("task", "method", "seed", "cycle"))
    if its != (task, method, seed, cycle):
        raise UsbpoError(
            f"{path}: it is of {its[0]}, {its[1]}, seed {its[2]}, cycle {its[3]}, which does not fit its folder; "
            "put it back in its own place or delete it and run again."
        )


def parameters_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among a stage's arguments: everything but files and what the header names anyway.

    What is absent, no file or no number, is left out.
    """

    def is_parameter(value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(isinstance(entry, int | float | str) for entry in value)
        return isinstance(value, bool | int | float | str)

    return {
        name: value
        for name, value in arguments.items()
        if is_parameter(value) and name not in ("task", "method", "seed", "cycle")
    }
