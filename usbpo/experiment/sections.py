"""The sections of a run's configuration: names, types, bounds, units, defaults and sources of all their keys."""

import json
import re
from math import ceil
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from usbpo.experiment.keys import CMLO, MBPO, MOST, OURS, RELEASED, SOFTLEARNING, Section, key

TerminationName = Literal[
    "never", "inverted_pendulum", "inverted_double_pendulum", "hopper", "walker2d", "ant", "humanoid"
]
_FUNCTION = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""A user's function, `package.module:function`."""


LONGEST_NAME = 1_000
"""Characters of the name of an environment or a function."""

LONGEST_ARGUMENTS = 20_000
"""Characters of an environment's arguments as JSON: a command line holds 131,072 bytes, and quotes grow in it."""


def _termination(name: str) -> str:
    """Refuse a name that is none of ours and has not the form of a user's."""
    is_users = len(name) <= LONGEST_NAME and re.fullmatch(_FUNCTION, name)
    if name not in get_args(TerminationName) and not is_users:
        known = ", ".join(get_args(TerminationName))
        raise PydanticCustomError("literal_error", "{expected}", {"expected": f"{known}, or module:function"})
    return name


Termination = Annotated[
    str,
    AfterValidator(_termination),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": LONGEST_NAME,
            "pattern": f"^({'|'.join(get_args(TerminationName))}|{_FUNCTION})$",
        }
    ),
]

Scalar = bool | int | float | str
"""What an argument of an environment may be, or be a list of."""


class EnvironmentKeys(Section):
    """The Gymnasium environment of a task."""

    id: str = key(
        "Gymnasium id of the environment; `module:id` for one that a module of your own registers.",
        "name",
        "table of tasks",
        min_length=1,
        max_length=LONGEST_NAME,
    )
    arguments: dict[str, Scalar | list[Scalar]] = key(
        "Keyword arguments of gymnasium.make: numbers, texts, true or false, and lists of these. A file that one names "
        "counts by its content.",
        "as the environment's",
        "table of tasks",
        {},
    )
    termination: Termination = key(
        f"Termination function for model rollouts: {', '.join(f'`{name}`' for name in get_args(TerminationName))}, or "
        "`module:function` of your own.",
        "name",
        "table of tasks",
    )
    episodes: Literal["continue", "end_with_cycle"] = key(
        "Whether an episode goes on in the next cycle, or ends with its cycle where it cannot be restored.",
        "name",
        OURS,
        "continue",
    )

    @model_validator(mode="after")
    def _arguments_fit_a_command_line(self) -> "EnvironmentKeys":
        if (length := len(json.dumps(self.arguments))) > LONGEST_ARGUMENTS:
            raise ValueError(
                f"arguments come to {length:,} characters, but {LONGEST_ARGUMENTS:,} are the most; write them into a "
                "file that an argument names"
            )
        return self


class RolloutLengthKeys(Section):
    """Rollout length: `start_length` until `start_epoch`, `end_length` from `end_epoch`, linear between."""

    start_epoch: int = key("Epoch a, where the growth begins.", "epochs", MBPO, 0, ge=0, le=MOST)
    end_epoch: int = key("Epoch b, where the growth ends.", "epochs", MBPO, 0, ge=0, le=MOST)
    start_length: int = key("Rollout length x up to epoch a.", "model steps", MBPO, 1, ge=1, le=MOST)
    end_length: int = key("Rollout length y from epoch b on.", "model steps", MBPO, 1, ge=1, le=MOST)

    @model_validator(mode="after")
    def _grows(self) -> "RolloutLengthKeys":
        if self.end_epoch < self.start_epoch or self.end_length < self.start_length:
            raise ValueError("end_epoch and end_length must not be below start_epoch and start_length")
        return self


class ScheduleKeys(Section):
    """How real steps, model updates and model data follow each other."""

    random_steps: int = key(
        "Real steps with uniformly random actions before the first cycle.", "steps", MBPO, ge=1, le=MOST
    )
    initial_data: str | None = key(
        "File of `usbpo import`, whose first rows take the place of the random steps; null means none.",
        "path",
        OURS,
        None,
        min_length=1,
        max_length=4_095,
    )
    epoch_steps: int = key(
        "Length of an epoch, the unit of rollout schedules and of retention.", "steps", MBPO, ge=1, le=MOST
    )
    model_train_freq: int = key("Real steps between two model updates, F.", "steps", MBPO, 250, ge=1, le=MOST)
    model_update: Literal["periodic", "triggered"] = key(
        "Whether the model is updated every model_train_freq steps, or when the trigger fires.",
        "name",
        CMLO,
        "periodic",
    )
    cycle_steps: int | None = key(
        "Real steps of one cycle; null means model_train_freq, or, where the model is triggered, trigger.max_steps in "
        "whole checks.",
        "steps",
        OURS,
        None,
        ge=1,
        le=MOST,
    )
    model_retain_epochs: int = key("Epochs whose rollouts make up D_model, R.", "epochs", MBPO, 1, ge=1, le=MOST)
    rollout_length: RolloutLengthKeys = key("Growth of the model rollouts.", "section", MBPO, RolloutLengthKeys())

    @model_validator(mode="after")
    def _lengths_divide(self) -> "ScheduleKeys":
        if self.cycle_steps is not None and self.model_update == "periodic":
            _cycle_divides(self.cycle_steps, epoch_steps=self.epoch_steps, model_train_freq=self.model_train_freq)
        if self.epoch_steps % self.model_train_freq:
            raise ValueError(f"model_train_freq ({self.model_train_freq}) must divide epoch_steps ({self.epoch_steps})")
        return self


