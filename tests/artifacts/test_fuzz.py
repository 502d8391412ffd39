"""Mutated files of every kind through the real readers, in a child with limits: nothing but a sentence.

How many is USBPO_FUZZ; half of them are sealed anew, as by a stranger who means harm.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions

MUTATED = int(os.environ.get("USBPO_FUZZ", "10000"))
BATCH = 500
"""Files for one child"""

CHILD = """
import collections, json, random, resource, signal, sys, traceback
from pathlib import Path
from usbpo.agent import sac
from usbpo.artifacts import evaluations, hdf5, metrics, sealing, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.identity import header_of
from usbpo.errors import UsbpoError
from usbpo.model import ensemble
from usbpo.stages.triggered import read_state

folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
HEADER = Header("trigger", "tiny", 0, 2)


def arrays(path):
    with hdf5.opened(path) as found:
        return [found[name] for name in found.shapes]


READERS = {
    "shard.h5": [transitions.read, transitions.read_collector, arrays, header_of],
    "rollouts.h5": [lambda path: transitions.read_rollouts([path], 1)],
    "evaluation.h5": [evaluations.read],
    "theory.h5": [arrays],
    "model.safetensors": [ensemble.load, header_of],
    "policy.safetensors": [sac.load],
    "trigger.json": [metrics.read, lambda path: read_state(path, HEADER)],
}


def mutated(content, rng):
    content = bytearray(content)
    head = min(len(content), 2500)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        place = rng.randrange(head if rng.random() < 0.6 else len(content))
        match rng.randrange(7):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place] = rng.randrange(256)
            case 2:
                content[place : place + rng.randrange(1, 600)] = b""
            case 3:
                content[place:place] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                size = rng.randrange(1, 600)
                content[place : place + size] = bytes(min(size, len(content) - place))
            case 5:
                del content[place:]
            case 6:
                content[place : place + 1] = rng.choice([b"-", b"9" * 30, b"[", b"{", b'"', b"1e999", b"NaN", b"null"])
        if not content:
            break
        head = min(len(content), 2500)
    return bytes(content)


def resealed(content):
    place = content.find(sealing.MARK) + len(sealing.MARK)
    if place < len(sealing.MARK) or place + 64 > len(content):
        return content
    import hashlib
    blank = content[:place] + sealing.BLANK + content[place + 64 :]
    return content[:place] + hashlib.sha256(blank).hexdigest().encode() + content[place + 64 :]


def late(*_):
    raise TimeoutError("it takes longer than 10 s")


signal.signal(signal.SIGALRM, late)
outcomes = collections.Counter()
for number in range(first, first + count):
    rng = random.Random(number)
    name = rng.choice(sorted(READERS))
    content = mutated((folder / name).read_bytes(), rng)
    again = rng.random() < 0.5
    path = folder / f"mutated-{name}"
    path.write_bytes(resealed(content) if again else content)
    for reader in READERS[name]:
        signal.alarm(10)
        try:
            reader(path)
            outcome = "read" if again or content == (folder / name).read_bytes() else "DAMAGE NOT NOTICED"
        except UsbpoError as error:
            said = str(error)
            outcome = "a sentence" if said.endswith(".") and len(said.splitlines()) == 1 else f"NO SENTENCE {said!r}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {traceback.format_exc()[-600:]}"
        signal.alarm(0)
        if outcome not in ("read", "a sentence"):
            outcome = f"{number} {name}: {outcome}"
        outcomes["sealed anew: " * again + outcome] += 1
print(json.dumps(outcomes))
"""


@pytest.fixture
def artifacts(tmp_path: Path, make_transitions: Callable[..., Transitions], make_header: Callable[..., Header]) -> Path:
    """One small artifact of each kind."""
    import numpy as np
    import torch

    from usbpo.agent import sac
    from usbpo.artifacts import evaluations, hdf5, metrics, transitions
    from usbpo.model import ensemble

    rows, state = make_transitions(20), {"physics": np.linspace(0, 1, 9), "elapsed_steps": np.array(7)}
    transitions.write(tmp_path / "shard.h5", make_header(), rows, state)
    transitions.write(tmp_path / "rollouts.h5", make_header("rollouts"), rows, updates=[9, 11])
    header = Header(evaluations.KIND, "tiny", 0, 1, {evaluations.STEPS: 250}, inputs={"policy": ["ab"]})
    episodes = evaluations.Episodes(np.linspace(0.0, 1.0, 3), np.arange(3), np.arange(3))
    evaluations.write(tmp_path / "evaluation.h5", header, episodes)
    hdf5.write(tmp_path / "theory.h5", make_header("theory"), {"holdout/after/shift": np.ones(9, np.float32)})
    generator = torch.Generator().manual_seed(0)
    made = ensemble.new_ensemble(ensemble.Architecture(2, 1, 2, 1, 1, 3), generator)
    made.save(tmp_path / "model.safetensors", make_header("model"))
    sac.new_agent(sac.Architecture(2, 1, 1, 3), generator).save(tmp_path / "policy.safetensors", make_header("policy"))
    content = {"checks": [], "state": {"estimate": 0.1, "error_sum": 0.2, "steps": 10, "reference_volume": 0.3}}
    metrics.write(tmp_path / "trigger.json", Header("trigger", "tiny", 0, 1), content, "")
    return tmp_path


@pytest.mark.slow
def test_mutated_files_end_in_a_sentence(artifacts: Path) -> None:
    outcomes: dict[str, int] = {}
    for first in range(0, MUTATED, BATCH):
        words = [sys.executable, "-c", CHILD, str(artifacts), str(first), str(min(BATCH, MUTATED - first))]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=3000)
        assert ended.returncode == 0, ended.stderr
        for outcome, count in json.loads(ended.stdout).items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    print(outcomes)
    allowed = {"a sentence", "read", "sealed anew: a sentence", "sealed anew: read"}
    assert outcomes.keys() <= allowed, {name: count for name, count in outcomes.items() if name not in allowed}
    assert outcomes["a sentence"] > MUTATED / 3
    assert outcomes["sealed anew: a sentence"] > MUTATED / 10
