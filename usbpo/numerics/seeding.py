"""One random generator for each (run seed, cycle, stage)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from usbpo.errors import UsbpoError

if TYPE_CHECKING:
    import torch

_LOW_WORD = 2**64 - 1


def seed_sequence(seed: int, cycle: int, stage: str) -> np.random.SeedSequence:
    """The entropy of one stage of one cycle of one run; different triples give independent streams."""
    return np.random.SeedSequence(entropy=seed, spawn_key=(cycle, zlib.crc32(stage.encode())))


def numpy_generator(seed: int, cycle: int, stage: str) -> np.random.Generator:
    """A numpy generator (PCG64) for one stage."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, cycle, stage)))


def torch_generator(seed: int, cycle: int, stage: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one stage, on its device; the numbers of a GPU are others than those of a CPU."""
    import torch  # here, so that Snakemake, which asks the simulators for their sizes, need not load it

    (state,) = seed_sequence(seed, cycle, stage).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


def pack_generator(generator: np.random.Generator) -> NDArray[np.uint64]:
    """The whole state of a PCG64 generator as six 64-bit words: state, increment, and the buffered half word.

    Raises:
        UsbpoError: the generator is not a PCG64.
    """
    state = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise UsbpoError(f"a PCG64 generator is expected, but this one is a {state['bit_generator']}.")
    words = [state["state"]["state"], state["state"]["inc"]]
    halves = [half for word in words for half in (word >> 64, word & _LOW_WORD)]
    return np.array([*halves, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def unpack_generator(packed: NDArray[np.uint64]) -> np.random.Generator:
    """The generator whose state `pack_generator` gave."""
    high, low, increment_high, increment_low, has_uint32, uinteger = (int(word) for word in packed)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": increment_high << 64 | increment_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
