"""Bad input ends in one clear sentence, and nothing is lost: by hand, and through Snakemake."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from helpers.artifacts import edited, of_cycle, reheaded, with_value
from helpers.stage_commands import OF_USBPO, command_of, replaced
from helpers.workflow import (
    EXPERIMENT,
    MBPO,
    Ended,
    copied,
    finished_workspace,
    snakemake,
    tree,
    truncate,
)

from usbpo.artifacts import metrics
from usbpo.artifacts.header import Header
from usbpo.commands import cli, stage_verbs
from usbpo.experiment.yaml_files import read_yaml

OF_MBPO = f"data/runs/{MBPO}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


# ---- stages by hand ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished runs, and in the folder `bad` files that do not fit or are damaged."""
    folder = copied(finished, tmp_path_factory.mktemp("bench") / "bench")
    (folder / "out").mkdir()
    bad = folder / "bad"
    bad.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        hopper = [*("--task", "Hopper"), *("--environment", "Hopper-v5"), *("--steps", "30"), *("--cycle", "0")]
        seed_1 = replaced(replaced(command_of("collect"), "--policy"), "--previous")
        seed_1 = replaced(replaced(seed_1, "--seed", "1"), "--cycle", "0")
        phase1 = replaced(replaced(command_of("phase1"), "--previous-model"), "--metrics", "out/m.json")
        initialise = command_of("initialise")

        def first(words: list[str], data: str, output: str) -> list[str]:
            """A stage of cycle 0 on other data."""
            words = replaced(replaced(words, "--data", data), "--output", output)
            return replaced(words, "--cycle", "0") if "--cycle" in words else words

        for words in [
            ["collect", "--output", "bad/hopper.h5", "--seed", "0", *hopper],
            first(initialise, "bad/hopper.h5", "bad/hopper-policy.safetensors"),
            first(phase1, "bad/hopper.h5", "bad/hopper-model.safetensors"),
            replaced(seed_1, "--output", "bad/seed-1.h5"),
            first(initialise, "bad/seed-1.h5", "bad/seed-1-policy.safetensors"),
            replaced(first(phase1, "bad/seed-1.h5", "bad/seed-1-model.safetensors"), "--seed", "1"),
            first([*initialise, "--hidden-size", "24"], FIRST, "bad/wide-policy.safetensors"),
            first([*phase1, "--hidden-size", "24"], FIRST, "bad/wide-model.safetensors"),
        ]:
            assert cli.main(words) == 0, words
        for wide in ("policy", "model"):
            of_cycle(bad / f"wide-{wide}.safetensors", 1)
            for name, changes in (("late", {"cycle": 2}), ("mbpo", {"method": "test-mbpo"})):
                copy = shutil.copy(bad / f"wide-{wide}.safetensors", bad / f"{name}-wide-{wide}.safetensors")
                reheaded(copy, **changes)
        state = {"estimate": 0.1, "error_sum": 0.2, "steps": 10, "reference_volume": 0.3}
        header = Header("trigger", "test-pendulum", 0, 1, method="test-usbpo")
        metrics.write(bad / "trigger.json", header, {"checks": [], "state": state}, "")
    shutil.rmtree(folder / "out")
    for name, source in {
        "cut.h5": "data/00001.h5",
        "cut-rollouts.h5": "00001/rollouts.h5",
        "cut-model.safetensors": "00001/model-mle.safetensors",
        "cut-policy.safetensors": "00001/policy.safetensors",
    }.items():
        truncate(Path(shutil.copy(folder / OF_USBPO / source, bad / name)))
    for name, source, array, value in (
        ("nan.h5", "data/00001.h5", "rewards", float("nan")),
        ("inf.h5", "data/00001.h5", "next_observations", float("inf")),
        ("nan-rollouts.h5", "00001/rollouts.h5", "actions", float("nan")),
    ):
        with_value(Path(shutil.copy(folder / OF_USBPO / source, bad / name)), array, 3, value)
    flip_a_bit(Path(shutil.copy(folder / OF_USBPO / "data/00001.h5", bad / "flipped.h5")))
    shard = folder / OF_USBPO / "data/00001.h5"
    edited(Path(shutil.copy(shard, bad / "header.h5")), b', "header": {', b', "heeder": {')
    edited(Path(shutil.copy(shard, bad / "newer.h5")), b'"schema_version": 2, "seed"', b'"schema_version": 9, "seed"')
    with h5py.File(bad / "foreign.h5", "w") as file:
        file["numbers"] = np.arange(3)
    (bad / "text.safetensors").write_text("no checkpoint at all")
    (bad / "empty.h5").touch()
    return folder


