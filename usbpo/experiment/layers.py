"""The files of the configuration: where they are, which inherit from which, and what they say laid over each other."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from usbpo.errors import UsbpoError
from usbpo.experiment.paths import is_file
from usbpo.experiment.sentences import shortened
from usbpo.experiment.yaml_files import read_yaml

FOLDERS = (Path("config"), Path(__file__).parents[2] / "config")
"""Where task, method and experiment files are looked up, as the workflow does: the user's, then the project's"""


def find(kind: Literal["tasks", "algorithms", "experiments"], name: str, folders: Iterable[Path]) -> Path:
    """The file `NAME.yaml` in the first of the configuration `folders` that has it.

    Raises:
        UsbpoError: there is none, and the sentence lists the names that exist or, without any, says where it looked; or
            nobody can tell.
    """
    folders = list(folders)
    for folder in folders:
        path = folder / kind / f"{name}.yaml"
        if is_file(path):
            return path
    known = sorted({path.stem for folder in folders for path in (folder / kind).glob("*.yaml") if path.is_file()})
    what = {"tasks": "task", "algorithms": "method", "experiments": "experiment"}[kind]
    unknown = f"unknown {what} {shortened(repr(name))}: there is no config/{kind}/{shortened(name)}.yaml"
    if known:
        raise UsbpoError(f"{unknown}; known are {', '.join(known)}.")
    places = " and ".join(shortened((folder / kind).absolute()) for folder in folders)
    raise UsbpoError(f"{unknown}; known are none in {places}; run this in the project's folder, or mend the name.")


def experiment_file(name: str | None) -> Path:
    """The file of an experiment, by its path or a name: of a file in config/experiments, or of the default one (None).

    Raises:
        UsbpoError: there is no such experiment.
    """
    default = next((of / "config.yaml" for of in FOLDERS if is_file(of / "config.yaml")), Path("config.yaml"))
    if name is None:
        return default
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if any(is_file(of / f"experiments/{name}.yaml") for of in FOLDERS) or not is_file(default):
        return find("experiments", name, FOLDERS)
    return default if read_yaml(default).get("experiment") == name else find("experiments", name, FOLDERS)


def read_layers(kind: Literal["tasks", "algorithms"], name: str, folders: Iterable[Path]) -> list[tuple[Path, Any]]:
    """A task or method file and the files that it inherits from, the most general first.

    Raises:
        UsbpoError: a file is missing or broken, or the inheritance runs in a circle.
    """
    return read_bases(kind, find(kind, name, folders), folders)


def read_bases(kind: Literal["tasks", "algorithms"], path: Path, folders: Iterable[Path]) -> list[tuple[Path, Any]]:
    """As `read_layers`, for a file anywhere.

    Raises:
        UsbpoError: as `read_layers`.
    """
    folders = list(folders)
    layers: list[tuple[Path, Any]] = []
    while True:
        if any(path == seen for seen, _ in layers):
            raise UsbpoError(f"{path}: base leads back to this file; let one of the files inherit from none.")
        content = read_yaml(path)
        content.pop("description", None)
        following = content.pop("base", None)
        if following is not None and not isinstance(following, str):
            raise UsbpoError(f"{path}: base must be a name, but is {shortened(repr(following))}.")
        layers.append((path, content))
        if following is None:
            return layers[::-1]
        path = find(kind, following, folders)


def overlay(lower: Any, upper: Any) -> Any:
    """Lay one nested mapping over another; anything that is no mapping replaces what was below."""
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return upper
    return {
        k: overlay(lower[k], upper[k]) if k in lower and k in upper else (upper if k in upper else lower)[k]
        for k in [*lower, *(k for k in upper if k not in lower)]
    }


def merged(layers: Iterable[tuple[Path, Any]]) -> Any:
    """The content of several files laid over each other, the most general first."""
    content: Any = {}
    for _, upper in layers:
        content = overlay(content, upper)
    return content
