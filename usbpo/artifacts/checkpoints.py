"""Checkpoints on disk: named tensors with a header, in safetensors."""

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from usbpo.artifacts.files import require, writing
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError


def write(path: Path, header: Header, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name. All metadata is one JSON text: safetensors does not keep the order of several."""
    contents = save(
        {name: t.detach().contiguous() for name, t in sorted(tensors.items())}, {"header": header.to_json()}
    )
    with writing(path) as temporary:
        temporary.write_bytes(contents)


def read(path: Path, kind: str) -> tuple[Header, dict[str, torch.Tensor]]:
    """Read a checkpoint of one kind.

    Raises:
        UsbpoError: it is missing, damaged, of another kind, or holds NaN or infinities.
    """
    require(path, ".safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, struct.error, ValueError) as error:
        raise UsbpoError(
            f"{path}: the checkpoint is cut short or damaged; delete it and run again to make it anew."
        ) from error
    if "header" not in metadata:
        raise UsbpoError(f"{path}: this safetensors file was not written by usbpo; name one that was.")
    header = Header.from_json(path, metadata["header"])
    header.expect(path, kind)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsbpoError(f"{path}: {name} holds NaN or infinity; delete it and run again.")
    return header, tensors


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


def check_shapes(path: Path, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint has exactly the expected tensors.

    Raises:
        UsbpoError: one is missing, unexpected, or of another shape (another task or network width).
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise UsbpoError(f"{path}: the tensor {name} is missing; the checkpoint is of another architecture.")
        if tuple(tensors[name].shape) != shape:
            raise UsbpoError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, but {list(shape)} is expected; "
                "the checkpoint is of another task or network width."
            )
    for name in tensors:
        if name not in expected:
            raise UsbpoError(f"{path}: the tensor {name} is not expected; the checkpoint is of another architecture.")
