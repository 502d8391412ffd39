"""CONTRIBUTING.md: each list of files to touch is that of something which is there."""

import re
from pathlib import Path

import pytest
from helpers.workflow import REPO

TEXT = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## How to add a (\w+)\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))
TRACED = [(kind, re.findall(r"\(Traced along `([\w-]+)`\.\)", section)) for kind, section in SECTIONS.items()]


def rows(kind: str) -> list[tuple[list[str], str]]:
    """The rows of a list: the files that it names, and what is to be done there."""
    found = re.findall(r"^\| (`.*?) \| (.*) \|$", SECTIONS[kind], flags=re.MULTILINE)
    return [(re.findall(r"`([^`]+)`", files), what) for files, what in found]


def test_there_is_a_list_for_all_that_is_often_added() -> None:
    assert [kind for kind, _ in TRACED] == ["task", "method", "stage", "figure"]
    assert all(len(rows(kind)) >= 4 for kind in SECTIONS)


@pytest.mark.parametrize(("kind", "example"), [(kind, example) for kind, (example,) in TRACED])
def test_every_file_of_a_list_knows_the_example_that_it_was_traced_along(kind: str, example: str) -> None:
    for files, what in rows(kind):
        for name in files:
            path = REPO / name.replace("NAME", example)
            assert path.exists(), f"{kind}: {name} is not there"
            if not re.match("only (for|where)", what):
                texts = [each.read_text(encoding="utf-8") for each in _files(path)]
                assert example.lower() in "\n".join([path.name, *texts]).lower(), (
                    f"{kind}: {name} does not know {example}"
                )


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_name_in_capitals_of_a_list_stands_in_a_file_of_its_row(kind: str) -> None:
    for files, what in rows(kind):
        texts = [each.read_text(encoding="utf-8") for name in files for each in _files(REPO / name)]
        for name in set(re.findall(r"`([A-Z_]{4,}|Run\.\w+)`", what)) - {"NAME"}:
            assert any(re.search(rf"\b{name.removeprefix('Run.')}\b", text) for text in texts), f"{kind}: {name}"


def test_every_path_in_the_rest_of_the_text_is_there() -> None:
    rest = re.sub(r"^\|.*$", "", TEXT, flags=re.MULTILINE)
    named = re.findall(r"`((?:usbpo|tests|docs|workflow|config)/[\w./-]*)`", rest) + re.findall(
        r"\]\(([\w./-]+)\)", rest
    )
    named = [name for name in named if not re.search(r"[A-Z]{4,}/|NAME|FILE", name)]
    assert len(named) > 8
    assert [name for name in named if not (REPO / name).exists()] == []


def _files(path: Path) -> list[Path]:
    """A file, or all text files below a folder; none where there is nothing."""
    if path.is_file():
        return [path]
    return [each for each in path.rglob("*") if each.suffix in (".py", ".md", ".yaml", ".smk", ".rst")]
