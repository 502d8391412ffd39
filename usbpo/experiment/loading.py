"""From files to a checked configuration, of a run or of an experiment."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from usbpo.errors import UsbpoError
from usbpo.experiment.experiment_config import Experiment
from usbpo.experiment.layers import merged, read_layers
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.sentences import first_fault, sentence


@cache
def load_run(task: str, method: str, folders: tuple[Path, ...]) -> RunConfig:
    """The configuration of a run of `task` with `method`, looked up in the configuration `folders`.

    Raises:
        UsbpoError: a file is unknown or broken, or a key is unknown, missing, of the wrong type or out of bounds.
    """
    layers = read_layers("tasks", task, folders)
    return validated_run(layers + read_layers("algorithms", method, folders), layers[-1][0])


def validated_run(layers: list[tuple[Path, Any]], task_file: Path) -> RunConfig:
    """The configuration of a run from its files, the most general first.

    Raises:
        UsbpoError: a key is unknown, missing, of the wrong type or out of bounds.
    """
    try:
        return RunConfig.model_validate(merged(layers))
    except ValidationError as error:
        detail = first_fault(error)
        # What every task must say is missing in the task, whichever file has a part of its section.
        path = task_file if detail["type"] == "missing" else _file_of(detail, layers)
        raise UsbpoError(f"{path}: {sentence(detail)}") from error


def _file_of(detail: ErrorDetails, layers: list[tuple[Path, Any]]) -> Path:
    """The uppermost file that sets the key of an error, or the uppermost that has part of its path."""

    def depth(content: Any) -> int:
        for level, part in enumerate(detail["loc"]):
            if not isinstance(content, Mapping) or part not in content:
                return level
            content = content[part]
        return len(detail["loc"])

    return max(enumerate(layers), key=lambda layer: (depth(layer[1][1]), layer[0]))[1][0]


def load_experiment(content: Mapping[str, Any], source: str) -> Experiment:
    """Check the content of an experiment file; `source` names it in errors.

    Raises:
        UsbpoError: a key is unknown, missing, of the wrong type or out of bounds.
    """
    try:
        return Experiment.model_validate(dict(content))
    except ValidationError as error:
        raise UsbpoError(f"{source}: {sentence(first_fault(error))}") from error


_REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def with_numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's keys with numbers where Snakemake leaves text: seeds, steps, scale, returns.

    That is what it does with `--config 'seeds=[0]'`, and with 1e-1 in the file that it reads anew for a job elsewhere.
    """

    def number(value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    def real(value: Any) -> Any:
        return float(value) if isinstance(value, str) and _REAL.fullmatch(value) else value

    found = dict(content)
    if "scale" in found:
        found["scale"] = real(found["scale"])
    if isinstance(found.get("seeds"), list):
        found["seeds"] = [number(seed) for seed in found["seeds"]]
    if isinstance(found.get("steps"), dict):
        found["steps"] = {task: number(steps) for task, steps in found["steps"].items()}
    if isinstance(found.get("returns"), dict):
        found["returns"] = {
            task: [real(each) for each in returns] if isinstance(returns, list) else returns
            for task, returns in found["returns"].items()
        }
    return found
