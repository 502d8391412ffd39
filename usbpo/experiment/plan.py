"""What an experiment needs: its runs, which file of a run follows from which, and the parameters of its stages."""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from usbpo.artifacts import blocks, layout, pulled
from usbpo.artifacts.files import sha256
from usbpo.artifacts.fingerprint import fingerprint
from usbpo.artifacts.layout import five_digits
from usbpo.environments.usercode import module_fingerprint
from usbpo.errors import UsbpoError
from usbpo.experiment import memory, runtime
from usbpo.experiment.config import (
    FOLDERS,
    EnvironmentKeys,
    Experiment,
    ModelKeys,
    RunConfig,
    find,
    load_experiment,
    load_run,
    read_yaml,
)
from usbpo.experiment.run_files import FILES, RunFiles, returns_option
from usbpo.experiment.schedule import Schedule
from usbpo.experiment.sizes import Sizes


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

    def check_initial_data(self, root: Path) -> None:
        """Check that the imported file, if there is one, is below `root` and fits; the rows themselves are not read.

        Raises:
            UsbpoError: it is not there, or does not fit.
        """
        from usbpo.experiment.initial_data import check_imported  # not before: few runs have any

        environment = self.config.environment
        arguments, steps = environment_arguments(environment), self.config.schedule.random_steps
        for path in self.initial_data(0):
            try:
                check_imported(root / path, environment.id, arguments, steps)
            except UsbpoError as error:
                raise UsbpoError(f"schedule.initial_data of {self.task} with {self.method}: {error}") from error

    def collect_options(self, cycle: int) -> str:
        """Parameters of `collect`."""
        steps = self.config.schedule.random_steps if cycle == 0 else self.schedule.cycle_steps
        return f"{self._environment()} --episodes {self.config.environment.episodes} --steps {steps}"

    def initialise_options(self) -> str:
        """Parameters of `initialise`."""
        return as_options(self.config.policy, only={"hidden_layers", "hidden_size"})

    def triggered_options(self, cycle: int) -> str:
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

    def phase1_options(self) -> str:
        """Parameters of `phase1`."""
        keys = f"{as_options(self._model_keys())} {as_options(self.config.phase1)}"
        return f"{keys} {self._model_every()} {self._model_device()}"

    def phase2_options(self) -> str:
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

    def rollout_options(self, cycle: int) -> str:
        """Parameters of `rollout`."""
        termination = shlex.quote(self.config.environment.termination)
        length = self.schedule.rollout_steps(cycle)
        return f"{as_options(self.config.rollout)} {self._model_device()} --termination {termination} --length {length}"

    def policy_options(self) -> str:
        """Parameters of `policy`."""
        updates = self.config.policy.updates_per_step * self.schedule.cycle_steps
        options = as_options(self.config.policy, without={"updates_per_step"})
        retained = f"--retained-updates {self.schedule.retained_updates} {self._model_every()}"
        return f"{options} --updates {updates} {retained} {self._device()}"

    def evaluate_options(self, cycle: int) -> str:
        """Parameters of `evaluate`."""
        steps = cycle * self.schedule.cycle_steps
        return f"{self._environment()} {as_options(self.config.evaluate, without={'every'})} --on-policy-steps {steps}"

    def environment_code(self) -> str:
        """Fingerprint of the user's module that registers the environment; '' for one of Gymnasium's."""
        return _code_of_module(self.config.environment.id)

    def termination_code(self) -> str:
        """Fingerprint of the user's module with the termination function; '' for one of usbpo's."""
        return _code_of_module(self.config.environment.termination)

    def theory_options(self) -> str:
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

    def video_options(self) -> str:
        """Parameters of `video`."""
        return self._environment()

    def gpus(self) -> int:
        """GPUs that a stage with networks takes: one, unless the run's device rules it out."""
        return int(self.config.device != "cpu")

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
        dimensions = _dimensions(environment.id, json.dumps(environment.arguments))
        return Sizes(self.config, self.schedule, *dimensions) if dimensions else None

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
            options = getattr(self, f"{stage}_options")
            given.append(options(cycle) if stage in OPTIONS_BY_CYCLE else options())
        given += [self.environment_code()] * (stage in ("collect", "evaluate", "theory", "triggered"))
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

