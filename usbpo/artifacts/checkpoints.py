"""Checkpoints on disk: named tensors with a header, in safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from usbpo.artifacts import sealing
from usbpo.artifacts.header import Header
from usbpo.artifacts.identity import safetensors_header
from usbpo.errors import UsbpoError


def write(path: Path, header: Header, tensors: Mapping[str, torch.Tensor], cure: str = "") -> str:
    """Write tensors by name. All metadata is one JSON text: safetensors does not keep the order of several.

    Args:
        cure: what to do about numbers that are not finite.

    Returns:
        The artifact's digest.

    Raises:
        UsbpoError: it cannot be written, or a tensor holds NaN or infinities, with which no stage can go on.
    """
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UsbpoError(
                f"cycle {header.cycle}: {name} of the {header.kind} is no longer finite, so {path} was not written and "
                f"what stood before stands; {cure or 'give finite numbers'}."
            )
    metadata = {"header": f'{{"{sealing.KEY}": "{sealing.UNSEALED}", {header.to_json()[1:]}'}
    content = save({name: t.detach().contiguous() for name, t in sorted(tensors.items())}, metadata)
    return sealing.write(path, lambda file: file.write(content))


def read(path: Path, kind: str) -> tuple[Header, dict[str, torch.Tensor]]:
    """Read a checkpoint of one kind.

    Raises:
        UsbpoError: it is missing, damaged, of another kind, or holds NaN or infinities.
    """
    with sealing.opened(path, ".safetensors") as (file, digest):
        content = file.read()
    header = safetensors_header(path, content, digest)
    header.expect(path, kind)
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise UsbpoError(f"{path}: its tensors are damaged; {sealing.CURE}.") from error
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise UsbpoError(f"{path}: {name} holds NaN or infinity; delete it and run again.")
    return header, tensors


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def check_architecture(path: Path, what: str, found: object, expected: object) -> None:
    """Check the sizes of a checkpoint's networks against those expected, both dataclasses of one type.

    Raises:
        UsbpoError: a size differs.
    """
    for name, size in vars(found).items():
        asked = vars(expected)[name]
        if size != asked:
            raise UsbpoError(
                f"{path}: the {what}'s {name} is {size}, but {asked} is expected; "
                "give the checkpoint of this task and network width, or delete it and run again."
            )


def check_shapes(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    counts: Mapping[str, int | None],
) -> None:
    """Check that a checkpoint has exactly the expected tensors.

    Args:
        counts: the tensors that hold whole numbers from 0, and what these must be below; all others hold float32.

    Raises:
        UsbpoError: one is missing, unexpected, of another shape (another task or network width), or of another type.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise UsbpoError(f"{path}: the tensor {name} is missing; the checkpoint is of another architecture.")
        if tuple(tensors[name].shape) != shape:
            raise UsbpoError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, but {list(shape)} is expected; "
                "the checkpoint is of another task or network width."
            )
    for name, tensor in tensors.items():
        if name not in expected:
            raise UsbpoError(f"{path}: the tensor {name} is not expected; the checkpoint is of another architecture.")
        number = torch.int64 if name in counts else torch.float32
        if tensor.dtype != number:
            raise UsbpoError(f"{path}: {name} holds {tensor.dtype}, but {number} is expected; {sealing.CURE}.")
        end = counts.get(name)
        if name in counts and tensor.numel() and (tensor.min() < 0 or (end is not None and tensor.max() >= end)):
            raise UsbpoError(f"{path}: {name} holds a number that is out of bounds; {sealing.CURE}.")
