"""Where a stage computes: the choice of a device, and CUDA graphs behind one small interface."""

import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TypeVar

import torch
from torch import Tensor

from usbpo.errors import UsbpoError
from usbpo.numerics import gpus

WARM_UP = 3
"""Calls before a capture: the first ones load kernels and allocate workspaces, which no capture may."""

Result = TypeVar("Result")


def choose(name: str) -> torch.device:
    """The device of a stage; `auto` is CUDA where there is a GPU, and of several GPUs the one that `gpus` takes.

    Only a stage asks, never the warm worker: CUDA's state does not survive a fork.

    Raises:
        UsbpoError: the name is unknown, or CUDA is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsbpoError(f"device must be auto, cpu or cuda, but is {name!r}; mend the value.")
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise UsbpoError("device is cuda, but torch finds no CUDA GPU here; set device to auto or cpu.")
        return torch.device("cpu")
    return torch.device("cuda", gpus.taken())


def has_kernels(device: torch.device) -> bool:
    """Whether fused kernels may run on a device: a GPU, Triton, and what it compiles their launchers with.

    Triton comes with torch's CUDA builds; it wants a C compiler and Python's headers. Where one of them lacks, that is
    told once. Whether compilation succeeds, only `fused_or_none` can tell.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    lacking = lacking_for_triton()
    if lacking:
        _tell_of_torch(f"they need {' and '.join(lacking)}, not found here")
    return not lacking


def lacking_for_triton() -> list[str]:
    """What Triton compiles with and does not find: nothing, or what to install."""
    lacking = []
    if not (os.environ.get("CC") or which("gcc") or which("clang")):
        lacking.append("a C compiler (gcc)")
    # Debian's own scheme has a folder without headers.
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        lacking.append("Python's headers (Python.h; Debian's package python3-dev)")
    return lacking


def fused_or_none(make: Callable[[], Result]) -> Result | None:
    """What `make` makes of fused kernels, which compiles and runs them; None where that fails, for whatever reason.

    Triton, the compiler, the linker and the driver each have errors of their own. What `make` goes on from must be as
    it was when it has failed.
    """
    try:
        return make()
    except Exception as error:
        _tell_of_torch((str(error).strip() or repr(error)).splitlines()[0][:200].rstrip("."))
        return None


@cache
def _tell_of_torch(reason: str) -> None:
    """Say in the log, once, why torch's kernels do the work."""
    print(f"usbpo: no fused kernels on this GPU ({reason}); torch's kernels do the same, more slowly.", file=sys.stderr)


def captured(
    function: Callable[[], Result], device: torch.device, changes: Sequence[Tensor] = ()
) -> Callable[[], Result]:
    """What does the same as `function`: on CUDA one replay of a graph of its kernels, on the CPU the function itself.

    Args:
        function: reads tensors that the caller fills in place, and returns tensors that it fills in place. It draws
            no random number, reads no value on the host, copies nothing between host and device, and does the same
            operations in every call.
        device: of all its tensors.
        changes: every tensor that it changes and goes on from in its next call, such as weights and moments; the
            calls before the capture leave no trace in them.

    Returns:
        A function that returns the tensors of `function`, the same ones in every call.
    """
    if device.type != "cuda":
        return function
    before = [tensor.detach().clone() for tensor in changes]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    with torch.no_grad():
        for tensor, old in zip(changes, before, strict=True):
            tensor.copy_(old)

    def replay() -> Result:
        graph.replay()
        return result

    return replay
