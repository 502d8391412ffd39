"""What every export needs: the optional packages, and a folder that is written whole or not at all."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

    What an earlier, killed writer of the same folder left behind is removed.

    Raises:
        UsbpoError: the folder cannot be made, written or replaced.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left_over in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
    except OSError as error:
        raise UsbpoError(
            f"{folder}: writing failed ({error.strerror or error}); free space or choose another --output."
        ) from error
    finally:
        for left_over in (temporary, replaced):
            shutil.rmtree(left_over, ignore_errors=True)
