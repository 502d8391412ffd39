"""Starting a warm worker in the background."""

import os
import subprocess
import sys
from pathlib import Path

from usbpo.errors import UsbpoError
from usbpo.worker import protocol
from usbpo.worker.address import socket_path, sweep, write_identity
from usbpo.workspace import lifetime


def start(owner: str | None = None) -> str:
    """Start a worker for `owner` (default: this process) in the background and return its socket's path at once.

    Put the path into the environment variable USBPO_WORKER of the stages; they wait for the worker's imports. A path
    that is already served is returned as it is. Where the worker is turned off (USBPO_WARM=0) or no private folder
    can be had for its socket, the path is empty and stages run directly. What the worker says goes to
    `.snakemake/usbpo-worker.log` where that folder exists.
    """
    if os.environ.get(protocol.SWITCH) == "0":
        return ""
    owner = owner or lifetime.identity()
    try:
        path = socket_path(owner)
        if not protocol.is_served(path):
            sweep(Path(path).parent)
            write_identity(path, _spawn(owner, path))
    except (OSError, UsbpoError) as error:
        print(f"usbpo: no warm worker ({error}).", file=sys.stderr)
        return ""
    return path


def _spawn(owner: str, path: str) -> int:
    """Start a worker in the background: its process id."""
    state = Path(".snakemake")
    with open(state / "usbpo-worker.log" if state.is_dir() else os.devnull, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "usbpo.worker.warm"],  # -P: the folder of the run is no place to import from
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, lifetime.OWNER: owner, protocol.WORKER: path},
        ).pid
