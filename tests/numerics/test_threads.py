"""Work that is shared out to threads: all of it is done, once, and a failure is told whichever thread it was in."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbpo.numerics import threads
from usbpo.numerics.threads import Spares, share_out, share_out_in_two, using

counts = st.integers(1, 4)


@given(st.integers(0, 9), counts)
def test_every_piece_is_done_once(pieces: int, number: int) -> None:
    done: list[int] = []
    with using(number):
        share_out(range(pieces), done.append)
    assert sorted(done) == list(range(pieces))


@given(st.integers(0, 9), counts)
def test_of_each_piece_the_second_part_follows_the_first(pieces: int, number: int) -> None:
    done: list[tuple[str, int]] = []
    with using(number):
        share_out_in_two(range(pieces), lambda p: done.append(("first", p)), lambda p: done.append(("second", p)))
    assert sorted(done) == sorted((part, piece) for part in ("first", "second") for piece in range(pieces))
    assert all(done.index(("first", piece)) < done.index(("second", piece)) for piece in range(pieces))


def test_pieces_that_are_left_over_are_divided() -> None:
    order: list[str] = []
    with using(2):
        share_out_in_two(range(3), lambda p: order.append(f"{p} a"), lambda p: order.append(f"{p} b"))
    assert order[-1] == "0 b"
    assert {"0 a", "1 a"} & set(order[:2])


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3)
    with using(3):
        share_out(range(3), lambda _: together.wait(timeout=60))
    assert not together.broken


def test_what_a_thread_computes_in_is_its_own() -> None:
    seen: list[tuple[int, int]] = []

    def work(piece: int, own: list[int]) -> None:
        seen.append((id(own), threading.get_ident()))
        time.sleep(0.001)

    with using(3):
        share_out(range(30), work, lambda: [0])
    assert len({thread for _, thread in seen}) == len(set(seen)) == len({own for own, _ in seen})


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("part", ["first", "second"])
def test_a_failure_is_told_and_nothing_waits_for_ever(number: int, bad: int, part: str) -> None:
    def fail(piece: int) -> None:
        if piece == bad:
            raise ValueError(f"piece {piece}")

    work = {"first": lambda p: None, "second": lambda p: None} | {part: fail}
    with using(number):
        with pytest.raises(ValueError, match=f"piece {bad}"):
            share_out_in_two(range(5), work["first"], work["second"])
        done: list[int] = []
        share_out(range(5), done.append)
    assert sorted(done) == list(range(5))


def test_threads_end_with_the_block() -> None:
    before = threading.active_count()
    assert threads.count() == 1
    with using(4):
        assert threads.count() == 4
        share_out(range(8), lambda _: time.sleep(0.001))
    assert threading.active_count() == before
    assert threads.count() == 1


def test_a_spare_is_nobody_elses_and_is_used_again() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    spares = Spares(make)
    with spares.one() as first, spares.one() as second:
        assert first != second
    with spares.one(), spares.one():
        pass
    assert made == [0, 1]


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before
