"""`usbpo publish` where little is finished, git is missing or names are unusual; test_sharing.py has what it shares."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.sharing import WHO, dvc, git

from usbpo.artifacts.files import sha256
from usbpo.artifacts.layout import PROVENANCE
from usbpo.commands.publish import publish
from usbpo.workspace import provenance
from usbpo.workspace.provenance import Entry
from usbpo.workspace.snakemake_inside import format_number

NAME = "test-pendulum/test-usbpo/seed-0"
RUN = f"data/runs/{NAME}"
SHARD = f"{RUN}/data/00000.h5"
RECORD = {
    "rule": "initialise",
    "input": [],
    "log": [],
    "shellcmd": "usbpo initialise",
    "params": [],
    "code": "usbpo initialise",
    "record_format_version": format_number(),
    "conda_env": None,
    "container_img_url": None,
    "software_stack_hash": "d41d8cd98f00b204e9800998ecf8427e",
    "input_checksums": {},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in git and DVC whose only run was interrupted in cycle 0: its first transitions are finished."""
    root = tmp_path / "here"
    for name, value in WHO.items():
        monkeypatch.setenv(name, value)
    (root / RUN / "00000").mkdir(parents=True)
    (root / SHARD).parent.mkdir()
    (root / SHARD).write_text("transitions")
    provenance.write(root / RUN / PROVENANCE, {SHARD: Entry(RECORD, sha256(root / SHARD))})
    provenance.restore(root)
    (root / RUN / PROVENANCE).unlink()
    git(root, "init", "--quiet", "--initial-branch=main")
    dvc(root, "init", "--quiet")
    dvc(root, "config", "core.autostage", "true")
    dvc(root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    git(root, "add", ".dvc", ".dvcignore")
    git(root, "commit", "--quiet", "--message", "The project")
    monkeypatch.chdir(root)
    return root


def test_a_run_that_was_interrupted_in_cycle_0_is_published(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish([NAME])
    assert f"{RUN}: 1 new, 1 files here" in capsys.readouterr().out
    assert f"{RUN}.dvc" in git(here, "diff", "--cached", "--name-only").split()
    (here / SHARD).unlink()
    dvc(here, "pull")
    assert (here / SHARD).read_text() == "transitions"


def test_staged_names_with_blanks_and_foreign_letters_are_told_as_they_are(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "config").mkdir()
    (here / "config/größer und schneller.yaml").touch()
    git(here, "add", "config")
    publish([NAME])
    assert "(with config/größer und schneller.yaml)" in capsys.readouterr().out


def test_without_git_everything_is_pushed_and_there_is_nothing_to_commit(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")  # lest DVC's own library complains
    assert shutil.which("git") is None
    publish([NAME])
    assert "Pushed. There is nothing to commit." in capsys.readouterr().out
    assert os.listdir(tmp_path / "store")
