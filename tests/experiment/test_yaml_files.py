"""Configuration files of any content: each is read, or refused in one sentence that names it, at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbpo.errors import UsbpoError
from usbpo.experiment.layers import experiment_file, find, read_bases
from usbpo.experiment.named import named_runs
from usbpo.experiment.yaml_files import DEEPEST, LARGEST, MOST, read_yaml

LONG = "x" * 5000
NOBODY = 65534


def powers(line: str) -> str:
    """Collections of ten aliases of collections of ten aliases …, 10⁹ values in some hundred bytes."""
    return "a0: &a0 {x: 1}\n" + "".join(line.format(n=n, tens=", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 10))


TOO_DEEP = f"it is nested more than {DEEPEST} deep"
TOO_MANY = f"with what its aliases repeat it has more than {MOST:,} values"
NO_END = "an alias stands within what it stands for"
ODD = {
    "brackets": ("a: " + "[" * 100_000, TOO_DEEP),
    "closed brackets": ("a: " + "[" * 5000 + "]" * 5000, TOO_DEEP),
    "braces": ("a: " + "{a: " * 3000, TOO_DEEP),
    "dashes": ("a:\n" + "- " * 3000 + "1", TOO_DEEP),
    "indented": ("".join(" " * n + "a:\n" for n in range(500)), TOO_DEEP),
    "no integer": ("a: !!int x", "'x' cannot be read as int"),
    "no number": ("a: !!float x", "'x' cannot be read as float"),
    "no truth": ("a: !!bool x", "'x' cannot be read as bool"),
    "no time": ("a: !!timestamp x", "'x' cannot be read as timestamp"),
    "no date": ("a: 2024-13-45", "'2024-13-45' cannot be read as timestamp"),
    "no bytes": ("a: !!binary é", "failed to convert base64 data"),
    "an integer of a list": ("a: !!int [1]", "expected a scalar node, but found sequence"),
    "digits without end": ("a: " + "9" * 5000, "cannot be read as int"),
    "code": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "no character": ('a: "\\UFFFFFFFF"', "a \\U stands for no character"),
    "powers of lists": (powers("a{n}: &a{n} [{tens}]\n"), TOO_MANY),
    "powers of merges": (powers("a{n}: &a{n} {{<<: [{tens}]}}\n"), TOO_MANY),
    "a chain of aliases": ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 900)), TOO_MANY),
    "a list of itself": ("a: &a [*a]", NO_END),
    "a mapping of itself": ("a: &a {b: *a}", NO_END),
    "a merge of itself": ("a: &a {<<: *a}", NO_END),
    "no anchor": ("a: *b", "found undefined alias 'b'"),
    "a name of an anchor": ("a: *" + LONG, "found undefined alias"),
    "NUL": ("a: b\0", "it holds the control character U+0000"),
    "bell": ("a: \a", "it holds the control character U+0007"),
    "C1": ("a: \x9b31m", "it holds the control character U+009B"),
    "escaped NUL": ('a: "\\0"', "the text holds the control character U+0000"),
    "escaped escape": ('a: "\\e[31m"', "the text holds the control character U+001B"),
    "half a character": ('a: "\\ud800"', "the text holds the control character U+D800"),
    "twice": ("a: 1\nb: 2\na: 3", "line 3: this is not valid YAML: the key 'a' stands twice"),
    "twice below": ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
    "twice in a list": ("a: [{b: 1, 'b': 2}]", "the key 'b' stands twice"),
    "twice a merge": ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "the key '<<' stands twice"),
    "twice, long": (f"{LONG[:900]}: 1\n{LONG[:900]}: 1", "stands twice"),
    "a number as a key": ("1: 2", "the key '1' is no text and needs quotes"),
    "a truth as a key": ("on: 2", "the key 'on' is no text and needs quotes"),
    "a list as a key": ("[a]: 2", "a key is a collection, but must be a text"),
    "a list that calls itself a text": ("? !!str [a]\n: 1", "a key is a collection, but must be a text"),
    "tab": ("a:\n\t- 1", "found character '\\t' that cannot start any token"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "another version": ("%YAML 9.9\n---\na: 1", "found incompatible YAML document"),
    "open quote": ("a: 'x", "found unexpected end of stream"),
    "large": ("a: " + "x" * LARGEST, f"it has more than the {LARGEST:,} bytes of a configuration"),
    "nothing": ("", "a mapping of keys to values is expected"),
    "list": ("- a", "a mapping of keys to values is expected"),
}
ENCODINGS = {
    "UTF-16": ("a: 1".encode("utf-16"), "this is not UTF-8 text"),
    "UTF-16 without a mark": ("a: 1".encode("utf-16-le"), "U+0000; delete it, or save the file as UTF-8 text"),
    "UTF-32": ("a: 1".encode("utf-32"), "this is not UTF-8 text"),
    "Latin-1": ("a: é\n".encode("latin-1"), "this is not UTF-8 text"),
    "cut within a character": ("a: é".encode()[:-1], "this is not UTF-8 text"),
    "compressed": (b"\x1f\x8b\x08\0\0\0\0\0", "this is not UTF-8 text"),
}


def refused(path: Path, content: bytes) -> str:
    """The one sentence with which a content is refused, without the file's name, which begins it."""
    path.write_bytes(content)
    with pytest.raises(UsbpoError) as caught:
        read_yaml(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert len(said.splitlines()) == 1
    assert said.endswith(".")
    assert len(said) < 1000
    return said.removeprefix(str(path))


@pytest.mark.parametrize(("text", "said"), ODD.values(), ids=ODD.keys())
def test_an_odd_file_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path / "odd.yaml", text.encode())


