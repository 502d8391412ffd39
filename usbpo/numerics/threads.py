"""The threads of a stage on a CPU: pieces of work that do not depend on each other, shared out to them.

A piece is computed by one thread, as it would be alone, whichever thread that is. So the number of threads changes no
bit; nor is it a parameter of a stage. torch's own threads divide single products, whose sums may then come out in
another order, and give too little to each where matrices are as small as here.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event
from typing import Generic, TypeVar

import torch

TOLD = "USBPO_THREADS"
"""Environment variable, which client and warm worker set for a stage: how many threads it has"""

Piece = TypeVar("Piece")
Buffers = TypeVar("Buffers")


class _Team:
    """The threads that this process's stage has: the one that calls, and `helpers` more."""

    def __init__(self) -> None:
        self.helpers = 0
        self.pool: ThreadPoolExecutor | None = None


_team = _Team()


def told() -> int:
    """How many threads this process has been told to use: one where nobody says."""
    return int(os.environ.get(TOLD, "1"))


def count() -> int:
    """How many threads a stage may use now."""
    return 1 + _team.helpers


@contextmanager
def using(threads: int) -> Iterator[None]:
    """Within the block, `share_out` has so many threads, the calling one among them; they have ended behind it."""
    before, pool = (_team.helpers, _team.pool), None
    if threads > 1:
        pool = ThreadPoolExecutor(threads - 1, "usbpo", initializer=torch.set_num_threads, initargs=(1,))
    _team.helpers, _team.pool = threads - 1, pool
    try:
        yield
    finally:
        _team.helpers, _team.pool = before
        if pool:
            pool.shutdown()


def share_out(
    pieces: Sequence[Piece], work: Callable[..., object], buffers: Callable[[], object] | None = None
) -> None:
    """Call `work(piece)` for every piece, each thread taking the next that is left, until all are done.

    Args:
        pieces: in the order in which they are begun.
        work: what it does may depend on the piece alone.
        buffers: makes what a thread gives to each of its calls of `work` behind the piece, to compute in.

    Raises:
        Exception: what `work` raised; other pieces may then be left.
    """
    left = iter(pieces)

    def drain() -> None:
        own = (buffers(),) if buffers else ()
        for piece in left:
            work(piece, *own)

    others = [_team.pool.submit(drain) for _ in range(min(_team.helpers, len(pieces) - 1))] if _team.pool else []
    try:
        drain()
    finally:
        wait(others)
    for other in others:
        other.result()


def share_out_in_two(
    pieces: Sequence[Piece], first: Callable[[Piece], object], second: Callable[[Piece], object]
) -> None:
    """Call `first(piece)`, and behind it `second(piece)`, for every piece.

    One thread does both of a piece. But where the number of pieces is no multiple of the threads', the first parts of
    those left over are done at the beginning and their second parts at the end, so that threads end more evenly.
    """
    divided = len(pieces) % count() if len(pieces) > count() else 0
    done = [Event() for _ in range(divided)]

    def work(number: int) -> None:
        if number >= 0:
            try:
                first(pieces[number])
            finally:
                if number < divided:
                    done[number].set()
            if number >= divided:
                second(pieces[number])
        else:
            done[~number].wait()
            second(pieces[~number])

    share_out([*range(len(pieces)), *(~number for number in range(divided))], work)


class Spares(Generic[Buffers]):
    """Buffers that pieces compute in: as many as pieces that go on at the same time, and no more.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], Buffers]) -> None:
        self._make, self._free = make, [make()]

    @contextmanager
    def one(self) -> Iterator[Buffers]:
        """Within the block nobody else has it. It is the one given back last, most of which lies in a cache."""
        try:
            spare = self._free.pop()
        except IndexError:
            spare = self._make()
        yield spare
        self._free.append(spare)
