"""Which folders are runs."""

from pathlib import Path

import pytest

from usbpo.artifacts.layout import runs_on_disk


@pytest.mark.parametrize("name", ["seed-²", "seed-", "seed--1", "seed-1.5", "seed-x", "Seed-1"])
def test_a_folder_without_the_number_of_a_seed_is_no_run(tmp_path: Path, name: str) -> None:
    for folder in (name, "seed-12"):
        (tmp_path / "data/runs/task/method" / folder).mkdir(parents=True)
    assert runs_on_disk(tmp_path) == [("task", "method", 12)]
