"""The child that the warm worker forks: it becomes the process that the client would have been, and runs the stage."""

import io
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from usbpo.errors import UsbpoError
from usbpo.worker import protocol, streams
from usbpo.workspace import lifetime

Run = Callable[[list[str]], int]
"""What a child runs: the arguments behind `usbpo`, to an exit status."""


class Stage(NamedTuple):
    """What a client asks to be run, and as which process."""

    argv: list[str]
    folder: str
    mask: int
    environment: dict[str, str]

    @classmethod
    def from_block(cls, block: bytes) -> "Stage":
        """Read what `client._send_request` wrote.

        Raises:
            ValueError, IndexError: it is something else.
        """
        words = [os.fsdecode(word) for word in block.split(b"\0")]
        end = 1 + int(words[0])
        environment = dict(word.split("=", 1) for word in words[end + 2 :])
        return cls(words[1:end], words[end], int(words[end + 1]), environment)


def detach(mask: set[int | signal.Signals], descriptors: list[int]) -> None:
    """Make the forked child a session of its own with the client's standard streams and no handlers of the worker's.

    Args:
        mask: the signals that stay blocked.
        descriptors: of the standard streams.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)


def run_stage(run: Run, stage: Stage, worker: str) -> int:
    """In the child, with the client's descriptors in place: run the stage; its exit status.

    Functions registered with atexit belong to the worker's libraries and do not run.
    """
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdout, sys.stderr = streams.output(1), streams.output(2, line_buffering=True)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    sys.argv = ["usbpo", *stage.argv]
    os.environ.clear()
    os.environ.update(stage.environment)
    os.environ.update(protocol.thread_settings(stage.environment))
    time.tzset()
    os.umask(stage.mask)
    os.chdir(stage.folder)
    try:
        lifetime.end_with(worker, *filter(None, [stage.environment.get(lifetime.OWNER)]))
    except UsbpoError as error:
        print(f"usbpo: {error}", file=sys.stderr)
        return 1
    status = _status_of(run, stage.argv)
    logging.shutdown()
    return streams.settle(status, stage.argv)


def _status_of(run: Run, argv: list[str]) -> int:
    """Call `run` and turn whatever it does into an exit status, as the interpreter would."""
    try:
        return run(argv) & 0xFF
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 128 + signal.SIGINT
    except Exception:  # as the interpreter does at the top level
        if not streams.have_failed():
            traceback.print_exc()
        return 1


def signal_group(child: int, number: int) -> None:
    """Send a signal to a stage and all that it started; it has not been reaped, so the number is still its own."""
    if number in signal.valid_signals():
        try:
            os.killpg(child, number)
        except (ProcessLookupError, PermissionError):  # not yet a group of its own, or (macOS) ended and not yet reaped
            os.kill(child, number)
