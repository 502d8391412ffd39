"""Reward and state apart: the share of a distance, and what recorded models say before and after phase 2."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.workflow import REPO, USBPO, finished_workspace
from hypothesis import given
from hypothesis import strategies as st

from usbpo.experiment.named import named_run
from usbpo.model.wasserstein import w2

sys.path.insert(0, str(REPO / "benchmarks"))
from reward_and_state import COLUMNS, fine_tunings, reward_share, table  # type: ignore[import-not-found]


@given(members=st.integers(2, 5), rows=st.integers(1, 6), dim=st.integers(2, 5), seed=st.integers(0, 1000))
def test_the_share_is_that_of_the_squared_distance(members: int, rows: int, dim: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn(members, rows, dim, generator=random, dtype=torch.float64)
    std = torch.rand(members, rows, dim, generator=random, dtype=torch.float64)
    shares = []
    for one in range(members):
        for other in set(range(members)) - {one}:
            of_reward = w2(mean[one, :, :1], std[one, :, :1], mean[other, :, :1], std[other, :, :1])
            of_all = w2(mean[one], std[one], mean[other], std[other])
            shares.append((of_reward / of_all).square())
    assert reward_share(mean, std) == pytest.approx(float(torch.stack(shares).mean()))


def test_a_reward_that_is_agreed_upon_has_no_share() -> None:
    mean = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]])
    assert reward_share(mean, torch.ones(2, 1, 2)) == 0
    assert reward_share(mean.flip(-1), torch.ones(2, 1, 2)) == 1


def test_each_fine_tuning_of_a_run_has_a_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace: Path = finished_workspace(tmp_path_factory)
    lines = list(fine_tunings(named_run(USBPO, workspace)))
    assert [line["cycle"] for line in lines] == [2, 3]
    assert all(set(line) == set(COLUMNS) for line in lines)
    assert all(line["state_error_after"] != line["state_error_before"] for line in lines)
    text = [{name: str(value) for name, value in line.items()} for line in lines]
    low, high = sorted(float(line["state_error_after"]) / float(line["state_error_before"]) for line in lines)
    assert f"{(low * high) ** 0.5:.2f} ({low:.2f} … {high:.2f})" in table(text)