def flip_a_bit(path: Path) -> None:
    """Damage one byte of the stored observations, as a bad disk does."""
    with h5py.File(path) as file:
        place = file["observations"].id.get_offset() + 7
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DELETE, RIGHT_FILE, ONE_RUN = "; delete it and run again", "; name the right file", "; give files of one run"
CUT = f"cut short or damaged.*{DELETE}"
NO_FILE = "there is no such file; run the stage that makes it, or name another"
NOT_SAFETENSORS = f"this is a .h5 file where a .safetensors file is expected{RIGHT_FILE}"
NOT_HDF5 = f"this is a .safetensors file where a .h5 file is expected{RIGHT_FILE}"
OF_HOPPER = f"its task is Hopper, but test-pendulum is asked for{ONE_RUN}"
OF_SEED_1 = f"its seed is 1, but 0 is asked for{ONE_RUN}"
TOO_WIDE = "hidden_size is 24, but 16 is expected; give the checkpoint of this task and network width"
NAN = f"holds NaN or infinity in row 3{DELETE}"
FIRST, SHARD, ROLLOUTS, EVALUATION, POLICY, MODEL = (
    *(
        f"{OF_USBPO}/data/00000.h5",
        f"{OF_USBPO}/data/00001.h5",
        f"{OF_USBPO}/00001/rollouts.h5",
        f"{OF_USBPO}/00001/evaluation.h5",
    ),
    *(f"{OF_USBPO}/00001/policy.safetensors", f"{OF_USBPO}/00001/model-mle.safetensors"),
)
# For each stage and option: the values given instead, and what the sentence says after the last of them, or in all.
WRONG: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("collect", "--policy"): [
        ("none.safetensors", NO_FILE),
        ("", "cycle 2 goes on from what stands before it, but none is given; add --policy FILE"),
        ("bad/cut-policy.safetensors", CUT),
        ("bad/text.safetensors", CUT),
        ("bad/hopper-policy.safetensors", OF_HOPPER),
        ("bad/seed-1-policy.safetensors", OF_SEED_1),
        (MODEL, f"its kind is model, but policy is expected{RIGHT_FILE}"),
        (SHARD, NOT_SAFETENSORS),
    ],
    ("collect", "--previous"): [
        ("bad/cut.h5", CUT),
        ("bad/hopper.h5", OF_HOPPER),
        (ROLLOUTS, f"its kind is rollouts, but transitions is expected{RIGHT_FILE}"),
        (EVALUATION, f"its kind is evaluation, but transitions is expected{RIGHT_FILE}"),
        (POLICY, NOT_HDF5),
    ],
    ("collect", "--environment"): [
        ("Hoper-v5", "environment 'Hoper-v5' cannot be made: .*Hopper.*; mend its id or arguments"),
        (
            "Hopper-v5",
            "takes 4 observations and gives 1 actions, but Hopper-v5 has 11 and 3; give a policy of this task",
        ),
        ("CartPole-v1", "environment 'CartPole-v1': its action space is Discrete, but must be a Box"),
        ("Pendulum-v1", "cannot be restored in mid-episode, .*; .* environment.episodes to end_with_cycle"),
    ],
    ("collect", "--environment-arguments"): [
        ('{"gravity":3}', "environment 'InvertedPendulum-v5' cannot be made: .*gravity.*; mend its id or arguments"),
        ("{gravity", "--environment-arguments is not JSON .*; write an object"),
        ("[1]", "--environment-arguments must be a JSON object, but is .*; write an object"),
    ],
    ("collect", "--output"): [
        ("/proc/nowhere/shard.h5", "the folder /proc/nowhere cannot be written .*; choose another output"),
        ("bad/empty.h5/shard.h5", "the folder bad/empty.h5 cannot be written .*; choose another output"),
    ],
    ("phase1", "--data"): [
        ("bad/cut.h5", CUT),
        ("bad/empty.h5", CUT),
        ("bad/flipped.h5", CUT),
        ("bad/header.h5", f"its header is damaged{DELETE}"),
        ("bad/newer.h5", "written with schema 9, but this version reads schema 2; "),
        ("bad/foreign.h5", CUT),
        ("bad/nan.h5", f"rewards {NAN}"),
        ("bad/inf.h5", f"next_observations {NAN}"),
        (f"{FIRST} bad/hopper.h5", f"00000.h5: its task is test-pendulum, but .*hopper.h5.* Hopper{ONE_RUN}"),
        (f"{FIRST} bad/seed-1.h5", f"00000.h5: its seed is 0, but .*seed-1.h5.* 1{ONE_RUN}"),
        (MODEL, NOT_HDF5),
    ],
    ("triggered", "--previous-trigger"): [
        ("none.json", NO_FILE),
        (SHARD, "this is a .h5 file where a .json file is expected; name the right file"),
        (f"{OF_USBPO}/00002/phase1.json", "its cycle is 2, but 1 is asked for; give files of one run"),
        (f"{OF_USBPO}/00001/phase1.json", "it holds no state of a trigger; delete it and run again"),
    ],
    ("triggered", "--previous-model"): [("bad/hopper-model.safetensors", OF_HOPPER), (ROLLOUTS, NOT_SAFETENSORS)],
    ("triggered", "--previous-policy"): [
        ("bad/seed-1-policy.safetensors", OF_SEED_1),
        ("bad/wide-policy.safetensors", TOO_WIDE),
    ],
    ("triggered", "--previous-shard"): [("bad/seed-1.h5", OF_SEED_1), ("none.h5", NO_FILE)],
    ("triggered", "--rollouts"): [("bad/cut-model.safetensors", NOT_HDF5)],
    ("triggered", "--lengths"): [("1 1", "must have one value for each 10 of the 30 steps; add or drop some")],
    ("triggered", "--phase1"): [
        ("{", "--phase1 is no JSON; give the section as the configuration has it"),
        ('{"batchsize":3}', "unknown key '--phase1.batchsize'; see config/README.md for the keys, or remove it"),
    ],
    ("triggered", "--phase2"): [
        ('{"loss":"as_released"}', "as_released has a stand-in that moves along; set stand_in: moving beside it"),
        (
            '{"stand_in":"still"}',
            "'--phase2.stand_in' must be 'fixed', 'moving' or 'samples', but is 'still'; mend the value",
        ),
    ],
    ("triggered", "--trigger"): [
        (
            '{"check_every":10,"min_steps":90,"max_steps":90,"states":40}',
            "no training fell into this cycle; give as many --steps as trigger.max_steps at least",
        ),
    ],
    ("phase1", "--previous-model"): [
        ("bad/cut-model.safetensors", CUT),
        ("bad/hopper-model.safetensors", OF_HOPPER),
        ("bad/wide-model.safetensors", TOO_WIDE),
        (ROLLOUTS, NOT_SAFETENSORS),
        (POLICY, f"its kind is policy, but model is expected{RIGHT_FILE}"),
    ],
    ("phase1", "--holdout-ratio"): [("0.001", "120 real rows are too few to hold out .*; collect more random steps")],
    ("phase1", "--learning-rate"): [
        ("-1", "'--learning-rate' must be greater than 0, but is -1.0; mend the value"),
        ("1e30", "cycle 2: phase 1 diverged: .*; lower phase1.learning_rate"),
    ],
    ("phase1", "--metrics"): [
        ("/proc/nowhere/m.json", "the folder /proc/nowhere cannot be written .*; choose another")
    ],
    ("phase2", "--model-mle"): [
        (
            "bad/late-wide-model.safetensors",
            "hidden_size is 16, but 24 is expected; give the checkpoint of this task and",
        ),
    ],
    ("phase2", "--previous-model"): [("bad/seed-1-model.safetensors", OF_SEED_1)],
    ("phase2", "--rollouts"): [
        ("bad/cut-rollouts.h5", CUT),
        (POLICY, NOT_HDF5),
        (SHARD, f"its kind is transitions, but rollouts is expected{RIGHT_FILE}"),
    ],
    ("phase2", "--loss"): [
        ("as_told", "'--loss' must be 'as_written' or 'as_released', but is 'as_told'; mend the value"),
        ("as_released", "loss: as_released has a stand-in that moves along; set stand_in: moving beside it"),
    ],
    ("phase2", "--stand-in"): [
        ("still", "'--stand-in' must be 'fixed', 'moving' or 'samples', but is 'still'; mend the value")
    ],
    ("phase2", "--learning-rate"): [("1e30", "cycle 2: phase 2 diverged, .*; lower phase2.learning_rate")],
    ("rollout", "--model"): [("bad/hopper-model.safetensors", OF_HOPPER), (ROLLOUTS, NOT_SAFETENSORS)],
    ("rollout", "--policy"): [("bad/seed-1-policy.safetensors", OF_SEED_1)],
    ("rollout", "--termination"): [("hoper", "unknown termination 'hoper'; known are .*hopper")],
    ("policy", "--previous-policy"): [("bad/wide-policy.safetensors", TOO_WIDE), ("none.safetensors", NO_FILE)],
    ("policy", "--rollouts"): [("bad/nan-rollouts.h5", f"actions {NAN}")],
    ("policy", "--learning-rate"): [("1e30", "cycle 2: the policy update diverged: .*; lower policy.learning_rate")],
    ("evaluate", "--policy"): [
        ("none.safetensors", NO_FILE),
        ("bad/hopper-policy.safetensors", OF_HOPPER),
        (f"{OF_USBPO}/00002/model.safetensors", f"its kind is model, but policy is expected{RIGHT_FILE}"),
    ],
    ("evaluate", "--environment"): [
        (
            "Hopper-v5",
            "takes 4 observations and gives 1 actions, but Hopper-v5 has 11 and 3; give a policy of this task",
        ),
    ],
    ("theory", "--policy"): [("bad/late-wide-policy.safetensors", TOO_WIDE), ("none.safetensors", NO_FILE)],
    ("theory", "--previous-model"): [("bad/hopper-model.safetensors", OF_HOPPER)],
    ("theory", "--model-mle"): [(f"{OF_USBPO}/00002/policy.safetensors", "its kind is policy, but model is expected")],
    ("theory", "--rollouts"): [("bad/nan-rollouts.h5", f"actions {NAN}")],
    ("theory", "--termination"): [("hoper", "unknown termination 'hoper'; known are .*hopper")],
    ("theory", "--environment"): [
        (
            "Hopper-v5",
            "its model has 4 observations and 1 actions, but Hopper-v5 has 11 and 3; give files of this task",
        ),
    ],
    ("theory", "--rows"): [("2", "'--rows' must be greater than or equal to 3")],
    ("initialise", "--data"): [("bad/nan.h5", f"rewards {NAN}")],
    ("block", "--parts"): [
        (
            f"{OF_USBPO}/data/00000.h5 {OF_USBPO}/data/00002.h5",
            "it begins with cycle 2, but 1 is expected; ",
        ),
        (f"{FIRST} bad/seed-1.h5", f"00000.h5: its seed is 0, but .*seed-1.h5 has 1{ONE_RUN}"),
    ],
}


