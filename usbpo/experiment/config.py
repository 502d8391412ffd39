"""Every key of the configuration: the single source of names, types, bounds, units, defaults and sources.

A run is configured by a task file (`config/tasks/NAME.yaml`) with a method file (`config/algorithms/NAME.yaml`)
laid over it; both are partial `RunConfig`s and may inherit by `base:`. An experiment lists tasks, methods, seeds
and a number of steps, and changes nothing else about a run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from math import ceil, lcm
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from usbpo.errors import UsbpoError
from usbpo.experiment.schedule import RolloutLength, Schedule

MBPO = "MBPO released code (jannerm/mbpo)"
RELEASED = "USB-PO released code"
SOFTLEARNING = "softlearning's SAC as used by MBPO"
CMLO = "CMLO (arXiv 2210.08349)"
OURS = "ours"

TerminationName = Literal[
    "never", "inverted_pendulum", "inverted_double_pendulum", "hopper", "walker2d", "ant", "humanoid"
]
_FUNCTION = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
"""A user's function, `package.module:function`."""


def _termination(name: str) -> str:
    """Refuse a name that is none of ours and has not the form of a user's."""
    if name not in get_args(TerminationName) and not re.fullmatch(_FUNCTION, name):
        known = ", ".join(get_args(TerminationName))
        raise PydanticCustomError("literal_error", "{expected}", {"expected": f"{known}, or module:function"})
    return name


Termination = Annotated[
    str,
    AfterValidator(_termination),
    WithJsonSchema({"type": "string", "pattern": f"^({'|'.join(get_args(TerminationName))}|{_FUNCTION})$"}),
]