@pytest.mark.parametrize(("content", "said"), ENCODINGS.values(), ids=ENCODINGS.keys())
def test_another_encoding_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(tmp_path / "odd.yaml", content)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (b"a: 1e-4\r\nb: [2]\r\n", {"a": 1e-4, "b": [2]}),
        ("\ufeffa: é".encode(), {"a": "é"}),
        (b'{"a": {"b": [1, 2.5, true, null, "c"]}}', {"a": {"b": [1, 2.5, True, None, "c"]}}),
        (b"a: &a {x: 1}\nb: {<<: *a, y: *a}", {"a": {"x": 1}, "b": {"x": 1, "y": {"x": 1}}}),
        (b"d: {inner: &b {<<: &a {x: 1}, x: 2}}\nc: {<<: *b}", {"d": {"inner": {"x": 2}}, "c": {"x": 2}}),
        (b"a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        (b"1a: 2\n'1': 3", {"1a": 2, "1": 3}),
        (b"a: " + b"x" * 100_000, {"a": "x" * 100_000}),
    ],
)
def test_what_is_sound_is_read(tmp_path: Path, content: bytes, read: object) -> None:
    (tmp_path / "sound.yaml").write_bytes(content)
    assert read_yaml(tmp_path / "sound.yaml") == read


@given(st.text(alphabet=" \n-:,[]{}&*!?|>%@`'\"#ab01.<~=\\\t\0é", max_size=60) | st.binary(max_size=60))
def test_anything_is_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    said = "read."
    try:
        assert isinstance(read_yaml(path), dict)
    except UsbpoError as error:
        said = str(error)
    assert said.endswith(".")
    assert len(said.splitlines()) == 1


# ---- files that cannot be read -----------------------------------------------------------------------------------


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """The superuser may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if before == 0:
            os.seteuid(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of configuration that everybody can enter."""
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == os.geteuid() and above.is_relative_to("/tmp") and above != Path("/tmp"):
            above.chmod(0o755)
    (tmp_path / "tasks").mkdir()
    return tmp_path


def test_an_unreadable_file_is_named(folder: Path) -> None:
    path = folder / "tasks/a.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    with as_an_ordinary_user(), pytest.raises(UsbpoError, match=r"a\.yaml: cannot be read \(Permission denied\); name"):
        read_yaml(path)


def test_a_folder_that_cannot_be_entered_is_named(folder: Path) -> None:
    (folder / "tasks/a.yaml").write_text("a: 1")
    (folder / "tasks").chmod(0)
    said = r"tasks/a\.yaml: it cannot be looked at \(Permission denied\); mend the name, or the permissions"
    try:
        with as_an_ordinary_user(), pytest.raises(UsbpoError, match=said):
            find("tasks", "a", [folder])
    finally:
        (folder / "tasks").chmod(0o755)


def test_a_folder_in_the_place_of_a_file_is_named(folder: Path) -> None:
    (folder / "tasks/a.yaml").mkdir()
    (folder / "tasks/b.yaml").touch()
    with pytest.raises(UsbpoError, match=r"a\.yaml: cannot be read \(Is a directory\); name an existing file\.$"):
        read_yaml(folder / "tasks/a.yaml")
    with pytest.raises(UsbpoError, match=r"unknown task 'a': there is no config/tasks/a\.yaml; known are b\.$"):
        find("tasks", "a", [folder])


@pytest.mark.parametrize("name", [LONG, f"{LONG}.yaml", f"{'a/' * 2500}b.yaml", "a\0b.yaml", f"/{LONG}/b"])
def test_a_name_that_no_file_can_have_is_told_in_one_short_sentence(folder: Path, name: str) -> None:
    (folder / "tasks/base.yaml").write_text(f"base: {name!r}" if "\0" not in name else 'base: "\\0"')
    for ask in (
        lambda: read_yaml(Path(name)),
        lambda: find("tasks", name, [folder]),
        lambda: read_yaml(experiment_file(name)),
        lambda: named_runs([name], folder),
        lambda: read_bases("tasks", folder / "tasks/base.yaml", [folder]),
    ):
        with pytest.raises(UsbpoError) as caught:
            ask()
        assert len(str(caught.value)) < 1000
        assert len(str(caught.value).splitlines()) == 1


def test_where_no_task_is_known_the_sentence_says_where_they_were_looked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    said = (
        f"unknown task 'Hopper': there is no config/tasks/Hopper.yaml; known are none in {folder}/config/tasks and "
        "/nowhere/config/tasks; run this in the project's folder, or mend the name."
    )
    with pytest.raises(UsbpoError) as caught:
        find("tasks", "Hopper", [Path("config"), Path("/nowhere/config")])
    assert str(caught.value) == said
