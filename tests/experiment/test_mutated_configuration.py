"""Configuration files with random damage, through all that reads them: a sound configuration, or one sentence."""

import random
from pathlib import Path

import pytest
from helpers.workflow import REPO

from usbpo.errors import UsbpoError
from usbpo.experiment.layers import read_bases, read_layers
from usbpo.experiment.loading import load_experiment, validated_run
from usbpo.experiment.plan import Plan
from usbpo.experiment.yaml_files import read_yaml

FOLDERS = (REPO / "config",)
SOUND = {
    "experiments": [path.read_bytes() for path in sorted((REPO / "config/experiments").glob("*.yaml"))],
    "tasks": [path.read_bytes() for path in sorted((REPO / "config/tasks").glob("*.yaml"))],
    "algorithms": [path.read_bytes() for path in sorted((REPO / "config/algorithms").glob("*.yaml"))],
}
PIECES = (
    *(b"[", b"{", b"*a", b"&a ", b"<<: ", b"!!int ", b"!!binary ", b"- ", b": ", b"\n", b"\t", b"\0", b"\xff", b"null"),
    *(b"'", b'"', b'"\\x07"', b"#", b"1e999", b"-1", b"9" * 5000, b"x" * 5000, b".inf", b"[" * 500, b"~", b"? ", b"|"),
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A content with one to four changes: bits, bytes, lines, pieces of YAML, an end that is missing."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(made) + 1)
        match rng.randrange(6):
            case 0 if made:
                made[place % len(made)] ^= 1 << rng.randrange(8)
            case 1:
                del made[place : place + rng.randint(1, 20)]
            case 2:
                lines = bytes(made).splitlines(keepends=True)
                rng.shuffle(lines)
                made = bytearray(b"".join(lines))
            case 3:
                made[place:place] = made[: rng.randint(0, 200)]
            case 4 if rng.random() < 0.2:
                del made[place:]
            case _:
                made[place:place] = rng.choice(PIECES)
    return bytes(made)


def read(kind: str, path: Path) -> None:
    """Read a configuration file of a kind as everything else does."""
    if kind == "experiments":
        load_experiment(read_yaml(path), str(path))
        return
    layers = read_bases("tasks" if kind == "tasks" else "algorithms", path, FOLDERS)
    if kind == "tasks":
        validated_run(layers + read_layers("algorithms", "usbpo", FOLDERS), path)
    else:
        validated_run(read_layers("tasks", "Hopper", FOLDERS) + layers, path)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path: Path, count: int) -> None:
    rng, refused = random.Random(0), 0
    for number in range(count):
        kind = rng.choice(sorted(SOUND))
        path = tmp_path / "damaged.yaml"
        path.write_bytes(content := damaged(rng.choice(SOUND[kind]), rng))
        said = "."
        try:
            read(kind, path)
        except UsbpoError as error:
            refused, said = refused + 1, str(error)
        assert said.endswith("."), (number, content, said)
        assert len(said.splitlines()) == 1, (number, content, said)
        assert len(said) < 1500, (number, content, said)
    assert count / 4 < refused < count


def test_what_is_read_can_be_planned_or_is_refused_in_one_sentence(tmp_path: Path) -> None:
    rng, planned = random.Random(1), 0
    for _ in range(100):
        path = tmp_path / "damaged.yaml"
        path.write_bytes(damaged((REPO / "config/experiments/test.yaml").read_bytes(), rng))
        said = "."
        try:
            Plan(read_yaml(path), source=str(path), folders=FOLDERS)
            planned += 1
        except UsbpoError as error:
            said = str(error)
        assert said.endswith(".")
        assert len(said.splitlines()) == 1
    assert planned
