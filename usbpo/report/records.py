"""What the results read of a run: evaluations and the metrics of its stages, checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from usbpo.artifacts import evaluations
from usbpo.artifacts.hdf5 import opened
from usbpo.artifacts.header import check_place
from usbpo.artifacts.layout import (
    EVALUATION,
    PHASE1_METRICS,
    PHASE2_METRICS,
    POLICY_METRICS,
    THEORY_METRICS,
    THEORY_ROWS,
    TRIGGER,
)
from usbpo.artifacts.metrics import read as read_metrics
from usbpo.errors import UsbpoError
from usbpo.experiment.run_files import RunFiles


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one evaluation of the deterministic policy."""

    cycle: int
    returns: NDArray[np.float64]
    """(episodes,)"""
    lengths: NDArray[np.int64]
    """(episodes,), in steps"""
    seeds: NDArray[np.int64]
    """(episodes,): the seed each episode was reset with"""


Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Positive = Annotated[int, Field(gt=0, lt=1 << 53)]
"""Whole numbers as far as all that they are calculated with is exact"""
MOST = 1e40
"""Single precision holds no number as large; an axis that goes much further cannot be drawn."""
Real = Annotated[float, Field(ge=-MOST, le=MOST)]


class Metrics(BaseModel):
    """The part of a stage's metrics file that the results use; what else it holds is left alone."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    cycle: Count
    seed: int
    task: str


class Phase1(Metrics):
    """phase1.json"""

    holdout_mse_before: list[Real]
    """(members,)"""
    holdout_mse: list[Real]
    """(members,)"""
    elites: list[Count] = Field(min_length=1)
    """Indices of members."""


class Objective(BaseModel):
    """Model shift, model bias and their sum, as W2 distances."""

    model_config = Metrics.model_config

    shift: Real
    bias: Real
    sum: Real


class Phase2(Metrics):
    """phase2.json"""

    before: Objective
    after: Objective
    steps: Count
    best_step: Count
    stopped: str


class Check(BaseModel):
    """What a trigger found at a check."""

    model_config = Metrics.model_config

    on_policy_steps: Count
    fired: bool
    reason: str | None
    estimate: Real
    """S, before it begins anew where the trigger fired"""
    mean_error: Real
    volume: Real
    steps: Count
    """Since the last training"""
    threshold: Real


class Trigger(Metrics):
    """trigger.json"""

    checks: list[Check] = Field(min_length=1)


class Terms(BaseModel):
    """The terms of poster eq 1 and 4 with one M2, as means over rows; what could not be measured is null."""

    model_config = Metrics.model_config

    shift: Real | None
    surrogate_bias: Real
    """To M2's other members"""
    surrogate_bias_fixed: Real | None = None
    """To M2's other members as phase 1 left them; null where there is no phase 2, or it was not measured yet"""
    true_bias: Real | None
    error: Real | None
    """Mean distance of M2's mean from the real outcome"""
    spread: Real
    """Mean norm of M2's standard deviation"""
    previous_bias: Real | None
    bracket: Real | None
    rank_correlation: Real | None
    rank_correlation_fixed: Real | None = None
    true_bias_max: Real | None
    bound_shift_term: Real | None
    bound_policy_term: Real | None
    bound: Real | None


class Measured(BaseModel):
    """What was measured on the hold-out, or on model rollouts."""

    model_config = Metrics.model_config

    rows: Count
    policy_shift: Real
    before: Terms | None
    """With M2 as phase 1 left it; null where there is no phase 2"""
    after: Terms
    """With the M2 that rolls out"""


class DepthLine(BaseModel):
    """How far model and simulator are apart after as many steps of equal actions."""

    model_config = Metrics.model_config

    depth: Count
    branches: Count
    error_mean: Real
    error_q25: Real
    error_q50: Real
    error_q75: Real
    moved: Real
    one_step: Real | None


class Floor(BaseModel):
    """How well a state that was set from an observation stands for the real one."""

    model_config = Metrics.model_config

    rows: Count
    undetermined: Count
    median: Real | None
    q95: Real | None
    max: Real | None
    mean: Real | None


class Theory(Metrics):
    """theory.json"""

    discount: Real
    holdout: Measured | None
    rollout: Measured | None
    reconstruction: Floor | None
    depth: list[DepthLine] | None


class Biases(NamedTuple):
    """Surrogate and true bias of single rows, (rows,) each, in W2."""

    surrogate: NDArray[np.float32]
    true: NDArray[np.float32]
    fixed: NDArray[np.float32] | None
    """The surrogate to the other members as phase 1 left them; None as in `Terms`"""


@dataclass(frozen=True)
class Rows:
    """Biases of single rows, by place (`holdout`, `rollout`) and phase (`before`, `after`)."""

    cycle: int
    biases: dict[tuple[str, str], Biases]


class PolicyLine(BaseModel):
    """The agent's state after some updates; what a method does not have is null."""

    model_config = Metrics.model_config

    update: Count
    """Updates before this one, since the beginning of the run."""
    critic_loss: Real | None
    actor_loss: Real | None
    q_real: Real | None
    q_model: Real | None
    entropy: Real | None
    temperature: Real | None


class Policy(Metrics):
    """policy.json"""

    updates: Positive
    target_entropy: Real | None = None
    history: list[PolicyLine] = Field(min_length=1)


