"""From which files each artifact of a run was made: what the digests in its header are held against.

A stage is handed paths and knows nothing of folders; here is the other side, the layout of a run. It needs no
configuration, for what it depends on (how often the model is updated, for how long rollouts are kept) stands in the
headers.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from usbpo.artifacts import layout
from usbpo.artifacts.blocks import Block, block_of, model_cycles, real_data
from usbpo.artifacts.header import Header

PathOf = Callable[[str, int], Path]
"""The file of a run for a template of `layout` and a cycle."""

MADE_WITH = {
    layout.TRIGGER: layout.POLICY,
    layout.PHASE1_METRICS: layout.MODEL_MLE,
    layout.PHASE2_METRICS: layout.MODEL,
    layout.ROLLOUT_METRICS: layout.ROLLOUTS,
    layout.POLICY_METRICS: layout.POLICY,
    layout.THEORY_METRICS: layout.THEORY_ROWS,
}
"""The artifact that the job which wrote a JSON file wrote beside it"""

KINDS = {
    layout.SHARD: "transitions",
    layout.BLOCK: "transitions",
    layout.MODEL_MLE: "model",
    layout.MODEL: "model",
    layout.ROLLOUTS: "rollouts",
    layout.POLICY: "policy",
    layout.EVALUATION: "evaluation",
    layout.THEORY_ROWS: "theory",
}
"""What each file of a run holds"""


def inputs_of(header: Header, path_of: PathOf) -> dict[str, list[Path]]:
    """The files that an artifact of this header is made from in a run, by the name of the stage's argument, in order.

    Of an argument that is not known here there is no entry.
    """
    cycle, kind, before = header.cycle, header.kind, header.cycle - 1
    triggered = "previous_shard" in header.inputs
    every = 1 if triggered else _count(header, "model_every")
    end = cycle if kind == "policy" and not triggered else before
    updates = _count(header, "retained_updates") or len(header.inputs.get("rollouts", ()))

    def real(until: int) -> list[Path]:
        return _files(real_data(until), path_of)

    def of_model(cycle: int) -> list[Path]:
        return [model_in_force(cycle, path_of)] if cycle > 0 else []

    found: dict[str, Callable[[], list[Path]]] = {
        "data": lambda: real(before if triggered else cycle),
        "parts": lambda: _files(_parts(header), path_of),
        "policy": lambda: [path_of(layout.POLICY, cycle if kind in ("evaluation", "theory") else before)],
        "previous": lambda: [path_of(layout.SHARD, before)],
        "previous_shard": lambda: [path_of(layout.SHARD, before)],
        "previous_policy": lambda: [path_of(layout.POLICY, before)],
        "previous_trigger": lambda: [path_of(layout.TRIGGER, before)],
        "previous_model": lambda: of_model(cycle - every),
        "model_mle": lambda: [path_of(layout.MODEL_MLE, cycle)],
        "model": lambda: [path_of(layout.MODEL, cycle)] if kind == "theory" else of_model(cycle),
        "rollouts": lambda: [path_of(layout.ROLLOUTS, each) for each in model_cycles(end, every, updates)],
    }
    return {name: found[name]() for name in header.inputs if name in found}


def model_in_force(cycle: int, path_of: PathOf) -> Path:
    """The model that a cycle with the stages of the model leaves: that of phase 2 where it has one."""
    tuned = path_of(layout.MODEL, cycle).exists() or path_of(layout.PHASE2_METRICS, cycle).exists()
    return path_of(layout.MODEL if tuned else layout.MODEL_MLE, cycle)


def _count(header: Header, name: str) -> int:
    value = header.parameters.get(name)
    return value if type(value) is int and value > 0 else 0


def _parts(header: Header) -> list[Block | int]:
    """The parts of a block: by its size, for its cycle is that of its last shard."""
    size, level = _count(header, "shards"), 0
    while 8**level < size:
        level += 1
    block = Block(level, header.cycle + 1 - size)
    return block.parts() if level and block_of(block.number) == block else []


def _files(parts: Iterable[Block | int], path_of: PathOf) -> list[Path]:
    return [
        path_of(layout.SHARD, part) if isinstance(part, int) else path_of(layout.BLOCK, part.number) for part in parts
    ]
