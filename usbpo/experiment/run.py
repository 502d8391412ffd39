"""One run: its files, which of them each of its jobs reads and makes, and what else makes a job run again."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

from usbpo.artifacts import blocks, layout
from usbpo.artifacts.files import sha256
from usbpo.artifacts.fingerprint import fingerprint
from usbpo.artifacts.layout import five_digits
from usbpo.environments import argument_files
from usbpo.environments.usercode import module_fingerprint
from usbpo.errors import UsbpoError
from usbpo.experiment import memory, runtime, threads
from usbpo.experiment.options import Options
from usbpo.experiment.paths import is_file
from usbpo.experiment.run_config import RunConfig
from usbpo.experiment.run_files import RunFiles
from usbpo.experiment.schedule import Schedule
from usbpo.experiment.sizes import Sizes, dimensions


@dataclass(frozen=True)
class Run:
    """One run: a task with a method and a seed. Nothing here depends on how many cycles are asked for."""

    task: str
    method: str
    seed: int
    config: RunConfig = field(compare=False, repr=False)

    @cached_property
    def schedule(self) -> Schedule:
        """The arithmetic of this run's cycles."""
        return self.config.cycles()

    @cached_property
    def options(self) -> Options:
        """The command-line options of its stages."""
        return Options(self.method, self.config, self.schedule)

    @property
    def name(self) -> str:
        """TASK/METHOD/seed-N, the run's folder below data/runs."""
        return f"{self.task}/{self.method}/seed-{self.seed}"

    @property
    def folder(self) -> str:
        """Where its artifacts lie, from the workspace."""
        return layout.RUN.format(task=self.task, method=self.method, seed=self.seed)

    def path(self, template: str, cycle: int) -> str:
        """One of the templates in `usbpo.artifacts.layout` for a cycle."""
        digits = five_digits(cycle)
        return template.format(task=self.task, method=self.method, seed=self.seed, cycle=digits, block=digits)

    def fine_tunes(self, cycle: int) -> bool:
        """Whether `cycle` has a phase 2: not the first model, for which there is no D_model yet.

        Where a trigger decides, the first cycle may have had time for a second model, so it always leaves one.
        """
        has = self.config.phase2 is not None and self.schedule.has_model_stages(cycle)
        return has and (cycle > 1 or self.schedule.triggered)

    def real_data(self, cycle: int) -> list[str]:
        """D_env at the end of `cycle`: blocks, then shards."""
        return list(_real_data(self, cycle))

    def parts_of_block(self, number: int) -> list[str]:
        """The shards, or smaller blocks, that the block made after a cycle gathers.

        Raises:
            UsbpoError: no block is made then.
        """
        block = blocks.block_of(number)
        if block is None:
            raise UsbpoError(f"{self.name} has no block {number}; ask for one that it has.")
        return self.of_real_data(block.parts())

    def of_real_data(self, parts: Iterable[blocks.Block | int]) -> list[str]:
        """The files of some shards (cycles) and blocks."""
        return [
            self.path(layout.SHARD, part) if isinstance(part, int) else self.path(layout.BLOCK, part.number)
            for part in parts
        ]

    def models(self, cycle: int) -> list[str]:
        """The model in force at the end of `cycle`; none before the first."""
        cycles = self.schedule.model_cycles(cycle)
        return [self.path(layout.MODEL if self.fine_tunes(c) else layout.MODEL_MLE, c) for c in cycles]

    def measures_theory(self, cycle: int) -> bool:
        """Whether shift, bias and the bounds are measured in `cycle`: where it has the stages of the model."""
        return self.config.theory is not None and self.schedule.has_model_stages(cycle)

    def fine_tuned_model(self, cycle: int) -> list[str]:
        """M2 as phase 2 of `cycle` leaves it; none where there is no phase 2."""
        return [self.path(layout.MODEL, cycle)] if self.fine_tunes(cycle) else []

    def model_to_fine_tune(self, cycle: int) -> list[str]:
        """M2 as phase 1 of `cycle` leaves it to phase 2.

        Raises:
            UsbpoError: the cycle has no phase 2.
        """
        if not self.fine_tunes(cycle):
            raise UsbpoError(f"cycle {cycle} of {self.name} has no phase 2; ask for its model-mle.safetensors instead.")
        return self.maximum_likelihood(cycle)

    def previous_models(self, cycle: int) -> list[str]:
        """M1 of `cycle`, as `models`; none before the first model."""
        return self.models(cycle - 1)

    def previous_trigger(self, cycle: int) -> list[str]:
        """The trigger's state that `cycle` goes on with; none in the first cycle."""
        return [self.path(layout.TRIGGER, cycle - 1)] if cycle > 1 else []

    def real_data_before(self, cycle: int) -> list[str]:
        """D_env when `cycle` begins."""
        return self.real_data(cycle - 1)

    def previous_policy(self, cycle: int) -> list[str]:
        """The policy with which `cycle` collects and rolls out; none for the random steps."""
        return [self.path(layout.POLICY, cycle - 1)] if cycle else []

    def previous_shard(self, cycle: int) -> list[str]:
        """The shard whose episode `cycle` goes on with."""
        return [self.path(layout.SHARD, cycle - 1)] if cycle else []

    def model_data_before(self, cycle: int) -> list[str]:
        """D_model when phase 2 of `cycle` runs."""
        return self.model_data(cycle - 1)

    def model_data(self, cycle: int) -> list[str]:
        """D_model when the policy of `cycle` is updated."""
        return [self.path(layout.ROLLOUTS, c) for c in self.schedule.rollout_cycles(cycle)]

    def policy_of(self, cycle: int) -> list[str]:
        """The policy at the end of `cycle`."""
        return [self.path(layout.POLICY, cycle)]

    def first_shard(self, cycle: int) -> list[str]:
        """The random steps, from which the first policy takes its sizes."""
        return [self.path(layout.SHARD, 0)]

    def maximum_likelihood(self, cycle: int) -> list[str]:
        """M2 as phase 1 of `cycle` leaves it."""
        return [self.path(layout.MODEL_MLE, cycle)]

    def initial_data(self, cycle: int) -> list[str]:
        """The imported file that `cycle` takes in place of random steps; none after cycle 0."""
        path = self.config.schedule.initial_data
        return [path] if path and cycle == 0 else []

    def initial_data_checksum(self, cycle: int) -> str:
        """SHA-256 of that file, so that another content counts whatever its time says; '' without one."""
        return "".join(_checksum(path) for path in self.initial_data(cycle))

    def environment_code(self) -> str:
        """Fingerprint of the user's module that registers the environment; '' for one of Gymnasium's."""
        return _code_of_module(self.config.environment.id)

    def environment_files(self) -> str:
        """SHA-256 of the files that the environment's arguments name; '' where they name none."""
        environment = self.config.environment
        return _content_of_files(environment.id, json.dumps(environment.arguments), os.getcwd())

    def termination_code(self) -> str:
        """Fingerprint of the user's module with the termination function; '' for one of usbpo's."""
        return _code_of_module(self.config.environment.termination)

    def gpus(self) -> int:
        """GPUs that a stage with networks takes: one, unless the run's device rules it out."""
        return int(self.config.device != "cpu")

    def threads(self, stage: str, share: int) -> int:
        """Threads of a stage where the run has so many cores for itself."""
        return max(1, min(threads.most(self.config, stage), share))

    def megabytes(self, stage: str, cycle: int) -> int:
        """Memory that a stage takes in `cycle`, MB; a guess where the environment cannot be made."""
        return memory.megabytes(self.sizes, stage, cycle) if self.sizes else memory.UNKNOWN

    def minutes(self, stage: str, cycle: int) -> int:
        """Time limit of a stage in `cycle`, minutes; a guess where the environment cannot be made."""
        return runtime.minutes(self.sizes, stage, cycle) if self.sizes else runtime.STEP

    @cached_property
    def sizes(self) -> Sizes | None:
        """What memory and time follow from; None where the environment cannot be made, which `collect` will report."""
        environment = self.config.environment
        found = dimensions(environment.id, json.dumps(environment.arguments))
        return Sizes(self.config, self.schedule, *found) if found else None

    def files(self, cycles: int) -> RunFiles:
        """What the results need to know of this run's files, when it has so many cycles."""
        schedule = self.schedule
        return RunFiles(
            task=self.task,
            method=self.method,
            seed=self.seed,
            cycles=cycles,
            cycle_steps=schedule.cycle_steps,
            model_every=schedule.model_every,
            evaluate_every=schedule.evaluate_every,
            phase2=self.config.phase2 is not None,
            triggered=schedule.triggered,
            theory=self.config.theory is not None and schedule.has_model,
        )

    def jobs(self, cycle: int) -> dict[str, list[str]]:
        """The stages of `cycle`, each with what it leaves behind."""
        templates = {"collect": [layout.SHARD]}
        if cycle == 0:
            templates["initialise"] = [layout.POLICY]
        if self.schedule.has_model_stages(cycle):
            templates["phase1"] = [layout.MODEL_MLE, layout.PHASE1_METRICS]
        if self.fine_tunes(cycle):
            templates["phase2"] = [layout.MODEL, layout.PHASE2_METRICS]
        if self.schedule.has_model_stages(cycle):
            templates["rollout"] = [layout.ROLLOUTS, layout.ROLLOUT_METRICS]
        if cycle:
            templates["policy"] = [layout.POLICY, layout.POLICY_METRICS]
        if cycle and self.schedule.triggered:
            templates = {"triggered": [layout.TRIGGER, *(path for of_stage in templates.values() for path in of_stage)]}
        if self.measures_theory(cycle):
            templates["theory"] = [layout.THEORY_ROWS, layout.THEORY_METRICS]
        if self.schedule.evaluates(cycle):
            templates["evaluate"] = [layout.EVALUATION]
        made = {stage: [self.path(template, cycle) for template in of_stage] for stage, of_stage in templates.items()}
        if blocks.block_of(cycle) is not None:
            made["block"] = [self.path(layout.BLOCK, cycle)]
        return made

    def artifacts(self, cycle: int) -> list[str]:
        """Everything that `cycle` leaves behind."""
        return [path for paths in self.jobs(cycle).values() for path in paths]

    def inputs(self, stage: str, cycle: int) -> list[str]:
        """What a job reads."""
        if stage == "block":
            return self.parts_of_block(cycle)
        return [path for method in READS[stage] for path in getattr(self, method)(cycle)]

    def params(self, stage: str, cycle: int) -> list[str]:
        """What the rule of a stage hands Snakemake as `params`; a job whose params have changed runs again."""
        given = [fingerprint(f"stages.{stage}")]
        if stage != "block":
            given.append(self.options.of(stage, cycle))
        if stage in ("collect", "evaluate", "theory", "triggered"):
            given += [self.environment_code(), self.environment_files()]
        given += [self.termination_code()] * (stage in ("rollout", "theory", "triggered"))
        given += [self.initial_data_checksum(cycle)] * (stage == "collect")
        return given

    def checkpoints(self, cycle: int) -> list[str]:
        """The large artifacts with which the run can go on after `cycle`.

        That is the policy, the model, and D_model: the models and policies by which its rollouts are made again. Where
        a trigger decides, rollouts are made between the steps of a cycle, by models that are not kept; there it is
        D_model itself.
        """
        rolled = self.schedule.rollout_cycles(cycle)
        paths = [*self.policy_of(cycle), *self.models(cycle)]
        if self.schedule.triggered:
            paths += self.model_data(cycle)
        else:
            paths += [path for c in rolled for path in (*self.previous_policy(c), *self.models(c))]
        return list(dict.fromkeys(paths))


