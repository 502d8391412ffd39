"""What a job of each stage takes, calculated: bytes by the sizes of networks and data, seconds by a calibration too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

from usbpo.artifacts import blocks, layout
from usbpo.environments.tasks import Simulator
from usbpo.experiment.run import Run
from usbpo.experiment.sizes import Sizes
from usbpo.monitor.calibration import Speeds, calibrate

EPOCHS = 20
"""Epochs of one phase 1; early trainings take more, late ones fewer"""
JOB_SECONDS = 0.3
"""Snakemake's and the warm worker's share of a job"""
SMALL_FILE = 6_000
"""Bytes of a metrics file, and of what safetensors adds to its numbers, about"""
CHECK_SECONDS = 0.02
"""A check of the event trigger: a convex hull, and the model's errors"""
SHARD_OVERHEAD = 15_000
"""Bytes that HDF5 and a simulator's state add to a shard, about"""

MODEL_MLE, MODEL, POLICY, ROLLOUTS = (
    Path(template).name for template in (layout.MODEL_MLE, layout.MODEL, layout.POLICY, layout.ROLLOUTS)
)
"""In the place of a stage: a large file of a cycle, which may be let go"""

OfCycle = Callable[[int], float]


@dataclass(frozen=True)
class Costs:
    """What a job of each stage takes: functions of its cycle."""

    bytes_of: Mapping[str, OfCycle]
    seconds_of: Mapping[str, OfCycle]


def costs_of(run: Run) -> Costs:
    """Costs of the stages of a run.

    Raises:
        UsbpoError: its environment cannot be made.
    """
    environment = run.config.environment
    simulator = Simulator(environment.id, environment.arguments)
    sizes = Sizes(run.config, run.schedule, simulator.obs_dim, simulator.act_dim)
    time_limit: int = simulator.time_limit._max_episode_steps
    simulator.close()
    return Costs(bytes_by_size(sizes), seconds_by_speed(sizes, calibrate(sizes), time_limit))


def bytes_by_size(sizes: Sizes) -> dict[str, OfCycle]:
    """Bytes that a job of each stage leaves in a cycle, and those of each large file by itself, as it may be let go.

    Branches that end early leave less.
    """
    policy = 4 * (3 * (sizes.actor + sizes.critics) + sizes.critics) + SMALL_FILE

    def shard(rows: int) -> int:
        return sizes.row * rows + SHARD_OVERHEAD

    def block(cycle: int) -> int:
        made = blocks.block_of(cycle)
        return shard(sum(sizes.collected_rows(n) for n in range(made.first, made.end))) if made else 0

    of_stage: dict[str, OfCycle] = {
        "collect": lambda cycle: shard(sizes.collected_rows(cycle)),
        "block": block,
        "initialise": lambda _: 0,
        "policy": lambda _: SMALL_FILE,
        "evaluate": lambda _: 2.5 * SMALL_FILE,
        "phase1": lambda _: SMALL_FILE,
        "phase2": lambda _: SMALL_FILE,
        "rollout": lambda _: SMALL_FILE,
        "theory": lambda _: 30 * SMALL_FILE,
    }
    schedule = sizes.schedule
    # Of a triggered model those of all trainings that are retained, and of all else the last.
    trainings = min(_trainings(sizes), schedule.retained_updates) if schedule.triggered else 1.0

    def triggered(cycle: int) -> float:
        return sum(of_stage[stage](cycle) for stage in _stages_of_triggered(sizes)) + SMALL_FILE

    def rollouts(cycle: int) -> float:
        return trainings * sizes.row * sizes.rollout_rows(cycle) + SMALL_FILE

    large: dict[str, OfCycle] = {
        MODEL_MLE: lambda _: 12 * sizes.ensemble + SMALL_FILE,
        MODEL: lambda _: 20 * sizes.ensemble + SMALL_FILE,
        POLICY: lambda _: policy,
        ROLLOUTS: rollouts,
    }
    return of_stage | {"triggered": triggered} | large


def seconds_by_speed(sizes: Sizes, speeds: Speeds, time_limit: int) -> dict[str, OfCycle]:
    """Seconds of a job of each stage in a cycle.

    Args:
        time_limit: steps of an episode.
    """
    config, schedule = sizes.config, sizes.schedule

    def real_data(cycle: int) -> float:
        """Of reading D_env: blocks, then shards."""
        return speeds.file * len(blocks.real_data(cycle)) + speeds.byte * sizes.row * sizes.real_rows(cycle)

    def model_data(cycle: int) -> float:
        """Of reading D_model."""
        rows = sizes.model_rows(cycle)
        return speeds.file * len(rows) + speeds.byte * sizes.row * sum(rows)

    def phase1(cycle: int) -> float:
        rows = sizes.real_rows(cycle)
        training = rows - min(int(rows * config.phase1.holdout_ratio), config.phase1.holdout_limit)
        epochs = EPOCHS if config.phase1.max_epochs is None else min(EPOCHS, config.phase1.max_epochs)
        return epochs * ceil(training / config.phase1.batch_size) * speeds.minibatch + real_data(cycle)

    def phase2(cycle: int) -> float:
        steps = 0 if config.phase2 is None else config.phase2.max_steps
        return steps * speeds.objective + real_data(cycle) + model_data(cycle - 1)

    def rollout(cycle: int) -> float:
        return 1.5 * sizes.rollout_rows(cycle) / 1000 * speeds.model_rows + real_data(cycle)

    def policy(cycle: int) -> float:
        updates = config.policy.updates_per_step * schedule.cycle_steps
        return updates * speeds.policy_update + real_data(cycle) + model_data(cycle)

    of_stage: dict[str, OfCycle] = {
        "collect": lambda cycle: speeds.real_step * sizes.collected_rows(cycle),
        "block": lambda _: speeds.file * blocks.RADIX,
        "initialise": lambda _: 0.1,
        "phase1": phase1,
        "phase2": phase2,
        "rollout": rollout,
        "policy": policy,
        "theory": lambda cycle: 4.0 + real_data(cycle) + model_data(cycle - 1),
        "evaluate": lambda _: config.evaluate.episodes * time_limit * speeds.real_step / 2,
    }

    def triggered(cycle: int) -> float:
        once, often = {"collect", "policy"}, _stages_of_triggered(sizes) - {"collect", "policy"}
        checks = CHECK_SECONDS * schedule.cycle_steps / (schedule.check_every or schedule.cycle_steps)
        trained = _trainings(sizes) * sum(of_stage[stage](cycle) for stage in often)
        return checks + trained + sum(of_stage[stage](cycle) for stage in once)

    return {stage: _with_job(of) for stage, of in (of_stage | {"triggered": triggered}).items()}


def _with_job(seconds: OfCycle) -> OfCycle:
    """Asked once for each cycle, however many seeds there are."""
    return cache(lambda cycle: JOB_SECONDS + seconds(cycle))


def _stages_of_triggered(sizes: Sizes) -> set[str]:
    """The stages that `triggered` stands for."""
    return {"collect", "phase1", "rollout", "policy"} | ({"phase2"} if sizes.config.phase2 else set())


def _trainings(sizes: Sizes) -> float:
    """Trainings in a cycle of a triggered model: as if it were trained as often as MBPO trains, and once at least."""
    return max(1.0, sizes.schedule.cycle_steps / sizes.schedule.model_train_freq)