def key(description: str, unit: str, source: str, default: Any = ..., **bounds: Any) -> Any:
    """A configuration key with what every key must say of itself."""
    return Field(default=default, description=description, json_schema_extra={"unit": unit, "source": source}, **bounds)


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors, infinities too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class EnvironmentKeys(Section):
    """The Gymnasium environment of a task."""

    id: str = key(
        "Gymnasium id of the environment; `module:id` for one that a module of your own registers.",
        "name",
        "table of tasks",
        min_length=1,
    )
    arguments: dict[str, bool | int | float | str] = key(
        "Keyword arguments of gymnasium.make.", "as the environment's", "table of tasks", {}
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


class RolloutLengthKeys(Section):
    """Rollout length: `start_length` until `start_epoch`, `end_length` from `end_epoch`, linear between."""

    start_epoch: int = key("Epoch a, where the growth begins.", "epochs", MBPO, 0, ge=0)
    end_epoch: int = key("Epoch b, where the growth ends.", "epochs", MBPO, 0, ge=0)
    start_length: int = key("Rollout length x up to epoch a.", "model steps", MBPO, 1, ge=1)
    end_length: int = key("Rollout length y from epoch b on.", "model steps", MBPO, 1, ge=1)

    @model_validator(mode="after")
    def _grows(self) -> "RolloutLengthKeys":
        if self.end_epoch < self.start_epoch or self.end_length < self.start_length:
            raise ValueError("end_epoch and end_length must not be below start_epoch and start_length")
        return self


class ScheduleKeys(Section):
    """How real steps, model updates and model data follow each other."""

    random_steps: int = key("Real steps with uniformly random actions before the first cycle.", "steps", MBPO, ge=1)
    initial_data: str | None = key(
        "File of `usbpo import`, whose first rows take the place of the random steps; null means none.",
        "path",
        OURS,
        None,
        min_length=1,
    )
    epoch_steps: int = key("Length of an epoch, the unit of rollout schedules and of retention.", "steps", MBPO, ge=1)
    model_train_freq: int = key("Real steps between two model updates, F.", "steps", MBPO, 250, ge=1)
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
    )
    model_retain_epochs: int = key("Epochs whose rollouts make up D_model, R.", "epochs", MBPO, 1, ge=1)
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
    check_every: int = key("Real steps between two estimates, F_c.", "steps", CMLO, 50, ge=1)
    reference: Literal["last_training", "previous_check"] = key(
        "Which hull's volume the present one is divided by: CMLO's formula has the one at the last training, "
        "its code the one of the previous check.",
        "name",
        CMLO,
        "last_training",
    )
    states: int = key("States of D_env whose convex hull is measured.", "rows", CMLO, 1000, ge=10)
    dimensions: int = key("Principal components in which the hull is taken.", "dimensions", CMLO, 3, ge=1, le=6)
    min_steps: int = key("Real steps after a training in which the trigger does not fire.", "steps", CMLO, 150, ge=1)
    max_steps: int = key(
        "Real steps after a training at which the model is trained in any case.", "steps", CMLO, 500, ge=1
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

    members: int = key("Networks in the ensemble.", "networks", MBPO, 7, ge=2)
    elites: int = key("Members with the lowest hold-out error, which roll out.", "networks", MBPO, 5, ge=1)
    hidden_layers: int = key("Hidden layers of a member.", "layers", MBPO, 4, ge=1)
    hidden_size: int = key("Units of a hidden layer.", "units", MBPO, 200, ge=1)

    @model_validator(mode="after")
    def _elites_are_members(self) -> "ModelKeys":
        if self.elites > self.members:
            raise ValueError(f"elites ({self.elites}) must not exceed members ({self.members})")
        return self


NotNegative = Annotated[float, Field(ge=0)]


class Phase1Keys(Section):
    """Phase 1: maximum likelihood on real data."""

    learning_rate: float = key("Adam's step size.", "1", MBPO, 1e-3, gt=0)
    batch_size: int = key("Rows of a minibatch, for each member.", "rows", MBPO, 256, ge=1)
    weight_decay: list[NotNegative] = key(
        "Half-squared L2 penalty of each layer's weights, first hidden layer first, output layer last.",
        "1",
        MBPO,
        [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4],
        min_length=2,
    )
    log_variance_penalty: float = key("Weight of the penalty on the log-variance bounds.", "1", MBPO, 0.01, ge=0)
    holdout_ratio: float = key("Share of the real rows held out.", "1", MBPO, 0.2, gt=0, lt=1)
    holdout_limit: int = key("Most rows held out.", "rows", MBPO, 5000, ge=1)
    min_improvement: float = key(
        "Relative fall of a member's hold-out error that counts as an improvement.", "1", MBPO, 0.01, ge=0
    )
    patience: int = key(
        "Training ends after more than this many epochs in which no member improved.", "epochs", MBPO, 5, ge=0
    )
    max_epochs: int | None = key(
        "Upper bound on the epochs of one training; null means none.", "epochs", MBPO, None, ge=1
    )


class Phase2Keys(Section):
    """Phase 2: fine-tuning by model shift plus model bias (poster eq 1, with W2 for TV by eq 5 and 6)."""

    learning_rate: float = key("Adam's step size.", "1", RELEASED, 1e-4, gt=0)
    batch_size: int = key("Rows of D_model in one step.", "rows", RELEASED, 1024, ge=1)
    max_steps: int = key("Most Adam steps.", "Adam steps", RELEASED, 100, ge=1)
    validation_rows: int = key(
        "Hold-out rows of D_env, drawn with replacement, on which the objective is watched.",
        "rows",
        RELEASED,
        1024,
        ge=1,
    )
    min_improvement: float = key(
        "Relative fall of the objective that counts as an improvement.", "1", RELEASED, 1e-4, ge=0
    )
    patience: int = key(
        "Fine-tuning ends after more than this many steps without improvement.", "Adam steps", RELEASED, 10, ge=0
    )
    loss: Literal["as_written", "as_released"] = key(
        "The objective as the poster writes it, or as the released code computes it.", "name", OURS, "as_written"
    )
    terms: Literal["shift+bias", "shift", "bias"] = key(
        "Which terms of the objective are minimised.", "name", "ablations of USB-PO", "shift+bias"
    )
    stand_in: Literal["fixed", "moving"] = key(
        "What stands for M* in the bias, the other members of M2: as phase 1 left them, or moving along in training.",
        "name",
        OURS,
        "fixed",
    )

    @model_validator(mode="after")
    def _the_released_loss_moves(self) -> "Phase2Keys":
        if self.loss == "as_released" and self.stand_in == "fixed":
            raise ValueError("loss: as_released has a stand-in that moves along; set stand_in: moving beside it")
        return self


class RolloutKeys(Section):
    """Model rollouts."""

    batch_size: int = key("Start states drawn from D_env.", "rows", MBPO, 100_000, ge=1)


class PolicyKeys(Section):
    """Soft actor-critic."""

    hidden_layers: int = key("Hidden layers of actor and critics.", "layers", SOFTLEARNING, 2, ge=1)
    hidden_size: int = key("Units of a hidden layer.", "units", SOFTLEARNING, 256, ge=1)
    learning_rate: float = key("Adam's step size for actor, critics and temperature.", "1", SOFTLEARNING, 3e-4, gt=0)
    discount: float = key("Discount factor γ.", "1", SOFTLEARNING, 0.99, ge=0, lt=1)
    polyak: float = key(
        "Share of the critics that enters the targets in each update.", "1", SOFTLEARNING, 0.005, gt=0, le=1
    )
    target_entropy: float = key("Entropy that the temperature aims at.", "nats", "table of tasks")
    updates_per_step: int = key("Updates for each real step, G.", "updates/step", "table of tasks", ge=1)
    batch_size: int = key("Rows of a batch, real and model together.", "rows", MBPO, 256, ge=2)
    real_ratio: float = key("Share of real rows in a batch.", "1", MBPO, 0.05, ge=0, le=1)
    report_every: int = key("Updates between two lines of metrics.", "updates", OURS, 500, ge=1)


class EvaluateKeys(Section):
    """Evaluation of the deterministic policy."""

    episodes: int = key("Episodes of one evaluation.", "episodes", OURS, 10, ge=1)
    every: int | None = key(
        "On-policy steps between two evaluations; null means model_train_freq.", "steps", OURS, None, ge=1
    )


LEAST_DEPTH = 10
"""Model steps over which the error is measured where the task's own rollouts are shorter"""


class TheoryKeys(Section):
    """Measuring shift, bias and the bounds of the poster against the simulator, after each model update."""

    rows: int = key(
        "Rows of the hold-out and of D_model, each, on which distances are measured.", "rows", OURS, 1024, ge=3
    )
    starts: int = key("Real states from which model and simulator take the same actions.", "rows", OURS, 256, ge=1)
    depth: int | None = key(
        f"Steps that they take; null means the task's longest model rollout, and at least {LEAST_DEPTH}.",
        "model steps",
        OURS,
        None,
        ge=1,
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


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
Steps = Annotated[int, Field(ge=1)]
Returns = Annotated[list[float], Field(min_length=1)]


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
    seeds: list[Annotated[int, Field(ge=0)]] = key("Run seeds.", "integers", OURS, min_length=1)
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


SCHEMAS: dict[str, type[Section]] = {"experiment": Experiment, "run": RunConfig}
"""The models whose JSON schema lies in workflow/schemas/NAME.schema.json."""


def json_schema(name: str) -> str:
    """The JSON schema of one of `SCHEMAS`, as text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMAS[name].model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def keys_table() -> str:
    """Every key with type, default, unit, source and meaning, as Markdown, from the models."""
    lines = [
        "# Every key of the configuration",
        "",
        "Made from `usbpo/experiment/config.py` by `usbpo schema`; do not edit.",
        "",
    ]
    head = ["| key | type | default | unit | source | meaning |", "|---|---|---|---|---|---|"]
    for name, model in SCHEMAS.items():
        lines += [f"## {(model.__doc__ or name).rstrip('.')}", "", *head, *_key_rows(model, ""), ""]
    return "\n".join(lines).rstrip() + "\n"


def _key_rows(model: type[Section], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        said: Any = field.json_schema_extra
        kind = field.annotation
        sections = [t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, Section)]
        if sections:
            rows += _key_rows(sections[0], f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.default)
        text = _type_name(kind).replace("|", "or")
        rows.append(
            f"| `{prefix}{name}` | {text} | {default} | {said['unit']} | {said['source']} | {field.description} |"
        )
    return rows


def _type_name(kind: Any) -> str:
    """A type in words: numbers, names, and what they are collected in."""
    if kind is type(None):
        return "null"
    if get_origin(kind) is Annotated:
        return _type_name(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return " | ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {_type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    if get_args(kind):
        return " | ".join(_type_name(part) for part in get_args(kind))
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(kind, str(kind))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but 1e-4 is a number, as in YAML 1.2, and a key stands only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping safely.

    Raises:
        UsbpoError: the file is missing, is not YAML, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsbpoError(f"{path}: cannot be read ({error.strerror}); name an existing file.") from error
    except UnicodeDecodeError as error:
        raise UsbpoError(f"{path}: this is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    loader = _Loader(text)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UsbpoError(f"{path}{line}: this is not valid YAML: {problem}; mend the line.") from error
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise UsbpoError(f"{path}: a mapping of keys to values is expected; see config/README.md.")
    return content


FOLDERS = (Path("config"), Path(__file__).parents[2] / "config")
"""Where task, method and experiment files are looked up, as the workflow does: the user's, then the project's"""


def find(kind: Literal["tasks", "algorithms", "experiments"], name: str, folders: Iterable[Path]) -> Path:
    """The file `NAME.yaml` in the first of the configuration `folders` that has it.

    Raises:
        UsbpoError: there is none; the sentence lists the names that exist.
    """
    folders = list(folders)
    for folder in folders:
        path = folder / kind / f"{name}.yaml"
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in (folder / kind).glob("*.yaml")})
    what = {"tasks": "task", "algorithms": "method", "experiments": "experiment"}[kind]
    raise UsbpoError(
        f"unknown {what} {name!r}: there is no config/{kind}/{name}.yaml; known are {', '.join(known) or 'none'}."
    )


def read_layers(kind: Literal["tasks", "algorithms"], name: str, folders: Iterable[Path]) -> list[tuple[Path, Any]]:
    """A task or method file and the files that it inherits from, the most general first.

    Raises:
        UsbpoError: a file is missing or broken, or the inheritance runs in a circle.
    """
    return read_bases(kind, find(kind, name, folders), folders)


def read_bases(kind: Literal["tasks", "algorithms"], path: Path, folders: Iterable[Path]) -> list[tuple[Path, Any]]:
    """As `read_layers`, for a file anywhere.

    Raises:
        UsbpoError: as `read_layers`.
    """
    folders = list(folders)
    layers: list[tuple[Path, Any]] = []
    while True:
        if any(path == seen for seen, _ in layers):
            raise UsbpoError(f"{path}: base leads back to this file; let one of the files inherit from none.")
        content = read_yaml(path)
        content.pop("description", None)
        following = content.pop("base", None)
        if following is not None and not isinstance(following, str):
            raise UsbpoError(f"{path}: base must be a name, but is {following!r}.")
        layers.append((path, content))
        if following is None:
            return layers[::-1]
        path = find(kind, following, folders)


def overlay(lower: Any, upper: Any) -> Any:
    """Lay one nested mapping over another; anything that is no mapping replaces what was below."""
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return upper
    return {
        k: overlay(lower[k], upper[k]) if k in lower and k in upper else (upper if k in upper else lower)[k]
        for k in [*lower, *(k for k in upper if k not in lower)]
    }


@cache
def load_run(task: str, method: str, folders: tuple[Path, ...]) -> RunConfig:
    """The configuration of a run of `task` with `method`, looked up in the configuration `folders`.

    Raises:
        UsbpoError: a file is unknown or broken, or a key is unknown, missing, of the wrong type or out of bounds.
    """
    layers = read_layers("tasks", task, folders)
    return validated_run(layers + read_layers("algorithms", method, folders), layers[-1][0])


def merged(layers: Iterable[tuple[Path, Any]]) -> Any:
    """The content of several files laid over each other, the most general first."""
    content: Any = {}
    for _, upper in layers:
        content = overlay(content, upper)
    return content


def validated_run(layers: list[tuple[Path, Any]], task_file: Path) -> RunConfig:
    """The configuration of a run from its files, the most general first.

    Raises:
        UsbpoError: a key is unknown, missing, of the wrong type or out of bounds.
    """
    try:
        return RunConfig.model_validate(merged(layers))
    except ValidationError as error:
        detail = _first_fault(error)
        # What every task must say is missing in the task, whichever file has a part of its section.
        path = task_file if detail["type"] == "missing" else _file_of(detail, layers)
        raise UsbpoError(f"{path}: {sentence(detail)}") from error


_REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def with_numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's keys with numbers where Snakemake's `--config 'seeds=[0]'` leaves text: seeds, steps, returns."""

    def number(value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    def real(value: Any) -> Any:
        return float(value) if isinstance(value, str) and _REAL.fullmatch(value) else value

    found = dict(content)
    if isinstance(found.get("seeds"), list):
        found["seeds"] = [number(seed) for seed in found["seeds"]]
    if isinstance(found.get("steps"), dict):
        found["steps"] = {task: number(steps) for task, steps in found["steps"].items()}
    if isinstance(found.get("returns"), dict):
        found["returns"] = {
            task: [real(each) for each in returns] if isinstance(returns, list) else returns
            for task, returns in found["returns"].items()
        }
    return found


def load_experiment(content: Mapping[str, Any], source: str) -> Experiment:
    """Check the content of an experiment file; `source` names it in errors.

    Raises:
        UsbpoError: a key is unknown, missing, of the wrong type or out of bounds.
    """
    return _validated(Experiment, content, source)


S = TypeVar("S", bound=Section)


def _validated(model: type[S], content: Mapping[str, Any], source: str) -> S:
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        raise UsbpoError(f"{source}: {sentence(_first_fault(error))}") from error


def _first_fault(error: ValidationError) -> ErrorDetails:
    """The first key at fault; where several types are allowed, pydantic's complaint about the one that came closest."""
    first = error.errors()[0]
    return max((d for d in error.errors() if d["loc"][:1] == first["loc"][:1]), key=lambda detail: len(detail["loc"]))


def _file_of(detail: ErrorDetails, layers: list[tuple[Path, Any]]) -> Path:
    """The uppermost file that sets the key of an error, or the uppermost that has part of its path."""

    def depth(content: Any) -> int:
        for level, part in enumerate(detail["loc"]):
            if not isinstance(content, Mapping) or part not in content:
                return level
            content = content[part]
        return len(detail["loc"])

    return max(enumerate(layers), key=lambda layer: (depth(layer[1][1]), layer[0]))[1][0]


_TYPE_IN_PATH = re.compile(r"bool|int|float|str|constrained-\w+|dict\[.*\]")
"""How pydantic writes the branch of a union into the path of a key."""


def sentence(detail: ErrorDetails) -> str:
    """One sentence for one pydantic error: the key, what is wrong, what to do."""
    name = ".".join(str(part) for part in detail["loc"] if not _TYPE_IN_PATH.fullmatch(str(part)))
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key {name!r}; see config/README.md for the keys, or remove it."
    if kind == "missing":
        return f"the key {name!r} is missing; add it."
    if kind == "value_error":
        place = f"{name}: " if name else ""
        return f"{place}{context['error']}."
    if kind == "too_short":
        least = context["min_length"]
        entries = "entry" if least == 1 else "entries"
        return f"{name!r} needs at least {least} {entries}, but has {context['actual_length']}; add more."
    if kind == "literal_error":
        return f"{name!r} must be {context['expected']}, but is {value!r}; mend the value."
    if kind == "string_pattern_mismatch":
        return (
            f"{name!r} may hold letters, digits, dots, dashes and underscores only, the first a letter or digit, "
            f"but is {value!r}; choose another name."
        )
    if kind in ("model_type", "dict_type"):
        return f"{name!r} must be a mapping of keys to values, but is {value!r}; mend the value."
    if detail["loc"][-1:] == ("bool",):  # the first branch of a union of all scalars
        return f"{name!r} must be a number, a text, true or false, but is {value!r}; mend the value."
    message = detail["msg"].removeprefix("Input should be ")
    return f"{name!r} must be {message}, but is {value!r}; mend the value."
