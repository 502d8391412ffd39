"""Starts the project's commands from a process that has imported what they import: a fork instead of seconds of CPU.

The tests start Snakemake, `dvc` and `usbpo` hundreds of times, and most of the CPU time of such a start is importing.
So the first test that needs one starts a process (this file, with SOCKET and OWNER), which all workers of the tests
share. It imports everything and forks a child for each command, with the arguments, folder, environment and streams
that the command was to have. The warm workers that those Snakemakes start come from it, too. With USBPO_TESTS_COLD=1,
as in `make test-slow`, every command is started as a user's shell does it.
"""

import atexit
import fcntl
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import psutil

COLD = "USBPO_TESTS_COLD"
"""Environment variable: 1 starts every command as a user's shell does."""

SAFE = ("USBPO_", "GIT_", "DVC_", "COLUMNS")
"""Beginnings of variables that no library reads while it is imported."""

IMPORTED = (
    *("snakemake.cli", "snakemake.storage", "snakemake_logger_plugin_usbpo", "jsonschema", "smart_open"),
    *("dvc.cli", "dvc.repo", "gymnasium.envs.mujoco.inverted_pendulum_v5"),
    *("usbpo.commands.publish", "usbpo.worker.client", "usbpo.workspace.provenance", "usbpo.workspace.restoring"),
    *("usbpo.report.results", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
)
FINGERPRINTED = ("report.results", "formats.tensorboard", "formats.video", "formats.film")
Request = dict[str, Any]


# ---- the tests' side ---------------------------------------------------------------------------------------------


def may_serve(changes: dict[str, str]) -> bool:
    """Whether a command whose environment has these changes would be the same if it came from a fork."""
    return os.environ.get(COLD) != "1" and all(name.startswith(SAFE) for name in changes)


def run(program: str, arguments: list[str], folder: Path, environment: dict[str, str], seconds: float) -> Any:
    """Run a command to its end: its exit status, below 0 where a signal ended it, and all that it printed.

    Args:
        program: one of `PROGRAMS`.
        seconds: after which it is killed.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    with tempfile.TemporaryFile() as said, open(os.devnull, "rb") as nothing:
        with ask(program, arguments, folder, environment, [nothing, said, said]) as connection:
            lines = connection.makefile("r")
            connection.settimeout(seconds)
            try:
                _, code = int(lines.readline()), int(lines.readline())
            except TimeoutError:  # as the connection is closed, the command is killed
                raise subprocess.TimeoutExpired([program, *arguments], seconds) from None
        said.seek(0)
        return code, said.read().decode(errors="replace")


class Started:
    """A command at work that nobody hears: what the tests want of a `subprocess.Popen`."""

    def __init__(self, program: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        with open(os.devnull, "r+b") as nothing:
            self._connection = ask(program, arguments, folder, environment, [nothing] * 3)
        self._lines = self._connection.makefile("r")
        self.pid = int(self._lines.readline())
        """Of the command, which leads a process group of its own."""

    def wait(self, seconds: float) -> int:
        """Its exit status, below 0 where a signal ended it, once it has ended; TimeoutError if it does not in time."""
        self._connection.settimeout(seconds)
        return int(self._lines.readline())

    def kill(self) -> None:
        """Have it killed unless it has ended, by closing the connection."""
        self._lines.close()
        self._connection.close()


def ask(
    program: str, arguments: list[str], folder: Path | str, environment: dict[str, str], streams: list[IO[bytes]]
) -> socket.socket:
    """Ask for a command; the connection tells its process id in a line, and in another one how it ended."""
    words = {"program": program, "arguments": arguments, "folder": str(folder), "environment": environment}
    message = json.dumps(words).encode() + b"\n"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(_address())
    socket.send_fds(connection, [message[:1]], [stream.fileno() for stream in streams])
    connection.sendall(message[1:])
    return connection


def set_place(folder: Path, owner: int) -> None:
    """Say where the tests keep what all of their workers share, and with which process what they start shall end."""
    global _place
    _place = folder, owner


_place: tuple[Path, int] | None = None


@cache
def _address() -> str:
    """The socket of the process, which is started unless another worker of the tests has done so."""
    assert _place is not None
    folder, owner = _place
    told = folder / "forks.address"
    with open(folder / "forks.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            address = Path(tempfile.mkdtemp(prefix="usbpo-forks-")) / "s"  # short: a socket's path is limited
            with open(folder / "forks.log", "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", __file__, str(address), str(owner)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
                )
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", (folder / "forks.log").read_text()
            told.write_text(str(address))
        return told.read_text()


# ---- the process -------------------------------------------------------------------------------------------------


def _snakemake(arguments: list[str]) -> Any:
    from snakemake.cli import main
    from snakemake.workflow import Workflow

    from usbpo.worker import starting

    assert "_rundir" in vars(Workflow)
    Workflow._rundir = os.getcwd()  # worked out when it was imported

    assert starting.subprocess is subprocess
    starting.subprocess = SimpleNamespace(DEVNULL=subprocess.DEVNULL, Popen=_Forked)  # type: ignore[assignment]
    return main(arguments)


def _dvc(arguments: list[str]) -> Any:
    from dvc.cli import main

    return main(arguments)


def _usbpo(_: list[str]) -> Any:
    from usbpo.worker.client import main
    from usbpo.workspace import dvc_inside

    assert dvc_inside.subprocess is subprocess
    dvc_inside.subprocess = SimpleNamespace(run=_run_dvc)  # type: ignore[assignment]
    return main()


def _worker(_: list[str]) -> Any:
    from usbpo.worker.warm import main

    return main()


PROGRAMS: dict[str, Callable[[list[str]], Any]] = {
    "snakemake": _snakemake,
    "dvc": _dvc,
    "usbpo": _usbpo,
    "worker": _worker,
}


class _Forked:
    """In place of the `subprocess.Popen` by which Snakemake starts a warm worker: that is a fork as well."""

    def __init__(
        self,
        words: list[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        start_new_session: bool,
        env: dict[str, str],
    ) -> None:
        assert words[1:] == ["-P", "-m", "usbpo.worker.warm"]
        assert stdin == subprocess.DEVNULL
        assert start_new_session, "as every fork has"
        with open(os.devnull, "rb") as nothing, ask("worker", [], os.getcwd(), env, [nothing, stdout, stderr]) as asked:
            self.pid = int(asked.makefile("r").readline())


def _run_dvc(words: list[str], *, cwd: Path, capture_output: bool, text: bool) -> "subprocess.CompletedProcess[str]":
    """In place of the `subprocess.run` by which `usbpo publish` calls DVC: that is a fork as well."""
    assert words[1:4] == ["-P", "-m", "dvc"]
    assert capture_output
    assert text
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        with ask("dvc", words[4:], cwd.absolute(), dict(os.environ), [nothing, out, err]) as asked:
            _, code = (int(line) for line in asked.makefile("r"))
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read().decode(), err.read().decode())


def _prepare() -> None:
    """Import what the commands import, and what they work out of this project's code, which stays as it is."""
    from usbpo.worker.warm import prepare

    prepare()  # first: it says how many threads the numerical libraries take
    for module in IMPORTED:
        importlib.import_module(module)
    from snakemake.cli import get_argument_parser

    from usbpo.artifacts.fingerprint import fingerprint
    from usbpo.stages import STAGES

    get_argument_parser()  # it imports the plugins
    for module in (*(f"stages.{stage}" for stage in STAGES), *FINGERPRINTED):
        fingerprint(module)


def main(address: str, owner: int) -> int:
    """Serve until `owner` ends; in a child, run what was asked for and end as it does."""
    _prepare()
    assert len(os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else [0]) == 1, "no threads may fork"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(16)
    globals()["_address"] = lambda: address  # for the commands that ask for a warm worker
    print("ready", flush=True)
    os.close(1)
    os.open(os.devnull, os.O_WRONLY)
    while True:
        ready, _, _ = select.select([listener], [], [], 1.0)
        _reap()
        if not ready:
            if not psutil.pid_exists(owner):
                Path(address).unlink()
                Path(address).parent.rmdir()
                return 0
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(connection)
        connection.close()


def _reap() -> None:
    """Let those that have told how their commands ended go."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _attend(connection: socket.socket) -> NoReturn:
    """Start what a connection asks for, wait for its end and tell; a warm worker is left to itself."""
    content, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    while not content.endswith(b"\n"):
        content += connection.recv(1 << 20)
    request: Request = json.loads(content)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the pipe is written
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (woken, wake):
            os.close(number)
        connection.close()
        _become(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    if request["program"] != "worker":
        ready, _, _ = select.select([connection, woken], [], [])
        if woken not in ready:  # whoever asked has gone
            with suppress(ProcessLookupError):  # it leads no group yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            connection.sendall(f"{status}\n".encode())
    os._exit(0)


def _become(request: Request, descriptors: list[int]) -> NoReturn:
    """Be the command: its streams, folder, environment and arguments, and what Python does at the end."""
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = [os.path.join(os.path.dirname(sys.executable), request["program"]), *request["arguments"]]
    random.seed()
    try:
        code = PROGRAMS[request["program"]](request["arguments"]) or 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
