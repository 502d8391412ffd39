"""usbpo check-task: every shipped task passes, and each planted fault is found and told in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from workflow_tools import REPO

from usbpo import cli
from usbpo.check_task import FAILED, NOT_CHECKED, OK, Finding, check_task
from usbpo.errors import UsbpoError

TASKS = [
    "InvertedPendulum", "InvertedDoublePendulum", "Hopper", "Walker2d", "HalfCheetah", "Swimmer", "AntTruncated",
    "HumanoidTruncated",
]  # fmt: skip
CHECKS = ["keys", "environment", "spaces", "observations", "reward", "termination", "repetition", "restore"]

FAULTY = '''
"""Environments and terminations with faults."""

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv


def released_hopper(o):
    healthy = np.isfinite(o).all(axis=-1) & np.abs(o[:, 1:] < 100).all(axis=-1)
    return ~(healthy & (o[:, 0] > 0.7) & (np.abs(o[:, 1]) < 0.2))


def ends_far_out(o):
    return ~(np.abs(o[:, 0]) < 0.5)


def ends_too_late(o):
    return ~(np.abs(o[:, 0]) < 0.55)


def ends_at_the_middle_of_the_batch(o):
    return ends_far_out(o - o.mean(axis=0)) | ends_far_out(o) if len(o) > 1 else ends_far_out(o)


def low(o):
    return ~(o[:, 0] > -0.15)


class Walk(gymnasium.Env):
    """A point on a line with a velocity; faults by name."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault=""):
        self.fault = fault
        if fault == "discrete actions":
            self.action_space = gymnasium.spaces.Discrete(3)
        if fault == "unbounded actions":
            self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        if fault == "dict observations":
            self.observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-1.0, 1.0, (1,))})
        if fault == "constructor":
            raise RuntimeError("no licence")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v = self.np_random.uniform(-0.1, 0.1), 0.0
        return self.seen(), {}

    def seen(self):
        if self.fault == "dict observations":
            return {"x": np.array([self.x], np.float32)}
        if self.fault == "observation shape":
            return np.array([self.x, self.v])
        return np.array([np.nan if self.fault == "NaN observation" and self.x > 0.3 else self.x])

    def step(self, action):
        push = float(np.ravel(action)[0]) - (self.fault == "discrete actions")
        if self.fault == "unseeded":
            push += np.random.default_rng().normal()
        if self.fault == "step" and self.x > 0.3:
            return {}["missing"]
        self.v = 0.8 * self.v + 0.1 * push
        self.x += self.v
        reward = np.inf if self.fault == "infinite reward" and self.x > 0.3 else -self.x**2
        return self.seen(), reward, bool(abs(self.x) >= 0.5), False, {}

    def get_state(self):
        if self.fault == "forgets velocity":
            return {"x": np.array(self.x)}
        return {"x": np.array(self.x), "v": np.array(self.v)}

    def set_state(self, arrays):
        self.x, self.v = float(arrays["x"]), float(arrays.get("v", 0.0))


class Sinking(HalfCheetahEnv):
    """Ends by the height of the torso as it was one substep before the observation."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, bool(self.data.xpos[1][2] - 0.7 <= -0.15), truncated, info


gymnasium.register("Walk-v0", entry_point=Walk, max_episode_steps=60)
gymnasium.register("Endless-v0", entry_point=Walk)
gymnasium.register("Sinking-v0", entry_point=Sinking, max_episode_steps=100)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the faulty module; one for all tests, for a module is imported only once."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty_tasks.py").write_text(FAULTY)
    return folder


@pytest.fixture
def within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def walk(**environment: Any) -> dict[str, Any]:
    """A task file of the point on a line."""
    fault = environment.pop("fault", "")
    keys = {"id": "faulty_tasks:Walk-v0", "termination": "faulty_tasks:ends_far_out", "arguments": {"fault": fault}}
    schedule = {"random_steps": 60, "epoch_steps": 60, "model_train_freq": 30}
    return {
        "environment": keys | environment,
        "schedule": schedule,
        "policy": {"updates_per_step": 1, "target_entropy": -0.5},
    }


def found(folder: Path, content: dict[str, Any]) -> dict[str, Finding]:
    """The findings on a task file, by check; each is one sentence on one line."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    findings = check_task(str(path))
    for finding in findings:
        assert len(str(finding).splitlines()) == 1
        assert finding.sentence.endswith(".")
    return {finding.check: finding for finding in findings}


