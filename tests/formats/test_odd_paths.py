"""Inputs that are not what they should be, in every verb that reads files: one sentence, and no traceback."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.artifacts import sealed
from helpers.workflow import BIN, USBPO, environment, finished_workspace

from usbpo.artifacts import layout, metrics, sealing
from usbpo.commands import cli
from usbpo.experiment.named import NamedRun

RUN = f"data/runs/{USBPO}"
LONG = "x" * 5000
RESULTS = ("results", "--experiment", "e", "--output", "out", "--runs")
WHOLE = f"{USBPO}:cycles=3:cycle_steps=30:phase2=yes:theory=yes"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a run and its results, in which this process is; to be changed."""
    for name in (RUN, "data/results/test"):
        shutil.copytree(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_by(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a command ends."""
    capfd.readouterr()
    code = cli.main([*words])
    error = capfd.readouterr().err
    assert code == 1, error
    assert error.startswith(f"usbpo {words[0]}: ")
    assert error.endswith(".\n")
    assert len(error.splitlines()) == 1, error
    assert len(error) < 2000, error
    return error


# ---- something else in a file's place --------------------------------------------------------------------------------


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def into_a_file(path: Path) -> None:
    path.with_name("file").touch()
    path.symlink_to("file/below")


INSTEAD = (folder, dangling, circle, fifo, into_a_file)

READERS = {
    "tensorboard, evaluation": (f"{RUN}/00002/evaluation.h5", ("tensorboard", USBPO)),
    "tensorboard, shard": (f"{RUN}/data/00002.h5", ("tensorboard", USBPO)),
    "tensorboard, metrics": (f"{RUN}/00003/phase2.json", ("tensorboard", USBPO)),
    "video, policy": (f"{RUN}/00003/policy.safetensors", ("video", USBPO)),
    "video, evaluation": (f"{RUN}/00003/evaluation.h5", ("video", USBPO)),
    "export, policy": (f"{RUN}/00002/policy.safetensors", ("export", "policy", USBPO, "--cycle", "2")),
    "export, evaluation": (f"{RUN}/00003/evaluation.h5", ("export", "policy", USBPO)),
    "export, shard": (f"{RUN}/data/00001.h5", ("export", "minari", USBPO)),
    "inspect, rollouts": (f"{RUN}/00001/rollouts.h5", ("inspect", f"{RUN}/00001/rollouts.h5")),
    "inspect, metrics": (f"{RUN}/00001/phase1.json", ("inspect", f"{RUN}/00001/phase1.json")),
    "results, evaluation": (f"{RUN}/00000/evaluation.h5", (*RESULTS, WHOLE)),
    "results, metrics": (f"{RUN}/00003/policy.json", (*RESULTS, WHOLE)),
    "results, rows": (f"{RUN}/00003/theory.h5", (*RESULTS, WHOLE)),
    "import": ("recording.hdf5", ("import", "hdf5", "recording.hdf5", "--task", "test-pendulum")),
}


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("case", READERS)
def test_what_is_no_file_is_named(
    workspace: Path, capfd: pytest.CaptureFixture[str], case: str, instead: Callable[[Path], None]
) -> None:
    name, words = READERS[case]
    (workspace / name).unlink(missing_ok=True)
    instead(workspace / name)
    assert name in said_by(capfd, *words)


def test_files_of_a_run_that_are_merely_missing_are_left_out_of_event_files(workspace: Path) -> None:
    for name in ("00002/evaluation.h5", "00003/phase2.json", "data/00003.h5"):
        (workspace / RUN / name).unlink()
    assert cli.main(["tensorboard", USBPO]) == 0


@pytest.mark.parametrize("instead", [folder, dangling, fifo])
def test_an_evaluations_csv_that_is_no_file_names_no_runs(
    workspace: Path, capfd: pytest.CaptureFixture[str], instead: Callable[[Path], None]
) -> None:
    (workspace / "data/results/test/evaluations.csv").unlink()
    instead(workspace / "data/results/test/evaluations.csv")
    assert "data/results/test: no run has this name" in said_by(capfd, "tensorboard", "data/results/test")


# ---- names that no file can have -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("tensorboard", LONG),
        ("tensorboard", USBPO, "--folder", LONG),
        ("tensorboard", USBPO, "--output", LONG),
        ("video", LONG),
        ("video", USBPO, "--output", f"{LONG}.gif", "--seconds", "0.1"),
        ("export", "policy", LONG),
        ("export", "policy", USBPO, "--output", LONG),
        ("export", "minari", USBPO, "--output", LONG),
        ("inspect", LONG),
        ("inspect", f"{LONG}.json"),
        ("inspect", "/".join(["x"] * 5000) + ".h5"),
        ("results", "--experiment", "e", "--runs", WHOLE, "--output", LONG),
        ("results", "--experiment", "e", "--runs", f"{LONG}/m/seed-0:cycles=1:cycle_steps=1", "--output", "out"),
        ("results", "--experiment", "e", "--runs", WHOLE, "--output", "out", "--folder", LONG),
        ("import", "hdf5", LONG, "--task", "test-pendulum"),
        ("import", "hdf5", __file__, "--task", "test-pendulum", "--output", LONG),
        ("import", "minari", LONG, "--task", "test-pendulum"),
        ("status", LONG),
        ("check-task", f"{LONG}.yaml"),
        ("schema", LONG),
    ],
    ids=lambda words: " ".join(word[:20] for word in words),
)
def test_a_path_of_five_thousand_letters_ends_in_a_sentence(
    workspace: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    said_by(capfd, *words)


# ---- what cannot be read or entered ----------------------------------------------------------------------------------


READS_EVERYTHING = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root may read what nobody may"""
PR_CAPBSET_DROP = 24


def as_anybody() -> None:
    """Have what this process starts read only what permissions allow, even where it is root's."""
    for capability in READS_EVERYTHING:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / words[0], *words[1:]], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
        preexec_fn=as_anybody if os.geteuid() == 0 else None,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="permissions are laid aside by what Linux has alone")
