"""Stage `block`: gather consecutive real data into one file, so that inputs stay few."""

from pathlib import Path

from usbpo.artifacts import lineage, transitions
from usbpo.artifacts.blocks import block_of
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError


def block(*, parts: list[Path], output: Path, number: int | None = None) -> None:
    """Gather shards, or smaller blocks, in the order given, into one block.

    Args:
        parts: shards of consecutive cycles, or blocks of them.
        output: block to write; its cycle is that of the last shard.
        number: of the block, the cycle after which it is made: the parts must be all that belong to it. Without it any
            consecutive ones will do.

    Raises:
        UsbpoError: a part is missing, damaged or of another run, the cycles do not follow each other, or they are not
            those of the block.
    """
    headers, rows = transitions.read_all(parts)
    last = headers[-1]
    cycles: list[int] = []
    for path, found in zip(parts, headers, strict=True):
        held = lineage.shards_in(path, found)
        if cycles and held.start != cycles[-1] + 1:
            raise UsbpoError(
                f"{path}: it begins with cycle {held.start}, but {cycles[-1] + 1} is expected; give them in order."
            )
        cycles += held
    if number is not None:
        whole = block_of(number)
        if whole is None or cycles != list(range(whole.first, whole.end)):
            belongs = f"those of cycles {whole.first} to {whole.end - 1}" if whole else "none"
            raise UsbpoError(
                f"{output}: the parts hold cycles {cycles[0]} to {cycles[-1]}, but to block {number} belong {belongs}; "
                "give these."
            )
    parameters = {"shards": len(cycles), "rows": len(rows)}
    header = Header(transitions.KIND, last.task, last.seed, last.cycle, parameters, last.method)
    for path, found in zip(parts, headers, strict=True):
        header.takes("parts", path, found)
    transitions.write(output, header, rows)
