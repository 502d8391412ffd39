"""Which files hold the real data, and which cycles' rollouts are D_model.

The real data are the shards of single cycles, blocks of eight shards, blocks of eight blocks, ….

A late cycle reads all of D_env. As shards these would be as many input files as cycles, and Snakemake has to look at
each for each job; so it reads the few largest blocks, then smaller ones, then shards: about four of each kind.

A block of level l holds the shards of 8^l consecutive cycles and is made out of eight of the level below. It bears the
number of the cycle after which it is made: for level 1 that of its last shard, and one later with each level, so that
no cycle has two blocks to make.
"""

from typing import NamedTuple

RADIX = 8
"""Shards, or smaller blocks, in a block (`docs/design.md`)"""


class Block(NamedTuple):
    """The shards of the cycles `first` … `first` + RADIX^level − 1."""

    level: int
    first: int

    @property
    def end(self) -> int:
        """The cycle after its last shard."""
        return self.first + int(RADIX**self.level)

    @property
    def number(self) -> int:
        """The cycle after which it is made."""
        return self.end - 1 + self.level - 1

    def parts(self) -> "list[Block | int]":
        """What it is made out of: shards (cycles), or blocks of the level below."""
        if self.level == 1:
            return list(range(self.first, self.end))
        return [Block(self.level - 1, first) for first in range(self.first, self.end, int(RADIX ** (self.level - 1)))]


def block_of(number: int) -> Block | None:
    """The block that is made after a cycle, if there is one."""
    level = (number + 1) % RADIX + 1
    end, size = number + 2 - level, int(RADIX**level)
    return Block(level, end - size) if end > 0 and end % size == 0 else None


def real_data(cycle: int) -> list[Block | int]:
    """The blocks, largest first, and shards (cycles) that together hold the real data of cycles 0 … `cycle`."""
    found: list[Block | int] = []
    level, start = 1, 0
    while Block(level + 1, 0).number <= cycle:
        level += 1
    while start <= cycle:
        while level and Block(level, start).number > cycle:
            level -= 1
        found.append(Block(level, start) if level else start)
        start += int(RADIX**level)
    return found


def model_cycles(end: int, every: int, updates: int) -> list[int]:
    """The cycles up to `end` with one of the last `updates` model updates, where each `every`-th cycle from 1 has one.

    Args:
        every: 0 where there is no model.
    """
    if not every:
        return []
    return [cycle for cycle in range(max(end - updates * every + 1, 1), end + 1) if (cycle - 1) % every == 0]