def _cycle_divides(cycle_steps: int, **periods: int) -> None:
    """Raise ValueError unless the periods, by name, are whole numbers of cycles."""
    for name, steps in periods.items():
        if steps % cycle_steps:
            raise ValueError(f"cycle_steps ({cycle_steps}) must divide {name} ({steps})")


class TriggerKeys(Section):
    """The event trigger of the model update, where `schedule.model_update` is `triggered`."""

    threshold: float = key("Training begins when the estimate S exceeds it, α.", "1", CMLO, 2.0, gt=0)
    check_every: int = key("Real steps between two estimates, F_c.", "steps", CMLO, 50, ge=1, le=MOST)
    reference: Literal["last_training", "previous_check"] = key(
        "Which hull's volume the present one is divided by: CMLO's formula has the one at the last training, "
        "its code the one of the previous check.",
        "name",
        CMLO,
        "last_training",
    )
    states: int = key("States of D_env whose convex hull is measured.", "rows", CMLO, 1000, ge=10, le=MOST)
    dimensions: int = key("Principal components in which the hull is taken.", "dimensions", CMLO, 3, ge=1, le=6)
    min_steps: int = key(
        "Real steps after a training in which the trigger does not fire.", "steps", CMLO, 150, ge=1, le=MOST
    )
    max_steps: int = key(
        "Real steps after a training at which the model is trained in any case.", "steps", CMLO, 500, ge=1, le=MOST
    )

    @property
    def longest_interval(self) -> int:
        """Most real steps between two trainings: the trigger looks only every `check_every` steps."""
        return ceil(self.max_steps / self.check_every) * self.check_every

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "TriggerKeys":
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps ({self.min_steps}) must not exceed max_steps ({self.max_steps})")
        return self


class ModelKeys(Section):
    """The probabilistic ensemble's architecture."""

    members: int = key("Networks in the ensemble.", "networks", MBPO, 7, ge=2, le=1_000)
    elites: int = key("Members with the lowest hold-out error, which roll out.", "networks", MBPO, 5, ge=1, le=MOST)
    hidden_layers: int = key("Hidden layers of a member.", "layers", MBPO, 4, ge=1, le=100)
    hidden_size: int = key("Units of a hidden layer.", "units", MBPO, 200, ge=1, le=100_000)

    @model_validator(mode="after")
    def _elites_are_members(self) -> "ModelKeys":
        if self.elites > self.members:
            raise ValueError(f"elites ({self.elites}) must not exceed members ({self.members})")
        return self


NotNegative = Annotated[float, Field(ge=0)]


class Phase1Keys(Section):
    """Phase 1: maximum likelihood on real data."""

    learning_rate: float = key("Adam's step size.", "1", MBPO, 1e-3, gt=0)
    batch_size: int = key("Rows of a minibatch, for each member.", "rows", MBPO, 256, ge=1, le=MOST)
    weight_decay: list[NotNegative] = key(
        "Half-squared L2 penalty of each layer's weights, first hidden layer first, output layer last.",
        "1",
        MBPO,
        [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4],
        min_length=2,
    )
    log_variance_penalty: float = key("Weight of the penalty on the log-variance bounds.", "1", MBPO, 0.01, ge=0)
    holdout_ratio: float = key("Share of the real rows held out.", "1", MBPO, 0.2, gt=0, lt=1)
    holdout_limit: int = key("Most rows held out.", "rows", MBPO, 5000, ge=1, le=MOST)
    min_improvement: float = key(
        "Relative fall of a member's hold-out error that counts as an improvement.", "1", MBPO, 0.01, ge=0
    )
    patience: int = key(
        "Training ends after more than this many epochs in which no member improved.", "epochs", MBPO, 5, ge=0, le=MOST
    )
    max_epochs: int | None = key(
        "Upper bound on the epochs of one training; null means none.", "epochs", MBPO, None, ge=1, le=MOST
    )


