"""One generator for each (seed, cycle, stage), and generators that are stored and go on bit for bit."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbpo.errors import UsbpoError
from usbpo.numerics.seeding import numpy_generator, pack_generator, seed_sequence, torch_generator, unpack_generator

STAGES = ["collect", "phase1", "phase2", "phase2_members", "new_ensemble", "holdout", "rollout", "policy", "evaluate"]


def test_the_same_triple_gives_the_same_numbers() -> None:
    first, second = (numpy_generator(3, 17, "phase1").integers(2**62, size=5).tolist() for _ in range(2))
    assert first == second
    numbers = [torch_generator(3, 17, "phase1").initial_seed() for _ in range(2)]
    assert numbers[0] == numbers[1]


def test_the_numbers_stay_the_same_from_version_to_version() -> None:
    """A change here changes every run: raise the schema's version with it."""
    assert numpy_generator(0, 1, "phase1").integers(1000, size=4).tolist() == [310, 893, 852, 904]
    assert torch_generator(0, 1, "phase1").initial_seed() == 13737163556393065412


def test_every_triple_has_a_stream_of_its_own() -> None:
    triples = list(product([0, 1, 2, 12345, 2**40], [0, 1, 2, 500, 70_000], STAGES))
    first = {int(numpy_generator(*triple).integers(2**62)) for triple in triples}
    seeds = {torch_generator(*triple).initial_seed() for triple in triples}
    children = {
        int(child.generate_state(1, np.uint64)[0])
        for seed in (0, 1)
        for stage in ("collect", "evaluate")
        for child in seed_sequence(seed, 0, stage).spawn(10)
    }
    assert (len(first), len(seeds), len(children)) == (len(triples), len(triples), 40)


@given(st.integers(0, 2**32), st.lists(st.sampled_from(["integers", "normal", "uniform"]), max_size=8))
def test_a_stored_generator_goes_on_bit_for_bit(seed: int, used: list[str]) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    for kind in used:
        {
            "integers": lambda: generator.integers(100, dtype=np.uint32),  # leaves half a word in the buffer
            "normal": lambda: generator.standard_normal(dtype=np.float32),
            "uniform": lambda: generator.uniform(),
        }[kind]()
    packed = pack_generator(generator)
    assert packed.dtype == np.uint64
    assert packed.shape == (6,)
    again = unpack_generator(packed)
    assert generator.bit_generator.state == again.bit_generator.state
    following = [(g.integers(100, size=3, dtype=np.uint32), g.standard_normal(3)) for g in (generator, again)]
    assert all(np.array_equal(one, other) for one, other in zip(*following, strict=True))


def test_only_a_pcg64_can_be_stored() -> None:
    with pytest.raises(UsbpoError, match="MT19937"):
        pack_generator(np.random.Generator(np.random.MT19937(0)))
