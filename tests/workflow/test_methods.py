"""Every method and every task runs through the whole workflow, in tiny sizes; and a method is a YAML."""

import json
from math import lcm
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml
from helpers.workflow import FOLDERS, REPO, Ended, files, snakemake, tree

from usbpo.commands.verify import verify
from usbpo.experiment.layers import find, read_layers
from usbpo.experiment.loading import load_run
from usbpo.experiment.plan import Plan
from usbpo.experiment.run import Run
from usbpo.experiment.yaml_files import read_yaml

TASKS = (
    *("InvertedPendulum", "InvertedDoublePendulum", "Hopper", "Walker2d", "HalfCheetah", "Swimmer"),
    *("AntTruncated", "HumanoidTruncated"),
)
METHODS = (
    *("usbpo", "mbpo", "cmlo", "sac"),
    *("usbpo-moving", "usbpo-samples", "usbpo-shift", "usbpo-bias", "usbpo-as-released", "mbpo-lr1e-4"),
)
TINY_TASK = {
    "schedule": {"random_steps": 60, "epoch_steps": 60, "model_train_freq": 30},
    "policy": {"updates_per_step": 1},
}
"""Laid over a task, for the tests."""
TINY_METHOD = read_layers("algorithms", "test-mbpo", FOLDERS)[-1][1]
"""The sizes of the test methods, without what makes them MBPO."""
TINY = {
    "phase2": read_yaml(find("algorithms", "test-usbpo", FOLDERS))["phase2"],
    "trigger": read_yaml(find("algorithms", "test-cmlo", FOLDERS))["trigger"],
}


def tiny_task(folder: Path, task: str) -> str:
    """Write a task in tiny sizes into a workspace, and return its name."""
    return written(folder, "tasks", f"tiny-{task}", {"base": task, **TINY_TASK})


def tiny_method(folder: Path, method: str) -> str:
    """Write a method in tiny sizes into a workspace, and return its name."""
    config = load_run("Hopper", method, FOLDERS)
    sizes: dict[str, Any] = {**TINY_METHOD, "trigger": TINY["trigger"]}
    if config.model is None:
        del sizes["model"]
    if config.phase2 is not None:
        sizes["phase2"] = TINY["phase2"]
    sizes["phase1"] = {**sizes["phase1"], "learning_rate": config.phase1.learning_rate}
    return written(folder, "algorithms", f"tiny-{method}", {"base": method, **sizes})


def written(folder: Path, kind: str, name: str, content: dict[str, Any]) -> str:
    path = folder / "config" / kind / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return name


def run_all(folder: Path, tasks: list[str], methods: list[str], steps: int = 60) -> tuple[Ended, Path]:
    """Run every method on every task with one seed."""
    experiment = folder / "e.yaml"
    content = {"experiment": "e", "tasks": tasks, "methods": methods, "seeds": [0], "steps": steps}
    content["artifacts"] = {"keep": "all"}
    experiment.write_text(yaml.safe_dump(content))
    return snakemake(folder, experiment=experiment), experiment


def check_all(folder: Path, experiment: Path) -> None:
    """Everything that was planned is there, nothing is to be done, and no number is NaN (JSON knows none)."""
    plan = Plan(read_yaml(experiment), source="e.yaml", folders=[folder / "config", *FOLDERS])
    assert {name for name in files(folder) if name.startswith("data/runs")} == set(plan.artifacts())
    for path in plan.artifacts():
        if path.endswith(".json"):
            json.loads((folder / path).read_text(), parse_constant=pytest.fail)
    again = snakemake(folder, experiment=experiment)
    assert "Nothing to be done" in again.said


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """CMLO and SAC on the test task, and an ablation, run to the end."""
    folder = tmp_path_factory.mktemp("three")
    method = tiny_method(folder, "usbpo-as-released")
    ended, experiment = run_all(folder, ["test-pendulum"], ["test-cmlo", "test-sac", method], steps=120)
    assert ended.code == 0, ended.said
    return folder, experiment


