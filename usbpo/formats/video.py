"""A video of a run's policy: which policy, which environment, and an OpenGL renderer that works on this machine.

MuJoCo takes its renderer from the variable MUJOCO_GL when it is imported, and a renderer that is missing or broken may
take its process with it. So the film is made in a process of its own, once for each renderer that may do, until one
does; the user's own MUJOCO_GL is the only one tried.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from usbpo.artifacts import layout
from usbpo.errors import UsbpoError
from usbpo.experiment.named import NamedRun
from usbpo.numerics.seeding import seed_sequence
from usbpo.workspace import lifetime

VARIABLE = "MUJOCO_GL"

WITHOUT_OPENGL = "disable"
"""The last that is tried: MuJoCo then draws nothing, but other environments need no OpenGL."""

WITHOUT_CACHES = {"MESA_SHADER_CACHE_DISABLE": "true", "__GL_SHADER_DISK_CACHE": "0"}
"""What keeps Mesa's and NVIDIA's OpenGL from leaving files in HOME"""

INSTALL = (
    "install one in software: on Debian or Ubuntu `apt-get install libosmesa6` or, where there is no such package, "
    "`apt-get install libegl1 libopengl0 libgl1-mesa-dri`; with conda `conda install -c conda-forge 'mesalib<25.1'`"
)

SAID, UNUSABLE = 1, 3
"""Exit codes of the film's process: a sentence for the user is on standard error; the renderer does not work."""


def video(
    run: NamedRun,
    cycle: int,
    environment: tuple[str, str],
    *,
    output: Path | None = None,
    episode_seed: int | None = None,
    seconds: float = 10.0,
) -> Path:
    """Film one episode of a run's deterministic policy.

    Equal inputs give equal bytes of a GIF with the same renderer and versions.

    Args:
        run: the run.
        cycle: cycle of the policy.
        environment: Gymnasium id and keyword arguments as JSON.
        output: .gif, or .mp4 where imageio-ffmpeg is installed; `layout.VIDEO` without it.
        episode_seed: seed of the episode; the one of the run's first evaluation episode without it.
        seconds: most seconds of simulated time.

    Returns:
        The file.

    Raises:
        UsbpoError: there is no such policy, the environment cannot be made or drawn, no renderer works, or the file
            cannot be written.
    """
    policy = run.path(layout.POLICY, cycle)
    if not run.has(layout.POLICY, cycle):
        raise UsbpoError(f"{policy}: there is no such policy; choose another --cycle, or none for the last.")
    if output is None:
        output = run.path(layout.VIDEO, cycle)
    if output.suffix not in (".gif", ".mp4"):
        raise UsbpoError(f"{output}: its name must end in .gif or .mp4.")
    if output.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsbpoError(f"{output}: MP4 needs imageio-ffmpeg; `pip install imageio-ffmpeg`, or write a .gif.")
    if episode_seed is None:
        episode_seed = int(seed_sequence(run.seed, 0, "evaluate").spawn(1)[0].generate_state(1)[0])
    told = {
        "policy": str(policy),
        "environment": environment[0],
        "arguments": environment[1],
        "episode_seed": episode_seed,
        "seconds": seconds,
        "output": str(output),
    }
    print(_filmed(json.dumps(told)))
    return output


def renderers() -> Sequence[str]:
    """The values of MUJOCO_GL to try, in order: the user's own alone, or software before all where no display is."""
    if own := os.environ.get(VARIABLE):
        return (own,)
    if sys.platform != "linux":
        return ("glfw",)
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return ("glfw", "egl", "osmesa", WITHOUT_OPENGL)
    return ("osmesa", "egl", WITHOUT_OPENGL)


def _filmed(told: str) -> str:
    """Have another process make the film, with the first renderer that works; what it says."""
    reasons = {}
    for renderer in renderers():
        done = subprocess.run(
            [sys.executable, "-P", "-m", "usbpo.formats.video", told],
            env={**WITHOUT_CACHES, **os.environ, VARIABLE: renderer},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
        )
        said = done.stderr.strip()
        if done.returncode == 0:
            return done.stdout.strip()
        if done.returncode == SAID:
            raise UsbpoError(said.splitlines()[-1])
        if done.returncode != UNUSABLE and done.returncode > 0:
            raise RuntimeError(f"the film's process failed:\n{said}")
        if renderer != WITHOUT_OPENGL:
            reasons[renderer] = said.splitlines()[-1] if done.returncode > 0 else f"signal {-done.returncode}"
    tried = "; ".join(f"{VARIABLE}={renderer}: {reason}" for renderer, reason in reasons.items())
    unset = f"unset {VARIABLE}, or " if os.environ.get(VARIABLE) else ""
    raise UsbpoError(f"no OpenGL renderer works here ({tried}); {unset}{INSTALL}.")


def main(told: str) -> int:
    """The film's own process, with MUJOCO_GL set: its exit code."""
    lifetime.end_with(lifetime.identity(os.getppid()))
    try:
        import mujoco  # noqa: F401 (loads the renderer)
    except Exception as error:  # whatever PyOpenGL raises where its library is missing
        print(_reason(error), file=sys.stderr)
        return UNUSABLE
    import torch

    from usbpo.environments.tasks import read_arguments
    from usbpo.formats.film import NoRenderer, film

    torch.set_num_threads(1)
    content = json.loads(told)
    output = Path(content["output"])
    try:
        made = film(
            Path(content["policy"]),
            content["environment"],
            read_arguments(content["arguments"]),
            content["episode_seed"],
            content["seconds"],
            output,
        )
    except NoRenderer as error:
        print(_reason(error), file=sys.stderr)
        return UNUSABLE
    except UsbpoError as error:
        print(error, file=sys.stderr)
        return SAID
    end = "to its end" if made.ended else "so far"
    print(
        f"{output}: {len(made.frames)} pictures, {made.frames_per_second:g} a second; "
        f"return {made.total:.1f} in {made.steps} steps, the episode {end}; drawn by {os.environ[VARIABLE]}"
    )
    return 0


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an OpenGL library may fail while it is unloaded
