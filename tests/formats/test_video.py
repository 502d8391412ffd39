"""Videos: the episode that `evaluate` would see, in real time; sentences that say what to install or to change."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.workflow import BIN, USBPO, Job, environment, finished_workspace, planned, snakemake
from PIL import Image

from usbpo.artifacts import layout
from usbpo.commands import cli
from usbpo.experiment.named import NamedRun
from usbpo.formats.video import VARIABLE, renderers

OF_USBPO = f"data/runs/{USBPO}"
LAST = f"{OF_USBPO}/00003/policy.safetensors"
VIDEO = f"data/videos/{USBPO}/00003.gif"

OWN = '''
import gymnasium
import numpy as np


class Strip(gymnasium.Env):
    """A bar that moves one pixel a step for 30 steps, 50 steps a second; its pictures are larger than a film's."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (OBSERVATIONS,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None, depth=3):
        self.render_mode = render_mode
        self.depth = depth

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(OBSERVATIONS), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(OBSERVATIONS), 2.0, self.steps == 30, False, {}

    def render(self):
        picture = np.zeros((480, 640, self.depth), np.uint8)
        picture[:, 10 * self.steps : 10 * self.steps + 20] = 255
        return picture


class Blind(Strip):
    metadata = {"render_modes": ["human"]}


class Broken(Strip):
    def render(self):
        raise OSError("the lamp is out")


