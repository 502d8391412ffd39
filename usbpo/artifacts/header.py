"""What every artifact says of itself: kind, schema, task, seed, cycle, versions and parameters."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from usbpo import __version__
from usbpo.errors import UsbpoError

SCHEMA_VERSION = 1
"""Raised whenever the layout of an artifact changes."""


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
    schema_version: int = SCHEMA_VERSION
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def identity(self) -> dict[str, str | int]:
        """Whose artifact it is, as the JSON files of a cycle begin."""
        return {"task": self.task, "seed": self.seed, "cycle": self.cycle}

    def to_json(self) -> str:
        """The header as compact JSON with a fixed order of keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(path: Path, text: str) -> "Header":
        """The header that `to_json` wrote into the artifact `path`.

        Raises:
            UsbpoError: it is damaged, or was written with another schema.
        """
        try:
            content = dict(json.loads(text))
            schema = int(content["schema_version"])
            if schema == SCHEMA_VERSION:  # another one may have other fields
                return Header(**content)
        except (ValueError, TypeError, KeyError) as error:
            raise UsbpoError(f"{path}: its header is damaged; delete it and run again to make it anew.") from error
        raise UsbpoError(
            f"{path}: written with schema {schema}, but this version reads schema {SCHEMA_VERSION}; "
            "delete it and run again to make it anew."
        )

    def expect(self, path: Path, kind: str) -> None:
        """Check the artifact's kind.

        Raises:
            UsbpoError: it is another kind of artifact.
        """
        if self.kind != kind:
            raise UsbpoError(f"{path}: its kind is {self.kind}, but {kind} is expected; name the right file.")

    def belongs(self, path: Path, found: "Header") -> None:
        """Check that the input `path` with the header `found` is of the task and seed that this output is made for.

        Raises:
            UsbpoError: it is not.
        """
        for name, has, asked in found._differences(self):
            raise UsbpoError(f"{path}: its {name} is {has}, but {asked} is asked for; give files of one run.")

    def same_run(self, path: Path, other: "Header", other_path: Path) -> None:
        """Check that two artifacts belong to one task and seed.

        Raises:
            UsbpoError: they do not.
        """
        for name, mine, theirs in self._differences(other):
            raise UsbpoError(f"{path}: its {name} is {mine}, but {other_path} has {theirs}; give files of one run.")

    def _differences(self, other: "Header") -> list[tuple[str, Any, Any]]:
        """What says that two artifacts are of different runs: name, this one's and the other's value."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in ("task", "seed")]
        return [(name, mine, theirs) for name, mine, theirs in pairs if mine != theirs]


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
        if is_parameter(value) and name not in ("task", "seed", "cycle")
    }
