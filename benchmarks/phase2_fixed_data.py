"""What phase 2 does to the model, on the data of a recorded run: variants of it, free of the policy's noise.

    python benchmarks/phase2_fixed_data.py chain RUN --variant fixed --output DIR
    python benchmarks/phase2_fixed_data.py screen RUN --variant fixed --cycles 3 6 9 --output DIR
    python benchmarks/phase2_fixed_data.py table DIR [--output TABLES.md]

RUN is the folder of a run of a method without phase 2 that has kept everything (data/runs/TASK/mbpo/seed-S, with
`artifacts: {keep: all}`). Its real data, its model rollouts and its policies stay what they are; only the models are
made anew:

- `chain`: phase 1 and the variant's phase 2 of every cycle after the first, one upon the other: M1 is the variant's own
  model of the cycle before. Seeds, and with them hold-out rows and batches, are those of the stages, so that the
  variant `none` gives the recorded models to the byte. The first cycle has no phase 2, so that its model, and what
  phase 1 of the second makes of it, are the recorded ones; `none` alone trains the latter.
- `screen`: M1 and M2 of each cycle are the recorded models of the cycle before and of this one; phase 2 alone is run,
  with a new optimizer. A variant's cycle then says nothing of what the variant would have led to, but costs little.

One process is one run and one variant, on one thread. It leaves DIR/TASK/seed-S/MODE-VARIANT.csv, a line for each
cycle, whose columns end in `_before` or `_after` phase 2, and goes on with it where it was interrupted. Cycles that the
run does not have yet are measured by the next call. A chain's last model stays beside the file.

What is measured, in raw units of (reward, s'): the hold-out error of phase 1; on ROWS rows of D_model, those that phase
2 draws from, what the stage `theory` measures, mean and median over rows; on branches from hold-out states, the median
distance of model and simulator after 1 to 10 steps with the policy that rolled out. Rows, members, starts and noise are
the same for all variants.
"""

import argparse
import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from usbpo.agent import sac
from usbpo.artifacts import layout, transitions
from usbpo.artifacts.files import read_json, write_text, writing
from usbpo.artifacts.header import Header
from usbpo.artifacts.layout import five_digits
from usbpo.environments import terminations
from usbpo.environments.reconstruction import reconstruction
from usbpo.environments.tasks import Simulator
from usbpo.errors import UsbpoError
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.loading import load_run
from usbpo.experiment.run import Run
from usbpo.experiment.sections import Phase2Keys
from usbpo.model.ensemble import KIND, Ensemble, choose_elites, gaussian, holdout_mse, load, predict
from usbpo.model.fine_tuning import Compared, FineTuning, Sampled, fine_tune, with_real
from usbpo.model.passes import number_type
from usbpo.model.wasserstein import Objective, Rows, distances_to_others, draw_members, drawn, w2
from usbpo.numerics.optimizer import Params
from usbpo.numerics.seeding import torch_generator
from usbpo.stages.model_data import ModelData, model_data, split_holdout
from usbpo.stages.phase1 import phase1
from usbpo.stages.theory import MeasuredRows, error_by_depth, measure

CPU = torch.device("cpu")
ROWS, STARTS, DEPTH = 2000, 500, 10
"""Rows of D_model and branches that are measured, and their steps."""
FIRST = 3
"""The cycle from which on the tables take means."""

Gaussians = tuple[Tensor, Tensor]
"""Mean and standard deviation, (…, rows, dim) each"""


# ---- the recorded run ----


