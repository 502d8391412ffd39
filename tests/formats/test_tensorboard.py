"""TensorBoard event files: right values at the right steps, whole records, the same bytes, clear errors."""

import re
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.workflow import MBPO, USBPO, Job, dry_run, finished_workspace, planned, snakemake
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from usbpo.artifacts import layout, metrics, transitions
from usbpo.artifacts.files import read_json
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.commands import cli
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun, named_run, named_runs
from usbpo.formats.tensorboard import WINDOW, read_events, write_run, write_runs

OF_USBPO = f"data/runs/{USBPO}"
FILE = f"data/tensorboard/{USBPO}/{layout.EVENT_FILE}"
STEPS = 30
"""On-policy steps of a cycle of the test experiment."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """The files of the finished runs of USB-PO, to be changed."""
    shutil.copytree(finished / OF_USBPO, tmp_path / OF_USBPO)
    return tmp_path


def usbpo_run(root: Path) -> NamedRun:
    return NamedRun(root, "test-pendulum", "test-usbpo", 0)


def records(path: Path) -> list[Event]:
    """The events of a file, each held against its two checksums (TFRecord: length, its CRC, data, its CRC)."""

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    content, events = path.read_bytes(), []
    while content:
        length, crc = content[:8], content[8:12]
        assert struct.unpack("<I", crc) == (masked(length),)
        end = 12 + struct.unpack("<Q", length)[0]
        data, crc = content[12:end], content[end : end + 4]
        assert struct.unpack("<I", crc) == (masked(data),)
        events.append(Event.FromString(data))
        content = content[end + 4 :]
    return events


def values(events: list[Event], tag: str) -> dict[int, float]:
    """The values of a tag by step."""
    return {e.step: v.simple_value for e in events for v in e.summary.value if v.tag == tag}


# ---- what a run's file holds ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The events of the finished run of USB-PO."""
    path, _ = write_run(usbpo_run(finished), tmp_path_factory.mktemp("events"))
    return records(path)


def test_a_file_begins_with_its_version_and_knows_neither_host_nor_time(events: list[Event]) -> None:
    assert events[0].file_version == "brain.Event:2"
    assert all(event.wall_time == event.step for event in events)
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert not any(socket.gethostname().encode() in event.SerializeToString() for event in events)


def test_evaluations_stand_at_their_on_policy_steps(events: list[Event], finished: Path) -> None:
    rewards, lengths = values(events, "eval/mean_reward"), values(events, "eval/mean_ep_length")
    assert set(rewards) == set(lengths) == {0, 30, 60, 90}
    for cycle in range(4):
        with h5py.File(finished / f"{OF_USBPO}/{cycle:05d}/evaluation.h5") as file:
            assert rewards[cycle * STEPS] == np.float32(file["returns"][()].mean())
            assert lengths[cycle * STEPS] == np.float32(file["lengths"][()].mean())


def test_the_temperature_is_called_ent_coef_and_updates_are_spread_over_their_cycle(
    events: list[Event], finished: Path
) -> None:
    found = values(events, "train/ent_coef")
    # 30 updates a cycle of 30 steps, of which number 1, 11, 21 and 30 are reported.
    assert list(found) == [1, 11, 21, 30, 31, 41, 51, 60, 61, 71, 81, 90]
    history = read_json(finished / f"{OF_USBPO}/00002/policy.json")["history"]
    assert [found[step] for step in (31, 41, 51, 60)] == [np.float32(line["temperature"]) for line in history]
    assert values(events, "train/n_updates") == {step: step for step in found}
    for tag in ("entropy", "critic_loss", "actor_loss", "q_real", "q_model", "target_entropy"):
        assert set(values(events, f"train/{tag}")) == set(found), tag


def test_the_model_is_shown_from_its_first_training_and_phase_2_from_the_second(
    events: list[Event], finished: Path
) -> None:
    metrics = read_json(finished / f"{OF_USBPO}/00002/phase1.json")
    elites = [metrics["holdout_mse"][member] for member in metrics["elites"]]
    assert values(events, "model/holdout_mse")[60] == np.float32(np.mean(elites))
    assert values(events, "model/epochs")[60] == metrics["epochs"]
    assert set(values(events, "model_rollout/transitions")) == {30, 60, 90}
    metrics = read_json(finished / f"{OF_USBPO}/00003/phase2.json")
    assert set(values(events, "phase2/shift_before")) == {60, 90}
    assert values(events, "phase2/shift_before")[90] == np.float32(metrics["before"]["shift"])
    assert values(events, "phase2/bias_after")[90] == np.float32(metrics["after"]["bias"])


