"""The warm worker: imports the numerical libraries once and forks a child for each stage that a client asks for.

Importing torch, gymnasium and mujoco costs seconds; a fork costs milliseconds. The
worker serves one user, runs only the package's stage verbs, and ends when idle or when its owner does. Where it does
not serve, `usbpo.worker.client` runs the stage itself, with the same bytes as result.
"""

import gc
import importlib
import io
import logging
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from usbpo.errors import UsbpoError
from usbpo.stages import STAGES
from usbpo.worker import protocol, resident
from usbpo.worker.resident import Resident
from usbpo.workspace import lifetime

Run = Callable[[list[str]], int]
"""What a child runs: the arguments behind `usbpo`, to an exit status."""

IDLE = "USBPO_WARM_IDLE"
"""Environment variable: after how many seconds without a stage the worker ends."""

IDLE_SECONDS = 600.0

LONGEST_PATH = 100
"""The address of a Unix socket has 104 bytes on macOS and 108 on Linux."""

LARGEST_REQUEST = 1 << 24
"""Bytes; Linux starts no process with more arguments and environment than 6 MiB."""


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


class Request:
    """One client: what it has sent so far, and the child that runs its stage.

    Attributes:
        buffer: bytes received and not yet understood.
        descriptors: the client's standard streams, from their arrival until the child has them.
        block: what it asks for, as it was sent, once that is complete and accepted.
        stage: the same, understood.
        child: process id of the stage, while it runs.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = bytearray()
        self.descriptors: list[int] = []
        self.block = b""
        self.stage: Stage | None = None
        self.child: int | None = None

    def answer(self, line: str) -> None:
        """Send a line to the client, which may have gone."""
        try:
            self.connection.sendall(line.encode() + b"\n")
        except OSError:
            pass

    def close(self) -> None:
        """Let go of everything that came with the client."""
        self.connection.close()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Let go of the client's standard streams."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


class Server:
    """The loop of the worker. It does nothing but take requests, fork, and tell clients how their stages ended."""

    def __init__(self, path: str, run: Run, owner: str, idle: float) -> None:
        self.path, self.run, self.owner, self.idle = path, run, owner, idle
        self.identity = lifetime.identity()
        self.ending = False
        self.children: dict[int, Request] = {}
        self.residents: dict[int, Resident] = {}
        self.free: list[int] = []  # residents that wait for a stage
        self.requests: set[Request] = set()
        self.selector = selectors.PollSelector()  # unlike epoll it has no descriptor that a child would share
        self.listener = _listen(path)
        self.wake_reader, self.wake_writer = os.pipe()
        self.owner_watch = lifetime.watch(owner) if owner else None

    def serve(self) -> None:
        """Serve until idle, told to end, or without an owner; then kill what still runs."""
        os.set_blocking(self.wake_reader, False)
        os.set_blocking(self.wake_writer, False)
        self.listener.setblocking(False)
        signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._end)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # a handler, so that the pipe is written
        for source in (self.listener, self.wake_reader, self.owner_watch):
            if source is not None:
                self.selector.register(source, selectors.EVENT_READ)
        # Polled only where the system cannot tell of the owner's end.
        longest = lifetime.POLL_SECONDS if self.owner and self.owner_watch is None else self.idle
        busy = time.monotonic()
        try:
            while not self.ending and (not self.owner or lifetime.alive(self.owner)):
                events = self.selector.select(min(longest, max(0.0, busy + self.idle - time.monotonic())))
                for key, _ in events:
                    self._handle(key)
                if events or self.children:
                    busy = time.monotonic()
                elif time.monotonic() >= busy + self.idle:
                    break
        finally:
            self._finish()

    def _handle(self, key: selectors.SelectorKey) -> None:
        """Deal with one thing that became readable; that the owner's watch did, the loop sees."""
        if isinstance(key.data, Request):
            self._receive(key.data)
        elif isinstance(key.data, Resident):
            self._hear(key.data)
        elif key.fileobj is self.listener:
            self._accept()
        elif key.fileobj == self.wake_reader:
            os.read(self.wake_reader, 4096)
            self._reap()

    def _accept(self) -> None:
        """Take a new client, if it is the same user's."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        if not is_same_user(connection):
            connection.close()
            return
        connection.setblocking(False)
        request = Request(connection)
        self.requests.add(request)
        self.selector.register(connection, selectors.EVENT_READ, request)

    def _receive(self, request: Request) -> None:
        """Read what a client sent: its request, the word to start it, signals for it, or its end."""
        try:
            content, descriptors, _, _ = socket.recv_fds(request.connection, 1 << 16, 3)
        except BlockingIOError:
            return
        except OSError:
            content, descriptors = b"", []
        request.descriptors += descriptors
        request.buffer += content
        if not content or len(request.buffer) > LARGEST_REQUEST:
            self._drop(request)
            return
        if request.stage is None and not self._understand(request):
            return
        if request.child is None and request.buffer.startswith(protocol.GO):
            del request.buffer[:1]
            self._start(request)
        if request.child is not None:
            for number in request.buffer:
                _signal_group(request.child, number)
            request.buffer.clear()

    def _understand(self, request: Request) -> bool:
        """Accept a request that is complete, refuse one that cannot be served; False where none is accepted."""
        end = 8 + int.from_bytes(request.buffer[:8], "big")
        if len(request.buffer) < max(9, end):
            return False
        request.block = bytes(request.buffer[8:end])
        try:
            stage = Stage.from_block(request.block)
        except (ValueError, IndexError):
            stage = None
        del request.buffer[:end]
        if stage is None or stage.argv[:1] == [] or stage.argv[0] not in STAGES:
            request.answer("refused this is no stage")
        elif len(request.descriptors) != 3:
            request.answer("refused the standard streams did not come along")
        else:
            request.stage = stage
            request.answer(protocol.ACCEPTED.decode())
            return True
        self._drop(request)
        return False

    def _start(self, request: Request) -> None:
        """Give an accepted request to a process that has opened a GPU and waits, or to a child forked for it."""
        assert request.stage is not None
        may_use_gpu = resident.may_use_gpu(request.stage.argv)
        child = self._hand_over(request) if may_use_gpu else None
        try:
            child = child or self._fork(request, may_use_gpu)
        except OSError as error:
            request.answer(f"refused no process could be started ({error.strerror})")
            self._drop(request)
            return
        request.child = child
        self.children[child] = request
        request.close_descriptors()

    def _hand_over(self, request: Request) -> int | None:
        """Give a request to a resident that waits; None where there is none."""
        while self.free:
            chosen = self.residents.get(self.free.pop())
            if chosen and chosen.give(request.block, request.descriptors):
                return chosen.pid
        return None

    def _fork(self, request: Request, may_use_gpu: bool) -> int:
        """Fork the child of a request.

        Raises:
            OSError: it cannot be started.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        ours, its = socket.socketpair() if may_use_gpu else (None, None)
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            child = os.fork()
            if child == 0:
                self._become_stage(request, held, its)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            if its:
                its.close()
        if ours:
            self.residents[child] = Resident(child, ours)
            self.selector.register(ours, selectors.EVENT_READ, self.residents[child])
        return child

    def _hear(self, from_resident: Resident) -> None:
        """Tell the client of a resident that its stage has ended well, or forget a resident that has ended."""
        if from_resident.has_finished():
            self._answer(from_resident.pid, "exit 0")
            self.free.append(from_resident.pid)
        else:
            self.selector.unregister(from_resident.connection)
            from_resident.connection.close()
            del self.residents[from_resident.pid]

    def _become_stage(
        self, request: Request, mask: set[int | signal.Signals], keeper: socket.socket | None
    ) -> NoReturn:
        """In the child: be the process that the client would have been, run the stage, end or become a resident.

        Args:
            mask: the signals that the client blocks.
            keeper: the way to the worker of a resident, where the stage may make it one.
        """
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for target, descriptor in enumerate(request.descriptors):
                os.dup2(descriptor, target)
            for own in (self.wake_reader, self.wake_writer, self.owner_watch):
                if own is not None:
                    os.close(own)
            self.listener.close()
            for other in self.requests:
                other.close()
            for known in self.residents.values():
                known.connection.close()
            status = self._run(request.block)
            if keeper:
                status = resident.go_on(keeper, status, self._run)
        except BaseException:  # whatever it is, it must not come back into the worker's loop
            traceback.print_exc()
        finally:
            os._exit(status)

    def _run(self, block: bytes) -> int:
        """In the child: run the stage of a request."""
        return _run_stage(self.run, Stage.from_block(block), self.identity)

    def _reap(self) -> None:
        """Collect the children that have ended and tell their clients."""
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if child == 0:
                return
            self._tell(child, status)

    def _tell(self, child: int, status: int) -> None:
        """Tell the client of `child` how it ended."""
        code = os.waitstatus_to_exitcode(status)
        self._answer(child, f"exit {code}" if code >= 0 else f"signal {-code}")

    def _answer(self, child: int, line: str) -> None:
        """Tell the client of `child` that its stage has ended, and how."""
        request = self.children.pop(child, None)
        if request is not None:
            request.answer(line)
            request.child = None
            self._drop(request)

    def _drop(self, request: Request) -> None:
        """Forget a client; its stage, if it still runs, is killed, and reaped when it has ended."""
        if request in self.requests:
            self.requests.remove(request)
            self.selector.unregister(request.connection)
            request.close()
            if request.child is not None:
                _signal_group(request.child, signal.SIGKILL)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Leave the loop at its next turn."""
        self.ending = True

    def _finish(self) -> None:
        """Kill and reap what still runs, tell the clients, remove the socket."""
        if _is_identity_of(self.path, os.getpid()):  # no other worker has taken the place
            _remove(self.path)
        self.listener.close()
        for child in {*self.children, *self.residents}:
            try:
                _signal_group(child, signal.SIGKILL)
                self._tell(*os.waitpid(child, 0))
            except ChildProcessError:  # a resident that had ended already
                pass
        for request in list(self.requests):
            self._drop(request)


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
            _sweep(Path(path).parent)
            _write_identity(path, _spawn(owner, path))
    except (OSError, UsbpoError) as error:
        print(f"usbpo: no warm worker ({error}).", file=sys.stderr)
        return ""
    return path


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
    if protocol.is_served(path) and not _is_identity_of(path, os.getpid()):
        raise UsbpoError(f"{path}: another worker serves it; use that one, or end it.")
    gc.collect()
    gc.freeze()  # collections in a child leave the shared pages alone
    server = Server(path, run, owner, idle)
    _write_identity(path, os.getpid())
    server.serve()


def count_threads() -> int | None:
    """The number of threads of this process; None where the system does not tell."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None


