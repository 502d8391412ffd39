"""The interleaved reference loop: the stages' algorithm but for the lag of the collecting policy."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.workflow import REPO, finished_workspace

from usbpo.agent import sac
from usbpo.artifacts.layout import MODEL, MODEL_MLE, POLICY
from usbpo.model import ensemble

sys.path.insert(0, str(REPO / "benchmarks"))
from lag import Loop, cycles  # type: ignore[import-not-found]


@pytest.mark.parametrize("method", ["test-usbpo", "test-mbpo"])
def test_with_a_policy_fixed_for_the_cycle_the_loop_gives_the_tensors_of_the_stages(
    method: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    staged = finished_workspace(tmp_path_factory)
    loop = Loop(tmp_path, "test-pendulum", method, seed=0, policy_every=30, steps=90)
    list(cycles(loop, 90))
    _, expected = sac.load(staged / loop.run.path(POLICY, 3))
    found = loop.learner.agent()
    assert found.updates == expected.updates == 90
    for name in ("actor", "critics", "targets", "temperature"):
        for key, tensor in getattr(expected, name).items():
            assert torch.equal(tensor, getattr(found, name)[key]), (name, key)
    model = loop.run.path(MODEL if method == "test-usbpo" else MODEL_MLE, 3)
    (_, one), (_, other) = ensemble.load(tmp_path / model), ensemble.load(staged / model)
    assert all(torch.equal(tensor, other.params[key]) for key, tensor in one.params.items())


def test_an_interleaved_policy_takes_as_many_updates_and_meets_other_data(tmp_path: Path) -> None:
    fixed, interleaved = (
        Loop(tmp_path / str(every), "test-pendulum", "test-mbpo", seed=0, policy_every=every, steps=60)
        for every in (30, 1)
    )
    for loop in (fixed, interleaved):
        lines = list(cycles(loop, 60))
        assert [line["step"] for line in lines] == [30, 60]
        assert loop.learner.updates == 60
        assert loop.replay.real_rows == 120
    one, other = (loop.replay.packed[:, loop.replay.model_rows :] for loop in (fixed, interleaved))
    assert torch.equal(one[:, :60], other[:, :60]), "the same random steps"
    assert not torch.equal(one[:, 60:], other[:, 60:])


@pytest.mark.slow
def test_the_interleaved_loop_solves_inverted_pendulum(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "InvertedPendulum", "mbpo", seed=0, policy_every=1, steps=2500)
    assert max(line["return"] for line in cycles(loop, 2500)) >= 950
