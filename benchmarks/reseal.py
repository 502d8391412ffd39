"""Recorded runs of schema 1, from before artifacts were sealed, as runs of today's schema: the same arrays and tensors.

    python benchmarks/reseal.py OLD/data/runs/Hopper/mbpo/seed-0 NEW

writes `NEW/data/runs/Hopper/mbpo/seed-0`. The method is that of the folder; of what an artifact was made is not known.
For one's own recordings: the old files are parsed by HDF5 and safetensors, unchecked.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors import safe_open

from usbpo.artifacts import chain, checkpoints, hdf5, metrics
from usbpo.artifacts.header import Header
from usbpo.artifacts.identity import header_of as header_of_artifact

OLD = 1
"""The schema that is read"""
BESIDE = {Path(json_file).name: Path(artifact).name for json_file, artifact in chain.MADE_WITH.items()}


def header_of(content: dict[str, Any], method: str) -> Header:
    """Today's header for an old one."""
    if content["schema_version"] != OLD:
        raise SystemExit(f"an artifact has schema {content['schema_version']}, but {OLD} is read")
    parameters = {{"training": "check"}.get(name, name): value for name, value in content["parameters"].items()}
    identity = (content[name] for name in ("kind", "task", "seed", "cycle"))
    return Header(*identity, parameters, method, versions=content["versions"])


def arrays_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays of an old HDF5 file, by their place in it."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item[()])

    with h5py.File(path) as file:
        file.visititems(visit)
        return json.loads(str(file.attrs["header"])), found


def tensors_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and tensors of an old checkpoint."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return json.loads((file.metadata() or {})["header"]), {name: file.get_tensor(name) for name in names}


def reseal(path: Path, output: Path, method: str) -> None:
    """Write one artifact anew; JSON after what its job wrote beside it."""
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        header = Header("metrics", content["task"], content["seed"], content["cycle"], method=method)
        beside = output.with_name(BESIDE[path.name])
        metrics.write(output, header, content, header_of_artifact(beside).digest if beside.is_file() else "")
    elif path.suffix == ".h5":
        content, arrays = arrays_of(path)
        header = header_of(content, method)
        steps = {"on_policy_steps": header.parameters["on_policy_steps"]} if header.kind == "evaluation" else None
        hdf5.write(output, header, arrays, steps)
    else:
        content, tensors = tensors_of(path)
        checkpoints.write(output, header_of(content, method), tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, …/TASK/METHOD/seed-N")
    parser.add_argument("output", type=Path, help="folder that is to hold data/")
    given = parser.parse_args()
    for run in given.runs:
        task, method, seed = run.resolve().parts[-3:]
        files = [path for suffix in ("h5", "safetensors", "json") for path in sorted(run.rglob(f"*.{suffix}"))]
        for path in files:
            reseal(path, given.output / "data/runs" / task / method / seed / path.relative_to(run), method)
        print(f"{task}/{method}/{seed}: {len(files)} artifacts")


if __name__ == "__main__":
    main()
