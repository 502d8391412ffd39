"""A run as it is told of: which it is, what was asked of it, where it stands."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

from usbpo.artifacts import layout

STAGES: dict[str, tuple[str, ...]] = {
    "initialise": (layout.POLICY,),
    "collect": (layout.SHARD,),
    "triggered": (layout.TRIGGER,),
    "phase1": (layout.MODEL_MLE, layout.PHASE1_METRICS),
    "phase2": (layout.MODEL, layout.PHASE2_METRICS),
    "rollout": (layout.ROLLOUTS, layout.ROLLOUT_METRICS),
    "policy": (layout.POLICY, layout.POLICY_METRICS),
    "evaluate": (layout.EVALUATION,),
    "theory": (layout.THEORY_ROWS, layout.THEORY_METRICS),
}
"""What each stage leaves behind; the stage has ended when any of it is there (large files may be let go later)."""

State = Literal["at work", "waiting", "finished", "stopped", "failed", "–"]


class Run(NamedTuple):
    """Which run: its task, its method and its seed."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}/{self.method}/seed-{self.seed}"

    def path(self, template: str, cycle: int = 0) -> Path:
        """A path of `usbpo.artifacts.layout` for this run and `cycle`, relative to the workspace."""
        return Path(template.format(**self._asdict(), cycle=layout.five_digits(cycle), stage="{stage}"))


class Target(NamedTuple):
    """What was asked of a run: its number of cycles, the on-policy steps of each, the last one with an evaluation."""

    cycles: int
    cycle_steps: int
    evaluated: int | None = None
    """None: `cycles`"""

    @property
    def last_evaluation(self) -> int:
        """The last cycle that ends with an evaluation."""
        return self.cycles if self.evaluated is None else self.evaluated


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns of one evaluation: mean and standard deviation over its episodes.

    Both are NaN where a return is not finite.
    """

    cycle: int
    on_policy_steps: int
    mean: float
    std: float

    @property
    def is_finite(self) -> bool:
        """Whether all returns are."""
        return isfinite(self.mean)

    def __str__(self) -> str:
        if not self.is_finite:
            return "not finite"
        digits = 0 if abs(self.mean) >= 100 else 1
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f}"


@dataclass(frozen=True)
class RunStatus:
    """Where one run stands."""

    run: Run
    state: State = "–"
    cycle: int | None = None
    """The last cycle whose policy was made; None before cycle 0 has ended."""
    cycles: int | None = None
    """The number of cycles asked for; None where nobody knows."""
    steps: int | None = None
    """On-policy steps at the end of `cycle`."""
    stage: str | None = None
    """The stage at work in `stage_cycle`, or the one that failed or was stopped there."""
    stage_cycle: int | None = None
    evaluation: Evaluation | None = None
    """The newest evaluation."""
    seconds_left: float | None = None
    note: str = ""

    @property
    def at_work(self) -> str:
        """What the run is at, in a few words: "policy 5", "failed in policy 5", "finished"."""
        if self.stage is None:
            return self.state
        place = self.stage if self.stage_cycle is None else f"{self.stage} {self.stage_cycle}"
        return place if self.state == "at work" else f"{self.state} in {place}"