def header_of(run: NamedRun, cycle: int, kind: str = "test") -> Header:
    return Header(kind, run.task, run.seed, cycle, method=run.method)


def write_shard(root: Path, cycle: int, rewards: list[float], ends: list[int], episode: int) -> None:
    """A shard of the run `usbpo_run`, whose episodes end after the rows `ends`; the first has a given number."""
    rows = len(rewards)
    last = np.isin(np.arange(rows), ends)
    batch = Transitions(
        observations=np.zeros((rows, 1), np.float32),
        actions=np.zeros((rows, 1), np.float32),
        rewards=np.array(rewards, np.float32),
        next_observations=np.zeros((rows, 1), np.float32),
        terminations=last,
        truncations=np.zeros(rows, np.bool_),
        episodes=episode + np.concatenate([[0], np.cumsum(last)[:-1]]),
    )
    run = usbpo_run(root)
    transitions.write(run.path(layout.SHARD, cycle), header_of(run, cycle, transitions.KIND), batch)
    run.path(layout.POLICY, cycle).parent.mkdir(parents=True)


def test_episodes_of_the_collecting_policy_go_on_from_cycle_to_cycle(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [1.0, 1.0, 1.0, 5.0], ends=[2], episode=0)  # 3 in 3 steps; the second goes on
    write_shard(tmp_path, 1, [5.0, 5.0], ends=[], episode=1)
    write_shard(tmp_path, 2, [5.0, 9.0], ends=[0, 1], episode=1)  # 20 in 4 steps, 9 in 1 step
    found = read_events(usbpo_run(tmp_path))
    assert found[0] == {"rollout/ep_rew_mean": 3.0, "rollout/ep_len_mean": 3.0}
    assert found[2] == {"rollout/ep_rew_mean": 3.0, "rollout/ep_len_mean": 3.0}
    assert found[4] == pytest.approx({"rollout/ep_rew_mean": 32 / 3, "rollout/ep_len_mean": 8 / 3})


def test_the_mean_is_over_the_last_hundred_episodes(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [7.0] * WINDOW, ends=list(range(WINDOW)), episode=0)
    write_shard(tmp_path, 1, [9.0] * WINDOW, ends=list(range(WINDOW - 1)), episode=WINDOW)
    assert read_events(usbpo_run(tmp_path))[WINDOW]["rollout/ep_rew_mean"] == pytest.approx(9.0 - 2.0 / WINDOW)


def test_trigger_and_theory_are_shown_where_they_are(workspace: Path) -> None:
    run = usbpo_run(workspace)
    header = header_of(run, 2)
    check = {"fired": False, "estimate": 0.5, "threshold": 2.0, "mean_error": 0.1, "volume": 3.5, "steps": 30}
    checks = [{**check, "on_policy_steps": steps, "reason": None} for steps in (45, 60)]
    metrics.write(run.path(layout.TRIGGER, 2), header, {"checks": checks}, "")
    theory = {"holdout": {"after": {"shift": 1.5, "bound": None}}, "depth": [{"error_mean": 2.5}], "kept": True}
    metrics.write(workspace / OF_USBPO / "00002/theory.json", header, theory, "")
    metrics.write(run.path(layout.PHASE2_METRICS, 2), header, {"fine_tuned": False}, "")
    events = read_events(run)
    found = events[60]
    assert events[45]["trigger/volume"] == 3.5
    assert {tag: found[tag] for tag in found if tag.startswith(("trigger", "theory"))} == {
        "trigger/fired": 0.0,
        "trigger/estimate": 0.5,
        "trigger/threshold": 2.0,
        "trigger/mean_error": 0.1,
        "trigger/volume": 3.5,
        "trigger/steps": 30.0,
        "theory/holdout/after/shift": 1.5,
        "theory/depth/0/error_mean": 2.5,
    }
    assert "phase2/shift_before" not in found, "the first model, of which a trigger had no second one follow"
    assert "model/holdout_mse" in found


# ---- unfinished runs, and the same bytes ----------------------------------------------------------------------------


def test_equal_runs_give_equal_bytes(finished: Path, workspace: Path) -> None:
    first, _ = write_run(usbpo_run(finished), workspace / "one")
    second, _ = write_run(usbpo_run(workspace), workspace / "two")
    assert first.read_bytes() == second.read_bytes()
    assert first.relative_to(workspace / "one") == Path(USBPO, layout.EVENT_FILE)
    assert sorted(path.name for path in first.parent.iterdir()) == [layout.EVENT_FILE]