class Recorded:
    """A recorded run, and the configuration of the phase 2 that is tried on it.

    Args:
        folder: data/runs/TASK/METHOD/seed-S of its workspace.
        phase2: the method whose keys of phase 2 are taken.
    """

    def __init__(self, folder: Path, phase2: str) -> None:
        folder = folder.resolve()
        self.workspace = folder.parents[4]
        task, method, seed = folder.parts[-3:]
        if not (folder.is_dir() and seed.startswith("seed-") and folder.parents[3].name == "data"):
            raise UsbpoError(f"{folder}: this is no folder of a run; name a data/runs/TASK/METHOD/seed-S.")
        folders = (self.workspace / "config", *FOLDERS[1:])
        self.run = Run(task, method, int(seed.removeprefix("seed-")), load_run(task, method, folders))
        if self.run.config.phase2 is not None or self.run.schedule.triggered:
            raise UsbpoError(f"{folder}: {method} fine-tunes or has a trigger; name a run of MBPO.")
        found = load_run(task, phase2, folders).phase2
        if found is None:
            raise UsbpoError(f"{phase2} has no phase 2; name a method that has one.")
        assert self.run.config.model is not None
        self.phase2: Phase2Keys = found
        self.members = self.run.config.model.members
        environment = self.run.config.environment
        self.world = reconstruction(Simulator(environment.id, environment.arguments))
        self.termination = terminations.find(environment.termination)

    def __str__(self) -> str:
        return self.run.name

    def paths(self, names: Iterable[str]) -> list[Path]:
        """Files of the run, which are named from the workspace."""
        return [self.workspace / name for name in names]

    def path(self, template: str, cycle: int) -> Path:
        """One of the templates in `usbpo.artifacts.layout` for a cycle."""
        return self.workspace / self.run.path(template, cycle)

    def before(self, cycle: int) -> int:
        """The cycle whose model is M1 of `cycle`."""
        return self.run.schedule.model_cycles(cycle - 1)[0]

    def inputs(self, cycle: int) -> list[Path]:
        """Everything that a cycle is measured from."""
        methods = ("real_data", "model_data_before", "maximum_likelihood", "previous_models", "previous_policy")
        return [path for method in methods for path in self.paths(getattr(self.run, method)(cycle))]

    def cycles(self) -> list[int]:
        """The cycles with a model before theirs that the run has so far; a file there is whole."""
        found: list[int] = []
        cycle = 2
        while all(path.is_file() for path in self.inputs(cycle)):
            if self.run.schedule.has_model_stages(cycle):
                found.append(cycle)
            cycle += 1
        return found

    def model(self, path: Path) -> Ensemble:
        """A model, ready for this run's precision."""
        return load(path)[1].to(CPU, number_type(self.run.config.precision))


class Given:
    """The data of one cycle of a recorded run."""

    def __init__(self, recorded: Recorded, cycle: int) -> None:
        run, keys = recorded.run, recorded.run.config.phase1
        self.recorded, self.seed, self.cycle = recorded, run.seed, cycle
        self.files = recorded.paths(run.real_data(cycle))
        _, self.real = transitions.read_all(self.files)
        rollouts, retained = recorded.paths(run.model_data_before(cycle)), run.schedule.retained_updates
        _, self.made = transitions.read_rollouts(rollouts, retained)
        split = split_holdout(len(self.real), run.seed, cycle, keys.holdout_ratio, keys.holdout_limit)
        self.training_rows, self.holdout_rows = split
        self.data = model_data(self.real)

    @cached_property
    def holdout(self) -> ModelData:
        """The rows that phase 1 and phase 2 hold out."""
        return self.data.rows(self.holdout_rows)

    @cached_property
    def actor(self) -> Params:
        """The policy that rolled out."""
        (path,) = self.recorded.paths(self.recorded.run.previous_policy(self.cycle))
        return sac.load(path)[1].actor

    def generator(self, name: str) -> torch.Generator:
        """Random numbers of this cycle for one purpose."""
        return torch_generator(self.seed, self.cycle, name)


# ---- the variants of phase 2 ----


class SameMember(FineTuning):
    """The shift compares member j of M2 with its own former self, j in M1."""

    def compared(self, rows: Rows) -> Compared:
        """As there, with i = j."""
        return super().compared(replace(rows, members1=rows.members2))


class Mixture(FineTuning):
    """One Gaussian stands for M*: that with mean and variance of the mixture of the members m ≠ j, from phase 1."""

    def between(self, m1: Tensor, m2: Tensor, members: Tensor, m_star: Tensor | None, bounds: Params) -> Objective:
        """As there."""
        assert m_star is not None
        one = _drawn(gaussian(bounds, m2), members)
        mixture = moment_matched(*gaussian(self.m_star, m_star), members)
        return Objective(w2(*gaussian(self.m1.params, m1), *one).mean(), w2(*one, *mixture).mean())


