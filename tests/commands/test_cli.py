"""The command line: its verbs, its help, what `inspect` tells, and how options are given."""

import inspect
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.workflow import BIN, MBPO, USBPO, environment, finished_workspace

import usbpo
from usbpo.artifacts.header import SCHEMA_VERSION
from usbpo.commands import cli, stage_verbs, user_verbs
from usbpo.stages import STAGES
from usbpo.worker.verb import worker

USER_VERBS = {verb.__name__.replace("_", "-"): verb for verb in (*user_verbs.VERBS, worker)}
OF_USBPO, OF_MBPO = f"data/runs/{USBPO}", f"data/runs/{MBPO}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")


def said_by(capfd: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """What a command prints on both streams."""
    assert cli.main(list(argv), also=[worker]) == code
    captured = capfd.readouterr()
    return captured.out + captured.err


def test_stages_are_the_same_for_command_line_and_warm_worker() -> None:
    assert tuple(stage_verbs.SECTIONS) == STAGES


def test_help_lists_every_verb_with_what_it_does(capfd: pytest.CaptureFixture[str]) -> None:
    said = said_by(capfd, "--help")
    for verb in (*stage_verbs.SECTIONS, *USER_VERBS):
        assert re.search(rf"│ {verb} +\w.*\w", said), verb


@pytest.mark.parametrize("stage", stage_verbs.SECTIONS)
def test_help_of_a_stage_describes_every_argument(capfd: pytest.CaptureFixture[str], stage: str) -> None:
    said = said_by(capfd, stage, "--help")
    for name in inspect.signature(stage_verbs.stage_function(stage)).parameters:
        assert re.search(rf"--{name.replace('_', '-')} +<.*> .*[A-Za-z]{{3}}", said), name


@pytest.mark.parametrize("verb", USER_VERBS)
def test_help_of_a_users_verb_describes_it(capfd: pytest.CaptureFixture[str], verb: str) -> None:
    assert USER_VERBS[verb].__doc__ in said_by(capfd, verb, "--help")


def test_a_key_with_a_default_need_not_be_given_by_hand(capfd: pytest.CaptureFixture[str]) -> None:
    said = said_by(capfd, "phase2", "--help")
    assert re.search(r"--learning-rate .*\[default: 0\.0001\]", said)
    assert re.search(r"--data .*\[required\]", said)


def test_a_key_whose_default_follows_from_other_keys_must_be_given_by_hand(capfd: pytest.CaptureFixture[str]) -> None:
    said = said_by(capfd, "theory", "--help")
    assert re.search(r"--depth .*\[required\]", said), "null in the configuration: as deep as the task rolls out"
    assert re.search(r"--rows .*\[default: 1024\]", said)


def test_results_take_any_number_of_runs_and_returns(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("usbpo.report.results.results", lambda **arguments: seen.append(arguments))
    runs = ["A/m/seed-0:cycles=1:cycle_steps=9", "B/m/seed-0:cycles=1:cycle_steps=9"]
    words = ["results", "--experiment", "e", "--output", "o", "--runs", *runs]
    said_by(capfd, *words, "--returns", "A=1,-2.5", "B=3")
    said_by(capfd, *words, "--returns")
    said_by(capfd, *words)
    assert [call["returns"] for call in seen] == [{"A": [1.0, -2.5], "B": [3.0]}, {}, {}]
    assert {len(call["runs"]) for call in seen} == {2}
    assert said_by(capfd, *words, "--returns", "A:1", code=1).startswith("usbpo results: returns 'A:1': write them as ")


def test_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    assert said_by(capfd, "--version").strip() == usbpo.__version__


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("nosuch",), "nosuch"),
        (("collect", "--wibble", "3"), "--wibble"),
        (("collect",), "Missing option"),
        (("phase1", "--learning-rate", "fast"), "--learning-rate"),
        (("evaluate", "--seed", "-1"), "--seed"),
        (("inspect",), "Missing argument"),
    ],
)
def test_a_wrong_call_is_explained_and_ends_with_2(
    capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], said: str
) -> None:
    text = said_by(capfd, *argv, code=2)
    assert said in text
    assert "Traceback" not in text


