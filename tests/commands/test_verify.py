"""`usbpo verify` finds every fault that is planted in a run, names it in one sentence, and nothing in a run without."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.artifacts import edited, reheaded, with_value
from helpers.workflow import EXPERIMENT, MBPO, REPO, USBPO, copied, finished_workspace, truncate

from usbpo.agent import sac
from usbpo.artifacts import metrics
from usbpo.artifacts.header import Header
from usbpo.artifacts.identity import header_of
from usbpo.commands import cli
from usbpo.commands.verify import verify
from usbpo.errors import UsbpoError
from usbpo.model import ensemble
from usbpo.stages.block import block

OF_USBPO, OF_MBPO = f"data/runs/{USBPO}", f"data/runs/{MBPO}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return copied(finished, tmp_path / "workspace")


def findings(workspace: Path, run: str = USBPO) -> list[str]:
    return verify(run, workspace).findings


def test_a_finished_experiment_has_no_finding(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    files = [
        f"{OF_USBPO}/00003/model.safetensors", f"{OF_USBPO}/data/00002.h5", f"{OF_MBPO}/00002/policy.json",
    ]  # fmt: skip
    for what in (str(REPO / EXPERIMENT), USBPO, "data/runs", *files):
        assert cli.main(["verify", what]) == 0, capfd.readouterr().out
        assert capfd.readouterr().out.splitlines()[-1].endswith("no finding.")


def test_what_is_nothing_is_said(finished: Path) -> None:
    with pytest.raises(UsbpoError, match=r"nothing: it is no artifact, no run below .*data/runs and no experiment"):
        verify("nothing", finished)


def trained_otherwise(path: Path) -> None:
    """The same policy but for one number."""
    header, agent = sac.load(path)
    agent.actor["bias.0"] += 1
    agent.save(path, header)


def modelled_otherwise(path: Path) -> None:
    header, model = ensemble.load(path)
    model.params["bias.0"] += 1
    model.save(path, header)


def replaced_by(source: str) -> Callable[[Path], None]:
    """By another file of the workspace, whose folder is six levels above/…/NNNNN/FILE."""
    return lambda path: shutil.copyfile(path.parents[6] / source, path) and None


def with_parameter(name: str, value: object) -> Callable[[Path], None]:
    return lambda path: reheaded(path, parameters={**header_of(path).parameters, name: value}) and None


def collected_elsewhere(path: Path) -> None:
    reheaded(path, versions={**header_of(path).versions, "mujoco": "2.0.0"})


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_metrics(path: Path) -> None:
    content, _ = metrics.read(path)
    header = Header("test", *(content[name] for name in ("task", "seed", "cycle")), method=content["method"])
    metrics.write(path, header, content, "0" * 64)


def with_metric(name: str, value: object) -> Callable[[Path], None]:
    """With another value in its metrics, or without one where it is None, and sealed anew."""

    def spoil(path: Path) -> None:
        content, _ = metrics.read(path)
        made_with = content[metrics.BESIDE]
        header = Header("test", *(content[name] for name in ("task", "seed", "cycle")), method=content["method"])
        left = {key: old for key, old in content.items() if key != name}
        metrics.write(path, header, left if value is None else {**left, name: value}, made_with)

    return spoil


def without_last_input(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        inputs = header_of(path).inputs
        reheaded(path, inputs={**inputs, name: inputs[name][:-1]})

    return spoil


NAN = float("nan")
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit in a shard": ("data/00001.h5", flipped, "data/00001.h5: it is cut short or damaged"),
    "a flipped bit in a model": ("00002/model.safetensors", flipped, "model.safetensors: it is cut short or damaged"),
    "a flipped bit in metrics": ("00002/phase2.json", flipped, "phase2.json: it is cut short or damaged"),
    "metrics that lack an error": (
        "00002/phase1.json",
        with_metric("holdout_mse", None),
        "phase1.json: holdout_mse cannot be used",
    ),
    "metrics with a text for a term": (
        "00003/phase2.json",
        with_metric("after", "x"),
        "phase2.json: after cannot be used",
    ),
    "metrics without a history": ("00001/policy.json", with_metric("history", None), "policy.json: history cannot"),
    "metrics without a hold-out": ("00001/theory.json", with_metric("holdout", None), "theory.json: holdout cannot"),
    "a cut evaluation": ("00001/evaluation.h5", truncate, "evaluation.h5: it is cut short or damaged"),
    "an empty file": ("00001/theory.h5", lambda path: path.write_bytes(b""), "theory.h5: it is cut short or damaged"),
    "NaN": (
        "data/00001.h5",
        lambda path: with_value(path, "rewards", 3, NAN),
        "rewards holds NaN or infinity in row 3",
    ),
    "another schema": (
        "00002/trigger.json",
        lambda path: (shutil.copy(path.with_name("phase1.json"), path), edited(path, b'ion": 2', b'ion": 7')),
        "trigger.json: written with schema 7",
    ),
    "a shard of another cycle": (
        "data/00001.h5",
        lambda path: shutil.copyfile(path.with_name("00002.h5"), path),
        "data/00001.h5: it is of test-pendulum, test-usbpo, seed 0, cycle 2, which does not fit its folder",
    ),
    "a policy of another method": (
        "00002/policy.safetensors",
        replaced_by(f"{OF_MBPO}/00002/policy.safetensors"),
        "policy.safetensors: it is of test-pendulum, test-mbpo, seed 0, cycle 2, which does not fit its folder",
    ),
    "metrics of another cycle": (
        "00002/policy.json",
        lambda path: shutil.copyfile(path.parent.with_name("00003") / path.name, path),
        "policy.json: it is of test-pendulum, test-usbpo, seed 0, cycle 3",
    ),
    "another seed": (
        "00001/rollouts.h5",
        lambda path: reheaded(path, seed=4),
        "rollouts.h5: it is of test-pendulum, test-usbpo, seed 4, cycle 1",
    ),
    "another kind": (
        "00002/model.safetensors",
        lambda path: shutil.copyfile(path.with_name("policy.safetensors"), path),
        "model.safetensors: its kind is policy, but model is expected",
    ),
    "a policy that was trained otherwise": (
        "00001/policy.safetensors",
        trained_otherwise,
        r"00002/rollouts.h5: it was made from another .*00001/policy.safetensors than the one .*, as --policy",
    ),
    "a model that was trained otherwise": (
        "00002/model.safetensors",
        modelled_otherwise,
        r"00003/model.safetensors: it was made from another .*00002/model.safetensors .*, as --previous-model",
    ),
    "real data that were collected otherwise": (
        "data/00001.h5",
        lambda path: with_value(path, "rewards", 3, 0.25),
        r"00002/model-mle.safetensors: it was made from another .*data/00001.h5 than the one that .*, as --data",
    ),
    "an input too few": (
        "00003/policy.safetensors",
        without_last_input("data"),
        "policy.safetensors: it was made from 3 files as --data, but 4 belong to cycle 3",
    ),
    "metrics that were written with another model": (
        "00002/phase1.json",
        other_metrics,
        "phase1.json: it was written with another model-mle.safetensors than the one beside it",
    ),
    "another configuration": (
        "00003/policy.safetensors",
        with_parameter("learning_rate", 0.5),
        r"00003/policy.safetensors: its learning_rate is 0.5, but that of .*00001/policy.safetensors is",
    ),
    "another simulator": (
        "data/00002.h5",
        collected_elsewhere,
        r"data/00002.h5: it was collected with mujoco 2.0.0, but .*data/00000.h5 with .*; a run has one simulator",
    ),
    "a block in the place of a shard": (
        "data/00003.h5",
        lambda path: block(parts=[path.with_name("00002.h5"), shutil.copy(path, path.with_name("x.h5"))], output=path),
        "data/00003.h5: it is a block in the place of a shard",
    ),
    "a shard in the place of a block": (
        "data/blocks/00007.h5",
        lambda path: (path.parent.mkdir(), shutil.copyfile(path.parents[1] / "00003.h5", path)),
        "data/blocks/00007.h5: it is not the block 7 of a run",
    ),
    "a shard that is missing": ("data/00001.h5", Path.unlink, "data/00001.h5: it is not there; run snakemake again"),
    "metrics that are missing": ("00002/phase1.json", Path.unlink, "phase1.json: it is not there; run snakemake again"),
    "an evaluation that is missing": ("00003/evaluation.h5", Path.unlink, "evaluation.h5: it is not there; run"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(workspace: Path, fault: str) -> None:
    name, spoil, said = FAULTS[fault]
    spoil(workspace / OF_USBPO / name)
    found = findings(workspace)
    assert any(re.search(said, finding) for finding in found), found
    assert all(finding.endswith(".") and "\n" not in finding for finding in found)
    assert not findings(workspace, MBPO), "the other run is whole"


def test_a_file_is_held_against_the_run_in_which_it_lies(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    trained_otherwise(Path(f"{OF_USBPO}/00001/policy.safetensors"))
    assert cli.main(["verify", f"{OF_USBPO}/data/00002.h5"]) == 1
    out = capfd.readouterr().out
    assert re.search(r"data/00002.h5: it was made from another .*00001/policy.safetensors .*, as --policy", out)
    assert out.splitlines()[-1] == f"{OF_USBPO}/data/00002.h5: 1 artifact, 1 finding."
    assert cli.main(["verify", f"{OF_USBPO}/data/00001.h5"]) == 0, "it was made before"


def test_a_finding_is_one_line_whatever_a_file_is_called(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a\nb\x1b[2J.json"
    file.write_text("{}")
    assert cli.main(["verify", str(file)]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [re.search(r"a b\\x1b\[2J.json: (\w+ \w+)", line)[1] for line in lines] == ["it is", "1 artifact"]  # type: ignore[index]


def test_what_was_let_go_is_no_finding(workspace: Path) -> None:
    for cycle in (1, 2):
        for name in ("model.safetensors", "model-mle.safetensors", "policy.safetensors", "rollouts.h5"):
            (workspace / OF_USBPO / f"{cycle:05d}" / name).unlink(missing_ok=True)
    assert not findings(workspace)


def test_what_an_experiment_keeps_or_draws_and_lacks_is_found(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    lacking = (f"{OF_USBPO}/00002/model.safetensors", f"{OF_MBPO}/00001/rollouts.h5", "data/results/test/aggregate.svg")
    for name in lacking:
        Path(name).unlink()
    found = verify(str(EXPERIMENT)).findings
    assert sorted(finding.partition(": it is not there")[0] for finding in found) == sorted(lacking)


def test_several_versions_are_remarked_upon(workspace: Path) -> None:
    path = workspace / OF_USBPO / "00003/evaluation.h5"
    reheaded(path, versions={**header_of(path).versions, "torch": "1.0"})
    report = verify(USBPO, workspace)
    assert not report.findings
    (remark,) = report.remarks
    assert remark.startswith(f"{USBPO}: it was written by torch 1.0, ")


def test_a_run_that_no_configuration_knows_is_verified_as_far_as_it_goes(workspace: Path) -> None:
    stranger = workspace / "data/runs/test-pendulum/somebodys/seed-0"
    shutil.copytree(workspace / OF_USBPO, stranger)
    for path in stranger.rglob("*.h5"):
        header = replace(header_of(path), method="somebodys")
        reheaded(path, method=header.method)
    found = findings(workspace, "test-pendulum/somebodys/seed-0")
    assert any("it is of test-pendulum, test-usbpo" in finding for finding in found), "the checkpoints"
