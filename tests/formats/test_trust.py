"""A pulled run runs no code: what an artifact says of its environment is compared with the configuration, no more."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.artifacts import reheaded
from helpers.workflow import USBPO, environment, finished_workspace

from usbpo.artifacts import layout, transitions
from usbpo.commands import cli
from usbpo.environments import terminations, usercode
from usbpo.environments.tasks import make
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun

pytest.importorskip("minari", reason="the optional dependencies `export` are not installed")
pytest.importorskip("onnxruntime", reason="the optional dependencies `export` are not installed")

RUN = NamedRun(Path(), "test-pendulum", "test-usbpo", 0)
EVIL = "from pathlib import Path\nPath({marker!r}).touch()\n"
VERBS = {
    "minari": ("export", "minari"),
    "policy": ("export", "policy"),
    "video": ("video",),
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture
def pulled(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a run, in which this process is; to be changed."""
    shutil.copytree(finished / f"data/runs/{USBPO}", tmp_path / f"data/runs/{USBPO}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def says(**changes: Any) -> Callable[[Path], None]:
    """Have the last shard and the last evaluation of the run say something else of themselves."""

    def change(root: Path) -> None:
        run = replace(RUN, root=root)
        shard = run.path(layout.SHARD, 3)
        header, batch = transitions.read(shard)
        _, collector = transitions.read_collector(shard)
        transitions.write(shard, replace(header, parameters={**header.parameters, **changes}), batch, collector)
        run.path(layout.EVALUATION, 3).unlink()

    return change


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a command ends."""
    capfd.readouterr()
    assert cli.main([*words]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"usbpo {words[0]}: ")
    assert error.endswith(".\n")
    assert len(error.splitlines()) == 1, error
    return error


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"environment": "evil:Env-v0"}, "its environment is 'evil:Env-v0', but the configuration of test-pendulum"),
        ({"environment": "data.runs.evil:Env-v0"}, "its environment is 'data.runs.evil:Env-v0', but the configuration"),
        ({"environment": "Hopper-v5"}, "its environment is 'Hopper-v5', but the configuration"),
        ({"environment": ["evil:Env-v0"]}, "its environment is '[\"evil:Env-v0\"]', but"),
        ({"environment_arguments": '{"xml_file": "evil.xml"}'}, 'its environment_arguments is \'{"xml_file": "evil'),
        ({"environment_arguments": "no JSON"}, "its environment_arguments is 'no JSON', but"),
        ({"environment_arguments": "[" * 100_000}, "its environment_arguments is '[[[[[["),
        ({"environment": "\x1b[2J\n" + "x" * 5000}, "its environment is '\\x1b[2J\\nxxx"),
    ],
)
def test_an_artifact_that_names_another_environment_is_refused_and_runs_nothing(
    pulled: Path, capfd: pytest.CaptureFixture[str], verb: str, told: dict[str, Any], said: str
) -> None:
    marker = pulled / "evil has run"
    for place in (pulled, pulled / "data/runs"):
        (place / "evil.py").write_text(EVIL.format(marker=str(marker)))
    says(**told)(pulled)
    error = refused(capfd, *VERBS[verb], USBPO, "--output", "out.gif")
    assert f"data/runs/{USBPO}/data/00003.h5: {said}" in error
    assert "add --environment ID" in error
    assert len(error) < 1000
    assert not marker.exists()
    assert not (pulled / "out.gif").exists()


def test_the_environment_of_the_configuration_counts_where_no_artifact_tells_one(
    pulled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (pulled / f"data/runs/{USBPO}/00003/evaluation.h5").unlink()
    shutil.rmtree(pulled / f"data/runs/{USBPO}/data")
    assert cli.main(["export", "policy", USBPO, "--output", "out"]) == 0
    assert "gymnasium.make('InvertedPendulum-v5', **{})" in (pulled / "out/example.py").read_text()


def test_arguments_count_by_what_they_say_and_not_by_how_they_are_written(pulled: Path) -> None:
    says(environment_arguments=" { } ")(pulled)
    assert cli.main(["export", "policy", USBPO, "--output", "out"]) == 0


@pytest.mark.parametrize("what", ["minari", "policy"])
def test_the_users_own_word_counts_alone(pulled: Path, what: str) -> None:
    says(environment="evil:Env-v0", environment_arguments='{"x": 1}')(pulled)
    words = ["--environment", "InvertedPendulum-v5", "--environment-arguments", '{"reset_noise_scale": 0.02}']
    assert cli.main(["export", what, USBPO, "--output", "out", *words]) == 0


def test_arguments_of_the_users_own_leave_the_id_to_the_configuration(pulled: Path) -> None:
    says(environment_arguments='{"x": 1}')(pulled)
    words = ["--environment-arguments", '{"reset_noise_scale": 0.02}']
    assert cli.main(["export", "policy", USBPO, "--output", "out", *words]) == 0
    example = (pulled / "out/example.py").read_text()
    assert "gymnasium.make('InvertedPendulum-v5', **{'reset_noise_scale': 0.02})" in example


def test_a_run_without_a_configuration_is_named_with_its_cure(pulled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (pulled / "data/runs/test-pendulum").rename(pulled / "data/runs/Foreign")
    for path in [*pulled.glob("data/runs/**/*.h5"), *pulled.glob("data/runs/**/*.safetensors")]:
        reheaded(path, task="Foreign")
    for what in ("minari", "policy"):
        error = refused(capfd, "export", what, "Foreign", "--output", "out")
        assert (
            "Foreign/test-usbpo/seed-0: its configuration, which tells the environment, cannot be used: unknown task"
            in error
        )
        assert error.endswith("or add --environment ID.\n")


def test_an_environment_of_other_sizes_is_named(pulled: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for what in ("minari", "policy"):
        error = refused(capfd, "export", what, USBPO, "--output", "out", "--environment", "Hopper-v5")
        assert "4 observations and" in error
        assert "Hopper-v5 has 11 and 3; name" in error


# ---- user modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("data/evil.py", "data.evil"),
        ("data/imported/evil.py", "data.imported.evil"),
        ("data/runs/package/__init__.py", "data.runs.package"),
        ("data/runs/package/evil.py", "data.runs.package.evil"),
    ],
)
def test_no_module_is_taken_from_below_data(pulled: Path, place: str, name: str) -> None:
    marker = pulled / "evil has run"
    (pulled / place).parent.mkdir(parents=True, exist_ok=True)
    (pulled / place).write_text(EVIL.format(marker=str(marker)))
    for take in (
        lambda: make(f"{name}:Env-v0"),
        lambda: terminations.find(f"{name}:ends"),
        lambda: usercode.import_module(name),
    ):
        with pytest.raises(UsbpoError, match=f"the module '{name}' is .*, below data/, where no code is looked for"):
            take()
    assert not marker.exists()


def test_no_module_is_taken_from_the_data_of_a_workspace_that_one_stands_in_or_that_is_on_the_path(
    pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pulled / ".snakemake").mkdir()
    (pulled / "data/exports").mkdir()
    (pulled / "data/exports/evil_beside.py").write_text(EVIL.format(marker=str(pulled / "evil has run")))
    (pulled / "linked").symlink_to("data", target_is_directory=True)
    monkeypatch.chdir(pulled / "data/exports")
    with pytest.raises(UsbpoError, match="below data/"):
        make("evil_beside:Env-v0")
    monkeypatch.chdir(pulled.parent)
    for folder in (pulled / "data/exports", pulled / "linked/exports"):
        monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
        with pytest.raises(UsbpoError, match="below data/"):
            make("evil_beside:Env-v0")
    assert not (pulled / "evil has run").exists()


def test_a_module_in_a_folder_that_is_called_data_and_is_no_workspaces_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "data/project"
    home.mkdir(parents=True)
    (home / "module_of_mine.py").write_text("def ends(observations):\n    return observations[:, 0] > 0\n")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert usercode.import_module("module_of_mine").__file__ == str(home / "module_of_mine.py")


# ---- the example -----------------------------------------------------------------------------------------------------


def test_an_exported_example_imports_nothing_that_lies_beside_it(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, marker = tmp_path / "data/exports/policy", tmp_path / "evil has run"
    words = ["--environment", "evil:Env-v0", "--environment-arguments", "{}"]
    assert cli.main(["export", "policy", USBPO, "--folder", str(finished), "--output", str(out)]) == 0
    for name in ("gymnasium", "torch", "safetensors", "json", "evil"):
        (out / f"{name}.py").write_text(EVIL.format(marker=str(marker)))

    def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
        )

    for words, folder in ((["example.py"], out), (["policy/example.py"], out.parent)):
        done = run(*words, folder=folder)
        assert done.stdout.startswith("return "), done.stderr
    example = out / "example.py"
    example.write_text(example.read_text().replace("InvertedPendulum-v5", "evil:Env-v0"))
    assert "No module named 'evil'" in run("example.py", folder=out).stderr
    assert not marker.exists()


# ---- nothing is left outside the workspace ---------------------------------------------------------------------------


def verbs_of_a_user(folder: Path) -> dict[str, list[str]]:
    """Command lines of every verb that reads or writes, for a workspace with a finished test experiment."""
    runs = f"{USBPO}:cycles=3:cycle_steps=30:phase2=yes:theory=yes"
    return {
        "status": ["status"],
        "inspect": ["inspect", f"data/runs/{USBPO}/00003/policy.safetensors"],
        "results": ["results", "--experiment", "e", "--runs", runs, "--output", "data/results/e"],
        "plan": ["plan", "test"],
        "submit": ["submit", "test", "--dry-run"],
        "gc": ["gc", "test"],
        "check-task": ["check-task", "test-pendulum"],
        "tensorboard": ["tensorboard"],
        "video": ["video", USBPO, "--seconds", "0.2"],
        "schema": ["schema", "schemas"],
        "export minari": ["export", "minari", USBPO],
        "export policy": ["export", "policy", USBPO],
        "import minari": ["import", "minari", "test-pendulum-test-usbpo-seed-0-v0", "--task", "test-pendulum"],
        "import minari without": ["import", "minari", "nothing-v0", "--task", "test-pendulum"],
        "import hdf5": ["import", "hdf5", "recording.hdf5", "--task", "test-pendulum"],
    }


ALL = """
import json, os, sys
from usbpo.worker.client import main

for words in json.loads(sys.stdin.read()):
    child = os.fork()
    if child == 0:
        sys.argv = ["usbpo", *words]
        if words[:2] == ["import", "minari"] and words[2] != "nothing-v0":
            os.environ["MINARI_DATASETS_PATH"] = "data/exports/minari"
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    print(words, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sorted(os.listdir(os.environ["HOME"])), flush=True)
"""


def test_no_verb_leaves_anything_in_home(finished: Path, tmp_path: Path) -> None:
    workspace, home, temporary = (tmp_path / name for name in ("workspace", "home", "temporary"))
    for folder in (home, temporary):
        folder.mkdir()
    shutil.copytree(finished, workspace, symlinks=True)
    write_recording(workspace / "recording.hdf5")
    commands = verbs_of_a_user(workspace)
    kept = {n: v for n, v in environment().items() if not n.startswith(("XDG_", "MPL", "MINARI", "ORT_", "TRITON"))}
    done = subprocess.run(
        [sys.executable, "-c", ALL],
        cwd=workspace,
        env={**kept, "HOME": str(home), "TMPDIR": str(temporary)},
        input=json.dumps(list(commands.values())),
        capture_output=True,
        text=True,
        timeout=900,
    )
    ended = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(ended) == len(commands), done.stderr
    for name, line in zip(commands, ended, strict=True):
        may_fail = name == "import minari without" or (name == "video" and "no OpenGL renderer" in done.stderr)
        assert line.endswith("] 1 []" if may_fail else "] 0 []"), (name, line, done.stderr)
    assert not list(home.iterdir())
    assert not list(temporary.iterdir()), "temporary files are removed"


def write_recording(path: Path) -> None:
    """Two steps of the pendulum that end by their time limit."""
    import h5py
    import numpy as np

    with h5py.File(path, "w") as file:
        for name in ("observations", "next_observations"):
            file[name] = np.zeros((2, 4))
        file["actions"], file["rewards"] = np.zeros((2, 1)), np.ones(2)
        file["terminals"], file["timeouts"] = np.zeros(2, np.bool_), np.array([False, True])
