"""Does it matter that the policy is fixed within a cycle? A reference loop that interleaves steps and updates.

The released MBPO takes G policy updates after every real step; here a stage collects all steps of a cycle with one
policy (docs/algorithm.md, departures). This loop does either, in one process and from the package's own stages and
components: `--policy-every S` takes S real steps, then S·G updates, and so on. S = 1 is the released interleaving, with
the model trained before each F steps on the data so far; S = F is the order of the stages, and gives their very tensors
(tests/benchmarks/test_lag.py).

    python benchmarks/lag.py --task Hopper --method mbpo --steps 3000 --policy-every 1 --output lag-1.csv

Each line of the output is the end of one cycle of F steps. A lag that hurts shows as a temperature or a mean Q that
climbs with S = F and not with S = 1, with the entropy away from its target, or as lower returns; compare several seeds.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usbpo.agent import sac
from usbpo.agent.choice import learner_for
from usbpo.agent.replay import Replay, pack_rows
from usbpo.artifacts import layout, transitions
from usbpo.artifacts.header import Header
from usbpo.artifacts.transitions import Transitions
from usbpo.environments.tasks import Simulator
from usbpo.experiment.loading import load_run
from usbpo.experiment.run import Run
from usbpo.experiment.run_config import RunConfig
from usbpo.numerics import device as devices
from usbpo.numerics.optimizer import Params, moved
from usbpo.numerics.seeding import seed_sequence, torch_generator
from usbpo.stages.collect import Actor, Collector, random_actor, stochastic_actor
from usbpo.stages.evaluate import evaluate_episode
from usbpo.stages.phase1 import phase1
from usbpo.stages.phase2 import phase2
from usbpo.stages.policy import take_updates
from usbpo.stages.rollout import rollout

FOLDERS = (Path(__file__).resolve().parents[1] / "config",)
EVALUATED = 3
"""Evaluation episodes at the end of each cycle."""


class Loop:
    """A run of a periodically updated model in which the policy is refreshed every `policy_every` real steps.

    The model's stages read and write files below `folder`, as in the workflow; steps and policy updates stay in memory.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        method: str,
        seed: int,
        policy_every: int,
        steps: int,
        device: str = "auto",
        episodes: int = EVALUATED,
    ) -> None:
        self.device, self.episodes = devices.choose(device), episodes
        self.config: RunConfig = load_run(task, method, FOLDERS)
        self.run, self.folder, self.seed, self.policy_every = (
            Run(task, method, seed, self.config),
            folder,
            seed,
            policy_every,
        )
        if (
            self.run.schedule.cycle_steps % policy_every
            or not self.run.schedule.has_model
            or self.run.schedule.triggered
        ):
            sys.exit("lag: --policy-every must divide a cycle, and the method's model must be updated regularly.")
        environment = self.config.environment
        self.collector = Collector(Simulator(environment.id, environment.arguments), seed)
        self.evaluator = Simulator(environment.id, environment.arguments)
        sim, keys = self.collector.simulator, self.config.policy
        architecture = sac.Architecture(sim.obs_dim, sim.act_dim, keys.hidden_layers, keys.hidden_size)
        agent = sac.new_agent(architecture, torch_generator(seed, 0, "initialise"))
        self.learner = learner_for(
            agent,
            rows=keys.batch_size,
            real=int(keys.batch_size * keys.real_ratio),
            learning_rate=keys.learning_rate,
            discount=keys.discount,
            polyak=keys.polyak,
            target_entropy=keys.target_entropy,
            device=self.device,
        )
        self.capacity = self.config.schedule.random_steps + steps
        self.replay = self._replay_with_room(0)
        self._write(0, [self._collect(self.config.schedule.random_steps, random_actor(sim.act_dim))])

    def cycle(self, cycle: int) -> dict[str, Any]:
        """One cycle; what it was like at its end."""
        started, staged = time.perf_counter(), self.policy_every == self.run.schedule.cycle_steps
        generator = torch_generator(self.seed, cycle, "policy", self.device)
        parts: list[Transitions] = []
        if staged:
            parts = [self._collect(self.policy_every, stochastic_actor(self._actor()))]
            self._write(cycle, parts)
        began_model = time.perf_counter()
        found = self._update_model(cycle, cycle if staged else cycle - 1)
        ended_model = time.perf_counter()
        for _ in range(self.run.schedule.cycle_steps // self.policy_every):
            if not staged:
                parts.append(self._collect(self.policy_every, stochastic_actor(self._actor())))
            updates = self.policy_every * self.config.policy.updates_per_step
            take_updates(self.learner, self.replay, updates, generator)
        if not staged:
            self._write(cycle, parts)
        updated, seen = time.perf_counter(), self.learner.seen()
        seeds = [int(s.generate_state(1)[0]) for s in seed_sequence(self.seed, 0, "evaluate").spawn(self.episodes)]
        returns = [evaluate_episode(self.evaluator, self._actor(), episode)[0] for episode in seeds]
        return {
            "step": cycle * self.run.schedule.cycle_steps,
            "return": float(np.mean(returns)),
            **{name: float(seen[name]) for name in ("temperature", "entropy", "q_real", "q_model", "critic_loss")},
            **found,
            "seconds_model": round(ended_model - began_model, 1),
            "seconds_policy": round(updated - ended_model, 1),
            "seconds": round(time.perf_counter() - started, 1),
        }

    def _replay_with_room(self, model_rows: int) -> Replay:
        """Rows for the model's transitions, and behind them for all real ones of the run; none is filled."""
        width = self.learner.batch.shape[-1]
        return Replay(torch.empty(2, model_rows + self.capacity, width, device=self.device), model_rows, 0)

    def _actor(self) -> Params:
        return moved(self.learner.actor, torch.device("cpu"))

    def _collect(self, steps: int, actor: Actor) -> Transitions:
        made = self.collector.collect(steps, actor)
        self.replay.append(made)
        return made

    def _write(self, cycle: int, parts: list[Transitions]) -> None:
        # Where steps and updates take turns, a model comes before its cycle's data: D_env ends with the shard before,
        # which so counts as of its cycle.
        late = int(self.policy_every != self.run.schedule.cycle_steps)
        shards = {"shards": 1 + (late if cycle == 0 else 0)}
        header = Header(transitions.KIND, self.run.task, self.seed, cycle + late, shards)
        transitions.write(self._path(layout.SHARD, cycle), header, transitions.concatenate(parts))

    def _path(self, template: str, cycle: int) -> Path:
        return self.folder / self.run.path(template, cycle)

    def _update_model(self, cycle: int, last_shard: int) -> dict[str, Any]:
        """Phase 1, phase 2 and rollouts on the shards up to `last_shard`, where the cycle has them."""
        run, config = self.run, self.config
        if not run.schedule.has_model_stages(cycle):
            return {"holdout_mse": None, "epochs": 0}
        assert config.model is not None
        data = [self._path(layout.SHARD, n) for n in range(last_shard + 1)]
        identity: dict[str, Any] = {"seed": self.seed, "cycle": cycle, "device": self.device.type}
        every = run.schedule.model_every
        previous = next((self.folder / path for path in run.previous_models(cycle)), None)
        metrics = self._path(layout.PHASE1_METRICS, cycle)
        mle = self._path(layout.MODEL_MLE, cycle)
        phase1(
            data=data, output=mle, metrics=metrics, previous_model=previous, model_every=every, **identity,
            **config.model.model_dump(), **config.phase1.model_dump(),
        )  # fmt: skip
        if run.fine_tunes(cycle):
            assert config.phase2 is not None
            assert previous is not None
            phase2(
                data=data, model_mle=mle, previous_model=previous, output=self._path(layout.MODEL, cycle),
                rollouts=[self.folder / path for path in run.model_data_before(cycle)],
                metrics=self._path(layout.PHASE2_METRICS, cycle), model_every=every, **identity,
                holdout_ratio=config.phase1.holdout_ratio, holdout_limit=config.phase1.holdout_limit,
                **config.phase2.model_dump(),
            )  # fmt: skip
        policy = self._path(layout.POLICY, cycle - 1)
        self.learner.agent().save(policy, Header(sac.KIND, run.task, self.seed, cycle - 1))
        rollout(
            data=data, model=self.folder / run.models(cycle)[0], policy=policy,
            output=self._path(layout.ROLLOUTS, cycle), metrics=self._path(layout.ROLLOUT_METRICS, cycle),
            termination=config.environment.termination, length=run.schedule.rollout_steps(cycle),
            batch_size=config.rollout.batch_size, **identity,
        )  # fmt: skip
        made = transitions.read_rollouts([self.folder / path for path in run.model_data(cycle)])[1]
        before, self.replay = self.replay, self._replay_with_room(len(made))
        pack_rows(made, self.replay.packed[:, : len(made)])
        self.replay.packed[:, len(made) :] = before.packed[:, before.model_rows :]
        self.replay.real_rows = before.real_rows
        said = json.loads(metrics.read_text())
        return {"holdout_mse": float(np.mean(np.take(said["holdout_mse"], said["elites"]))), "epochs": said["epochs"]}


def cycles(loop: Loop, steps: int) -> Iterator[dict[str, Any]]:
    """What each cycle in `steps` real steps was like."""
    for cycle in range(1, loop.run.schedule.cycles(steps) + 1):
        yield loop.cycle(cycle)


def main() -> None:
    """Run the loop and write a line for each cycle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="Hopper")
    parser.add_argument("--method", default="mbpo")
    parser.add_argument("--steps", type=int, default=3000, help="on-policy steps")
    parser.add_argument("--policy-every", type=int, default=1, help="real steps between two refreshes of the policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=EVALUATED, help="evaluation episodes at the end of a cycle")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, open(given.output, "w", newline="", encoding="utf-8") as file:
        loop = Loop(
            Path(folder),
            given.task,
            given.method,
            given.seed,
            given.policy_every,
            given.steps,
            given.device,
            given.episodes,
        )
        writer = None
        for line in cycles(loop, given.steps):
            writer = writer or csv.DictWriter(file, list(line))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(line)
            file.flush()


if __name__ == "__main__":
    main()
