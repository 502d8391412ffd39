"""Which files follow from which: the arithmetic of a run, and what Snakemake makes of it."""

import hashlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.workflow import FOLDERS, MBPO, RESULTS, USBPO, Job, dry_run, jobs, jobs_in, planned, snakemake

from usbpo.artifacts import fingerprint
from usbpo.artifacts.files import write_json
from usbpo.artifacts.layout import BLOCK, SHARD
from usbpo.artifacts.pulled import STATE_FILE
from usbpo.errors import UsbpoError
from usbpo.experiment.checks import check_writable
from usbpo.experiment.loading import load_run
from usbpo.experiment.options import as_options
from usbpo.experiment.plan import Plan, ranges
from usbpo.experiment.run import Run
from usbpo.experiment.run_config import RunConfig
from usbpo.report.published import DATA

WITH_DATA = ("phase1", "phase2", "rollout", "policy", "theory")
"""The stages that are given all of D_env."""


def run_of(method: str = "test-usbpo", **schedule: Any) -> Run:
    """A run of the test task, with other lengths where given."""
    config = load_run("test-pendulum", method, FOLDERS)
    if schedule:
        content = config.model_dump()
        content["schedule"] |= schedule
        config = RunConfig.model_validate(content)
    return Run("test-pendulum", method, 0, config)


def plan_of(**changes: Any) -> Plan:
    """A plan of the test experiment with other keys."""
    content: Mapping[str, Any] = {
        "experiment": "e",
        "tasks": ["test-pendulum"],
        "methods": ["test-usbpo", "test-mbpo"],
        "seeds": [0],
        "steps": 90,
        "artifacts": {"keep": "all"},
    }
    return Plan({**content, **changes}, source="e.yaml", folders=FOLDERS)


# ---- a run -------------------------------------------------------------------------------------------------------


def test_real_data_names_blocks_before_shards() -> None:
    run = run_of()
    assert run.real_data(9) == [run.path(BLOCK, 7), run.path(SHARD, 8), run.path(SHARD, 9)]
    assert run.real_data(7) == [run.path(BLOCK, 7)]
    assert run.real_data(0) == [run.path(SHARD, 0)]
    assert run.parts_of_block(15) == [run.path(SHARD, cycle) for cycle in range(8, 16)]
    assert run.parts_of_block(64) == [run.path(BLOCK, number) for number in range(7, 64, 8)]
    with pytest.raises(UsbpoError, match="has no block 9; ask for one that it has"):
        run.parts_of_block(9)


def test_the_first_model_has_neither_predecessor_nor_phase_2() -> None:
    run = run_of()
    assert run.previous_models(1) == []
    assert not run.fine_tunes(1)
    assert run.fine_tunes(2)
    assert run.models(1)[0].endswith("00001/model-mle.safetensors")
    assert run.models(2)[0].endswith("00002/model.safetensors")
    assert run.previous_models(3) == run.models(2)
    assert run_of("test-mbpo").models(2)[0].endswith("00002/model-mle.safetensors")


def test_a_method_without_phase_2_says_so_when_it_is_asked_for() -> None:
    with pytest.raises(
        UsbpoError, match=r"the method test-mbpo has no phase 2; ask for model-mle\.safetensors instead\."
    ):
        run_of("test-mbpo").options.phase2()


def test_a_cycle_without_a_model_update_goes_on_with_the_last_model_and_its_rollouts() -> None:
    run = run_of(cycle_steps=10)  # the model is trained every third cycle
    assert [cycle for cycle in range(9) if run.schedule.has_model_stages(cycle)] == [1, 4, 7]
    assert run.models(6) == run.models(4)
    assert run.previous_models(7) == run.models(4)
    # One epoch of 60 steps has two model updates, so D_model is the rollouts of the last two.
    assert [Path(path).parent.name for path in run.model_data(6)] == ["00001", "00004"]
    assert [Path(path).parent.name for path in run.model_data(7)] == ["00004", "00007"]
    assert [Path(path).parent.name for path in run.model_data_before(7)] == ["00001", "00004"]
    assert not [path for path in run.artifacts(5) if "model" in path or "rollout" in path or "phase" in path]