for kind in (Strip, Blind, Broken):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=100)
gymnasium.register("Wide-v0", lambda **keywords: Strip(**keywords), max_episode_steps=100)
'''


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished test experiment; not to be changed."""
    return finished_workspace(tmp_path_factory)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with importable modules that register environments: `strip` of the policy's size, `wide` of another."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "strip.py").write_text(OWN.replace("OBSERVATIONS", "4"))
    (folder / "wide.py").write_text(OWN.replace("OBSERVATIONS", "7"))
    return folder


def usbpo_video(*arguments: str, drop: Sequence[str] = (), **changes: str) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own, as a user types it; `drop` are variables of the environment to take away."""
    variables = {name: value for name, value in environment(**changes).items() if name not in drop}
    return subprocess.run([BIN / "usbpo", "video", *arguments], env=variables, capture_output=True, text=True)


def own_video(finished: Path, modules: Path, name: str, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = (USBPO, "--folder", str(finished), "--environment", name, "--output", str(output), *more)
    return usbpo_video(*words, PYTHONPATH=str(modules))


@pytest.fixture(scope="session")
def with_renderer(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where MuJoCo can draw nothing, for the reason that the verb gives."""
    output = tmp_path_factory.mktemp("renderer") / "short.gif"
    done = usbpo_video(USBPO, "--folder", str(finished), "--seconds", "0.1", "--output", str(output))
    if done.returncode:
        pytest.skip(done.stderr.strip())


def frames(path: Path) -> list[np.ndarray]:
    """The pictures of a GIF, (height, width, 3) each."""
    with Image.open(path) as image:
        found = []
        for n in range(image.n_frames):
            image.seek(n)
            found.append(np.asarray(image.convert("RGB")))
    return found


# ---- any environment: needs no OpenGL ------------------------------------------------------------------------------


def test_a_film_runs_in_real_time_and_is_never_larger_than_its_frame(
    finished: Path, modules: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own/strip.gif"
    done = own_video(finished, modules, "strip:Strip-v0", path)
    assert done.returncode == 0, done.stderr
    assert "return 60.0 in 30 steps, the episode to its end" in done.stdout
    with Image.open(path) as image:
        assert image.info["duration"] == 40, "hundredths of a second are what GIF knows: 25 a second"
        assert image.info["loop"] == 0
        assert image.size == (320, 240)
    pictures = frames(path)
    assert len(pictures) == 16, "50 steps a second: every second step, and the first"
    bars = [int(np.flatnonzero(picture[120, :, 0] > 128)[0]) for picture in pictures]
    assert bars == [10 * n for n in range(16)]
    assert [path.name for path in path.parent.iterdir()] == ["strip.gif"]


def test_without_a_name_it_lies_below_the_folder_that_holds_the_run(
    finished: Path, modules: Path, tmp_path: Path
) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(finished / OF_USBPO / "00003", root / OF_USBPO / "00003")
    words = ["video", USBPO, "--folder", root, "--environment", "strip:Strip-v0", "--seconds", "0.1"]
    variables = environment(PYTHONPATH=str(modules))
    done = subprocess.run([BIN / "usbpo", *words], env=variables, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (root / VIDEO).is_file()
    assert not list(elsewhere.iterdir())


def test_seconds_cut_the_film(finished: Path, modules: Path, tmp_path: Path) -> None:
    done = own_video(finished, modules, "strip:Strip-v0", tmp_path / "cut.gif", "--seconds", "0.2")
    assert "return 20.0 in 10 steps, the episode so far" in done.stdout, done.stderr
    assert len(frames(tmp_path / "cut.gif")) == 6


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("strip:Blind-v0", (), "rgb_array is not among its render modes (human); give it that mode"),
        ("strip:Broken-v0", (), "cannot be filmed: the lamp is out."),
        (
            "strip:Strip-v0",
            ("--environment-arguments", '{"depth": 1}'),
            "draws uint8 of shape [480, 640, 1], not uint8 of (height, width, 3)",
        ),
        ("wide:Wide-v0", (), "takes 4 observations and gives 1 actions, but wide:Wide-v0 has 7 and 1"),
        ("strip:Nowhere-v0", (), "Nowhere"),
    ],
)
def test_an_environment_that_cannot_be_filmed_is_told_in_a_sentence(
    finished: Path, modules: Path, tmp_path: Path, name: str, more: tuple[str, ...], said: str
) -> None:
    done = own_video(finished, modules, name, tmp_path / "no.gif", *more)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("usbpo video: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---- MuJoCo ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_renderer")
def test_the_film_is_of_the_first_evaluation_episode(finished: Path, tmp_path: Path) -> None:
    words = (USBPO, "--folder", str(finished), "--seconds", "60")
    first, second = (tmp_path / name for name in ("first.gif", "second.gif"))
    done = usbpo_video(*words, "--cycle", "0", "--output", str(first))
    assert done.returncode == 0, done.stderr
    with h5py.File(finished / f"{OF_USBPO}/00000/evaluation.h5") as file:
        expected, steps = float(file["returns"][0]), int(file["lengths"][0])
    assert f"return {expected:.1f} in {steps} steps, the episode to its end" in done.stdout
    assert usbpo_video(*words, "--cycle", "0", "--output", str(second)).returncode == 0
    assert first.read_bytes() == second.read_bytes(), "equal inputs, equal bytes"
    pictures = frames(first)
    assert pictures[0].shape == (240, 320, 3)
    assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 10, "it shows something"
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50, "which moves"
    assert usbpo_video(*words, "--cycle", "0", "--episode-seed", "7", "--output", str(second)).returncode == 0
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.usefixtures("with_renderer")
def test_the_target_films_last_policies_and_is_no_part_of_all(finished: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace")
    assert planned(workspace, VIDEO) == {Job("video", USBPO, 3)}
    done = snakemake(workspace, "videos")
    assert done.code == 0, done.said
    assert sorted(str(path.relative_to(workspace)) for path in (workspace / "data/videos").rglob("*.gif")) == [
        VIDEO.replace("usbpo", "mbpo"),
        VIDEO,
    ]
    assert not planned(workspace, VIDEO)


HIDES_OPENGL = """
import ctypes, ctypes.util

found, loaded = ctypes.util.find_library, ctypes.CDLL.__init__

def hidden(name):
    return name and any(word in name.lower() for word in ("egl", "osmesa", "opengl", "libgl."))

def load(self, name, *arguments, **keywords):
    if hidden(name):
        raise OSError(f"{name}: cannot open shared object file")
    loaded(self, name, *arguments, **keywords)

ctypes.util.find_library = lambda name: None if hidden(name) else found(name)
ctypes.CDLL.__init__ = load
"""


@pytest.mark.parametrize("chosen", ["", "egl", "osmesa"])
def test_without_opengl_it_says_what_to_install(finished: Path, tmp_path: Path, chosen: str) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/sitecustomize.py").write_text(HIDES_OPENGL)
    words = (USBPO, "--folder", str(finished), "--output", str(tmp_path / "no.gif"))
    drop = () if chosen else (VARIABLE,)
    done = usbpo_video(*words, drop=drop, PYTHONPATH=str(tmp_path / "hidden"), **({VARIABLE: chosen} if chosen else {}))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no OpenGL renderer works here" in done.stderr
    assert "apt-get install libosmesa6" in done.stderr
    assert (f"unset {VARIABLE}" in done.stderr) == bool(chosen)
    assert not (tmp_path / "no.gif").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere GLFW needs no display variable")
def test_a_renderer_that_fails_at_its_work_is_named(finished: Path, tmp_path: Path) -> None:
    words = (USBPO, "--folder", str(finished), "--output", str(tmp_path / "no.gif"))
    done = usbpo_video(*words, drop=("DISPLAY", "WAYLAND_DISPLAY"), **{VARIABLE: "glfw"})
    assert done.returncode == 1
    assert re.search(rf"no OpenGL renderer works here \({VARIABLE}=glfw: .+\); unset {VARIABLE}, or", done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_software_comes_first_without_a_display_and_the_users_own_choice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in (VARIABLE, "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert list(renderers())[:2] == ["osmesa", "egl"]
    monkeypatch.setenv("DISPLAY", ":0")
    assert renderers()[0] == "glfw"
    monkeypatch.setenv(VARIABLE, "egl")
    assert list(renderers()) == ["egl"]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cycle", "7"), "00007/policy.safetensors: there is no such policy; choose another --cycle"),
        (("--output", "film.avi"), "film.avi: its name must end in .gif or .mp4"),
    ],
)
def test_bad_options_end_in_a_sentence(
    finished: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert cli.main(["video", USBPO, "--folder", str(finished), *words]) == 1
    assert said in capfd.readouterr().err


def test_mp4_says_what_it_needs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["video", USBPO, "--folder", str(finished), "--output", str(tmp_path / "film.mp4")]) == 1
    assert "MP4 needs imageio-ffmpeg; `pip install imageio-ffmpeg`, or write a .gif" in capfd.readouterr().err


def test_a_run_without_policies_or_without_a_configuration_is_named(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / OF_USBPO / "00003").mkdir(parents=True)
    assert cli.main(["video", USBPO, "--folder", str(tmp_path)]) == 1
    assert "it holds no policy yet" in capfd.readouterr().err
    nameless = NamedRun(tmp_path, "nowhere", "test-usbpo", 0)
    nameless.path(layout.POLICY, 3).parent.mkdir(parents=True)
    shutil.copy(finished / LAST, nameless.path(layout.POLICY, 3))
    assert cli.main(["video", nameless.name, "--folder", str(tmp_path)]) == 1
    said = capfd.readouterr().err
    assert "unknown task 'nowhere'" in said
    assert said.endswith("or add --environment ID.\n")


def test_a_damaged_policy_is_named(finished: Path, modules: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(finished / OF_USBPO / "00003", root / OF_USBPO / "00003")
    os.truncate(root / LAST, 1000)
    done = own_video(root, modules, "strip:Strip-v0", tmp_path / "no.gif")
    assert done.returncode == 1
    assert "00003/policy.safetensors" in done.stderr
    assert "cut short or damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1
