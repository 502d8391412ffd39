"""Where the warm worker's socket lies, and the file beside it that tells whose it is."""

import os
import socket
import tempfile
from pathlib import Path

from usbpo.errors import UsbpoError
from usbpo.worker import protocol
from usbpo.workspace import lifetime

LONGEST_PATH = 100
"""The address of a Unix socket has 104 bytes on macOS and 108 on Linux."""


def socket_path(owner: str = "") -> str:
    """The socket of the worker of `owner` for this package and environment: `FOLDER/FINGERPRINT-PID.sock`.

    FOLDER is made if need be: `usbpo` in $XDG_RUNTIME_DIR, or `usbpo-UID` among the temporary files.

    Raises:
        UsbpoError: there is such a folder, but it is not private to this user.
    """
    name = f"{protocol.fingerprint()}-{owner.partition(':')[0] or '0'}.sock"
    own = f"usbpo-{os.geteuid()}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folders = [os.path.join(runtime, "usbpo")] if runtime and protocol.is_private(runtime) else []
    folders += [os.path.join(tempfile.gettempdir(), own), os.path.join("/tmp", own)]
    folder = next(folder for folder in folders if len(os.fsencode(os.path.join(folder, name))) <= LONGEST_PATH)
    try:
        os.mkdir(folder, 0o700)
    except OSError:
        pass  # it is there, or the next line tells
    if not protocol.is_private(folder):
        raise UsbpoError(f"{folder}: not a folder that only this user may enter; remove it, or set USBPO_WARM=0.")
    return os.path.join(folder, name)


def listen(path: str) -> socket.socket:
    """Bind `path`, in place of a socket that nobody serves any more; it appears there only when it can be connected."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}~"
    Path(temporary).unlink(missing_ok=True)
    listener.bind(temporary)
    listener.listen(128)
    os.replace(temporary, path)
    return listener


def write_identity(path: str, pid: int) -> None:
    """Say beside the socket which process serves it, or will: clients wait as long as it lives."""
    assert path, "a worker without a socket has no identity"
    temporary = Path(f"{protocol.identity_file(path)}~{os.getpid()}")
    temporary.write_text(lifetime.identity(pid) + "\n", encoding="ascii")
    os.replace(temporary, protocol.identity_file(path))


def is_identity_of(path: str, pid: int) -> bool:
    """True where the socket `path` is the one of process `pid`."""
    return protocol.read_identity(path) == lifetime.identity(pid)


def sweep(folder: Path) -> None:
    """Remove what killed workers left behind."""
    for file in folder.glob("*.pid"):
        path = str(file.with_suffix(".sock"))
        if not protocol.is_served(path):
            remove(path)


def remove(path: str) -> None:
    """Remove a socket and the file beside it."""
    for file in (path, protocol.identity_file(path)):
        Path(file).unlink(missing_ok=True)
