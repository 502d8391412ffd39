"""The command-line options of a run's stages, made from exactly the keys of the configuration that each uses."""

import json
import shlex
from dataclasses import dataclass

from pydantic import BaseModel

from usbpo.errors import UsbpoError
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.schedule import Schedule
from usbpo.experiment.sections import EnvironmentKeys, ModelKeys

BY_CYCLE = ("collect", "triggered", "rollout", "evaluate")
"""The stages whose options differ from cycle to cycle."""


@dataclass(frozen=True)
class Options:
    """The options of the stages of a run, each as one text."""

    method: str
    config: RunConfig
    schedule: Schedule

    def of(self, stage: str, cycle: int) -> str:
        """Parameters of a stage in a cycle; `block` has none."""
        made = getattr(self, stage)
        return str(made(cycle) if stage in BY_CYCLE else made())

    def collect(self, cycle: int) -> str:
        """Parameters of `collect`."""
        steps = self.config.schedule.random_steps if cycle == 0 else self.schedule.cycle_steps
        return f"{self._environment()} --episodes {self.config.environment.episodes} --steps {steps}"

    def initialise(self) -> str:
        """Parameters of `initialise`."""
        return as_options(self.config.policy, only={"hidden_layers", "hidden_size"})

    def triggered(self, cycle: int) -> str:
        """Parameters of `triggered`: those of its checks, and of the stages that it stands for as JSON by section."""
        config = self.config
        lengths = " ".join(str(length) for length in self.schedule.rollout_steps_at_checks(cycle))
        sections = {
            **{"trigger": config.trigger, "model": config.model, "phase1": config.phase1, "phase2": config.phase2},
            **{"rollout": config.rollout, "policy": config.policy},
        }
        given = " ".join(
            f"--{name} {shlex.quote(json.dumps(section.model_dump(), sort_keys=True)) if section else ''}".rstrip()
            for name, section in sections.items()
        )
        return (
            f"{self._environment()} --episodes {config.environment.episodes} "
            f"--termination {shlex.quote(config.environment.termination)} --steps {self.schedule.cycle_steps} "
            f"--lengths {lengths} --retained-updates {self.schedule.retained_updates} {self._model_device()} {given}"
        )

    def phase1(self) -> str:
        """Parameters of `phase1`."""
        keys = f"{as_options(self._model_keys())} {as_options(self.config.phase1)}"
        return f"{keys} {self._model_every()} {self._model_device()}"

    def phase2(self) -> str:
        """Parameters of `phase2`; it holds out the same rows as phase 1."""
        if self.config.phase2 is None:
            raise UsbpoError(f"the method {self.method} has no phase 2; ask for model-mle.safetensors instead.")
        holdout = as_options(self.config.phase1, only={"holdout_ratio", "holdout_limit"})
        retained = f"--retained-updates {self.schedule.retained_updates}"
        return f"{as_options(self.config.phase2)} {holdout} {retained} {self._model_every()} {self._model_device()}"

    def _model_keys(self) -> ModelKeys:
        if self.config.model is None:
            raise UsbpoError(f"the method {self.method} has no model; ask for its policies and evaluations instead.")
        return self.config.model

    def rollout(self, cycle: int) -> str:
        """Parameters of `rollout`."""
        termination = shlex.quote(self.config.environment.termination)
        length = self.schedule.rollout_steps(cycle)
        return f"{as_options(self.config.rollout)} {self._model_device()} --termination {termination} --length {length}"

    def policy(self) -> str:
        """Parameters of `policy`."""
        updates = self.config.policy.updates_per_step * self.schedule.cycle_steps
        options = as_options(self.config.policy, without={"updates_per_step"})
        retained = f"--retained-updates {self.schedule.retained_updates} {self._model_every()}"
        return f"{options} --updates {updates} {retained} {self._device()}"

    def evaluate(self, cycle: int) -> str:
        """Parameters of `evaluate`."""
        steps = cycle * self.schedule.cycle_steps
        return f"{self._environment()} {as_options(self.config.evaluate, without={'every'})} --on-policy-steps {steps}"

    def theory(self) -> str:
        """Parameters of `theory`; it takes the rows that phase 1 held out.

        Raises:
            UsbpoError: the method measures no theory.
        """
        if self.config.theory is None:
            raise UsbpoError(f"the method {self.method} measures no theory; set theory in config/algorithms.")
        holdout = as_options(self.config.phase1, only={"holdout_ratio", "holdout_limit"})
        discount = as_options(self.config.policy, only={"discount"})
        termination = shlex.quote(self.config.environment.termination)
        size = f"{as_options(self.config.theory, without={'depth'})} --depth {self.config.theory_depth}"
        return (
            f"{self._environment()} --termination {termination} {size} {holdout} {discount} "
            f"--retained-updates {self.schedule.retained_updates} {self._model_every()}"
        )

    def video(self) -> str:
        """Parameters of `video`."""
        return self._environment()

    def _model_every(self) -> str:
        return f"--model-every {self.schedule.model_every}"

    def _device(self) -> str:
        return as_options(self.config, only={"device"})

    def _model_device(self) -> str:
        return as_options(self.config, only={"device", "precision"})

    def _environment(self) -> str:
        environment = self.config.environment
        arguments = environment_arguments(environment)
        return f"--environment {shlex.quote(environment.id)} --environment-arguments {shlex.quote(arguments)}"


def environment_arguments(environment: EnvironmentKeys) -> str:
    """The environment's keyword arguments as the stages take them, JSON."""
    return json.dumps(environment.arguments, sort_keys=True)


def as_options(section: BaseModel, only: set[str] | None = None, without: set[str] | None = None) -> str:
    """Keys of a section as command-line options, `--learning-rate 0.001 …`; a null key is left out."""
    words = []
    for name, value in section.model_dump(include=only, exclude=without).items():
        if value is None:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [shlex.quote(str(entry)) for entry in (value if isinstance(value, list) else [value])]
    return " ".join(words)
