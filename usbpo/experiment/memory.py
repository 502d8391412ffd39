"""How much memory a job takes, by the sizes of its data and networks: what its stage holds when it holds most.

The factors were held against the peaks that the stages print at the end of their logs (`docs/design.md`).
"""

from math import ceil

from usbpo.artifacts import blocks
from usbpo.experiment.sections import ModelKeys
from usbpo.experiment.sizes import Sizes

PROCESS = 400
"""MB of a process that has imported everything"""
SIMULATOR = 300
"""MB allowed for a simulator, which may be the user's own; ours take a tenth of that"""
UNKNOWN = 2000
"""MB of a job whose environment cannot be made, so that its sizes are not known"""
STEP = 100
"""MB, to a multiple of which memory is rounded up"""


def megabytes(sizes: Sizes, stage: str, cycle: int) -> int:
    """Memory of a stage in a cycle, MB."""
    simulator = SIMULATOR if stage in ("collect", "evaluate", "theory", "triggered") else 0
    return STEP * ceil((PROCESS + simulator + held(sizes, stage, cycle) / 1e6) / STEP)


def held(sizes: Sizes, stage: str, cycle: int) -> float:
    """Bytes of data and networks that a stage holds in a cycle, beside the process itself."""
    row, agent = sizes.row, 4 * (sizes.actor + sizes.critics)
    real = row * sizes.real_rows(cycle)
    model = sizes.config.model
    match stage:
        case "collect":  # its steps, twice while imported ones are read
            return 2 * row * sizes.collected_rows(cycle) + 10 * agent
        case "evaluate":
            return 10 * agent
        case "initialise":
            return real + 10 * agent
        case "block":  # its parts, and the block that they are joined to
            made = blocks.block_of(cycle)
            return 2 * row * sizes.real_rows(made.end if made else cycle)
        case "policy":  # rows as read and as packed for the replay; the agent as read, in training, and as written
            rows = sum(sizes.model_rows(cycle)) + sizes.real_rows(cycle)
            packed = 8 * (sizes.obs_dim + sizes.act_dim + 1) * rows
            return real + _joined(sizes, row, cycle) + packed + 10 * agent
    if model is None:
        raise ValueError(f"a method without a model has no stage {stage}")
    network = 4 * sizes.ensemble
    match stage:
        case "triggered":  # the policy in training, and the stage of the model that takes most
            stages = ("phase1", "rollout", *(["phase2"] if sizes.config.phase2 else []))
            return held(sizes, "policy", cycle) + max(held(sizes, stage, cycle) for stage in stages)
        case "phase1":  # rows as read, as inputs and targets, as training rows, standardised; each member's order
            return 4 * real + 40 * model.members * sizes.real_rows(cycle) + 16 * network + _activations(sizes, model)
        case "phase2":  # real rows as read, and as inputs and targets; M1 and M2
            return 2 * real + _joined(sizes, row, cycle - 1) + 21 * network + _activations(sizes, model)
        case "rollout":  # a step of all branches comes to twelve times their rows, and the layers of one elite's share
            step = sizes.config.rollout.batch_size * (12 * row + 12 * model.hidden_size / model.elites)
            return real + row * sizes.rollout_rows(cycle) + step + 5 * network + agent
        case "theory":  # rows of D_model are drawn by a permutation of their numbers; M1, and M2 before and after
            return real + _joined(sizes, row + 24, cycle - 1) + 15 * network + _activations(sizes, model) + 8 * agent
    raise ValueError(f"no stage {stage}")


def _joined(sizes: Sizes, row: int, cycle: int) -> float:
    """D_model at the end of `cycle`, and the last of its files before it is joined to the others."""
    rows = sizes.model_rows(cycle)
    return row * sum(rows) + sizes.row * max(rows, default=0)


def _activations(sizes: Sizes, model: ModelKeys) -> float:
    """What the layers of all members leave for a batch in training, or for the rows held out, whichever is more."""
    phase1, phase2 = sizes.config.phase1, sizes.config.phase2
    batch = max(phase1.batch_size, phase2.batch_size if phase2 else 0)
    return 12 * model.members * model.hidden_size * max(model.hidden_layers * batch, phase1.holdout_limit)
