"""Runs are shared by git and DVC: whoever pulls goes on where they were made, and nothing is lost on the way."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
import yaml
from helpers.sharing import (
    RUN,
    cache,
    clone,
    dvc,
    git,
    project,
    pull,
    run,
    shared_files,
    shuffle_times,
    snake,
    usbpo,
    without,
)
from helpers.workflow import BIN, MBPO, RESULTS, USBPO, Job, copied, finished_workspace, jobs, jobs_in

from usbpo.artifacts.layout import PROVENANCE
from usbpo.workspace import provenance
from usbpo.workspace.dvc_inside import Tracked, targets
from usbpo.workspace.snakemake_inside import format_number

NOTHING = "Nothing to be done"
NEWEST = (f"{RUN}/data", f"{RUN}/00002", f"{RUN}/00003", f"{RUN}/{PROVENANCE}")
"""What the next cycle of the run of USB-PO reads, and the provenance: D_model is of two cycles."""
pytestmark = pytest.mark.xdist_group("sharing")


def change(path: Path, **keys: object) -> None:
    """Set keys of a YAML file."""
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))


def planned(folder: Path, *arguments: str) -> set[Job]:
    return jobs_in(snake(folder, *arguments, "--dry-run"))


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of someone who ran the default experiment and published it; not to be changed."""
    folder = tmp_path_factory.mktemp("sharing")
    made = project(folder / "first", finished_workspace(tmp_path_factory))
    dvc(made, "remote", "add", "--default", "store", str(folder / "store"))
    snake(made)
    usbpo(made, "publish")
    git(made, "commit", "--all", "--quiet", "--message", "Publish")
    return made


@pytest.fixture(scope="session")
def second(first: Path) -> Path:
    """A clone with everything pulled; not to be changed."""
    made = clone(first, first.parent / "second")
    pull(made)
    return made


@pytest.fixture(scope="session")
def longer(first: Path) -> Path:
    """A copy of the project whose runs are a cycle longer, which is not published; not to be changed."""
    made = copied(first, first.parent / "longer")
    snake(made, "--config", "steps=120")
    return made


@pytest.fixture
def pulled(second: Path, tmp_path: Path) -> Path:
    """A copy of it, in which Snakemake has not been yet."""
    return copied(second, tmp_path / "pulled")


# ---- publishing --------------------------------------------------------------------------------------------------


def test_publishing_leaves_nothing_but_a_commit_to_do(first: Path) -> None:
    assert git(first, "status", "--porcelain") == ""
    tracked = git(first, "ls-files", "data").split()
    assert tracked == ["data/.gitkeep", *(f"data/runs/{run}.dvc" for run in sorted((MBPO, USBPO)))]
    assert "up to date" in dvc(first, "status")
    assert "in sync" in dvc(first, "status", "--cloud")


def test_what_is_published_says_nothing_of_time_and_place(first: Path) -> None:
    for path in first.glob(f"data/*/**/{PROVENANCE}"):
        packed = path.read_bytes()
        assert packed[4:8] == bytes(4), "gzip's time"
        text = gzip.decompress(packed).decode()
        assert str(first) not in text
        assert str(Path.home()) not in text
        for line in text.splitlines()[1:]:
            assert not {"starttime", "endtime", "job_hash"} & json.loads(line)["record"].keys()


def test_publishing_again_changes_nothing(first: Path, tmp_path: Path) -> None:
    again = copied(first, tmp_path / "again")
    before = shared_files(again)
    said = usbpo(again, "publish")
    assert "nothing new" in said
    assert shared_files(again) == before
    assert git(again, "status", "--porcelain") == ""