@dataclass(frozen=True)
class Run:
    """One run with all that was read of it, in order of cycles."""

    files: RunFiles
    evaluations: list[Evaluation]
    checks: list[Check]
    """Every check of the trigger, where there is one"""
    phase1: list[Phase1]
    phase2: list[Phase2]
    policy: list[Policy]
    theory: list[Theory]
    rows: Rows | None
    """Of the last model update after which the theory was measured"""


def grouped(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by (task, method), both in order of appearance; a group's members differ in their seed alone."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.files.task, run.files.method), []).append(run)
    return groups


def tasks_of(runs: Iterable[Run]) -> list[str]:
    """Every task once, in order of appearance."""
    return list(dict.fromkeys(run.files.task for run in runs))


def methods_of(runs: Iterable[Run]) -> list[str]:
    """Every method once, in order of appearance."""
    return list(dict.fromkeys(run.files.method for run in runs))


def seeds_by_method(runs: Iterable[Run], task: str) -> dict[str, list[Run]]:
    """The seeds of each method on one task."""
    return {method: seeds for (its_task, method), seeds in grouped(runs).items() if its_task == task}


def on_policy_steps(run: Run, cycles: Iterable[int]) -> NDArray[np.float64]:
    """On-policy steps at the ends of `cycles`."""
    return np.array([run.files.steps(cycle) for cycle in cycles], dtype=np.float64)


def read_run(files: RunFiles, root: Path) -> Run:
    """Read a run below `root`.

    Raises:
        UsbpoError: a file is missing, damaged, or of another run; the sentence names it.
    """
    checked = files.model_updates() if files.triggered else []
    measured = files.measurements()
    return Run(
        files,
        [read_evaluation(files, cycle, root) for cycle in files.evaluations()],
        [check for cycle in checked for check in _metrics(Trigger, TRIGGER, files, cycle, root).checks],
        [_metrics(Phase1, PHASE1_METRICS, files, cycle, root) for cycle in files.model_updates()],
        [_metrics(Phase2, PHASE2_METRICS, files, cycle, root) for cycle in files.fine_tunings()],
        [_metrics(Policy, POLICY_METRICS, files, cycle, root) for cycle in files.policy_updates()],
        [_metrics(Theory, THEORY_METRICS, files, cycle, root) for cycle in measured],
        read_rows(files, measured[-1], root) if measured else None,
    )


def read_rows(files: RunFiles, cycle: int, root: Path) -> Rows:
    """Read the biases of each row; none where the true bias was not measured.

    Raises:
        UsbpoError: the file is missing, damaged, or of another run or cycle.
    """
    path = root / files.path(THEORY_ROWS, cycle)
    found = {}
    with opened(path, "theory") as arrays:
        check_place(path, arrays.header.identity, files.task, files.method, files.seed, cycle)
        for name in arrays.shapes:
            group, _, last = name.rpartition("/")
            if last == "true_bias":
                place, _, phase = group.partition("/")
                fixed = f"{group}/surrogate_bias_fixed"
                found[place, phase] = Biases(
                    arrays.take(f"{group}/surrogate_bias", np.float32),
                    arrays.take(name, np.float32),
                    arrays.take(fixed, np.float32) if fixed in arrays else None,
                )
    return Rows(cycle, found)


def read_evaluation(files: RunFiles, cycle: int, root: Path) -> Evaluation:
    """Read the evaluation at the end of one cycle.

    Raises:
        UsbpoError: the file is missing, damaged, of another run or cycle, or holds no finite returns.
    """
    path = root / files.path(EVALUATION, cycle)
    header, episodes = evaluations.read(path)
    check_place(path, header.identity, files.task, files.method, files.seed, cycle)
    steps = header.parameters[evaluations.STEPS]
    if steps != files.steps(cycle):
        raise UsbpoError(
            f"{path}: made after {steps} on-policy steps, but cycle {cycle} of {files.cycle_steps} steps ends at "
            f"{files.steps(cycle)}; give the run's own cycle_steps."
        )
    if not (np.abs(episodes.returns) <= MOST).all():
        raise UsbpoError(f"{path}: it holds a return beyond {MOST:g}; delete it and run again.")
    return Evaluation(cycle, **vars(episodes))


M = TypeVar("M", bound=Metrics)

MODELS: Mapping[str, type[Metrics]] = {
    PHASE1_METRICS: Phase1,
    PHASE2_METRICS: Phase2,
    POLICY_METRICS: Policy,
    THEORY_METRICS: Theory,
    TRIGGER: Trigger,
}
"""Of each file of metrics that the results use"""


def _metrics(model: type[M], pattern: str, files: RunFiles, cycle: int, root: Path) -> M:
    path = root / files.path(pattern, cycle)
    content, _ = read_metrics(path)
    check_place(path, content, files.task, files.method, files.seed, cycle)
    return checked(model, path, content)


def checked(model: type[M], path: Path, content: Mapping[str, Any]) -> M:
    """What the results use of a metrics file.

    Raises:
        UsbpoError: it lacks something, or holds what it cannot hold.
    """
    try:
        metrics = model.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(str(part) for part in detail["loc"]) or "the content"
        raise UsbpoError(f"{path}: {key} cannot be used ({detail['msg']}); delete the file and run again.") from error
    if isinstance(metrics, Phase1):
        members = len(metrics.holdout_mse)
        if len(metrics.holdout_mse_before) != members or not all(0 <= elite < members for elite in metrics.elites):
            raise UsbpoError(f"{path}: errors and elites do not fit one ensemble; delete the file and run again.")
    return metrics
