"""What an experiment will take, said before anything runs: the verb `usbpo plan`.

Counts are exact; what stands is told by files alone, so that changed keys and code, which Snakemake sees, are not seen
here. Disk and time are estimates: of stages that ran on this machine before with the same task and method
by what they left and took, then by those of a method that differs elsewhere only, and of all others by their sizes and
a calibration of a few seconds.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from statistics import fmean, median

import torch
from rich.console import Console
from rich.table import Table

from usbpo import ensemble, layout, sac
from usbpo.acting import OneByOne
from usbpo.config import RunConfig
from usbpo.ensemble import Ensemble
from usbpo.learner import Learner
from usbpo.optimizer import Adam, copied
from usbpo.passes import LikelihoodStep, decay_by_name
from usbpo.plan import Plan, Run
from usbpo.report.status import benchmark_seconds, duration
from usbpo.schedule import BLOCK_SHARDS
from usbpo.tasks import Simulator
from usbpo.transitions import CHUNK_ROWS

EPOCHS = 20
"""Epochs of one phase 1 where nothing was measured; early trainings take more, late ones fewer."""
JOB_SECONDS = 0.3
"""Snakemake's and the warm worker's share of a job"""
PLANNED_BYTES = 135_000
"""Memory that Snakemake takes for each job of its plan, those that stand already included"""
MANY_BYTES = 4e9
"""From so much on, the plan is worth a warning"""
SMALL_FILE = 6_000
"""Bytes of a metrics file, and of what safetensors adds to its numbers, about"""
SHARD_OVERHEAD = 45_000
"""Bytes that HDF5 and a simulator's state add to a shard, about"""


@dataclass(frozen=True)
class Costs:
    """What a job of each stage takes: functions of its cycle."""

    bytes_of: Mapping[str, Callable[[int], float]]
    seconds_of: Mapping[str, Callable[[int], float]]


@dataclass
class Line:
    """A line of the table: all runs of one task and method."""

    task: str
    method: str
    runs: int = 0
    cycles: int = 0
    jobs: int = 0
    standing: int = 0
    bytes: float = 0.0
    """Of the jobs that do not stand yet"""
    seconds: float = 0.0
    """Of the jobs that do not stand yet, one after the other"""
    longest: float = 0.0
    """Of them, those of the run that takes longest: a run is a chain"""
    measured: Counter[bool] = field(default_factory=Counter)
    """How many of these jobs' times were measured before, and how many were estimated"""


def estimate(plan: Plan, root: Path = Path()) -> list[Line]:
    """A line for each task and method of an experiment, with what stands below `root` left out of disk and time."""
    lines: dict[tuple[str, str], Line] = {}
    costs: dict[tuple[str, str], Costs] = {}
    before: dict[tuple[str, str], tuple[dict[str, float], dict[str, float]]] = {}
    for run, cycles in plan.cycles.items():
        group = run.task, run.method
        line = lines.setdefault(group, Line(*group))
        jobs = [(stage, cycle, paths) for cycle in range(cycles + 1) for stage, paths in run.jobs(cycle).items()]
        missing = [job[:2] for job in jobs if not all((root / path).is_file() for path in job[2])]
        if missing and group not in costs:
            costs[group] = costs_of(run)
            before[group] = _seconds_of(run, alike(plan, run), root), _sizes_before(run, root)
        seconds_before, bytes_before = before.get(group, ({}, {}))
        took = 0.0
        for stage, cycle in missing:
            seconds, size = seconds_before.get(stage), bytes_before.get(stage)
            line.measured[seconds is not None] += 1
            took += costs[group].seconds_of[stage](cycle) + JOB_SECONDS if seconds is None else seconds
            line.bytes += costs[group].bytes_of[stage](cycle) if size is None else size
        line.runs, line.cycles, line.jobs = line.runs + 1, line.cycles + cycles, line.jobs + len(jobs)
        line.standing += len(jobs) - len(missing)
        line.seconds += took
        line.longest = max(line.longest, took)
    return list(lines.values())