def failed(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.verdict == FAILED}


@pytest.mark.parametrize("task", TASKS)
def test_every_shipped_task_passes(task: str) -> None:
    findings = check_task(task)
    assert [finding.check for finding in findings] == CHECKS
    assert [str(finding) for finding in findings if finding.verdict != OK] == []
    ending = next(finding.sentence for finding in findings if finding.check == "termination")
    assert (" 0 of them terminal" in ending) == (task in ("HalfCheetah", "Swimmer"))


# ---- the planted faults ------------------------------------------------------------------------------------------


def test_the_released_termination_of_hopper_is_found(within: Path) -> None:
    findings = found(within, {"base": "Hopper", "environment": {"termination": "faulty_tasks:released_hopper"}})
    assert failed(findings) == {"termination"}
    said = findings["termination"].sentence
    assert "'faulty_tasks:released_hopper' disagrees with the simulator on" in said
    assert "for example with qpos[3] at -110: the function does not, the simulator ends it" in said


def test_ants_termination_on_humanoid_is_found(within: Path) -> None:
    findings = found(within, {"base": "HumanoidTruncated", "environment": {"termination": "ant"}})
    assert failed(findings) == {"termination"}
    assert "the function ends the episode, the simulator does not; mend" in findings["termination"].sentence


def test_an_observation_that_becomes_nan_is_found(within: Path) -> None:
    findings = found(within, walk(fault="NaN observation"))
    assert failed(findings) >= {"observations"}
    assert "entry 0 of the observation is nan after" in findings["observations"].sentence


def test_a_discrete_action_space_is_found_and_everything_else_looked_at_all_the_same(within: Path) -> None:
    findings = found(within, walk(fault="discrete actions"))
    assert list(findings) == CHECKS
    assert failed(findings) == {"spaces"}
    assert "its action space is Discrete, but must be a Box" in findings["spaces"].sentence
    assert findings["reward"].verdict == findings["termination"].verdict == OK
    assert findings["restore"].verdict == NOT_CHECKED
    cartpole = found(within, walk(id="CartPole-v1", termination="never", arguments={}))
    assert "its action space is Discrete" in cartpole["spaces"].sentence
    assert {"spaces", "termination"} <= failed(cartpole)


# ---- other faults ------------------------------------------------------------------------------------------------


def test_the_point_on_a_line_without_a_fault_passes(within: Path) -> None:
    findings = found(within, walk())
    assert [str(finding) for finding in findings.values() if finding.verdict != OK] == []


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("unbounded actions", "spaces", "its actions are not bounded; give its action space finite low and high"),
        ("dict observations", "spaces", "its observation space is Dict, but must be a Box"),
        ("observation shape", "observations", "has shape (2,), but its space has (1,)"),
        ("infinite reward", "reward", "the reward is inf after"),
        ("unseeded", "repetition", "two episodes from the same seed and actions differ"),
        ("forgets velocity", "restore", "differs from the uninterrupted one 1 step later in its observation"),
        ("constructor", "environment", "cannot be made: RuntimeError in faulty_tasks.py, line"),
        ("step", "reward", "the environment fails: KeyError in faulty_tasks.py, line"),
    ],
)
def test_a_fault_of_the_environment_is_found(within: Path, fault: str, check: str, said: str) -> None:
    findings = found(within, walk(fault=fault))
    assert list(findings) == CHECKS
    assert check in failed(findings)
    assert said in findings[check].sentence


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("never", "'never' disagrees with the simulator on"),
        ("faulty_tasks:ends_too_late", "the function does not, the simulator ends it"),
        ("faulty_tasks:ends_at_the_middle_of_the_batch", "judges a state differently in a batch and alone"),
        ("faulty_tasks:nothing", "has no function 'nothing'"),
        ("hopper", "'hopper' fails: IndexError in terminations.py, line"),
    ],
)
def test_a_fault_of_the_termination_is_found(within: Path, name: str, said: str) -> None:
    findings = found(within, walk(termination=name))
    assert failed(findings) == {"termination"}
    assert said in findings["termination"].sentence