def is_same_user(connection: socket.socket) -> bool:
    """True where the process at the other end of a Unix socket is ours, or where the system does not tell.

    In the latter case the private folder alone keeps others out.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.geteuid())


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
    # What the collector need not look at again it does not touch, so a child need not copy the page.
    gc.collect()
    gc.freeze()
    return cli.main


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
    run_stage = prepare()
    if {expected, path} != {socket_path(owner)}:
        raise UsbpoError(
            f"the package or its environment is not the one that {protocol.WORKER}={expected} was meant for; "
            "unset it and start the worker again."
        )
    print(f"export {protocol.WORKER}={path}", flush=True)
    serve(path, run_stage, owner, idle)


def main() -> int:
    """`python -m usbpo.worker.server`: the exit status."""
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


def _spawn(owner: str, path: str) -> int:
    """Start a worker in the background: its process id."""
    state = Path(".snakemake")
    with open(state / "usbpo-worker.log" if state.is_dir() else os.devnull, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "usbpo.worker.server"],  # -P: the folder of the run is no place to import from
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, lifetime.OWNER: owner, protocol.WORKER: path},
        ).pid


def _listen(path: str) -> socket.socket:
    """Bind `path`, in place of a socket that nobody serves any more; it appears there only when it can be connected."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    temporary = f"{path}~"
    Path(temporary).unlink(missing_ok=True)
    listener.bind(temporary)
    listener.listen(128)
    os.replace(temporary, path)
    return listener