@pytest.mark.xdist_group("three")
def test_three_methods_run_through_the_whole_workflow(three: tuple[Path, Path]) -> None:
    check_all(*three)


@pytest.mark.xdist_group("three")
def test_runs_of_all_methods_have_no_finding(three: tuple[Path, Path]) -> None:
    folder, _ = three
    report = verify(str(folder / "data/runs"), folder)
    assert report.findings == []
    assert report.artifacts > 100


@pytest.mark.xdist_group("three")
def test_cmlo_trains_when_its_trigger_fires_and_only_then(three: tuple[Path, Path]) -> None:
    run = three[0] / "data/runs/test-pendulum/test-cmlo/seed-0"
    files = [json.loads((run / f"{cycle:05d}/trigger.json").read_text()) for cycle in range(1, 5)]
    checks = [check for file in files for check in file["checks"]]
    assert [check["on_policy_steps"] for check in checks] == list(range(10, 130, 10))
    fired = [number for number, check in enumerate(checks) if check["fired"]]
    assert fired[0] == 0
    assert 4 <= len(fired) < 12, "once in 30 steps at least"
    for cycle in range(1, 5):
        of_cycle = [number for number in fired if number // 3 == cycle - 1]
        with h5py.File(run / f"{cycle:05d}/rollouts.h5") as file:
            assert len(file["rows_by_update"]) == min(len(of_cycle), 2), "two updates are retained"


@pytest.mark.xdist_group("three")
def test_cmlo_gives_the_same_bytes_again(three: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = three
    ended, _ = run_all(tmp_path, ["test-pendulum"], ["test-cmlo"], steps=120)
    assert ended.code == 0, ended.said
    made = {name: sha for name, sha in tree(tmp_path).items() if "/test-cmlo/" in name}
    assert made == {name: sha for name, sha in tree(folder).items() if "/test-cmlo/" in name}


@pytest.mark.xdist_group("three")
def test_sac_learns_from_real_rows_alone(three: tuple[Path, Path]) -> None:
    folder, _ = three
    run = folder / "data/runs/test-pendulum/test-sac/seed-0"
    kinds = {path.name for path in run.rglob("*") if path.is_file() and path.parent.name == "00002"}
    assert kinds == {
        *("policy.safetensors", "policy.json", "evaluation.h5"),
        *(f"{stage}.{suffix}" for stage in ("collect", "policy", "evaluate") for suffix in ("log", "tsv")),
    }
    history = json.loads((run / "00002/policy.json").read_text())["history"]
    assert all(line["q_model"] is None and line["q_real"] is not None for line in history)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_method_runs_on_every_task(task: str, tmp_path: Path) -> None:
    methods = [tiny_method(tmp_path, method) for method in METHODS]
    ended, experiment = run_all(tmp_path, [tiny_task(tmp_path, task)], methods)
    assert ended.code == 0, ended.said
    check_all(tmp_path, experiment)


# ---- methods are YAMLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_method_adds_to_its_base_only_what_makes_it_one(method: str) -> None:
    keys = set(read_yaml(find("algorithms", method, FOLDERS))) - {"description", "base"}
    allowed = {
        "usbpo": {"phase2"}, "cmlo": {"schedule", "trigger"}, "sac": {"model", "policy"}, "usbpo-shift": {"phase2"},
        "usbpo-bias": {"phase2"}, "usbpo-as-released": {"phase2"}, "usbpo-moving": {"phase2"},
        "usbpo-samples": {"phase2"}, "mbpo-lr1e-4": {"phase1"},
    }  # fmt: skip
    if method != "mbpo":
        assert keys == allowed[method]


def test_the_methods_differ_from_mbpo_in_the_published_ways() -> None:
    runs = {method: load_run("Hopper", method, FOLDERS) for method in METHODS}
    assert runs["usbpo"].phase2 is not None
    assert (runs["usbpo"].phase2.terms, runs["usbpo"].phase2.loss) == ("shift+bias", "as_written")
    assert [runs[f"usbpo-{term}"].phase2.terms for term in ("shift", "bias")] == ["shift", "bias"]  # type: ignore[union-attr]
    assert runs["usbpo-as-released"].phase2.loss == "as_released"  # type: ignore[union-attr]
    moving = [method for method, run in runs.items() if run.phase2 is not None and run.phase2.stand_in == "moving"]
    assert moving == ["usbpo-moving", "usbpo-as-released"]
    assert runs["mbpo"].phase2 is None
    assert runs["mbpo-lr1e-4"].phase1.learning_rate == 1e-4
    assert runs["sac"].model is None
    assert (runs["sac"].policy.updates_per_step, runs["sac"].policy.real_ratio) == (1, 1.0)
    assert [method for method, run in runs.items() if run.triggered] == ["cmlo"]


@pytest.mark.parametrize(
    ("task", "threshold", "every"),
    [
        *(("HalfCheetah", 2.0, 50), ("Hopper", 1.2, 20), ("Walker2d", 3.0, 20), ("Swimmer", 2.0, 50)),
        *(("AntTruncated", 2.0, 50), ("HumanoidTruncated", 2.5, 50)),
    ],
)
def test_cmlo_has_its_published_thresholds_and_check_intervals(task: str, threshold: float, every: int) -> None:
    trigger = load_run(task, "cmlo", FOLDERS).trigger
    assert (trigger.threshold, trigger.check_every) == (threshold, every)
    assert (trigger.min_steps, trigger.max_steps, trigger.states, trigger.dimensions) == (150, 500, 1000, 3)
    assert trigger.reference == "last_training"


def test_thresholds_of_the_posters_figure() -> None:
    found = [load_run("Walker2d", f"cmlo-{value}", FOLDERS).trigger.threshold for value in ("1.0", "3.0", "5.0")]
    assert found == [1.0, 3.0, 5.0]


def test_a_trigger_may_go_with_phase_2() -> None:
    """USB-PO with CMLO's trigger is a YAML of two lines; its models come from phase 2."""
    content = load_run("test-pendulum", "test-usbpo", FOLDERS).model_dump()
    content["schedule"]["model_update"] = "triggered"
    run = Run("t", "m", 0, type(load_run("test-pendulum", "test-usbpo", FOLDERS)).model_validate(content))
    assert run.fine_tunes(2)
    assert run.models(3)[-1].endswith("00003/model.safetensors")
    assert len(run.model_data_before(2)) == 1


# ---- experiments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["main", "thresholds", "ablations", "quick"])
def test_an_experiment_shrinks_by_its_scale_alone(name: str) -> None:
    content = read_yaml(REPO / f"config/experiments/{name}.yaml")
    whole, small = (Plan({**content, "scale": scale}, source=name, folders=FOLDERS) for scale in (1, 0.01))
    assert {(run.task, run.method) for run in small.cycles} == {(run.task, run.method) for run in whole.cycles}
    assert {run.seed for run in small.cycles} == {0}
    for run, cycles in small.cycles.items():
        steps, all_steps = (n * run.schedule.cycle_steps for n in (cycles, whole.cycles[run]))
        unit = lcm(run.schedule.epoch_steps, run.schedule.cycle_steps)
        assert steps % unit == 0
        assert all_steps / 100 <= steps < all_steps / 100 + unit
        assert run.schedule.last_evaluation(cycles) == cycles, "every method is evaluated at the common end"


def test_half_of_three_seeds_are_two() -> None:
    content = read_yaml(REPO / "config/experiments/quick.yaml")
    plan = Plan({**content, "scale": 0.5}, source="quick", folders=FOLDERS)
    assert {run.seed for run in plan.cycles} == {0, 1}
