"""What docs/results publishes is what its own evaluations give, and what its pages say."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from usbpo.commands import cli
from usbpo.experiment.yaml_files import read_yaml

RESULTS = Path(__file__).parents[2] / "docs/results"
PUBLISHED = sorted(path.parent for path in RESULTS.glob("*/evaluations.csv"))


def test_something_is_published_and_stands_in_the_index() -> None:
    assert PUBLISHED
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    for folder in PUBLISHED:
        assert f"({folder.name}/README.md)" in index


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_tables_are_those_of_the_evaluations(folder: Path, tmp_path: Path) -> None:
    experiment = read_yaml(folder / "experiment.yaml")
    words = ["compare", str(folder / "evaluations.csv"), "--output", str(tmp_path), "--experiment", folder.name]
    for task, returns in experiment.get("returns", {}).items():
        words += ["--returns", f"{task}={','.join(map(str, returns))}"]
    assert cli.main(words) == 0
    tables = [path for path in folder.glob("*.csv") if (tmp_path / path.name).exists()]
    assert {"comparison.csv", "learning_curves.csv", "steps_to_return.csv"} <= {path.name for path in tables}
    for path in tables:
        assert cells(path) == cells(tmp_path / path.name), path.name
    assert (folder / "comparison.md").read_text() == (tmp_path / "comparison.md").read_text()


def cells(path: Path) -> list[list[Any]]:
    """A table whose numbers are compared to ten digits: another processor may round the last ones otherwise."""
    with open(path, encoding="utf-8", newline="") as file:
        return [[approximately(cell) for cell in row] for row in csv.reader(file)]


def approximately(cell: str) -> Any:
    try:
        return pytest.approx(float(cell), rel=1e-10)
    except ValueError:
        return cell


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_page_shows_the_rows_of_the_comparison(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [A-Z]\w* \| [a-z].*\|$", (folder / "comparison.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows
    for row in rows:
        assert row in page, row
