"""Retention: which models, policies and rollouts stay, what is made again from them, and what `usbpo gc` collects."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers.workflow import (
    FOLDERS,
    REPO,
    RESULTS,
    Job,
    at_work_in,
    command,
    copied,
    environment,
    jobs,
    planned,
    set_key,
    snakemake,
    tree,
    wait_for,
)
from rich.console import Console

from usbpo.artifacts import layout
from usbpo.commands import cli
from usbpo.commands.gc import collect_leftovers, leftovers
from usbpo.errors import UsbpoError
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.yaml_files import read_yaml
from usbpo.monitor.estimate import estimate
from usbpo.workspace import lifetime
from usbpo.workspace.restoring import Again, Restored, changed_jobs, files_of, read_otherwise

METHODS = ["test-usbpo", "test-cmlo"]
USBPO, CMLO = (f"test-pendulum/{method}/seed-1" for method in METHODS)
CONTENT = {"experiment": "e", "tasks": ["test-pendulum"], "methods": METHODS, "seeds": [1], "steps": 240}
"""With a seed that no experiment of the project has: what those keep would stay."""
CYCLES = 8
"""Kept with every-4: 0, 4 and 8. D_model is the rollouts of two cycles."""
KEPT = {
    USBPO: {"policy": {0, 2, 3, 4, 6, 7, 8}, "model-mle": set(), "model": {3, 4, 7, 8}, "rollouts": set()},
    CMLO: {"policy": {0, 4, 8}, "model-mle": {4, 8}, "model": set(), "rollouts": {3, 4, 7, 8}},
}
"""The cycles of which the large artifacts stay."""
pytestmark = pytest.mark.xdist_group("retention")


def write_experiment(folder: Path, keep: str, **changes: Any) -> Path:
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, "artifacts": {"keep": keep}, **changes}))
    return path


def plan_of(keep: str, **changes: Any) -> Plan:
    return Plan({**CONTENT, "artifacts": {"keep": keep}, **changes}, source="e.yaml", folders=FOLDERS)


def large(names: set[str] | dict[str, str]) -> set[str]:
    return {name for name in names if layout.is_large(name)}


def kept_names() -> set[str]:
    suffixes = {"rollouts": ".h5"}
    return {
        f"data/runs/{run}/{cycle:05d}/{kind}{suffixes.get(kind, '.safetensors')}"
        for run, kinds in KEPT.items()
        for kind, cycles in kinds.items()
        for cycle in cycles
    }


def without_large(made: dict[str, str]) -> dict[str, str]:
    return {name: sha for name, sha in made.items() if not layout.is_large(name)}


def run_again(workspace: Path, *more: str) -> None:
    ended = snakemake(workspace, *more, experiment=workspace / "e.yaml")
    assert ended.code == 0, ended.said


def to_come(workspace: Path, *more: str) -> set[Job]:
    return planned(workspace, *more, experiment=workspace / "e.yaml")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The experiment with everything kept and with every fourth cycle, run to the end; not to be changed."""
    made = {}
    for keep in ("all", "every-4"):
        made[keep] = tmp_path_factory.mktemp(keep)
        ended = snakemake(made[keep], experiment=write_experiment(made[keep], keep))
        assert ended.code == 0, ended.said
    return made


@pytest.fixture
def workspace(both: dict[str, Path], tmp_path: Path) -> Path:
    return copied(both["every-4"], tmp_path / "workspace")