def cycles(of: str, name: str, *numbers: int) -> str:
    """Files of some cycles of a run."""
    return " ".join(f"{of}/{name.format(f'{number:05d}')}" for number in numbers)


SHARDS, POLICIES, MODELS, MADE = "data/{}.h5", "{}/policy.safetensors", "{}/model-mle.safetensors", "{}/rollouts.h5"
OF_ANOTHER = f"its method is test-mbpo, but test-usbpo is asked for{ONE_RUN}"


def another_cycle(option: str, found: int, asked: int) -> str:
    return f"it is of cycle {found}, but {option} must be of cycle {asked} where cycle 2 is made; give the files that"


D_ENV = [
    (cycles(OF_USBPO, SHARDS, 0, 1), "D_env ends with cycle 1, but must hold cycles 0 to 2; give all files"),
    (cycles(OF_USBPO, SHARDS, 0, 2), "00002.h5: it holds cycle 2 of D_env, but cycle 1 is to follow; give all files"),
    (cycles(OF_USBPO, SHARDS, 0, 1, 1), "00001.h5: it holds cycle 1 of D_env, but cycle 2 is to follow"),
    (cycles(OF_USBPO, SHARDS, 1, 0, 2), "00001.h5: it holds cycle 1 of D_env, but cycle 0 is to follow"),
    (cycles(OF_USBPO, SHARDS, 0, 1, 2, 3), "00003.h5: it holds cycle 3 of D_env, but D_env ends with cycle 2"),
    (f"{cycles(OF_USBPO, SHARDS, 0, 1)} {cycles(OF_MBPO, SHARDS, 2)}", f"its method is test-usbpo, but .*{ONE_RUN}"),
]
"""D_env of cycle 2 as no stage may take it"""