def test_the_policy_of_a_cycle_collects_the_next() -> None:
    run = run_of()
    assert run.previous_policy(0) == run.previous_shard(0) == []
    assert run.previous_policy(3) == [f"data/runs/{USBPO}/00002/policy.safetensors"]
    assert run.previous_shard(3) == [f"data/runs/{USBPO}/data/00002.h5"]


def test_cycle_0_takes_the_random_steps_and_the_others_the_steps_of_a_cycle() -> None:
    run = run_of(cycle_steps=10)
    assert run.options.collect(0).endswith("--steps 60")
    assert run.options.collect(1).endswith("--steps 10")
    assert run.options.evaluate(0).endswith("--on-policy-steps 0")
    assert run.options.evaluate(7).endswith("--on-policy-steps 70")


def test_imported_data_are_a_file_of_cycle_0_alone(tmp_path: Path) -> None:
    file = tmp_path / "imported.h5"
    run = run_of(initial_data=str(file))
    assert [run.initial_data(cycle) for cycle in (0, 1)] == [[str(file)], []]
    assert run.initial_data_checksum(1) == run_of().initial_data_checksum(0) == ""
    file.write_text("rows")
    assert run.initial_data_checksum(0) == hashlib.sha256(b"rows").hexdigest()


def test_files_that_an_environment_reads_count_in_the_stages_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_of().config
    environment = config.environment.model_copy(update={"arguments": {"xml_file": "./my.xml"}})
    run = Run("t", "m", 0, config.model_copy(update={"environment": environment}))
    stages = ("collect", "initialise", "phase1", "phase2", "rollout", "policy", "evaluate", "theory", "triggered")
    said = []
    for gravity in (9.81, 1.62):
        (tmp_path / f"{gravity}").mkdir()
        monkeypatch.chdir(tmp_path / f"{gravity}")
        Path("my.xml").write_text(f'<mujoco><option gravity="0 0 -{gravity}"/></mujoco>')
        said.append({stage: run.params(stage, 2) for stage in stages})
    changed = {stage for stage in stages if said[0][stage] != said[1][stage]}
    assert changed == {"collect", "evaluate", "theory", "triggered"}
    assert run_of().environment_files() == ""


def test_updates_of_a_cycle_are_its_steps_times_g() -> None:
    config = load_run("Hopper", "mbpo", FOLDERS)
    assert "--updates 5000" in Run("Hopper", "mbpo", 0, config).options.policy()


def test_rollouts_grow_with_the_epoch() -> None:
    run = Run("Hopper", "mbpo", 0, load_run("Hopper", "mbpo", FOLDERS))  # four cycles of 250 steps an epoch
    lengths = [int(run.options.rollout(cycle).split("--length ")[1]) for cycle in (1, 80, 339, 340, 599, 600, 2000)]
    # floor(1 + (epoch - 20) / 130 * 14) at epochs 0, 20, 84, 85, 149, 150, 500
    assert lengths == [1, 1, 7, 8, 14, 15, 15]


