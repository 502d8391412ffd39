"""Stages as verbs: every argument an option, described and bounded by the configuration."""

import inspect as introspection
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from usbpo import stages
from usbpo.errors import UsbpoError
from usbpo.experiment.keys import Section
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.sections import (
    DeviceKeys,
    EvaluateKeys,
    ModelDeviceKeys,
    ModelKeys,
    Phase1Keys,
    Phase2Keys,
    PolicyKeys,
    RolloutKeys,
    TheoryKeys,
)
from usbpo.experiment.sentences import sentence

SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "initialise": (PolicyKeys,),
    "collect": (),
    "block": (),
    "triggered": (ModelDeviceKeys,),
    "phase1": (ModelKeys, Phase1Keys, ModelDeviceKeys),
    "phase2": (Phase2Keys, Phase1Keys, ModelDeviceKeys),
    "rollout": (RolloutKeys, ModelDeviceKeys),
    "policy": (PolicyKeys, DeviceKeys),
    "evaluate": (EvaluateKeys,),
    "theory": (TheoryKeys, Phase1Keys, PolicyKeys),
}
"""The stages, and the parts of the configuration that their parameters come from."""

WHOLE_SECTIONS = ("trigger", "model", "phase1", "phase2", "rollout", "policy")
"""The sections that the stage `triggered` takes as JSON."""


def stage_function(stage: str) -> Callable[..., None]:
    """The function of a stage; this imports the stage, and all that it needs."""
    function: Callable[..., None] = getattr(import_module(f"usbpo.stages.{stage}"), stage)
    return function


def first_line(stage: str) -> str:
    """What a stage is, from its file's first line, without importing it."""
    path = Path(stages.__file__).parent / f"{stage}.py"
    text = path.read_text(encoding="utf-8").split("\n", 1)[0].strip('"').split(": ", 1)[1]
    return text[0].upper() + text[1:]


def verb(stage: str) -> Callable[..., None]:
    """A stage as a command: every argument is an option, described by the configuration or by the docstring.

    A parameter that the configuration has a default for keeps it, so that a stage is easily run by hand; the rules
    always give all of them. One whose default follows from other keys must be given.
    """
    function = stage_function(stage)
    signature = introspection.signature(function)
    keys = {name: field for section in reversed(SECTIONS[stage]) for name, field in section.model_fields.items()}
    described = _described_arguments(function)
    bounds = {name: _bounds(keys[name]) for name in signature.parameters if name in keys}

    def run(**arguments: Any) -> None:
        for name, value in arguments.items():
            if name in bounds and value is not None:
                _check(name, value, bounds[name])
            elif name in WHOLE_SECTIONS and isinstance(value, str):
                arguments[name] = _whole_section(name, value)
        for section in SECTIONS[stage]:
            if section.model_fields.keys() <= arguments.keys():
                _check_together(section, arguments)
        import torch

        from usbpo.numerics import threads

        torch.set_num_threads(1)
        started, cpu_started = time.perf_counter(), time.process_time()
        number = threads.told()
        with threads.using(number):
            function(**arguments)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        said = f" on {number} threads" if number > 1 else ""
        print(f"{stage}: took {wall:.2f} s{said}, {cpu:.2f} s of CPU, at most {_peak_memory():.0f} MiB of memory")

    parameters = []
    for name, parameter in signature.parameters.items():
        text = keys[name].description if name in keys else described.get(name, "")
        from_zero = name in ("seed", "cycle", "on_policy_steps") or (stage, name) == ("policy", "model_every")
        lowest = {int: 0 if from_zero else 1}.get(parameter.annotation)
        least = lowest if name not in keys else None
        option = typer.Option(f"--{name.replace('_', '-')}", help=text, min=least, readable=False)  # the stage will say
        default = parameter.default
        if name in keys and not keys[name].is_required():
            # Null, where the stage must have a value, is what the configuration works out from other keys.
            worked_out = keys[name].default is None and "None" not in str(parameter.annotation)
            default = parameter.default if worked_out else keys[name].default
        parameters.append(parameter.replace(annotation=Annotated[parameter.annotation, option], default=default))
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = (function.__doc__ or "").split("\n\n")[0]
    return run


def _peak_memory() -> float:
    """The most memory that this process has held, MiB; macOS counts bytes where Linux counts KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _bounds(field: Any) -> Any:
    """What tells whether a value is within the bounds of a configuration key."""
    return TypeAdapter(Annotated[field.annotation, field])


def _check(name: str, value: Any, bounds: Any) -> None:
    """Hold an option to the bounds of the configuration key of its name."""
    try:
        bounds.validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0] | {"loc": (f"--{name.replace('_', '-')}", *error.errors()[0]["loc"])}
        raise UsbpoError(sentence(detail)) from error


def _check_together(section: type[Section], arguments: dict[str, Any]) -> None:
    """Hold options to what the configuration asks of several keys at once."""
    try:
        section.model_validate({name: arguments[name] for name in section.model_fields})
    except ValidationError as error:
        raise UsbpoError(sentence(error.errors()[0])) from error


def _whole_section(name: str, text: str) -> str:
    """A section of the configuration that is given as JSON, held to the bounds of its keys, with all defaults."""
    kind: Any = RunConfig.model_fields[name].annotation
    try:
        section = TypeAdapter(kind).validate_json(text)
        return json.dumps(section.model_dump(), sort_keys=True)
    except ValidationError as error:
        detail = error.errors()[0]
        if detail["type"] == "json_invalid":
            raise UsbpoError(f"--{name} is no JSON; give the section as the configuration has it.") from error
        raise UsbpoError(sentence(detail | {"loc": (f"--{name}", *detail["loc"])})) from error


def _described_arguments(function: Callable[..., None]) -> dict[str, str]:
    """The entries of a docstring's `Args:`."""
    arguments = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", function.__doc__ or "", flags=re.DOTALL)
    entries = re.findall(r"^ +(\w+): (.*(?:\n {12,}.*)*)", arguments.group(1) if arguments else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
