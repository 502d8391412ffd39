"""Which cycle does what: epochs, model updates, rollout lengths, retained rollouts.

Everything here is a function of the cycle alone, never of the number of cycles, so that asking for a longer
run changes nothing of what is there already.
"""

from dataclasses import dataclass
from math import floor

from usbpo.artifacts.blocks import model_cycles


@dataclass(frozen=True)
class RolloutLength:
    """Rollout length that grows linearly from `start_length` to `end_length` between two epochs."""

    start_epoch: int
    end_epoch: int
    start_length: int
    end_length: int

    def at(self, epoch: int) -> int:
        """`floor(x + clip((epoch - a) / (b - a), 0, 1) * (y - x))` (MBPO, released code)."""
        span = self.end_epoch - self.start_epoch
        share = min(max((epoch - self.start_epoch) / span, 0.0), 1.0) if span else float(epoch >= self.end_epoch)
        return floor(self.start_length + share * (self.end_length - self.start_length))


@dataclass(frozen=True)
class Schedule:
    """The lengths of a run, all in real environment steps except `model_retain_epochs` (epochs).

    Cycle 0 holds the random steps; cycle k = 1, 2, … collects the on-policy steps
    `(k - 1) * cycle_steps … k * cycle_steps`.
    """

    epoch_steps: int
    cycle_steps: int
    model_train_freq: int
    model_retain_epochs: int
    rollout_length: RolloutLength
    evaluate_every: int
    """On-policy steps between two evaluations"""
    has_model: bool = True
    check_every: int | None = None
    """Where a trigger decides within each cycle when the model is updated: the steps between two of its checks."""

    def cycles(self, steps: int) -> int:
        """Number of cycles in `steps` on-policy steps."""
        return steps // self.cycle_steps

    def epoch(self, cycle: int) -> int:
        """Epoch (from 0) that the steps seen at the end of `cycle` have reached, as MBPO counts when it rolls out."""
        return cycle * self.cycle_steps // self.epoch_steps

    @property
    def triggered(self) -> bool:
        """Whether a trigger decides, within each cycle, when the model is updated."""
        return self.has_model and self.check_every is not None

    def evaluates(self, cycle: int) -> bool:
        """Whether the policy is evaluated at the end of `cycle`."""
        return evaluates(cycle, self.cycle_steps, self.evaluate_every)

    def last_evaluation(self, cycle: int) -> int:
        """The latest cycle up to `cycle` that ends with an evaluation."""
        return next(c for c in range(cycle, -1, -1) if self.evaluates(c))

    def has_model_stages(self, cycle: int) -> bool:
        """Whether `cycle` has the stages of the model.

        The first cycle does, then one in every `model_train_freq` steps; each, where a trigger decides.
        """
        if not self.has_model or cycle < 1:
            return False
        return (cycle - 1) % self.model_every == 0

    def model_cycles(self, cycle: int) -> list[int]:
        """The cycle whose model is in force at the end of `cycle`; none before the first model."""
        return model_cycles(cycle, self.model_every, 1)

    def rollout_cycles(self, cycle: int) -> list[int]:
        """The cycles whose rollouts are D_model once `cycle` has rolled out: those of the last retained epochs.

        Where a trigger decides, each cycle has rolled out once or more, and D_model is the last `retained_updates`.
        """
        return model_cycles(cycle, self.model_every, self.retained_updates)

    @property
    def retained_updates(self) -> int:
        """Model updates whose rollouts make up D_model: as many as the retained epochs have regularly."""
        return self.model_retain_epochs * self.epoch_steps // self.model_train_freq

    @property
    def model_every(self) -> int:
        """The number of cycles from one with model stages to the next; 0 without a model."""
        if not self.has_model:
            return 0
        return 1 if self.triggered else self.model_train_freq // self.cycle_steps

    def rollout_steps(self, cycle: int) -> int:
        """Length of the model rollouts made in `cycle`, at its end."""
        return self.rollout_length.at(self.epoch(cycle))

    def rollout_steps_at_checks(self, cycle: int) -> list[int]:
        """Length of the model rollouts made at each check of `cycle`, where a trigger decides."""
        every = self.check_every or self.cycle_steps
        seen = range((cycle - 1) * self.cycle_steps + every, cycle * self.cycle_steps + 1, every)
        return [self.rollout_length.at(steps // self.epoch_steps) for steps in seen]


def evaluates(cycle: int, cycle_steps: int, every: int) -> bool:
    """Whether `cycle` is 0, or the first one that has taken another `every` on-policy steps when it ends."""
    return cycle == 0 or cycle * cycle_steps // every > (cycle - 1) * cycle_steps // every
