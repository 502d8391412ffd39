"""What products in bfloat16 do to the model: its hold-out error after phase 1, shift and bias after phase 2, the time.

    python benchmarks/precision.py [--seeds 0 1 2] [--rows 5000] [--task Hopper] [--max-epochs N]

For each seed, real rows are collected with random actions. Phase 1 is trained on them three times: in
float32, in bfloat16 with the same random numbers, and in float32 with others, which says how much two trainings differ
anyway. Then the rows of a cycle of 250 steps come, M2 is trained on all in float32, and phase 2 fine-tunes that same M2
in either precision against the float32 model M1, with the same draws.

Hold-out errors are means over the elites, as the model predicts in its own precision; "in float32" is the same model
with float32 products. Shift and bias are all in float32, on the same rows. Times are CPU times of one thread.
"""

import argparse
import io
import json
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from usbpo.artifacts import transitions
from usbpo.artifacts.files import read_json
from usbpo.artifacts.header import Header
from usbpo.experiment.layers import FOLDERS
from usbpo.experiment.loading import load_run
from usbpo.experiment.run_config import RunConfig
from usbpo.model.ensemble import Architecture, Ensemble, choose_elites, holdout_mse, load, new_ensemble
from usbpo.model.fine_tuning import FineTuning
from usbpo.model.passes import number_type
from usbpo.model.wasserstein import Rows, draw_members
from usbpo.numerics.seeding import torch_generator
from usbpo.stages.collect import collect
from usbpo.stages.initialise import initialise
from usbpo.stages.model_data import ModelData, model_data, split_holdout
from usbpo.stages.phase1 import phase1, train
from usbpo.stages.phase2 import phase2
from usbpo.stages.rollout import rollout

CPU = torch.device("cpu")
TRAININGS = {
    "float32": ("float32", "phase1"),
    "bfloat16": ("bfloat16", "phase1"),
    "float32, other numbers": ("float32", "other"),
}
"""Of phase 1: precision, and the name from which the generator is seeded."""


class Trained(NamedTuple):
    """What a training of phase 1 came to."""

    error: float
    """Hold-out error, mean over the elites"""
    error_in_float32: float
    epochs: int
    seconds: float


def trained(
    config: RunConfig,
    start: Ensemble,
    training: ModelData,
    holdout: ModelData,
    precision: str,
    generator: torch.Generator,
) -> tuple[Trained, Ensemble]:
    """Train a new model to its end."""
    keys = config.phase1.model_dump(exclude={"holdout_ratio", "holdout_limit"})
    model = start.to(CPU, number_type(precision))
    began = time.process_time()
    by_epoch, _ = train(model, training, holdout, generator, **keys)
    seconds = time.process_time() - began
    errors = holdout_mse(model, model.params, holdout.inputs, holdout.targets)
    model.elites = choose_elites(errors, model.architecture.elites)
    full = model.to(CPU)
    in_float32 = holdout_mse(full, full.params, holdout.inputs, holdout.targets)
    told = Trained(float(errors[model.elites].mean()), float(in_float32[model.elites].mean()), len(by_epoch), seconds)
    return told, full


