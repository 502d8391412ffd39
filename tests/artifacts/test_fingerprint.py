"""A stage's fingerprint changes with the code that it runs, and with nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from usbpo.artifacts import fingerprint as fingerprints
from usbpo.artifacts.fingerprint import code_alone, fingerprint
from usbpo.commands.stage_verbs import SECTIONS

SOURCE = '''"""A module."""

import math  # for the root


class Point:
    """A point."""

    x: float
    """Where it is."""


def root(value: float) -> str:
    """The root.

    Of a value.
    """
    # Never negative.
    return "# no comment: " + str(math.sqrt(value))  # as text
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""', '"""Another text,\nof two lines."""'),
        ('    """Where it is."""\n', ""),
        ("    Of a value.\n", "    Of a value that is not negative.\n\n    Always.\n"),
        ("# Never negative.", "# A remark that is much longer than it was."),
        ("  # as text", ""),
        ("# for the root", "# noqa"),
        ("\n\n\n", "\n\n\n\n"),
        ("    # Never negative.\n", ""),
    ],
)
def test_comments_and_docstrings_do_not_count(old: str, new: str) -> None:
    assert old in SOURCE
    assert code_alone(SOURCE.replace(old, new, 1)) == code_alone(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.sqrt", "math.cbrt"),
        ('"# no comment: "', '"# a comment: "'),
        ("x: float", "x: int"),
        ("    return", "    value += 1\n    return"),
        ("import math", "import cmath as math"),
        ("value: float", "value: float = 1.0"),
    ],
)
def test_every_token_of_code_counts(old: str, new: str) -> None:
    assert old in SOURCE
    assert code_alone(SOURCE.replace(old, new, 1)) != code_alone(SOURCE)


def forget() -> None:
    """Have every module read anew."""
    for cached in (fingerprint, fingerprints._code_of, fingerprints._imports):
        cached.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of its own in place of usbpo: `stages.one` needs `below`, which needs `depth`; `other` stands apart."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text("")
    (tmp_path / "stages/one.py").write_text("from usbpo import below\nfrom usbpo.stages.two import two\n")
    (tmp_path / "stages/two.py").write_text("two = 2\n")
    (tmp_path / "below.py").write_text("def f():\n    from usbpo.depth import depth\n    return depth\n")
    (tmp_path / "depth.py").write_text("from usbpo.below import f\ndepth = 1\n")
    (tmp_path / "other.py").write_text("from usbpo.stages import one\n")
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path)
    forget()
    yield tmp_path
    forget()


@pytest.mark.parametrize(
    ("module", "counts"),
    [("stages/one", True), ("stages/two", True), ("below", True), ("depth", True), ("other", False)],
)
def test_modules_that_a_stage_imports_count_and_others_do_not(package: Path, module: str, counts: bool) -> None:
    before = fingerprint("stages.one")
    with open(package / f"{module}.py", "a", encoding="utf-8") as file:
        file.write("added = 1\n")
    forget()
    assert (fingerprint("stages.one") != before) == counts


def test_a_fingerprint_covers_all_modules_that_its_stage_loads() -> None:
    # Everything heavy is loaded once; then each stage is imported with no module of the package loaded before it.
    program = """
import json, sys
import h5py, gymnasium, mujoco, numpy, safetensors.torch, torch
from importlib import import_module
loaded = {}
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "usbpo"]:
        del sys.modules[name]
    import_module(f"usbpo.stages.{stage}")
    loaded[stage] = [name for name in sys.modules if name.startswith("usbpo.")]
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", program, *SECTIONS], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    rooms = {f"usbpo.{path.parent.name}" for path in fingerprints.PACKAGE.glob("*/__init__.py")}
    packages = {"usbpo.stages"} | {room for room in rooms if not fingerprints._code_of(room.partition(".")[2])}
    assert "usbpo.artifacts" in packages, "a room's own file is a sentence, which shapes no artifact"
    for stage, modules in loaded.items():
        assert f"usbpo.stages.{stage}" in modules
        covered = {f"usbpo.{name}" for name in fingerprints._closure(f"stages.{stage}")}
        assert set(modules) - packages <= covered, stage
    assert "usbpo.model.ensemble" not in loaded["evaluate"], "the test tells stages apart"


def test_stages_have_fingerprints_of_their_own() -> None:
    made = {stage: fingerprint(f"stages.{stage}") for stage in SECTIONS}
    assert len(set(made.values())) == len(SECTIONS)
    assert all(len(digest) == 16 for digest in made.values())