def test_a_missing_time_limit_is_found_and_everything_else_looked_at_all_the_same(within: Path) -> None:
    findings = found(within, walk(id="faulty_tasks:Endless-v0"))
    assert failed(findings) == {"environment"}
    assert "add max_episode_steps to environment.arguments" in findings["environment"].sentence
    assert findings["restore"].verdict == OK


def test_an_environment_that_cannot_be_restored_must_be_marked(within: Path) -> None:
    pendulum = {"id": "Pendulum-v1", "termination": "never", "arguments": {}}
    findings = found(within, walk(**pendulum))
    assert failed(findings) == {"restore"}
    assert "set environment.episodes to end_with_cycle" in findings["restore"].sentence
    findings = found(within, walk(**pendulum, episodes="end_with_cycle"))
    assert failed(findings) == set()
    assert "its episodes end with the cycle" in findings["restore"].sentence


def test_a_verdict_that_lags_behind_the_observation_is_no_fault_of_the_termination(within: Path) -> None:
    findings = found(within, walk(id="faulty_tasks:Sinking-v0", termination="faulty_tasks:low", arguments={}))
    assert failed(findings) == set()
    assert "that a step judges by a position that lags behind were judged anew" in findings["termination"].sentence


def test_a_wrong_key_is_told_and_the_environment_is_looked_at_all_the_same(within: Path) -> None:
    content = walk()
    content["policy"]["target_entropi"] = content["policy"].pop("target_entropy")
    findings = found(within, content)
    assert failed(findings) == {"keys"}
    assert list(findings) == CHECKS
    assert "mine.yaml: " in findings["keys"].sentence
    assert list(found(within, walk(termination="hoper"))) == ["keys"]


def test_the_command_prints_a_line_for_each_check_and_tells_by_its_exit_code(
    within: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (within / "good.yaml").write_text(yaml.safe_dump(walk()))
    (within / "bad.yaml").write_text(yaml.safe_dump(walk(fault="infinite reward")))
    before = sorted(path.name for path in within.iterdir())
    assert cli.main(["check-task", "good.yaml"]) == 0
    good = capsys.readouterr().out
    assert [line.split(":")[0] for line in good.splitlines()] == CHECKS
    assert cli.main(["check-task", "good.yaml"]) == 0
    assert capsys.readouterr().out == good, "the random numbers are seeded"
    assert cli.main(["check-task", "bad.yaml"]) == 1
    assert capsys.readouterr().out.count(FAILED) == 1
    assert sorted(path.name for path in within.iterdir()) == before, "it leaves nothing behind"
    assert cli.main(["check-task", "Nowhere"]) == 1
    assert "unknown task 'Nowhere'" in capsys.readouterr().err
    assert cli.main(["check-task", "none.yaml"]) == 1
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_a_file_may_lie_anywhere_and_inherit_from_a_shipped_task(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("base: InvertedPendulum\nenvironment: {arguments: {max_episode_steps: 50}}\n")
    assert {finding.verdict for finding in check_task(str(path))} == {OK}
    path.write_text("base: [1]\n")
    with pytest.raises(UsbpoError, match="base must be a name"):
        check_task(str(path))


def test_the_names_of_shipped_tasks_are_those_tested_here() -> None:
    shipped = {path.stem for path in (REPO / "config/tasks").glob("*.yaml")}
    assert shipped == {*TASKS, "test-pendulum"}