OPTIONS_BY_CYCLE = ("collect", "triggered", "rollout", "evaluate")


class Plan:
    """The runs of an experiment and how long each is.

    Args:
        content: the experiment's keys.
        source: names the experiment's file in errors.
        folders: configuration folders, searched in order for task and method files.

    Raises:
        UsbpoError: a file or key is unknown, missing or wrong, or the steps are no whole number of cycles.
    """

    def __init__(self, content: Mapping[str, Any], source: str, folders: Iterable[Path]) -> None:
        self.experiment: Experiment = load_experiment(content, source)
        self.source = source
        self.folders = tuple(folders)
        self._check_returns(source)
        self.cycles: dict[Run, int] = {}
        for task in self.experiment.tasks:
            for method in self.experiment.methods:
                for seed in self.experiment.scaled_seeds:
                    run = self.run(task, method, seed)
                    self.cycles[run] = self._cycles(run, source)
        self._cut_down(source)

    @classmethod
    def named(cls, name: str | None, changed: Mapping[str, Any] | None = None) -> "Plan":
        """The plan of an experiment: a file, the name of one in config/experiments, or None for the default one.

        Args:
            name: of the experiment.
            changed: keys in place of the file's.

        Raises:
            UsbpoError: there is no such experiment, or it is at fault.
        """
        path = experiment_file(name)
        return cls({**read_yaml(path), **(changed or {})}, source=str(path), folders=FOLDERS)

    def run(self, task: str, method: str, seed: int) -> Run:
        """Any run, of this experiment or not."""
        return Run(task, method, seed, load_run(task, method, self.folders))

    def check_initial_data(self, root: Path = Path()) -> None:
        """Check, before anything is computed, that the files which runs begin with are there and fit them.

        Args:
            root: folder that holds data/.

        Raises:
            UsbpoError: one is not an import for the run's environment with as many rows as are asked for.
        """
        begins = {(run.task, run.method): run for run in self.cycles if run.initial_data(0)}
        for run in begins.values():
            run.check_initial_data(root)

    def _cut_down(self, source: str) -> None:
        """Keep the runs that `only` names."""
        names = {run.name for run in self.cycles}
        for name in self.experiment.only:
            if name not in names:
                raise UsbpoError(
                    f"{source}: only: {name} is no run of the experiment; name TASK/METHOD/seed-N of its tasks, "
                    "methods and seeds."
                )
        if self.experiment.only:
            self.cycles = {run: cycles for run, cycles in self.cycles.items() if run.name in self.experiment.only}

    def _check_returns(self, source: str) -> None:
        """Refuse returns of a task that does not exist; a part of an experiment may leave out tasks that do."""
        for task in self.experiment.returns:
            if task not in self.experiment.tasks:
                try:
                    find("tasks", task, self.folders)
                except UsbpoError as error:
                    raise UsbpoError(f"{source}: returns: {error}") from error

    def _cycles(self, run: Run, source: str) -> int:
        cycle_steps = run.schedule.cycle_steps
        steps = self.experiment.steps_of(run.task, run.schedule.epoch_steps, cycle_steps)
        if steps % cycle_steps:
            raise UsbpoError(
                f"{source}: steps ({steps}) must be a multiple of the {cycle_steps} steps of a cycle of "
                f"{run.task} with {run.method}; take {max(steps // cycle_steps, 1) * cycle_steps}."
            )
        return run.schedule.cycles(steps)

    def configurations(self) -> list[dict[str, Any]]:
        """The whole configuration of each task with each method."""
        return [
            self.run(task, method, 0).config.model_dump()
            for task in self.experiment.tasks
            for method in self.experiment.methods
        ]

    def artifacts(self, root: Path = Path()) -> list[str]:
        """What stays of every run, as `kept`, in ascending order of cycle."""
        longest, large = max(self.cycles.values()), {run: self.kept_checkpoints(run, root) for run in self.cycles}
        left = {run.path(layout.CYCLE, cycle) for run, cycles in self.left_behind(root).items() for cycle in cycles}
        return [
            path
            for cycle in range(longest + 1)
            for run, cycles in self.cycles.items()
            if cycle <= cycles
            for path in run.artifacts(cycle)
            if not layout.is_large(path) or path in large[run]
            if path.rpartition("/")[0] not in left
        ]

    def left_behind(self, root: Path = Path()) -> dict["Run", list[int]]:
        """The cycles of this experiment's runs that are published and were not pulled into `root`, in order."""
        return {run: cycles for run in self.cycles if (cycles := self._left_of(run, root))}

    def _left_of(self, run: "Run", root: Path) -> list[int]:
        """The cycles of a run that were not pulled, in order."""
        return [cycle for cycle in pulled.left_behind(root, run.folder) if cycle <= self.cycles[run]]

    def left_out(self, root: Path = Path()) -> list[str]:
        """A sentence for each run of which cycles were not pulled."""
        return [
            f"{run.name}: {ranges(cycles)} published and not pulled; not made again, and without them no results "
            f"are drawn (`dvc pull {run.folder}` brings them)."
            for run, cycles in self.left_behind(root).items()
        ]

    def kept(self, run: Run, root: Path = Path()) -> list[str]:
        """The artifacts of a run that stay once it is done, in ascending order of cycle: its final targets.

        All real data, evaluations, metrics and rows of the theory, and `kept_checkpoints`; but for the cycles that were
        not pulled.
        """
        large, left = self.kept_checkpoints(run, root), {run.path(layout.CYCLE, c) for c in self._left_of(run, root)}
        return [
            path
            for cycle in range(self.cycles[run] + 1)
            for path in run.artifacts(cycle)
            if not layout.is_large(path) or path in large
            if path.rpartition("/")[0] not in left
        ]

    def kept_checkpoints(self, run: Run, root: Path = Path()) -> set[str]:
        """The models, policies and rollouts of a run that stay.

        Of a run that is longer already below `root` the last of those that are asked for may be gone, and stay only if
        theirs is a cycle that is kept for its number.
        """
        cycles = self.cycles[run]
        if self.experiment.artifacts.keep == "all":
            return {path for cycle in range(cycles + 1) for path in run.artifacts(cycle) if layout.is_large(path)}
        every = self.experiment.artifacts.every
        kept = set(range(0, cycles + 1, every)) if every else set()
        if not (root / run.path(layout.SHARD, cycles + 1)).is_file():
            kept.add(cycles)
        return {path for cycle in sorted(kept) for path in run.checkpoints(cycle)}

    def targets(self) -> dict[str, dict[str, int]]:
        """For each run by name: how many cycles it shall have, of how many steps, and the last with an evaluation."""
        return {
            run.name: {
                "cycles": cycles,
                "cycle_steps": run.schedule.cycle_steps,
                "evaluated": run.schedule.last_evaluation(cycles),
            }
            for run, cycles in self.cycles.items()
        }

    def result_inputs(self, root: Path = Path()) -> list[str]:
        """What the figures and tables are drawn from: evaluations, metrics and the rows of the theory, of all runs."""
        return [path for path in self.artifacts(root) if path.endswith((".json", "evaluation.h5", "theory.h5"))]

    @property
    def results_folder(self) -> str:
        """Where the figures and tables lie."""
        return layout.RESULTS.format(experiment=self.experiment.experiment)

    def result_files(self) -> list[str]:
        """The figures and tables."""
        return [f"{self.results_folder}/{name}" for name in FILES]

    def result_params(self) -> dict[str, Any]:
        """What the figures and tables depend on beside their inputs: the code, and the options of `usbpo results`.

        The runs, and the returns whose first reaching is timed, as its `--runs` and `--returns` take them.
        """
        asked = self.experiment.returns
        return {
            "code": fingerprint("report.results"),
            "experiment": self.experiment.experiment,
            "runs": [str(run.files(cycles)) for run, cycles in self.cycles.items()],
            "returns": [returns_option(task, asked[task]) for task in self.experiment.tasks if task in asked],
        }

    def event_files(self) -> list[str]:
        """TensorBoard's file of each run."""
        return [run.path(layout.TENSORBOARD, cycles) for run, cycles in self.cycles.items()]

    def event_inputs(self, run: Run) -> list[str]:
        """What TensorBoard's file of a run is made from: its real data, evaluations and metrics.

        Raises:
            UsbpoError: the run is not of this experiment, which alone says how many cycles it has.
        """
        if run not in self.cycles:
            raise UsbpoError(f"{run.name} is no run of the experiment {self.experiment.experiment}; add it there.")
        shown = (".json", "evaluation.h5")
        paths = [path for cycle in range(self.cycles[run] + 1) for path in run.artifacts(cycle)]
        shards = [run.path(layout.SHARD, cycle) for cycle in range(self.cycles[run] + 1)]
        return [*shards, *(path for path in paths if path.endswith(shown))]

    def videos(self) -> list[str]:
        """A video of the final policy of each run."""
        return [run.path(layout.VIDEO, cycles) for run, cycles in self.cycles.items()]

    def of_runs(self, targets: Iterable[str]) -> list[str]:
        """The artifacts of runs among Snakemake's targets, and the policies that the videos among them show."""
        targets = list(targets)
        runs, videos = (template.partition("{")[0] for template in (layout.RUN, layout.VIDEO))
        films = [*targets, *(self.videos() if "videos" in targets else [])]
        policies = [
            f"{runs}{film.removeprefix(videos).removesuffix('.gif')}/{Path(layout.POLICY).name}"
            for film in films
            if film.startswith(videos)
        ]
        return [target for target in targets if target.startswith(runs)] + policies


