"""The whole workflow with real Snakemake: what runs, what runs again, and that every byte is the same each time."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.artifacts import sealed
from helpers.workflow import (
    CYCLES,
    FIGURES,
    MBPO,
    RESULT_FILES,
    RESULTS,
    USBPO,
    Job,
    at_work_in,
    command,
    copied,
    copied_project,
    environment,
    expected_files,
    files,
    finished_workspace,
    jobs,
    planned,
    set_key,
    snakemake,
    start,
    tree,
    wait_for,
)

ALL = range(CYCLES + 1)
NOTHING_TO_DO = "Nothing to be done"
OF_USBPO, OF_MBPO = f"data/runs/{USBPO}", f"data/runs/{MBPO}"
PAIRS = [
    (f"{OF_USBPO}/data/00002.h5", f"{OF_MBPO}/00002/policy.json"),
    (f"{OF_USBPO}/00002/model-mle.safetensors", f"{OF_MBPO}/00002/evaluation.h5"),
    (f"{OF_USBPO}/00002/phase2.json", f"{OF_MBPO}/00002/rollout.json"),
    (f"{OF_USBPO}/00002/model.safetensors", f"{OF_MBPO}/data/00000.h5"),
    (f"{OF_USBPO}/00002/rollouts.h5", f"{OF_MBPO}/00000/policy.safetensors"),
    (f"{OF_USBPO}/00002/policy.safetensors", f"{OF_MBPO}/00002/phase1.json"),
    (f"{OF_USBPO}/00002/theory.h5", f"{OF_MBPO}/00002/theory.json"),
]
"""Every kind of artifact once; the two of a pair lie in runs that do not know each other."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture(scope="session")
def finished_tree(finished: Path) -> dict[str, str]:
    """Checksums of its artifacts."""
    return tree(finished)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished test experiment."""
    return copied(finished, tmp_path / "workspace")


# ---- a run and its repetition ------------------------------------------------------------------------------------


def test_the_test_experiment_leaves_its_artifacts_and_nothing_else(
    finished: Path, finished_tree: dict[str, str]
) -> None:
    assert set(finished_tree) == expected_files()


def test_every_job_leaves_a_log_and_a_benchmark(finished: Path) -> None:
    stages = {
        path.relative_to(finished / "data/runs" / run / kind).with_suffix("").as_posix()
        for run in (USBPO, MBPO)
        for kind in ("logs", "benchmarks")
        for path in (finished / "data/runs" / run / kind).rglob("*.*")
    }
    assert {
        f"{c:05d}/{stage}"
        for c in (1, 2, 3)
        for stage in ("collect", "phase1", "rollout", "policy", "evaluate", "theory")
    } <= stages
    for run, with_phase2 in ((USBPO, ["00002", "00003"]), (MBPO, [])):
        for kind, suffix in (("logs", "log"), ("benchmarks", "tsv")):
            found = (finished / "data/runs" / run / kind).glob(f"*/phase2.{suffix}")
            assert sorted(path.parent.name for path in found) == with_phase2
    header, numbers = (finished / f"{OF_USBPO}/benchmarks/00002/policy.tsv").read_text().splitlines()
    assert header.startswith("s\t")
    assert float(numbers.split("\t")[0]) > 0
    assert "took" in (finished / f"{OF_USBPO}/logs/00002/policy.log").read_text()


def test_stages_of_a_workflow_are_run_by_the_warm_worker(finished: Path) -> None:
    logs = [path.read_text() for path in (finished / "data/runs").rglob("logs/*/*.log")]
    assert len(logs) == len(expected_jobs())
    assert not [text for text in logs if "running directly" in text]


def expected_jobs() -> set[Job]:
    """All jobs of the test experiment but `results`."""
    on_policy = range(1, CYCLES + 1)
    return (
        jobs("collect", ALL)
        | jobs("initialise", [0])
        | jobs("evaluate", ALL)
        | jobs("phase1", on_policy)
        | jobs("phase2", [2, 3], [USBPO])
        | jobs("rollout", on_policy)
        | jobs("policy", on_policy)
        | jobs("theory", on_policy)
    )


def test_a_fresh_folder_needs_every_stage_once(tmp_path: Path) -> None:
    assert planned(tmp_path) == expected_jobs() | RESULTS


def test_who_reads_only_the_beginning_of_a_plan_sees_no_error(tmp_path: Path) -> None:
    words = shlex.join(command(tmp_path, "--dry-run"))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{words} | head -1"], capture_output=True, text=True, env=environment()
    )
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_second_run_has_nothing_to_do(workspace: Path, finished_tree: dict[str, str]) -> None:
    modified = {name: path.stat().st_mtime_ns for name, path in files(workspace).items()}
    again = snakemake(workspace)
    assert again.code == 0
    assert NOTHING_TO_DO in again.said
    assert "profiles/default for setting default command line arguments" in again.said
    assert {name: path.stat().st_mtime_ns for name, path in files(workspace).items()} == modified
    assert tree(workspace) == finished_tree


def kind_of(path: str) -> str:
    """The kind of artifact of a run that a path is: its name, for shards `shard`."""
    return "shard" if "/data/0" in path else Path(path).name


def test_every_kind_of_artifact_is_deleted_below() -> None:
    kinds = {kind_of(path) for path in expected_files() if path.startswith("data/runs")}
    assert {kind_of(path) for pair in PAIRS for path in pair} == kinds


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " and ".join(map(kind_of, pair)))
def test_a_deleted_artifact_is_made_again_with_the_same_bytes(
    workspace: Path, finished_tree: dict[str, str], pair: tuple[str, str]
) -> None:
    for path in pair:
        (workspace / path).unlink()
    assert planned(workspace) == {maker_of(path) for path in pair}
    again = snakemake(workspace)
    assert again.code == 0, again.said
    assert tree(workspace) == finished_tree
    assert planned(workspace) == set(), "and nobody who has read it runs later"


def maker_of(path: str) -> Job:
    """The job that makes an artifact of a run."""
    run = "/".join(Path(path).parts[2:5])
    if kind_of(path) == "shard":
        return Job("collect", run, int(Path(path).stem))
    cycle, stage = int(Path(path).parent.name), Path(path).name.partition(".")[0]
    of_another_name = {"model-mle": "phase1", "model": "phase2", "rollouts": "rollout", "evaluation": "evaluate"}
    return Job("initialise" if (cycle, stage) == (0, "policy") else of_another_name.get(stage, stage), run, cycle)


def test_what_was_read_spoilt_is_told_when_it_is_made_again_and_then_its_readers_run(
    workspace: Path, finished_tree: dict[str, str]
) -> None:
    policy = workspace / OF_USBPO / "00002/policy.safetensors"
    content = bytearray(policy.read_bytes())
    content[len(content) // 2] ^= 1  # the lowest bit of a weight
    policy.unlink()
    sealed(policy, bytes(content))
    assert snakemake(workspace).code == 0, "its readers run again, with what nobody made"
    policy.unlink()
    assert planned(workspace) == {Job("policy", USBPO, 2)}
    told = snakemake(workspace)
    assert told.code == 1
    assert f"{OF_USBPO}/00002/policy.safetensors is not what was read of it before; type the command again" in told.said
    again = snakemake(workspace)
    assert again.code == 0, again.said
    assert tree(workspace) == finished_tree


OF_EACH_FORMAT = {Path(name).suffix: name for name in RESULT_FILES}.values()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in OF_EACH_FORMAT else pytest.mark.slow) for name in RESULT_FILES],
)
def test_a_deleted_result_file_asks_for_the_results_alone(workspace: Path, name: str) -> None:
    (workspace / "data/results/test" / name).unlink()
    assert planned(workspace) == RESULTS


@pytest.mark.slow
def test_a_deleted_block_is_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    block = f"{OF_MBPO}/data/blocks/00007.h5"
    long = ("--config", "steps=300", "methods=[test-mbpo]")
    first = snakemake(tmp_path, *long)
    assert first.code == 0, first.said
    before = tree(tmp_path)
    assert block in before
    (tmp_path / block).unlink()
    again = snakemake(tmp_path, *long)
    assert again.code == 0, again.said
    assert tree(tmp_path) == before


def test_deleted_results_are_made_again_with_the_same_bytes(workspace: Path, finished_tree: dict[str, str]) -> None:
    shutil.rmtree(workspace / "data/results")
    again = snakemake(workspace)
    assert again.code == 0, again.said
    assert tree(workspace) == finished_tree


def test_one_core_gives_the_same_bytes_as_two(tmp_path: Path, finished_tree: dict[str, str]) -> None:
    done = snakemake(tmp_path, cores=1)
    assert done.code == 0, done.said
    assert tree(tmp_path) == finished_tree


def test_a_run_alone_has_all_cores_and_gives_the_same_bytes(tmp_path: Path, finished_tree: dict[str, str]) -> None:
    done = snakemake(tmp_path, "runs", "--config", f'only=["{USBPO}"]', cores=3)
    assert done.code == 0, done.said
    made = tree(tmp_path)
    assert made == {name: digest for name, digest in finished_tree.items() if name.startswith(OF_USBPO)}
    logs = tmp_path / OF_USBPO / "logs/00002"
    threads = {path.stem: re.findall(r" on (\d) threads, ", path.read_text()) for path in logs.glob("*.log")}
    of_stage = {"phase1": ["3"], "phase2": ["3"], "rollout": ["3"], "policy": ["2"]}
    assert threads == {stage: of_stage.get(stage, []) for stage in threads}


UNTRAINED = [f"{OF_MBPO}/00000/{name}" for name in ("policy.safetensors", "evaluation.h5")]
LAST_CYCLE = [f"{OF_USBPO}/data/00003.h5", *(f"{OF_USBPO}/00003/{name}" for name in ("evaluation.h5", "theory.h5"))]


@pytest.mark.parametrize(
    ("targets", "number"),
    [(UNTRAINED, 2), pytest.param([*UNTRAINED, *LAST_CYCLE], 9, marks=pytest.mark.slow)],
    ids=["two of them", "all of them"],
)
def test_stages_without_the_warm_worker_give_the_same_bytes(
    workspace: Path, finished_tree: dict[str, str], targets: list[str], number: int
) -> None:
    for path in targets:
        (workspace / path).unlink()
    if number == 9:
        shutil.rmtree(workspace / f"{OF_USBPO}/00003")
    worker_log = workspace / ".snakemake/usbpo-worker.log"
    worker_log.unlink()
    done = snakemake(workspace, *targets, USBPO_WARM="0")
    assert done.code == 0, done.said
    assert f"{number} of {number} jobs" in done.said
    assert not worker_log.exists()
    assert tree(workspace) == finished_tree


# ---- what a change makes run again -------------------------------------------------------------------------------


def test_more_cycles_only_add_jobs(workspace: Path) -> None:
    new = [4, 5]
    added = [jobs(rule, new) for rule in ("collect", "phase1", "rollout", "policy", "evaluate", "theory")]
    assert planned(workspace, "--config", "steps=150") == set().union(*added) | jobs("phase2", new, [USBPO]) | RESULTS


def test_fewer_cycles_only_draw_the_results_again(workspace: Path) -> None:
    assert planned(workspace, "--config", "steps=60") == RESULTS


def test_another_seed_leaves_the_first_alone(workspace: Path) -> None:
    experiment = workspace / "two-seeds.yaml"
    experiment.write_text(
        "experiment: test\ntasks: [test-pendulum]\nmethods: [test-usbpo, test-mbpo]\nseeds: [0, 1]\nsteps: 90\n"
    )
    wanted = planned(workspace, experiment=experiment)
    assert {job.run for job in wanted - RESULTS} == {
        USBPO.replace("seed-0", "seed-1"),
        MBPO.replace("seed-0", "seed-1"),
    }
    assert len(wanted) == len(expected_jobs() | RESULTS)


def test_two_experiments_share_the_runs_that_they_have_in_common(workspace: Path) -> None:
    experiment = workspace / "other.yaml"
    experiment.write_text(
        "experiment: other\ntasks: [test-pendulum]\nmethods: [test-mbpo]\nseeds: [0]\nsteps: {test-pendulum: 60}\n"
    )
    assert planned(workspace, experiment=experiment) == RESULTS


def test_more_evaluation_episodes_rerun_evaluations_only(workspace: Path) -> None:
    set_key(workspace, "algorithms/test-mbpo", "evaluate.episodes", 3)
    assert planned(workspace) == jobs("evaluate", ALL) | RESULTS


def test_more_rows_of_the_theory_rerun_the_theory_only(workspace: Path) -> None:
    set_key(workspace, "algorithms/test-mbpo", "theory.rows", 40)
    assert planned(workspace) == jobs("theory", range(1, CYCLES + 1)) | RESULTS


def test_without_the_theory_only_the_results_are_drawn_again(workspace: Path) -> None:
    set_key(workspace, "algorithms/test-mbpo", "theory", None)
    assert planned(workspace) == RESULTS


def test_other_returns_to_reach_only_draw_the_results_again(workspace: Path) -> None:
    assert planned(workspace, "--config", "returns={test-pendulum: [50]}") == RESULTS
    # Nothing of a task that is not in the experiment is drawn.
    assert planned(workspace, "--config", "returns={Hopper: [1000]}") == set()


def test_another_learning_rate_of_phase_2_reruns_from_phase_2_of_the_second_cycle_on(workspace: Path) -> None:
    set_key(workspace, "algorithms/test-usbpo", "phase2.learning_rate", 2e-4)
    later = [jobs(rule, [2, 3], [USBPO]) for rule in ("phase2", "rollout", "policy", "evaluate", "theory")]
    follows = jobs("collect", [3], [USBPO]) | jobs("phase1", [3], [USBPO])
    assert planned(workspace) == set().union(*later) | follows | RESULTS


def test_a_touched_file_with_the_same_content_reruns_nothing(workspace: Path) -> None:
    os.utime(workspace / f"{OF_USBPO}/data/00002.h5")
    os.utime(workspace / f"{OF_USBPO}/00002/model.safetensors")
    assert planned(workspace) == set()


def test_comments_and_the_report_rerun_no_science_but_code_does(workspace: Path, tmp_path: Path) -> None:
    project, variables = copied_project(tmp_path / "project")
    for path in [
        *(project / "usbpo/stages").glob("*.py"),
        project / "usbpo/model/ensemble.py",
        project / "usbpo/agent/sac.py",
    ]:
        text = path.read_text(encoding="utf-8")
        assert '"""' in text
        path.write_text(text.replace('"""', '"""Said otherwise: ', 1) + "\n# A remark.\n", encoding="utf-8")
    for path in (project / "usbpo/report").glob("*.py"):
        path.write_text(path.read_text(encoding="utf-8") + "\n_added = 1\n", encoding="utf-8")
    for path in (project / "workflow/report").glob("*.rst"):
        path.write_text(path.read_text(encoding="utf-8") + "\nAdded.\n", encoding="utf-8")
    assert planned(workspace, project=project, **variables) <= RESULTS

    ensemble = project / "usbpo/model/ensemble.py"
    text = ensemble.read_text(encoding="utf-8")
    assert "1e-12" in text
    ensemble.write_text(text.replace("1e-12", "1e-11"), encoding="utf-8")
    of_models = [jobs(rule, [1, 2, 3]) for rule in ("phase1", "rollout", "policy", "evaluate", "theory")]
    follows = jobs("phase2", [2, 3], [USBPO]) | jobs("collect", [2, 3])
    assert planned(workspace, project=project, **variables) == set().union(*of_models) | follows | RESULTS