def moment_matched(mean: Tensor, std: Tensor, members: Tensor) -> Gaussians:
    """The Gaussian with mean and variance of the mixture of all members but one for each row, (rows, dim) each.

    Args:
        mean: (members, rows, dim).
        std: likewise.
        members: (rows,), the member j that is left out.
    """
    weights = torch.ones_like(mean[..., 0]).scatter(0, members[None], 0.0)[..., None] / (len(mean) - 1)
    middle = (weights * mean).sum(dim=0)
    return middle, (weights * (std.square() + (mean - middle).square())).sum(dim=0).sqrt()


class Standardised(FineTuning):
    """Distances in units of the standard deviation that (reward, s' − s) has on the training rows.

    Args:
        unit: (dim,).
    """

    def __init__(self, m1: Ensemble, m2: Ensemble, unit: Tensor) -> None:
        super().__init__(m1, m2, "as_written", "fixed")
        self._unit = unit

    def between(self, m1: Tensor, m2: Tensor, members: Tensor, m_star: Tensor | None, bounds: Params) -> Objective:
        """As there."""
        assert m_star is not None
        pairs = (self.m1.params, m1), (bounds, m2), (self.m_star, m_star)
        first, (mean, std), star = (
            (found[0] / self._unit, found[1] / self._unit) for found in (gaussian(*pair) for pair in pairs)
        )
        one = _drawn((mean, std), members)
        return Objective(w2(*first, *one).mean(), distances_to_others(*one, *star, members).mean() / (len(mean) - 1))


def _drawn(all_members: Gaussians, members: Tensor) -> Gaussians:
    return drawn(all_members[0], members), drawn(all_members[1], members)


class Variant(NamedTuple):
    """A phase 2: what makes its objective, None where there is none, and the keys in which it differs."""

    tuning: Callable[[Given, Ensemble, Ensemble], FineTuning] | None
    keys: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def _standardised(given: Given, m1: Ensemble, m2: Ensemble) -> FineTuning:
    unit = given.data.rows(given.training_rows).targets.std(dim=0, correction=0)
    return Standardised(m1, m2, torch.where(unit < 1e-12, torch.ones_like(unit), unit))


def _fixed(given: Given, m1: Ensemble, m2: Ensemble) -> FineTuning:
    return FineTuning(m1, m2, "as_written", "fixed")


VARIANTS = {
    "none": Variant(None),
    "moving": Variant(lambda given, m1, m2: FineTuning(m1, m2, "as_written", "moving")),
    "fixed": Variant(_fixed),
    "fixed-same-member": Variant(lambda given, m1, m2: SameMember(m1, m2, "as_written", "fixed")),
    "fixed-mixture": Variant(lambda given, m1, m2: Mixture(m1, m2, "as_written", "fixed")),
    "fixed-standardised": Variant(_standardised),
    "fixed-300-steps": Variant(_fixed, {"max_steps": 300}),
    "fixed-3e-4": Variant(_fixed, {"learning_rate": 3e-4}),
    "samples": Variant(lambda given, m1, m2: Sampled(m1, m2)),
}


class Tuned(NamedTuple):
    """How a phase 2 went."""

    steps: int = 0
    best_step: int = 0
    objective_before: float | None = None
    objective_after: float | None = None
    phase2_seconds: float = 0.0


