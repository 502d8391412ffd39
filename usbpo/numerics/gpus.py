"""Which of several GPUs a stage takes: one that the fewest of this user's stages are on, told by locks on files.

Snakemake counts GPUs (`--resources gpu=2`) and does not say which one a job has. Where a batch system shows a job one
GPU alone (CUDA_VISIBLE_DEVICES), there is nothing to choose.
"""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path

import torch

_held: list[int] = []  # descriptors of the locks: open, hence locked, for as long as this process lives


@cache
def taken() -> int:
    """CUDA's number of the GPU that this process takes, the same in every call, and the current one from then on."""
    number = torch.cuda.device_count()
    if number == 1:
        return torch.cuda.current_device()
    # By the names that the hardware has: numbers differ with CUDA_VISIBLE_DEVICES.
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(number)]
    try:
        index = claim(names, Path(tempfile.gettempdir()))
    except OSError:  # no locks here: all take the same, as if nobody counted
        return torch.cuda.current_device()
    torch.cuda.set_device(index)
    return index


def claim(names: Sequence[str], folder: Path) -> int:
    """Take a place on one of the GPUs until this process ends, without ever waiting: the GPU's index among `names`.

    Each GPU has places 0, 1, …, each a file that whoever has it locks. The first free one is taken: place 0 of any
    GPU, in their order, before place 1.

    Args:
        names: one for each GPU, the same in every process.
        folder: of the files, on this machine; others may write there.

    Raises:
        OSError: files cannot be made or locked there.
    """
    for place in count():
        for index, name in enumerate(names):
            path = folder / f"usbpo-{os.geteuid()}-gpu-{name}.{place}"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # closed on exec
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            _held.append(descriptor)
            return index
    raise AssertionError("places never run out")
