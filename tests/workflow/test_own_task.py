"""A task of the user's own, as docs/own-task.md tells it, through check-task and the whole pipeline."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.artifacts import of_cycle
from helpers.workflow import REPO, Ended, Job, copied, jobs, planned, snakemake

from usbpo.artifacts import transitions
from usbpo.artifacts.transitions import read, read_collector
from usbpo.commands import cli
from usbpo.environments import usercode
from usbpo.environments.tasks import Simulator
from usbpo.environments.terminations import find
from usbpo.errors import UsbpoError
from usbpo.experiment.yaml_files import read_yaml
from usbpo.stages.collect import collect
from usbpo.stages.initialise import initialise

RAIL, PENDULUM = "Rail/test-usbpo/seed-0", "Pendulum/test-usbpo/seed-0"


def blocks_of_the_document() -> dict[str, str]:
    """The files that docs/own-task.md shows, by the path in their first line."""
    text = (REPO / "docs/own-task.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(re.findall("^```[a-z]+$", text, flags=re.MULTILINE)), "every block is a file"
    return dict(blocks)


def lay_out(folder: Path) -> Path:
    """Write the document's files into a folder, and an experiment with both of its tasks."""
    for name, content in blocks_of_the_document().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    experiment = read_yaml(folder / "config/experiments/rail.yaml")
    experiment |= {"tasks": ["Rail", "Pendulum"], "steps": {"Rail": 60, "Pendulum": 400}}
    experiment["artifacts"] = {"keep": "all"}
    (folder / "both.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    return folder


def run(folder: Path, **changes: str) -> Ended:
    """Run both tasks."""
    return snakemake(folder, experiment=folder / "both.yaml", **changes)


def to_do(folder: Path) -> set[Job]:
    """What would run."""
    return planned(folder, experiment=folder / "both.yaml")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's folder after both tasks have run through the whole pipeline; left as it is by every test."""
    folder = lay_out(tmp_path_factory.mktemp("own"))
    ended = run(folder, USBPO_WARM_VERBOSE="1")
    assert ended.code == 0, ended.said
    return folder


def test_the_documents_tasks_pass_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(lay_out(tmp_path))
    for name in ("Rail", "Pendulum"):
        assert cli.main(["check-task", name]) == 0
        said = capsys.readouterr().out
        assert len(said.splitlines()) == 8
        assert "FAILED" not in said
        assert ("end with the cycle" in said) == (name == "Pendulum")


def test_the_documents_tasks_run_through_the_whole_pipeline(ran: Path) -> None:
    for name in (RAIL, PENDULUM):
        for stage in ("phase2.json", "policy.safetensors", "evaluation.h5"):
            assert (ran / f"data/runs/{name}/00002/{stage}").is_file()
    assert (ran / "data/results/rail/learning_curves.svg").is_file()
    logs = "".join(path.read_text() for path in (ran / "data/runs").rglob("logs/*/*.log"))
    assert "running directly" not in logs, "the warm worker finds the user's module as well"


def test_rollouts_end_where_the_users_function_says(ran: Path) -> None:
    made = read(ran / f"data/runs/{RAIL}/00002/rollouts.h5", transitions.ROLLOUTS)[1]
    np.testing.assert_array_equal(made.terminations, np.abs(made.next_observations[:, 0]) > 1.0)


def test_a_second_run_has_nothing_to_do_and_a_changed_termination_reruns_rollouts(ran: Path, tmp_path: Path) -> None:
    folder = copied(ran, tmp_path / "changed")
    module = folder / "rail_end.py"
    module.write_text(module.read_text() + "# a comment changes nothing\n")
    assert to_do(folder) == set()
    module.write_text(module.read_text().replace("<= END)", "<= 0.2 * END)"))
    due = to_do(folder)
    assert jobs("rollout", [1, 2], [RAIL]) <= due
    assert {job.run for job in due} == {RAIL, ""}, "the other task is none of its concern"
    # What does not follow from a rollout stays: the first cycle collects with the untrained policy.
    assert not due & (jobs("collect", [0, 1], [RAIL]) | jobs("phase1", [1], [RAIL]) | jobs("evaluate", [0], [RAIL]))
    rollouts = f"data/runs/{RAIL}/00001/rollouts.h5"
    assert snakemake(folder, rollouts, experiment=folder / "both.yaml").code == 0
    made = read(folder / rollouts, transitions.ROLLOUTS)[1]
    np.testing.assert_array_equal(made.terminations, np.abs(made.next_observations[:, 0]) > 0.2)


def test_a_changed_environment_reruns_its_real_steps_and_evaluations(ran: Path, tmp_path: Path) -> None:
    folder = copied(ran, tmp_path / "changed")
    module = folder / "rail.py"
    module.write_text(module.read_text().replace("0.05 * velocity", "0.06 * velocity"))
    due = to_do(folder)
    assert jobs("collect", [0, 1, 2], [RAIL]) | jobs("evaluate", [0, 1, 2], [RAIL]) <= due
    assert {job.run for job in due} == {RAIL, ""}


# ---- episodes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The document's folder as the current one."""
    monkeypatch.chdir(lay_out(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_an_own_environment_is_restored_by_its_own_state(rail: Path) -> None:
    start: dict[str, Any] = {"task": "Rail", "seed": 0, "environment": "rail:Rail-v0"}
    collect(**start, output=rail / "0.h5", steps=20, cycle=0)
    initialise(data=rail / "0.h5", output=rail / "p.safetensors", hidden_layers=2, hidden_size=8)
    start |= {"policy": rail / "p.safetensors"}
    collect(**start, output=rail / "whole.h5", steps=104, cycle=1, previous=rail / "0.h5")
    collect(**start, output=rail / "half.h5", steps=52, cycle=1, previous=rail / "0.h5")
    of_cycle(rail / "p.safetensors", 1)
    collect(**start, output=rail / "rest.h5", steps=52, cycle=2, previous=rail / "half.h5")
    whole, half, rest = (read(rail / f"{name}.h5")[1] for name in ("whole", "half", "rest"))
    assert not (half.terminations | half.truncations)[-1], "the cut must be within an episode"
    assert (rest.terminations | rest.truncations).any()
    np.testing.assert_array_equal(whole.next_observations[:52], half.next_observations)
    np.testing.assert_array_equal(whole.next_observations[52:], rest.next_observations)
    np.testing.assert_array_equal(whole.episodes[52:], rest.episodes)


def pendulum(folder: Path, cycle: int, steps: int, seed: int = 0, **changes: Any) -> transitions.Transitions:
    """A shard of Pendulum-v1 whose episodes end with the cycle."""
    path = folder / f"{seed}-{cycle}-{steps}.h5"
    arguments: dict[str, Any] = {
        "task": "Pendulum",
        "environment": "Pendulum-v1",
        "episodes": "end_with_cycle",
    } | changes
    collect(output=path, steps=steps, seed=seed, cycle=cycle, **arguments)
    return read(path)[1]


def test_episodes_that_end_with_the_cycle_are_cut_there_and_begin_anew(tmp_path: Path) -> None:
    first = pendulum(tmp_path, 0, 230)
    assert np.flatnonzero(first.truncations).tolist() == [199, 229]
    assert not first.terminations.any()
    initialise(data=tmp_path / "0-0-230.h5", output=tmp_path / "p.safetensors", hidden_layers=2, hidden_size=8)
    going_on = {"policy": tmp_path / "p.safetensors", "previous": tmp_path / "0-0-230.h5"}
    second = pendulum(tmp_path, 1, 20, **going_on)
    assert set(second.episodes) == {first.episodes[-1] + 1}
    assert (second.observations[0] != first.observations[0]).any(), "each cycle's first episode has its own seed"
    again = pendulum(tmp_path, 1, 20, **going_on)
    np.testing.assert_array_equal(second.next_observations, again.next_observations)
    # The actions' generator has gone on.
    assert "observation" not in read_collector(tmp_path / "0-1-20.h5")[1]
    states = [read_collector(tmp_path / name)[1]["action_generator"] for name in ("0-0-230.h5", "0-1-20.h5")]
    assert (states[0] != states[1]).any()


def test_a_terminal_last_step_is_no_truncation(rail: Path) -> None:
    arguments = {"environment": "rail:Rail-v0", "environment_arguments": '{"slope": 9.0}', "task": "Rail"}
    long = pendulum(rail, 0, 40, **arguments)
    end = int(np.flatnonzero(long.terminations)[0]) + 1
    assert end < 40
    short = pendulum(rail, 0, end, **arguments)
    assert short.terminations[-1]
    assert not short.truncations[-1]


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_an_environment_that_cannot_go_on_is_refused_with_its_cure(tmp_path: Path) -> None:
    with pytest.raises(
        UsbpoError, match=r"'Pendulum-v1' cannot be restored.*set environment.episodes to end_with_cycle"
    ):
        pendulum(tmp_path, 0, 10, episodes="continue")
    pendulum(tmp_path, 0, 10)
    with pytest.raises(UsbpoError, match="--episodes must be continue or end_with_cycle, but is 'stop'"):
        pendulum(tmp_path, 0, 10, episodes="stop")


def test_an_environment_without_a_time_limit_is_refused_with_its_cure(rail: Path) -> None:
    (rail / "endless.py").write_text(
        "import gymnasium\nfrom rail import Rail\ngymnasium.register('Endless-v0', entry_point=Rail)\n"
    )
    with pytest.raises(UsbpoError, match=r"add max_episode_steps to environment\.arguments"):
        Simulator("endless:Endless-v0")
    assert Simulator("endless:Endless-v0", {"max_episode_steps": 7}).time_limit._max_episode_steps == 7


def test_a_state_that_cannot_be_stored_is_refused_in_one_sentence(rail: Path) -> None:
    simulator = Simulator("rail:Rail-v0")
    simulator.reset(0)
    for wrong in ([1.0], {"state": [1.0]}, {"state": np.array(["a"])}, {"a/b": np.zeros(1)}):
        simulator.base.get_state = lambda wrong=wrong: wrong
        with pytest.raises(UsbpoError, match="get_state must give a dict of numpy arrays"):
            simulator.state()


@pytest.mark.parametrize("given", ["np.nan", "np.inf", "1e39"])
@pytest.mark.parametrize("name", ["next_observations", "rewards"])
def test_what_no_model_can_learn_is_refused_before_it_is_stored(rail: Path, name: str, given: str) -> None:
    module = f"sick_{name}_{re.sub('[^a-z0-9]', '', given)}"  # a module is imported only once
    returned = {
        "next_observations": f"return np.array([{given}, 0.0]), 0.0, *rest",
        "rewards": f"return observation, {given}, *rest",
    }
    (rail / f"{module}.py").write_text(
        "import gymnasium\nimport numpy as np\nfrom rail import Rail\n"
        "class Sick(Rail):\n"
        "    count = 0\n"
        "    def step(self, action):\n"
        "        observation, reward, *rest = super().step(action)\n"
        "        self.count += 1\n"
        f"        if self.count == 4:\n            {returned[name]}\n"
        "        return observation, reward, *rest\n"
        f"gymnasium.register('Sick-v0', entry_point=Sick, max_episode_steps=50)\n"
    )
    with pytest.raises(UsbpoError, match=rf"'{module}:Sick-v0' gave {name} with .* in step 3 of this shard"):
        collect(task="Sick", environment=f"{module}:Sick-v0", output=rail / "0.h5", steps=9, seed=0, cycle=0)
    assert not (rail / "0.h5").exists()


def test_spaces_of_any_shape_are_flattened_in_order(rail: Path) -> None:
    (rail / "square.py").write_text(
        "import gymnasium\nimport numpy as np\n"
        "class Square(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-9, 9, (2, 3), np.float32)\n"
        "    action_space = gymnasium.spaces.Box(np.zeros((3, 2)), np.arange(1, 7).reshape(3, 2), (3, 2), np.float64)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        return np.zeros((2, 3), np.float32), {}\n"
        "    def step(self, action):\n"
        "        return action.reshape(2, 3), float(action[2, 1]), False, False, {}\n"
        "gymnasium.register('Square-v0', entry_point=Square, max_episode_steps=5)\n"
    )
    simulator = Simulator("square:Square-v0")
    assert (simulator.obs_dim, simulator.act_dim) == (6, 6)
    assert simulator.reset(0).shape == (6,)
    step = simulator.step(np.array([-1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(step.observation, [0.0, 1.0, 3.0, 4.0, 5.0, 6.0])
    assert step.reward == 6.0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, r"the module 'mine' cannot be imported: ModuleNotFoundError"),
        ("1 / 0\n", r"the module 'mine' cannot be imported: ZeroDivisionError in mine.py, line 1"),
        ("other = 1\n", r"the module 'mine' has no function 'ends'; mend the name"),
        ("ends = 1\n", r"the module 'mine' has no function 'ends'; mend the name"),
        ("def ends(o):\n    o[:] = 0\n    return o[:, 0] > 0\n", r"'mine:ends' fails: ValueError .*read-only"),
        ("def ends(o):\n    return o[:, 99] > 0\n", r"'mine:ends' fails: IndexError in mine.py, line 2"),
        (
            "def ends(o):\n    return o[:, 0]\n",
            r"returns float64 of shape \(3,\) for 3 observations; it must return bool",
        ),
        ("def ends(o):\n    return (o > 0).any()\n", r"returns bool of shape \(\) for 3 observations"),
    ],
)
def test_a_wrong_termination_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UsbpoError, match=said) as caught:
        find("mine:ends")(np.zeros((3, 4)))
    assert "\n" not in str(caught.value)
    sys.modules.pop("mine", None)


# ---- the fingerprint of the user's code --------------------------------------------------------------------------


def test_the_fingerprint_of_a_users_module_sees_code_and_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("")
    (tmp_path / "pack/task.py").write_text("import numpy\nimport beside\nfrom . import near\n1 / 0  # never run\n")
    (tmp_path / "pack/near.py").write_text("A = 1\n")
    (tmp_path / "beside.py").write_text("B = 1\n")
    now = usercode.module_fingerprint("pack.task")
    assert len(now) == 16
    seen = {now}
    for name in ("pack/task.py", "pack/near.py", "beside.py"):
        path = tmp_path / name
        path.write_text(path.read_text() + "# a comment\n")
        assert usercode.module_fingerprint("pack.task") == now
        path.write_text(path.read_text() + "C = 2\n")
        now = usercode.module_fingerprint("pack.task")
        assert now not in seen
        seen.add(now)
    assert not {"pack", "pack.task", "beside"} & sys.modules.keys(), "nothing was imported"
    assert usercode.module_fingerprint("nowhere.at_all") == ""


def test_a_module_of_the_run_folder_never_takes_the_place_of_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "numpy.py").write_text("")
    usercode.make_importable()
    usercode.make_importable()
    assert sys.path.count(str(tmp_path)) == 1
    assert sys.path[-1] == str(tmp_path)