def fine_tuned(given: Given, m1: Ensemble, m2: Ensemble, variant: str) -> Tuned:
    """Fine-tune M2 in place as the stage `phase2` does, with its random numbers."""
    how = VARIANTS[variant]
    if how.tuning is None:
        return Tuned()
    began = time.process_time()
    m2.finetune = m1.finetune
    keys = given.recorded.phase2.model_copy(update=how.keys)
    members, generator = m2.architecture.members, given.generator("phase2")
    samples, training = given.generator("phase2_samples"), given.data.rows(given.training_rows)
    tuning = how.tuning(given, m1, m2)
    observations, actions = torch.from_numpy(given.made.observations), torch.from_numpy(given.made.actions)

    def draw() -> Rows:
        index = torch.randint(len(observations), (keys.batch_size,), generator=generator)
        rows = Rows(observations[index], actions[index], *draw_members(members, keys.batch_size, generator))
        if not isinstance(tuning, Sampled):
            return rows
        of_real = torch.randint(len(training.inputs), index.shape, generator=samples)
        return with_real(rows, training.inputs[of_real], training.targets[of_real])

    watched = given.holdout.rows(torch.randint(len(given.holdout_rows), (keys.validation_rows,), generator=generator))
    inputs, obs_dim = watched.inputs, m2.architecture.obs_dim
    drawn_members = draw_members(members, keys.validation_rows, generator)
    validation = Rows(inputs[:, :obs_dim], inputs[:, obs_dim:], *drawn_members)
    sampled = isinstance(tuning, Sampled)
    values, best_step, _ = fine_tune(
        tuning,
        draw,
        tuning.compared(with_real(validation, watched.inputs, watched.targets) if sampled else validation),
        batch_size=keys.batch_size * (1 + sampled),
        **keys.model_dump(include={"learning_rate", "max_steps", "min_improvement", "patience", "terms"}),
    )
    errors = holdout_mse(m2, m2.params, given.holdout.inputs, given.holdout.targets)
    m2.elites = choose_elites(errors, m2.architecture.elites)
    return Tuned(len(values) - 1, best_step, values[0], values[best_step], time.process_time() - began)


# ---- what is measured ----

DISTANCES = ("shift", "surrogate_moving", "surrogate_fixed", "true_bias", "error")
MEASURES = (
    *("holdout_mse_elites", "holdout_mse"),
    *(f"{name}_{of}" for name in (*DISTANCES, "spread") for of in ("mean", "median")),
    *(f"depth_{step}" for step in range(1, DEPTH + 1)),
)
COLUMNS = (
    *("task", "seed", "mode", "variant", "cycle", "rows", "starts", "as_recorded", "epochs", "phase1_seconds"),
    *Tuned._fields,
    *(f"{name}_{when}" for name in MEASURES for when in ("before", "after")),
)
"""Of a CSV. `as_recorded`: in a chain of `none`, whether the model is the recorded one to the byte; else empty."""


class Measured:
    """The rows and starts on which all models of a cycle are measured."""

    def __init__(self, given: Given, rows: int, starts: int) -> None:
        world, generator = given.recorded.world, given.generator("phase2_fixed_data")
        if world is None:
            raise UsbpoError(f"{given.recorded}: its simulator cannot be set to a state; name a run of a MuJoCo task.")
        self.given, self.world = given, world
        batch = given.made.rows(torch.randperm(len(given.made), generator=generator)[:rows].numpy())
        outcomes = torch.from_numpy(world.next_states(batch.observations, batch.actions))
        members = torch.randint(given.recorded.members, (2, len(batch)), generator=generator)
        known = torch.isfinite(outcomes).all(dim=1)
        columns = torch.from_numpy(batch.observations), torch.from_numpy(batch.actions), *members, outcomes
        self.rows = MeasuredRows(*(column[known] for column in columns))
        begin = given.holdout.inputs[torch.randperm(len(given.holdout_rows), generator=generator)[:starts]]
        begin = begin[:, : batch.observations.shape[1]]
        self.starts = begin[torch.from_numpy(world.determines(begin.numpy()))]

    def of(self, m1: Ensemble, m2: Ensemble, left: Ensemble) -> dict[str, float]:
        """All measures of M2; `left` is M2 as phase 1 left it."""
        errors = holdout_mse(m2, m2.params, self.given.holdout.inputs, self.given.holdout.targets)
        found = {"holdout_mse_elites": float(errors[m2.elites].mean()), "holdout_mse": float(errors.mean())}
        rows = self.rows
        _, each = measure(rows, m1, m2, policy_shift=0.0, discount=0.0)
        each["surrogate_moving"] = each.pop("surrogate_bias")
        (mean, std), (left_mean, left_std) = (
            [part.double() for part in predict(model, model.params, rows.observations, rows.actions)]
            for model in (m2, left)
        )
        one = _drawn((mean, std), rows.members2)
        each["surrogate_fixed"] = distances_to_others(*one, left_mean, left_std, rows.members2) / (len(mean) - 1)
        each["spread"] = one[1].norm(dim=1)
        for name in (*DISTANCES, "spread"):
            found[f"{name}_mean"], found[f"{name}_median"] = float(each[name].mean()), float(each[name].median())
        by_depth = self._by_depth(m2)
        return found | {f"depth_{step}": error for step, error in enumerate(by_depth, start=1)}

    def _by_depth(self, m2: Ensemble) -> list[float]:
        generator = self.given.generator("phase2_fixed_data_depth")
        ends, starts = self.given.recorded.termination, self.starts
        lines = error_by_depth(m2, self.given.actor, starts, DEPTH, ends, self.world, generator)
        return [error for line in lines if (error := line["error_q50"]) is not None]