def test_an_unfinished_run_shows_what_it_has(workspace: Path) -> None:
    whole = read_events(usbpo_run(workspace))
    shutil.rmtree(workspace / OF_USBPO / "00003")
    for name in ("00002/evaluation.h5", "00002/policy.json", "00002/policy.safetensors", "data/00003.h5"):
        (workspace / OF_USBPO / name).unlink()
    partial = read_events(usbpo_run(workspace))
    assert max(partial) == 60
    assert set(partial[60]) == {tag for tag in whole[60] if not tag.startswith(("eval", "train"))}
    assert all(partial[step] == whole[step] for step in partial if step <= 30)


def test_cycles_limits_what_is_read(finished: Path) -> None:
    whole = read_events(usbpo_run(finished))
    assert read_events(usbpo_run(finished), cycles=1) == {step: whole[step] for step in whole if step <= 30}
    assert list(read_events(usbpo_run(finished), cycles=0)) == [0]


def test_without_shards_only_the_collecting_policys_returns_are_missing(workspace: Path) -> None:
    whole = read_events(usbpo_run(workspace))
    shutil.rmtree(workspace / OF_USBPO / "data")
    without = {step: {t: v for t, v in tags.items() if not t.startswith("rollout/")} for step, tags in whole.items()}
    assert read_events(usbpo_run(workspace)) == {step: tags for step, tags in without.items() if tags}


# ---- the verb and the target -----------------------------------------------------------------------------------------


def test_runs_are_named_in_several_ways(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*words: str) -> list[str]:
        return [run.name for run in named_runs(words)]

    monkeypatch.chdir(finished)
    assert names() == names("data/runs") == names(".") == [MBPO, USBPO]
    assert names(USBPO) == names(OF_USBPO) == names(f"{finished}/{OF_USBPO}/") == names(OF_USBPO, USBPO) == [USBPO]
    assert names("data/runs/test-pendulum/test-mbpo") == [MBPO]
    assert names("data/results/test") == names(f"{finished}/data/results/test") == [USBPO, MBPO]
    monkeypatch.chdir(finished / "data/runs/test-pendulum")
    assert names("test-usbpo") == [USBPO]
    with pytest.raises(UsbpoError, match="2 runs are there, but one is needed"):
        named_run(str(finished))


