"""A fingerprint of a stage's code: it changes when the code does, and not with a comment or a docstring.

Snakemake sees only the shell line of a rule. The fingerprint stands among the rule's `params`, so that a change
of `ensemble.py` reruns the stages that use it, and nothing else.
"""

import ast
import hashlib
import io
import tokenize
from functools import cache
from pathlib import Path

from usbpo.artifacts.files import sha256
from usbpo.errors import UsbpoError

PACKAGE = Path(__file__).parents[1]


@cache
def fingerprint(module: str) -> str:
    """Hash of the code of a module of this package and of all modules of it that it imports, directly or not.

    Args:
        module: name below the package, such as `stages.phase1`.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(module)):
        digest.update(f"{name}\n{_code_of(name)}\n".encode())
    return digest.hexdigest()[:16]


def data_fingerprint(name: str) -> str:
    """Hash of a data file of this package.

    Args:
        name: its path below the package, such as `report/published_curves.csv`.

    Raises:
        UsbpoError: it is missing.
    """
    path = PACKAGE / name
    if not path.is_file():
        raise UsbpoError(f"{path}: the file is missing; `git checkout` it or install usbpo again.")
    return sha256(path)[:16]


@cache
def _code_of(module: str) -> str:
    return code_alone(_file(module).read_text(encoding="utf-8"))


def code_alone(source: str) -> str:
    """The source without comments, docstrings, blank lines and trailing blanks."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        # A text that stands as a statement does nothing: a docstring of a module, class, function or field.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _closure(module: str) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(name))
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules of this package that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(_file(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "usbpo":
            below = node.module.removeprefix("usbpo").removeprefix(".")
            names |= {below, *(f"{below}.{alias.name}".removeprefix(".") for alias in node.names)}
    return frozenset(name for name in names if name and _file(name).is_file())


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