# ---- over the cycles of a run ----


class Lines:
    """The CSV of one run and variant, a line for each cycle that has been measured.

    Raises:
        UsbpoError: a file of that name was written with other measures.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, read_lines(path) if path.is_file() else []
        if self.lines and tuple(self.lines[0]) != COLUMNS:
            raise UsbpoError(f"{path}: its columns are not those of this version; delete it and measure again.")

    @property
    def cycles(self) -> list[int]:
        """Those measured."""
        return [int(line["cycle"]) for line in self.lines]

    def append(self, line: dict[str, Any]) -> None:
        """Write the file anew with one more line, whole or not at all; columns without a value stay empty."""
        line = {name: _text(line.get(name)) for name in COLUMNS}
        self.lines = sorted([*self.lines, line], key=lambda line: int(line["cycle"]))
        with writing(self.path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.lines)


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _text(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def lines_of(recorded: Recorded, mode: str, variant: str, output: Path) -> Lines:
    """Where a run and variant are written."""
    run = recorded.run
    return Lines(output / run.task / f"seed-{run.seed}" / f"{mode}-{variant}.csv")


def _line(given: Given, mode: str, variant: str, m1: Ensemble, m2: Ensemble, sizes: tuple[int, int]) -> dict[str, Any]:
    """Run phase 2 on M2, in place, and measure it before and after."""
    measured = Measured(given, *sizes)
    left = replace(m2)  # phase 2 gives M2 other tensors, and changes none
    before = measured.of(m1, m2, left)
    tuned = fine_tuned(given, m1, m2, variant)
    after = before if VARIANTS[variant].tuning is None else measured.of(m1, m2, left)
    run = given.recorded.run
    return {
        **{"task": run.task, "seed": run.seed, "mode": mode, "variant": variant, "cycle": given.cycle},
        **{"rows": len(measured.rows), "starts": len(measured.starts)},
        **tuned._asdict(),
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
    }


def screen(recorded: Recorded, variant: str, cycles: Sequence[int], output: Path, sizes: tuple[int, int]) -> Lines:
    """Phase 2 alone, between the recorded models of each cycle."""
    lines = lines_of(recorded, "screen", variant, output)
    for cycle in [c for c in recorded.cycles() if c not in lines.cycles and (not cycles or c in cycles)]:
        given = Given(recorded, cycle)
        m1, m2 = (recorded.model(recorded.path(layout.MODEL_MLE, c)) for c in (recorded.before(cycle), cycle))
        lines.append(_line(given, "screen", variant, m1, m2, sizes))
        print(f"{recorded}, {variant}: cycle {cycle}", flush=True)
    return lines


def chain(recorded: Recorded, variant: str, cycles: Sequence[int], output: Path, sizes: tuple[int, int]) -> Lines:
    """Phase 1 and phase 2 of every cycle, M1 the variant's own model before; up to the last of `cycles`."""
    lines = lines_of(recorded, "chain", variant, output)
    folder = lines.path.with_suffix("")
    for cycle in [c for c in recorded.cycles() if c not in lines.cycles and (not cycles or c <= max(cycles))]:
        before = recorded.before(cycle)
        own = folder / f"{five_digits(before)}.safetensors"
        previous = own if before > 1 else recorded.path(layout.MODEL_MLE, before)
        given, mle, told = Given(recorded, cycle), folder / "mle.safetensors", {}
        if before == 1 and variant != "none":
            mle = recorded.path(layout.MODEL_MLE, cycle)
        else:
            told = _train(given, previous, mle)
        m1, m2 = recorded.model(previous), recorded.model(mle)
        line = _line(given, "chain", variant, m1, m2, sizes) | told
        made = folder / f"{five_digits(cycle)}.safetensors"
        if VARIANTS[variant].tuning is None:
            same = mle.read_bytes() == recorded.path(layout.MODEL_MLE, cycle).read_bytes()
            line["as_recorded"] = "yes" if same else "no"
            os.replace(mle, made)
        else:
            m2.save(made, Header(KIND, recorded.run.task, recorded.run.seed, cycle, method=recorded.run.method))
        lines.append(line)
        own.unlink(missing_ok=True)
        print(f"{recorded}, {variant}: cycle {cycle}", flush=True)
    return lines


