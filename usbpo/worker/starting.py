"""Starting a warm worker in the background, at first and in place of one that has died or does not answer."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from usbpo.errors import UsbpoError
from usbpo.worker import protocol
from usbpo.worker.address import remove, socket_path, sweep, write_identity
from usbpo.workspace import lifetime

RETRY_SECONDS = 60.0
"""A worker that ended before it served is not started again for so long: it would most likely fail again."""


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
        with _alone_in(Path(path).parent, wait=True):
            if not protocol.is_served(path):
                sweep(Path(path).parent)
                _spawn(owner, path, "wb")
    except (OSError, UsbpoError) as error:
        print(f"usbpo: no warm worker ({error}).", file=sys.stderr)
        return ""
    return path


def start_again(path: str, lost: str) -> None:
    """Start a worker in place of the one that a client has found dead or silent; it is for the stages to come.

    Nothing is done where nobody owns the worker (USBPO_OWNER), where another client is or was faster, and where the
    last one never came to serve: because it is slow to import, or has just failed. A silent one that goes on after all
    sees that it was replaced, and ends with its last stage.

    Args:
        path: of its socket.
        lost: the worker, as `protocol.read_identity` told when the client began to ask.

    Raises:
        OSError, UsbpoError: it cannot be started.
    """
    wake(lost)
    owner = os.environ.get(lifetime.OWNER, "")
    if not owner or not lifetime.alive(owner) or path != socket_path(owner):
        return
    with _alone_in(Path(path).parent) as alone:
        if not alone or protocol.read_identity(path) != lost:
            return
        if os.path.exists(path) or not (protocol.is_alive(lost) or _has_just_failed(path)):
            remove(path)
            _spawn(owner, path, "ab")


def wake(worker: str) -> None:
    """Let a worker go on that somebody has stopped (SIGSTOP); one that runs takes no notice."""
    if protocol.is_alive(worker):
        try:
            os.kill(int(worker.partition(":")[0]), signal.SIGCONT)
        except ProcessLookupError:  # it has just ended
            pass


def _has_just_failed(path: str) -> bool:
    """Whether a worker that left no socket was started a moment ago; one that ended of itself leaves no file."""
    try:
        return time.time() - os.stat(protocol.identity_file(path)).st_mtime < RETRY_SECONDS
    except OSError:
        return False


@contextmanager
def _alone_in(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Be the only process that starts a worker in `folder` while the block runs, as far as the file system knows locks.

    Args:
        wait: for another one to have done so; else the block is told that it is not alone.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # no locks here
        yield True
    finally:
        os.close(descriptor)


def _spawn(owner: str, path: str, log_mode: str) -> None:
    """Start a worker in the background, and say beside its socket which process it is.

    Args:
        log_mode: how its log is opened.
    """
    state = Path(".snakemake")
    with open(state / "usbpo-worker.log" if state.is_dir() else os.devnull, log_mode) as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "usbpo.worker.warm"],  # -P: the folder of the run is no place to import from
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, lifetime.OWNER: owner, protocol.WORKER: path},
        )
    write_identity(path, process.pid)