def alike(plan: Plan, run: Run) -> list[str]:
    """Other methods of the experiment whose policy and model stages do the same work, whatever else they do."""

    def work(other: Run) -> tuple[object, ...]:
        config, schedule = other.config, other.schedule
        sections = config.policy, config.model, config.phase1, config.rollout, config.evaluate
        return other.task, schedule.cycle_steps, schedule.triggered, *sections

    of_plan = {other.method: other for other in plan.cycles if other.method != run.method and work(other) == work(run)}
    return list(of_plan)


def _seconds_of(run: Run, like: Sequence[str], root: Path) -> dict[str, float]:
    """Median seconds of each stage in what ran here before: of the same method, or else of those that are like it."""
    found: dict[str, float] = {}
    for method in (*like, run.method):
        found |= _before(run.task, method, run.schedule.triggered, root)
    return found


def _before(task: str, method: str, triggered: bool, root: Path) -> dict[str, float]:
    """Seconds of each stage of a task and method, by Snakemake's benchmark files.

    They are medians; where a trigger holds most trainings back, means.
    """
    pattern = layout.BENCHMARK.format(task=task, method=method, seed="*", cycle="*", stage="*")
    found: dict[str, list[float]] = {}
    for path in root.glob(pattern):
        seconds = benchmark_seconds(path)
        if seconds is not None and path.parent.name != layout.five_digits(0):
            found.setdefault("block" if path.parent.name == "blocks" else path.stem, []).append(seconds)
    return {stage: fmean(values) if triggered else median(values) for stage, values in found.items()}


def _sizes_before(run: Run, root: Path) -> dict[str, float]:
    """Mean bytes that each stage left in runs of the same task and method, cycle 0 apart."""
    kinds = {
        "collect": layout.SHARD, "block": layout.BLOCK, "phase1": layout.MODEL_MLE, "phase2": layout.MODEL,
        "rollout": layout.ROLLOUTS, "policy": layout.POLICY, "evaluate": layout.EVALUATION,
        "theory": layout.THEORY_ROWS,
    }  # fmt: skip
    found = {}
    for stage, template in kinds.items():
        pattern = template.format(task=run.task, method=run.method, seed="*", cycle="[0-9]" * 5, block="[0-9]" * 5)
        sizes = [p.stat().st_size for p in root.glob(pattern) if layout.five_digits(0) not in (p.stem, p.parent.name)]
        if sizes:
            found[stage] = fmean(sizes) + SMALL_FILE * (stage not in ("collect", "block", "evaluate"))
    return found


# ---- by sizes and calibration ------------------------------------------------------------------------------------


def costs_of(run: Run) -> Costs:
    """Costs of the stages of a run by the sizes of its networks and data, and by how fast this machine is."""
    environment = run.config.environment
    simulator = Simulator(environment.id, environment.arguments)
    speeds = calibrate(run.config, simulator)
    return Costs(bytes_by_size(run, simulator.obs_dim, simulator.act_dim), _seconds(run, simulator, speeds))


def bytes_by_size(run: Run, obs_dim: int, act_dim: int) -> dict[str, Callable[[int], float]]:
    """Bytes that a job of each stage leaves in a cycle; branches that end early leave less."""
    config, schedule = run.config, run.schedule
    row = 4 * (2 * obs_dim + act_dim + 1) + 2 + 8  # a transition, its two flags and its episode
    keys = config.policy
    shapes = sac.Architecture(obs_dim, act_dim, keys.hidden_layers, keys.hidden_size).shapes()
    sizes = {name: sum(_numbers(shape) for shape in group.values()) for name, group in shapes.items()}
    policy = 4 * (3 * sum(sizes.values()) + sizes["critics"])

    def rows(cycle: int) -> int:
        return schedule.cycle_steps if cycle else config.schedule.random_steps

    def shard(rows: int) -> int:
        """HDF5 fills the last chunk of a file that is longer than a chunk."""
        return row * (rows if rows < CHUNK_ROWS else ceil(rows / CHUNK_ROWS) * CHUNK_ROWS) + SHARD_OVERHEAD

    found: dict[str, Callable[[int], float]] = {
        "collect": lambda cycle: shard(rows(cycle)),
        "block": lambda cycle: shard(sum(rows(n) for n in range(cycle - BLOCK_SHARDS + 1, cycle + 1))),
        "initialise": lambda _: policy + SMALL_FILE,
        "policy": lambda _: policy + 2 * SMALL_FILE,
        "evaluate": lambda _: 2.5 * SMALL_FILE,
        "trigger": lambda _: 500,
    }
    if config.model is not None:
        model = config.model
        architecture = ensemble.Architecture(
            obs_dim, act_dim, model.members, model.elites, model.hidden_layers, model.hidden_size
        )
        numbers = sum(_numbers(shape) for shape in architecture.shapes().values())
        share = _share_of_trainings(run)
        found["phase1"] = lambda _: share * 12 * numbers + 2 * SMALL_FILE
        found["phase2"] = lambda _: share * 20 * numbers + 2 * SMALL_FILE
        branches = config.rollout.batch_size
        found["rollout"] = lambda cycle: share * row * branches * schedule.rollout_steps(cycle) + 2 * SMALL_FILE
        found["theory"] = lambda _: share * 30 * SMALL_FILE
    return found