def _train(given: Given, previous: Path, output: Path) -> dict[str, Any]:
    """Phase 1 of a cycle, by its stage."""
    config, metrics = given.recorded.run.config, output.with_suffix(".json")
    assert config.model is not None
    began = time.process_time()
    with redirect_stdout(io.StringIO()):  # the stage's
        phase1(
            data=given.files, output=output, metrics=metrics, seed=given.seed, cycle=given.cycle,
            previous_model=previous, model_every=given.recorded.run.schedule.model_every, device=config.device,
            precision=config.precision,
            **config.model.model_dump(), **config.phase1.model_dump(),
        )  # fmt: skip
    return {"epochs": read_json(metrics)["epochs"], "phase1_seconds": time.process_time() - began}


# ---- tables ----


NAMES = {
    "none": "none (MBPO)",
    "moving": "M* moves along",
    "fixed": "M* stands still",
    "fixed-same-member": "still, i = j in the shift",
    "fixed-mixture": "still, the others as one Gaussian",
    "fixed-standardised": "still, in units of the targets' deviation",
    "fixed-300-steps": "still, up to 300 steps",
    "fixed-3e-4": "still, learning rate 3e-4",
    "samples": "recorded next states as M*",
}
RATIOS = {"error of the mean": "error_median", "true bias": "true_bias_median", "hold-out MSE": "holdout_mse_elites"}
DEPTHS = (1, 10)
RAISED = 1.02
"""Hold-out error after / before beyond which a task counts as one where it rises."""


class Summary(NamedTuple):
    """A task, mode and variant over seeds and cycles from `FIRST` on."""

    lines: list[dict[str, str]]
    ratios: dict[str, float | None]
    """By the names of `RATIOS`: geometric mean of after / before; None for a variant without phase 2"""
    depths: dict[int, tuple[float, float | None]]
    """Mean over cycles of the median error after so many steps; the same divided by MBPO's on the same cycles, None
    where these are not known"""


