"""Which folders are runs."""

from pathlib import Path

import pytest

from usbpo.artifacts.layout import cycle_of, runs_on_disk


@pytest.mark.parametrize("name", ["seed-²", "seed-", "seed--1", "seed-1.5", "seed-x", "Seed-1", "seed-007", "seed-٣"])
def test_a_folder_without_the_number_of_a_seed_is_no_run(tmp_path: Path, name: str) -> None:
    for folder in (name, "seed-12"):
        (tmp_path / "data/runs/task/method" / folder).mkdir(parents=True)
    assert runs_on_disk(tmp_path) == [("task", "method", 12)]


@pytest.mark.parametrize(
    "path",
    ["backup/policy.json", "policy.json", "data/00003.h5", "backup/00003/policy.json", "0003/policy.json", "٠٠٠٠٣/x"],
)
def test_only_folders_of_five_digits_are_cycles(path: str) -> None:
    assert cycle_of("data/runs/T/M/seed-0/00003/policy.json") == 3
    assert cycle_of(f"data/runs/T/M/seed-0/{path}") is None
