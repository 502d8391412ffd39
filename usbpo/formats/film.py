"""Filming an episode: pictures of the simulator while the deterministic policy acts, as GIF or MP4.

To be imported only in a process that has an OpenGL renderer for MuJoCo's tasks; see `usbpo.formats.video`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray
from PIL import Image

from usbpo.agent import sac
from usbpo.agent.acting import OneByOne
from usbpo.artifacts.files import writing
from usbpo.environments.tasks import POLICY_SIZES, Simulator
from usbpo.errors import UsbpoError
from usbpo.numerics.optimizer import Params

WIDTH, HEIGHT = 320, 240
"""The largest picture, in pixels; MuJoCo's tasks fill it."""

FRAMES_PER_SECOND = 25
"""The most; four hundredths of a second is a time that GIF can express."""

CAMERA = "track"
"""The camera of Gymnasium's moving bodies; without it they leave the picture."""

COLOURS = 256
PALETTE_FRAMES = 16
"""Frames, spread over the episode, that the one palette of a GIF is made from"""

Frame = NDArray[np.uint8]
"""(height, width, 3)"""


class NoRenderer(Exception):
    """The OpenGL library that MUJOCO_GL names is missing or does not work."""


@dataclass(frozen=True)
class Film:
    """The pictures of one episode and what happened in it."""

    frames: list[Frame]
    frames_per_second: float
    total: float
    """Undiscounted return up to the last step"""
    steps: int
    ended: bool
    """Whether the episode ended, and not the film before it"""


def film(
    policy: Path, environment: str, arguments: Mapping[str, Any], episode_seed: int, seconds: float, output: Path
) -> Film:
    """Film one episode of a deterministic policy and write it to `output`.

    Args:
        policy: policy checkpoint.
        environment: Gymnasium id.
        arguments: the environment's keyword arguments.
        episode_seed: seed that the environment is reset with.
        seconds: most seconds of simulated time.
        output: .gif or .mp4.

    Raises:
        NoRenderer: a MuJoCo task cannot be drawn with this process's OpenGL.
        UsbpoError: the policy is missing, damaged or of another task, the environment gives no pictures, or the film
            cannot be written.
    """
    _, agent = sac.load(policy)
    simulator = drawn_simulator(environment, arguments)
    sizes = agent.architecture.obs_dim, agent.architecture.act_dim
    simulator.require_sizes(f"{policy}: the policy", sizes, "name the policy's own environment", said=POLICY_SIZES)
    made = film_episode(simulator, agent.actor, episode_seed, seconds)
    simulator.close()
    (write_gif if output.suffix == ".gif" else write_mp4)(made, output)
    return made


def drawn_simulator(environment: str, arguments: Mapping[str, Any]) -> Simulator:
    """The environment with pictures.

    Raises:
        UsbpoError: there is no such environment, or it has no pictures.
    """
    plain = Simulator(environment, arguments)
    modes = plain.env.metadata.get("render_modes") or []
    view = _view(plain, arguments)
    plain.close()
    if "rgb_array" not in modes:
        raise UsbpoError(
            f"environment {environment!r} cannot be filmed: rgb_array is not among its render modes "
            f"({', '.join(modes) or 'it has none'}); give it that mode."
        )
    return Simulator(environment, {**view, **arguments, "render_mode": "rgb_array"})


def _view(simulator: Simulator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Size and camera of a MuJoCo task: the one that goes with the body where there is one, unless it is given."""
    base: Any = simulator.env.unwrapped
    if not isinstance(base, MujocoEnv):
        return {}
    size = {"width": WIDTH, "height": HEIGHT}
    follows = mujoco.mj_name2id(base.model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA) >= 0
    own = {"camera_id", "camera_name", "default_camera_config"} & arguments.keys()
    return {**size, "camera_name": CAMERA} if follows and not own else size


def film_episode(simulator: Simulator, actor: Params, seed: int, seconds: float) -> Film:
    """Run an episode as the stage `evaluate` does, and take pictures in real time.

    Raises:
        NoRenderer, UsbpoError: as `film`.
    """
    steps_per_second = _steps_per_second(simulator)
    frames_per_second = min(float(FRAMES_PER_SECOND), steps_per_second)
    policy, observation = OneByOne(actor), simulator.reset(seed)
    frames, total, steps, ended = [_picture(simulator)], 0.0, 0, False
    while not ended and steps < seconds * steps_per_second:
        step = simulator.step(policy.mean(observation))
        observation, total, steps = step.observation, total + step.reward, steps + 1
        ended = step.terminated or step.truncated
        # The step that is nearest to the time of the next picture.
        if ended or steps == round(len(frames) * steps_per_second / frames_per_second):
            frames.append(_picture(simulator))
    return Film(frames, frames_per_second, total, steps, ended)


def _steps_per_second(simulator: Simulator) -> float:
    """Simulated steps in a second: what the environment says, or one for each picture."""
    told = simulator.env.metadata.get("render_fps")
    return float(told) if told else float(FRAMES_PER_SECOND)


def _picture(simulator: Simulator) -> Frame:
    env: Any = simulator.env
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = env.render()
    except Exception as error:  # whatever a driver, PyOpenGL or a user's environment raises
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(env.unwrapped, MujocoEnv):
            raise NoRenderer(reason) from error
        raise UsbpoError(f"environment {env.spec.id!r} cannot be filmed: {reason}.") from error
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise UsbpoError(
            f"environment {env.spec.id!r} cannot be filmed: it draws {picture.dtype} of shape {list(picture.shape)}, "
            "not uint8 of (height, width, 3)."
        )
    scale = min(1.0, WIDTH / picture.shape[1], HEIGHT / picture.shape[0])
    # Even numbers of pixels, which video codecs ask for.
    width, height = (max(2, round(length * scale / 2) * 2) for length in (picture.shape[1], picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def write_gif(made: Film, path: Path) -> None:
    """Write a GIF that repeats for ever. All frames share one palette, without dither, so that it stays small."""
    chosen = np.linspace(0, len(made.frames) - 1, min(PALETTE_FRAMES, len(made.frames))).round().astype(int)
    palette = Image.fromarray(np.concatenate([made.frames[n] for n in chosen])).quantize(COLOURS)
    frames = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in made.frames]
    with writing(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 / made.frames_per_second),
            loop=0,
        )


def write_mp4(made: Film, path: Path) -> None:
    """Write an MP4 (H.264), with imageio-ffmpeg."""
    video: Any = imageio.imwrite(
        "<bytes>", np.stack(made.frames), extension=".mp4", plugin="FFMPEG", fps=made.frames_per_second,
        macro_block_size=2,
    )  # fmt: skip
    with writing(path) as temporary:
        temporary.write_bytes(video)
