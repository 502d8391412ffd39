"""The loop of the warm worker: it takes requests, forks a child for each, and tells clients how their stages ended."""

import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from types import FrameType
from typing import NoReturn

from usbpo.stages import STAGES
from usbpo.worker import protocol, resident, stage_process
from usbpo.worker.address import listen, remove
from usbpo.worker.resident import Resident
from usbpo.worker.stage_process import Run, Stage, signal_group
from usbpo.workspace import lifetime

LARGEST_REQUEST = 1 << 24
"""Bytes; Linux starts no process with more arguments and environment than 6 MiB."""


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
        self.listener = listen(path)
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
                if not (self.children or self._has_its_place()):
                    break  # it was given up, and another one serves
                if events or self.children:
                    busy = time.monotonic()
                elif time.monotonic() >= busy + self.idle:
                    break
        finally:
            self._finish()

    def _has_its_place(self) -> bool:
        """Whether clients still look for this process behind the socket."""
        return protocol.read_identity(self.path) == self.identity

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
                signal_group(request.child, number)
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
            if chosen and chosen.give(request.block, [*request.descriptors, request.connection.fileno()]):
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
            stage_process.detach(mask, request.descriptors)
            self._close_all_but(request)
            status = self._run(request.block)
            if keeper:
                status = resident.go_on(keeper, request.connection.detach(), status, self._run)
        except BaseException:  # whatever it is, it must not come back into the worker's loop
            traceback.print_exc()
        finally:
            os._exit(status)

    def _close_all_but(self, request: Request) -> None:
        """In the child: let go of everything that is the worker's or the client's of another request.

        Its own connection stays, so that the client, should the worker die, knows when the stage has ended too.
        """
        for own in (self.wake_reader, self.wake_writer, self.owner_watch):
            if own is not None:
                os.close(own)
        self.listener.close()
        request.close_descriptors()
        for other in self.requests - {request}:
            other.close()
        for known in self.residents.values():
            known.connection.close()

    def _run(self, block: bytes) -> int:
        """In the child: run the stage of a request."""
        return stage_process.run_stage(self.run, Stage.from_block(block), self.identity)

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
                signal_group(request.child, signal.SIGKILL)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Leave the loop at its next turn."""
        self.ending = True

    def _finish(self) -> None:
        """Kill and reap what still runs, tell the clients, remove the socket."""
        if self._has_its_place():  # no other worker has taken it
            remove(self.path)
        self.listener.close()
        for child in {*self.children, *self.residents}:
            try:
                signal_group(child, signal.SIGKILL)
                self._tell(*os.waitpid(child, 0))
            except ChildProcessError:  # a resident that had ended already
                pass
        for request in list(self.requests):
            self._drop(request)


def is_same_user(connection: socket.socket) -> bool:
    """True where the process at the other end of a Unix socket is ours, or where the system does not tell.

    In the latter case the private folder alone keeps others out.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.geteuid())
