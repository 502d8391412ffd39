"""Stage `block`: gather consecutive real data into one file, so that inputs stay few."""

from pathlib import Path

from usbpo.artifacts import lineage, transitions
from usbpo.artifacts.blocks import RADIX
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError


def block(*, parts: list[Path], output: Path) -> None:
    """Gather eight shards, or blocks of one size, in the order given, into one block.

    Args:
        parts: shards of consecutive cycles, or blocks of them.
        output: block to write; its cycle is that of the last shard.

    Raises:
        UsbpoError: a part is missing, damaged or of another run, or they are not the eight that make up a block.
    """
    headers, rows = transitions.read_all(parts)
    cycles = [lineage.shards_in(path, found) for path, found in zip(parts, headers, strict=True)]
    size = len(cycles[0])
    for path, held, begin in zip(parts, cycles, range(cycles[0].start, headers[-1].cycle + 1, size), strict=False):
        if (held.start, len(held)) != (begin, size):
            raise UsbpoError(
                f"{path}: it holds {len(held)} from cycle {held.start} on, but {size} from {begin} on are to follow; "
                "give the parts of a block in order, each once."
            )
    shards = RADIX * size
    if len(parts) != RADIX or cycles[0].start % shards:
        raise UsbpoError(
            f"{parts[0]}: {len(parts)} parts from cycle {cycles[0].start} on make up no block, which has {RADIX} from "
            f"a multiple of {shards} on; give these."
        )
    last = headers[-1]
    parameters = {"shards": shards, "rows": len(rows)}
    header = Header(transitions.KIND, last.task, last.seed, last.cycle, parameters, last.method)
    for path, found in zip(parts, headers, strict=True):
        header.takes("parts", path, found)
    transitions.write(output, header, rows)
