"""The keys of an experiment: tasks, methods, seeds and a number of steps; it changes nothing else about a run."""

import re
from math import ceil, lcm
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from usbpo.experiment.keys import OURS, Section, key

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=1, lt=2**63)]
Returns = Annotated[list[float], Field(min_length=1, max_length=100)]


def _keep(value: str) -> str:
    """Refuse what is neither all, last nor every-N."""
    if not re.fullmatch(_KEEP, value):
        raise PydanticCustomError("literal_error", "{expected}", {"expected": "all, last, or every-N (every-100)"})
    return value


_KEEP = r"^(all|last|every-[1-9][0-9]*)$"
Keep = Annotated[str, AfterValidator(_keep), WithJsonSchema({"type": "string", "pattern": _KEEP})]


class ArtifactKeys(Section):
    """Which large artifacts stay: models, policies and model rollouts. Everything else always does."""

    keep: Keep = key(
        "Cycles whose models and policies stay, so that a run can go on from them: all, every N-th and the last, or "
        "the last alone. Model rollouts stay with all.",
        "name",
        OURS,
        "every-100",
    )

    @property
    def every(self) -> int | None:
        """N of every-N; None for the others."""
        return int(self.keep.removeprefix("every-")) if self.keep.startswith("every-") else None


class Experiment(Section):
    """Which runs are made and drawn together."""

    experiment: Name = key("Name of the experiment and of its results folder.", "name", OURS)
    tasks: list[Name] = key("Task files, config/tasks/NAME.yaml.", "names", OURS, min_length=1)
    methods: list[Name] = key("Method files, config/algorithms/NAME.yaml.", "names", OURS, min_length=1)
    seeds: list[Seed] = key("Run seeds.", "integers", OURS, min_length=1)
    steps: Steps | dict[Name, Steps] = key("On-policy real steps of each run, for all tasks or by task.", "steps", OURS)
    scale: float = key(
        "Share of the steps and of the seeds that is run, rounded up to whole epochs, cycles and seeds.",
        "1",
        OURS,
        1,
        gt=0,
        le=1,
    )

    artifacts: ArtifactKeys = key("Which large artifacts stay.", "section", OURS, ArtifactKeys())

    only: list[str] = key(
        "Runs of the experiment, TASK/METHOD/seed-N, to which it is cut down; all without it.", "names", OURS, []
    )

    returns: dict[Name, Returns] = key(
        "Returns, by task, whose first reaching the results time, beside that of shares of the task's yardstick.",
        "return",
        OURS,
        {},
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        lists = {name: getattr(self, name) for name in ("tasks", "methods", "seeds", "only")}
        for name, values in (lists | {f"returns.{task}": values for task, values in self.returns.items()}).items():
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {values}")
        if isinstance(self.steps, dict):
            missing = [task for task in self.tasks if task not in self.steps]
            if missing:
                raise ValueError(f"steps has no entry for the task {missing[0]}")
        return self

    def steps_of(self, task: str, epoch_steps: int, cycle_steps: int) -> int:
        """On-policy steps of a run of `task`: where they are scaled, whole epochs and cycles, which are so long."""
        steps = self.steps[task] if isinstance(self.steps, dict) else self.steps
        whole = lcm(epoch_steps, cycle_steps)
        count = ceil(round(steps * self.scale / whole, 6))  # rounded, so that 300 · 0.07 is 21
        return min(steps, count * whole)

    @property
    def scaled_seeds(self) -> list[int]:
        """The seeds that are run: the first ones of `seeds`."""
        return self.seeds[: ceil(round(len(self.seeds) * self.scale, 6))]
