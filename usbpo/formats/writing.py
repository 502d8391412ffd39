"""What every export needs: the optional packages, and a folder that is written whole or not at all."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from usbpo.artifacts.files import beside
from usbpo.errors import UsbpoError


def require_packages(what: str, *packages: str) -> None:
    """Check that optional packages are installed.

    Raises:
        UsbpoError: one is not; the sentence has the command that installs those that are missing.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        names = " and ".join(missing)
        raise UsbpoError(f"{what} needs {names}, not installed here; `pip install {' '.join(missing)}`.")


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, and put it in its place when the block ends well.

    An older export is replaced, but nothing else: every name in the folder must be one of the new ones. What an
    earlier, killed writer of the same folder left behind is removed.

    Raises:
        UsbpoError: the folder holds something else, or cannot be made, written or replaced.
    """
    folder = Path(os.path.abspath(folder))
    temporary = beside(folder, f"{os.getpid()}.partial")
    replaced = beside(folder, f"{os.getpid()}.replaced.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left_over in folder.parent.glob(f".{escape(folder.name)}.*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            _check_replaceable(folder, {path.name for path in temporary.iterdir()})
            os.replace(folder, replaced)
        try:
            os.replace(temporary, folder)
        except OSError:
            if replaced.exists():
                os.replace(replaced, folder)
            raise
    except OSError as error:
        raise UsbpoError(
            f"{folder}: writing failed ({error.strerror or error}); free space or choose another --output."
        ) from error
    finally:
        for left_over in (temporary, replaced):
            shutil.rmtree(left_over, ignore_errors=True)


def _check_replaceable(folder: Path, new: set[str]) -> None:
    others = sorted({path.name for path in folder.iterdir()} - new - {"__pycache__"})
    if others:
        raise UsbpoError(f"{folder}: it holds {others[0]}, which is no part of an export; choose another --output.")