def test_in_a_clone_of_what_is_not_published_yet_nothing_is_wrong(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = project(tmp_path / "here", finished_workspace(tmp_path_factory))
    dvc(here, "remote", "add", "--default", "store", str(tmp_path / "store"))
    git(here, "commit", "--all", "--quiet", "--message", "Where runs are kept")
    fresh = clone(here, tmp_path / "fresh")
    assert "changed" not in dvc(fresh, "status")
    assert "up to date" in dvc(fresh, "pull")

    usbpo(here, "publish", USBPO)
    git(here, "commit", "--all", "--quiet", "--message", "One run")
    partly = clone(here, tmp_path / "partly")
    assert "ERROR" not in dvc(partly, "pull")
    assert shared_files(partly) == shared_files(here, RUN)
    assert "up to date" in dvc(partly, "status")

    stage = {"desc": "By hand", "cmd": "snakemake --cores 1"}
    change(here / "dvc.yaml", stages={"demo": stage})
    snake(here)
    usbpo(here, "publish")
    made = yaml.safe_load((here / "dvc.yaml").read_text())["stages"]["demo"]
    assert {key: made[key] for key in stage} == stage, "what stands there stays"
    assert made["outs"] == [{"data/results/demo": {"persist": True}}]
    git(here, "commit", "--all", "--quiet", "--message", "All")
    whole = clone(here, tmp_path / "whole")
    dvc(whole, "pull")
    assert shared_files(whole) == shared_files(here)
    assert "up to date" in dvc(whole, "status")


def test_the_default_experiment_gets_a_stage_with_its_results(first: Path) -> None:
    stage = yaml.safe_load((first / "dvc.yaml").read_text())["stages"]["demo"]
    assert stage["cmd"] == "snakemake --cores all"
    assert stage["deps"] == ["Snakefile", "usbpo", "workflow"]
    assert [list(file) for file in stage["params"]] == [
        ["config/algorithms/mbpo.yaml"],
        ["config/algorithms/test-mbpo.yaml"],
        ["config/algorithms/test-usbpo.yaml"],
        ["config/config.yaml"],
        ["config/tasks/InvertedPendulum.yaml"],
        ["config/tasks/test-pendulum.yaml"],
    ]
    assert stage["outs"] == [{"data/results/demo": {"persist": True}}]
    assert "# What is shared" in (first / "dvc.yaml").read_text(), "comments stay"


@pytest.mark.parametrize("part", ["data", "data/runs", f"{RUN}"])
def test_behind_a_symbolic_link_nothing_is_published(first: Path, tmp_path: Path, part: str) -> None:
    here, elsewhere = copied(first, tmp_path / "here"), tmp_path / "elsewhere"
    (here / part).rename(elsewhere)
    (here / part).symlink_to(elsewhere)
    assert NOTHING in snake(here), "to work there is allowed"
    before = git(here, "ls-files", "--stage")
    said = usbpo(here, "publish", "--no-push", fails=True)
    assert said.startswith(f"usbpo publish: {part}: it is a symbolic link, behind which neither DVC nor git tracks")
    assert len(said.splitlines()) == 1
    assert git(here, "ls-files", "--stage") == before


# ---- pulling everything ------------------------------------------------------------------------------------------


def test_after_clone_and_pull_nothing_is_to_be_done(first: Path, pulled: Path) -> None:
    assert shared_files(pulled) == shared_files(first)
    assert NOTHING in snake(pulled)
    shuffle_times(pulled)
    assert NOTHING in snake(pulled), "nor with other time stamps"
    assert git(pulled, "status", "--porcelain") == ""
    assert "up to date" in dvc(pulled, "status")


@pytest.mark.slow
def test_the_provenance_of_the_clone_is_that_of_the_original(first: Path, pulled: Path) -> None:
    snake(pulled)
    for path in pulled.glob(f"data/*/**/{PROVENANCE}"):
        path.unlink()
    usbpo(pulled, "publish", "--no-push")
    assert shared_files(pulled) == shared_files(first)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("data/results/demo/comparison.csv", RESULTS, marks=pytest.mark.slow),
        (f"{RUN}/00002/evaluation.h5", {Job("evaluate", USBPO, 2)}),
        (f"data/runs/{MBPO}/00003/theory.h5", {Job("theory", MBPO, 3)}),
        (f"{RUN}/00002/model.safetensors", {Job("phase2", USBPO, 2)}),
        (f"data/runs/{MBPO}/00001/policy.safetensors", {Job("policy", MBPO, 1)}),
        (f"{RUN}/data/00001.h5", {Job("collect", USBPO, 1)}),
    ],
)
def test_what_is_deleted_after_the_pull_is_made_again_alone(
    first: Path, pulled: Path, path: str, expected: set[Job]
) -> None:
    (pulled / path).unlink()
    assert planned(pulled) == expected
    if "policy" in path or expected == RESULTS:
        snake(pulled)
        assert shared_files(pulled) == shared_files(first)
        assert NOTHING in snake(pulled)


def test_a_deleted_cycle_is_made_again_once_snakemake_has_seen_it(pulled: Path) -> None:
    snake(pulled)
    shutil.rmtree(pulled / RUN / "00003")
    assert {job.number for job in planned(pulled) - RESULTS} == {3}


