"""What an artifact is, for people: the verb `usbpo inspect`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from safetensors.numpy import load

from usbpo.artifacts import hdf5, metrics, sealing
from usbpo.artifacts.files import require
from usbpo.artifacts.header import Header
from usbpo.artifacts.identity import safetensors_header
from usbpo.errors import UsbpoError

Arrays = list[tuple[str, Any]]


def print_artifact(path: Path, console: Console) -> None:
    """Print kind, task, method, seed, cycle, versions, parameters, and shape, type and range of every array.

    Raises:
        UsbpoError: the file is missing, damaged, or no artifact of this project.
    """
    require(path)
    if path.suffix == ".json":
        console.print(Text.assemble((str(path), "bold"), ": metrics"))
        console.print_json(json.dumps(metrics.read(path)[0]))
        return
    if path.suffix not in (".h5", ".safetensors"):
        raise UsbpoError(f"{path}: neither .h5 nor .safetensors nor .json; name an artifact of a run.")
    header, arrays = _read_hdf5(path) if path.suffix == ".h5" else _read_safetensors(path)
    # As Text: a path, name or parameter with [brackets] or :colons: is no markup.
    console.print(Text.assemble((str(path), "bold"), f": {header.kind}, schema {header.schema_version}"))
    console.print(Text(f"task {header.task} · method {header.method} · seed {header.seed} · cycle {header.cycle}"))
    console.print(Text("versions " + ", ".join(f"{name} {number}" for name, number in header.versions.items())))
    console.print(Text("parameters " + json.dumps(dict(header.parameters), ensure_ascii=False)))
    table = Table("array", "type", "shape", "lowest", "highest", "mean", box=None)
    for name, values in arrays:
        table.add_row(Text(name), str(values.dtype), "×".join(map(str, values.shape)) or "scalar", *_range(values))
    console.print(table)


def _range(values: Any) -> tuple[str, str, str]:
    if values.size == 0 or values.dtype.kind not in "fiub":
        return "", "", ""
    if values.dtype == np.uint64:
        return "", "", ""  # the words of a random generator
    numbers = values.astype(np.float64)
    return f"{numbers.min():.5g}", f"{numbers.max():.5g}", f"{numbers.mean():.5g}"


def _read_hdf5(path: Path) -> tuple[Header, Arrays]:
    with hdf5.opened(path) as found:
        return found.header, [(name, found[name]) for name in sorted(found.shapes)]


def _read_safetensors(path: Path) -> tuple[Header, Arrays]:
    with sealing.opened(path, ".safetensors") as (file, digest):
        content = file.read()
    header = safetensors_header(path, content, digest)
    try:
        return header, sorted(load(content).items())
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UsbpoError(f"{path}: its tensors are damaged; {sealing.CURE}.") from error
