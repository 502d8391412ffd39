"""The first 1,000 on-policy steps of MBPO on Hopper: ours beside mbrl-lib's whole program, as many threads each.

    python benchmarks/whole_program.py --peer-python /path/to/python [--threads 2] [--repetitions 2] [--epochs 61]

The peer's Python has mbrl 0.2.0 and what it needs, which may be an environment of its own:

    pip install torch gymnasium mujoco==3.4.0 imageio hydra-core==1.3.2 termcolor tqdm tensorboard matplotlib
    pip install --no-deps mbrl==0.2.0      # its own bounds hold Hydra at a version that Python 3.11 cannot import

Without it ours runs alone. All sizes are those of config/tasks/Hopper.yaml and config/algorithms/mbpo.yaml, handed to
mbrl-lib in its own configuration; every training of the model takes the same number of epochs in both. Ours is timed
from the first step after the 5,000 random ones to the 1,000th. mbrl-lib takes no updates before its model is first
trained, with the 250th step, so it is timed from that step to the 1,249th: as many trainings on as many rows, and as
many updates.

Ours are the stages of the workflow, called in one process with all their files; what Snakemake adds is pipeline.py's.
mbrl-lib is `mbrl.algorithms.mbpo.train`, with timers around its functions. Evaluation is timed but not counted: ours
plays 10 episodes each 250 steps, mbrl-lib one each 1,000. What else differs is printed below the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

PARTS = ("model training", "model rollouts", "policy updates", "real steps", "evaluation")
"""Evaluation is not counted."""
OURS, PEER = "ours", "mbrl-lib"
TASK, METHOD = "Hopper", "mbpo"
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""The environment variables by which they are told how many threads they have"""
DIFFERENCES = """\
Ours holds the policy fixed for the 250 steps of a cycle, mbrl-lib acts with the newest, without noise. Ours writes and
reads every stage's files, mbrl-lib saves its model and real data after each training. 12 of the 256 rows of each of our
batches are real; mbrl-lib takes a whole batch of real rows in one of 20 updates. mbrl-lib logs seven numbers of each
update and sums the norms of the model's gradients in each minibatch; ours computes metrics every 500 updates. mbrl-lib
has one weight decay for all layers, and its real data in double precision, as its own configuration of MBPO says."""