# Files of the run's own kind and task, but of another cycle or method, given twice, left out, in another order.
ASTRAY: dict[tuple[str, str], list[tuple[str, str]]] = {
    **{(stage, "--data"): D_ENV for stage in ("phase1", "phase2", "rollout", "policy", "theory")},
    ("initialise", "--data"): [(cycles(OF_USBPO, SHARDS, 1), "it holds cycle 1 of D_env, but cycle 0 is to follow")],
    ("collect", "--policy"): [
        (cycles(OF_USBPO, POLICIES, 2), another_cycle("--policy", 2, 1)),
        (cycles(OF_USBPO, POLICIES, 0), another_cycle("--policy", 0, 1)),
        (cycles(OF_MBPO, POLICIES, 1), OF_ANOTHER),
    ],
    ("collect", "--previous"): [
        ("", "cycle 2 goes on from what stands before it, but none is given; add --previous FILE"),
        (cycles(OF_USBPO, SHARDS, 0), another_cycle("--previous", 0, 1)),
        (cycles(OF_USBPO, SHARDS, 2), another_cycle("--previous", 2, 1)),
        (cycles(OF_MBPO, SHARDS, 1), OF_ANOTHER),
    ],
    ("phase1", "--previous-model"): [
        ("", "cycle 2 goes on from what stands before it, but none is given; add --previous-model FILE"),
        (cycles(OF_USBPO, MODELS, 2), another_cycle("--previous-model", 2, 1)),
        (cycles(OF_USBPO, MODELS, 3), another_cycle("--previous-model", 3, 1)),
        (cycles(OF_MBPO, MODELS, 1), OF_ANOTHER),
    ],
    ("phase2", "--previous-model"): [
        (cycles(OF_USBPO, MODELS, 2), another_cycle("--previous-model", 2, 1)),
        (cycles(OF_MBPO, MODELS, 1), OF_ANOTHER),
    ],
    ("phase2", "--model-mle"): [
        (cycles(OF_USBPO, MODELS, 1), another_cycle("--model-mle", 1, 2)),
        (cycles(OF_MBPO, MODELS, 2), OF_ANOTHER),
    ],
    ("phase2", "--rollouts"): [
        (cycles(OF_USBPO, MADE, 2), "D_model of cycle 2 is the rollouts of cycle 1, but those of cycle 2 are given"),
        (cycles(OF_USBPO, MADE, 1, 1), "of cycle 1, but those of cycles 1, 1 are given; give these files, each once"),
        (cycles(OF_MBPO, MADE, 1), OF_ANOTHER),
    ],
    ("rollout", "--model"): [
        (cycles(OF_USBPO, MODELS, 1), another_cycle("--model", 1, 2)),
        (cycles(OF_MBPO, MODELS, 2), OF_ANOTHER),
    ],
    ("rollout", "--policy"): [
        (cycles(OF_USBPO, POLICIES, 2), another_cycle("--policy", 2, 1)),
        (cycles(OF_MBPO, POLICIES, 1), OF_ANOTHER),
    ],
    ("policy", "--previous-policy"): [
        (cycles(OF_USBPO, POLICIES, 2), another_cycle("--previous-policy", 2, 1)),
        (cycles(OF_MBPO, POLICIES, 1), OF_ANOTHER),
    ],
    ("policy", "--rollouts"): [
        ("", "cycle 2 of test-pendulum needs D_model, the rollouts of cycles 1, 2, but none are given; add --rollouts"),
        (cycles(OF_USBPO, MADE, 2), "is the rollouts of cycles 1, 2, but those of cycle 2 are given"),
        (cycles(OF_USBPO, MADE, 2, 1), "is the rollouts of cycles 1, 2, but those of cycles 2, 1 are given"),
        (cycles(OF_USBPO, MADE, 1, 3), "is the rollouts of cycles 1, 2, but those of cycles 1, 3 are given"),
        (f"{cycles(OF_USBPO, MADE, 1)} {cycles(OF_MBPO, MADE, 2)}", f"its method is test-usbpo, but .*{ONE_RUN}"),
    ],
    ("evaluate", "--policy"): [
        (cycles(OF_USBPO, POLICIES, 1), another_cycle("--policy", 1, 2)),
        (cycles(OF_MBPO, POLICIES, 2), OF_ANOTHER),
    ],
    ("theory", "--model-mle"): [(cycles(OF_USBPO, MODELS, 1), another_cycle("--model-mle", 1, 2))],
    ("theory", "--model"): [(cycles(OF_USBPO, "{}/model.safetensors", 3), another_cycle("--model", 3, 2))],
    ("theory", "--previous-model"): [
        ("", "cycle 2 goes on from what stands before it, but none is given; add --previous-model FILE"),
        (cycles(OF_USBPO, MODELS, 2), another_cycle("--previous-model", 2, 1)),
        (cycles(OF_MBPO, MODELS, 1), OF_ANOTHER),
    ],
    ("theory", "--previous-policy"): [(cycles(OF_USBPO, POLICIES, 2), another_cycle("--previous-policy", 2, 1))],
    ("theory", "--policy"): [(cycles(OF_USBPO, POLICIES, 1), another_cycle("--policy", 1, 2))],
    ("theory", "--rollouts"): [
        ("", "cycle 2 of test-pendulum needs D_model, the rollouts of cycle 1, but none are given; add --rollouts"),
        (cycles(OF_USBPO, MADE, 2), "D_model of cycle 2 is the rollouts of cycle 1, but those of cycle 2 are given"),
    ],
    ("triggered", "--data"): [
        (cycles(OF_USBPO, SHARDS, 0), "D_env ends with cycle 0, but must hold cycles 0 to 1; give all files"),
        (cycles(OF_USBPO, SHARDS, 0, 1, 2), "00002.h5: it holds cycle 2 of D_env, but D_env ends with cycle 1"),
    ],
    ("triggered", "--previous-shard"): [(cycles(OF_USBPO, SHARDS, 0), another_cycle("--previous-shard", 0, 1))],
    ("triggered", "--previous-policy"): [
        (cycles(OF_USBPO, POLICIES, 0), another_cycle("--previous-policy", 0, 1)),
        (cycles(OF_MBPO, POLICIES, 1), OF_ANOTHER),
    ],
    ("triggered", "--previous-model"): [
        ("", "cycle 2 goes on from what stands before it, but none is given; add --previous-model FILE"),
        (cycles(OF_USBPO, MODELS, 2), another_cycle("--previous-model", 2, 1)),
    ],
    ("triggered", "--previous-trigger"): [
        ("", "cycle 2 goes on from what stands before it, but none is given; add --previous-trigger FILE"),
        (cycles(OF_MBPO, "{}/phase1.json", 1), OF_ANOTHER),
    ],
    ("triggered", "--rollouts"): [
        ("", "cycle 2 of test-pendulum needs D_model, the rollouts of cycle 1, but none are given; add --rollouts"),
        (cycles(OF_USBPO, MADE, 2), "D_model of cycle 2 is the rollouts of cycle 1, but those of cycle 2 are given"),
    ],
}
CASES = [(*call, values, said) for table in (WRONG, ASTRAY) for call, cases in table.items() for values, said in cases]


