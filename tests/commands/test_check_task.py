"""usbpo check-task: every shipped task passes, and each planted fault is found and told in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.workflow import REPO

from usbpo.commands import check_task as check_task_module
from usbpo.commands import cli
from usbpo.commands.check_task import FAILED, NOT_CHECKED, OK, Finding, check_task
from usbpo.errors import UsbpoError
from usbpo.experiment.sections import EnvironmentKeys

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


def hopper(o, height=0.7, speed=100):
    healthy = (np.abs(o[:, 1:]) < speed).all(axis=1) & (o[:, 0] > height) & (np.abs(o[:, 1]) < 0.2)
    return ~healthy


def hopper_a_little_lower(o):
    return hopper(o, height=0.699)


def hopper_a_little_slower(o):
    return hopper(o, speed=99.9)


def walker_a_little_higher(o):
    return ~((o[:, 0] > 0.8) & (o[:, 0] < 2.001) & (np.abs(o[:, 1]) < 1.0))


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
        self.buffer = np.zeros(1)
        if fault == "small box":
            self.action_space = gymnasium.spaces.Box(-0.4, 0.4, (1,), np.float32)
        if fault == "discrete actions":
            self.action_space = gymnasium.spaces.Discrete(3)
        if fault == "integer actions":
            self.action_space = gymnasium.spaces.Box(0, 3, (1,), np.int64)
        if fault == "unbounded actions":
            self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        if fault == "dict observations":
            self.observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-1.0, 1.0, (1,))})
        if fault == "constructor":
            raise RuntimeError("no licence")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.fault == "own generator" and seed is not None:
            self.generator = np.random.default_rng(seed)
        generator = self.generator if self.fault == "own generator" else self.np_random
        self.x, self.v = generator.uniform(-0.1, 0.1), 0.0
        return self.seen(), {}

    def seen(self):
        if self.fault == "dict observations":
            return {"x": np.array([self.x], np.float32)}
        if self.fault == "observation shape":
            return np.array([self.x, self.v])
        if self.fault == "own buffer":
            self.buffer[0] = self.x
            return self.buffer
        return np.array([np.nan if self.fault == "NaN observation" and self.x > 0.3 else self.x])

    def step(self, action):
        if self.fault == "small box":
            assert self.action_space.contains(action), action
        push = float(np.ravel(action)[0]) - (self.fault == "discrete actions")
        if self.fault == "unseeded":
            push += np.random.default_rng().normal()
        if self.fault == "step" and self.x > 0.3:
            return {}["missing"]
        self.v = 0.8 * self.v + 0.1 * push
        self.x += self.v
        if self.fault == "changes its action":
            action += np.float32(5)
        reward = np.inf if self.fault == "infinite reward" and self.x > 0.3 else -self.x**2
        reward = 1e39 if self.fault == "huge reward" and self.x > 0.3 else reward
        return self.seen(), reward, bool(abs(self.x) >= 0.5 and self.fault != "own generator"), False, {}

    def get_state(self):
        if self.fault == "forgets velocity":
            return {"x": np.array(self.x)}
        if self.fault == "rounds when stored":
            self.x = round(self.x, 2)
        return {"x": np.array(self.x), "v": np.array(self.v)}

    def set_state(self, arrays):
        self.x, self.v = float(arrays["x"]), float(arrays.get("v", 0.0))


class Sinking(HalfCheetahEnv):
    """Ends by the height of the torso as it was one substep before the observation."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, bool(self.data.xpos[1][2] - 0.7 <= -0.15), truncated, info


class Tiring(HalfCheetahEnv):
    """Its reward falls with the number of steps, which is no part of MuJoCo's state."""

    taken = 0

    def step(self, action):
        self.taken += 1
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward - 0.1 * self.taken, terminated, truncated, info


gymnasium.register("Tiring-v0", entry_point=Tiring, max_episode_steps=100)
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
    assert "for example with qpos[3] at -110: the simulator ends the episode and the function does not" in said


def test_ants_termination_on_humanoid_is_found(within: Path) -> None:
    findings = found(within, {"base": "HumanoidTruncated", "environment": {"termination": "ant"}})
    assert failed(findings) == {"termination"}
    assert "the function ends the episode and the simulator does not; mend" in findings["termination"].sentence


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


@pytest.mark.parametrize("habit", ["own buffer", "changes its action", "small box"])
def test_what_an_environment_may_do_is_no_fault(within: Path, habit: str) -> None:
    findings = found(within, walk(fault=habit))
    assert [str(finding) for finding in findings.values() if finding.verdict != OK] == []
    unlike = found(within, walk(fault=habit, termination="never"))
    assert failed(unlike) == {"termination"}, "what is wrong is still seen"


