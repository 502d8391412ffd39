"""docs/design.md: the rooms have the files that it says, and its walks lead along names that are there, downwards."""

import ast
import re
import runpy
from importlib import import_module

import pytest
from helpers.workflow import REPO

TEXT = (REPO / "docs/design.md").read_text(encoding="utf-8")
HOUSE = TEXT.partition("## The house\n")[2].partition("\n## ")[0]
WALKS = TEXT.partition("## Two walks\n")[2].partition("\n## ")[0]
FILES = ("json", "h5", "yaml", "py")
FLOORS = {
    room: number
    for number, floor in enumerate(runpy.run_path(str(REPO / "docs/images/house.py"))["layers"]())
    for room in floor
}
ROOMS = re.findall(r"^\| `(\w+)/` \| (.*?) \| (.*) \|$", HOUSE, flags=re.MULTILINE)


def names(text: str) -> list[str]:
    """The dotted names of a text, those of files left out."""
    return [name for name in re.findall(r"`(\w+(?:\.\w+)+)`", text) if name.rpartition(".")[2] not in FILES]


def sentences(text: str) -> list[str]:
    """Its sentences, and the parts of one that a semicolon or colon separates."""
    return re.split(r"(?<=[.;:])\**\s", text)


def test_the_table_has_every_room_from_top_to_bottom() -> None:
    assert [room for room, _, _ in ROOMS] == [room for room in FLOORS if room != "errors"]


@pytest.mark.parametrize(("room", "said", "files"), ROOMS, ids=[room for room, _, _ in ROOMS])
def test_the_table_says_of_a_room_what_it_says_of_itself_and_has_all_of_its_files(
    room: str, said: str, files: str
) -> None:
    folder = REPO / "usbpo" / room
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert said == docstring.splitlines()[0]
    assert sorted(files.split(" · ")) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", sorted(set(names(WALKS))))
def test_every_name_on_the_walks_is_there(name: str) -> None:
    room, module, *parts = name.split(".")
    found = import_module(f"usbpo.{room}.{module}")
    for part in parts:
        found = getattr(found, part) if hasattr(found, part) else found.__dataclass_fields__[part]
    assert parts, "a walk names what is in a file"


def test_there_are_two_walks_from_the_configuration_to_the_figure() -> None:
    seed, transition = WALKS.split("### ")[1:]
    for walk in (seed, transition):
        steps = re.split(r"^\d+\. ", walk, flags=re.MULTILINE)[1:]
        assert names(steps[0])[0].startswith("experiment.")
        assert names(steps[-1])[-1] == "report.drawing.save"
        assert len({name.split(".")[0] for name in names(walk)}) >= 7


@pytest.mark.parametrize("sentence", [each for each in sentences(WALKS) if len(names(each)) > 1])
def test_no_walk_climbs_back_up(sentence: str) -> None:
    floors = [FLOORS[name.split(".")[0]] for name in names(sentence)]
    assert floors == sorted(floors), names(sentence)
