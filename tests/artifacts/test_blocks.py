"""The files of the real data: every cycle once and in order, in few files, and each block made once and in time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbpo.artifacts.blocks import RADIX, Block, block_of, real_data


def held(parts: list[Block | int]) -> list[int]:
    """The cycles whose shards some files hold."""
    return [cycle for part in parts for cycle in ([part] if isinstance(part, int) else range(part.first, part.end))]


@pytest.mark.parametrize(
    ("cycle", "parts"),
    [
        (0, [0]),
        (6, list(range(7))),
        (7, [Block(1, 0)]),  # eight shards: a block
        (8, [Block(1, 0), 8]),
        (63, [Block(1, first) for first in range(0, 64, 8)]),  # 64 shards: a block of blocks, one cycle later
        (64, [Block(2, 0), 64]),
        (72, [Block(2, 0), Block(1, 64), 72]),
        (513, [Block(3, 0), 512, 513]),
    ],
)
def test_eight_shards_make_a_block_and_eight_blocks_a_larger_one(cycle: int, parts: list[Block | int]) -> None:
    assert RADIX == 8
    assert real_data(cycle) == parts


@pytest.mark.parametrize(
    ("number", "block"),
    [
        (6, None),
        (7, Block(1, 0)),
        (8, None),
        (15, Block(1, 8)),
        (64, Block(2, 0)),
        (128, Block(2, 64)),
        (513, Block(3, 0)),
    ],
)
def test_a_block_bears_the_number_of_the_cycle_after_which_it_is_made(number: int, block: Block | None) -> None:
    assert block_of(number) == block
    if block:
        assert block.number == number


@given(st.integers(0, 5000))
def test_the_real_data_of_a_cycle_are_every_shard_once_and_in_order(cycle: int) -> None:
    parts = real_data(cycle)
    assert held(parts) == list(range(cycle + 1))
    assert len(parts) <= 8 * 5
    for part in parts:
        if isinstance(part, Block):
            assert part.number <= cycle, "it has been made"
            assert block_of(part.number) == part


@given(st.integers(0, 5000))
def test_a_block_is_made_of_what_was_made_before_it(number: int) -> None:
    block = block_of(number)
    if block is not None:
        assert len(block.parts()) == RADIX
        assert held(block.parts()) == list(range(block.first, block.end))
        assert all((part if isinstance(part, int) else part.number) <= number for part in block.parts())
        assert all(isinstance(part, int) or part.number < number for part in block.parts())


def test_a_late_cycle_reads_few_files() -> None:
    assert max(len(real_data(cycle)) for cycle in range(1601)) <= 3 * 8 + 3
    assert sum(len(real_data(cycle)) for cycle in range(1601)) / 1601 < 12