READS = {
    "initialise": ("first_shard",),
    "collect": ("previous_policy", "previous_shard", "initial_data"),
    "triggered": (
        *("real_data_before", "previous_shard", "previous_policy", "previous_models", "previous_trigger"),
        "model_data_before",
    ),
    "phase1": ("real_data", "previous_models"),
    "phase2": ("real_data", "model_data_before", "model_to_fine_tune", "previous_models"),
    "rollout": ("real_data", "models", "previous_policy"),
    "policy": ("real_data", "model_data", "previous_policy"),
    "evaluate": ("policy_of",),
    "theory": (
        *("real_data", "model_data_before", "maximum_likelihood", "fine_tuned_model", "previous_models"),
        *("previous_policy", "policy_of"),
    ),
}
"""What the rule of each stage asks a run for as its input; a block reads its parts."""


@lru_cache(maxsize=100)  # four stages of a cycle ask
def _real_data(run: Run, cycle: int) -> list[str]:
    return run.of_real_data(blocks.real_data(cycle))


@cache
def _checksum(path: str) -> str:
    """SHA-256 of a file; '' where there is none."""
    return sha256(Path(path)) if is_file(Path(path)) else ""


@cache
def _content_of_files(environment: str, arguments: str, folder: str) -> str:
    """SHA-256 of the files that an environment's arguments (JSON) name in a run of this folder."""
    return argument_files.content_of(environment, json.loads(arguments), Path(folder))


@cache
def _code_of_module(name: str) -> str:
    """Fingerprint of the module in `module:name`; '' where no module is named or none is found."""
    module, colon, _ = name.partition(":")
    return module_fingerprint(module) if colon else ""