# ---- after a crash -----------------------------------------------------------------------------------------------


def kill(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


def interrupt(process_id: int) -> None:
    os.kill(process_id, signal.SIGINT)


def interrupt_group(process_id: int) -> None:
    os.killpg(process_id, signal.SIGINT)


@pytest.mark.parametrize("stop", [kill, interrupt_group, pytest.param(interrupt, marks=pytest.mark.slow)])
def test_the_same_command_goes_on_after_an_interruption(
    tmp_path: Path, finished_tree: dict[str, str], stop: Callable[[int], None]
) -> None:
    random_steps = tmp_path / f"{OF_USBPO}/data/00000.h5"
    first = start(tmp_path)
    try:
        wait_for((tmp_path / f"{OF_USBPO}/00001/model-mle.safetensors").exists, 120, "a model")
        stop(first.pid)
        assert first.wait(60) != 0
    finally:
        first.kill()
    wait_for(lambda: not at_work_in(tmp_path), 30, "the end of all that Snakemake started")

    assert 0 < len(tree(tmp_path)) < len(finished_tree)
    if stop is kill:
        assert list((tmp_path / ".snakemake/locks").iterdir())
    made = random_steps.stat().st_mtime_ns
    again = snakemake(tmp_path)
    assert again.code == 0, again.said
    assert tree(tmp_path) == finished_tree
    assert random_steps.stat().st_mtime_ns == made, "what was finished is not made again"
    if stop is kill:
        assert planned(tmp_path) == set()


def test_a_second_snakemake_is_refused_while_the_first_lives(tmp_path: Path, finished_tree: dict[str, str]) -> None:
    first = start(tmp_path)
    try:
        wait_for((tmp_path / f"{OF_USBPO}/00001/model-mle.safetensors").exists, 120, "a model")
        os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end before the second has tried
        second = snakemake(tmp_path)
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait(120) == 0
    finally:
        first.kill()
    assert second.code != 0
    assert "Traceback" not in second.said
    assert "cannot be locked" in second.said
    assert tree(tmp_path) == finished_tree


def test_the_report_is_one_page_that_begins_with_a_description(finished: Path, tmp_path: Path) -> None:
    """Snakemake's own first view is a graph of all jobs, which says nothing where there are thousands of them."""
    workspace = copied(finished, tmp_path / "workspace")
    ended = snakemake(workspace, "--report", "report.html")
    assert ended.code == 0, ended.said
    page = (workspace / "report.html").read_text(encoding="utf-8")
    assert re.search(r"var metadata = \{.*2309\.12671", page), "without metadata the graph comes first"
    assert "Experiment <strong>test</strong>" in page.replace("\\", "")
    for figure in FIGURES:
        assert f"data/results/test/{figure}.svg" in page