class Phase2Keys(Section):
    """Phase 2: fine-tuning by model shift plus model bias (poster eq 1, with W2 for TV by eq 5 and 6)."""

    learning_rate: float = key("Adam's step size.", "1", RELEASED, 1e-4, gt=0)
    batch_size: int = key("Rows of D_model in one step.", "rows", RELEASED, 1024, ge=1, le=MOST)
    max_steps: int = key("Most Adam steps.", "Adam steps", RELEASED, 100, ge=1, le=MOST)
    validation_rows: int = key(
        "Hold-out rows of D_env, drawn with replacement, on which the objective is watched.",
        "rows",
        RELEASED,
        1024,
        ge=1,
        le=MOST,
    )
    min_improvement: float = key(
        "Relative fall of the objective that counts as an improvement.", "1", RELEASED, 1e-4, ge=0
    )
    patience: int = key(
        "Fine-tuning ends after more than this many steps without improvement.",
        "Adam steps",
        RELEASED,
        10,
        ge=0,
        le=MOST,
    )
    loss: Literal["as_written", "as_released"] = key(
        "The objective as the poster writes it, or as the released code computes it.", "name", OURS, "as_written"
    )
    terms: Literal["shift+bias", "shift", "bias"] = key(
        "Which terms of the objective are minimised.", "name", "ablations of USB-PO", "shift+bias"
    )
    stand_in: Literal["fixed", "moving", "samples"] = key(
        "What stands for M* in the bias: the other members of M2 as phase 1 left them, the same as they move along in "
        "training, or what was recorded of D_env (for tasks without noise).",
        "name",
        OURS,
        "fixed",
    )

    @model_validator(mode="after")
    def _the_released_loss_moves(self) -> "Phase2Keys":
        if self.loss == "as_released" and self.stand_in != "moving":
            raise ValueError("loss: as_released has a stand-in that moves along; set stand_in: moving beside it")
        return self


class RolloutKeys(Section):
    """Model rollouts."""

    batch_size: int = key("Start states drawn from D_env.", "rows", MBPO, 100_000, ge=1, le=MOST)


class PolicyKeys(Section):
    """Soft actor-critic."""

    hidden_layers: int = key("Hidden layers of actor and critics.", "layers", SOFTLEARNING, 2, ge=1, le=100)
    hidden_size: int = key("Units of a hidden layer.", "units", SOFTLEARNING, 256, ge=1, le=100_000)
    learning_rate: float = key("Adam's step size for actor, critics and temperature.", "1", SOFTLEARNING, 3e-4, gt=0)
    discount: float = key("Discount factor γ.", "1", SOFTLEARNING, 0.99, ge=0, lt=1)
    polyak: float = key(
        "Share of the critics that enters the targets in each update.", "1", SOFTLEARNING, 0.005, gt=0, le=1
    )
    target_entropy: float = key("Entropy that the temperature aims at.", "nats", "table of tasks")
    updates_per_step: int = key("Updates for each real step, G.", "updates/step", "table of tasks", ge=1, le=MOST)
    batch_size: int = key("Rows of a batch, real and model together.", "rows", MBPO, 256, ge=2, le=MOST)
    real_ratio: float = key("Share of real rows in a batch.", "1", MBPO, 0.05, ge=0, le=1)
    report_every: int = key("Updates between two lines of metrics.", "updates", OURS, 500, ge=1, le=MOST)


class EvaluateKeys(Section):
    """Evaluation of the deterministic policy."""

    episodes: int = key("Episodes of one evaluation.", "episodes", OURS, 10, ge=1, le=MOST)
    every: int | None = key(
        "On-policy steps between two evaluations; null means model_train_freq.", "steps", OURS, None, ge=1, le=MOST
    )


LEAST_DEPTH = 10
"""Model steps over which the error is measured where the task's own rollouts are shorter"""


class TheoryKeys(Section):
    """Measuring shift, bias and the bounds of the poster against the simulator, after each model update."""

    rows: int = key(
        "Rows of the hold-out and of D_model, each, on which distances are measured.", "rows", OURS, 1024, ge=3, le=MOST
    )
    starts: int = key(
        "Real states from which model and simulator take the same actions.", "rows", OURS, 256, ge=1, le=MOST
    )
    depth: int | None = key(
        f"Steps that they take; null means the task's longest model rollout, and at least {LEAST_DEPTH}.",
        "model steps",
        OURS,
        None,
        ge=1,
        le=MOST,
    )


class DeviceKeys(Section):
    """Where the stages compute that train or use networks."""

    device: Literal["auto", "cpu", "cuda"] = key(
        "Where networks are trained and used; auto is the GPU where there is one. A seed gives the same bytes "
        "each time on one device, and other numbers on the other.",
        "name",
        OURS,
        "auto",
    )


class ModelDeviceKeys(DeviceKeys):
    """Where the stages compute that train or use the model, and in which precision."""

    precision: Literal["float32", "bfloat16"] = key(
        "Precision of the model's matrix products between hidden layers, and of the policy's in model rollouts; "
        "parameters, optimizers, losses, first and last layers are float32.",
        "name",
        OURS,
        "float32",
    )
