"""Which GPU a stage takes: locks of real processes, and what torch says of the GPUs."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.workflow import copied_project, dry_run, set_key

from usbpo.numerics import device, gpus

STAGE = """
import sys
from pathlib import Path
from usbpo.numerics import gpus
print(gpus.claim(sys.argv[2:], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class Stage:
    """A process that has taken a GPU and keeps it until it is told to end."""

    def __init__(self, folder: Path, *names: str) -> None:
        command = [sys.executable, "-c", STAGE, str(folder), *names]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.gpu = int(self.process.stdout.readline())

    def end(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate()


Start = Callable[..., Stage]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stages:

        def start(*names: str) -> Stage:
            started = Stage(tmp_path, *names)
            stages.callback(started.end)
            return started

        yield start


def test_two_stages_take_two_gpus_and_a_third_shares_one(stage: Start) -> None:
    assert [stage("a", "b").gpu for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("kill", [False, True])
def test_a_gpu_is_free_again_when_its_stage_has_ended_however(stage: Start, kill: bool) -> None:
    first, second = stage("a", "b"), stage("a", "b")
    second.end(kill)
    assert (first.gpu, stage("a", "b").gpu) == (0, 1)


def test_a_gpu_is_the_same_under_any_number_that_cuda_gives_it(stage: Start) -> None:
    assert stage("b").gpu == 0  # alone in CUDA_VISIBLE_DEVICES
    assert stage("b", "a").gpu == 1


def test_a_process_that_the_stage_starts_does_not_keep_its_gpu(tmp_path: Path) -> None:
    leaves_one = (
        "import subprocess, sys; from pathlib import Path; from usbpo.numerics import gpus; "
        "gpus.claim(['a', 'b'], Path(sys.argv[1])); "
        "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    left = subprocess.run([sys.executable, "-c", leaves_one, str(tmp_path)], capture_output=True, text=True, check=True)
    try:
        after = Stage(tmp_path, "a", "b")
        after.end()
        assert after.gpu == 0
    finally:
        os.kill(int(left.stdout), signal.SIGKILL)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """What torch reports where there are two GPUs; the list of numbers that were made the current one."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    gpus.taken.cache_clear()
    yield current
    gpus.taken.cache_clear()
    while gpus._held:
        os.close(gpus._held.pop())


def test_a_stage_computes_on_the_gpu_that_is_free_and_stays_there(
    two_gpus: list[int], stage: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage("GPU-0", "GPU-1").gpu == 0
    assert [device.choose("auto"), device.choose("cuda")] == [torch.device("cuda:1")] * 2
    assert two_gpus == [1]


def test_where_no_lock_can_be_had_it_is_the_current_one(
    two_gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    assert device.choose("auto") == torch.device("cuda:0")
    assert two_gpus == []


def test_jobs_with_networks_take_a_gpu_unless_their_run_is_on_the_cpu(tmp_path: Path) -> None:
    project, variables = copied_project(tmp_path / "project")
    for rules in (project / "workflow/rules").glob("*.smk"):  # with a message, a dry run does not print the resources
        rules.write_text(re.sub(r"    message:\n.*\n", "", rules.read_text()))
    set_key(project, "algorithms/test-mbpo", "device", "cpu")  # the base of test-usbpo
    set_key(project, "algorithms/test-usbpo", "device", "auto")
    folder = tmp_path / "run"
    folder.mkdir()
    taken: dict[tuple[str, str], set[str]] = {}
    for rule, job in re.findall(
        r"^rule (\w+):\n((?:    .*\n)+)", dry_run(folder, project=project, **variables), flags=re.MULTILINE
    ):
        for method in re.findall(r"method=([\w-]+)", job):
            taken.setdefault((rule, method), set()).update(re.findall(r"gpu=(\d)", job) or ["none"])
    stages = ("phase1", "rollout", "policy")
    with_networks = {(rule, "test-usbpo"): {"1"} for rule in (*stages, "phase2")}
    on_the_cpu = {(rule, "test-mbpo"): {"0"} for rule in stages}
    others = {(rule, m): {"none"} for rule in ("collect", "evaluate", "theory") for m in ("test-usbpo", "test-mbpo")}
    assert {key: taken.get(key) for key in with_networks} == with_networks
    assert {key: taken.get(key) for key in on_the_cpu} == on_the_cpu
    assert {key: taken.get(key) for key in others} == others


def test_on_the_cpu_no_gpu_is_taken(two_gpus: list[int], tmp_path: Path) -> None:
    assert device.choose("cpu") == torch.device("cpu")
    assert list(tmp_path.iterdir()) == []
