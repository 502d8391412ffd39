"""Stage `block`: gather consecutive real data into one file, so that inputs stay few."""

from pathlib import Path

from usbpo.artifacts import transitions
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError


def block(*, parts: list[Path], output: Path) -> None:
    """Gather shards, or smaller blocks, in the order given, into one block.

    Args:
        parts: shards of consecutive cycles, or blocks of them.
        output: block to write; its cycle is that of the last shard.

    Raises:
        UsbpoError: a part is missing, damaged or of another run, or the cycles do not follow each other.
    """
    read = [(path, *transitions.read(path)) for path in parts]
    (first_path, first, _), (_, last, _) = read[0], read[-1]
    cycles: list[int] = []
    for path, header, _ in read:
        header.same_run(path, first, first_path)
        begin = header.cycle + 1 - int(header.parameters.get("shards", 1))
        if cycles and begin != cycles[-1] + 1:
            raise UsbpoError(
                f"{path}: it begins with cycle {begin}, but {cycles[-1] + 1} is expected; give them in order."
            )
        cycles += range(begin, header.cycle + 1)
    header = Header(transitions.KIND, last.task, last.seed, last.cycle, {"shards": len(cycles)})
    transitions.write(output, header, transitions.concatenate([batch for _, _, batch in read]))