def test_changed_parameters_are_noticed_as_where_the_run_was_made(pulled: Path) -> None:
    change(pulled / "config/algorithms/test-mbpo.yaml", evaluate={"episodes": 3})
    assert planned(pulled) == jobs("evaluate", range(4)) | RESULTS


def test_more_cycles_only_add_jobs(pulled: Path) -> None:
    wanted = planned(pulled, "--config", "steps=120")
    assert {job.number for job in wanted - RESULTS} == {4}


@pytest.mark.slow
def test_ten_more_cycles_are_those_of_someone_who_never_stopped(first: Path, pulled: Path, tmp_path: Path) -> None:
    original = copied(first, tmp_path / "original")
    more = ("--config", "steps=390")
    assert {job.number for job in planned(pulled, *more) - RESULTS} == set(range(4, 14))
    for folder in (original, pulled):
        snake(folder, *more)
    made, expected = shared_files(pulled), shared_files(original)
    assert {name: made[name] for name in without(made, PROVENANCE)} == {
        name: expected[name] for name in without(expected, PROVENANCE)
    }
    assert NOTHING in snake(pulled, *more)


# ---- pulling what the next cycle needs ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def newest(first: Path) -> Path:
    """A clone with what the next cycle of USB-PO's run reads; not to be changed."""
    made = clone(first, first.parent / "newest")
    pull(made, *NEWEST)
    return made


def test_with_the_newest_cycles_alone_training_goes_on_and_nothing_earlier_is_made_again(
    newest: Path, tmp_path: Path
) -> None:
    here = copied(newest, tmp_path / "here")
    assert planned(here, "--config", "methods=[test-usbpo]") == set()
    said = snake(here, "--config", "methods=[test-usbpo]", "steps=120", "--dry-run")
    stages = ("collect", "phase1", "phase2", "rollout", "policy", "evaluate", "theory")
    assert jobs_in(said) == {Job(stage, USBPO, 4) for stage in stages}
    assert "cycles 0 to 1 are published and not pulled" in said, "it says which cycles are left out"
    assert "dvc pull" in said


@pytest.mark.slow
def test_what_goes_on_from_the_newest_cycles_is_published_beside_what_was(
    first: Path, newest: Path, tmp_path: Path
) -> None:
    here, never_stopped = copied(newest, tmp_path / "here"), copied(first, tmp_path / "never-stopped")
    before = shared_files(first)
    alone = ("--config", "methods=[test-usbpo]", "steps=120")
    for folder in (here, never_stopped):
        snake(folder, *alone)
    assert not (here / RUN / "00001").exists()
    expected = shared_files(never_stopped, f"{RUN}/00004")
    assert len(expected) == 11
    assert shared_files(here, f"{RUN}/00004") == expected

    usbpo(here, "publish", USBPO)
    git(here, "commit", "--all", "--quiet", "--message", "A cycle more")
    third = clone(here, tmp_path / "third")
    pull(third)
    after = shared_files(third)
    kept = without(before, PROVENANCE)
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert shared_files(third, f"{RUN}/00004") == expected
    assert planned(third, *alone) == RESULTS


def test_a_file_of_a_cycle_that_was_pulled_is_made_again(newest: Path, tmp_path: Path) -> None:
    here = copied(newest, tmp_path / "here")
    (here / RUN / "00003/evaluation.h5").unlink()
    assert planned(here, "--config", "methods=[test-usbpo]") == {Job("evaluate", USBPO, 3)}


@pytest.mark.slow
def test_the_rest_can_be_pulled_later(newest: Path, tmp_path: Path) -> None:
    here = copied(newest, tmp_path / "here")
    snake(here, "--config", "methods=[test-usbpo]")
    pull(here)
    assert NOTHING in snake(here)