@pytest.mark.parametrize(
    ("task", "cycle", "phase2", "policy", "length"),
    [  # phase 2 has the rollouts of the cycles before, the policy also those just made; length as in the schedule
        # Hopper: an epoch is 1,000 / 250 = 4 cycles, R = 1. Cycle 340 has seen 85,000 steps, epoch 85:
        # length 1 + 65 / 130 * 14 = 8.
        ("Hopper", 2, [1], [1, 2], 1),
        ("Hopper", 340, [336, 337, 338, 339], [337, 338, 339, 340], 8),
        # Ant: the same 4 cycles. Cycle 399 has seen 99,750 steps, epoch 99: floor(1 + 79 / 80 * 24) = 24; cycle 400
        # has seen 100,000, epoch 100: 1 + 80 / 80 * 24 = 25.
        ("AntTruncated", 399, [395, 396, 397, 398], [396, 397, 398, 399], 24),
        ("AntTruncated", 400, [396, 397, 398, 399], [397, 398, 399, 400], 25),
        # Humanoid: an epoch is 1,000 / 1,000 = 1 cycle, R = 5. Cycle 160, epoch 160: 1 + 140 / 280 * 24 = 13.
        ("HumanoidTruncated", 4, [1, 2, 3], [1, 2, 3, 4], 1),
        ("HumanoidTruncated", 160, [155, 156, 157, 158, 159], [156, 157, 158, 159, 160], 13),
    ],
)
def test_model_data_of_a_task_are_the_files_of_its_retained_epochs(
    task: str, cycle: int, phase2: list[int], policy: list[int], length: int
) -> None:
    run = Run(task, "usbpo", 0, load_run(task, "usbpo", FOLDERS))
    assert run.model_data_before(cycle) == [f"data/runs/{task}/usbpo/seed-0/{n:05d}/rollouts.h5" for n in phase2]
    assert run.model_data(cycle) == [f"data/runs/{task}/usbpo/seed-0/{n:05d}/rollouts.h5" for n in policy]
    assert run.options.rollout(cycle).endswith(f"--length {length}")
    updates = 5 if task == "HumanoidTruncated" else 4
    assert f"--retained-updates {updates}" in run.options.policy()
    assert f"--retained-updates {updates}" in run.options.phase2()


def theory_depth(run: Run) -> int:
    """What the stage `theory` is told of the steps over which it measures the error."""
    words = shlex.split(run.options.theory())
    return int(words[words.index("--depth") + 1])


@pytest.mark.parametrize(
    ("task", "depth"),
    [  # the longest rollout of the task's schedule: 1→15 in Hopper, 1→25 in Ant and Humanoid; else 1, so the least, 10
        *(("Hopper", 15), ("AntTruncated", 25), ("HumanoidTruncated", 25)),
        *(("Walker2d", 10), ("HalfCheetah", 10), ("Swimmer", 10)),
        *(("InvertedPendulum", 10), ("InvertedDoublePendulum", 10)),
    ],
)
@pytest.mark.parametrize("method", ["usbpo", "cmlo"])
def test_the_error_is_measured_as_deep_as_the_task_rolls_out(task: str, method: str, depth: int) -> None:
    assert theory_depth(Run(task, method, 0, load_run(task, method, FOLDERS))) == depth


@pytest.mark.parametrize("depth", [3, 40])
def test_a_depth_that_is_asked_for_is_the_one_measured(depth: int) -> None:
    content = load_run("AntTruncated", "usbpo", FOLDERS).model_dump()
    content["theory"]["depth"] = depth
    assert theory_depth(Run("AntTruncated", "usbpo", 0, RunConfig.model_validate(content))) == depth


def test_options_survive_the_shell() -> None:
    config = load_run("HumanoidTruncated", "usbpo", FOLDERS)
    run = Run("HumanoidTruncated", "usbpo", 0, config)
    words = shlex.split(run.options.collect(1))
    assert words[:2] == ["--environment", "Humanoid-v5"]
    assert '"contact_cost_weight": 0' in words[3]
    assert '"include_cvel_in_observation": false' in words[3]
    assert shlex.split(run.options.phase2())[:2] == ["--learning-rate", "0.0001"]


def test_a_null_key_is_no_option() -> None:
    config = load_run("InvertedPendulum", "mbpo", FOLDERS)
    assert config.phase1.max_epochs is None
    assert "--max-epochs" not in as_options(config.phase1)
    assert "--max-epochs 3" in run_of().options.phase1()


# ---- an experiment -----------------------------------------------------------------------------------------------


def test_artifacts_come_in_ascending_order_of_cycle() -> None:
    paths = plan_of(steps=900).artifacts()
    cycles = [int(Path(p).stem if "/data/0" in p else Path(p).parent.name) for p in paths if "blocks" not in p]
    assert cycles == sorted(cycles)
    assert len(set(paths)) == len(paths)


