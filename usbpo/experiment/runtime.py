"""How long a job may take at most, by the sizes of its data and networks: a limit for a batch system, not an estimate.

`usbpo plan` estimates, by a calibration of the machine that it runs on. A limit must hold on any node, busy ones too:
all factors here are several times what the stages took on one core (`docs/performance.md`).
"""

from math import ceil

from usbpo.artifacts import blocks
from usbpo.experiment.sizes import Sizes

OPERATIONS = 2e10
"""Floating-point operations in a second, a fifth of what a core reaches in matrix products"""
READING = 2e7
"""Bytes in a second"""
REAL_STEP = 0.005
"""Seconds of a step in the simulator, which may be the user's own; ours take a tenth of that"""
EPISODE = 1000
"""Steps of an episode in evaluation, the time limit of Gymnasium's MuJoCo tasks"""
EPOCHS = 40
"""Epochs of one phase 1, where the configuration sets no maximum; twice as many as are planned for"""
TRAININGS = 4
"""Trainings of a triggered model in a cycle"""
START = 300
"""Seconds for what does not grow: an interpreter, imports and Snakemake's plan on a slow file system"""
STEP = 10
"""Minutes, to a multiple of which a limit is rounded up"""


def minutes(sizes: Sizes, stage: str, cycle: int) -> int:
    """Time limit of a stage in a cycle, minutes."""
    return STEP * ceil((START + seconds(sizes, stage, cycle)) / 60 / STEP)


def seconds(sizes: Sizes, stage: str, cycle: int) -> float:
    """Most seconds of a stage's own work in a cycle."""
    config = sizes.config
    steps = sizes.collected_rows(cycle)
    real = sizes.row * sizes.real_rows(cycle) / READING
    match stage:
        case "collect":
            return steps * REAL_STEP
        case "evaluate":
            return config.evaluate.episodes * EPISODE * REAL_STEP
        case "initialise":
            return 1 + real
        case "block":
            made = blocks.block_of(cycle)
            return 2 * sizes.row * sizes.real_rows(made.end if made else cycle) / READING
        case "policy":  # forward and backward of actor and critics, and the targets: ten operations a number and row
            numbers = 10 * config.policy.batch_size * (sizes.actor + sizes.critics)
            return config.policy.updates_per_step * steps * numbers / OPERATIONS + real + _joined(sizes, cycle)
        case "phase1":
            epochs = EPOCHS if config.phase1.max_epochs is None else config.phase1.max_epochs
            return epochs * sizes.real_rows(cycle) * 6 * sizes.ensemble / OPERATIONS + real
        case "phase2":  # three predictions of all members and their gradient
            phase2 = config.phase2
            rows = phase2.max_steps * phase2.batch_size * (1 + (phase2.stand_in == "samples")) if phase2 else 0
            return rows * 18 * sizes.ensemble / OPERATIONS + real + _joined(sizes, cycle - 1)
        case "rollout":
            return sizes.rollout_rows(cycle) * 4 * sizes.ensemble / OPERATIONS + real
        case "theory":
            return 120 + real + _joined(sizes, cycle - 1)
        case "triggered":
            often = sum(seconds(sizes, of, cycle) for of in ("phase1", "phase2", "rollout"))
            return seconds(sizes, "collect", cycle) + seconds(sizes, "policy", cycle) + TRAININGS * often
    raise ValueError(f"no stage {stage}")


def _joined(sizes: Sizes, cycle: int) -> float:
    """Of reading D_model at the end of `cycle`."""
    return sizes.row * sum(sizes.model_rows(cycle)) / READING
