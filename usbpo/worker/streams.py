"""Standard streams that cannot take what is said: of a terminal without the letters, full, or closed by the reader."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any


class Output(io.FileIO):
    """A descriptor to write to, which remembers why it could not be written."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        """As the class above; the error stays in `failure`, whoever catches it."""
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            raise


def output(descriptor: int, encoding: str = "utf-8", line_buffering: bool | None = None) -> io.TextIOWrapper:
    """A standard stream to write to, which replaces letters that its encoding lacks; line-buffered on a terminal."""
    raw = Output(descriptor, "w", closefd=False)
    lines = raw.isatty() if line_buffering is None else line_buffering
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=lines)


def open_closed() -> None:
    """Have standard streams that are closed (`>&-`) lead nowhere: no file that is opened later gets their number."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            os.set_inheritable(descriptor, True)
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            vars(sys).update({name: stream, f"__{name}__": stream})


def take_over() -> None:
    """Put such streams in the places of this process's standard output and standard error, with their encodings."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if isinstance(old, io.TextIOWrapper):
            old.flush()
            new = output(descriptor, old.encoding, old.line_buffering or old.write_through)
            vars(sys).update({name: new, f"__{name}__": new})


def have_failed() -> bool:
    """Whether standard output or standard error could not be written."""
    return any(_failure(descriptor) for descriptor in (1, 2))


def settle(status: int, argv: list[str]) -> int:
    """Write what a command has still to say, after its end: its exit status, not 0 where that was in vain.

    That standard output cannot be written is one sentence; none where its reader has had enough (`| head`).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            if stream is not None:
                stream.flush()
    if not have_failed():
        return status
    failure = _failure(1)
    with suppress(OSError):
        if failure and failure.errno != errno.EPIPE:
            reason = f"standard output cannot be written ({failure.strerror})"
            print(f"usbpo {' '.join(argv[:1])}: {reason}; send it to where there is room.", file=sys.stderr, flush=True)
    _send_nowhere([descriptor for descriptor in (1, 2) if _failure(descriptor)])
    return status or 1


def _failure(descriptor: int) -> OSError | None:
    """Why a standard stream could not be written; None where it could."""
    stream = (sys.stdin, sys.stdout, sys.stderr)[descriptor]
    found: OSError | None = getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)
    return found


def _send_nowhere(descriptors: list[int]) -> None:
    """Have what is left in the buffers of these vanish: Python would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
