"""How Triton's kernels of both networks are launched: where a network lies, and what a kernel takes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from usbpo.numerics.optimizer import flat_places, flat_size

PRECISION = "tf32x3"
"""Of the products: each is split into three of TF32, which is as exact as float32."""


def network_places(stored: Mapping[str, tuple[int, ...]], layers: int) -> dict[str, int]:
    """Where the layers of a network lie in its flat buffer, by the names that the kernels have for it.

    Args:
        stored: shapes of the network's tensors as they lie there.
        layers: its hidden layers.
    """
    places = flat_places(stored)
    second, third = (places[f"weight.{n}"] if n < layers else 0 for n in (1, 2))
    return {
        "W0": places["weight.0"], "B0": places["bias.0"],
        "W1": second, "B1": places["bias.1"] if layers > 1 else 0, "HOP": third - second if layers > 2 else 0,
        "WL": places[f"weight.{layers}"], "BL": places[f"bias.{layers}"], "SIZE": flat_size(stored),
    }  # fmt: skip


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, constants: Mapping[str, Any], *given: Tensor | float
) -> None:
    """Launch a kernel with those of the constants that it takes.

    Args:
        grid: how many programs.
        warps: of each program.
        given: its other arguments, in order.
    """
    taken = {name: value for name, value in constants.items() if name in kernel.arg_names}
    kernel[grid](*given, **taken, num_warps=warps)


def padded(size: int) -> int:
    """The power of two, 16 at least, that a product wants in place of `size`."""
    return max(16, 1 << (size - 1).bit_length())
