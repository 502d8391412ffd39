"""What docs/results publishes is what its own CSV files give, and its pages say nothing else."""

import csv
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "docs/results"
PUBLISHED = sorted(path.parent for path in RESULTS.glob("*/evaluations.csv"))
PAGES = [RESULTS, *PUBLISHED]
TABLES = re.compile(r"<!-- \w+[^\n]* -->\n.*?<!-- end -->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
HOW = "How it was run"
"""The section whose numbers are of machines and versions"""


@pytest.fixture(scope="module")
def remake() -> Callable[[Path], None]:
    """The command that the page names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RESULTS))  # as the interpreter does for a script
        found: Callable[[Path], None] = runpy.run_path(str(RESULTS / "remake.py"))["remake"]
    return found


@pytest.fixture(scope="module")
def again(remake: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which everything was made again, all that was made before being gone."""
    folder = tmp_path_factory.mktemp("published") / "results"
    shutil.copytree(RESULTS, folder)
    for entry in PUBLISHED:
        for path in (folder / entry.name).iterdir():
            if not (path.suffix in (".yaml", ".py") or path.name in needed(entry)):
                path.unlink()
    for page in (folder, *(folder / entry.name for entry in PUBLISHED)):
        text = (page / "README.md").read_text(encoding="utf-8")
        emptied = TABLES.sub(lambda match: match[0].partition("\n")[0] + "\n<!-- end -->", text)
        (page / "README.md").write_text(emptied, encoding="utf-8")
    remake(folder)
    return folder


def needed(entry: Path) -> set[str]:
    """Names of the files of an entry that hold what was measured; all others are made of them."""
    measured = {
        "evaluations",
        "usage",
        "theory_bias",
        "theory_bracket",
        "model_shift_and_bias",
        "trigger_history",
        "holdout_error",
    }
    loops = {path.name for path in entry.glob("loop_*.csv")}
    return {"README.md", *(f"{name}.csv" for name in measured), *loops}


def test_every_entry_stands_in_the_index() -> None:
    assert PUBLISHED
    index = (RESULTS / "README.md").read_text(encoding="utf-8")
    for folder in PUBLISHED:
        assert f"({folder.name}/README.md)" in index


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.name)
def test_tables_and_pages_are_made_of_what_was_measured(folder: Path, again: Path) -> None:
    other = again / folder.relative_to(RESULTS)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {path.name for path in other.iterdir() if path.is_file()}
    for name in names:
        if name.endswith(".csv"):
            assert cells(folder / name) == cells(other / name), name
        elif name.endswith(".md"):
            assert (folder / name).read_text(encoding="utf-8") == (other / name).read_text(encoding="utf-8"), name


def cells(path: Path) -> list[list[Any]]:
    """A table whose numbers are compared to ten digits: another processor may round the last ones otherwise."""
    with open(path, encoding="utf-8", newline="") as file:
        return [[approximately(cell) for cell in row] for row in csv.reader(file)]


def approximately(cell: str) -> Any:
    try:
        return pytest.approx(float(cell), rel=1e-10, nan_ok=True)
    except ValueError:
        return cell


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.name)
def test_every_number_in_the_text_stands_in_a_table_of_the_page(folder: Path) -> None:
    page = (folder / "README.md").read_text(encoding="utf-8")
    tables = "\n".join(TABLES.findall(page))
    experiment = folder / "experiment.yaml"
    known = set(NUMBER.findall(tables + (experiment.read_text(encoding="utf-8") if experiment.exists() else "")))
    text = TABLES.sub("", page)
    text = re.sub(rf"^## {HOW}$.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|^    [^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    for number in NUMBER.findall(text):
        assert number.rstrip(",") in known | {each.replace(",", "") for each in known}, number


def test_a_changed_return_changes_the_page(remake: Callable[[Path], None], tmp_path: Path) -> None:
    """So the tests above can fail."""
    entry = PUBLISHED[0]
    shutil.copytree(entry, tmp_path / entry.name)
    shutil.copyfile(RESULTS / "README.md", tmp_path / "README.md")
    path = tmp_path / entry.name / "evaluations.csv"
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("return")
    changed = lines[-1].split(",")
    changed[column] = str(float(changed[column]) + 1000)
    path.write_text("\n".join([*lines[:-1], ",".join(changed)]) + "\n")
    remake(tmp_path)
    assert (tmp_path / entry.name / "README.md").read_text() != (entry / "README.md").read_text()


def test_a_table_that_there_is_none_of_is_told(remake: Callable[[Path], None], tmp_path: Path) -> None:
    entry = PUBLISHED[0]
    shutil.copytree(entry, tmp_path / entry.name)
    (tmp_path / entry.name / "README.md").write_text("<!-- horoscope -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="there is no table 'horoscope', only comparison, "):
        remake(tmp_path)