class Clock:
    """Wall and CPU seconds of the whole and of its parts, from its start to its end."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget everything and begin."""
        self.parts = {name: [0.0, 0.0] for name in PARTS}
        self.counts: dict[str, int] = {}
        self.begun = time.perf_counter(), time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens within to a part."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.parts[name][0] += time.perf_counter() - wall
            self.parts[name][1] += time.process_time() - cpu

    def count(self, what: str, number: int = 1) -> None:
        """Say how much was done."""
        self.counts[what] = self.counts.get(what, 0) + number

    def found(self) -> dict[str, Any]:
        """All seconds up to now; the rest is what belongs to no part."""
        all_of_it = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        rest = [whole - sum(part[i] for part in self.parts.values()) for i, whole in enumerate(all_of_it)]
        return {"parts": {**self.parts, "the rest": rest}, "counts": self.counts}


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of our stages, in this process and folder."""
    import yaml
    from pipeline import commands, workspace

    from usbpo.commands import cli

    parts = {
        "phase1": "model training",
        "rollout": "model rollouts",
        "policy": "policy updates",
        "collect": "real steps",
        "block": "real steps",
        "evaluate": "evaluation",
    }
    content = {"base": METHOD, "phase1": {"max_epochs": settings["epochs"], "patience": settings["epochs"]}}
    given = argparse.Namespace(task=TASK, method="timed", steps=settings["steps"])
    folder = workspace(Path.cwd(), OURS, given)
    (folder / "config/algorithms").mkdir(parents=True)
    (folder / "config/algorithms/timed.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    # The theory of a cycle is measured beside the chain; mbrl-lib has nothing like it.
    lines = [words for words in commands(folder) if words[0] != "theory"]
    random = [words for words in lines if words[0] == "initialise" or before_the_first_cycle(words)]
    cli.warm_up()
    clock = Clock()
    with chdir(folder), open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        for words in random:
            run(cli.main, words)
        clock.start()
        for words in [words for words in lines if words not in random]:
            with clock.part(parts[words[0]]):
                run(cli.main, words)
        found = clock.found()
    run_folder = folder / f"data/runs/{TASK}/timed/seed-0"
    for path in sorted(run_folder.glob("*/*.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        for file, what, key in (("phase1", "epochs", "epochs"), ("policy", "updates", "updates")):
            if path.stem == file and metrics["cycle"] > 0:
                clock.count(what, metrics[key])
        clock.count("trainings", int(path.stem == "phase1"))
    clock.count("steps", settings["steps"])
    return found


def before_the_first_cycle(words: list[str]) -> bool:
    """Whether a command is of cycle 0, which holds the random steps; blocks belong to no cycle."""
    return "--cycle" in words and int(words[words.index("--cycle") + 1]) == 0


def run(command_line: Callable[[list[str]], int], words: list[str]) -> None:
    """Run a stage."""
    if command_line(words):
        sys.exit(f"whole_program: the stage failed: usbpo {' '.join(words)}")


class Finished(Exception):
    """All steps that are timed have been taken."""


def mbrl_lib(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of mbrl-lib's program, with its files in the current folder."""
    import gymnasium
    import mbrl.algorithms.mbpo as program
    import mbrl.util.common
    import numpy as np
    import omegaconf
    import torch
    from mbrl.env.termination_fns import hopper
    from mbrl.models import ModelTrainer
    from mbrl.third_party.pytorch_sac_pranz24 import SAC

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (whatever of mbrl-lib draws from it)
    clock = Clock()
    first = settings["random_steps"] + settings["model_train_freq"]
    taken = 0

    def timed(holder: Any, name: str, part: str, what: str) -> None:
        function = getattr(holder, name)

        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            clock.count(what)
            with clock.part(part):
                return function(*arguments, **keywords)

        setattr(holder, name, wrapper)

    timed(mbrl.util.common, "train_model_and_save_model_and_data", "model training", "trainings")
    timed(program, "rollout_model_and_populate_sac_buffer", "model rollouts", "rollouts")
    timed(SAC, "update_parameters", "policy updates", "updates")
    timed(program, "evaluate", "evaluation", "evaluations")
    timed(mbrl.util.common, "step_env_and_add_to_buffer", "real steps", "steps")
    step, train = mbrl.util.common.step_env_and_add_to_buffer, ModelTrainer.train

    def watched_step(*arguments: Any, **keywords: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == first:
            clock.start()
        elif taken == first + settings["steps"]:
            raise Finished
        return step(*arguments, **keywords)

    def watched_train(*arguments: Any, **keywords: Any) -> Any:
        losses, scores = train(*arguments, **keywords)
        clock.count("epochs", len(losses))
        return losses, scores

    mbrl.util.common.step_env_and_add_to_buffer, ModelTrainer.train = watched_step, watched_train
    environment, test_environment = (gymnasium.make(settings["environment"]) for _ in range(2))
    config = omegaconf.OmegaConf.create(peer_configuration(settings, environment))
    try:
        program.train(environment, test_environment, hopper, config, silent=True, work_dir=str(Path.cwd()))
    except Finished:
        return clock.found()
    sys.exit("whole_program: mbrl-lib ended before all steps were taken.")


def peer_configuration(settings: dict[str, Any], environment: Any) -> dict[str, Any]:
    """mbrl-lib's configuration with our sizes; what ours does not know is as in its own configuration of MBPO."""
    actions, frequency = environment.action_space, settings["model_train_freq"]
    sac = {
        "gamma": settings["discount"],
        "tau": settings["polyak"],
        "alpha": 1.0,
        "policy": "Gaussian",
        "target_update_interval": 1,
        "automatic_entropy_tuning": True,
        "target_entropy": settings["target_entropy"],
        "hidden_size": settings["policy_hidden_size"],
        "device": "cpu",
        "lr": settings["policy_learning_rate"],
    }
    bounds = {"low": float(actions.low[0]), "high": float(actions.high[0]), "shape": list(actions.shape)}
    model = {
        "_target_": "mbrl.models.GaussianMLP",
        "_recursive_": False,
        "device": "cpu",
        "num_layers": settings["hidden_layers"],
        "in_size": "???",
        "out_size": "???",
        "ensemble_size": settings["members"],
        "hid_size": settings["hidden_size"],
        "deterministic": False,
        "propagation_method": "random_model",
        "learn_logvar_bounds": True,
        "activation_fn_cfg": {"_target_": "torch.nn.SiLU"},
    }
    return {
        "seed": 0,
        "device": "cpu",
        "log_frequency_agent": 1000,
        "dynamics_model": model,
        "algorithm": {
            "normalize": True,
            "normalize_double_precision": True,
            "target_is_delta": True,
            "learned_rewards": True,
            "freq_train_model": frequency,
            "real_data_ratio": settings["real_ratio"],
            "sac_samples_action": True,
            "initial_exploration_steps": settings["random_steps"],
            "random_initial_explore": True,
            "num_eval_episodes": 1,
            "dataset_size": settings["random_steps"] + 2 * settings["epoch_steps"],
            "agent": {
                "_target_": "mbrl.third_party.pytorch_sac_pranz24.sac.SAC",
                "num_inputs": environment.observation_space.shape[0],
                "action_space": {"_target_": "gymnasium.spaces.Box", "_convert_": "all", **bounds},
                "args": sac,
            },
        },
        "overrides": {
            "num_steps": 2 * settings["epoch_steps"],
            "epoch_length": settings["epoch_steps"],
            "num_elites": settings["elites"],
            "model_lr": settings["learning_rate"],
            "model_wd": settings["weight_decay"],
            "model_batch_size": settings["batch_size"],
            "validation_ratio": settings["holdout_ratio"],
            "num_epochs_train_model": settings["epochs"],
            "patience": settings["epochs"] + 1,
            "freq_train_model": frequency,
            "effective_model_rollouts_per_step": settings["rollouts"] // frequency,
            "rollout_schedule": settings["rollout_schedule"],
            "num_sac_updates_per_step": settings["updates_per_step"],
            "sac_updates_every_steps": 1,
            "num_epochs_to_retain_sac_buffer": settings["model_retain_epochs"],
            "sac_batch_size": settings["policy_batch_size"],
        },
    }


def settings_of(steps: int, epochs: int, threads: int) -> dict[str, Any]:
    """The numbers of our configuration that both programs are given."""
    from usbpo.experiment.loading import load_run

    config = load_run(TASK, METHOD, (Path(__file__).resolve().parents[1] / "config",))
    assert config.model is not None
    schedule, phase1, policy, length = config.schedule, config.phase1, config.policy, config.schedule.rollout_length
    assert policy.hidden_layers == 2  # mbrl-lib's has two
    return {
        **config.model.model_dump(),
        **phase1.model_dump(include={"learning_rate", "batch_size", "holdout_ratio"}),
        **policy.model_dump(include={"discount", "polyak", "target_entropy", "real_ratio", "updates_per_step"}),
        **{f"policy_{name}": getattr(policy, name) for name in ("hidden_size", "learning_rate", "batch_size")},
        **schedule.model_dump(include={"random_steps", "epoch_steps", "model_train_freq", "model_retain_epochs"}),
        "environment": config.environment.id,
        "weight_decay": statistics.median(phase1.weight_decay),
        "rollouts": config.rollout.batch_size,
        "rollout_schedule": [length.start_epoch, length.end_epoch, length.start_length, length.end_length],
        "steps": steps,
        "epochs": epochs,
        "threads": threads,
    }


def measured(side: str, python: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What one side took, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(Path(__file__).resolve()), "--side", side, "--settings", json.dumps(settings)]
        # Ours shares out its work itself; the other's is torch's own.
        of_libraries = 1 if side == OURS else settings["threads"]
        told = {name: str(of_libraries) for name in LIBRARIES} | {"USBPO_THREADS": str(settings["threads"])}
        done = subprocess.run(command, check=False, cwd=folder, env=os.environ | told, stdout=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"whole_program: {side} failed.")
        found: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    wall, cpu = total(found)
    parts = ", ".join(f"{name} {own:.1f}" for name, (_, own) in found["parts"].items())
    print(f"{side}: {wall:.0f} s, {cpu:.1f} s of CPU ({parts}), load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    return found


def total(found: dict[str, Any]) -> list[float]:
    """Wall and CPU seconds of all that is counted."""
    return [sum(part[i] for name, part in found["parts"].items() if name != "evaluation") for i in (0, 1)]


def table(several: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The lines of the table: medians of wall and CPU seconds, and how they compare."""
    yield (
        f"{'':24}" + "".join(f"{side + ', wall':>16}{'CPU':>9}" for side in several) + f"{'ratio, wall':>13}{'CPU':>6}"
    )
    rows = [*PARTS[:-1], "the rest", "all", "evaluation (not in all)"]
    for row in rows:
        line, taken = f"{row:24}", []
        for runs in several.values():
            values = [total(found) if row == "all" else found["parts"][row.split(" (")[0]] for found in runs]
            wall, own = (statistics.median(value[i] for value in values) for i in (0, 1))
            line += f"{wall:14.1f} s{own:7.1f} s"
            taken.append((wall, own))
        if len(taken) == 2 and taken[1][1] > 0.05:
            line += "".join(f"{a / b:{width}.2f}" for a, b, width in zip(*taken, (13, 6), strict=True))
        yield line


def main() -> None:
    """Measure both by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has mbrl-lib")
    parser.add_argument("--steps", type=int, default=1000, help="on-policy steps, whole cycles")
    parser.add_argument("--epochs", type=int, default=61, help="of each training of the model, in both")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--side", choices=[OURS, PEER], help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        found = (ours if given.side == OURS else mbrl_lib)(json.loads(given.settings))
        Path("found.json").write_text(json.dumps(found), encoding="utf-8")
        return
    from measuring import machine

    pythons = {OURS: sys.executable}
    peer = [given.peer_python, "-c", "import mbrl.algorithms.mbpo"]
    tried = subprocess.run(peer, check=False, capture_output=True, text=True)
    if tried.returncode:
        print(f"mbrl-lib is absent from {given.peer_python}: {tried.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    else:
        pythons[PEER] = given.peer_python
    settings = settings_of(given.steps, given.epochs, given.threads)
    several: dict[str, list[dict[str, Any]]] = {side: [] for side in pythons}
    for repetition in range(given.repetitions):
        for side in list(pythons)[:: -1 if repetition % 2 else 1]:
            several[side].append(measured(side, pythons[side], settings))
    print(f"{machine().rsplit(',', 1)[0]}; medians of {given.repetitions} by turns, {given.threads} threads each")
    print(f"{TASK}, {METHOD}, {given.steps} steps after {settings['random_steps']} random ones")
    for side, runs in several.items():
        print(f"{side}: {', '.join(f'{count:,} {what}' for what, count in runs[0]['counts'].items())}")
    print()
    for line in table(several):
        print(line)
    if PEER in several:
        print(f"\n{DIFFERENCES}")


if __name__ == "__main__":
    main()
