"""The user's own modules: how they are found, imported and watched for changes."""

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from usbpo.artifacts.fingerprint import code_alone
from usbpo.errors import UsbpoError

_INSTALLED = tuple(
    {os.path.realpath(sysconfig.get_path(kind)) + os.sep for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
)

imported: set[str] = set()
"""The user's modules that this process has imported; it knows nothing of later changes to them."""


def make_importable() -> None:
    """Let modules in the current folder, where the run is, be imported.

    The folder comes last, so that a file in it never takes the place of an installed package.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()


def refuse_data(name: str) -> None:
    """Check that a module does not lie below data/: what is pulled, imported or exported lies there, and is no code.

    Raises:
        UsbpoError: it does.
    """
    spec = _spec(name)
    found = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
    for place in (Path(os.path.abspath(place)) for place in found if place):
        if any(_holds_data(folder) for folder in place.parents):
            raise UsbpoError(f"the module {name!r} is {place}, below data/, where no code is looked for; move it out.")


def _holds_data(folder: Path) -> bool:
    """Whether a folder is data/ of the current folder or, as what lies beside it tells, of a workspace elsewhere."""
    above = folder.parent
    return folder.name == "data" and (
        above == Path.cwd() or any((above / sign).exists() for sign in (".dvc", ".snakemake", "Snakefile"))
    )


def import_module(name: str) -> ModuleType:
    """Import a module of the user's.

    Raises:
        UsbpoError: it is not found, lies below data/, or its code fails.
    """
    make_importable()
    refuse_data(name)
    imported.add(name)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UsbpoError(
            f"the module {name!r} cannot be imported: {told(error)}; mend it, or put it into the folder of the run "
            "or on PYTHONPATH."
        ) from error


def told(error: BaseException) -> str:
    """An exception of the user's code in a few words: its type, its message, and the line where it was raised."""
    message = " ".join(str(error).split()).rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {message}" if message else f"{type(error).__name__}{place}"


def module_fingerprint(name: str) -> str:
    """Hash of the code of a module of the user's and of the modules of the user's that it imports; '' if not found.

    Comments and docstrings do not count. A package counts with all its files. What it imports counts where it is
    neither installed nor part of Python nor of this package. Only the outermost package's finder may run code.
    """
    found: dict[str, list[Path]] = {}
    waiting = {name}
    while waiting:
        module = waiting.pop()
        found[module] = _files(module, installed=module == name)
        for file in found[module]:
            if not _is_installed(file):
                waiting |= {imported for imported in _imports(file, module) if imported not in found}
    digest = hashlib.sha256()
    if not found[name]:
        return ""
    for module, files in sorted(found.items()):
        for file in files:
            digest.update(f"{module} {file.name}\n{_code(file)}\n".encode())
    return digest.hexdigest()[:16]


def folder_of(module: str) -> Path | None:
    """Where a module of the user's lies, without importing it; None if it is not found."""
    spec = _spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None and spec.has_location else None


def _code(file: Path) -> str:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return code_alone(text)
    except (SyntaxError, ValueError):  # not Python as yet: then every change counts
        return text


def _files(module: str, installed: bool) -> list[Path]:
    """The source of a module, without importing it: its file, or all files of its package.

    Args:
        installed: whether what is installed, and this package, count as well.
    """
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.has_location:
        return []
    if not installed and (module.split(".")[0] == "usbpo" or _is_installed(Path(spec.origin))):
        return []
    if spec.submodule_search_locations:
        return sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py"))
    return [Path(spec.origin)] if spec.origin.endswith(".py") else []


def _spec(module: str) -> ModuleSpec | None:
    places: list[str] | None = [*sys.path, os.getcwd()]
    spec: ModuleSpec | None = None
    name = ""
    importlib.invalidate_caches()
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(part, places)  # of the whole name a folder without __init__.py wants its parent
        if spec is None and name == module.split(".")[0]:
            try:
                spec = importlib.util.find_spec(name)  # what is installed for development has finders of its own
            except (ImportError, ValueError):
                return None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return spec


def _is_installed(file: Path) -> bool:
    return os.path.realpath(file).startswith(_INSTALLED)


def _imports(file: Path, module: str) -> set[str]:
    """The modules that a file may import; what is no module is not found and does no harm."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays within the module's package; without one, it stands beside the module.
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names
