"""Imported real data that a run begins with: whether they are there and for it, and reading them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from usbpo.artifacts import hdf5, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.errors import UsbpoError


def check_imported(path: Path, environment: str, environment_arguments: str, steps: int) -> None:
    """Check that a file is an import for an environment with so many rows.

    Args:
        path: what `usbpo import` wrote.
        environment: Gymnasium id.
        environment_arguments: keyword arguments of the environment, as JSON.
        steps: random steps in whose place its first rows come.

    Raises:
        UsbpoError: it is missing, damaged or no import, was made for another environment, or has too few rows.
    """
    with _imported(path), hdf5.opened(path, transitions.IMPORTED) as arrays:
        header, rows = arrays.header, arrays.shapes.get("rewards", (0,))[0]
    asked = {"environment": environment, "environment_arguments": environment_arguments}
    for name, value in asked.items():
        has = header.parameters.get(name)
        if has != value:
            raise UsbpoError(f"{path}: its {name} is {has}, but {value} is asked for; import it for this task.")
    if rows < steps:
        raise UsbpoError(
            f"{path}: it has {rows} rows, but {steps} are asked for; set schedule.random_steps to {rows} or fewer."
        )


def read_imported(path: Path) -> tuple[Header, Transitions]:
    """All rows of a file that `check_imported` has passed.

    Raises:
        UsbpoError: it is damaged.
    """
    with _imported(path):
        return transitions.read(path, transitions.IMPORTED)


@contextmanager
def _imported(path: Path) -> Iterator[None]:
    """Have errors say what makes such a file: no stage does, so that running again does not help."""
    if not path.is_file():
        raise UsbpoError(f"{path}: there is no such file; make it with `usbpo import`, or name another.")
    try:
        yield
    except (UsbpoError, OSError) as error:
        raise UsbpoError(
            f"{path}: it cannot be read, or is no whole file of this version's `usbpo import`; make it anew with that, "
            "or name another."
        ) from error
