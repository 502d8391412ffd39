"""The contract with the inside of DVC: each behaviour that `usbpo publish` rests on, tried in a small repository.

A test that fails names the behaviour that an upgrade has changed; usbpo/workspace/dvc_inside.py is the place to follow
it.
"""

import os
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from helpers.contract import contract
from helpers.sharing import WHO, clone, git

from usbpo.errors import UsbpoError
from usbpo.workspace import dvc_inside as inside

pytestmark = pytest.mark.xdist_group("inside")
FOLDER = "data/runs/seed-0"
FILES = tuple(f"{FOLDER}/{name}" for name in ("0/a", "0/b", "1/a", "note"))
DVC_YAML = {
    "stages": {
        "made": {"cmd": "cp Snakefile results/made", "deps": ["Snakefile"], "outs": [{"results": {"persist": True}}]}
    }
}


def write(root: Path, *names: str, content: str = "1") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name} {content}")


def dvc(root: Path, *arguments: str) -> None:
    """Run DVC in this process, which need not import it anew each time."""
    from dvc.cli import main

    with chdir(root):
        assert main([*arguments, "--quiet"]) == 0


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in (root / FOLDER).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a remote, a folder of four files and a stage, all tracked and pushed; not to be changed."""
    root = tmp_path_factory.mktemp("inside") / "first"
    write(root, "Snakefile", *FILES, f"{FOLDER}/logs/said", "results/made")
    git(root, "init", "--quiet", "--initial-branch=main")
    dvc(root, "init")
    dvc(root, "config", "core.autostage", "true")
    (root / ".dvcignore").write_text("data/runs/*/logs/\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump(DVC_YAML))
    dvc(root, "remote", "add", "--default", "store", str(root.parent / "store"))
    dvc(root, "add", FOLDER)
    dvc(root, "commit", "--force", "made")
    dvc(root, "push")
    git(root, "add", "Snakefile", "dvc.yaml", ".dvcignore", ".dvc/config")
    git(root, "commit", "--quiet", "--all", "--message", "Published")
    return root


@pytest.fixture
def here(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    for name, value in WHO.items():
        monkeypatch.setenv(name, value)
    return shutil.copytree(published, tmp_path / "here", symlinks=True)


def test_parts_are_laid_into_what_is_tracked_and_nothing_is_dropped(
    published: Path, here: Path, tmp_path: Path
) -> None:
    partly = clone(published, tmp_path / "partly")
    dvc(partly, "pull", f"{FOLDER}/1")
    with contract("dvc", "`dvc pull` of a part of a tracked folder brings that part alone"):
        assert files(partly) == {f"{FOLDER}/1/a"}
    write(partly, f"{FOLDER}/2/a", f"{FOLDER}/2/b", f"{FOLDER}/note", content="2")
    with contract("dvc", "`dvc add` of parts of a tracked folder lays them into it, and keeps what is not there"):
        inside.call(partly, "add", f"{FOLDER}/2", f"{FOLDER}/note")
        inside.call(partly, "push")
        git(partly, "commit", "--quiet", "--message", "More")
        third = clone(partly, tmp_path / "third")
        dvc(third, "pull", FOLDER)
        assert files(third) == {*FILES, f"{FOLDER}/2/a", f"{FOLDER}/2/b"}
        assert (third / FOLDER / "note").read_text().endswith(" 2")
    with contract("dvc", "`dvc add` of a tracked folder drops what is not there"):
        inside.call(partly, "add", FOLDER)
        known = inside.tracked(partly, [FOLDER], {})[FOLDER]
        assert known == inside.Tracked(frozenset(), frozenset()), "hence parts are laid into it"


def test_parts_are_laid_into_a_folder_of_nothing(here: Path, tmp_path: Path) -> None:
    new = "data/runs/seed-1"
    write(here, f"{new}/0/a", f"{new}/1/a", f"{new}/1/half")
    shared = {f"{new}/0/a", f"{new}/1/a"}
    with contract("dvc", "a .dvc file that names a folder and no content can be laid parts into"):
        inside.add(here, new, shared, [], None, None)
        found = inside.tracked(here, [new], {})[new]
        assert found == inside.Tracked(frozenset({f"{new}/1/half"}), frozenset())
        assert [path.name for path in (here / "data/runs").rglob("*.dvc")].count("seed-1.dvc") == 1
        assert not list((here / new).rglob("*.dvc"))


def test_the_difference_to_what_is_tracked_is_told_file_by_file(here: Path) -> None:
    write(here, f"{FOLDER}/2/new")
    write(here, f"{FOLDER}/0/a", content="other")
    (here / FOLDER / "0/b").rename(here / FOLDER / "0/c")
    (here / FOLDER / "1/a").unlink()
    write(here, f"{FOLDER}/logs/more")
    with contract("dvc", "`dvc data status --granular --json` has added, modified, deleted and renamed files by path"):
        found = inside.tracked(here, [FOLDER, "data/runs/never"], {})
        changed = frozenset(f"{FOLDER}/{name}" for name in ("2/new", "0/a", "0/c"))
        assert found == {FOLDER: inside.Tracked(changed, frozenset({f"{FOLDER}/0/b", f"{FOLDER}/1/a"}))}


def test_the_output_of_a_stage_is_tracked_in_the_lock_file(here: Path) -> None:
    stages = inside.stages(here)
    assert stages == {"results": "made"}
    write(here, "results/made", content="other")
    with contract("dvc", "dvc.lock has the outputs of stages by their paths"):
        found = inside.tracked(here, ["results"], stages)
        assert found == {"results": inside.Tracked(frozenset({"results/made"}), frozenset())}
        (here / "dvc.lock").unlink()
        assert inside.tracked(here, ["results"], stages) == {}
    with contract("dvc", "`dvc commit --force STAGE` tracks what is in the outputs of a stage, without running it"):
        inside.add(here, "results", {"results/made"}, [], None, "made")
        assert (here / "results/made").read_text().endswith(" other")
        assert inside.tracked(here, ["results"], stages) == {"results": inside.Tracked(frozenset(), frozenset())}


def test_a_stage_comes_with_its_outputs(here: Path) -> None:
    results = "drawn/new folder"
    write(here, f"{results}/made", "config/own.yaml")
    (here / "config/own.yaml").write_text("steps: 1\n")
    (here / "dvc.yaml").write_text(
        "# Ours\n" + (here / "dvc.yaml").read_text() + "  named:\n    cmd: snakemake named\n"
    )
    with contract("dvc", "`dvc stage add --force` writes a stage and keeps the comments and the other stages"):
        inside.make_stage(here, "new", results, ["config/own.yaml"], "snakemake new", "A new one")
        text = (here / "dvc.yaml").read_text()
        assert text.startswith("# Ours\n")
        expected = {
            "desc": "A new one",
            "cmd": "snakemake new",
            "deps": ["Snakefile"],
            "params": [{"config/own.yaml": None}],
            "outs": [{results: {"persist": True}}],
        }
        written = yaml.safe_load(text)["stages"]
        assert written["new"] == expected
        assert written["made"] == DVC_YAML["stages"]["made"]
    with contract(
        "dvc", "a stage of which dvc.lock has nothing counts as changed, and one that was committed does not"
    ):
        assert "new" in inside.call(here, "status", "new")
        inside.add(here, results, {f"{results}/made"}, [], None, "new")
        assert "up to date" in inside.call(here, "status", "new")
    inside.make_stage(here, "new", results, [], "snakemake other")
    inside.make_stage(here, "another", "drawn/another", [])
    assert (here / "dvc.yaml").read_text() == text, "what stands there stays, and nobody has asked for another"
    inside.make_stage(here, "named", "drawn/named", [])
    assert inside.stages(here) == {"results": "made", results: "new", "drawn/named": "named"}


def test_what_it_tracks_is_staged_in_git(here: Path) -> None:
    write(here, f"{FOLDER}/2/new")
    write(here, "results/made", content="other")
    with contract("dvc", "with core.autostage DVC stages in git the .dvc files that it writes, and nothing of ours"):
        inside.add(here, FOLDER, {*FILES, f"{FOLDER}/2/new"}, [], inside.Tracked(frozenset(), frozenset()), None)
        inside.add(here, "results", {"results/made"}, [], None, "made")
        staged = git(here, "diff", "--cached", "--name-only").split()
        assert inside.note_of(FOLDER, None) in staged
        assert set(staged) <= {inside.note_of(FOLDER, None), inside.note_of("results", "made")}


def test_the_remotes_are_listed_a_line_each(here: Path) -> None:
    with contract("dvc", "`dvc remote list` has a remote in each line, its name first, and `(default)` at the end"):
        assert inside.remotes(here) == (["store"], True)
        dvc(here, "remote", "add", "other", "/elsewhere")
        dvc(here, "remote", "default", "--unset")
        assert inside.remotes(here) == (["store", "other"], False)


def test_what_fails_is_told_in_its_own_words(here: Path, tmp_path: Path) -> None:
    with contract("dvc", "a fault ends with exit code 1 and a line `ERROR: …` on standard error"):
        with pytest.raises(UsbpoError, match=r"^dvc add: .*No such file or directory: .*/none'$"):
            inside.call(here, "add", f"{FOLDER}/none")
        (here / f"{FOLDER}.dvc").write_text("<<<<<<< HEAD\nouts: []\n=======\nouts: []\n>>>>>>> other\n")
        with pytest.raises(UsbpoError, match=r"^dvc status: .*merge conflict.* Take either side, commit it"):
            inside.call(here, "status")
    with contract("dvc", "`dvc root` fails outside of a repository"):
        elsewhere = tmp_path / "elsewhere"
        os.mkdir(elsewhere)
        with pytest.raises(UsbpoError, match="not inside of a DVC repository"):
            inside.require_repository(elsewhere)
