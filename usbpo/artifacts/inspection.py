"""What an artifact is, for people: the verb `usbpo inspect`."""

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError, safe_open

from usbpo.artifacts.files import read_json, require
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError

Arrays = list[tuple[str, Any]]


def print_artifact(path: Path, console: Console | None = None) -> None:
    """Print kind, task, seed, cycle, versions, parameters, and shape, type and range of every array.

    Raises:
        UsbpoError: the file is missing, damaged, or no artifact of this project.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 160)  # a pipe cuts no names
    require(path)
    if path.suffix == ".json":
        console.print(f"[bold]{path}[/]: metrics")
        console.print_json(json.dumps(read_json(path)))
        return
    if path.suffix not in (".h5", ".safetensors"):
        raise UsbpoError(f"{path}: neither .h5 nor .safetensors nor .json; name an artifact of a run.")
    header, arrays = _read_hdf5(path) if path.suffix == ".h5" else _read_safetensors(path)
    console.print(f"[bold]{path}[/]: {header.kind}, schema {header.schema_version}")
    console.print(f"task {header.task} · seed {header.seed} · cycle {header.cycle}")
    console.print("versions " + ", ".join(f"{name} {number}" for name, number in header.versions.items()))
    console.print("parameters " + json.dumps(dict(header.parameters), ensure_ascii=False))
    table = Table("array", "type", "shape", "lowest", "highest", "mean", box=None)
    for name, values in arrays:
        table.add_row(name, str(values.dtype), "×".join(map(str, values.shape)) or "scalar", *_range(values))
    console.print(table)


def _range(values: Any) -> tuple[str, str, str]:
    if values.size == 0 or values.dtype.kind not in "fiub":
        return "", "", ""
    if values.dtype == np.uint64:
        return "", "", ""  # the words of a random generator
    numbers = values.astype(np.float64)
    return f"{numbers.min():.5g}", f"{numbers.max():.5g}", f"{numbers.mean():.5g}"


def _read_hdf5(path: Path) -> tuple[Header, Arrays]:
    arrays: Arrays = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays.append((name, np.asarray(item[()])))

    try:
        with h5py.File(path, "r") as file:
            if "header" not in file.attrs:
                raise UsbpoError(f"{path}: this HDF5 file was not written by usbpo; name an artifact of a run.")
            header = Header.from_json(path, str(file.attrs["header"]))
            file.visititems(visit)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UsbpoError(f"{path}: the file is cut short or damaged; delete it and run again.") from error
    return header, arrays


def _read_safetensors(path: Path) -> tuple[Header, Arrays]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if "header" not in metadata:
                raise UsbpoError(f"{path}: this safetensors file was not written by usbpo; name an artifact of a run.")
            arrays = [(name, file.get_tensor(name)) for name in sorted(file.keys())]
            return Header.from_json(path, metadata["header"]), arrays
    except (SafetensorError, OSError) as error:
        raise UsbpoError(f"{path}: the checkpoint is cut short or damaged; delete it and run again.") from error