@pytest.mark.parametrize("stage", stage_verbs.SECTIONS)
def test_the_calls_that_are_broken_below_are_sound(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(bench)
    words = [word.replace("out/", f"{tmp_path}/") if word.startswith("out/") else word for word in command_of(stage)]
    assert cli.main(words) == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"}
    stored = {
        "shard.h5": "data/00002.h5",
        "rollouts.h5": "00002/rollouts.h5",
        "evaluation.h5": "00002/evaluation.h5",
        "theory.h5": "00002/theory.h5",
    }
    for name in set(made) & set(stored):
        assert made[name] == (bench / OF_USBPO / stored[name]).read_bytes(), "by hand as in the workflow"


@pytest.mark.parametrize(("stage", "option", "values", "said"), CASES, ids=[" ".join(case[:3]) for case in CASES])
def test_a_stage_by_hand_refuses_bad_input_in_one_sentence(
    bench: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    stage: str,
    option: str,
    values: str,
    said: str,
) -> None:
    monkeypatch.chdir(bench)
    out = bench / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = command_of(stage)
    for name in {word for word in words if word.startswith("out/")}:
        (bench / name).write_text("an older artifact")
    before = tree(bench)
    assert cli.main(replaced(words, option, *values.split())) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"usbpo {stage}: ")
    assert len(error.splitlines()) == 1, error
    assert error.endswith(".\n")
    assert re.search(said, error), error
    if "/" in values.partition(" ")[0] and option not in ("--output", "--metrics", "--model-mle"):
        assert any(path in error for path in values.split()), "the file at fault is named"
    assert tree(bench) == before
    if option != "--metrics":
        assert {path.read_text() for path in out.iterdir()} == {"an older artifact"}, "what was there is kept"


