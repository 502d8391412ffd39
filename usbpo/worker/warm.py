"""The warm worker: imports the numerical libraries once and forks a child for each stage that a client asks for.

Importing torch, gymnasium and mujoco costs seconds; a fork costs milliseconds. The worker serves one user, runs only
the package's stage verbs, and ends when idle or when its owner does. Where it does not serve, `usbpo.worker.client`
runs the stage itself, with the same bytes as result.
"""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from usbpo.errors import UsbpoError
from usbpo.worker import protocol
from usbpo.worker.address import is_identity_of, remove, socket_path, write_identity
from usbpo.worker.server import Server
from usbpo.worker.stage_process import Run
from usbpo.workspace import lifetime

IDLE = "USBPO_WARM_IDLE"
"""Environment variable: after how many seconds without a stage the worker ends."""

IDLE_SECONDS = 600.0


def prepare() -> Run:
    """Import what the stages need and return the command line.

    Draws no random number and touches neither CUDA nor GL: their states do not survive a fork. So no optimizer of
    torch.optim takes a step here: it would ask for CUDA's stream. A stage chooses its device itself.
    """
    os.environ.update(protocol.ONE_THREAD)
    os.environ.pop("MUJOCO_GL", None)  # importing mujoco with `egl` would open a display
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU then starts no driver
    for name in ("numpy", "h5py", "gymnasium", "mujoco", "safetensors.torch"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    from usbpo.commands import cli

    cli.warm_up()
    return cli.main


def serve(path: str, run: Run, owner: str = "", idle: float = IDLE_SECONDS) -> None:
    """Serve stages on the socket `path` until idle for `idle` seconds, until `owner` ends, or until SIGTERM.

    Every import that the stages need has been made by now, with one thread only: a fork copies no other thread, and
    a child would wait for ever for what they held.

    Raises:
        UsbpoError: this process has more than one thread, the folder is not private, or another worker serves it.
    """
    threads = count_threads()
    if not protocol.is_private(os.path.dirname(path)):
        raise UsbpoError(f"{os.path.dirname(path)}: not a folder that only this user may enter; remove it.")
    if threads not in (None, 1):
        raise UsbpoError(f"the warm worker has {threads} threads after its imports, not 1; set USBPO_WARM=0.")
    if protocol.is_served(path) and not is_identity_of(path, os.getpid()):
        raise UsbpoError(f"{path}: another worker serves it; use that one, or end it.")
    gc.collect()
    gc.freeze()  # what the collector need not look at again it does not touch, so a child need not copy the page
    server = Server(path, run, owner, idle)
    write_identity(path, os.getpid())
    server.serve()


def run(idle: float | None = None) -> None:
    """Import everything, then serve the process that USBPO_OWNER names, or any client of this user if it is unset.

    Args:
        idle: seconds without a stage after which to end; default: USBPO_WARM_IDLE, or ten minutes.

    Raises:
        UsbpoError: serving is not possible; stages then run directly.
    """
    owner = os.environ.get(lifetime.OWNER, "")
    if owner and lifetime.is_foreign(owner):
        raise UsbpoError(f"{lifetime.OWNER}={owner} lives on another machine; unset it to start a worker here.")
    idle = _idle_seconds() if idle is None else idle
    path = socket_path(owner)
    expected = os.environ.get(protocol.WORKER, "") or path
    with _ending_with(owner, path):
        run_stage = prepare()
    if {expected, path} != {socket_path(owner)}:
        raise UsbpoError(
            f"the package or its environment is not the one that {protocol.WORKER}={expected} was meant for; "
            "unset it and start the worker again."
        )
    print(f"export {protocol.WORKER}={path}", flush=True)
    serve(path, run_stage, owner, idle)


@contextmanager
def _ending_with(owner: str, path: str) -> Iterator[None]:
    """While the block imports, end this process as soon as `owner` has ended; the server does so afterwards.

    By a timer: a thread that watches would be one more than a process that forks may have.
    """
    if not owner:
        yield
        return

    def look(number: int, frame: FrameType | None) -> None:
        if not lifetime.alive(owner):
            if is_identity_of(path, os.getpid()):
                remove(path)
            os._exit(1)

    signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)  # what a library waits for, it goes on to wait for
    signal.setitimer(signal.ITIMER_REAL, lifetime.POLL_SECONDS, lifetime.POLL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def main() -> int:
    """`python -m usbpo.worker.warm`: the exit status."""
    try:
        run()
    except UsbpoError as error:
        print(f"usbpo worker: {error}", file=sys.stderr)
        return 1
    return 0


def _idle_seconds() -> float:
    """How long to stay without a stage.

    Raises:
        UsbpoError: the environment variable is no number of seconds.
    """
    text = os.environ.get(IDLE, str(IDLE_SECONDS))
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise UsbpoError(f"{IDLE}={text}: not a number of seconds above 0; unset it for {IDLE_SECONDS:g}.")


def count_threads() -> int | None:
    """The number of threads of this process; None where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
