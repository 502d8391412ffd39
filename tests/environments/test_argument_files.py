"""Files that an environment's arguments name count by their content, and are missed before anything is computed."""

from pathlib import Path
from typing import Any

import pytest

from usbpo.environments import argument_files
from usbpo.environments.argument_files import content_of
from usbpo.errors import UsbpoError

HOPPER = "Hopper-v5"
MODEL = """<mujoco>
  <compiler meshdir="assets/meshes" texturedir="pictures"/>
  <include file="parts/leg.xml"/>
  <asset><mesh name="foot" file="foot.stl"/><texture name="sky" type="skybox" fileup="up.png"/></asset>
</mujoco>"""
FILES = {
    "my.xml": MODEL,
    "parts/leg.xml": '<mujoco><include file="knee.xml"/><asset><hfield file="ground.png"/></asset></mujoco>',
    "parts/knee.xml": "<mujoco/>",
    "ground.png": "hills",
    "assets/meshes/foot.stl": "foot",
    "pictures/up.png": "blue",
    "robot.urdf": '<robot><mesh filename="assets/meshes/arm.obj"/></robot>',
    "assets/meshes/arm.obj": "arm",
    "track.npz": "curves",
    "tracks/one.csv": "1",
    "tracks/deep/two.csv": "2",
    "unnamed.txt": "nothing",
}
NAMED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a model": (
        {"xml_file": "./my.xml"},
        {"my.xml", "parts/leg.xml", "parts/knee.xml", "ground.png", "assets/meshes/foot.stl", "pictures/up.png"},
    ),
    "a description of a robot": ({"robot": "robot.urdf"}, {"robot.urdf", "assets/meshes/arm.obj"}),
    "any other file": ({"curve": "track.npz", "n": 3, "on": True}, {"track.npz"}),
    "a list of files": ({"curves": ["track.npz", "tracks/one.csv", 2]}, {"track.npz", "tracks/one.csv"}),
    "a folder": ({"folder": "./tracks"}, {"tracks/one.csv", "tracks/deep/two.csv"}),
    "names that are none": ({"render": "rgb", "gait": "tracks", "here": "./", "above": "../"}, set()),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the run with files."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("arguments", "counts"), NAMED.values(), ids=NAMED.keys())
def test_exactly_the_files_that_are_named_count(folder: Path, arguments: dict[str, Any], counts: set[str]) -> None:
    before = content_of(HOPPER, arguments)
    assert bool(before) == bool(counts)
    for name in FILES:
        path = folder / name
        path.write_text(f"{FILES[name]}<!-- changed -->")
        assert (content_of(HOPPER, arguments) != before) == (name in counts), name
        path.write_text(FILES[name])
        assert content_of(HOPPER, arguments) == before, "the time of a file does not count"


def test_a_new_file_of_a_folder_counts_and_a_hidden_one_does_not(folder: Path) -> None:
    before = content_of(HOPPER, {"folder": "./tracks"})
    (folder / "tracks/.hidden").touch()
    (folder / "tracks/__pycache__").mkdir()
    (folder / "tracks/__pycache__/a.pyc").touch()
    assert content_of(HOPPER, {"folder": "./tracks"}) == before
    (folder / "tracks/three.csv").touch()
    assert content_of(HOPPER, {"folder": "./tracks"}) != before


def test_the_same_files_elsewhere_count_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "deep"
    for name, content in FILES.items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(content)
    for arguments in ({"xml_file": "./my.xml"}, {"folder": "./tracks"}):
        assert content_of(HOPPER, arguments, folder) == content_of(HOPPER, arguments, other)


def test_what_comes_out_of_the_run_is_none_of_it(folder: Path) -> None:
    (folder / "data/runs").mkdir(parents=True)
    (folder / "data/runs/a").touch()
    assert content_of(HOPPER, {"output": "data/runs", "all": "./data"}) == ""


def test_a_file_beside_the_module_that_registers_the_environment_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "lib").mkdir()
    (folder / "lib/argument_files_task.py").touch()
    (folder / "lib/field.json").write_text("1")
    monkeypatch.syspath_prepend(str(folder / "lib"))
    mine, before = "argument_files_task:Mine-v0", content_of("argument_files_task:Mine-v0", {"field": "field.json"})
    (folder / "lib/field.json").write_text("2")
    assert content_of(mine, {"field": "field.json"}) not in ("", before)
    assert content_of(HOPPER, {"field": "field.json"}) == ""


@pytest.mark.parametrize(
    "model",
    ["<mujoco><broken", '<mujoco><include file="my.xml"/></mujoco>', "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "\0"],
)
def test_a_model_of_any_content_counts(folder: Path, model: str) -> None:
    (folder / "my.xml").write_text(model)
    before = content_of(HOPPER, {"xml_file": "./my.xml"})
    (folder / "my.xml").write_text(f"{model} ")
    assert content_of(HOPPER, {"xml_file": "./my.xml"}) not in ("", before)


@pytest.mark.parametrize("name", ["./none.xml", "none.xml", "/nowhere/none.mjb", "~/none.urdf", "./" + "x" * 5000])
def test_a_missing_file_is_told_in_one_sentence(folder: Path, name: str) -> None:
    with pytest.raises(UsbpoError) as caught:
        argument_files.check(HOPPER, {"xml_file": name})
    said = str(caught.value)
    assert said.startswith(f"xml_file names {name[:300]}, but there is no such file; put it there")
    assert len(said.splitlines()) == 1
    assert len(said) < 500


def test_a_name_that_the_environment_finds_by_itself_is_let_pass(folder: Path) -> None:
    argument_files.check(HOPPER, {"xml_file": "hopper.xml"})
    argument_files.check(HOPPER, {"xml_file": "./my.xml"})  # that it cannot be made of it, the stage will say


def test_a_file_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(argument_files, "sha256", refuse)
    (folder / "secret.npz").write_text("new")
    with pytest.raises(UsbpoError, match=r"curve names .*secret\.npz, which cannot be read \(Permission denied\)"):
        argument_files.check(HOPPER, {"curve": "secret.npz"})