def summaries(folder: Path) -> dict[tuple[str, str, str], Summary]:
    """Those of all CSVs below a folder, by task, mode and variant."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for path in sorted(folder.glob("*/seed-*/*.csv")):
        for line in read_lines(path):
            if int(line["cycle"]) >= FIRST:
                groups.setdefault((line["task"], line["mode"], line["variant"]), []).append(line)
    return {key: _summary(key, groups) for key in sorted(groups, key=_order)}


def _order(key: tuple[str, str, str]) -> tuple[str, str, int]:
    return key[0], key[1], list(NAMES).index(key[2])


def _summary(key: tuple[str, str, str], groups: dict[tuple[str, str, str], list[dict[str, str]]]) -> Summary:
    task, mode, variant = key
    lines = groups[key]
    ratios: dict[str, float | None] = {}
    for name, column in RATIOS.items():
        each = [float(line[f"{column}_after"]) / float(line[f"{column}_before"]) for line in lines]
        ratios[name] = None if variant == "none" else geometric_mean(each)
    # What a screen measures before phase 2 are MBPO's models; a chain's are its own.
    mbpo = (
        lines
        if mode == "screen"
        else [*groups.get((task, "screen", "none"), []), *groups.get((task, "chain", "none"), [])]
    )
    depths = {}
    for depth in DEPTHS:
        own = {(line["seed"], line["cycle"]): float(line[f"depth_{depth}_after"]) for line in lines}
        theirs = {(line["seed"], line["cycle"]): float(line[f"depth_{depth}_before"]) for line in mbpo}
        known = variant != "none" and own.keys() <= theirs.keys()
        beside = fmean(own.values()) / fmean(theirs[at] for at in own) if known else None
        depths[depth] = fmean(own.values()), beside
    return Summary(lines, ratios, depths)


def tables(folder: Path) -> str:
    """A Markdown table for each task, and one over tasks."""
    found = summaries(folder)
    parts = [_task_table(task, found) for task in dict.fromkeys(task for task, _, _ in found)]
    return "\n\n".join([*parts, _table_over_tasks(found)]) + "\n"


def _task_table(task: str, found: dict[tuple[str, str, str], Summary]) -> str:
    depths = [f"error after {depth} step{'s' * (depth > 1)} (÷ MBPO)" for depth in DEPTHS]
    columns = ["mode", "phase 2", "cycles (seeds)", *RATIOS, *depths, "best step of steps", "CPU s"]
    rows = []
    for (of, mode, variant), told in found.items():
        if of == task:
            seeds = len({line["seed"] for line in told.lines})
            steps = f"{_mean(told.lines, 'best_step'):.0f} of {_mean(told.lines, 'steps'):.0f}"
            seconds = f"{_mean(told.lines, 'phase2_seconds'):.1f}"
            fine_tuning = ["–", "–"] if variant == "none" else [steps, seconds]
            at_depths = [
                f"{error:.3g}" + (f" ({beside:.2f})" if beside else "") for error, beside in told.depths.values()
            ]
            ratios = [_ratio(value) for value in told.ratios.values()]
            rows.append([mode, NAMES[variant], f"{len(told.lines)} ({seeds})", *ratios, *at_depths, *fine_tuning])
    return _markdown(f"**{task}**", columns, rows)


def _table_over_tasks(found: dict[tuple[str, str, str], Summary]) -> str:
    depths = [f"error after {depth} step{'s' * (depth > 1)} ÷ MBPO" for depth in DEPTHS]
    columns = ["mode", "phase 2", "tasks", *RATIOS, *depths, "hold-out MSE rises on"]
    rows = []
    for mode, variant in dict.fromkeys(key[1:] for key in sorted(found, key=lambda key: _order(("", *key[1:])))):
        if variant != "none":
            told = {key[0]: summary for key, summary in found.items() if key[1:] == (mode, variant)}
            ratios = [_over([summary.ratios[name] for summary in told.values()]) for name in RATIOS]
            at_depths = [_over([summary.depths[depth][1] for summary in told.values()]) for depth in DEPTHS]
            rises = [task for task, summary in told.items() if (summary.ratios["hold-out MSE"] or 0) > RAISED]
            rows.append([mode, NAMES[variant], str(len(told)), *ratios, *at_depths, ", ".join(rises) or "none"])
    return _markdown("**Over tasks**", columns, rows)


def _over(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _ratio(geometric_mean(known) if known and len(known) == len(values) else None)


def _mean(lines: Sequence[dict[str, str]], column: str) -> float:
    return fmean(float(line[column]) for line in lines)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])


def main() -> None:
    """Measure one run and variant, or print the tables of what has been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("chain", chain), ("screen", screen)):
        command = commands.add_parser(name)
        command.set_defaults(measuring=function)
        command.add_argument("run", type=Path, help="folder of a recorded run, data/runs/TASK/mbpo/seed-S")
        command.add_argument("--variant", choices=VARIANTS, required=True)
        command.add_argument(
            "--cycles", type=int, nargs="+", default=[], help="which; of a chain the last alone counts"
        )
        command.add_argument("--output", type=Path, required=True, help="folder of the CSVs")
        command.add_argument("--phase2", default="usbpo", help="method whose keys of phase 2 are taken")
        command.add_argument("--rows", type=int, default=ROWS, help="rows of D_model that are measured")
        command.add_argument("--starts", type=int, default=STARTS, help="branches that are measured")
    command = commands.add_parser("table")
    command.add_argument("folder", type=Path, help="folder of the CSVs")
    command.add_argument("--output", type=Path, help="Markdown to write instead of printing it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command != "table":
        recorded = Recorded(given.run, given.phase2)
        given.measuring(recorded, given.variant, given.cycles, given.output, (given.rows, given.starts))
    elif given.output:
        write_text(given.output, tables(given.folder))
    else:
        print(tables(given.folder), end="")


if __name__ == "__main__":
    main()
