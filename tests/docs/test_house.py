"""docs/images/house.svg is the picture of the imports as they are."""

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest
from helpers.workflow import REPO


@pytest.fixture(scope="module")
def house() -> dict[str, Any]:
    """The names of the script that draws it."""
    return runpy.run_path(str(REPO / "docs/images/house.py"))


def test_the_picture_of_the_house_is_that_of_the_imports(house: dict[str, Any]) -> None:
    committed = Path(house["PICTURE"]).read_text(encoding="utf-8")
    assert house["picture"]() == committed, "the imports between rooms have changed: make house"


def test_every_room_is_drawn_and_every_arrow_runs_down(house: dict[str, Any]) -> None:
    floors = house["layers"]()
    floor_of = {room: number for number, floor in enumerate(floors) for room in floor}
    package = REPO / "usbpo"
    found = {path.parent.name for path in package.glob("*/__init__.py")} | {"errors"}
    assert found == set(floor_of)
    assert all(floor_of[room] < floor_of[imported] for room, imported in house["arrows"]())


def test_an_import_within_a_function_is_drawn_too(house: dict[str, Any]) -> None:
    package = REPO / "usbpo"
    lazy = set()
    for path in package.glob("*/*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                names = [node.module or "" for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
                lazy |= {(path.parent.name, name.split(".")[1]) for name in names if name.startswith("usbpo.")}
    lazy = {(room, imported) for room, imported in lazy if room != imported}
    assert lazy, "there are such imports"
    assert lazy <= house["arrows"]()