@lru_cache(maxsize=100)  # four stages of a cycle ask
def _real_data(run: Run, cycle: int) -> list[str]:
    return run.of_real_data(blocks.real_data(cycle))


@cache
def _dimensions(environment: str, arguments: str) -> tuple[int, int] | None:
    """obs_dim and act_dim, as the environment itself says; None where it cannot be made, which `collect` will report.

    Args:
        arguments: of the environment, as JSON.
    """
    try:
        # Here, because it takes a third of a second, and what Snakemake prints may be read by a program.
        with redirect_stdout(sys.stderr):
            from usbpo.environments.tasks import Simulator

            simulator = Simulator(environment, json.loads(arguments))
            simulator.close()
    except Exception:  # of the simulator's or the user's code
        return None
    return simulator.obs_dim, simulator.act_dim


@cache
def _checksum(path: str) -> str:
    """SHA-256 of a file; '' where there is none."""
    return sha256(Path(path)) if Path(path).is_file() else ""


@cache
def _code_of_module(name: str) -> str:
    """Fingerprint of the module in `module:name`; '' where no module is named or none is found."""
    module, colon, _ = name.partition(":")
    return module_fingerprint(module) if colon else ""


def ranges(cycles: Iterable[int]) -> str:
    """Ascending cycles in words: `cycles 0 to 8 and 10 are`."""
    bounds: list[list[int]] = []
    for cycle in cycles:
        if bounds and cycle == bounds[-1][1] + 1:
            bounds[-1][1] = cycle
        else:
            bounds.append([cycle, cycle])
    *parts, last = [str(low) if low == high else f"{low} to {high}" for low, high in bounds]
    single = len(bounds) == 1 and bounds[0][0] == bounds[0][1]
    before = f"{', '.join(parts)} and " if parts else ""
    return f"cycle {last} is" if single else f"cycles {before}{last} are"


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


def check_writable(folder: Path) -> None:
    """Check, before anything is computed, that artifacts can be written.

    Raises:
        UsbpoError: data/, data/runs or data/results is no folder, or cannot be written.
    """
    for output in (folder / "data", folder / "data/runs", folder / "data/results"):
        probe = output / f".usbpo-probe-{os.getpid()}"  # two may look at the same time
        try:
            output.mkdir(exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsbpoError(
                f"{output}: the output folder cannot be written ({error.strerror}); "
                "mend its permissions or run in another folder with --directory."
            ) from error


def experiment_file(name: str | None) -> Path:
    """The file of an experiment, by its path or a name: of a file in config/experiments, or of the default one (None).

    Raises:
        UsbpoError: there is no such experiment.
    """
    default = next((of / "config.yaml" for of in FOLDERS if (of / "config.yaml").is_file()), Path("config.yaml"))
    if name is None:
        return default
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if any((of / f"experiments/{name}.yaml").is_file() for of in FOLDERS) or not default.is_file():
        return find("experiments", name, FOLDERS)
    return default if read_yaml(default).get("experiment") == name else find("experiments", name, FOLDERS)