BAD_FILES = [
    ("bad/cut.h5", "cut short or damaged"),
    ("bad/cut-model.safetensors", "cut short or damaged"),
    ("bad/foreign.h5", "not written by this version of usbpo"),
    ("bad/header.h5", "header is damaged"),
    ("bad/newer.h5", "written with schema 9"),
    ("none.h5", "there is no such file"),
    ("bad", "there is no such file"),
]


@pytest.mark.parametrize(("path", "said"), BAD_FILES)
def test_inspect_refuses_what_is_no_artifact_in_one_sentence(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], path: str, said: str
) -> None:
    monkeypatch.chdir(bench)
    assert cli.main(["inspect", path]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"usbpo inspect: {path}: ")
    assert said in error
    assert re.fullmatch(r"[^\n]*; [^\n]*\.\n", error), "what to do is said too"


# ---- the configuration, through Snakemake ------------------------------------------------------------------------


def refused(ended: Ended) -> str:
    """The one sentence with which our part of the workflow ended Snakemake."""
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    sentences = [line for line in ended.said.splitlines() if line.startswith("usbpo: ")]
    assert len(sentences) == 1, ended.said
    others = [line for line in ended.said.splitlines() if line.strip() and line not in sentences]
    assert all(line.startswith("Using workflow specific profile") for line in others), ended.said
    assert sentences[0].endswith(".")
    return sentences[0]