def test_the_installed_command_gives_exit_codes_and_sentences(tmp_path: Path) -> None:
    def call(*argv: str) -> tuple[int, str, str]:
        done = subprocess.run([BIN / "usbpo", *argv], capture_output=True, text=True, env=environment(), cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    assert call("--version") == (0, f"{usbpo.__version__}\n", "")
    assert call("nosuch")[0] == 2
    there_is_none = "usbpo inspect: none.h5: there is no such file; run the stage that makes it, or name another.\n"
    assert call("inspect", "none.h5") == (1, "", there_is_none)
    assert not list(tmp_path.iterdir())


# ---- inspect -----------------------------------------------------------------------------------------------------

KINDS = {
    f"{OF_USBPO}/data/00002.h5": ("transitions", 2, [r"observations +float32 +30×4", r"rewards +float32 +30 "]),
    f"{OF_USBPO}/00001/rollouts.h5": ("rollouts", 1, [r"actions +float32 +200×1"]),
    f"{OF_USBPO}/00002/model-mle.safetensors": (
        "model",
        2,
        [r"params/weight\.0 +float32 +3×5×16", r"elites +int64 +2"],
    ),
    f"{OF_USBPO}/00003/model.safetensors": (
        "model",
        3,
        [r"finetune/step +float32 +scalar", r"scaler/mean +float32 +5"],
    ),
    f"{OF_MBPO}/00000/policy.safetensors": (
        "policy",
        0,
        [r"actor/weight\.0 +float32 +4×16", r"updates +int64 +scalar"],
    ),
    f"{OF_MBPO}/00002/evaluation.h5": ("evaluation", 2, [r"returns +float64 +2 ", r"lengths +int64 +2 "]),
    f"{OF_USBPO}/00002/theory.h5": ("theory", 2, [r"rollout/after/true_bias +float32 +24 ", r"holdout/before/shift "]),
}


@pytest.mark.parametrize("path", KINDS)
def test_inspect_tells_what_an_artifact_is(finished: Path, capfd: pytest.CaptureFixture[str], path: str) -> None:
    said = said_by(capfd, "inspect", str(finished / path))
    kind, cycle, rows = KINDS[path]
    assert re.search(rf"{re.escape(Path(path).name)}: {kind}, schema {SCHEMA_VERSION}", said)
    assert f"task test-pendulum · method {Path(path).parts[3]} · seed 0 · cycle {cycle}" in said
    assert re.search(rf"mujoco 3\.4\.0.*torch 2\..*usbpo {re.escape(usbpo.__version__)}", said)
    assert "parameters {" in said
    for row in rows:
        assert re.search(row, said), said


def test_inspect_shows_the_parameters_that_made_an_artifact(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = said_by(capfd, "inspect", str(finished / OF_USBPO / "00002/model.safetensors"))
    assert '"learning_rate": 0.0001' in said
    assert '"terms": "shift+bias"' in said
    said = said_by(capfd, "inspect", str(finished / OF_USBPO / "data/00001.h5"))
    assert '"environment": "InvertedPendulum-v5"' in said
    assert '"steps": 30' in said


@pytest.mark.parametrize("name", ["phase1", "phase2", "rollout", "policy", "theory"])
def test_inspect_shows_metrics(finished: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    said = said_by(capfd, "inspect", str(finished / OF_USBPO / f"00002/{name}.json"))
    assert f"{name}.json: metrics" in said
    assert '"cycle": 2' in said
    assert '"seed": 0' in said
    assert '"task": "test-pendulum"' in said


@pytest.mark.parametrize("folder", ["data [old]", "data [/old]", "data [bold]", "a :smile: b"])
@pytest.mark.parametrize("name", ["data/00001.h5", "00002/phase1.json"])
def test_inspect_prints_a_path_as_it_is(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], folder: str, name: str
) -> None:
    path = tmp_path / folder / Path(name).name
    path.parent.mkdir(parents=True)
    shutil.copy(finished / OF_USBPO / name, path)
    said = said_by(capfd, "inspect", str(path))
    assert f"{folder}/{path.name}: " in said.replace("\n", "")


def test_inspect_takes_several_files(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = said_by(capfd, "inspect", *(str(finished / OF_USBPO / f"data/0000{n}.h5") for n in (0, 1)))
    assert "cycle 0" in said
    assert "cycle 1" in said


def test_inspect_names_arrays_in_full_in_a_narrow_pipe(finished: Path) -> None:
    narrow = environment() | {"COLUMNS": "80"}
    words = [BIN / "usbpo", "inspect", str(finished / OF_USBPO / "00002/model.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, env=narrow, check=True)
    assert "finetune/exp_avg_sq.max_log_variance" in done.stdout


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The arguments with which the stage `phase1` is called; it does nothing."""
    arguments: dict[str, Any] = {}
    signature = inspect.signature(stage_verbs.stage_function("phase1"))

    def phase1(**given: Any) -> None:
        arguments.update(given)

    phase1.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(stage_verbs, "stage_function", lambda _: phase1)
    cli._command.cache_clear()
    yield arguments
    cli._command.cache_clear()


IDENTITY = ("--output", "m.safetensors", "--metrics", "m.json", "--seed", "0", "--cycle", "1")


@pytest.mark.parametrize(
    "data",
    [
        ("--data", "a.h5", "b.h5", "c.h5"),
        ("--data", "a.h5", "--data", "b.h5", "--data", "c.h5"),
        ("--data", "a.h5", "--data", "b.h5", "c.h5"),
    ],
)
def test_an_option_for_files_takes_several(seen: dict[str, Any], data: tuple[str, ...]) -> None:
    assert cli.main(["phase1", *data, *IDENTITY]) == 0
    assert seen["data"] == [Path("a.h5"), Path("b.h5"), Path("c.h5")]


def test_an_option_for_numbers_takes_several(seen: dict[str, Any]) -> None:
    assert cli.main(["phase1", "--weight-decay", "1e-5", "0", "2", "--data", "a.h5", *IDENTITY]) == 0
    assert seen["weight_decay"] == [1e-5, 0.0, 2.0]
    assert seen["data"] == [Path("a.h5")]


def test_a_file_that_may_be_missing_may_be_left_empty(seen: dict[str, Any]) -> None:
    assert cli.main(["phase1", "--previous-model", "--data", "a.h5", *IDENTITY]) == 0
    assert seen["previous_model"] is None
    assert cli.main(["phase1", "--previous-model", "p.safetensors", "--data", "a.h5", *IDENTITY]) == 0
    assert seen["previous_model"] == Path("p.safetensors")


def test_keys_that_are_not_given_have_the_defaults_of_the_configuration(seen: dict[str, Any]) -> None:
    assert cli.main(["phase1", "--data", "a.h5", *IDENTITY]) == 0
    assert seen["learning_rate"] == 1e-3
    assert seen["weight_decay"] == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    assert seen["max_epochs"] is None
    assert seen["members"] == 7


def test_a_stage_is_given_one_thread_and_says_what_it_took(
    seen: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    said = said_by(capfd, "phase1", "--data", "a.h5", *IDENTITY)
    assert re.search(r"phase1: took \d+\.\d+ s, .* of memory", said)
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("platform", "counted"), [("linux", 300 * 2**10), ("darwin", 300 * 2**20)])
def test_the_memory_that_a_stage_took_is_in_mebibytes_on_every_system(
    seen: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    counted: int,
) -> None:
    monkeypatch.setattr(stage_verbs.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=counted))
    monkeypatch.setattr(stage_verbs, "sys", SimpleNamespace(platform=platform), raising=False)
    assert "at most 300 MiB of memory" in said_by(capfd, "phase1", "--data", "a.h5", *IDENTITY)
