"""Which runs an experiment's results are made of, and which of their files the results read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from usbpo.artifacts.layout import five_digits
from usbpo.errors import UsbpoError
from usbpo.experiment.schedule import evaluates

_RUN = re.compile(r"(?P<task>[^/:]+)/(?P<method>[^/:]+)/seed-(?P<seed>\d+)(?::(?P<options>.+))?")
FORM = (
    "TASK/METHOD/seed-N:cycles=N:cycle_steps=N[:model_every=N][:evaluate_every=N]"
    "[:phase2=yes|no][:triggered=yes|no][:theory=yes|no]"
)
"""How a run is written on the command line."""
_SWITCHES = ("phase2", "triggered", "theory")

FILES = (
    *("learning_curves.svg", "learning_curves.png", "learning_curves.csv", "evaluations.csv"),
    *("beside_published.svg", "beside_published.png", "beside_published.csv"),
    *("final_returns.html", "final_returns.md", "final_returns.csv"),
    *("comparison.html", "comparison.md", "comparison.csv", "steps_to_return.csv", "metrics.json"),
    *("aggregate.svg", "aggregate.png", "aggregate.csv"),
    *("probability_of_improvement.svg", "probability_of_improvement.png", "probability_of_improvement.csv"),
    *("model_shift_and_bias.svg", "model_shift_and_bias.png", "model_shift_and_bias.csv"),
    *("holdout_error.svg", "holdout_error.png", "holdout_error.csv"),
    *("policy_diagnostics.svg", "policy_diagnostics.png", "policy_diagnostics.csv"),
    *("trigger_history.svg", "trigger_history.png", "trigger_history.csv"),
    *("theory_bracket.svg", "theory_bracket.png", "theory_bracket.csv"),
    *("theory_bias.svg", "theory_bias.png", "theory_bias.csv"),
    *("theory_surrogate.svg", "theory_surrogate.png", "theory_surrogate.csv"),
    *("theory_depth.svg", "theory_depth.png", "theory_depth.csv"),
    *("theory_bound.svg", "theory_bound.png", "theory_bound.csv"),
)
"""What `results` leaves in its output folder."""


@dataclass(frozen=True)
class RunFiles:
    """One run of an experiment, as far as its results need to know it."""

    task: str
    method: str
    seed: int
    cycles: int
    """Cycles after cycle 0, the one of the random steps."""
    cycle_steps: int
    """On-policy steps of one cycle."""
    model_every: int = 1
    """Cycles between two model updates, counted from cycle 1; 0 for a method without a model."""
    evaluate_every: int = 0
    """On-policy steps between two evaluations; 0 means those of a cycle."""
    phase2: bool = False
    """Whether the method fine-tunes the model; the first model update never does."""
    triggered: bool = False
    """Whether a trigger decides when, within a cycle, the model is updated."""
    theory: bool = False
    """Whether shift, bias and bounds are measured after each model update."""

    @classmethod
    def parse(cls, text: str) -> "RunFiles":
        """The run that `str` of a run, or a person, wrote in the form `FORM`.

        Raises:
            UsbpoError: the text has another form.
        """
        match = _RUN.fullmatch(text)
        if match is None:
            raise UsbpoError(f"run {text!r}: write it as {FORM}.")
        values: dict[str, str] = {}
        for option in match["options"].split(":") if match["options"] else []:
            name, _, value = option.partition("=")
            if name in values or not re.fullmatch(r"yes|no" if name in _SWITCHES else r"\d+", value):
                raise UsbpoError(f"run {text!r}: the option {option!r} cannot be used; write the run as {FORM}.")
            values[name] = value
        switches = {name: values.pop(name) == "yes" for name in _SWITCHES if name in values}
        numbers: dict[str, Any] = {name: int(value) for name, value in values.items()}
        wanted, allowed = {"cycles", "cycle_steps"}, {"cycles", "cycle_steps", "model_every", "evaluate_every"}
        if not wanted <= set(numbers) <= allowed or min(numbers[name] for name in wanted) < 1:
            raise UsbpoError(
                f"run {text!r}: cycles and cycle_steps must be given and be 1 or more; write it as {FORM}."
            )
        return cls(match["task"], match["method"], int(match["seed"]), **numbers, **switches)

    def __str__(self) -> str:
        numbers = "".join(
            f":{name}={getattr(self, name)}" for name in ("cycles", "cycle_steps", "model_every", "evaluate_every")
        )
        switches = "".join(f":{name}={'yes' if getattr(self, name) else 'no'}" for name in _SWITCHES)
        return f"{self.name}{numbers}{switches}"

    @property
    def name(self) -> str:
        """The run as it stands in paths and messages."""
        return f"{self.task}/{self.method}/seed-{self.seed}"

    def steps(self, cycle: int) -> int:
        """On-policy steps taken when `cycle` is over."""
        return cycle * self.cycle_steps

    def evaluations(self) -> list[int]:
        """The cycles that end with an evaluation; 0 is the untrained policy."""
        every = self.evaluate_every or self.cycle_steps
        return [cycle for cycle in range(self.cycles + 1) if evaluates(cycle, self.cycle_steps, every)]

    def policy_updates(self) -> list[int]:
        """The cycles that update the policy."""
        return list(range(1, self.cycles + 1))

    def model_updates(self) -> list[int]:
        """The cycles that run phase 1; where a trigger decides, those whose last training is kept."""
        return list(range(1, self.cycles + 1, self.model_every)) if self.model_every else []

    def fine_tunings(self) -> list[int]:
        """The cycles that run phase 2: all model updates but the first, which has no model rollouts yet."""
        return self.model_updates()[1:] if self.phase2 else []

    def measurements(self) -> list[int]:
        """The cycles after which the theory is measured."""
        return self.model_updates() if self.theory else []

    def path(self, pattern: str, cycle: int) -> Path:
        """A file of one cycle, relative to the root of the repository; `pattern` is one of `usbpo.artifacts.layout`."""
        return Path(pattern.format(task=self.task, method=self.method, seed=self.seed, cycle=five_digits(cycle)))


RETURNS_FORM = "TASK=RETURN,RETURN…"
"""How the returns of a task are written on the command line."""


def returns_option(task: str, returns: Iterable[float]) -> str:
    """The returns of a task in the form `RETURNS_FORM`, Hopper=1000,3000."""
    return f"{task}={','.join(str(int(each)) if float(each).is_integer() else repr(each) for each in returns)}"


def parse_returns(words: Iterable[str]) -> dict[str, list[float]]:
    """The returns of each task that `returns_option`, or a person, wrote.

    Raises:
        UsbpoError: a word has another form, or a task is named twice.
    """
    found: dict[str, list[float]] = {}
    for word in words:
        task, _, values = word.partition("=")
        try:
            returns = [float(value) for value in values.split(",")]
        except ValueError:
            returns = []
        if not task or not returns or not all(map(isfinite, returns)):
            raise UsbpoError(f"returns {word!r}: write them as {RETURNS_FORM}, each a number.")
        if task in found:
            raise UsbpoError(f"returns of the task {task} are given twice; write them in one, {RETURNS_FORM}.")
        found[task] = returns
    return found
