"""Where a stage computes: the choice of a device, and CUDA graphs behind one small interface."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
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
    """Whether fused kernels can run on a device: a GPU, Triton, and what compiles their launchers.

    Triton comes with torch's CUDA builds; it wants the system's C compiler.
    """
    return device.type == "cuda" and find_spec("triton") is not None and any(map(which, ("cc", "gcc", "clang")))


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