@pytest.fixture(scope="module")
def longer(both: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checksums of everything that one more cycle leaves where all is kept."""
    workspace = copied(both["all"], tmp_path_factory.mktemp("longer") / "workspace")
    run_again(workspace, "--config", "steps=270")
    return tree(workspace)


def the_same(made: dict[str, str], reference: dict[str, str]) -> bool:
    return {name: reference[name] for name in made} == made and without_large(made) == without_large(reference)


# ---- what stays --------------------------------------------------------------------------------------------------


def test_kept_cycles_stay_with_what_a_run_goes_on_from_and_all_else_is_the_same(both: dict[str, Path]) -> None:
    everything, made = tree(both["all"]), tree(both["every-4"])
    assert large(made) == kept_names()
    assert the_same(made, everything)


def test_what_a_plan_keeps_is_what_lies_there(both: dict[str, Path]) -> None:
    for keep, folder in both.items():
        plan = plan_of(keep)
        paths = [path for run in plan.cycles for path in plan.kept(run, folder)]
        assert set(paths) == {name for name in tree(folder) if name.startswith("data/runs")}
        assert sorted(paths) == sorted(plan.artifacts(folder))


def test_the_last_cycle_alone_stays_and_nothing_of_a_longer_run(tmp_path: Path) -> None:
    plan = plan_of("last", steps=90)
    (run, _) = plan.cycles
    expected = {run.path(layout.POLICY, c) for c in (1, 2, 3)} | {run.path(layout.MODEL, c) for c in (2, 3)}
    assert plan.kept_checkpoints(run, tmp_path) == expected
    shard = tmp_path / run.path(layout.SHARD, 4)
    shard.parent.mkdir(parents=True)
    shard.touch()
    assert plan.kept_checkpoints(run, tmp_path) == set()


def test_what_a_plan_says_of_jobs_is_what_snakemake_recorded(both: dict[str, Path]) -> None:
    def record(path: str) -> Any:
        file = both["all"] / ".snakemake/metadata" / base64.urlsafe_b64encode(path.encode()).decode()
        return SimpleNamespace(**json.loads(file.read_text())) if file.exists() else None

    for run, cycles in plan_of("all").cycles.items():
        there = files_of(run, both["all"])
        assert there == {name for name in tree(both["all"]) if name.startswith(f"{run.folder}/")}
        assert all(record(path) for path in there)
        assert changed_jobs(run, cycles, there, record) == set()


@pytest.mark.parametrize("name", ["main", "thresholds", "ablations"])
def test_the_large_experiments_do_not_keep_all(name: str) -> None:
    assert read_yaml(REPO / f"config/experiments/{name}.yaml")["artifacts"]["keep"] == "every-100"


@pytest.mark.parametrize("keep", ["every-0", "every-", "every-05", "some", "every-2x", ""])
def test_another_word_is_refused(keep: str) -> None:
    with pytest.raises(UsbpoError, match=r"e.yaml: 'artifacts.keep' must be all, last, or every-N.*mend the value"):
        plan_of(keep)


@pytest.mark.parametrize("method", ["usbpo", "mbpo"])
def test_hopper_stays_below_a_gigabyte_by_default(method: str, tmp_path: Path) -> None:
    content = {"experiment": "e", "tasks": ["Hopper"], "methods": [method], "seeds": [0], "steps": 125_000}
    plan = Plan(content, source="e.yaml", folders=FOLDERS)
    (line,) = estimate(plan, tmp_path)
    assert line.cycles == 500
    assert line.bytes < 1e9


# ---- going on, and making again ----------------------------------------------------------------------------------


def test_nothing_is_to_be_done_again_and_a_deleted_evaluation_of_a_kept_policy_is_one_job(workspace: Path) -> None:
    assert to_come(workspace) == set()
    (workspace / f"data/runs/{USBPO}/00004/evaluation.h5").unlink()
    assert to_come(workspace) == jobs("evaluate", [4], [USBPO])


AFTER_4 = jobs("rollout", [3, 4], [USBPO])
"""D_model when the fifth cycle begins"""


def test_a_deleted_evaluation_is_made_again_from_the_kept_cycle_before(workspace: Path) -> None:
    before = tree(workspace)
    (workspace / f"data/runs/{USBPO}/00005/evaluation.h5").unlink()
    of_cycle = {Job(stage, USBPO, 5) for stage in ("phase1", "phase2", "rollout", "policy", "evaluate")}
    assert to_come(workspace) == AFTER_4 | of_cycle
    run_again(workspace)
    assert tree(workspace) == before
    assert to_come(workspace) == set()


def test_what_was_made_again_is_held_against_what_its_readers_have_read(tmp_path: Path) -> None:
    plan = plan_of("every-4")
    (run,) = [run for run in plan.cycles if run.name == USBPO]
    policy = run.path(layout.POLICY, 4)
    (tmp_path / policy).parent.mkdir(parents=True)
    (tmp_path / policy).write_bytes(b"anew")

    def told(read: str, jobs: set[tuple[str, int]]) -> list[str]:
        evaluated = SimpleNamespace(input_checksums={policy: read, run.path(layout.SHARD, 0): "of another file"})
        records = {run.path(layout.EVALUATION, 4): evaluated}
        made = {path for stage, cycle in jobs for path in run.jobs(cycle)[stage]}
        restored = Restored({run.name: Again(jobs, made)}, set())
        return read_otherwise(plan, restored, records.get, lambda path: path.read_text(), tmp_path)

    assert told("anew", {("policy", 4)}) == told("sha256:anew", {("policy", 4)}) == told("", {("policy", 4)}) == []
    assert told("before", {("policy", 4)}) == [policy]
    assert told("before", {("policy", 4), ("evaluate", 4)}) == [], "the reader runs itself"
    assert told("before", set()) == [], "it was not made again"


@pytest.mark.slow
def test_a_deleted_policy_is_made_again_from_the_kept_cycle_before(workspace: Path) -> None:
    before = tree(workspace)
    (workspace / f"data/runs/{USBPO}/00006/policy.safetensors").unlink()
    stages = ("phase1", "phase2", "rollout", "policy")
    wanted = AFTER_4 | {Job(stage, USBPO, cycle) for stage in stages for cycle in (5, 6)}
    assert to_come(workspace) == wanted
    run_again(workspace)
    assert tree(workspace) == before
    assert to_come(workspace) == set()


def test_a_longer_run_makes_the_new_cycles_alone_and_a_shorter_one_asks_for_nothing(
    workspace: Path, longer: dict[str, str]
) -> None:
    more = ("--config", "steps=270")
    wanted = to_come(workspace, *more) - RESULTS
    assert {job for job in wanted if job.number < 9} == jobs("rollout", [7, 8], [USBPO])
    assert {Job("policy", USBPO, 9), Job("triggered", CMLO, 9)} <= wanted
    run_again(workspace, *more)
    assert the_same(tree(workspace), longer)
    assert {name for name in large(tree(workspace)) if "rollouts" in name and USBPO in name} == set()
    assert to_come(workspace, *more) == set()
    assert to_come(workspace) <= RESULTS


def test_a_run_goes_on_from_any_kept_cycle(workspace: Path) -> None:
    before = tree(workspace)
    for run in (USBPO, CMLO):
        for cycle in range(5, CYCLES + 1):
            shutil.rmtree(workspace / f"data/runs/{run}/{cycle:05d}")
            (workspace / f"data/runs/{run}/data/{cycle:05d}.h5").unlink()
    wanted = to_come(workspace) - RESULTS
    assert {job for job in wanted if job.number < 5} == AFTER_4
    run_again(workspace)
    assert tree(workspace) == before
    assert to_come(workspace) == set()


def test_an_interrupted_extension_goes_on(workspace: Path, longer: dict[str, str]) -> None:
    words = command(workspace, "--config", "steps=270", "--cores", "1", experiment=workspace / "e.yaml")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(words, env=environment(), cwd=workspace, start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        made = workspace / f"data/runs/{USBPO}/00008/rollouts.h5"
        wait_for(made.exists, 120, "rollouts made again")
        os.kill(first.pid, signal.SIGKILL)
        first.wait(60)
    finally:
        first.kill()
    wait_for(lambda: not at_work_in(workspace), 30, "the end of all that Snakemake started")
    assert not (workspace / f"data/runs/{USBPO}/00009/policy.json").exists()
    run_again(workspace, "--config", "steps=270")
    assert the_same(tree(workspace), longer)
    assert to_come(workspace, "--config", "steps=270") == set()


def test_a_changed_key_runs_all_that_uses_it_and_what_that_needs(workspace: Path) -> None:
    set_key(workspace, "algorithms/test-mbpo", "evaluate.episodes", 3)
    wanted = to_come(workspace) - RESULTS
    assert jobs("evaluate", range(CYCLES + 1), [USBPO, CMLO]) <= wanted
    assert {job.rule for job in wanted if job.run == USBPO} == {"phase1", "phase2", "rollout", "policy", "evaluate"}
    set_key(workspace, "algorithms/test-mbpo", "policy.discount", 0.9)
    follows = to_come(workspace) - RESULTS
    assert {job.rule for job in follows if job.run == USBPO} > {"collect", "policy", "theory"}
    assert jobs("theory", range(2, CYCLES + 1), [USBPO]) <= follows


def test_a_changed_key_is_seen_when_a_run_is_made_longer(workspace: Path) -> None:
    set_key(workspace, "algorithms/test-mbpo", "policy.discount", 0.9)
    wanted = to_come(workspace, "--config", "steps=270") - RESULTS
    for stage in ("collect", "phase1", "phase2", "rollout", "policy", "evaluate", "theory"):
        assert jobs(stage, range(2, CYCLES + 2), [USBPO]) <= wanted


def test_a_single_artifact_that_is_asked_for_lets_nothing_go(workspace: Path) -> None:
    before = tree(workspace)
    evaluation = f"data/runs/{USBPO}/00004/evaluation.h5"
    (workspace / evaluation).unlink()
    run_again(workspace, evaluation)
    assert tree(workspace) == before


def test_a_policy_that_was_let_go_can_be_asked_for(workspace: Path, both: dict[str, Path]) -> None:
    policy = f"data/runs/{USBPO}/00005/policy.safetensors"
    of_cycle = {Job(stage, USBPO, 5) for stage in ("phase1", "phase2", "rollout", "policy")}
    assert to_come(workspace, policy) == AFTER_4 | of_cycle
    run_again(workspace, policy)
    assert (workspace / policy).read_bytes() == (both["all"] / policy).read_bytes()
    assert large(tree(workspace)) > kept_names()
    collect(workspace)
    assert large(tree(workspace)) == kept_names()
    assert to_come(workspace) == set()


def test_a_video_of_a_policy_that_was_let_go_makes_this_again(workspace: Path) -> None:
    of_cycle = {Job(stage, USBPO, 5) for stage in ("phase1", "phase2", "rollout", "policy", "video")}
    expected = AFTER_4 | of_cycle | {Job("triggered", CMLO, 5), Job("video", CMLO, 5)}
    assert to_come(workspace, *(f"data/videos/{run}/00005.gif" for run in (USBPO, CMLO))) == expected
    shorter = Plan(read_yaml(workspace / "e.yaml") | {"steps": 150}, source="e.yaml", folders=FOLDERS)
    policies = [f"data/runs/{run}/00005/policy.safetensors" for run in (USBPO, CMLO)]
    assert shorter.of_runs(["videos"]) == policies
    assert shorter.of_runs(["all", "tensorboard"]) == []


# ---- usbpo gc ----------------------------------------------------------------------------------------------------


def collect(workspace: Path, *, dry_run: bool = False, folders: tuple[Path, ...] = FOLDERS) -> str:
    said = io.StringIO()
    collect_leftovers(workspace / "e.yaml", folders, dry_run, workspace, Console(file=said, width=120))
    return said.getvalue()


def test_what_was_kept_before_goes_when_less_is_kept_now(both: dict[str, Path], tmp_path: Path) -> None:
    workspace = copied(both["all"], tmp_path / "workspace")
    assert "Nothing lies about" in collect(workspace)
    write_experiment(workspace, "every-4")
    everything = tree(workspace)
    said = collect(workspace, dry_run=True)
    assert tree(workspace) == everything
    gone = large(everything) - kept_names()
    assert "would go" in said
    assert said.splitlines()[-1].split()[:2] == ["all", str(len(gone))]
    assert "gone" in collect(workspace)
    assert tree(workspace) == {name: sha for name, sha in everything.items() if name not in gone}
    assert to_come(workspace) == set()
    assert "Nothing lies about" in collect(workspace)


def test_another_experiments_artifacts_and_what_jobs_to_come_need_stay(both: dict[str, Path], tmp_path: Path) -> None:
    workspace = copied(both["all"], tmp_path / "workspace")
    write_experiment(workspace, "every-4")
    own = workspace / "config/experiments"
    own.mkdir(parents=True)
    shutil.copy(both["all"] / "e.yaml", own / "other.yaml")
    folders = (workspace / "config", *FOLDERS)
    assert "Nothing lies about" in collect(workspace, folders=folders)
    (own / "other.yaml").unlink()
    write_experiment(workspace, "every-4", steps=270)
    collect(workspace, folders=folders)
    left = large(tree(workspace))
    assert {f"data/runs/{USBPO}/{cycle:05d}/rollouts.h5" for cycle in (7, 8)} <= left, "the ninth cycle reads them"
    assert {job for job in to_come(workspace) - RESULTS if job.number < 9} == set()


def test_a_longer_run_can_still_go_on_from_its_end(both: dict[str, Path], tmp_path: Path) -> None:
    workspace = copied(both["every-4"], tmp_path / "workspace")
    write_experiment(workspace, "last", steps=180)
    collect(workspace)
    at_end = {name for name in kept_names() if int(name.split("/")[-2]) > 5}
    assert large(tree(workspace)) == at_end


def test_names_of_killed_writers_go_and_those_of_living_ones_stay(workspace: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    folder = workspace / f"data/runs/{USBPO}/00003"
    dead, living = (folder / f".policy.safetensors.{pid}.partial" for pid in (process.pid, os.getpid()))
    for path in (dead, living):
        path.write_bytes(b"half")
    assert "broken off" in collect(workspace)
    assert (dead.exists(), living.exists()) == (False, True)


def test_what_a_user_keeps_in_a_folder_of_a_run_is_no_cycle_and_stays(tmp_path: Path) -> None:
    plan = plan_of("last", methods=["test-cmlo"])
    (run,) = plan.cycles
    for path in [path for cycle in range(CYCLES + 1) for path in run.artifacts(cycle)]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    before = leftovers(plan, [], tmp_path)
    assert before
    for folder in ("backup", "backup/00001", "99999-old", "."):
        (tmp_path / run.folder / folder).mkdir(exist_ok=True)
        for name in ("policy.safetensors", "policy.json", "model.safetensors"):
            (tmp_path / run.folder / folder / name).touch()
    assert leftovers(plan, [], tmp_path) == before


def test_nothing_is_collected_while_a_snakemake_is_at_work(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_experiment(workspace, "last")
    before = tree(workspace)
    holding = "import sys; from pathlib import Path; from usbpo.workspace import lifetime\n"
    holding += "lifetime.hold_workspace(Path(sys.argv[1])); print('held', flush=True); input()"
    words = [str(Path(os.sys.executable)), "-c", holding, str(workspace)]  # type: ignore[attr-defined]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert cli.main(["gc", str(workspace / "e.yaml"), "--folder", str(workspace)]) == 1
        other.communicate("\n")
    said = capsys.readouterr()
    assert said.err == f"usbpo gc: {workspace}: a Snakemake is at work there; wait for its end or stop it.\n"
    assert tree(workspace) == before
    with lifetime.alone_in(workspace):
        pass
    assert cli.main(["gc", str(workspace / "e.yaml"), "--folder", str(workspace)]) == 0
    assert tree(workspace) != before


def test_a_folder_without_data_and_an_unknown_experiment_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gc", "test", "--folder", str(tmp_path)]) == 1
    assert "there is no such folder; name the one that holds data/" in capsys.readouterr().err
    assert cli.main(["gc", "none-such"]) == 1
    assert capsys.readouterr().err.startswith("usbpo gc: unknown experiment 'none-such'")
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_a_method_without_a_model_are_its_policy() -> None:
    run: Run = plan_of("last", methods=["test-sac"]).run("test-pendulum", "test-sac", 0)
    assert run.checkpoints(3) == [run.path(layout.POLICY, 3)]