@pytest.mark.parametrize("case", [*READERS, "folder of the run", "folder of all runs", "a cycle's folder"])
def test_what_must_not_be_read_or_entered_is_named(workspace: Path, case: str) -> None:
    (workspace / "recording.hdf5").touch()
    folders = {
        "folder of the run": (RUN, ("video", USBPO)),
        "folder of all runs": ("data/runs", ("tensorboard", USBPO)),
        "a cycle's folder": (f"{RUN}/00002", ("tensorboard", USBPO)),
    }
    name, words = (READERS | folders)[case]
    (workspace / name).chmod(0)
    read = ["cat" if (workspace / name).is_file() else "ls", str(workspace / name)]
    if subprocess.run(read, capture_output=True, preexec_fn=as_anybody).returncode == 0:
        pytest.skip("root cannot lay its privileges aside here")
    done = typed(workspace, "usbpo", *words)
    (workspace / name).chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"usbpo {words[0]}: ")
    assert Path(name).name in done.stderr


# ---- damaged tables and metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"task,method\nHopper,usbpo\n",
        b"task,method,seed\nHopper,usbpo,none\n",
        b"task,method,seed\nHopper\n",
        b"\xff\xfe\x00",
        b"task,method,seed\n\x00,usbpo,0\n",
        b'task,method,seed\n"' + b"x" * 200_000,
        b"task,method,seed\n../../../../home,usbpo,0\n",
        b"task,method,seed\n/etc,usbpo,0\n",
        b"task,method,seed\nHopper,..,0\n",
        b"task,method,seed\nHopper,us\x1b[2Jbpo,0\n",
        b"task,method,seed\n,,0\n",
    ],
)
def test_an_evaluations_csv_that_names_no_runs_ends_in_a_sentence(
    workspace: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    (workspace / "data/results/test/evaluations.csv").write_bytes(content)
    before = sorted(workspace.rglob("*"))
    said = said_by(capfd, "tensorboard", "data/results/test")
    assert "data/results/test" in said
    assert "\x1b" not in said
    assert sorted(workspace.rglob("*")) == before, "nothing is written, least of all elsewhere"


NUMBERS = {
    "policy.json": ("history", 0, "critic_loss"),
    "phase1.json": ("holdout_mse", 0),
    "phase2.json": ("after", "bias"),
    "theory.json": ("holdout", "after", "spread"),
}
COUNTS = {
    "policy.json": ("updates",),
    "phase1.json": ("elites", 0),
    "phase2.json": ("steps",),
    "theory.json": ("depth", 0, "branches"),
}


def put(path: Path, place: tuple[str | int, ...], value: object) -> None:
    content, _ = metrics.read(path)
    inner = content
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    sealed(path, json.dumps({sealing.KEY: sealing.UNSEALED, **content}).encode())


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_no_stage_writes_are_named(workspace: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    path = NamedRun(workspace, "test-pendulum", "test-usbpo", 0).path(layout.CYCLE, 2) / name
    whole = path.read_bytes()
    for place, values in ((NUMBERS[name], (1e300, -1e200, "3", [], 10**400)), (COUNTS[name], (-1, 10**400, 2.5, True))):
        for value in values:
            put(path, place, value)
            said = said_by(capfd, *RESULTS, WHOLE)
            assert f"00002/{name}: " in said
            assert "cannot be used" in said or "do not fit one ensemble" in said
            path.write_bytes(whole)
    assert not (workspace / "out").exists()


@pytest.mark.parametrize("name", NUMBERS)
def test_metrics_that_are_no_json_are_named(workspace: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    path = NamedRun(workspace, "test-pendulum", "test-usbpo", 0).path(layout.CYCLE, 2) / name
    for content in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": ' * 5000, b'{"cycle": 1e999}'):
        path.write_bytes(content)
        for words in ((*RESULTS, WHOLE), ("tensorboard", USBPO)):
            assert f"00002/{name}: " in said_by(capfd, *words)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("policy.json", ("history", 0, "update"), 10**30),
        ("policy.json", ("updates",), 1e-300),
        ("policy.json", ("history", 0, "temperature"), 10**400),
        ("phase1.json", ("epochs",), 10**400),
        ("phase1.json", ("elites",), {}),
        ("phase2.json", ("before",), "bias"),
        ("rollout.json", ("length",), json.loads("[" * 50 + "]" * 50)),
    ],
)
def test_metrics_that_no_event_can_hold_are_named(
    workspace: Path, capfd: pytest.CaptureFixture[str], name: str, place: tuple[str | int, ...], value: object
) -> None:
    path = workspace / RUN / "00002" / name
    put(path, place, value)
    assert f"00002/{name}: it cannot be used" in said_by(capfd, "tensorboard", USBPO)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: data.rindex(b",")],  # a row without its return
        lambda data: data[: data.rindex(b"\n", 0, -1) + 1],  # a seed without its last point
        lambda data: data.replace(b"Hopper,sac", b"Hopper,sad"),
        lambda data: data.replace(b"env_steps", b"steps"),
        lambda data: data.replace(b",10000,", b",many,"),
        lambda data: data[: data.index(b"\n")],
        lambda data: data[:5000] + b"\xff" + data[5000:],
        lambda _: b"",
    ],
)
def test_published_curves_that_are_damaged_are_named(
    workspace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
) -> None:  # fmt: skip
    from usbpo.report import published

    copy = workspace / "published_curves.csv"
    copy.write_bytes(change(published.DATA.read_bytes()))
    monkeypatch.setattr(published, "DATA", copy)
    published._curves.cache_clear()
    try:
        assert "published_curves.csv: the file is missing or damaged (" in said_by(capfd, *RESULTS, WHOLE)
    finally:
        published._curves.cache_clear()