@pytest.mark.slow
@pytest.mark.parametrize("cycles", [["00003", "00004", "00005"], None], ids=["the newest cycles", "all"])
def test_a_run_that_keeps_its_last_cycle_goes_on_where_it_was_pulled(
    first: Path, tmp_path: Path, cycles: list[str] | None
) -> None:
    """D_model's rollouts are made again, and read the policy of one cycle more than D_model has."""
    content = {"experiment": "demo", "tasks": ["test-pendulum"], "methods": ["test-usbpo"], "seeds": [1], "steps": 150}
    original, run = clone(first, tmp_path / "original"), "data/runs/test-pendulum/test-usbpo/seed-1"
    (original / "config/config.yaml").write_text(yaml.safe_dump(content | {"artifacts": {"keep": "last"}}))
    snake(original)
    usbpo(original, "publish")
    git(original, "commit", "--all", "--quiet", "--message", "Another seed, of which the last cycle is kept")
    here = clone(original, tmp_path / "here")
    pull(here, *([run] if cycles is None else [f"{run}/{part}" for part in ("provenance.jsonl.gz", "data", *cycles)]))
    assert not list(here.glob(f"{run}/*/rollouts.h5"))
    assert planned(here) - RESULTS == set()
    more = ("--config", "steps=180")
    again = {job for job in planned(here, *more) - RESULTS if job.number < 6}
    assert again == {Job("rollout", "test-pendulum/test-usbpo/seed-1", cycle) for cycle in (4, 5)}
    for folder in (original, here):
        snake(folder, *more)
    expected = shared_files(original, f"{run}/00006")
    assert expected
    assert shared_files(here, f"{run}/00006") == expected


# ---- links into the cache ----------------------------------------------------------------------------------------


KINDS = ("symlink", "hardlink", "reflink", "copy")


def linked(first: Path, to: Path, kind: str) -> Path:
    """A clone whose files are links of a kind into its cache."""
    here = clone(first, to)
    dvc(here, "config", "--local", "cache.type", kind)
    if kind == "reflink" and not _reflinks(to):
        pytest.skip("this file system has no reflinks")
    dvc(here, "pull")
    a_model = here / RUN / "00003/model.safetensors"
    assert a_model.is_symlink() == (kind == "symlink")
    assert (a_model.stat().st_nlink > 1) == (kind == "hardlink")
    return here


@pytest.mark.parametrize("kind", ["symlink", pytest.param("hardlink", marks=pytest.mark.slow)])
def test_a_stage_replaces_a_link_and_does_not_follow_it(first: Path, tmp_path: Path, kind: str) -> None:
    here = linked(first, tmp_path / "here", kind)
    evaluation = here / f"{RUN}/00003/evaluation.h5"
    objects, content = cache(here), evaluation.read_bytes()
    snake(here, f"{RUN}/00003/evaluation.h5", "--force")
    assert evaluation.read_bytes() == content
    assert not evaluation.is_symlink()
    assert evaluation.stat().st_nlink == 1
    assert cache(here) == objects


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_runs_again_writes_into_the_cache(first: Path, tmp_path: Path, kind: str) -> None:
    here = linked(first, tmp_path / "here", kind)
    before, objects = shared_files(here), cache(here)
    assert NOTHING in snake(here)
    assert cache(here) == objects
    snake(here, "--forceall")
    assert cache(here) == objects
    assert shared_files(here) == before
    usbpo(here, "publish", "--no-push")
    snake(here, "--config", "steps=60")
    assert all(cache(here)[name] == sha for name, sha in objects.items())


def _reflinks(folder: Path) -> bool:
    import dvc_objects.fs.system as system

    source = folder / "probe"
    source.write_text("x")
    try:
        system.reflink(str(source), str(folder / "probe-2"))
    except OSError:
        return False
    return True


# ---- what a user of DVC expects ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_dvc_shows_metrics_parameters_and_plots_and_their_changes(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    shown = json.loads(dvc(here, "metrics", "show", "--json"))
    expected = json.loads((here / "data/results/demo/metrics.json").read_text())
    assert shown[""]["data"]["data/results/demo/metrics.json"]["data"] == expected
    assert "up to date" in dvc(here, "repro")

    config = here / "config/config.yaml"
    config.write_text(config.read_text().replace("steps: 90", "steps: 60"))
    assert json.loads(dvc(here, "params", "diff", "--json")) == {
        "config/config.yaml": {"steps": {"old": 90, "new": 60, "diff": -30}}
    }
    assert "config/config.yaml" in dvc(here, "status")
    said = dvc(here, "repro")
    assert "snakemake --cores all" in said
    changes = json.loads(dvc(here, "metrics", "diff", "--json"))["data/results/demo/metrics.json"]
    assert changes["test-pendulum.test-usbpo.on_policy_steps"] == {"old": 90, "new": 60, "diff": -30}
    dvc(here, "plots", "show", "--out", "plots")
    page = (here / "plots/index.html").read_text()
    assert "test-usbpo" in page
    assert "learning_curves.png" in page
    dvc(here, "plots", "diff", "--out", "changes", "HEAD")


