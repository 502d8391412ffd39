"""Where a workspace lies and with what home it is used: links, braces, homes that cannot be written, copies."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.workflow import (
    BIN,
    EXPERIMENT,
    RESULTS,
    USBPO,
    Job,
    copied,
    copied_project,
    environment,
    finished_workspace,
    jobs_in,
    snakemake,
    tree,
)

from usbpo.workspace.copied import PLACE, other_package
from usbpo.workspace.provenance import changed_since
from usbpo.workspace.snakemake_inside import Records

pytestmark = pytest.mark.xdist_group("places")
EVALUATION = f"data/runs/{USBPO}/00003/evaluation.h5"
ROLLOUTS = f"data/runs/{USBPO}/00001/rollouts.h5"
SMALL = ("--max-checksum-file-size", "100")
"""So that all files count as large."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the test experiment has run; not to be changed."""
    return finished_workspace(tmp_path_factory)


# ---- copies ------------------------------------------------------------------------------------------------------


def copied_without_times(of: Path, to: Path) -> Path:
    """As `cp -r` copies, which leaves the order of times to the order of copying."""
    subprocess.run(["cp", "-r", str(of), str(to)], check=True)
    for number, path in enumerate(sorted((to / "data").rglob("*.*"), reverse=True)):
        os.utime(path, (2_000_000_000 + number, 2_000_000_000 + number))
    return to


@pytest.fixture
def settled(finished: Path, tmp_path: Path) -> Path:
    """A copy with times in which a Snakemake has been, so that it knows its place."""
    folder = copied(finished, tmp_path / "settled")
    (folder / PLACE).unlink(missing_ok=True)
    assert "Nothing to be done" in snakemake(folder, "--dry-run").said
    return folder


def test_after_cp_r_nothing_is_to_be_done_whatever_the_files_sizes(settled: Path, tmp_path: Path) -> None:
    before = tree(settled)
    copy = copied_without_times(settled, tmp_path / "copy")
    done = snakemake(copy, "--dry-run", *SMALL)
    assert "This workspace was copied: " in done.said
    assert "Nothing to be done" in done.said, done.said
    assert tree(copy) == before
    curves = "data/results/test/learning_curves.csv"
    assert changed_since(copy, [curves, EVALUATION]) == {curves}, "what nothing has read is looked into"
    again = snakemake(copy, "--dry-run", *SMALL)
    assert "was copied" not in again.said
    assert "Nothing to be done" in again.said
    moved = copy.rename(tmp_path / "moved")
    assert "was copied" not in snakemake(moved, "--dry-run", *SMALL).said


def test_a_file_without_a_checksum_in_any_record_counts_as_what_it_was(settled: Path, tmp_path: Path) -> None:
    """As rollouts above 64 MB do."""
    records = Records(settled)
    readers = [name for name in records.names() if ROLLOUTS in records.inputs(name)]
    assert readers
    for name in readers:
        (kept,) = records.finished([name]).values()
        left = records.left_at(name)
        assert left is not None
        records.put_back(name, kept | {"input_checksums": {}}, left)
    copy = copied_without_times(settled, tmp_path / "copy")
    assert "Nothing to be done" in snakemake(copy, "--dry-run", *SMALL).said


def test_what_was_changed_before_it_was_copied_is_noticed(settled: Path, tmp_path: Path) -> None:
    with open(settled / EVALUATION, "ab") as file:
        file.write(b"x")
    copy = copied_without_times(settled, tmp_path / "copy")
    assert jobs_in(snakemake(copy, "--dry-run").said) == RESULTS


def test_a_copy_goes_on_and_gives_the_same_bytes(finished: Path, settled: Path, tmp_path: Path) -> None:
    copy = copied_without_times(settled, tmp_path / "copy")
    (copy / EVALUATION).unlink()
    assert jobs_in(snakemake(copy, "--dry-run", *SMALL).said) == {Job("evaluate", USBPO, 3)}
    assert snakemake(copy).code == 0
    assert tree(copy) == tree(finished)


def test_without_a_note_of_its_place_nothing_is_settled(settled: Path, tmp_path: Path) -> None:
    for content in (None, "", "somewhere"):
        copy = copied_without_times(settled, tmp_path / f"copy-{content}")
        if content is None:
            (copy / PLACE).unlink()
        else:
            (copy / PLACE).write_text(content)
        assert ("was copied" in snakemake(copy, "--dry-run").said) == (content == "somewhere")
        assert (copy / PLACE).read_text().isdigit()


def test_the_package_of_another_place_is_noticed_where_it_differs(finished: Path, tmp_path: Path) -> None:
    project, _ = copied_project(tmp_path / "project")
    assert other_package(project) == []
    workspace = copied(finished, tmp_path / "workspace")
    with open(project / "usbpo/errors.py", "a") as file:
        file.write("# changed here\n")
    (sentence,) = other_package(project)
    assert f"another one than {project}/usbpo" in sentence
    assert f"usbpo: {sentence}" in snakemake(workspace, "--dry-run", project=project).said
    shutil.rmtree(project / "usbpo")
    assert other_package(project) == []


# ---- paths and homes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{cycle}", "a{0}b", "half{", "half}"])
def test_a_brace_in_the_path_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    workspace = tmp_path / name
    workspace.mkdir()
    done = snakemake(workspace)
    assert done.code == 1
    told = f"usbpo: {workspace}: Snakemake takes a brace in a path for a wildcard; rename the folder."
    assert done.said.splitlines()[-1] == told
    assert not list(workspace.glob("data/runs/*"))
    project, changes = copied_project(tmp_path / f"project-{name}")
    (tmp_path / "plain").mkdir()
    done = snakemake(tmp_path / "plain", project=project, experiment=EXPERIMENT, **changes)
    assert done.said.splitlines()[-1].startswith(f"usbpo: {project}: Snakemake takes a brace")


HOMES = ["/proc/none", "/proc", "/dev/null"]
"""In which nobody can make anything, root included."""


@pytest.mark.parametrize("home", [HOMES[0], *(pytest.param(home, marks=pytest.mark.slow) for home in HOMES[1:])])
def test_without_a_home_that_can_be_written_the_workflow_runs(finished: Path, tmp_path: Path, home: str) -> None:
    workspace, before = copied(finished, tmp_path / "workspace"), tree(finished)
    for path in (EVALUATION, "data/results/test/learning_curves.svg"):
        (workspace / path).unlink()
    nowhere = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR"), "")
    done = snakemake(workspace, HOME=home, **nowhere)
    assert done.code == 0, done.said
    assert tree(workspace) == before
    status = subprocess.run(
        [str(BIN / "usbpo"), "status"],
        cwd=workspace,
        env=environment(HOME=home, **nowhere),
        capture_output=True,
        text=True,
    )
    assert status.returncode == 0, status.stderr


def test_snakemake_leaves_nothing_in_an_empty_home(finished: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    workspace = copied(finished, tmp_path / "workspace")
    (workspace / EVALUATION).unlink()
    variables = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), "")
    done = snakemake(workspace, "runs", HOME=str(home), **variables)
    assert done.code == 0, done.said
    assert list(home.iterdir()) == []
