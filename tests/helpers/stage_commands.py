"""The command lines by which the DAG calls the stages in cycle 2 of the test experiment, to be tried by hand."""

import shlex

from helpers.workflow import FOLDERS, USBPO
from usbpo.experiment.loading import load_run
from usbpo.experiment.run import Run

OF_USBPO = f"data/runs/{USBPO}"
STAGES = (
    *("block", "initialise", "collect", "triggered", "phase1", "phase2", "rollout", "policy", "evaluate", "theory"),
)


def command_of(stage: str) -> list[str]:
    """What the DAG calls in cycle 2 of the run of USB-PO; everything is written to the folder `out`."""
    run = Run("test-pendulum", "test-usbpo", 0, load_run("test-pendulum", "test-usbpo", FOLDERS))
    triggered = Run("test-pendulum", "test-cmlo", 0, load_run("test-pendulum", "test-cmlo", FOLDERS))
    told = {
        "block": [],
        "initialise": [run.options.initialise()],
        "collect": [run.options.collect(2), "--task test-pendulum --method test-usbpo"],
        "triggered": [triggered.options.triggered(2), "--task test-pendulum --method test-usbpo"],
        "phase1": [run.options.phase1()],
        "phase2": [run.options.phase2()],
        "rollout": [run.options.rollout(2)],
        "policy": [run.options.policy()],
        "evaluate": [run.options.evaluate(2), "--task test-pendulum --method test-usbpo"],
        "theory": [run.options.theory()],
    }
    data = " ".join(run.real_data(2))
    files = {
        "block": f"--parts {data} --output out/block.h5",
        "initialise": f"--data {run.real_data(0)[0]} --output out/policy.safetensors",
        "collect": f"--policy {run.previous_policy(2)[0]} --previous {run.previous_shard(2)[0]} --output out/shard.h5",
        "triggered": f"--data {' '.join(run.real_data(1))} --previous-shard {run.previous_shard(2)[0]} "
        f"--previous-policy {run.previous_policy(2)[0]} --previous-model {run.models(1)[0]} "
        f"--previous-trigger bad/trigger.json --rollouts {run.model_data(1)[0]} "
        "--output out/checked.h5 --folder bad/cycle",
        "phase1": f"--data {data} --previous-model {run.models(1)[0]} "
        "--output out/model.safetensors --metrics out/m.json",
        "phase2": f"--data {data} --rollouts {run.model_data_before(2)[0]} --previous-model {run.models(1)[0]} "
        f"--model-mle {OF_USBPO}/00002/model-mle.safetensors --output out/model.safetensors --metrics out/m.json",
        "rollout": f"--data {data} --model {run.models(2)[0]} --policy {run.previous_policy(2)[0]} "
        "--output out/rollouts.h5 --metrics out/m.json",
        "policy": f"--data {data} --rollouts {' '.join(run.model_data(2))} "
        f"--previous-policy {run.previous_policy(2)[0]} --output out/policy.safetensors --metrics out/m.json",
        "evaluate": f"--policy {OF_USBPO}/00002/policy.safetensors --output out/evaluation.h5",
        "theory": f"--data {data} --rollouts {run.model_data_before(2)[0]} --previous-model {run.models(1)[0]} "
        f"--model-mle {OF_USBPO}/00002/model-mle.safetensors --model {OF_USBPO}/00002/model.safetensors "
        f"--previous-policy {run.previous_policy(2)[0]} --policy {OF_USBPO}/00002/policy.safetensors "
        "--output out/theory.h5 --metrics out/m.json",
    }
    identity = [] if stage in ("block", "initialise") else ["--seed 0 --cycle 2"]
    return [stage, *shlex.split(" ".join([files[stage], *told[stage], *identity]))]


def replaced(words: list[str], option: str, *values: str) -> list[str]:
    """A command line with other values for one option, which is added if it is not there."""
    if option not in words:
        return [*words, option, *values]
    start = words.index(option) + 1
    end = next((n for n in range(start, len(words)) if words[n].startswith("--")), len(words))
    return [*words[:start], *values, *words[end:]]