def experiment(**changes: Any) -> Callable[[Path], None]:
    """An experiment with other keys; None takes a key away."""

    def write(folder: Path) -> None:
        content = read_yaml(EXPERIMENT) | changes
        kept = {name: value for name, value in content.items() if value is not None}
        (folder / "experiment.yaml").write_text(yaml.safe_dump(kept))

    return write


def task(content: str) -> Callable[[Path], None]:
    """An experiment on a task of the user's own."""

    def write(folder: Path) -> None:
        experiment(tasks=["mine"])(folder)
        (folder / "config/tasks").mkdir(parents=True)
        (folder / "config/tasks/mine.yaml").write_text(content)

    return write


def method(content: str) -> Callable[[Path], None]:
    """An experiment with a method of the user's own."""

    def write(folder: Path) -> None:
        experiment(methods=["mine"])(folder)
        (folder / "config/algorithms").mkdir(parents=True)
        (folder / "config/algorithms/mine.yaml").write_text(content)

    return write


CONFIGURATIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown task": (
        experiment(tasks=["Hoper"]),
        "unknown task 'Hoper': there is no config/tasks/Hoper.yaml; .*Hopper",
    ),
    "unknown method": (
        experiment(methods=["usbp"]),
        "unknown method 'usbp': there is no config/algorithms/usbp.yaml; .*usbpo",
    ),
    "unknown key of an experiment": (experiment(seed=1), "experiment.yaml: unknown key 'seed'; see config/README.md"),
    "unknown key of a task": (
        task("base: test-pendulum\nschedule: {step: 7}\n"),
        "mine.yaml: unknown key 'schedule.step'; see",
    ),
    "unknown key of a method": (
        method("base: test-mbpo\npolicy: {gamma: 1}\n"),
        "mine.yaml: unknown key 'policy.gamma'; see",
    ),
    "wrong type": (
        method("base: test-mbpo\nevaluate: {episodes: few}\n"),
        "mine.yaml: 'evaluate.episodes' must be .*integer, but is 'few'",
    ),
    "negative steps": (experiment(steps=-30), "'steps' must be greater than or equal to 1, but is -30"),
    "no whole number of cycles": (
        experiment(steps=100),
        "experiment.yaml: steps \\(100\\) must be a multiple of the 30 steps .*; take 90",
    ),
    "a cycle that does not divide the epoch": (
        task("base: test-pendulum\nschedule: {cycle_steps: 25}\n"),
        "mine.yaml: schedule: cycle_steps \\(25\\) must divide epoch_steps \\(60\\)",
    ),
    "no seeds": (experiment(seeds=[]), "experiment.yaml: 'seeds' needs at least 1 entry, but has 0; add more"),
    "seeds not said": (experiment(seeds=None), "experiment.yaml: the key 'seeds' is missing; add it"),
    "a seed twice": (experiment(seeds=[3, 0, 3]), "experiment.yaml: seeds names something twice"),
    "a return that is no number": (
        experiment(returns={"test-pendulum": [950, "many"]}),
        "experiment.yaml: 'returns.test-pendulum.1' must be a valid number, but is 'many'; mend the value",
    ),
    "returns of a task that does not exist": (
        experiment(returns={"Hoper": [1000]}),
        "experiment.yaml: returns: unknown task 'Hoper': there is no config/tasks/Hoper.yaml; known are .*Hopper",
    ),
    "broken YAML": (
        task("base: test-pendulum\nschedule: {cycle_steps: 7\n"),
        "mine.yaml, line 3: this is not valid YAML: .*; mend the line",
    ),
}


@pytest.mark.parametrize("change", CONFIGURATIONS)
def test_the_workflow_refuses_a_bad_configuration_in_one_sentence(finished: Path, tmp_path: Path, change: str) -> None:
    workspace = copied(finished, tmp_path / "workspace")
    before = tree(workspace)
    spoil, said = CONFIGURATIONS[change]
    spoil(workspace)
    assert re.search(said, sentence := refused(snakemake(workspace, experiment=workspace / "experiment.yaml"))), (
        sentence
    )
    assert tree(workspace) == before


@pytest.mark.parametrize("name", ["data", "data/runs", "data/results"])
def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    said = refused(snakemake(tmp_path))
    assert said.startswith(f"usbpo: {name}: the output folder cannot be written (")
    assert path.read_text() == "mine"


