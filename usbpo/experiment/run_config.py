"""The whole configuration of a run: its sections together, what they must agree on, and its cycles.

A run is configured by a task file (`config/tasks/NAME.yaml`) with a method file (`config/algorithms/NAME.yaml`)
laid over it; both are partial `RunConfig`s and may inherit by `base:`.
"""

from pydantic import model_validator

from usbpo.experiment.keys import CMLO, MBPO, OURS, RELEASED, SOFTLEARNING, key
from usbpo.experiment.schedule import RolloutLength, Schedule
from usbpo.experiment.sections import (
    LEAST_DEPTH,
    EnvironmentKeys,
    EvaluateKeys,
    ModelDeviceKeys,
    ModelKeys,
    Phase1Keys,
    Phase2Keys,
    PolicyKeys,
    RolloutKeys,
    ScheduleKeys,
    TheoryKeys,
    TriggerKeys,
)


class RunConfig(ModelDeviceKeys):
    """The whole configuration of a run: one task with one method."""

    environment: EnvironmentKeys = key("The environment.", "section", "table of tasks")
    schedule: ScheduleKeys = key("Lengths and frequencies.", "section", "table of tasks")
    trigger: TriggerKeys = key("Event-triggered model updates.", "section", CMLO, TriggerKeys())
    model: ModelKeys | None = key("The ensemble; null for methods without a model.", "section", MBPO, ModelKeys())
    phase1: Phase1Keys = key("Maximum likelihood.", "section", MBPO, Phase1Keys())
    phase2: Phase2Keys | None = key("Fine-tuning; null for methods without it.", "section", RELEASED, None)
    rollout: RolloutKeys = key("Model rollouts.", "section", MBPO, RolloutKeys())
    policy: PolicyKeys = key("Soft actor-critic.", "section", SOFTLEARNING)
    evaluate: EvaluateKeys = key("Evaluation.", "section", OURS, EvaluateKeys())
    theory: TheoryKeys | None = key("The theory, measured; null leaves it out.", "section", OURS, TheoryKeys())

    @property
    def triggered(self) -> bool:
        """Whether a trigger decides when the model is updated."""
        return self.model is not None and self.schedule.model_update == "triggered"

    @property
    def theory_depth(self) -> int:
        """Model steps over which the stage `theory` measures the error: those asked for, or 1 … h and at least 10.

        h is the longest model rollout of the schedule (15 in Hopper, 25 in AntTruncated and HumanoidTruncated).
        """
        if self.theory is not None and self.theory.depth is not None:
            return self.theory.depth
        return max(LEAST_DEPTH, self.schedule.rollout_length.end_length)

    @property
    def cycle_steps(self) -> int:
        """Real steps of one cycle."""
        return self.schedule.cycle_steps or (
            self.trigger.longest_interval if self.triggered else self.schedule.model_train_freq
        )

    def cycles(self) -> Schedule:
        """The arithmetic of cycles that these keys define."""
        keys, trigger = self.schedule, self.trigger
        return Schedule(
            epoch_steps=keys.epoch_steps,
            cycle_steps=self.cycle_steps,
            model_train_freq=keys.model_train_freq,
            model_retain_epochs=keys.model_retain_epochs,
            rollout_length=RolloutLength(**keys.rollout_length.model_dump()),
            evaluate_every=self.evaluate.every or keys.model_train_freq,
            has_model=self.model is not None,
            check_every=trigger.check_every if self.triggered else None,
        )

    @model_validator(mode="after")
    def _one_penalty_a_layer(self) -> "RunConfig":
        if self.model is not None and len(self.phase1.weight_decay) != (layers := self.model.hidden_layers + 1):
            raise ValueError(
                f"phase1.weight_decay must have one value for each of the {layers} layers, "
                f"but has {len(self.phase1.weight_decay)}"
            )
        return self

    @model_validator(mode="after")
    def _trigger_fits(self) -> "RunConfig":
        if self.triggered:
            every, longest = self.trigger.check_every, self.trigger.longest_interval
            if self.cycle_steps % every or self.cycle_steps < longest:
                raise ValueError(
                    f"schedule.cycle_steps ({self.cycle_steps}) must be a multiple of trigger.check_every ({every}) "
                    f"and {longest} or more, so that the model is trained in each cycle; leave it out or take {longest}"
                )
        elif self.schedule.model_update == "triggered":
            raise ValueError("schedule.model_update is triggered, but model is null; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _phase2_has_a_model(self) -> "RunConfig":
        if self.model is None and self.phase2 is not None:
            raise ValueError("phase2 fine-tunes a model, but model is null; set phase2 to null as well")
        return self