def test_blocks_are_artifacts_of_the_cycle_that_completes_them() -> None:
    blocks = [path for path in plan_of(steps=65 * 30, methods=["test-mbpo"]).artifacts() if "/blocks/" in path]
    assert blocks == [f"data/runs/{MBPO}/data/blocks/{n:05d}.h5" for n in (*range(7, 64, 8), 64)]
    assert not [path for path in plan_of(steps=6 * 30).artifacts() if "/blocks/" in path]


def test_a_longer_run_keeps_every_artifact_and_every_option_of_a_shorter_one() -> None:
    short, long = plan_of(steps=90), plan_of(steps=3000)
    assert set(short.artifacts()) < set(long.artifacts())
    (first, _), (other, _) = short.cycles, long.cycles
    assert first.options.policy() == other.options.policy()
    assert [first.options.rollout(c) for c in range(4)] == [other.options.rollout(c) for c in range(4)]


def test_steps_may_differ_by_task() -> None:
    plan = plan_of(tasks=["test-pendulum", "Hopper"], methods=["test-mbpo"], steps={"test-pendulum": 90, "Hopper": 500})
    assert {run.task: cycles for run, cycles in plan.cycles.items()} == {"test-pendulum": 3, "Hopper": 2}
    assert plan.targets()["Hopper/test-mbpo/seed-0"] == {"cycles": 2, "cycle_steps": 250, "evaluated": 2}


def test_the_results_are_told_each_run_with_its_length() -> None:
    assert plan_of().result_params()["runs"] == [
        f"{USBPO}:cycles=3:cycle_steps=30:model_every=1:evaluate_every=30:phase2=yes:triggered=no:theory=yes",
        f"{MBPO}:cycles=3:cycle_steps=30:model_every=1:evaluate_every=30:phase2=no:triggered=no:theory=yes",
    ]


def test_results_are_drawn_again_with_other_published_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of().result_params()  # the code's own fingerprint is known from now on
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)
    with pytest.raises(UsbpoError, match=r"published_curves\.csv: the file is missing"):
        plan_of().result_params()
    copy = tmp_path / "report/published_curves.csv"
    copy.parent.mkdir()
    copy.write_bytes(DATA.read_bytes())
    assert plan_of().result_params() == before
    copy.write_bytes(DATA.read_bytes() + b"Hopper,sac,RajGhugare19/alm scores,9,0,1\n")
    after = plan_of().result_params()
    assert {name for name in before if after[name] != before[name]} == {"published"}


def test_the_results_are_told_the_returns_of_the_experiments_own_tasks() -> None:
    named = {"Hopper": [1000, 3000], "test-pendulum": [950, -2.5], "Walker2d": [4000]}
    assert plan_of(returns=named).result_params()["returns"] == ["test-pendulum=950,-2.5"]
    both = plan_of(tasks=["test-pendulum", "Hopper"], methods=["test-mbpo"], steps=1500, returns=named)
    assert both.result_params()["returns"] == ["test-pendulum=950,-2.5", "Hopper=1000,3000"]
    assert plan_of().result_params()["returns"] == []


def test_returns_of_a_task_that_does_not_exist_are_refused() -> None:
    with pytest.raises(UsbpoError, match=r"^e\.yaml: returns: unknown task 'Hoper': .*; known are .*Hopper.*\.$"):
        plan_of(returns={"Hoper": [1000]})


def test_an_experiment_can_be_cut_down_to_some_of_its_runs() -> None:
    names = ["test-pendulum/test-usbpo/seed-1", "test-pendulum/test-mbpo/seed-0"]
    whole, part = plan_of(seeds=[0, 1]), plan_of(seeds=[0, 1], only=names)
    assert len(whole.cycles) == 4
    assert sorted(run.name for run in part.cycles) == sorted(names)
    assert set(part.artifacts()) == {path for path in whole.artifacts() if any(name in path for name in names)}


