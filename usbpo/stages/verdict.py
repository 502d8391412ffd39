"""What the model stages share where a trigger decides: its verdict, and the files of a cycle that it held back."""

from pathlib import Path
from typing import Any

from usbpo.errors import UsbpoError
from usbpo.files import read_json, write_json
from usbpo.header import Header


def task_held_back(path: Path | None, seed: int, cycle: int) -> str | None:
    """The run's task where the trigger of this cycle did not fire; None where the model is trained.

    Args:
        path: the trigger's verdict; without a trigger every model stage trains.

    Raises:
        UsbpoError: the trigger's file is missing, damaged, or of another cycle or seed.
    """
    if path is None:
        return None
    content = read_trigger(path, seed, cycle)
    if not isinstance(content.get("fired"), bool) or not isinstance(content.get("task"), str):
        raise UsbpoError(f"{path}: it holds no verdict of a trigger; delete it and run again.")
    return None if content["fired"] else str(content["task"])


def leave_unchanged(metrics: Path, header: Header) -> None:
    """Write the metrics of a stage of a model that was not trained, and say so."""
    write_json(metrics, {**header.identity, "trained": False})
    print("the trigger did not fire: the model goes on unchanged")


def read_trigger(path: Path, seed: int, cycle: int) -> dict[str, Any]:
    """The content of a trigger's file, checked to be of a run's cycle.

    Raises:
        UsbpoError: it is missing, damaged, or of another cycle or seed.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UsbpoError(f"{path}: it is no file of a trigger; delete it and run again.")
    for name, value in (("seed", seed), ("cycle", cycle)):
        if content.get(name) != value:
            raise UsbpoError(
                f"{path}: its {name} is {content.get(name)}, but {value} is asked for; give files of one run."
            )
    return content