def test_the_verb_writes_a_file_for_each_run(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tensorboard", "--folder", str(finished), "--output", str(tmp_path / "logs")]) == 0
    said = capfd.readouterr().out
    for name in (USBPO, MBPO):
        assert records(tmp_path / "logs" / name / layout.EVENT_FILE)
        assert f"{name}/{layout.EVENT_FILE}: " in said
    assert f"tensorboard --logdir {tmp_path / 'logs'}" in said


def test_the_target_gives_the_verbs_bytes_and_is_no_part_of_all(finished: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace")
    assert not planned(workspace)
    assert planned(workspace, FILE) == {Job("event_file", USBPO, 0)}
    assert re.search(r"^event_file +2$", dry_run(workspace, "tensorboard"), flags=re.MULTILINE)
    done = snakemake(workspace, "tensorboard")
    assert done.code == 0, done.said
    expected, _ = write_run(usbpo_run(finished), tmp_path / "by-hand")
    assert (workspace / FILE).read_bytes() == expected.read_bytes()
    assert not planned(workspace, FILE)


# ---- a TensorBoard that is running -----------------------------------------------------------------------------------
# It goes on with what is added to a file that it has opened; another file of the same name it never looks at.


def test_a_file_of_a_run_that_has_gone_on_is_added_to(finished: Path, tmp_path: Path) -> None:
    run, logs = usbpo_run(finished), tmp_path / "logs"
    path, _ = write_run(run, logs, cycles=1)
    before, opened = path.read_bytes(), path.stat().st_ino
    write_run(run, logs)
    assert path.stat().st_ino == opened
    assert path.read_bytes().startswith(before)
    assert path.read_bytes() == write_run(run, tmp_path / "whole")[0].read_bytes()


def test_what_a_killed_writer_left_is_completed(finished: Path, tmp_path: Path) -> None:
    run, logs = usbpo_run(finished), tmp_path / "logs"
    path, _ = write_run(run, logs)
    whole, opened = path.read_bytes(), path.stat().st_ino
    for size in (0, 5, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:size])
        write_run(run, logs)
        assert (path.read_bytes(), path.stat().st_ino) == (whole, opened), size


@pytest.mark.parametrize("kind", ["other values", "longer", "symbolic link", "hard link"])
def test_a_file_that_is_not_the_beginning_is_replaced_and_a_linked_one_left_as_it_is(
    finished: Path, tmp_path: Path, kind: str
) -> None:
    run, logs = usbpo_run(finished), tmp_path / "logs"
    path, _ = write_run(run, logs, cycles=1)
    beginning, other = path.read_bytes(), tmp_path / "other"
    if kind == "other values":
        path.write_bytes(beginning[:-1] + b"x")
    elif kind == "longer":
        write_run(run, logs)
        path.write_bytes(path.read_bytes() + b"more")
    else:
        path.rename(other)
        path.symlink_to(other) if kind == "symbolic link" else path.hardlink_to(other)
    opened = path.stat().st_ino
    write_run(run, logs)
    assert path.stat().st_ino != opened
    assert path.read_bytes() == write_run(run, tmp_path / "whole")[0].read_bytes()
    assert not other.exists() or other.read_bytes() == beginning


def test_the_target_adds_to_its_files_too(finished: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace")
    assert snakemake(workspace, FILE, "--config", "steps=60", cores=1).code == 0
    before, opened = (workspace / FILE).read_bytes(), (workspace / FILE).stat().st_ino
    done = snakemake(workspace, FILE, cores=1)
    assert done.code == 0, done.said
    assert (workspace / FILE).stat().st_ino == opened
    assert (workspace / FILE).read_bytes().startswith(before)
    assert len((workspace / FILE).read_bytes()) > len(before)
    assert not planned(workspace, FILE)


# ---- bad input ----------------------------------------------------------------------------------------------------


def change(path: Path, **keys: Any) -> None:
    """Replace keys of a JSON file; None removes one."""
    content = {**metrics.read(path)[0], **keys}
    header = Header("test", **{name: content[name] for name in ("task", "method", "seed", "cycle")})
    metrics.write(path, header, {name: value for name, value in content.items() if value is not None}, "")


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("phase1.json", {"holdout_mse": None}, "holdout_mse is missing"),
        ("phase1.json", {"elites": [99]}, "cannot be used"),
        ("phase1.json", {"epochs": "many"}, "cannot be used"),
        ("phase2.json", {"before": 3}, "cannot be used"),
        ("rollout.json", {"length": None}, "length is missing"),
        ("policy.json", {"history": [{"update": 3}]}, "is missing"),
        ("policy.json", {"updates": 0}, "cannot be used"),
        ("policy.json", {"seed": 1}, "it is of test-pendulum, test-usbpo, seed 1, cycle 2"),
        ("phase2.json", {"task": "Hopper"}, "it is of Hopper, test-usbpo, seed 0, cycle 2"),
    ],
)
def test_metrics_that_do_not_fit_are_named(workspace: Path, name: str, keys: dict[str, Any], said: str) -> None:
    path = workspace / OF_USBPO / "00002" / name
    change(path, **keys)
    with pytest.raises(UsbpoError, match=said) as error:
        read_events(usbpo_run(workspace))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["00002/phase1.json", "00002/evaluation.h5", "data/00002.h5"])
def test_damaged_files_are_named(workspace: Path, name: str) -> None:
    path = workspace / OF_USBPO / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsbpoError, match="run again") as error:
        read_events(usbpo_run(workspace))
    assert str(path) in str(error.value)


def test_a_file_of_another_cycle_is_named(workspace: Path) -> None:
    folder = workspace / OF_USBPO
    shutil.copy(folder / "00001/evaluation.h5", folder / "00002/evaluation.h5")
    with pytest.raises(UsbpoError, match="cycle 1, which does not fit its folder"):
        read_events(usbpo_run(workspace))


def test_a_cycle_of_unknown_length_is_said(workspace: Path) -> None:
    shutil.rmtree(workspace / OF_USBPO / "data")
    for path in (workspace / OF_USBPO).rglob("evaluation.h5"):
        path.unlink()
    with pytest.raises(UsbpoError, match="tell the steps of a cycle"):
        read_events(usbpo_run(workspace))


def test_two_runs_of_one_name_are_refused(finished: Path, workspace: Path) -> None:
    with pytest.raises(UsbpoError, match="the name of two runs"):
        write_runs([usbpo_run(finished), usbpo_run(workspace)], workspace / "logs")
    assert not (workspace / "logs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Hopper/usbpo/seed-3",), "no run has this name"),
        (("nowhere",), "no run has this name"),
        ((), "there are no runs"),
    ],
)
def test_runs_that_are_not_there_end_in_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert cli.main(["tensorboard", *words, "--folder", str(tmp_path), "--output", str(tmp_path / "logs")]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usbpo tensorboard: ")
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
