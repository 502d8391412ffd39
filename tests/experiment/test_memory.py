"""The memory of jobs: it follows from the sizes of networks and data, and is what the rules reserve."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.workflow import FOLDERS, copied_project, dry_run, finished_workspace
from hypothesis import given
from hypothesis import strategies as st

from usbpo.agent import sac
from usbpo.experiment import memory
from usbpo.experiment.loading import load_run
from usbpo.experiment.run import Run
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.sizes import Sizes
from usbpo.model import ensemble

STAGES = ("block", "collect", "evaluate", "initialise", "phase1", "phase2", "policy", "rollout", "theory", "triggered")


def run_of(task: str, method: str = "usbpo") -> Run:
    return Run(task, method, 0, load_run(task, method, FOLDERS))


def sizes_of(task: str, obs_dim: int, act_dim: int) -> Sizes:
    run = run_of(task)
    return Sizes(run.config, run.schedule, obs_dim, act_dim)


def test_networks_have_as_many_numbers_as_their_tensors() -> None:
    sizes = sizes_of("HumanoidTruncated", 45, 17)
    agent = sac.Architecture(45, 17, 2, 256).shapes()
    model = ensemble.Architecture(45, 17, members=7, elites=5, hidden_layers=4, hidden_size=400).shapes()
    assert sizes.actor == sum(torch.Size(shape).numel() for shape in agent["actor"].values())
    assert sizes.critics == sum(torch.Size(shape).numel() for shape in agent["critics"].values())
    assert sizes.ensemble == sum(torch.Size(shape).numel() for shape in model.values())


@pytest.mark.parametrize(("task", "d_model"), [("AntTruncated", 2620), ("HumanoidTruncated", 5525)])
@pytest.mark.parametrize("stage", ["phase2", "policy", "theory"])
def test_a_stage_that_reads_d_model_has_room_for_it(stage: str, task: str, d_model: int) -> None:
    """Once rollouts are 25 steps long; in the first cycles the same job is a small one."""
    run = run_of(task)
    assert run.megabytes(stage, 1200) > 400 + d_model
    # The policy has it a second time while it packs its replay.
    assert run.megabytes(stage, 1200) < 400 + (2.6 if stage == "policy" else 2) * d_model
    assert run.megabytes(stage, 2) < 1400


@given(st.sampled_from(STAGES), st.integers(1, 1500))
def test_a_later_cycle_never_takes_less(stage: str, cycle: int) -> None:
    sizes = sizes_of("AntTruncated", 27, 8)
    assert memory.megabytes(sizes, stage, cycle) <= memory.megabytes(sizes, stage, cycle + 1)
    assert memory.megabytes(sizes, stage, cycle) % 100 == 0


def test_methods_without_a_model_or_with_a_trigger_have_the_memory_of_their_jobs() -> None:
    for method in ("sac", "cmlo"):
        run = run_of("AntTruncated", method)
        assert all(run.megabytes(stage, cycle) > 0 for cycle in (0, 1, 400) for stage in run.jobs(cycle))
    assert run_of("AntTruncated", "sac").megabytes("policy", 1200) < 1000


def test_the_peaks_of_real_stages_stay_below(tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace = finished_workspace(tmp_path_factory)
    run = run_of("test-pendulum", "test-usbpo")
    seen = set()
    for log in (workspace / f"data/runs/{run.name}/logs").glob("0*/*.log"):
        found = re.search(r"at most (\d+) MiB", log.read_text(encoding="utf-8"))
        assert found, log
        assert int(found[1]) * 1.048576 <= run.megabytes(log.stem, int(log.parent.name)), log
        seen.add(log.stem)
    assert seen == set(STAGES) - {"block", "triggered"}


def test_where_the_environment_cannot_be_made_the_memory_is_a_guess() -> None:
    content = load_run("test-pendulum", "test-mbpo", FOLDERS).model_dump()
    content["environment"]["id"] = "Nowhere-v0"
    assert Run("t", "m", 0, RunConfig.model_validate(content)).megabytes("policy", 1) == memory.UNKNOWN


def test_snakemake_need_not_load_torch_to_know_it() -> None:
    code = (
        "import sys; from usbpo.experiment.layers import FOLDERS; from usbpo.experiment.loading import load_run\n"
        "from usbpo.experiment.run import Run\n"
        "assert Run('Hopper', 'usbpo', 0, load_run('Hopper', 'usbpo', FOLDERS)).megabytes('policy', 9) > 400\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_rules_reserve_it(tmp_path: Path) -> None:
    project, variables = copied_project(tmp_path / "project")
    for rules in (project / "workflow/rules").glob("*.smk"):  # with a message, a dry run does not print the resources
        rules.write_text(re.sub(r"    message:\n.*\n", "", rules.read_text()))
    experiment = tmp_path / "e.yaml"
    experiment.write_text("{experiment: e, tasks: [AntTruncated], methods: [usbpo], seeds: [0], steps: 7000}")
    folder = tmp_path / "run"
    folder.mkdir()
    said = dry_run(folder, project=project, experiment=experiment, **variables)
    run, reserved = run_of("AntTruncated"), {}
    for rule, rest in re.findall(r"^rule (\w+):\n((?:    .*\n)+)", said, flags=re.MULTILINE):
        found = re.search(r"cycle=(\d+)\n(?:.*\n)*?.*mem_mb=(\d+)", rest)
        if found:
            reserved[rule, int(found[1])] = int(found[2])
    assert len(reserved) > 28 * 5
    assert reserved == {(stage, cycle): run.megabytes(stage, cycle) for stage, cycle in reserved}
    assert {stage for stage, _ in reserved} == set(STAGES) - {"block", "initialise", "triggered"}
