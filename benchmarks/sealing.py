"""What checksums cost: CPU time of all that a cycle of Hopper with USB-PO writes and reads, with its seals and without.

    python benchmarks/sealing.py

Beside it stands the same reading and writing of transitions by the HDF5 library with Fletcher32 over chunks, as it was
before artifacts were sealed. Files go to a folder of temporary files, which should be in memory or on a fast disk: only
CPU time is counted.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from usbpo.agent import sac
from usbpo.artifacts import sealing, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.model import ensemble
from usbpo.numerics.optimizer import new_moments

OBS_DIM, ACT_DIM, BRANCHES, RETAINED = 11, 3, 100_000, 4
CHUNK = 4096
READS = {"data": 5, "d_model": 3, "model": 5, "mle": 3, "policy": 5}
"""How often a cycle reads each: phase1, phase2, rollout, policy, theory, collect and evaluate"""
KINDS = {"data": transitions.KIND, "rollouts": transitions.ROLLOUTS}


def rows(count: int) -> Transitions:
    """Transitions of Hopper's width."""
    rng = np.random.default_rng(0)
    return Transitions(
        observations=rng.normal(size=(count, OBS_DIM)).astype(np.float32),
        actions=rng.normal(size=(count, ACT_DIM)).astype(np.float32),
        rewards=rng.normal(size=count).astype(np.float32),
        next_observations=rng.normal(size=(count, OBS_DIM)).astype(np.float32),
        terminations=rng.random(count) < 0.1,
        truncations=np.zeros(count, np.bool_),
        episodes=np.arange(count),
    )


def header(kind: str) -> Header:
    return Header(kind, "Hopper", 0, 0)


def cycle(folder: Path, made: Transitions) -> None:
    """Write and read what one cycle does."""
    agent = sac.new_agent(sac.Architecture(OBS_DIM, ACT_DIM, 2, 256), torch.Generator().manual_seed(0))
    model = ensemble.new_ensemble(ensemble.Architecture(OBS_DIM, ACT_DIM, 7, 5, 4, 200), torch.Generator())
    transitions.write(folder / "rollouts.h5", header(transitions.ROLLOUTS), made)
    model.save(folder / "mle.safetensors", header(ensemble.KIND))
    model.finetune = new_moments(model.params)
    model.save(folder / "model.safetensors", header(ensemble.KIND))
    agent.save(folder / "policy.safetensors", header(sac.KIND))
    for _ in range(READS["data"]):
        transitions.read(folder / "data.h5")
    for _ in range(READS["d_model"] * RETAINED):
        transitions.read(folder / "rollouts.h5", transitions.ROLLOUTS)
    for name, load in (("model", ensemble.load), ("mle", ensemble.load), ("policy", sac.load)):
        for _ in range(READS[name]):
            load(folder / f"{name}.safetensors")


def by_library(folder: Path, made: Transitions) -> None:
    """The transitions alone, by HDF5 in chunks with Fletcher32."""
    with h5py.File(folder / "chunked.h5", "w") as file:
        for name, values in vars(made).items():
            file.create_dataset(name, data=values, chunks=(CHUNK, *values.shape[1:]), fletcher32=True)
    for _ in range(READS["d_model"] * RETAINED):
        with h5py.File(folder / "chunked.h5") as file:
            found = [file[name][()] for name in vars(made)]
        assert all(np.isfinite(values).all() for values in found)


def transitions_alone(folder: Path, made: Transitions) -> None:
    transitions.write(folder / "rollouts.h5", header(transitions.ROLLOUTS), made)
    for _ in range(READS["d_model"] * RETAINED):
        transitions.read(folder / "rollouts.h5", transitions.ROLLOUTS)


def cpu(act: Callable[[], None], times: int) -> float:
    """The least CPU time of several."""
    found = []
    for _ in range(times):
        began = time.process_time()
        act()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 15], help="rollout lengths")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    real = sealing._digest
    print(
        "| rollout length | D_model | a cycle's files | without seals | seals | transitions alone | by HDF5, Fletcher |"
    )
    print("|---|---|---|---|---|---|---|")
    for length in given.lengths:
        with tempfile.TemporaryDirectory() as name:
            folder, made = Path(name), rows(BRANCHES * length)
            transitions.write(folder / "data.h5", header(transitions.KIND), rows(50_000))
            whole = cpu(lambda: cycle(folder, made), given.times)  # noqa: B023
            ours = cpu(lambda: transitions_alone(folder, made), given.times)  # noqa: B023
            library = cpu(lambda: by_library(folder, made), given.times)  # noqa: B023
            size = RETAINED * (folder / "rollouts.h5").stat().st_size / 1e6
            try:
                sealing._digest = lambda file: _unchecked(file)
                bare = cpu(lambda: cycle(folder, made), given.times)  # noqa: B023
            finally:
                sealing._digest = real
        print(
            f"| {length} | {size:.0f} MB | {whole:.2f} s | {bare:.2f} s | {whole - bare:.2f} s | {ours:.2f} s | "
            f"{library:.2f} s |"
        )


def _unchecked(file: object) -> tuple[int, str]:
    """The digits that stand in a file, unchecked."""
    file.seek(0)  # type: ignore[attr-defined]
    head: bytes = file.read(sealing.HEAD)  # type: ignore[attr-defined]
    place = head.index(sealing.MARK) + len(sealing.MARK)
    return place, head[place : place + 64].decode()


if __name__ == "__main__":
    main()