class Seed:
    """Data, policy and first model of one seed, in a folder."""

    def __init__(self, config: RunConfig, folder: Path, task: str, seed: int, rows: int) -> None:
        self.config, self.folder, self.task, self.seed = config, folder, task, seed
        self.first, self.second, self.policy = folder / "0.h5", folder / "1.h5", folder / "policy.safetensors"
        self.m1 = folder / "m1.safetensors"
        environment: dict[str, Any] = {"environment": config.environment.id, "task": task, "seed": seed}
        environment["environment_arguments"] = json.dumps(config.environment.arguments)
        collect(output=self.first, cycle=0, steps=rows, **environment)
        sizes: dict[str, Any] = {"hidden_layers": config.policy.hidden_layers, "hidden_size": config.policy.hidden_size}
        initialise(data=self.first, output=self.policy, **sizes)
        steps = config.schedule.model_train_freq
        collect(output=self.second, cycle=1, steps=steps, policy=self.policy, previous=self.first, **environment)
        self.alone = folder / "alone.h5"
        """The first rows as all that there are in cycle 1"""
        header, batch = transitions.read(self.first)
        transitions.write(self.alone, replace(header, cycle=1, parameters={"shards": 2}), batch)

    def phase1(self) -> dict[str, Trained]:
        """Train on the first rows, in each way; the float32 model becomes M1."""
        header, batch = transitions.read(self.first)
        data, keys, model = model_data(batch), self.config.phase1, self.config.model
        assert model is not None
        fitted, held_out = split_holdout(len(batch), self.seed, 1, keys.holdout_ratio, keys.holdout_limit)
        dims = batch.observations.shape[1], batch.actions.shape[1]
        sizes = Architecture(*dims, model.members, model.elites, model.hidden_layers, model.hidden_size)
        found = {}
        for name, (precision, numbers) in TRAININGS.items():
            start = new_ensemble(sizes, torch_generator(self.seed, 1, "new_ensemble"))
            generator = torch_generator(self.seed, 1, numbers)
            rows = data.rows(fitted), data.rows(held_out)
            found[name], made = trained(self.config, start, *rows, precision, generator)
            if name == "float32":
                made.save(self.m1, Header("model", header.task, self.seed, 1))
        return found

    def phase2(self) -> dict[str, dict[str, float]]:
        """Fine-tune the same M2 in either precision: shift, bias, steps, hold-out error and time, and before."""
        config, mle, rollouts = self.config, self.folder / "mle.safetensors", self.folder / "rollouts.h5"
        assert config.model is not None
        assert config.phase2 is not None
        identity: dict[str, Any] = {"seed": self.seed, "device": "cpu", "cycle": 1}
        data, metrics = [self.first, self.second], self.folder / "metrics.json"
        phase1(
            data=data, output=mle, metrics=metrics, previous_model=self.m1, check=2, **identity,
            **config.model.model_dump(), **config.phase1.model_dump(),
        )  # fmt: skip
        rollout(
            data=[self.alone], model=self.m1, policy=self.policy, output=rollouts, metrics=metrics, length=1,
            termination=config.environment.termination, batch_size=config.rollout.batch_size, **identity,
        )  # fmt: skip
        (_, m1), (_, m2) = load(self.m1), load(mle)
        _, batch = transitions.read(rollouts, transitions.ROLLOUTS)
        generator = torch_generator(self.seed, 0, "precision")
        some = torch.randint(len(batch), (config.phase2.validation_rows,), generator=generator)
        drawn = draw_members(config.model.members, len(some), generator)
        rows = Rows(torch.from_numpy(batch.observations)[some], torch.from_numpy(batch.actions)[some], *drawn)

        def terms(model: Ensemble) -> dict[str, float]:
            keys = config.phase2
            assert keys is not None
            tuning = FineTuning(m1, m2, keys.loss, keys.stand_in)
            tuning.params = model.params
            shift, bias = (float(value) for value in tuning.objective(tuning.compared(rows)))
            return {"shift": shift, "bias": bias, "sum": shift + bias}

        found = {"before": terms(m2)}
        holdout: dict[str, Any] = {
            "holdout_ratio": config.phase1.holdout_ratio,
            "holdout_limit": config.phase1.holdout_limit,
        }
        for precision in ("float32", "bfloat16"):
            output = self.folder / f"{precision}.safetensors"
            began = time.process_time()
            phase2(
                data=data, rollouts=[rollouts], model_mle=mle, previous_model=self.m1, output=output, metrics=metrics,
                check=2, precision=precision, **identity, **holdout, **config.phase2.model_dump(),
            )  # fmt: skip
            seconds, told = time.process_time() - began, read_json(metrics)
            errors = [told["holdout_mse"][member] for member in told["elites"]]
            found[precision] = {
                **terms(load(output)[1]), "steps": told["steps"], "best_step": told["best_step"],
                "error": mean(errors), "seconds": seconds,
            }  # fmt: skip
        return found


def main() -> None:
    """Measure and print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=5000, help="collected with random actions")
    parser.add_argument("--task", default="Hopper")
    parser.add_argument("--max-epochs", type=int, help="end phase 1 after so many; without it when no member improves")
    parser.add_argument("--no-phase2", action="store_true", help="leave out phase 2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_run(given.task, "usbpo", FOLDERS)
    config = config.model_copy(update={"phase1": config.phase1.model_copy(update={"max_epochs": given.max_epochs})})
    lines1, lines2 = [], []
    for seed in given.seeds:
        with TemporaryDirectory() as folder:
            with redirect_stdout(io.StringIO()):  # the stages'
                at = Seed(config, Path(folder), given.task, seed, given.rows)
                after_phase1 = at.phase1()
                after_phase2 = {} if given.no_phase2 else at.phase2()
            for name, told in after_phase1.items():
                numbers = f"{told.error:.5g} | {told.error_in_float32:.5g} | {told.epochs} | {told.seconds:.1f}"
                lines1.append(f"| {seed} | {name} | {numbers} |")
                print(lines1[-1], flush=True)
            for name, terms in after_phase2.items():
                numbers = " | ".join(f"{value:.5g}" for value in terms.values())
                lines2.append(f"| {seed} | {name} | {numbers} |")
                print(lines2[-1], flush=True)
    print(f"\nPhase 1 on {given.rows} random rows of {given.task}:\n")
    print("| seed | products | hold-out error | in float32 | epochs | s |\n|---|---|---|---|---|---|")
    print("\n".join(lines1))
    if lines2:
        print("\nPhase 2:\n\n| seed | products | shift | bias | sum | steps | best | hold-out error | s |")
        print("|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines2))


if __name__ == "__main__":
    main()
