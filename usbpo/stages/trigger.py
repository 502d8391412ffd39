"""Stage `trigger`: whether the model is to be trained in this cycle (CMLO's event trigger)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from usbpo import ensemble, transitions
from usbpo.checkpoints import last_changed
from usbpo.errors import UsbpoError
from usbpo.files import write_json
from usbpo.header import Header, parameters_of
from usbpo.seeding import numpy_generator, torch_generator
from usbpo.stages.verdict import read_trigger
from usbpo.trigger import Reference, Trigger, hull_volume, model_errors

KIND = "trigger"


def trigger(
    *,
    data: list[Path],
    output: Path,
    steps: int,
    seed: int,
    cycle: int,
    threshold: float,
    check_every: int,
    reference: Reference,
    states: int,
    dimensions: int,
    min_steps: int,
    max_steps: int,
    previous_models: list[Path] | None = None,
    previous_trigger: Path | None = None,
) -> None:
    """Bring the trigger's state up to this cycle and decide whether its model is trained.

    The first cycle trains always. Later ones look at the hull of the data every `check_every` real steps; between two
    looks the model's errors are gathered.

    Args:
        data: blocks and shards of D_env, oldest first; the last rows are the steps of this cycle.
        output: JSON to write: the verdict, what led to it, and the state to go on with.
        steps: real steps of this cycle.
        seed: run seed.
        cycle: number of the cycle.
        previous_models: model checkpoints of the last cycles; the last that holds a model is in force.
        previous_trigger: the trigger's state at the end of the cycle before.

    Raises:
        UsbpoError: an input is missing, damaged or of another run.
    """
    parameters = parameters_of(locals())
    data_header, real = transitions.read_all(data)
    header = Header(KIND, data_header.task, seed, cycle, parameters)
    header.belongs(data[-1], data_header)

    def volume() -> float:
        rows = numpy_generator(seed, cycle, "trigger").permutation(len(real))[:states]
        return hull_volume(real.observations[rows], dimensions)

    found: dict[str, Any] = {"checked": True}
    state = Trigger()
    if previous_trigger is None:
        found |= {"volume": volume(), "reason": "the first model"}
    else:
        state = read_state(previous_trigger, header)
        model = last_changed(previous_models or [], ensemble.KIND)
        model_header, in_force = ensemble.load(model)
        header.belongs(model, model_header)
        errors = model_errors(in_force, real.rows(slice(-steps, None)), torch_generator(seed, cycle, "trigger"))
        state = state.seen(errors)
        found["checked"] = state.steps % check_every == 0
        found |= {"volume": volume() if found["checked"] else None, "reason": None}
        if found["checked"]:
            found["reference_volume"] = state.reference_volume
            state = state.checked(found["volume"], reference)
            found["reason"] = state.verdict(threshold, min_steps, max_steps)
    fired = found["reason"] is not None
    found |= {"estimate": state.estimate, "mean_error": state.mean_error, "steps": state.steps, "threshold": threshold}
    if fired:
        state = Trigger(reference_volume=found["volume"])
    write_json(output, {**header.identity, "fired": fired, "state": asdict(state), **found})
    print(
        f"S = {found['estimate']:.3g} after {found['steps']} steps: {found['reason'] or 'the model goes on unchanged'}"
    )


def read_state(path: Path, header: Header) -> Trigger:
    """The state that an earlier cycle left for the cycle of `header`.

    Raises:
        UsbpoError: the file is missing, damaged, or not that of the cycle before.
    """
    content = read_trigger(path, header.seed, header.cycle - 1)
    if content.get("task") != header.task:
        raise UsbpoError(
            f"{path}: its task is {content.get('task')}, but {header.task} is asked for; give files of one run."
        )
    try:
        return TypeAdapter(Trigger).validate_python(content["state"])
    except (KeyError, ValidationError) as error:
        raise UsbpoError(f"{path}: it holds no state of a trigger; delete it and run again.") from error
