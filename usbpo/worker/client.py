"""The command `usbpo`: hands a stage to the warm worker where there is one, and runs everything else here."""

import os
import sys

from usbpo.stages import STAGES
from usbpo.worker.protocol import (
    ACCEPTED,
    GO,
    SITE,
    SWITCH,
    WORKER,
    fingerprint,
    is_private,
    is_served,
    read_identity,
    site,
    thread_settings,
)

# A stage by the warm worker takes milliseconds, and each counts: nothing is imported that is not needed, and of socket,
# signal and hashlib only what they are in C, which knows no enums. TYPE_CHECKING is typing's, without its import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from _socket import socket as Socket
    from collections.abc import Callable
else:
    import _signal as signal

VERBOSE = "USBPO_WARM_VERBOSE"
"""Environment variable: 1 says on stderr why a stage did not go to the worker."""

PATIENCE_SECONDS = 20.0
"""How long a client waits for a worker that is still importing, or does not answer."""


def main() -> int:
    """Run `usbpo ARGUMENTS...` and return its exit status."""
    argv = sys.argv[1:]
    path = os.environ.get(WORKER, "")
    if path and os.environ.get(SWITCH) != "0" and argv and argv[0] in STAGES:
        status = _warm(path, argv)
        if status is not None:
            return status
    return _direct(argv)


def shell_function() -> dict[str, str]:
    """The environment variables by which `usbpo` in bash, as long as a worker serves, starts Python without its site.

    That is a third of the client's time. What the client then cannot do, the command does that it takes the place of.
    """
    from shlex import quote

    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = f"import sys; sys.path.append({package!r}); from usbpo.worker.client import main; sys.exit(main())"
    return {
        "BASH_FUNC_usbpo%%": f'() {{ exec {quote(sys.executable)} -IS -c {quote(start)} "$@"; }}',
        SITE: site(),
    }


def _direct(argv: list[str]) -> int:
    """Run `argv` in this process, or in one in its place that has all of Python."""
    if sys.flags.no_site:
        os.execv(sys.executable, [sys.executable, "-Pm", "usbpo.worker.client", *argv])
    from usbpo.worker import streams

    streams.open_closed()
    os.environ.update(thread_settings(os.environ))
    owner = os.environ.get("USBPO_OWNER", "")
    if owner and argv[:1] != ["worker"]:  # a worker watches its owner itself, without a thread
        from usbpo.errors import UsbpoError
        from usbpo.workspace import lifetime

        try:
            lifetime.end_with(owner)
        except UsbpoError as error:
            print(f"usbpo: {error}", file=sys.stderr)
            return 1
    from usbpo.commands import cli

    streams.take_over()
    try:
        status = cli.main(argv, also=[_worker_verb()])
    except OSError:
        if not streams.have_failed():
            raise
        status = 1
    return streams.settle(status, argv)


def _worker_verb() -> "Callable[..., None]":
    """The verb `worker`, which the command line below knows nothing of."""
    from usbpo.worker.verb import worker

    return worker


def _warm(path: str, argv: list[str]) -> int | None:
    """Have the worker at `path` run the stage `argv`; None means that we must run it, and that nobody else does."""
    import _socket as socket

    if not _may_ask(path):
        return None
    worker = read_identity(path)
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # until the stage starts, Ctrl-C just ends us, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not _connect(connection, path):
            _say(f"no worker serves {path}")
            _replace(path, worker)
        elif _ask(connection, argv):
            return _outcome(connection, worker)
    except _Lost as error:
        print(f"usbpo: {error}; it runs again, directly.", file=sys.stderr)
        _replace(path, worker)
    except OSError as error:
        _say(f"the worker cannot be asked ({error})")
        _replace(path, worker)
    finally:
        connection.close()
    signal.signal(signal.SIGINT, on_interrupt)
    return None  # run it here


class _Lost(Exception):
    """The worker has ended while it ran the stage, and the stage with it."""


def _replace(path: str, worker: str) -> None:
    """Have another worker serve the stages to come, in place of one that is dead or silent."""
    from usbpo.errors import UsbpoError
    from usbpo.worker import starting

    try:
        starting.start_again(path, worker)
    except (OSError, UsbpoError) as error:
        _say(f"no worker can be started in its place ({error})")


