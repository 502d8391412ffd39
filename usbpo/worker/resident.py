"""A process of the warm worker that has opened a GPU and runs further stages, instead of ending.

Opening a GPU, its libraries and its first kernels takes a second or two, a fork cannot inherit it, and a cycle has four
stages that need it. So a stage's process that has opened one tells the worker that its stage has ended, and waits for
the next stage that may use a GPU. It ends in place of that where anything of the stage would stay behind in it: after a
failure, or when it has imported a module of the user's, which may change.
"""

import gc
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

LENGTH = 8
"""Bytes before a request, which say how long it is."""


class Resident:
    """The worker's view of such a process.

    Attributes:
        pid: its process id.
        connection: becomes readable when its stage has ended well (a byte) or it has ended itself (nothing).
    """

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self.connection = pid, connection

    def give(self, block: bytes, descriptors: list[int]) -> bool:
        """Hand over a request, its standard streams and its connection; False where the process has ended."""
        try:
            sent = socket.send_fds(self.connection, [len(block).to_bytes(LENGTH, "big") + block], descriptors)
            self.connection.sendall(block[max(0, sent - LENGTH) :])
        except OSError:
            return False
        return True

    def has_finished(self) -> bool:
        """Whether its stage has ended well, once `connection` is readable."""
        try:
            return bool(self.connection.recv(1))
        except OSError:
            return False


def may_use_gpu(argv: list[str]) -> bool:
    """Whether a stage with these arguments may open a GPU."""
    return "--device" in argv[:-1] and argv[argv.index("--device") + 1] != "cpu"


def go_on(connection: socket.socket, client: int, status: int, run: Callable[[bytes], int]) -> int:
    """In the process of a stage: run further ones as long as there is a reason to.

    Args:
        client: descriptor of the connection to the client of the stage that has ended.
        status: exit status of that stage.
        run: runs the stage of a request, with the standard streams in place.

    Returns:
        The exit status of the last stage, which the worker has not been told of.
    """
    while status == 0 and holds_gpu() and not has_user_code():
        _tidy()
        os.close(client)
        connection.sendall(b"\n")
        received = _receive(connection)
        if received is None:
            break
        block, client = received
        status = run(block)
    return status


def holds_gpu() -> bool:
    """Whether this process has opened a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def has_user_code() -> bool:
    """Whether this process has imported a module of the user's."""
    usercode = sys.modules.get("usbpo.environments.usercode")
    return usercode is not None and bool(usercode.imported)


def _tidy() -> None:
    """Let go of the stage's files and memory, so that the next stage's peak is its own."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    gc.collect()
    sys.modules["torch"].cuda.empty_cache()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak of memory
    except OSError:
        pass


def _receive(connection: socket.socket) -> tuple[bytes, int] | None:
    """Wait for a request and put its standard streams in place; None when the worker has gone.

    Returns:
        The request, and the descriptor of the connection to its client.
    """
    received, descriptors = bytearray(), list[int]()
    while len(received) < LENGTH or len(received) < LENGTH + int.from_bytes(received[:LENGTH], "big"):
        content, more, _, _ = socket.recv_fds(connection, 1 << 16, 4)
        if not content:
            return None
        received += content
        descriptors += more
    *streams, client = descriptors
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
        os.close(descriptor)
    return bytes(received[LENGTH:]), client