# ---- damaged artifacts in a run's folder, through Snakemake ------------------------------------------------------

Spoil = Callable[[Path], None]


def put(name: str) -> Callable[[Path, Path], None]:
    """Replace an artifact by a file of the bench."""

    def spoil(path: Path, bench: Path) -> None:
        shutil.copyfile(bench / name, path)

    return spoil


def cut(path: Path, bench: Path) -> None:
    truncate(path)


def flip(path: Path, bench: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def nan(path: Path, bench: Path) -> None:
    with_value(path, "rewards", 3, float("nan"))


# Of a pair, the first spoils the run of USB-PO, and the second that of MBPO.
PAIRS: dict[str, tuple[tuple[str, Any, str], tuple[str, Any, str]]] = {
    "a truncated shard and a policy of another width": (
        ("data/00001.h5", cut, "data/00001.h5: .* cut short or damaged"),
        (
            "00001/policy.safetensors",
            put("bad/mbpo-wide-policy.safetensors"),
            "00001/policy.safetensors: .* hidden_size is 24, but 16",
        ),
    ),
    "a policy of another task and rollouts for a model": (
        (
            "00001/policy.safetensors",
            put("bad/hopper-policy.safetensors"),
            "00001/policy.safetensors: its task is Hopper",
        ),
        (
            "00002/model-mle.safetensors",
            put(f"{OF_MBPO}/00002/rollouts.h5"),
            "model-mle.safetensors: this is a .h5 file where",
        ),
    ),
    "NaN in a shard and in rollouts": (
        ("data/00002.h5", nan, "data/00002.h5: rewards holds NaN or infinity in row 3"),
        ("00002/rollouts.h5", nan, "00002/rollouts.h5: rewards holds NaN or infinity in row 3"),
    ),
    "a bit flipped in a policy and in a model": (
        ("00002/policy.safetensors", flip, "00002/policy.safetensors: .* cut short or damaged, or was changed"),
        ("00002/model-mle.safetensors", flip, "00002/model-mle.safetensors: .* cut short or damaged, or was changed"),
    ),
    "a truncated checkpoint and a model of another width": (
        ("00002/policy.safetensors", cut, "00002/policy.safetensors: .* cut short or damaged"),
        (
            "00001/model-mle.safetensors",
            put("bad/mbpo-wide-model.safetensors"),
            "model-mle.safetensors: .* hidden_size is 24, but 16",
        ),
    ),
}


OUTPUTS = {
    "collect": ("data/{}.h5",),
    "phase1": ("{}/model-mle.safetensors", "{}/phase1.json"),
    "phase2": ("{}/model.safetensors", "{}/phase2.json"),
    "rollout": ("{}/rollouts.h5", "{}/rollout.json"),
    "policy": ("{}/policy.safetensors", "{}/policy.json"),
    "evaluate": ("{}/evaluation.h5",),
    "theory": ("{}/theory.h5", "{}/theory.json"),
}


def outputs_of_failed_jobs(said: str) -> set[str]:
    """What Snakemake took away before the jobs that failed, as it does before any job."""
    failed = re.findall(r"(\S+/seed-\d+) failed in (\w+) of cycle (\d+)", said)
    assert len(failed) > 1
    return {f"data/runs/{run}/{name.format(f'{int(n):05d}')}" for run, stage, n in failed for name in OUTPUTS[stage]}


@pytest.mark.parametrize("pair", [*list(PAIRS)[:4], pytest.param(list(PAIRS)[4], marks=pytest.mark.slow)])
def test_a_spoilt_artifact_stops_its_run_with_a_sentence_and_is_made_anew_once_deleted(
    finished: Path, bench: Path, tmp_path: Path, pair: str
) -> None:
    workspace = copied(finished, tmp_path / "workspace")
    before = tree(workspace)
    spoilt = [workspace / of / name for of, (name, _, _) in zip((OF_USBPO, OF_MBPO), PAIRS[pair], strict=True)]
    for path, (_, spoil, _) in zip(spoilt, PAIRS[pair], strict=True):
        spoil(path, bench)
    ended = snakemake(workspace)
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    for _, _, said in PAIRS[pair]:
        assert re.search(rf"^ +usbpo \w+: .*{said}.*; .*\.$", ended.said, flags=re.MULTILINE), ended.said
    assert set(before) - set(tree(workspace)) <= outputs_of_failed_jobs(ended.said), "the rest is kept"
    for path in spoilt:
        path.unlink()
    again = snakemake(workspace)
    assert again.code == 0, again.said
    assert tree(workspace) == before
