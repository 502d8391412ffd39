"""The environment in which a run is filmed or exported: the one of its task's configuration, or the user's word.

What an artifact says of its environment is only compared with that: an id may name a module, and nobody's code shall
run because of a file that was pulled.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from usbpo.artifacts import layout
from usbpo.artifacts.header import Header
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.loading import load_run
from usbpo.experiment.named import NamedRun
from usbpo.experiment.options import environment_arguments
from usbpo.experiment.sentences import shortened


def environment_of(
    run: NamedRun,
    headers: Iterable[tuple[Path, Header]],
    environment: str | None = None,
    arguments: str | None = None,
) -> tuple[str, str]:
    """Gymnasium id and keyword arguments (JSON) of the environment to make.

    Args:
        run: the run.
        headers: of the run's artifacts, by their paths; they must name the same environment, unless the user names one.
        environment: the user's word for the id.
        arguments: the user's word for the arguments; without it those of the configuration, or none with `environment`.

    Raises:
        UsbpoError: there is no configuration of the run, or an artifact names another environment.
    """
    if environment is not None:
        return environment, arguments or "{}"
    try:
        keys = load_run(run.task, run.method, FOLDERS).environment
    except UsbpoError as error:
        raise UsbpoError(
            f"{run.name}: its configuration, which tells the environment, cannot be used: {str(error).rstrip('.')}; "
            "or add --environment ID."
        ) from error
    ours = {"environment": keys.id} | ({} if arguments is not None else {"environment_arguments": keys.arguments})
    for path, header in headers:
        for name, value in ours.items():
            found = header.parameters.get(name)
            if found != value and _parsed(found) != value:
                raise UsbpoError(
                    f"{path}: its {name} is {_shown(found)}, but the configuration of {run.task} with {run.method} "
                    f"says {_shown(value)}; mend the one that is wrong, or add --environment ID, which counts alone."
                )
    return keys.id, environment_arguments(keys) if arguments is None else arguments


def headers_of(run: NamedRun, cycle: int) -> Iterator[tuple[Path, Header]]:
    """The headers, by their paths, of those artifacts of a cycle that are there and that an environment has made.

    Raises:
        UsbpoError: one of them is damaged.
    """
    from usbpo.artifacts import evaluations, hdf5, transitions  # not before: they are heavy

    for template, kind in ((layout.EVALUATION, evaluations.KIND), (layout.SHARD, transitions.KIND)):
        if run.has(template, cycle):
            path = run.path(template, cycle)
            with hdf5.opened(path, kind) as arrays:
                yield path, arrays.header


def _parsed(text: Any) -> Any:
    """What arguments in a header say; None where they are no JSON."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _shown(value: Any) -> str:
    return shortened(repr(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)))