def _run_stage(run: Run, stage: Stage, worker: str) -> int:
    """In the child, with the client's descriptors in place: run the stage; its exit status.

    Functions registered with atexit belong to the worker's libraries and do not run.
    """
    sys.stdin, sys.stdout, sys.stderr = _stream(0, "r"), _stream(1, "w"), _stream(2, "w")
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    sys.argv = ["usbpo", *stage.argv]
    os.environ.clear()
    os.environ.update(stage.environment)
    os.environ.update(protocol.ONE_THREAD)
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
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 120  # as Python does
    return status


def _stream(descriptor: int, mode: str) -> io.TextIOWrapper:
    """A standard stream on `descriptor`; line-buffered if it is a terminal."""
    binary = io.FileIO(descriptor, mode, closefd=False)
    buffered = io.BufferedReader(binary) if mode == "r" else io.BufferedWriter(binary)
    return io.TextIOWrapper(buffered, encoding="utf-8", line_buffering=binary.isatty())


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
        traceback.print_exc()
        return 1


def _signal_group(child: int, number: int) -> None:
    """Send a signal to a stage and all that it started; it has not been reaped, so the number is still its own."""
    if number in signal.valid_signals():
        try:
            os.killpg(child, number)
        except (ProcessLookupError, PermissionError):  # not yet a group of its own, or (macOS) ended and not yet reaped
            os.kill(child, number)


def _write_identity(path: str, pid: int) -> None:
    """Say beside the socket which process serves it, or will: clients wait as long as it lives."""
    assert path, "a worker without a socket has no identity"
    temporary = Path(f"{protocol.identity_file(path)}~{os.getpid()}")
    temporary.write_text(lifetime.identity(pid) + "\n", encoding="ascii")
    os.replace(temporary, protocol.identity_file(path))


def _is_identity_of(path: str, pid: int) -> bool:
    """True where the socket `path` is the one of process `pid`."""
    try:
        return Path(protocol.identity_file(path)).read_text(encoding="ascii").strip() == lifetime.identity(pid)
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what killed workers left behind."""
    for file in folder.glob("*.pid"):
        path = str(file.with_suffix(".sock"))
        if not protocol.is_served(path):
            _remove(path)


def _remove(path: str) -> None:
    """Remove a socket and the file beside it."""
    for file in (path, protocol.identity_file(path)):
        Path(file).unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