def _numbers(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _share_of_trainings(run: Run) -> float:
    """Share of the cycles with model stages that train: of a trigger, as if it fired as often as MBPO trains."""
    return min(1.0, run.schedule.cycle_steps / run.schedule.model_train_freq) if run.schedule.triggered else 1.0


@dataclass(frozen=True)
class Speeds:
    """Seconds on this machine, one thread, at the sizes of a task and method."""

    policy_update: float
    real_step: float
    minibatch: float = 0.0
    """Of phase 1"""
    model_rows: float = 0.0
    """A model step of a thousand rows"""
    objective: float = 0.0
    """A step of phase 2: about three predictions of all members and their gradient"""


def calibrate(config: RunConfig, simulator: Simulator) -> Speeds:
    """Measure what a run's stages are made of; takes a few seconds."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    obs_dim, act_dim, keys = simulator.obs_dim, simulator.act_dim, config.policy
    agent = sac.new_agent(sac.Architecture(obs_dim, act_dim, keys.hidden_layers, keys.hidden_size), generator)
    learner = Learner(
        agent, rows=keys.batch_size, real=keys.batch_size,
        learning_rate=keys.learning_rate, discount=0.99, polyak=0.005, target_entropy=-1.0,
    )  # fmt: skip
    learner.batch.normal_(generator=generator)
    learner.noise.normal_(generator=generator)
    update = _timed(learner.update, 20)
    simulator.reset(0)
    zeros = torch.zeros(act_dim).numpy()

    def step() -> None:
        taken = simulator.step(zeros)
        if taken.terminated or taken.truncated:
            simulator.reset()

    acting = _timed(partial(OneByOne(agent.actor).sample, torch.zeros(obs_dim).numpy(), zeros), 20)
    real = _timed(step, 50) + acting
    if config.model is None:
        return Speeds(update, real)
    model = config.model
    sizes = (model.members, model.elites, model.hidden_layers, model.hidden_size)
    made = ensemble.new_ensemble(ensemble.Architecture(obs_dim, act_dim, *sizes), generator)
    minibatch = _timed(_likelihood_step(made, config, generator), 8)
    observations = torch.randn(1000, obs_dim, generator=generator)
    actions = torch.rand(1000, act_dim, generator=generator)
    members = torch.randint(model.members, (1000,), generator=generator)
    stepped = _timed(lambda: ensemble.predict_one_member(made, members, observations, actions), 5)
    share = 0.0 if config.phase2 is None else 1.25 * config.phase2.batch_size / config.phase1.batch_size
    return Speeds(update, real, minibatch, stepped, share * minibatch)


def _likelihood_step(made: Ensemble, config: RunConfig, generator: torch.Generator) -> Callable[[], None]:
    keys, rows = config.phase1, 1000
    params = copied(made.params)
    adam = Adam(params, keys.learning_rate, weight_decay=decay_by_name(keys.weight_decay))
    sizes = made.architecture
    x, y = (torch.randn(rows, n, generator=generator) for n in (sizes.obs_dim + sizes.act_dim, sizes.obs_dim + 1))
    index = torch.randint(rows, (sizes.members, keys.batch_size), generator=generator)
    step = LikelihoodStep(params, adam, x, y, keys.batch_size, keys.log_variance_penalty)
    return lambda: step.take(index)


def _timed(work: Callable[[], object], times: int) -> float:
    """Median seconds of a call, the first left out."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _seconds(run: Run, simulator: Simulator, speeds: Speeds) -> dict[str, Callable[[int], float]]:
    config, schedule = run.config, run.schedule
    limit: int = simulator.time_limit._max_episode_steps
    share = _share_of_trainings(run)

    def real_rows(cycle: int) -> int:
        return config.schedule.random_steps + cycle * schedule.cycle_steps

    def phase1(cycle: int) -> float:
        rows = real_rows(cycle)
        training = rows - min(int(rows * config.phase1.holdout_ratio), config.phase1.holdout_limit)
        epochs = EPOCHS if config.phase1.max_epochs is None else min(EPOCHS, config.phase1.max_epochs)
        return share * epochs * ceil(training / config.phase1.batch_size) * speeds.minibatch

    def rollout(cycle: int) -> float:
        return share * config.rollout.batch_size * schedule.rollout_steps(cycle) / 1000 * speeds.model_rows * 1.5

    steps = 0 if config.phase2 is None else config.phase2.max_steps
    updates = config.policy.updates_per_step * schedule.cycle_steps
    return {
        "collect": lambda cycle: speeds.real_step * (schedule.cycle_steps if cycle else config.schedule.random_steps),
        "block": lambda _: 0.1,
        "initialise": lambda _: 0.1,
        "trigger": lambda _: 0.1,
        "phase1": phase1,
        "phase2": lambda _: share * steps * speeds.objective,
        "rollout": rollout,
        "policy": lambda _: updates * speeds.policy_update,
        "theory": lambda _: share * 4.0,
        "evaluate": lambda _: config.evaluate.episodes * limit * speeds.real_step / 2,
    }


# ---- for people --------------------------------------------------------------------------------------------------


def print_plan(plan: Plan, cores: int, root: Path = Path(), console: Console | None = None) -> None:
    """Print what an experiment will take on `cores` cores."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    lines = estimate(plan, root)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "cycles", "jobs", "stand", "disk to come", "work to come"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(line.task, line.method, *_cells(line))
    total = Line("all", "")
    for line in lines:
        for name in ("runs", "cycles", "jobs", "standing", "bytes", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(line, name))
        total.longest = max(total.longest, line.longest)
        total.measured += line.measured
    table.add_section()
    table.add_row(total.task, total.method, *_cells(total))
    console.print(f"[bold]{plan.experiment.experiment}[/]", highlight=False)
    console.print(table)
    if (memory := total.jobs * PLANNED_BYTES) > MANY_BYTES:
        console.print(
            f"[bold]Snakemake will hold {total.jobs:,} jobs, about {_size(memory)} of memory.[/] Run it in parts, "
            "which share all they make: --config 'seeds=[0]' or 'methods=[mbpo]', or first a smaller scale.",
            highlight=False,
        )
    missing = total.jobs - total.standing
    if not missing:
        console.print(
            "All files stand already. Whether changed keys or code make some anew, `snakemake -n` says.",
            highlight=False,
        )
        return
    wall = max(total.longest, total.seconds / cores)
    console.print(
        f"About {duration(wall)} on {cores} cores: a run is a chain of jobs, and the longest takes "
        f"{duration(total.longest)}. The results are one job more.",
        highlight=False,
    )
    console.print(
        f"Times of {total.measured[True]:,} of the {missing:,} jobs to come are those that the same stages of the "
        "task took here before, as if later cycles took as long; the others are calculated from a calibration of "
        f"this machine, with {EPOCHS} epochs for each phase 1, evaluation episodes of half the time limit, and a "
        "trigger that fires as often as MBPO trains. Other work on the machine makes a calibration slow.",
        highlight=False,
    )


def _cells(line: Line) -> list[str]:
    return [
        *(f"{number:,}" for number in (line.runs, line.cycles, line.jobs, line.standing)),
        _size(line.bytes),
        duration(line.seconds),
    ]


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"