def _may_ask(path: str) -> bool:
    """True where the socket `path` can only be of our own worker, with the package and environment of this client."""
    if not is_private(os.path.dirname(path)):
        _say(f"the folder of {path} is missing, or not private to this user")
    elif os.path.basename(path).partition("-")[0] != fingerprint():
        _say("the package or its environment changed after the worker was started")
    elif None in (sys.stdin, sys.stdout, sys.stderr):
        _say("a standard stream is closed, and the worker needs all three")
    else:
        return True
    return False


def _ask(connection: "Socket", argv: list[str]) -> bool:
    """Offer the stage to the worker: True once it has accepted.

    Raises:
        OSError: the worker vanished, or is silent. Nothing was started: that takes our `GO`.
    """
    _send_request(connection, argv)
    if (answer := _answer(connection)) == ACCEPTED:
        return True
    if not answer:
        raise ConnectionError("it has ended")
    _say(f"the worker answered {answer.decode()!r}")
    return False


def _answer(connection: "Socket") -> bytes:
    """The worker's next line, without its end; it says nothing more before we do."""
    line = b""
    while not line.endswith(b"\n") and (content := connection.recv(4096)):
        line += content
    return line.rstrip()


def _connect(connection: "Socket", path: str) -> bool:
    """Connect to the worker, waiting for it while it is still importing; False where there is none to wait for."""
    import time

    connection.settimeout(PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    served = True
    while True:
        try:
            connection.connect(path)
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            if not served or time.monotonic() > deadline:
                return False
        time.sleep(0.02)
        served = is_served(path)  # if not, one more look: it may have bound its socket since the last


def _send_request(connection: "Socket", argv: list[str]) -> None:
    """Send what the child shall be: arguments, folder, file creation mask, environment, and descriptors 0, 1 and 2.

    All of it is a block of NUL-separated words behind its length (8 bytes).
    """
    import _socket as socket

    mask = os.umask(0o077)
    os.umask(mask)
    words = [str(len(argv)), *argv, os.getcwd(), str(mask), *(f"{key}={value}" for key, value in os.environ.items())]
    block = b"\0".join(map(os.fsencode, words))
    message = len(block).to_bytes(8, "big") + block
    descriptors = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in (0, 1, 2))
    rest = message[connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]) :]
    if rest:  # an empty one would fail if the worker has answered and left already
        connection.sendall(rest)


def _outcome(connection: "Socket", worker: str) -> int | None:
    """Let the stage start, pass signals on to it, and end as it ends; None where it could not be started.

    A signal travels as the byte of its number.

    Raises:
        OSError: the worker vanished before the stage was started.
        _Lost: it ended later; so did the stage, which holds the connection as long as it lives.
    """

    def forward(number: int, _: object) -> None:
        try:
            connection.send(bytes([number]))
        except OSError:
            pass  # the worker is gone: the answer below tells

    connection.sendall(GO)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored here, as after nohup: no concern of the stage
            signal.signal(number, forward)
    answer = _last_answer(connection, worker).split(maxsplit=1)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is forward:
            signal.signal(number, signal.SIG_DFL)
    match answer:
        case [b"exit", status]:
            return int(status)
        case [b"signal", status]:
            return _die_of(int(status))
        case [b"refused", reason]:
            _say(f"the worker refused: {reason.decode().strip()}")
            return None
    raise _Lost("the warm worker ended while it ran this stage, and the stage with it")


def _last_answer(connection: "Socket", worker: str) -> bytes:
    """What the worker says of the stage's end, however long that takes; "" where both have ended without a word."""
    while True:
        try:
            return _answer(connection)
        except TimeoutError:  # a stage may take hours; a worker that somebody has stopped would never tell of its end
            from usbpo.worker import starting

            starting.wake(worker)
        except OSError:
            return b""


def _die_of(number: int) -> int:
    """End by signal `number`, as the stage did; the status that a shell would give where the signal does not end us."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _say(reason: str) -> None:
    """Tell, where it is wished, why the stage runs directly."""
    if os.environ.get(VERBOSE) == "1":
        print(f"usbpo: {reason}; running directly.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