def test_an_artifact_is_got_by_its_name(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    text = (here / "dvc.yaml").read_text()
    path = f"{RUN}/00003/policy.safetensors"
    (here / "dvc.yaml").write_text(
        text.replace("data/runs/InvertedPendulum/usbpo/seed-0/00010/policy.safetensors", path)
    )
    assert path in (here / "dvc.yaml").read_text()
    git(here, "commit", "--all", "--quiet", "--message", "Name a policy")
    git(here, "tag", "--annotate", "inverted-pendulum-usbpo@v1.0.0", "--message", "first")
    dvc(tmp_path, "artifacts", "get", str(here), "inverted-pendulum-usbpo", "--out", "got.safetensors")
    assert (tmp_path / "got.safetensors").read_bytes() == (here / path).read_bytes()


@pytest.mark.slow
def test_two_who_published_the_same_run_come_together(first: Path, second: Path, tmp_path: Path) -> None:
    """docs/sharing.md, the paragraph on conflicts."""
    origin = tmp_path / "origin.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(first), str(origin))
    one, other = copied(first, tmp_path / "one"), copied(second, tmp_path / "other")
    for here in (one, other):
        git(here, "config", "remote.origin.url", str(origin))
        git(here, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    change(one / "config/config.yaml", steps=120)
    change(other / "config/algorithms/test-mbpo.yaml", evaluate={"episodes": 3})
    for here in (one, other):
        snake(here)
        usbpo(here, "publish")
        git(here, "commit", "--quiet", "--message", "Publish")
    git(one, "push", "--quiet", "origin", "main")
    said = run(other, "git", "pull", "--quiet", "--no-rebase", "origin", "main", fails=True)
    assert "CONFLICT" in said
    told = usbpo(other, "publish", fails=True)
    assert "merge conflict" in told
    assert len(told.splitlines()) == 1, told
    conflicts = git(other, "diff", "--name-only", "--diff-filter=U").split()
    git(other, "checkout", "--quiet", "--theirs", *conflicts)
    git(other, "add", *conflicts)
    git(other, "commit", "--quiet", "--message", "Together")
    dvc(other, "pull", "--force")
    assert {job.number for job in planned(other) - RESULTS} == set(range(5)), "their cycles, our evaluations"
    snake(other)
    usbpo(other, "publish")
    git(other, "commit", "--quiet", "--message", "Publish")
    git(other, "push", "--quiet", "origin", "main")
    third = clone(origin, tmp_path / "third")
    pull(third)
    assert NOTHING in snake(third)


# ---- what cannot be --------------------------------------------------------------------------------------------


def test_bad_publishing_ends_in_one_sentence_and_changes_nothing(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    assert "no run has this name" in usbpo(here, "publish", "Nowhere/usbpo/seed-0", fails=True)
    assert "nothing is published" in usbpo(here, "publish", "quick", fails=True)
    assert "DVC knows no such remote" in usbpo(here, "publish", "--remote", "elsewhere", fails=True)
    dvc(here, "remote", "remove", "store")
    assert "dvc remote add" in usbpo(here, "publish", fails=True)
    outside = tmp_path / "outside"
    shutil.copytree(first / "data", outside / "data")
    shutil.copytree(first / ".snakemake", outside / ".snakemake")
    before = shared_files(outside)
    said = usbpo(outside, "publish", USBPO, "--no-push", fails=True)
    assert "Traceback" not in said
    assert "not inside of a DVC repository" in said
    assert shared_files(outside) == before
    assert git(here, "status", "--porcelain").split() == ["M", ".dvc/config"]


def test_a_file_that_was_changed_after_its_job_is_not_published(first: Path, pulled: Path, tmp_path: Path) -> None:
    here, name = copied(first, tmp_path / "here"), f"{RUN}/00002/policy.safetensors"
    snake(pulled)  # the records of the clone are put back
    for folder in (here, pulled):
        (folder / "data/results/demo/comparison.csv").touch()  # of the same content
        with open(folder / name, "ab") as file:
            file.write(b"x")
        before = shared_files(folder)
        said = usbpo(folder, "publish", fails=True)
        assert f"{name} has another content than the job left that made it; delete it" in said
        assert shared_files(folder) == before
        assert git(folder, "status", "--porcelain") == ""
        (folder / name).unlink()
        snake(folder)
        assert "nothing new" in usbpo(folder, "publish", "--no-push")


def test_what_has_no_record_is_told_and_results_of_it_are_not_published(
    first: Path, longer: Path, tmp_path: Path
) -> None:
    here = copied(longer, tmp_path / "here")
    shutil.rmtree(here / ".snakemake")
    said = usbpo(here, "publish", "--no-push")
    assert f"{USBPO}: {RUN}/00004/evaluation.h5 and " in said
    assert "more have no record of the job that made it" in said
    assert "data/results/demo: it is not complete here; left out" in said
    alone = tmp_path / "alone"
    shutil.copytree(first, alone)
    for path in (*alone.glob("data/runs/*/*/*.dvc"), *alone.glob(f"data/**/{PROVENANCE}"), alone / "dvc.lock"):
        path.unlink()
    shutil.rmtree(alone / ".snakemake")
    assert "no record of the job that made it" in usbpo(alone, "publish", "--no-push", fails=True)


def test_results_go_out_with_what_they_are_drawn_from(longer: Path, tmp_path: Path) -> None:
    here = copied(longer, tmp_path / "here")
    snake(here, "--config", "steps=120", "--cleanup-metadata", f"{RUN}/00004/evaluation.h5")
    said = usbpo(here, "publish", "--no-push")
    assert f"data/results/demo: it is drawn from {RUN}/00004/evaluation.h5, which is not published; left out" in said


def test_what_could_not_be_pushed_is_told_and_git_is_handed_nothing(longer: Path, tmp_path: Path) -> None:
    here = copied(longer, tmp_path / "here")
    dvc(here, "remote", "modify", "store", "url", "/proc/nowhere")
    before = git(here, "diff", "--cached", "--name-only")
    said = usbpo(here, "publish", fails=True)
    assert "dvc push: " in said
    assert "/proc/nowhere" in said
    assert "Having any troubles" not in said
    assert git(here, "diff", "--cached", "--name-only") == before


def test_after_a_push_that_failed_the_next_one_hands_git_the_stage_too(first: Path, tmp_path: Path) -> None:
    here, store = copied(first, tmp_path / "here"), tmp_path / "store"
    git(here, "checkout", "--quiet", "HEAD~1", "--", "dvc.yaml")
    git(here, "rm", "--quiet", "dvc.lock", f"{RUN}.dvc")
    git(here, "commit", "--quiet", "--message", "As before the first publication")
    dvc(here, "remote", "modify", "store", "url", "/proc/nowhere")
    usbpo(here, "publish", fails=True)
    assert git(here, "diff", "--cached", "--name-only") == ""
    dvc(here, "remote", "modify", "store", "url", str(store))
    git(here, "commit", "--quiet", "--message", "The remote", ".dvc/config")
    usbpo(here, "publish")
    assert git(here, "diff", "--cached", "--name-only").split() == [f"{RUN}.dvc", "dvc.lock", "dvc.yaml"]
    git(here, "commit", "--quiet", "--message", "Publish")
    third = clone(here, tmp_path / "third")
    dvc(third, "pull")
    assert shared_files(third) == shared_files(first)


def test_the_configuration_goes_into_the_commit(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    change(here / "config/config.yaml", steps=120)
    assert "has other parameters or code" not in usbpo(here, "publish", "--no-push", "demo")
    snake(here)
    said = usbpo(here, "publish", "--no-push")
    assert "config/config.yaml" in said.splitlines()[-1]
    git(here, "commit", "--quiet", "--message", "Longer")
    third = clone(here, tmp_path / "third")
    (third / ".dvc/config.local").write_text(f"[cache]\n    dir = {here}/.dvc/cache\n")
    dvc(third, "checkout")
    shuffle_times(third)
    assert NOTHING in snake(third)


def test_what_the_configuration_has_left_behind_is_told(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    change(here / "config/algorithms/test-mbpo.yaml", evaluate={"episodes": 3})
    said = usbpo(here, "publish", "--no-push", "test-pendulum/test-mbpo")
    assert f"{MBPO}: what 4 of its jobs made has other parameters or code than there are here now" in said


def test_a_run_at_which_a_snakemake_without_locks_works_is_not_published(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    code = "import sys; from pathlib import Path; from usbpo.workspace import lifetime\n"
    code += "lifetime.hold_names(Path(), sys.argv[1:]); print(flush=True); input()"
    words = [sys.executable, "-c", code, RUN]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        said = usbpo(here, "publish", fails=True)
        holder.communicate("\n")
    assert f"{RUN}: a Snakemake is at work on it; publish when it has ended." in said
    assert "nothing new" in usbpo(here, "publish", "--no-push")


def test_what_snakemake_has_not_finished_is_not_published(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    stray = here / RUN / "00003/notes.txt"
    stray.write_text("by hand")
    (here / RUN / "00004").mkdir()
    (here / RUN / "00004/policy.safetensors").write_bytes(b"half")
    usbpo(here, "publish", USBPO, "--no-push")
    third = clone(here, tmp_path / "third")
    shutil.copy2(here / f"{RUN}.dvc", third / f"{RUN}.dvc")
    dvc(third, "pull", f"{RUN}.dvc")
    assert not (third / RUN / "00004").exists()
    assert not (third / RUN / "00003/notes.txt").exists()


ALL = ("data/00000.h5", "00000/policy.json", "00001/policy.json", "00001/rollouts.h5", PROVENANCE)
NO_ROLLOUTS = (*ALL[:3], PROVENANCE)
Names = tuple[str, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace with the files of two cycles, two logs and nothing else."""
    for name in ALL:
        (tmp_path / RUN / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / RUN / name).touch()
    (tmp_path / RUN / "logs/00000").mkdir(parents=True)
    (tmp_path / RUN / "logs/00000/policy.log").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("shared", "changed", "missing", "expected"),
    [
        (ALL, None, (), [""]),
        (ALL, ("00001/policy.json",), (), [""]),
        (ALL, ("00001/policy.json", "00001/rollouts.h5"), ("00007/policy.json",), ["00001", PROVENANCE]),
        (ALL, ("00001/policy.json",), ("00001/evaluation.h5",), ["00001/policy.json", PROVENANCE]),
        (NO_ROLLOUTS, ("00000/policy.json", "00001/policy.json"), (), ["00000", "00001/policy.json", PROVENANCE]),
        (NO_ROLLOUTS, None, (), ["00000", "00001/policy.json", "data", PROVENANCE]),
    ],
)
def test_dvc_is_told_to_add_what_is_shared_and_to_drop_nothing(
    folder: Path, shared: Names, changed: Names | None, missing: Names, expected: list[str]
) -> None:
    def of_run(names: Names) -> frozenset[str]:
        return frozenset(f"{RUN}/{name}" for name in names)

    tracked = None if changed is None else Tracked(of_run(changed), of_run(missing))
    told = targets(folder, RUN, of_run(shared), of_run((PROVENANCE,)), tracked)
    assert told == [f"{RUN}/{name}".rstrip("/") for name in expected]


# ---- the provenance of itself ------------------------------------------------------------------------------------


def test_records_of_another_format_are_not_used_and_equal_times_do(pulled: Path) -> None:
    for path in pulled.glob(f"data/*/**/{PROVENANCE}"):
        head, *lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
        other = json.dumps(json.loads(head) | {"format": 99}) + "\n"
        path.write_bytes(gzip.compress("".join([other, *lines]).encode(), mtime=0))
    said = snake(pulled)
    assert "format 99" in said
    assert NOTHING in said
    assert not list((pulled / ".snakemake/metadata").glob("*"))
    (pulled / RUN / "00002/evaluation.h5").unlink()
    assert planned(pulled) == {Job("evaluate", USBPO, 2)} | RESULTS


def test_a_file_of_other_content_keeps_its_own_record(pulled: Path) -> None:
    path = pulled / RUN / "00003/evaluation.h5"
    path.unlink()
    path.write_bytes(b"another content")
    said = snake(pulled, "--dry-run")
    assert f"{RUN}/00003/evaluation.h5 is not what" in said
    assert "dvc checkout" in said


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"{}\n", mtime=0), gzip.compress(b"no json\n", mtime=0)]
)
def test_damaged_provenance_ends_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data/runs/T/M/seed-0" / PROVENANCE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(provenance.UsbpoError, match="damaged"):
        provenance.read(path)


@pytest.mark.parametrize("name", ["data/runs/T/M/seed-1/00000/policy.json", "data/runs/T/M/seed-0/../../x"])
def test_provenance_of_another_folder_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data/runs/T/M/seed-0" / PROVENANCE
    provenance.write(path, {name: provenance.Entry({"rule": "r"})})
    with pytest.raises(provenance.UsbpoError, match="of another folder"):
        provenance.restore(tmp_path)


def test_equal_entries_give_equal_bytes(tmp_path: Path) -> None:
    entries = {f"data/{n}": provenance.Entry({"rule": "r", "input_checksums": {"a": "b"}}, "0" * 64) for n in range(9)}
    provenance.write(tmp_path / "one", entries)
    os.utime(tmp_path / "one", (0, 0))
    provenance.write(tmp_path / "two", dict(reversed(entries.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert provenance.read(tmp_path / "two") == (format_number(), entries)


def flip(path: Path) -> None:
    """Turn round one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_a_run_with_a_damaged_provenance_is_left_out_and_the_others_go_on(first: Path, pulled: Path) -> None:
    note, evaluation = f"{RUN}/{PROVENANCE}", f"data/runs/{MBPO}/00003/evaluation.h5"
    flip(pulled / note)
    (pulled / evaluation).unlink()
    assert planned(pulled) == {Job("evaluate", MBPO, 3)}, "of the other run"
    said = run(pulled, str(BIN / "snakemake"), "--cores", "1", fails=True)
    assert len([text for text in said.splitlines() if note in text]) == 1
    assert f"usbpo: {note}: it is damaged (" in said
    assert f"`dvc checkout --force {note}` brings the one that was published" in said
    assert said.splitlines()[-1] == f"usbpo: {USBPO}: left out, see above; all else is done."
    assert "Traceback" not in said
    assert shared_files(pulled, evaluation.rpartition("/")[0]) == shared_files(first, evaluation.rpartition("/")[0])
    asked = run(pulled, str(BIN / "snakemake"), f"{RUN}/00002/evaluation.h5", "--force", "-n", fails=True)
    assert f"{note}: it is damaged (" in asked.splitlines()[-1], "nor by the name of a file"
    dvc(pulled, "checkout", "--force", note)
    assert NOTHING in snake(pulled)


def test_where_all_is_damaged_nothing_is_done_and_each_file_is_named(pulled: Path) -> None:
    notes = [f"data/runs/{of}/{PROVENANCE}" for of in (USBPO, MBPO)]
    for note in notes:
        (pulled / note).write_bytes(b"\x1f\x8b")
    before = shared_files(pulled)
    said = run(pulled, str(BIN / "snakemake"), "--cores", "1", fails=True)
    assert all(f"usbpo: {note}: it is damaged (" in said for note in notes)
    assert said.splitlines()[-1] == "usbpo: nothing is left to do, see above."
    assert shared_files(pulled) == before


def test_a_run_with_a_damaged_provenance_is_not_published_and_the_others_are(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    flip(here / RUN / PROVENANCE)
    flip(here / "data/results/demo" / PROVENANCE)
    before = git(here, "ls-files", "--stage")
    said = usbpo(here, "publish", "--no-push")
    assert f"data/runs/{MBPO}: nothing new" in said
    assert f"{RUN}/{PROVENANCE}: it is damaged (" in said
    assert f"data/results/demo/{PROVENANCE}: it is damaged (" in said
    assert git(here, "ls-files", "--stage") == before
    told = usbpo(here, "publish", "--no-push", USBPO, fails=True)
    assert told.startswith(f"usbpo publish: nothing is published: {RUN}/{PROVENANCE}: it is damaged (")
    assert len(told.splitlines()) == 1


def test_damaged_records_of_snakemake_count_as_lost(first: Path, tmp_path: Path) -> None:
    here = copied(first, tmp_path / "here")
    contents = {"00001/policy.json": b"\xff\xfe", "00002/policy.json": b"[1]", "00003/policy.json": b'{"params": [3]}'}
    for name, content in contents.items():
        record = here / ".snakemake/metadata" / urlsafe_b64encode(f"{RUN}/{name}".encode()).decode()
        assert record.is_file()
        record.write_bytes(content)
    said = snake(here)
    assert NOTHING in said
    for name in contents:
        assert f"Snakemake's record of {RUN}/{name} counts as lost." in said
    told = usbpo(here, "publish", "--no-push")
    assert f"{RUN}/00001/policy.json and 2 more have no record of the job that made it" in told