def test_only_runs_of_the_experiment_can_be_named() -> None:
    with pytest.raises(
        UsbpoError, match=r"^e\.yaml: only: test-pendulum/sac/seed-0 is no run of the experiment; .*\.$"
    ):
        plan_of(only=["test-pendulum/sac/seed-0"])


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("in_the_way", ["data", "data/runs", "data/results"])
def test_a_file_in_the_place_of_an_output_folder_is_named(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UsbpoError, match=rf"{in_the_way}: the output folder cannot be written \("):
        check_writable(tmp_path)
    assert path.read_text() == "mine"


# ---- the DAG -----------------------------------------------------------------------------------------------------


def test_a_long_run_gathers_shards_into_blocks(tmp_path: Path) -> None:
    said = dry_run(tmp_path, "--printshellcmds", "--config", "steps=1800")
    wanted = jobs_in(said)
    assert {job for job in wanted if job.rule == "block"} == jobs("block", range(7, 61, 8))
    assert {job.number for job in wanted if job.rule == "policy"} == set(range(1, 61))
    commands = re.findall(r"^Shell command: (usbpo .*)$", said, flags=re.MULTILINE)
    with_data = [words for words in map(shlex.split, commands) if words[1] in WITH_DATA]
    assert len(with_data) == 2 * 60 * 4 + 59
    for words in with_data:
        cycle = int(words[words.index("--cycle") + 1])
        data = words[words.index("--data") + 1 :]
        data = data[: next(i for i, word in enumerate(data) if word.startswith("--"))]
        task, method, seed = Path(data[0]).parts[2:5]
        assert data == Run(task, method, int(seed[5:]), run_of(method).config).real_data(cycle)
        assert len(data) <= 15


@pytest.mark.slow
def test_a_chain_of_1200_cycles_does_not_exhaust_the_recursion(tmp_path: Path) -> None:
    wanted = jobs_in(dry_run(tmp_path, "--config", "steps=36000", "methods=[test-mbpo]"))
    assert Job("policy", MBPO, 1200) in wanted
    assert len([job for job in wanted if job.rule == "block"]) == 150 + 18 + 2


def test_lists_and_mappings_of_numbers_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    """Snakemake leaves their numbers as text."""
    part = ("--config", "seeds=[3, 4]", "methods=[test-mbpo]", "steps={test-pendulum: 30}")
    wanted = planned(tmp_path, *part)
    assert {job.run for job in wanted - RESULTS} == {"test-pendulum/test-mbpo/seed-3", "test-pendulum/test-mbpo/seed-4"}
    assert max(job.number for job in wanted) == 1
    said = dry_run(tmp_path, "--printshellcmds", "--config", "returns={test-pendulum: [950, -2.5], Hopper: [1e3]}")
    assert " --returns test-pendulum=950,-2.5 --output " in said
    wrong = snakemake(tmp_path, "--dry-run", "--config", "seeds=[first]")
    assert wrong.code != 0
    assert "'seeds.0' must be a valid integer, but is 'first'" in wrong.said


@pytest.mark.parametrize(
    ("cycles", "words"),
    [
        ([4], "cycle 4 is"),
        ([0, 1, 2], "cycles 0 to 2 are"),
        ([0, 1, 5, 7, 8], "cycles 0 to 1, 5 and 7 to 8 are"),
        ([3, 5], "cycles 3 and 5 are"),
    ],
)
def test_cycles_are_said_as_ranges(cycles: list[int], words: str) -> None:
    assert ranges(cycles) == words


def test_cycles_that_were_not_pulled_are_no_targets(tmp_path: Path) -> None:
    plan = plan_of()
    run = next(iter(plan.cycles))
    everything = plan.artifacts(tmp_path)
    write_json(tmp_path / STATE_FILE, {run.folder: {"sha256": "", "cycles": [0, 1, 2, 3], "left": [0, 1]}})
    (tmp_path / run.folder / "00001").mkdir(parents=True)
    assert plan.left_behind(tmp_path) == {run: [0]}, "cycle 1 has come since"
    assert set(everything) - set(plan.artifacts(tmp_path)) == {
        path for path in everything if path.startswith(f"{run.folder}/00000/")
    }
    (said,) = plan.left_out(tmp_path)
    assert said.startswith(f"{run.name}: cycle 0 is published and not pulled")