def test_an_environment_that_gives_its_buffer_without_being_a_box_is_judged_by_what_it_showed(within: Path) -> None:
    """There the simulator is not asked, and observations are kept as the environment gave them."""
    kept = check_task_module._Checks(
        EnvironmentKeys(id="faulty_tasks:Walk-v0", termination="never", arguments={"fault": "own buffer"})
    )._judged_without_simulator(lambda observations: np.abs(observations[:, 0]) >= 0.5)
    judged = [next(kept) for _ in range(30)]
    assert len({state.observation.tobytes() for state in judged}) == 30


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("unbounded actions", "spaces", "its actions are not bounded; give its action space finite low and high"),
        ("integer actions", "spaces", "its actions are int64, but must be real numbers; give"),
        ("dict observations", "spaces", "its observation space is Dict, but must be a Box"),
        ("observation shape", "observations", "has shape (2,), but its space has (1,)"),
        ("infinite reward", "reward", "the reward is inf after"),
        ("huge reward", "reward", "the reward is 1e+39 after"),
        ("unseeded", "repetition", "two episodes from the same seed and actions differ"),
        ("forgets velocity", "restore", "differs from the uninterrupted one 1 step later in its observation"),
        (
            "rounds when stored",
            "restore",
            "an episode whose state was stored after 1 step differs from the uninterrupted",
        ),
        ("constructor", "environment", "cannot be made: RuntimeError in faulty_tasks.py, line"),
        ("step", "reward", "the environment fails: KeyError in faulty_tasks.py, line"),
    ],
)
def test_a_fault_of_the_environment_is_found(within: Path, fault: str, check: str, said: str) -> None:
    findings = found(within, walk(fault=fault))
    assert list(findings) == CHECKS
    assert check in failed(findings)
    assert said in findings[check].sentence


def test_a_generator_of_its_own_is_found_by_how_the_next_episode_begins(within: Path) -> None:
    arguments = {"fault": "own generator", "max_episode_steps": 500}
    findings = found(within, walk(arguments=arguments, termination="never"))
    assert failed(findings) == {"restore"}
    assert (
        "restored after 1 step differs from the uninterrupted one in how the next one begins; let get_state give"
        in (findings["restore"].sentence)
    )


def test_what_a_mujoco_task_hides_from_mujoco_is_found(within: Path) -> None:
    findings = found(within, walk(id="faulty_tasks:Tiring-v0", termination="never", arguments={}))
    assert failed(findings) == {"restore"}
    assert "1 step later in its reward; set environment.episodes to end_with_cycle." in findings["restore"].sentence


@pytest.mark.parametrize(
    ("base", "name", "where"),
    [
        ("Hopper", "hopper_a_little_lower", "with qpos[1] at 0.699"),
        ("Hopper", "hopper_a_little_slower", "with qpos[3] at -99.9"),
        ("Walker2d", "walker_a_little_higher", "with qpos[1] at 2.000"),
    ],
)
def test_a_bound_that_is_a_little_off_is_found(within: Path, base: str, name: str, where: str) -> None:
    findings = found(within, {"base": base, "environment": {"termination": f"faulty_tasks:{name}"}})
    assert failed(findings) == {"termination"}
    assert where in findings["termination"].sentence


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("never", "'never' disagrees with the simulator on"),
        ("faulty_tasks:ends_too_late", "the simulator ends the episode and the function does not"),
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
    findings = found(within, walk(termination="hoper", episodes="sometimes"))
    assert list(findings) == CHECKS
    assert failed(findings) == {"keys", "termination"}
    assert "unknown termination 'hoper'; known are never" in findings["termination"].sentence
    assert list(found(within, walk(arguments=3))) == ["keys"]


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
    for long in ("x" * 5000, f"{'x/' * 2500}y.yaml"):
        assert cli.main(["check-task", long]) == 1
        said = capsys.readouterr().err
        assert "(File name too long)" in said
        assert len(said) < 1000


def test_outside_a_checkout_it_says_where_it_looks(
    within: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_task_module, "FOLDERS", (Path("config"), Path("/nowhere/config")))
    looked_in = f"known are none in {within}/config/{{}} and /nowhere/config/{{}}; run this in the project's folder"
    assert cli.main(["check-task", "Hopper"]) == 1
    assert looked_in.format("tasks", "tasks") in capsys.readouterr().err
    (within / "mine.yaml").write_text(yaml.safe_dump(walk()))
    assert cli.main(["check-task", "mine.yaml"]) == 1
    said = capsys.readouterr().out
    assert "unknown method 'mbpo'" in said
    assert looked_in.format("algorithms", "algorithms") in said


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
