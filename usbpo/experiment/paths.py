"""Asking whether a file or folder is there, by a name that a person has given, however odd."""

import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from usbpo.errors import UsbpoError
from usbpo.experiment.sentences import shortened


def is_file(path: Path) -> bool:
    """Whether a file is there.

    Raises:
        UsbpoError: nobody can tell, for a folder cannot be entered or the name can be none.
    """
    return S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder is there.

    Raises:
        UsbpoError: as `is_file`.
    """
    return S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """What the system says of a path; 0 where nothing is."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:  # ValueError: of a NUL in the name
        raise UsbpoError(
            f"{shortened(path)}: it cannot be looked at ({getattr(error, 'strerror', None) or error}); mend the name, "
            "or the permissions of its folder."
        ) from error
